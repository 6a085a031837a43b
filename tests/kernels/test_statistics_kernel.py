"""`measure_batch` against `measure`: on a GPU if there is one, else in Triton's interpreter (see tests/conftest.py)."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from reference_metrics import log_odds

from genval.metrics.ranking import auroc, counts_by_score, fpr_at_tpr
from genval.metrics.reliability import reliability_bounds, reliability_metrics
from genval.metrics.statistics import LogitsNotFiniteError, level_confidence, measure, measure_batch
from genval.runtime.errors import GenValError

pytest.importorskip("triton", reason="Triton is not available for this system")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def run(logits, labels, ignore=255):
    """Call `measure_batch` and wait for the device."""
    read = measure_batch(logits.to(DEVICE), labels.to(DEVICE), ignore)
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return list(read())


def draw(classes, *shape, spread=2.0):
    generator = torch.Generator().manual_seed(classes)
    labels = torch.randint(0, classes, shape, generator=generator)
    logits = spread * torch.randn(shape[0], classes, *shape[1:], generator=generator)
    strength = torch.randn(shape, generator=generator).mul(1.2).add(1).exp()
    return logits.scatter_add_(1, labels[:, None], strength[:, None]), labels.to(torch.uint8)


def same_statistics(fused, plain):
    for field in dataclasses.fields(plain):
        ours, theirs = getattr(fused, field.name), getattr(plain, field.name)
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        if field.name == "levels":
            # The last bit of an exponential may move a pixel near certainty to another level, of nearly the same
            # confidence: what counts is how far confidences move.
            distance = np.abs(np.subtract(ours.cumsum(-1), theirs.cumsum(-1), dtype=float))[:, :-1]
            assert (distance * np.abs(np.diff(level_confidence()))).sum() <= 1.3e-4 * theirs.sum()
            assert ours.sum() == theirs.sum()
        elif ours.dtype.kind == "i":
            assert np.abs(ours - theirs).sum() <= 2e-4 * theirs.sum()
            assert ours.sum() == theirs.sum()
        else:
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=2e-4)
    ours, theirs = reliability_metrics(fused), reliability_metrics(plain)
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, rel=1e-5, abs=2e-6, nan_ok=True), name


@pytest.mark.parametrize(
    "classes, shape", [(19, (2, 33, 40)), (32, (1, 7, 100)), (15, (1, 1024)), (2, (3, 5)), (1, (1, 1, 1))]
)
def test_a_batch_equals_single_images(classes, shape):
    logits, labels = draw(classes, *shape)
    labels[0, : shape[1] // 3] = 255
    for (predicted, fused), image, known in zip(run(logits, labels), logits, labels, strict=True):
        expected, plain = measure(image, known)
        assert predicted.dtype == np.uint8 and (predicted == expected.numpy()).all()
        assert (fused.confusion == plain.confusion).all()
        same_statistics(fused, plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_any_layout_and_dtype_of_logits_and_any_ignored_label(dtype):
    logits, labels = draw(19, 2, 8, 9)
    logits = logits.to(dtype).to(memory_format=torch.channels_last)
    labels[:, :2] = 3
    for (predicted, fused), image, known in zip(run(logits, labels, ignore=3), logits, labels, strict=True):
        expected, plain = measure(image, known, ignore=3)
        assert (predicted == expected.numpy()).all() and fused.confusion[3].sum() == 0
        same_statistics(fused, plain)


def test_shapes_that_do_not_match_are_refused():
    logits, labels = draw(19, 2, 8, 8)
    for z, y in ((logits, labels[:, :4]), (logits, labels[:1]), (torch.zeros(1, 33, 4), labels[:1, 0, :4])):
        with pytest.raises(GenValError, match="Expected logits"):
            run(z, y)


def test_an_image_that_needs_64_bit_offsets_is_refused():
    logits, labels = (torch.empty(*shape, 1 << 27, device="meta") for shape in ((1, 19), (1,)))
    with pytest.raises(GenValError, match=r"fewer than 2\^31 logits per image, found 19 classes of 134217728 pixels"):
        measure_batch(logits, labels)


def test_certain_pixels_ties_and_classes_that_are_ruled_out():
    logits, labels = draw(19, 1, 50)
    logits[:, 3, :20] = torch.linspace(50, 1000, 20)  # confidence 1 to the last bit, but not odds of 0
    logits[:, :, 20:30] = 0.0  # the first of equal classes is predicted
    logits[:, 7, 30:] = -math.inf
    labels[labels == 7] = 8
    ((predicted, fused),) = run(logits, labels)
    expected, plain = measure(logits[0], labels[0])
    assert (predicted == expected.numpy()).all() and (predicted[20:30] == 0).all()
    assert fused.levels[:, 0].sum() == 0 and (fused.levels == plain.levels).all()
    same_statistics(fused, plain)


@pytest.mark.parametrize("scale, offset", [(1, 0), (3, 0), (10, 1e4), (100, -1e4)])
def test_saturated_confidences_keep_their_order(scale, offset):
    logits, labels = draw(19, 1, 4000)
    logits = logits * scale + offset
    ((predicted, fused),) = run(logits, labels)
    counts = counts_by_score(-log_odds(logits[0]), predicted == labels[0].numpy())
    metrics, slack = reliability_metrics(fused), reliability_bounds(fused)
    assert slack["auroc"] < 2e-3
    assert abs(metrics["auroc"] - auroc(*counts)) <= slack["auroc"] + 1e-5
    assert abs(metrics["fpr95"] - fpr_at_tpr(*counts)) <= slack["fpr95"] + 1e-2


def test_images_without_labels_and_without_pixels():
    logits, labels = draw(19, 2, 30)
    labels[1] = 255
    (_, first), (predicted, second) = run(logits, labels)
    assert first.bins.sum() == 30 and all(not array.any() for array in second.arrays())
    assert (predicted == logits[1].argmax(0).numpy()).all()
    ((predicted, empty),) = run(torch.zeros(1, 19, 0), torch.zeros(1, 0, dtype=torch.uint8))
    assert predicted.shape == (0,) and not empty.confusion.any()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_only_the_image_whose_logits_are_not_finite_fails(bad):
    logits, labels = draw(19, 2, 30)
    logits[1, 4, 5] = bad
    labels[1, 5] = 255  # also where no label is
    first = iter(run(logits[:1], labels[:1]))
    assert next(first)[1].bins.sum() == 30
    with pytest.raises(LogitsNotFiniteError):
        run(logits, labels)


def test_labels_that_do_not_exist_and_labels_that_are_ruled_out():
    logits, labels = draw(19, 1, 30)
    ruled_out = logits.clone()
    ruled_out[0, labels[0, 0].long(), 0] = -math.inf
    with pytest.raises(LogitsNotFiniteError):
        run(ruled_out, labels)
    labels[0, 3] = 19
    with pytest.raises(GenValError, match=r"do not exist \(1 pixels\): expected 0..18"):
        run(logits, labels)
