"""Anomaly scores and their metrics against the published numbers, scikit-learn and plain references."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_metrics import log_odds, sklearn_ood_metrics

from genval.metrics.ood_scores import (
    OOD_METRICS,
    PUBLISHED,
    SCORE_LEVELS,
    SCORES,
    SIGNED_SCORES,
    STANDARDISED,
    ExactMetrics,
    MaxLogits,
    OodCounts,
    anomaly_scores,
    count_scores,
    exact_counts,
    exact_metrics,
    level_edge,
    level_metrics,
    measure_ood,
    measure_ood_batch,
    ood_bounds,
    ood_metrics,
    saturated_share,
    score_level,
)
from genval.results.ood_blocks import PUBLISHED_KEYS
from genval.runtime.errors import GenValError


def pixel_metrics(scores, objects):
    return exact_metrics(np.sort(scores[~objects]), np.sort(scores[objects]))


def draw_logits(seed=0, size=(48, 96), classes=19):
    """Logits that are less confident inside a box, and the mask of the box."""
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.zeros(size, dtype=torch.uint8)
    kinds[size[0] // 2 : size[0] // 2 + 9, 10:30] = 1
    logits = torch.randn(classes, *size, generator=generator)
    strength = torch.rand(size, generator=generator).mul(12) * (1 - 0.6 * kinds)
    return logits.scatter_add(0, torch.randint(0, classes, size, generator=generator)[None], strength[None]), kinds


def test_the_published_numbers_of_each_image(golden):
    expected_by_image, logits = golden[1]["ood_per_image"], golden[0]["ood_logits"]
    for published, values in zip(expected_by_image, logits, strict=True):
        row, column, height, width = published["mask_box_yxhw"]
        kinds = torch.zeros(values.shape[1:], dtype=torch.uint8)
        kinds[row : row + height, column : column + width] = 1
        counts, scores = measure_ood(torch.from_numpy(values), kinds)
        background, objects = counts.entropy / counts.pixels[:2]
        assert objects == pytest.approx(published["raw_entropy"], abs=1e-6)
        assert objects / background == pytest.approx(published["rel_entropy"], abs=1e-6)
        for index, name in enumerate(PUBLISHED):
            expected = {key: published[name][PUBLISHED_KEYS[key]] for key in OOD_METRICS}
            exact = pixel_metrics(scores[index].numpy(), kinds.flatten().numpy() == 1)
            assert exact == pytest.approx(expected, abs=1e-6)
            limits = ood_bounds(counts.levels[index])
            for key, value in level_metrics(counts.levels[index]).items():
                assert abs(value - exact[key]) <= limits[key] + 1e-12 < 0.05


def test_scores_follow_their_definitions():
    logits, _ = draw_logits(classes=5)
    flat = logits.flatten(1)
    mean, deviation = torch.arange(5.0), torch.arange(1.0, 6.0)
    found = anomaly_scores(flat, (mean, deviation)).double()
    exact = flat.double()
    probabilities = exact.softmax(0)
    classes = exact.argmax(0)
    expected = {
        "entropy": -(probabilities * probabilities.log()).sum(0),
        "confidence": (1 - probabilities.amax(0)) / probabilities.amax(0),
        "logits": -exact.amax(0),
        "energy": -exact.exp().sum(0).log(),
        STANDARDISED: -(exact.amax(0) - mean[classes]) / deviation[classes],
    }
    for row, name in zip(found, (*SCORES, STANDARDISED), strict=True):
        torch.testing.assert_close(row, expected[name], atol=1e-5, rtol=1e-5, msg=name)


scores_and_objects = st.lists(st.tuples(st.floats(-20, 20, width=16), st.booleans()), min_size=2, max_size=60).filter(
    lambda pairs: len({is_object for _, is_object in pairs}) == 2
)


@settings(deadline=None, max_examples=25)
@given(scores_and_objects)
def test_exact_metrics_equal_those_of_scikit_learn(pairs):
    scores, objects = np.array([s for s, _ in pairs], np.float32), np.array([o for _, o in pairs])
    assert pixel_metrics(scores, objects) == pytest.approx(sklearn_ood_metrics(scores, objects), abs=1e-12)


def test_minus_zero_is_zero():
    assert exact_counts(np.array([-0.0, 0.0], np.float32), np.array([0.0], np.float32))[0].tolist() == [2]


@settings(deadline=None, max_examples=25)
@given(scores_and_objects, st.integers(1, 8))
def test_exact_metrics_can_be_updated_piece_by_piece(pairs, size):
    scores, objects = np.array([s for s, _ in pairs], np.float32), np.array([o for _, o in pairs])
    parts = np.sort(scores[~objects]), np.sort(scores[objects])
    background, found = exact_counts(*parts)
    together = ExactMetrics(*map(len, parts))
    for start in range(0, len(found), size):
        together.update(background[start : start + size], found[start : start + size])
    assert together.compute() == pytest.approx(exact_metrics(*parts), abs=1e-12)


@pytest.mark.parametrize("name", [*SCORES, STANDARDISED])
def test_levels_descend_with_the_score_and_have_correct_edges(name):
    generator = torch.Generator().manual_seed(0)
    sizes = torch.exp(torch.randn(4000, generator=generator) * 6)
    values = {"entropy": sizes.clamp(max=2.9), "confidence": sizes.clamp(max=18)}.get(
        name, torch.cat([sizes, -sizes, torch.zeros(1)])
    )
    ordered = values.sort(descending=True).values
    level = score_level(ordered, name)
    assert (level.diff() >= 0).all() and level.min() >= 0 and level.max() < SCORE_LEVELS
    assert level.unique().numel() > 500
    for value, index in zip(ordered.tolist()[::37], level.tolist()[::37], strict=True):
        value = -1 / (1 + value) if name == "confidence" else value
        assert index == 0 or value < level_edge(index - 1, name) * (1 - 1e-6 * (value < 0)) or value == 0
        inside = abs(value) < 500 and (abs(value) > 2**-6 or name in ("entropy", "confidence"))
        assert not inside or value >= level_edge(index, name) - 1e-6 * abs(value)


def test_counts_of_parts_add_up_to_those_of_the_whole():
    logits, kinds = draw_logits(size=(200, 300))
    counts, scores = measure_ood(logits, kinds)
    flat = kinds.flatten()
    parts = [count_scores(scores[:, piece], flat[piece], SCORES) for piece in (slice(0, 23456), slice(23456, None))]
    assert np.array_equal(parts[0] + parts[1], counts.levels)
    assert counts.levels.sum((1, 2)).tolist() == [flat.numel()] * len(SCORES)
    twice = counts + counts
    assert np.array_equal(twice.levels, 2 * counts.levels) and np.array_equal(twice.pixels, 2 * counts.pixels)


@pytest.mark.parametrize("offset", [0, 1e4, -1e4])
@pytest.mark.parametrize("scale", [1, 3, 10, 100])
def test_saturated_scores_keep_their_order(scale, offset):
    logits, kinds = draw_logits(seed=3, size=(120, 160))
    logits = logits * scale + offset
    counts, scores = measure_ood(logits, kinds)
    objects = kinds.flatten().numpy() == 1
    exact_scores = dict(zip(SCORES, scores.numpy(), strict=True))
    exact_scores["confidence"] = log_odds(logits)  # float32 energies at an offset of 1e4 tie, others do not
    for index, name in enumerate(SCORES):
        exact, limits = pixel_metrics(exact_scores[name], objects), ood_bounds(counts.levels[index])
        for key, value in level_metrics(counts.levels[index]).items():
            assert abs(value - exact[key]) <= limits[key] + 1e-5, (name, key)
        if name != "entropy" and (name == "confidence" or not offset):
            assert limits["auroc"] < 2e-3, name
            assert saturated_share(counts.levels[index], name) == 0
    entropies = scores[SCORES.index("entropy")]
    share = float((entropies < 2**-105).double().mean())
    assert saturated_share(counts.levels[SCORES.index("entropy")], "entropy") == pytest.approx(share)
    assert (share > 0.1) == (scale >= 10)


def test_no_finite_logit_is_beyond_the_levels():
    largest = torch.tensor([-3e38, -1e20, -1e5, -600.5, -600, 0, 1e-30, 600, 600.5, 1e5, 1e20, 3e38])
    for name in SIGNED_SCORES:
        levels = score_level(largest, name)
        assert (levels.diff() < 0).all()
    assert math.isnan(saturated_share(np.zeros((2, SCORE_LEVELS), np.int64), "logits"))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_metrics_from_levels_are_within_their_bounds(scale):
    logits, kinds = draw_logits(seed=3, size=(120, 160))
    counts, scores = measure_ood(logits * scale, kinds)
    objects = kinds.flatten().numpy() == 1
    for index in range(len(SCORES)):
        exact, limits = pixel_metrics(scores[index].numpy(), objects), ood_bounds(counts.levels[index])
        for key, value in level_metrics(counts.levels[index]).items():
            assert abs(value - exact[key]) <= limits[key] + 1e-12


def test_void_pixels_are_not_counted():
    logits, kinds = draw_logits()
    void = kinds.clone()
    void[:20] = 255
    counts = measure_ood(logits, void)[0]
    rest = measure_ood(logits[:, 20:], kinds[20:])[0]
    assert np.array_equal(counts.levels, rest.levels)
    assert counts.pixels.tolist() == [rest.pixels[0], rest.pixels[1], 20 * 96]
    assert counts.entropy == pytest.approx(rest.entropy, rel=1e-12)


def test_an_image_without_object_or_background_has_no_metrics():
    logits, kinds = draw_logits()
    for kind in (0, 1, 255):
        counts = measure_ood(logits, torch.full_like(kinds, kind))[0]
        assert all(math.isnan(value) for value in level_metrics(counts.levels[0]).values())
        assert all(math.isnan(value) for value in ood_bounds(counts.levels[0]).values())
    assert all(math.isnan(value) for value in exact_metrics(np.zeros(3, np.float32), np.zeros(0, np.float32)).values())


def test_bad_logits_and_masks_are_refused():
    logits, kinds = draw_logits()
    for value in (math.nan, math.inf):
        bad = logits.clone()
        bad[3, 5, 7] = value
        with pytest.raises(GenValError, match="finite"):
            measure_ood(bad, kinds)
    ruled_out = logits.clone()
    ruled_out[3] = -math.inf
    assert measure_ood(ruled_out, kinds)[0].pixels.sum() == kinds.numel()
    with pytest.raises(GenValError, match="other values"):
        measure_ood(logits, kinds + 6)
    with pytest.raises(GenValError, match="do not fit"):
        measure_ood(logits, kinds[1:])


def test_the_largest_logits_of_a_known_set():
    logits, _ = draw_logits(classes=4)
    logits[3] = -50  # a class that is never predicted: it gets the moments of all pixels
    halves = MaxLogits.measure(logits[:, :20]) + MaxLogits.measure(logits[:, 20:])
    mean, deviation = halves.moments()
    largest, classes = (part.flatten().numpy() for part in logits.max(0))
    for index in range(3):
        assert mean[index] == pytest.approx(largest[classes == index].mean(), rel=1e-6)
        assert deviation[index] == pytest.approx(largest[classes == index].std(), rel=1e-5)
    assert (mean[3], deviation[3]) == pytest.approx((largest.mean(), largest.std()), rel=1e-5)
    with pytest.raises(GenValError, match="fewer than two"):
        MaxLogits.measure(logits[:, :1, :1]).moments()


def test_small_odds_keep_their_digits():
    logarithms = torch.linspace(-16.5, -8.4, 50)
    energies = anomaly_scores(torch.stack([torch.zeros(50), logarithms]))[SCORES.index("energy")].double()
    np.testing.assert_allclose(energies, -np.log1p(np.exp(logarithms.double().numpy())), rtol=1e-6)


def test_no_pixel_has_no_score():
    assert anomaly_scores(torch.zeros(3, 0)).shape == (len(SCORES), 0)
    empty = np.zeros(0, np.float32)
    for parts, expected in (((empty, empty), ([], [])), ((empty, np.float32([1, 2])), ([0, 0], [1, 1]))):
        counts = exact_counts(*parts)
        assert [part.dtype for part in counts] == [np.int64] * 2
        assert tuple(part.tolist() for part in counts) == expected
    assert [part.tolist() for part in exact_counts(np.float32([1, 2]), empty)] == [[1, 1], [0, 0]]
    assert exact_counts(np.float32([1, 2]), empty)[1].dtype == np.int64


def test_the_threshold_is_interpolated_inside_a_level_and_sets_do_not_affect_each_other():
    background, objects = np.array([[4, 6], [0, 0], [10, 0]]), np.array([[0, 0], [1, 2], [40, 0]])
    metrics = ood_metrics(background, objects)
    for values in metrics.values():
        assert np.isnan(values).tolist() == [True, True, False]
    assert metrics["fpr95"][2] == pytest.approx(0.95) and metrics["auroc"][2] == 0.5
    levels = np.zeros((2, SCORE_LEVELS), np.int64)
    levels[:, 7] = 10, 40
    assert level_metrics(levels)["fpr95"] == pytest.approx(0.95)


def test_two_largest_logits_can_be_standardised_and_one_cannot():
    mean, deviation = MaxLogits.measure(torch.tensor([[1.0, 4.0], [0.0, 0.0]])).moments()
    assert mean.tolist() == [2.5, 2.5] and deviation == pytest.approx([1.5, 1.5])
    message = "^Largest logits cannot be standardised: expected at least two pixels, found fewer than two.$"
    with pytest.raises(GenValError, match=message):
        MaxLogits.measure(torch.tensor([[1.0], [0.0]])).moments()


def test_the_counts_of_a_batch_are_those_of_its_images(monkeypatch):
    kernel = pytest.importorskip("genval.kernels.ood_scores")
    images = [measure_ood(*draw_logits(seed))[0] for seed in range(2)]
    counts = SimpleNamespace(
        levels=np.stack([image.levels for image in images]).astype(np.int32),
        entropy=np.stack([image.entropy for image in images]),
        pixels=np.stack([image.pixels for image in images]).astype(np.float64),
        invalid_kinds=np.zeros(2),
        finite=np.ones(2, bool),
    )
    launched = []

    def launch(*args):
        launched.append(args)
        return lambda: counts, "scores"

    monkeypatch.setattr(kernel, "launch", launch)
    logits, kinds, standard = torch.zeros(2, 5, 3, 4), torch.zeros(2, 3, 4, dtype=torch.uint8), object()
    read, scores = measure_ood_batch(logits, kinds, standard, keep=True)
    assert launched == [(logits, kinds, standard, True)] and scores == "scores"
    for image, expected in zip(read(), images, strict=True):
        assert [array.dtype for array in image.arrays()] == [np.int64, np.float64, np.int64]
        assert all(np.array_equal(a, b) for a, b in zip(image.arrays(), expected.arrays(), strict=True))
    measure_ood_batch(logits, kinds)
    assert launched[-1] == (logits, kinds, None, False)
    for bad in (kinds[:1], kinds[:, :2], kinds[..., :2]):
        with pytest.raises(GenValError, match="do not fit"):
            measure_ood_batch(logits, bad)
    counts.invalid_kinds[1] = 1
    with pytest.raises(GenValError, match=r"^A mask holds 0, 1 and 255, found other values.$"):
        list(measure_ood_batch(logits, kinds)[0]())
    counts.finite[0] = False
    with pytest.raises(GenValError, match="Logits must be finite"):
        list(measure_ood_batch(logits, kinds)[0]())


def test_the_counts_of_no_pixel():
    levels, entropy, pixels = OodCounts.empty(3).arrays()
    assert levels.shape == (3, 2, SCORE_LEVELS) and entropy.tolist() == [0, 0] and pixels.tolist() == [0, 0, 0]
    assert (levels.dtype, entropy.dtype, pixels.dtype) == (np.int64, np.float64, np.int64) and not levels.any()
