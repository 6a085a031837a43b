"""MaskFormer, Mask2Former and OneFormer: scores as transformers computes them, their logarithms as logits."""

import json

import pytest
import torch

from genval.runtime.errors import GenValError
from genval.segmenters import load_segmenter

pytestmark = pytest.mark.slow  # whole networks and files, in other libraries for the most part

CPU = torch.device("cpu")


def transformers_scores(folder, kind, images, segmenter):
    """(B, 19, H, W) scores from the model and the processor's own post-processing."""
    import transformers

    model = {
        "mask2former": transformers.Mask2FormerForUniversalSegmentation,
        "maskformer": transformers.MaskFormerForInstanceSegmentation,
        "oneformer": transformers.OneFormerForUniversalSegmentation,
    }[kind].from_pretrained(folder)
    inputs = {"pixel_values": (images.float() - segmenter.mean) / segmenter.std}
    if kind == "oneformer":
        # As OneFormerProcessor tokenises a task; every letter is a token of the tiny vocabulary.
        tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
        tokens = tokenizer(["the task is semantic"], padding="max_length", max_length=77, truncation=True)
        task = torch.tensor(tokens["attention_mask"][0]) * torch.tensor(tokens["input_ids"][0])
        inputs["task_inputs"] = task.repeat(len(images), 1)
    with torch.no_grad():
        outputs = model.eval()(**inputs)
    sizes = [tuple(images.shape[-2:])] * len(images)
    if kind == "oneformer":  # an instance would fetch a list of classes
        post = transformers.OneFormerImageProcessor.post_process_semantic_segmentation
        results = post(None, outputs, sizes, return_segmentation_scores=True)
    else:
        processor = transformers.AutoImageProcessor.from_pretrained(folder)
        results = processor.post_process_semantic_segmentation(outputs, sizes, return_segmentation_scores=True)
    return torch.stack([result.segmentation_scores for result in results])


@pytest.mark.parametrize(
    ("kind", "size"), [("mask2former", (384, 384)), ("maskformer", (96, 160)), ("oneformer", (96, 160))]
)
def test_scores_equal_those_of_transformers(query_folder, kind, size):
    """Mask2Former at 384x384, where transformers' detour through that size is none."""
    folder = query_folder(kind)
    segmenter = load_segmenter(f"hf:{folder}", CPU)
    images = torch.randint(
        0, 256, (1 if size[0] > 96 else 2, 3, *size), generator=torch.Generator().manual_seed(1), dtype=torch.uint8
    )
    expected = transformers_scores(folder, kind, images, segmenter)
    logits = segmenter(images)
    torch.testing.assert_close(logits.exp(), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(logits.softmax(1), expected / expected.sum(1, keepdim=True), rtol=0, atol=1e-5)


def test_sizes_that_32_does_not_divide_are_padded(query_folder):
    folder = query_folder("mask2former")
    segmenter = load_segmenter(f"hf:{folder}", CPU)
    segmenter.mean.round_()  # the colour of the padding, in whole numbers
    images = torch.randint(0, 256, (1, 3, 90, 150), dtype=torch.uint8)
    logits = segmenter(images)
    assert logits.shape == (1, 19, 90, 150) and logits.isfinite().all()
    padded = segmenter.mean.to(torch.uint8).expand(1, 3, 96, 160).clone()
    padded[..., :90, :150] = images
    torch.testing.assert_close(logits, segmenter(padded)[..., :90, :150], rtol=0, atol=1e-5)


def test_other_labels_need_a_class_map(query_folder, tmp_path):
    import transformers

    folder = query_folder("maskformer")
    config = transformers.MaskFormerConfig.from_pretrained(folder, num_labels=3)
    torch.manual_seed(0)
    transformers.MaskFormerForInstanceSegmentation(config).save_pretrained(tmp_path)
    transformers.MaskFormerImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(GenValError, match=r"3 classes, expected 19 .*--class_map"):
        load_segmenter(f"hf:{tmp_path}", CPU)
    (tmp_path / "map.json").write_text(json.dumps({"0": "road", "1": "sky", "2": None}))
    segmenter = load_segmenter(f"hf:{tmp_path}", CPU, class_map=str(tmp_path / "map.json"))
    logits = segmenter(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    assert set(logits.argmax(1).unique().tolist()) <= {0, 10}


@pytest.mark.parametrize("kind", ["mask2former", "maskformer", "oneformer"])
@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_reduced_precision(query_folder, images, kind, precision):
    folder = query_folder(kind)
    full = load_segmenter(f"hf:{folder}", CPU)(images)
    reduced = load_segmenter(f"hf:{folder}", CPU, precision)(images)
    assert reduced.dtype == torch.float32
    assert 0 < (reduced - full).abs().max() < 0.2
