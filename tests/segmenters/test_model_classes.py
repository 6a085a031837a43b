"""Every class of transformers' mappings for semantic and universal segmentation, with random weights."""

import json

import pytest
import torch

from benchmarks.components.segmenters import TINY, known_types, write_tiny
from genval.datasets.labels import CLASSES
from genval.runtime.errors import GenValError
from genval.segmenters import load_segmenter
from genval.segmenters.identity import model_identity
from genval.segmenters.processor import Processor
from genval.segmenters.query_models import QuerySegmenter
from genval.segmenters.windows import window_starts

pytestmark = pytest.mark.slow  # whole networks and files, in other libraries for the most part

# Sizes of which transformers itself takes whole patches; a square where it takes no other.
SIZES = {"data2vec-vision": (64, 64), "dpt": (64, 64), "tipsv2_dpt": (56, 112), "videomt": (64, 64)}
# The two with a reference of their own in test_query_models.py.
REFERENCE_ELSEWHERE = ("mask2former", "oneformer")


def random_images(height, width, count=2):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def test_no_class_of_the_library_is_missing():
    assert known_types() == sorted(TINY)


@pytest.mark.parametrize("kind", known_types())
def test_the_scores_are_those_of_transformers(tmp_path, kind):
    model = write_tiny(kind, tmp_path)
    segmenter = load_segmenter(f"hf:{tmp_path}", "cpu")
    size = SIZES.get(kind, (64, 128))
    images = random_images(*size)
    logits = segmenter(images)
    assert logits.shape == (2, 19, *size) and logits.isfinite().all()
    assert segmenter(random_images(50, 90)).shape == (2, 19, 50, 90)
    if kind in REFERENCE_ELSEWHERE:
        return
    pixels = (images.flip(1) if segmenter.reads_bgr else images).float()
    pixels = (pixels - segmenter.mean) / segmenter.std
    windows = pixels.split(64, dim=3) if kind.startswith("eomt") else [pixels]
    expected = torch.cat([scores_of_transformers(model, window, kind) for window in windows], dim=3)
    found = logits.exp() if isinstance(segmenter, QuerySegmenter) else logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def scores_of_transformers(model, pixels, kind):
    """The library's scores (B, 19, H, W) of normalised pixels: logits, or those of its own post-processing."""
    import transformers

    size = tuple(pixels.shape[-2:])
    with torch.no_grad():
        outputs = model(pixel_values_videos=pixels[:, None]) if kind == "videomt" else model(pixel_values=pixels)
    if "logits" in outputs and "pred_masks" not in outputs:
        return torch.nn.functional.interpolate(outputs.logits, size, mode="bilinear", align_corners=False)
    if kind in ("detr", "maskformer"):
        name = {"detr": "DetrImageProcessor", "maskformer": "MaskFormerImageProcessor"}[kind]
        processor, options = getattr(transformers, name)(), {}
    else:
        outputs["patch_offsets"] = None
        processor = transformers.EomtImageProcessor()
        options = {"size": {"shortest_edge": size[0], "longest_edge": size[1]}}
    results = processor.post_process_semantic_segmentation(
        outputs, [size] * len(pixels), return_segmentation_scores=True, **options
    )
    return torch.stack([result.segmentation_scores for result in results])


def test_windows_equal_the_processors_patches(tmp_path):
    """An image of another size: resized, cut into overlapping windows, merged and resized back as transformers does."""
    import transformers

    model = write_tiny("eomt", tmp_path)
    segmenter = load_segmenter(f"hf:{tmp_path}", "cpu")
    images = random_images(60, 100, 1)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    inputs = processor(list(images), return_tensors="pt")
    assert inputs["pixel_values"].shape == (2, 3, 64, 64)
    with torch.no_grad():
        outputs = model(**inputs)
    [expected] = processor.post_process_semantic_segmentation(
        outputs, [(60, 100)], size={"shortest_edge": 64, "longest_edge": None}, return_segmentation_scores=True
    )
    # The processor rounds the resized image to whole numbers.
    torch.testing.assert_close(segmenter(images)[0].exp(), expected.segmentation_scores, rtol=0.02, atol=0.02)


def test_panoptic_eomt_is_padded_and_an_input_size_replaces_the_processors(tmp_path):
    write_tiny("eomt", tmp_path)
    edit(tmp_path / "preprocessor_config.json", size={"shortest_edge": 64, "longest_edge": 64}, do_split_image=False)
    segmenter = load_segmenter(f"hf:{tmp_path}", "cpu")
    calls = []
    segmenter.network.register_forward_pre_hook(lambda _, args, kwargs: calls.append(kwargs), with_kwargs=True)
    images = random_images(64, 128, 1)
    segmenter(images)
    [padded] = [call["pixel_values"] for call in calls]
    black = (-segmenter.mean / segmenter.std)[0, :, 0]
    torch.testing.assert_close(padded[0, :, -1], black.expand(3, 64))
    calls.clear()
    load_segmenter(f"hf:{tmp_path}", "cpu")
    segmenter.set_input_size((64, 128))
    segmenter(images)
    assert len(calls) == 2


def test_the_processors_size_identifies_a_model_that_it_matters_to(tmp_path, capsys):
    for kind, same in (("eomt", False), ("segformer", True)):
        folder = tmp_path / kind
        write_tiny(kind, folder)
        edit(folder / "preprocessor_config.json", size={"height": 64, "width": 64})
        before = model_identity(load_segmenter(f"hf:{folder}", "cpu"))
        edit(folder / "preprocessor_config.json", size={"height": 64, "width": 128})
        assert (model_identity(load_segmenter(f"hf:{folder}", "cpu")) == before) == same
        assert ("they keep their native size (--input_size processor" in capsys.readouterr().out) == same
        assert model_identity(load_segmenter(f"hf:{folder}", "cpu", input_size="processor")) != before


def test_random_attention_masks_are_refused(tmp_path):
    model = write_tiny("eomt", tmp_path)
    model.attn_mask_probs.fill_(0.5)
    model.save_pretrained(tmp_path)
    with pytest.raises(GenValError, match="middle of its training"):
        load_segmenter(f"hf:{tmp_path}", "cpu")


def test_classes_are_ordered_by_name(tmp_path):
    write_tiny("eomt", tmp_path)
    expected = load_segmenter(f"hf:{tmp_path}", "cpu")(random_images(64, 64))
    names = [*CLASSES[1:], "street"]
    edit(tmp_path / "config.json", id2label=dict(enumerate(names)), label2id={})
    found = load_segmenter(f"hf:{tmp_path}", "cpu")(random_images(64, 64))
    torch.testing.assert_close(found, expected[:, [18, *range(18)]])


@pytest.mark.parametrize(
    ("kind", "architecture", "message"),
    [
        ("sapiens2", "Sapiens2ForPoseEstimation", "holds a Sapiens2ForPoseEstimation: expected a Sapiens2ForSemantic"),
        ("detr", "DetrForObjectDetection", "holds a DetrForObjectDetection: expected a DetrForSegmentation"),
    ],
)
def test_a_model_of_another_task_with_the_same_keys_is_refused(tmp_path, kind, architecture, message):
    write_tiny(kind, tmp_path)
    edit(tmp_path / "config.json", architectures=[architecture])
    with pytest.raises(GenValError, match=message):
        load_segmenter(f"hf:{tmp_path}", "cpu")


def test_a_type_that_does_not_segment_is_refused_by_name(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "rf_detr"}))
    with pytest.raises(GenValError, match=r"its type is 'rf_detr'\. The installed .* eomt, eomt_dinov3, .* segformer"):
        load_segmenter(f"hf:{tmp_path}", "cpu")


def test_the_processors_resize_on_request(tmp_path):
    write_tiny("segformer", tmp_path)
    edit(tmp_path / "preprocessor_config.json", size={"height": 64, "width": 96})
    images = random_images(40, 100)
    expected = load_segmenter(f"hf:{tmp_path}", "cpu", input_size=(64, 96))(images)
    torch.testing.assert_close(load_segmenter(f"hf:{tmp_path}", "cpu", input_size="processor")(images), expected)
    edit(tmp_path / "preprocessor_config.json", size={"max_height": 64, "max_width": 96})
    with pytest.raises(GenValError, match=r"unknown form: give --input_size HxW"):
        load_segmenter(f"hf:{tmp_path}", "cpu", input_size="processor")


@pytest.mark.parametrize(
    ("size", "image", "expected"),
    [
        (None, (500, 900), (500, 900)),
        ({"height": 64, "width": 32}, (500, 900), (64, 32)),
        ({"shortest_edge": 1024, "longest_edge": None}, (512, 1000), (1024, 2000)),
        ({"shortest_edge": 800, "longest_edge": 1333}, (1024, 2048), (666, 1333)),
        ({"shortest_edge": 640, "longest_edge": 640}, (640, 480), (640, 480)),
    ],
)
def test_the_size_after_the_processors_resize(size, image, expected):
    from transformers.image_transforms import get_size_with_aspect_ratio

    assert Processor([0.0] * 3, [1.0] * 3, False, size).fitted_size(*image) == expected
    if size and "shortest_edge" in size:
        assert get_size_with_aspect_ratio(image, size["shortest_edge"], size["longest_edge"]) == expected


def test_windows_cover_every_pixel():
    for length, side in ((64, 64), (65, 64), (1000, 640), (2048, 1024), (199, 100)):
        starts = window_starts(length, side)
        covered = {pixel for start in starts for pixel in range(start, start + side)}
        assert covered == set(range(length))


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
