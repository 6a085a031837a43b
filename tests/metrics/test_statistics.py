"""The statistics of one forward pass against plain references written from the definitions."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from reference_metrics import cases, log_odds, realistic, same, single_pixels

from genval.kernels.layout import level_edges
from genval.metrics import statistics
from genval.metrics.calibration import bin_index, top1_metrics
from genval.metrics.ranking import auroc, counts_by_score, fpr_at_tpr
from genval.metrics.reliability import reliability_bounds, reliability_metrics
from genval.metrics.statistics import (
    CONFIDENCE_LEVELS,
    LogitsNotFiniteError,
    PixelStatistics,
    count_confidences,
    level_confidence,
    magnitude_level,
    measure,
    measure_batch,
    odds_against,
)
from genval.runtime.errors import GenValError


@given(cases())
def test_one_pass_follows_the_definitions(case):
    logits, labels = case
    predictions, statistics = measure(torch.from_numpy(logits), torch.from_numpy(labels))
    assert predictions.shape == labels.shape and (predictions.numpy() == logits.argmax(0)).all()
    probabilities, known = single_pixels(logits, labels)
    metrics = reliability_metrics(statistics)
    if not len(known):
        assert all(math.isnan(value) for value in metrics.values()) and statistics.levels.sum() == 0
        return
    counted = labels.ravel() != 255
    right = (logits.argmax(0) == labels).ravel()[counted]
    confidence = torch.from_numpy(logits).softmax(0).amax(0).numpy().ravel()[counted].astype(np.float64)
    entropy = -(probabilities * np.log(probabilities + 1e-15)).sum(1)
    expected_nll = -np.log(np.maximum(probabilities[np.arange(len(known)), known], 1e-300)).mean()
    one_hot = np.eye(len(logits))[known]
    assert statistics.bins.sum() == statistics.levels.sum() == len(known)
    assert statistics.class_bins.min() >= 0 and (statistics.class_bins.sum((0, 2)) == len(known)).all()
    same(metrics["mean_confidence"], confidence.mean(), 1e-6)
    same(metrics["nll"], expected_nll, 1e-5 * max(1, expected_nll))
    same(metrics["brier"], ((probabilities - one_hot) ** 2).sum(1).mean(), 1e-5)
    same(metrics["entropy"], entropy.mean(), 1e-5)
    same(metrics["entropy_std"], entropy.std(), 5e-4)
    for name, chosen in (("entropy_right", right), ("entropy_wrong", ~right)):
        same(metrics[name], entropy[chosen].mean() if chosen.any() else math.nan, 1e-5)
    # Where confidences tie in float32, the logarithm of the odds still has an order.
    counts = counts_by_score(-log_odds(logits)[counted], right)
    slack = reliability_bounds(statistics)
    if right.any() and not right.all():
        assert abs(metrics["auroc"] - auroc(*counts)) <= slack["auroc"] + 1e-6 + 2 / right.sum() / (~right).sum()
        same(metrics["prr_percent"], 200 * metrics["auroc"] - 100)
    assert abs(metrics["ks"] - top1_metrics(confidence.clip(0, 1), right)["ks"]) <= slack["ks"] + 1e-6


@given(cases(), cases())
def test_statistics_of_two_images_add_up_to_those_of_both(a, b):
    classes = min(len(a[0]), len(b[0]))
    images = [
        (z[:classes].reshape(classes, -1), np.where(y < classes, y, 255).ravel().astype(np.uint8)) for z, y in (a, b)
    ]
    parts = [measure(*map(torch.from_numpy, image))[1] for image in images]
    both = measure(*(torch.from_numpy(np.concatenate(arrays, -1)) for arrays in zip(*images, strict=True)))[1]
    merged = PixelStatistics.empty(classes) + parts[0] + parts[1]
    assert (merged.confusion == both.confusion).all()
    # An exponential may differ in its last bit by its place in memory. That moves a pixel to another level, of which
    # there are 2048 between the two smallest odds: what counts is how far the confidence moves: a level at most.
    assert merged.levels.sum() == both.levels.sum()
    distance = np.abs(np.subtract(merged.levels.cumsum(-1), both.levels.cumsum(-1), dtype=float))[:, :-1]
    assert (distance * np.abs(np.diff(level_confidence()))).sum() <= 1.3e-4 * both.levels.sum()
    for name in ("bins", "class_bins"):
        in_last_axis = (getattr(one, name).astype(float).cumsum(-1) for one in (merged, both))
        assert getattr(merged, name).sum() == getattr(both, name).sum()
        assert np.count_nonzero(np.subtract(*in_last_axis)) <= 0.01 * getattr(both, name).size + 40
    same(merged.class_confidence.sum(1), both.class_confidence.sum(1), 1e-4)
    np.testing.assert_allclose(merged.sums, both.sums, rtol=1e-5, atol=1e-4)


def test_confidences_add_up_without_rounding_in_any_order():
    logits, labels = torch.randn(19, 40000, generator=torch.manual_seed(0)), torch.zeros(40000, dtype=torch.uint8)
    order = torch.randperm(40000)
    a, b = measure(logits, labels)[1], measure(logits[:, order], labels[order])[1]
    assert (a.bin_confidence == b.bin_confidence).all() and (a.class_bins == b.class_bins).all()


def test_confidences_are_close_to_the_middle_of_their_level():
    odds = torch.cat([torch.zeros(1), torch.logspace(-126, math.log2(31), 400001, base=2.0)])
    levels = magnitude_level(odds, "confidence").numpy()
    assert levels[0] == 0 and (np.diff(levels) >= 0).all() and levels.max() < CONFIDENCE_LEVELS
    error = np.abs(level_confidence()[levels] - 1 / (1 + odds.double().numpy()))
    assert error.max() < 6.2e-5


@pytest.mark.parametrize("offset", [0, 1e4, -1e4])
@pytest.mark.parametrize("scale", [1, 3, 10, 100])
def test_saturated_confidences_keep_their_order(scale, offset):
    logits, labels = realistic(pixels=40_000)
    logits = logits * scale + offset
    statistics = measure(logits, labels)[1]
    counts = counts_by_score(-log_odds(logits), (logits.argmax(0) == labels).numpy())
    metrics, slack = reliability_metrics(statistics), reliability_bounds(statistics)
    assert slack["auroc"] < 2e-3 and slack["fpr95"] < 0.03
    assert abs(metrics["auroc"] - auroc(*counts)) <= slack["auroc"] + 1e-6
    assert abs(metrics["fpr95"] - fpr_at_tpr(*counts)) <= slack["fpr95"] + 1e-3


def test_odds_against_are_the_sum_of_the_other_exponentials_and_keep_the_order_below_it():
    logits = torch.randn(5, 4000, generator=torch.manual_seed(0)) * torch.logspace(-2, 8, 4000)
    odds, exact = odds_against(logits).double(), torch.from_numpy(log_odds(logits))
    above = exact > -69
    torch.testing.assert_close(odds[above], exact[above].exp(), rtol=1e-4, atol=0)
    assert (odds[~above] > 0).all() and odds[~above].max() <= odds[above].min()
    assert (odds[~above][exact[~above].argsort()].diff() >= 0).all()
    ties = torch.tensor([[2.0, 2.0, -math.inf], [2.0, 1.0, 3.0], [2.0, 2.0, -math.inf]])
    torch.testing.assert_close(odds_against(ties), torch.tensor([2.0, 1 + math.exp(-1), 0.0]))


def test_the_entropies_of_equal_pixels_do_not_deviate():
    logits = torch.linspace(-2, 3, 19)[:, None].expand(19, 100_000)
    metrics = reliability_metrics(measure(logits, torch.zeros(100_000, dtype=torch.uint8))[1])
    assert metrics["entropy"] > 1 and metrics["entropy_std"] < 1e-6


def test_all_probabilities_in_the_first_bin():
    statistics = measure(torch.zeros(15, 3), torch.zeros(3, dtype=torch.uint8))[1]
    same(statistics.class_confidence[:, 0], 3 / 15, 1e-6)
    same(reliability_metrics(statistics)["classwise_ece"], (14 / 15 + 14 * 1 / 15) / 15, 1e-6)


def test_a_class_that_is_ruled_out_has_probability_0():
    logits, labels = torch.randn(3, 50, generator=torch.manual_seed(0)), torch.zeros(50, dtype=torch.uint8)
    without = reliability_metrics(measure(logits[:2], labels)[1])
    logits[2] = -math.inf
    within = reliability_metrics(measure(logits, labels)[1])
    assert all(abs(without[name] - within[name]) < 1e-6 for name in ("ece", "nll", "brier", "auroc", "entropy"))
    logits[0] = -math.inf  # nor does it matter in pixels that have no label
    assert measure(logits[:2], labels + 255)[1].confusion.sum() == 0


def test_invalid_logits_and_labels_are_refused():
    labels = torch.zeros(2, 2, dtype=torch.uint8)
    for bad, where in ((math.nan, 1), (math.inf, 1), (-math.inf, 0), (-math.inf, slice(None))):
        logits = torch.zeros(3, 2, 2)
        logits[where, 0, 1] = bad
        with pytest.raises(GenValError, match="finite"):
            measure(logits, labels)
    with pytest.raises(GenValError, match="classes that do not exist"):
        measure(torch.zeros(3, 2, 2), labels + 3)
    with pytest.raises(GenValError, match=r"found \(3, 2, 2\) and \(4,\)"):
        measure(torch.zeros(3, 2, 2), labels.flatten())


class OnAccelerator(torch.Tensor):
    """A tensor of the CPU that takes the branches of a tensor on a GPU."""

    device = property(lambda self: torch.device("cuda"))


def test_the_branches_of_a_gpu_equal_those_of_the_cpu():
    probabilities = torch.rand(5, 40, generator=torch.manual_seed(0)).softmax(0)
    counted = torch.arange(40) % 3 > 0
    threshold = np.float32(0.2)
    elsewhere = probabilities.as_subclass(OnAccelerator)
    rows, columns = np.nonzero((probabilities.numpy() > threshold) & counted.numpy())
    for values in (probabilities, elsewhere):
        where, classes = statistics._above(values, threshold, counted)
        assert where.dtype == classes.dtype == torch.int64
        assert where.tolist() == (rows * 40 + columns).tolist() and classes.tolist() == rows.tolist()
        sums = statistics._class_sums(values, counted)
        assert sums.dtype == torch.float64 and sums.shape == (5,)
        same(sums.numpy(), probabilities.double()[:, counted].sum(1).numpy(), 1e-5)
    mask = (probabilities > 0.2).as_subclass(OnAccelerator)
    assert statistics.flat_nonzero(mask).tolist() == np.flatnonzero(mask.numpy()).tolist()


def test_bins_of_tensors_are_those_of_arrays():
    edges = torch.arange(16) / 15
    values = torch.cat([edges, torch.nextafter(edges, torch.tensor(2.0)), torch.rand(500)])
    found = statistics._bin(values)
    assert found.dtype == torch.int32 and found.tolist() == bin_index(values.numpy()).tolist()


def test_the_statistics_of_no_pixel():
    empty = PixelStatistics.empty()
    shapes = [(19, 19), (2, CONFIDENCE_LEVELS), (2, 15), (15,), (2, 19, 15), (19, 15), (5,)]
    assert [array.shape for array in empty.arrays()] == shapes and not any(array.any() for array in empty.arrays())
    assert [array.dtype.kind for array in empty.arrays()] == [*"iiififf"]


def test_confidences_are_counted_by_level_and_bin():
    generator = np.random.default_rng(0)
    odds = np.exp(generator.normal(-3, 4, 40_000)).clip(0, 18).astype(np.float32)
    right, counted = generator.random(40_000) < 0.7, generator.random(40_000) < 0.8
    levels, bins, confidence = count_confidences(*map(torch.from_numpy, (odds, right, counted)))
    level = np.searchsorted(level_edges("confidence"), odds, side="right") - 1
    exact = (1 / (torch.from_numpy(odds) + 1)).numpy()
    for kind, chosen in enumerate((counted & ~right, counted & right)):
        assert (levels[kind] == np.bincount(level[chosen], minlength=CONFIDENCE_LEVELS)).all()
        assert (bins[kind] == np.bincount(bin_index(exact[chosen]), minlength=15)).all()
    assert levels.shape == (2, CONFIDENCE_LEVELS) and bins.shape == (2, 15)
    expected = np.bincount(bin_index(exact[counted]), exact[counted].astype(np.float64), 15)
    np.testing.assert_allclose(confidence, expected, rtol=1e-6)


def batch_counts(images):
    """What the kernel counts, from the statistics of images."""
    above_first = (np.arange(15) > 0).astype(int)
    stacked = {
        name: np.stack([getattr(image, name) for image in images])
        for name in ("confusion", "levels", "bins", "bin_confidence", "sums")
    }
    return SimpleNamespace(
        predictions=np.arange(len(images) * 3, dtype=np.uint8).reshape(len(images), 3),
        invalid_labels=np.zeros(len(images), int),
        finite=np.ones(len(images), bool),
        label_bins=np.stack([image.class_bins[1] for image in images]),
        high_bins=np.stack([image.class_bins.sum(0) * above_first for image in images]),
        high_confidence=np.stack([image.class_confidence * above_first for image in images]),
        class_confidence=np.stack([image.class_confidence.sum(1) for image in images]),
        **stacked,
    )


def test_the_counts_of_a_batch_are_the_statistics_of_its_images(monkeypatch):
    kernel = pytest.importorskip("genval.kernels.statistics")
    images = [measure(*(part[..., :300] for part in realistic(seed, 300)))[1] for seed in range(2)]
    counts, launched = batch_counts(images), []

    def launch(*args):
        launched.append(args)
        return lambda: counts

    monkeypatch.setattr(kernel, "launch", launch)
    logits, labels = torch.zeros(2, 19, 3), torch.zeros(2, 3, dtype=torch.uint8)
    found = list(measure_batch(logits, labels)())
    assert launched == [(logits, labels, 255)]
    for index, (predictions, image) in enumerate(found):
        assert predictions.tolist() == counts.predictions[index].tolist()
        for name in ("confusion", "levels", "bins", "class_bins"):
            assert getattr(image, name).dtype == np.int64
            assert (getattr(image, name) == getattr(images[index], name)).all(), name
        for name in ("bin_confidence", "class_confidence", "sums"):
            np.testing.assert_allclose(getattr(image, name), getattr(images[index], name), rtol=1e-9, atol=1e-9)
    measure_batch(logits, labels, 18)
    assert launched[-1] == (logits, labels, 18)
    counts.finite[1] = False
    batch = measure_batch(logits, labels)()
    next(batch)
    with pytest.raises(LogitsNotFiniteError, match=r"^Logits must be finite, found NaN or infinity.$"):
        next(batch)
    counts.invalid_labels[0] = 7
    with pytest.raises(GenValError, match=r"^The labels hold classes .* \(7 pixels\): expected 0\.\.18\.$"):
        next(measure_batch(logits, labels)())
    with pytest.raises(GenValError, match="1 to 32 classes"):
        measure_batch(logits, labels[:1])
