"""`measure_ood_batch` against `measure_ood`: on a GPU if there is one, else in Triton's interpreter."""

import math

import numpy as np
import pytest
import torch
from reference_metrics import log_odds

from genval.metrics.ood_scores import (
    BACKGROUND,
    OBJECT,
    SCORES,
    STANDARDISED,
    MaxLogits,
    count_scores,
    exact_metrics,
    level_metrics,
    measure_ood,
    measure_ood_batch,
    ood_bounds,
)
from genval.metrics.statistics import LogitsNotFiniteError
from genval.runtime.errors import GenValError

pytest.importorskip("triton", reason="Triton is not available for this system")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def run(logits, kinds, standard=None, keep=False):
    """Call `measure_ood_batch` and wait for the device: the counts of each image, and the scores or None."""
    standard = standard and tuple(part.to(DEVICE) for part in standard)
    read, scores = measure_ood_batch(logits.to(DEVICE), kinds.to(DEVICE), standard, keep)
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return list(read()), scores if scores is None else scores.cpu()


def draw(classes, *shape):
    generator = torch.Generator().manual_seed(classes)
    kinds = torch.tensor([0, 0, 0, 1, 255])[torch.randint(0, 5, shape, generator=generator)]
    logits = 2 * torch.randn(shape[0], classes, *shape[1:], generator=generator)
    strength = torch.randn(shape, generator=generator).mul(1.2).add(1 - 0.8 * (kinds == 1)).exp()
    likely = torch.randint(0, classes, shape, generator=generator)
    return logits.scatter_add_(1, likely[:, None], strength[:, None]), kinds.to(torch.uint8)


@pytest.mark.parametrize("classes, shape", [(19, (2, 33, 40)), (3, (1, 1024)), (1, (1, 7)), (150, (1, 5))])
@pytest.mark.parametrize("standardise", [False, True])
def test_a_batch_equals_single_images(classes, shape, standardise):
    logits, kinds = draw(classes, *shape)
    standard = None
    if standardise:
        moments = MaxLogits.measure(logits.transpose(0, 1).flatten(1)).moments()
        standard = tuple(torch.from_numpy(part).float() for part in moments)
    images, kept = run(logits, kinds, standard, keep=True)
    for counts, scores, image, kind in zip(images, kept, logits, kinds, strict=True):
        expected, plain = measure_ood(image, kind, standard)
        assert counts.levels.dtype == expected.levels.dtype and counts.levels.shape == expected.levels.shape
        assert (counts.pixels == expected.pixels).all() and counts.pixels.dtype == expected.pixels.dtype
        np.testing.assert_allclose(counts.entropy, expected.entropy, rtol=1e-6, atol=1e-5)
        np.testing.assert_allclose(scores, plain, rtol=2e-6, atol=2e-6)
        names = [*SCORES, STANDARDISED][: len(scores)]
        assert (counts.levels == count_scores(scores, kind.flatten(), names)).all()
        for ours, theirs in zip(counts.levels, expected.levels, strict=True):
            assert level_metrics(ours) == pytest.approx(level_metrics(theirs), abs=2e-3, nan_ok=True)


def test_moments_of_any_layout_and_scores_that_are_not_finite():
    logits, kinds = draw(5, 1, 40)
    moments = torch.stack([torch.linspace(-1, 3, 5), torch.linspace(1, 2, 5)], 1).double()
    _, scores = run(logits, kinds, (moments[:, 0], moments[:, 1]), keep=True)
    plain = measure_ood(logits[0], kinds[0], (moments[:, 0].float(), moments[:, 1].float()))[1]
    np.testing.assert_allclose(scores[0], plain, rtol=2e-6, atol=2e-6)
    with pytest.raises(LogitsNotFiniteError):
        run(logits * 1e30, kinds, (moments[:, 0], moments[:, 1] * 1e-30))


def test_shapes_that_do_not_match_are_refused():
    logits, kinds = draw(5, 2, 9)
    for z, y in ((logits, kinds[:, :4]), (logits, kinds[:1])):
        with pytest.raises(GenValError, match="do not fit"):
            run(z, y)


def test_scores_are_returned_only_if_asked_for():
    logits, kinds = draw(5, 1, 9)
    assert run(logits, kinds)[1] is None


def test_certain_pixels_and_classes_that_are_ruled_out():
    logits, kinds = draw(19, 1, 50)
    logits[:, 3, :20] = 200.0
    logits[:, 7, 30:] = -math.inf
    (counts,), scores = run(logits, kinds, keep=True)
    np.testing.assert_allclose(scores[0], measure_ood(logits[0], kinds[0])[1], rtol=2e-6, atol=2e-6)
    assert (counts.levels == count_scores(scores[0], kinds[0], SCORES)).all()
    certain = [int((kinds[0, :20] == kind).sum()) for kind in (BACKGROUND, OBJECT)]
    assert counts.levels[SCORES.index("entropy")].max(-1).tolist() == certain


@pytest.mark.parametrize("scale, offset", [(1, 0), (3, 0), (10, 1e4), (100, -1e4)])
def test_saturated_scores_keep_their_order(scale, offset):
    logits, kinds = draw(19, 1, 4000)
    logits = logits * scale + offset
    (counts,), scores = run(logits, kinds, keep=True)
    background, objects = (kinds[0].numpy() == kind for kind in (BACKGROUND, OBJECT))
    exact_scores = dict(zip(SCORES, scores[0].numpy(), strict=True))
    exact_scores["confidence"] = log_odds(logits[0])
    assert (counts.levels == count_scores(scores[0], kinds[0], SCORES)).all()
    for levels, (name, values) in zip(counts.levels, exact_scores.items(), strict=True):
        exact, limits = exact_metrics(np.sort(values[background]), np.sort(values[objects])), ood_bounds(levels)
        for key, value in level_metrics(levels).items():
            assert abs(value - exact[key]) <= limits[key] + 1e-4, (name, key)
        assert name != "confidence" or limits["auroc"] < 2e-3


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite(bad):
    logits, kinds = draw(19, 2, 30)
    logits[1, 4, 5] = bad
    with pytest.raises(LogitsNotFiniteError):
        run(logits, kinds)


def test_masks_of_other_values_and_images_without_pixels():
    logits, kinds = draw(19, 1, 30)
    with pytest.raises(GenValError, match="other values"):
        run(logits, kinds + 6)
    ((counts,), _) = run(torch.zeros(1, 19, 0), torch.zeros(1, 0, dtype=torch.uint8))
    assert not counts.levels.any() and not counts.pixels.any()


@pytest.mark.parametrize("classes, pixels", [(19, 1 << 27), (2, 1 << 29)])
def test_an_image_that_needs_64_bit_offsets_is_refused(classes, pixels):
    logits, kinds = (torch.empty(*shape, pixels, device="meta") for shape in ((1, classes), (1,)))
    with pytest.raises(GenValError, match=rf"fewer than 2\^31 logits or scores per image, found {classes} classes"):
        measure_ood_batch(logits, kinds)
