"""Metrics from levels against those of single pixels, and bootstrap intervals of metrics."""

import math

import numpy as np
import pytest
from reference_metrics import realistic, same, slow_ece

from genval.metrics import reliability
from genval.metrics.bootstrap import draw_weights
from genval.metrics.calibration import top1_metrics
from genval.metrics.ranking import aupr, auroc, counts_by_score, fpr_at_tpr, prediction_rejection_ratio
from genval.metrics.reliability import pool, reliability_bounds, reliability_metrics
from genval.metrics.statistics import PixelStatistics, measure
from genval.runtime.errors import GenValError


def test_levels_are_within_1e_4_on_realistic_logits():
    logits, labels = realistic()
    metrics, slack = (function(measure(logits, labels)[1]) for function in (reliability_metrics, reliability_bounds))
    probabilities = logits.softmax(0)
    confidence, right = probabilities.amax(0).numpy(), (logits.argmax(0) == labels).numpy()
    exact = top1_metrics(confidence, right)
    counts = counts_by_score(confidence, right)
    exact |= {"auroc": float(auroc(*counts)), "aupr_right": float(aupr(*counts)), "fpr95": float(fpr_at_tpr(*counts))}
    exact |= {
        "aupr_wrong": float(aupr(*(c[::-1] for c in counts[::-1]))),
        "classwise_ece": np.mean([slow_ece(p.numpy(), (labels == c).numpy()) for c, p in enumerate(probabilities)]),
    }
    exact["prr_percent"] = float(prediction_rejection_ratio(*counts))
    for name, value in exact.items():
        assert abs(metrics[name] - value) < (1e-2 if name == "prr_percent" else 1e-4), name
    same(metrics["ece"], exact["ece"], 1e-7)
    assert all(abs(metrics[name] - exact[name]) <= bound + 1e-6 for name, bound in slack.items())


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_intervals_agree_with_resampling_one_by_one(seed):
    generator = np.random.default_rng(seed)
    images = []
    for _ in range(10):
        logits, labels = realistic(int(generator.integers(2**31)), 300)
        images.append(measure(logits * float(generator.uniform(0.5, 2)), labels)[1])
    total, ends = pool(iter(images), {"pixels": lambda matrices: matrices.sum((1, 2))}, draws=1000)
    assert (total.levels == sum(image.levels for image in images)).all()
    assert pool(iter(images))[1]["ece"] == ends["ece"] and ends["pixels"] == (3000, 3000)
    drawn = (sum((images[i] for i in generator.integers(0, 10, 10)), PixelStatistics.empty()) for _ in range(200))
    slow = [reliability_metrics(one) for one in drawn]
    for name in ("ece", "auroc", "nll", "ks", "entropy_wrong"):
        low, high = np.percentile([one[name] for one in slow], [2.5, 97.5])
        assert (
            abs(ends[name][0] - low) < 0.3 * (high - low) + 1e-3
            and abs(ends[name][1] - high) < 0.3 * (high - low) + 1e-3
        )


def test_one_image_has_no_interval_and_no_image_is_refused():
    statistics = measure(*realistic(pixels=100))[1]
    assert all(math.isnan(end) for ends in pool([statistics])[1].values() for end in ends)
    with pytest.raises(GenValError, match="no image"):
        pool([])


def test_intervals_are_percentiles_of_the_metrics_of_each_draw():
    images = [measure(*(realistic(seed, 200)))[1] for seed in range(5)]
    total, ends = pool(iter(images), {"diagonal": lambda matrices: np.trace(matrices, axis1=1, axis2=2)}, 50, 3, 0.8)
    drawn = []
    for weights in draw_weights(5, 50, 3):
        chosen = [image for image, count in zip(images, weights, strict=True) for _ in range(count)]
        one = sum(chosen, PixelStatistics.empty())
        drawn.append(reliability_metrics(one) | {"diagonal": float(np.trace(one.confusion))})
    assert [*ends] == [*drawn[0]]
    by_levels = {"adaptive_ece", "ks", "auroc", "aupr_right", "aupr_wrong", "fpr95"}  # coarser levels
    for name in ends:
        tolerance = 0.005 if name in by_levels else 0.5 if name == "prr_percent" else 1e-9
        same(ends[name], np.percentile([one[name] for one in drawn], [10, 90]), tolerance)
    same(reliability_metrics(total)["mean_confidence"], total.bin_confidence.sum() / 1000)


@pytest.mark.parametrize("number", [4, 8, 11])
def test_intervals_are_the_same_if_counts_are_not_kept(number, monkeypatch):
    images = [measure(*(realistic(seed, 200)))[1] for seed in range(number)]
    further = {"diagonal": lambda matrices: np.trace(matrices, axis1=1, axis2=2)}
    kept = pool(iter(images), further, 50)[1]
    monkeypatch.setattr(reliability, "_BLOCK", 4)
    assert pool(iter(images), further, 50, number=number)[1] == kept


def test_the_threshold_of_one_level_is_interpolated_and_its_bound_is_that_of_its_level():
    statistics = PixelStatistics.empty(2)
    statistics.levels[:, 5] = 10, 40
    assert reliability_metrics(statistics)["fpr95"] == pytest.approx(0.95)
    statistics.levels[:, 5] = 1, 19
    statistics.levels[:, 9] = 3, 1
    assert reliability_bounds(statistics)["fpr95"] == 0.25
    assert reliability_bounds(statistics)["ks"] == pytest.approx(20 / 24 + 6.2e-5)


def test_images_without_a_labelled_pixel_have_no_intervals():
    total, ends = pool([PixelStatistics.empty(), PixelStatistics.empty()])
    assert total.levels.sum() == 0 and all(math.isnan(end) for both in ends.values() for end in both)
