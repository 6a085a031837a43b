"""transformers models: strict weights, the processor's normalisation, 19 labels in order."""

import json

import pytest
import torch

from genval.runtime.errors import GenValError
from genval.segmenters import load_segmenter

pytestmark = pytest.mark.slow  # whole networks and files, in other libraries for the most part

CPU = torch.device("cpu")


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_equals_the_transformers_way(hf_folder, images):
    from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

    segmenter = load_segmenter(f"hf:{hf_folder}", CPU)
    model = AutoModelForSemanticSegmentation.from_pretrained(hf_folder).eval()
    inputs = AutoImageProcessor.from_pretrained(hf_folder)(list(images), return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits
    expected = torch.nn.functional.interpolate(logits, (96, 160), mode="bilinear", align_corners=False)
    torch.testing.assert_close(segmenter(images), expected, rtol=0, atol=1e-5)
    assert segmenter(images, (30, 50)).shape == (2, 19, 30, 50)


def test_a_folder_below_the_checkpoint_root(hf_folder):
    assert load_segmenter("hf:segformer", CPU, checkpoint_root=hf_folder.parent).name == "hf:segformer"


@pytest.mark.parametrize(
    ("changes", "mean", "std"),
    [
        ({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}, 127.5, 63.75),
        ({"rescale_factor": 0.5, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}, 1.0, 0.5),
        ({"do_rescale": False, "image_mean": [100.0] * 3, "image_std": [50.0] * 3}, 100.0, 50.0),
        ({"do_normalize": False}, 0.0, 255.0),
    ],
)
def test_the_processors_normalisation_is_honoured(hf_folder, changes, mean, std):
    edit(hf_folder / "preprocessor_config.json", **changes)
    segmenter = load_segmenter(f"hf:{hf_folder}", CPU)
    torch.testing.assert_close(segmenter.mean.flatten(), torch.full((3,), mean))
    torch.testing.assert_close(segmenter.std.flatten(), torch.full((3,), std))


@pytest.mark.parametrize("precision", ["16-true", "bf16-mixed"])
def test_reduced_precision(hf_folder, images, precision):
    full = load_segmenter(f"hf:{hf_folder}", CPU)(images)
    reduced = load_segmenter(f"hf:{hf_folder}", CPU, precision)(images)
    assert reduced.dtype == torch.float32
    assert (reduced - full).abs().max() < 0.1 * full.abs().max()


@pytest.mark.parametrize("kind", ["missing", "unexpected", "mismatched"])
def test_weights_that_do_not_fit_are_refused(hf_folder, kind):
    from safetensors.torch import load_file, save_file

    path = hf_folder / "model.safetensors"
    state = load_file(path)
    key = "decode_head.classifier.weight"
    if kind == "missing":
        del state[key]
    elif kind == "unexpected":
        state["decode_head.extra.weight"] = torch.zeros(1)
    else:
        state[key] = torch.zeros(19, 7, 1, 1)
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(GenValError, match=rf"do not fit its config.json: {kind}: .*decode_head\.(classifier|extra)"):
        load_segmenter(f"hf:{hf_folder}", CPU)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.complex64])
def test_weights_that_are_no_real_numbers_are_refused(hf_folder, dtype):
    from safetensors.torch import load_file, save_file

    path = hf_folder / "model.safetensors"
    state = load_file(path)
    state["decode_head.classifier.weight"] = state["decode_head.classifier.weight"].to(dtype)
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(GenValError, match=r"no real numbers: decode_head\.classifier\.weight"):
        load_segmenter(f"hf:{hf_folder}", CPU)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_weights_of_another_precision_are_converted(hf_folder, images, dtype):
    from safetensors.torch import load_file, save_file

    expected = load_segmenter(f"hf:{hf_folder}", CPU)(images)
    path = hf_folder / "model.safetensors"
    state = load_file(path)
    state["decode_head.classifier.weight"] = state["decode_head.classifier.weight"].to(dtype)
    save_file(state, path, metadata={"format": "pt"})
    torch.testing.assert_close(load_segmenter(f"hf:{hf_folder}", CPU)(images), expected, rtol=0, atol=1e-3)


def test_pixels_and_normalisation_of_different_scales_are_refused(hf_folder):
    edit(hf_folder / "preprocessor_config.json", do_rescale=False, image_mean=[0.485] * 3, image_std=[0.229] * 3)
    with pytest.raises(GenValError, match=r"preprocessor_config\.json normalises pixels 0\.\.255"):
        load_segmenter(f"hf:{hf_folder}", CPU)


def test_labels_are_checked(hf_folder, images):
    expected = load_segmenter(f"hf:{hf_folder}", CPU)(images)
    labels = json.loads((hf_folder / "config.json").read_text())["id2label"]
    swapped = labels | {"0": labels["1"], "1": labels["0"]}
    edit(hf_folder / "config.json", id2label=swapped)
    order = [1, 0, *range(2, 19)]
    torch.testing.assert_close(load_segmenter(f"hf:{hf_folder}", CPU)(images), expected[:, order])
    edit(hf_folder / "config.json", id2label=labels | {"0": "dog"})
    with pytest.raises(GenValError, match=r"not among Cityscapes': dog\. Give .*--class_map"):
        load_segmenter(f"hf:{hf_folder}", CPU)
    edit(hf_folder / "config.json", id2label={str(i): f"LABEL_{i}" for i in range(19)})
    load_segmenter(f"hf:{hf_folder}", CPU)
    edit(hf_folder / "config.json", id2label={str(i): f"LABEL_{i}" for i in range(150)}, label2id={})
    with pytest.raises(GenValError, match="150 classes, expected 19"):
        load_segmenter(f"hf:{hf_folder}", CPU)


@pytest.mark.parametrize("damage", ["truncated", "no weights", "no processor", "no config"])
def test_damaged_folders(hf_folder, damage):
    weights = hf_folder / "model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:1000])
    else:
        name = {"no weights": weights.name, "no processor": "preprocessor_config.json", "no config": "config.json"}
        (hf_folder / name[damage]).unlink()
    with pytest.raises(GenValError, match=r"Cannot load a semantic segmentation model from .*segformer"):
        load_segmenter(f"hf:{hf_folder}", CPU)


def test_a_model_for_another_task_is_refused(hf_folder):
    edit(hf_folder / "config.json", model_type="bert")
    with pytest.raises(GenValError, match="Cannot load a semantic segmentation model"):
        load_segmenter(f"hf:{hf_folder}", CPU)


@pytest.mark.parametrize("kind", ["beit", "dpt"])
def test_vision_transformers_take_any_size(tmp_path, kind):
    """They were made for one size of whole patches: the rest of the last patch is padded, positions interpolated."""
    import transformers

    small = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32, "num_labels": 19, "image_size": 64}
    if kind == "beit":
        model = transformers.BeitForSemanticSegmentation(
            transformers.BeitConfig(
                num_hidden_layers=4, out_indices=[1, 2, 3, 4], use_absolute_position_embeddings=True,
                use_relative_position_bias=True, use_auxiliary_head=False, **small,
            )
        )  # fmt: skip
        transformers.BeitImageProcessor(do_resize=False).save_pretrained(tmp_path)
    else:
        model = transformers.DPTForSemanticSegmentation(
            transformers.DPTConfig(
                num_hidden_layers=4, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 8, 8],
                fusion_hidden_size=8, use_auxiliary_head=False, **small,
            )
        )  # fmt: skip
        transformers.DPTImageProcessor(do_resize=False).save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    segmenter = load_segmenter(f"hf:{tmp_path}", CPU)
    assert segmenter.size_divisor == 16
    segmenter.mean.round_()  # the colour of the padding, in whole numbers
    images = torch.randint(0, 256, (1, 3, 90, 120), dtype=torch.uint8)
    size = (96, 128) if kind == "beit" else (128, 128)
    padded = segmenter.mean.to(torch.uint8).expand(1, 3, *size).clone()
    padded[..., :90, :120] = images
    torch.testing.assert_close(segmenter(images), segmenter(padded)[..., :90, :120], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "entries"),
    [
        ("DPTImageProcessor", {"ensure_multiple_of": 14}),
        ("DPTImageProcessor", {"keep_aspect_ratio": True, "ensure_multiple_of": 32}),
        ("DPTImageProcessor", {"do_pad": True, "size_divisor": 48}),
        ("MaskFormerImageProcessor", {"size": {"shortest_edge": 100, "longest_edge": 333}}),
        ("Mask2FormerImageProcessor", {"size": {"height": 90, "width": 130}, "size_divisor": 64}),
        ("Mask2FormerImageProcessor", {"size": {"shortest_edge": 100, "longest_edge": 333}, "size_divisor": 0}),
        ("DetrImageProcessor", {"size": {"shortest_edge": 100, "longest_edge": 150}}),
    ],
)
def test_the_resize_is_that_of_the_processor(tmp_path, kind, entries):
    import transformers

    from genval.segmenters.processor import read_processor

    processor = getattr(transformers, kind)(**entries)
    processor.save_pretrained(tmp_path)
    found = read_processor(str(tmp_path), "segformer", {})
    for size in [(96, 160), (160, 96), (720, 1280), (333, 777)]:
        # DPT's processor pads after the resize.
        resized = processor(torch.zeros(3, *size, dtype=torch.uint8), return_tensors="pt", do_pad=False)
        assert found.fitted_size(*size) == tuple(resized["pixel_values"].shape[-2:])


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"image_processor_type": "EfficientNetImageProcessor", "rescale_offset": True}, '"rescale_offset": true'),
        ({"image_processor_type": "EfficientNetImageProcessor", "include_top": True}, '"include_top": true'),
        ({"image_mean": 0.5, "image_std": 0.5}, "expected three numbers each"),
        ({"image_mean": [0.5], "image_std": [0.5]}, "expected three numbers each"),
    ],
)
def test_processors_with_other_steps_are_refused(hf_folder, changes, error):
    edit(hf_folder / "preprocessor_config.json", **{"rescale_offset": False, "include_top": False} | changes)
    with pytest.raises(GenValError, match=error):
        load_segmenter(f"hf:{hf_folder}", CPU)


def test_names_that_do_not_start_at_0_are_refused(hf_folder):
    labels = json.loads((hf_folder / "config.json").read_text())["id2label"]
    shifted = {str(int(key) + 1): name for key, name in labels.items()}
    edit(hf_folder / "config.json", id2label=shifted, label2id={})
    with pytest.raises(GenValError, match=r"id2label .* outputs 0 to 18, found 1, 2"):
        load_segmenter(f"hf:{hf_folder}", CPU)
    load_segmenter(f"hf:{hf_folder}", CPU, class_map="trainids")


def test_adapters_and_quantised_models_are_refused(hf_folder):
    edit(hf_folder / "config.json", quantization_config={"quant_method": "unknown"})
    with pytest.raises(GenValError, match=r"is quantised \(quantization_config: unknown\)"):
        load_segmenter(f"hf:{hf_folder}", CPU)
    (hf_folder / "adapter_config.json").write_text("{}")
    with pytest.raises(GenValError, match="adapter of peft"):
        load_segmenter(f"hf:{hf_folder}", CPU)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float16])
def test_pickled_weights_are_real_numbers_too(hf_folder, images, dtype):
    from safetensors.torch import load_file

    expected = load_segmenter(f"hf:{hf_folder}", CPU)(images)
    path = hf_folder / "model.safetensors"
    state = load_file(path)
    path.unlink()
    state["decode_head.classifier.weight"] = state["decode_head.classifier.weight"].to(dtype)
    torch.save(state, hf_folder / "pytorch_model.bin")
    if dtype == torch.int8:
        with pytest.raises(GenValError, match=r"no real numbers: decode_head\.classifier\.weight"):
            load_segmenter(f"hf:{hf_folder}", CPU)
    else:
        torch.testing.assert_close(load_segmenter(f"hf:{hf_folder}", CPU)(images), expected, rtol=0, atol=1e-3)
