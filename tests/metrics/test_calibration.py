"""Calibration errors against plain references and the published numbers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from reference_metrics import (
    cases,
    same,
    single_pixels,
    slow_ece,
    slow_ks,
)

from genval.metrics.calibration import BINS, adaptive_ece, bin_index, gap_curve, top1_metrics
from genval.metrics.reliability import reliability_metrics
from genval.metrics.statistics import PixelStatistics, measure
from genval.runtime.errors import GenValError


def test_bin_edges_belong_to_the_lower_bin():
    edges = (np.arange(1, BINS + 1) / BINS).astype(np.float32)
    assert bin_index(edges).tolist() == list(range(BINS))
    assert bin_index(np.nextafter(edges[:-1], np.float32(2))).tolist() == list(range(1, BINS))


@given(cases())
def test_errors_of_single_pixels_follow_the_definitions(case):
    probabilities, labels = single_pixels(*case)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    if len(np.unique(confidence)) < len(confidence):
        confidence = np.round(confidence, 2)  # ties of one value, not of rounding
    metrics = top1_metrics(confidence, right)
    if not len(labels):
        assert all(math.isnan(value) for value in metrics.values())
        return
    same(metrics["ece"], slow_ece(confidence, right))
    same(metrics["ks"], slow_ks(confidence, right))
    assert metrics["adaptive_ece"] <= 2 * BINS * metrics["ks"] + 1e-12


def test_bins_of_equal_population_are_fifteenths_of_the_pixels():
    generator = np.random.default_rng(0)
    confidence = np.sort(generator.random(45))
    right = generator.random(45) < confidence
    parts = [np.abs((c - r).sum()) / 45 for c, r in zip(confidence.reshape(15, 3), right.reshape(15, 3), strict=True)]
    same(top1_metrics(confidence, right)["adaptive_ece"], sum(parts))
    # Tied pixels are shared: the order in which right and wrong ones come does not matter, and no bin is empty.
    tied = np.full(30, 0.7)
    for hits in (np.arange(30) < 15, np.arange(30) % 2 == 0):
        same(top1_metrics(tied, hits)["adaptive_ece"], 0.2)
    same(adaptive_ece(gap_curve(np.array([0]), np.array([1]), np.array([0.4])), np.array([1])), 0.4)


def test_confidences_outside_0_to_1_are_refused():
    for bad in (1.5, math.nan, -0.1):
        with pytest.raises(GenValError, match="a probability"):
            top1_metrics(np.array([bad]), np.array([True]))


@pytest.mark.parametrize(("name", "temperature"), [("calibration_T1", 1), ("calibration_T2", 2), ("after", 1.36)])
def test_published_calibration(golden, name, temperature):
    arrays, expected = golden
    expected = expected["temperature"]["after"] if name == "after" else expected[name]
    logits = torch.from_numpy(arrays["logits"]) / temperature
    probabilities, labels = single_pixels(np.moveaxis(logits.numpy(), 1, 0), arrays["labels"])
    metrics = top1_metrics(probabilities.max(1), probabilities.argmax(1) == labels, drop_lowest=True)
    by_class = [top1_metrics(column.clip(0, 1), labels == index) for index, column in enumerate(probabilities.T)]
    same(metrics["ece"], expected["ece_15_equal_size_bins"], 1e-6)
    same(metrics["adaptive_ece"], expected["ece_15_equal_population_bins"], 1e-6)
    same(metrics["ks"], expected["ks_error"], 1e-6)
    same([values["ece"] for values in by_class], expected["ece_per_class_equal_size"], 1e-6)
    same([values["ks"] for values in by_class], expected["ks_per_class"], 1e-6)

    total = sum(
        (measure(z, y)[1] for z, y in zip(logits, torch.from_numpy(arrays["labels"]), strict=True)),
        PixelStatistics.empty(),
    )
    metrics = reliability_metrics(total)
    same(metrics["ece"], expected["ece_15_equal_size_bins"], 1e-6)
    same(metrics["classwise_ece"], np.mean(expected["ece_per_class_equal_size"]), 1e-6)
    same(metrics["nll"], expected["nll"], 1e-6)
    same(metrics["ks"], expected["ks_error"], 1e-4)
    # Few pixels, so that a pixel to either side of each of 14 cuts already matters.
    same(metrics["adaptive_ece"], expected["ece_15_equal_population_bins"], 5e-4)


def test_a_probability_is_rounded_to_float32_before_it_is_binned():
    assert bin_index(np.arange(1, BINS + 1) / BINS + 1e-12).tolist() == list(range(BINS))
    assert bin_index(np.nextafter(np.float32(1), np.float32(2))) == BINS - 1  # a softmax may round above 1


def test_tied_confidences_have_no_order():
    generator = np.random.default_rng(0)
    confidence = generator.choice([0.3, 0.62, 0.7, 0.9], 200)
    right = generator.random(200) < 0.5
    metrics = top1_metrics(confidence, right)
    same(metrics["ks"], slow_ks(confidence, right))
    for _ in range(5):
        order = generator.permutation(200)
        assert top1_metrics(confidence[order], right[order]) == pytest.approx(metrics, abs=1e-12)


def test_the_published_cuts_drop_the_least_confident_pixel_only():
    same(top1_metrics(np.full(30, 0.7), np.arange(30) < 15, drop_lowest=True)["adaptive_ece"], 0.2 * 29 / 30)
    confidence = np.linspace(0.1, 0.9, 45)
    gaps = np.append(confidence[1:], 0)  # each bin is one pixel later, and the last one holds one pixel fewer
    same(top1_metrics(confidence, np.zeros(45), drop_lowest=True)["adaptive_ece"], gaps.sum() / 45)


def test_sets_without_levels_have_no_error():
    values = adaptive_ece(np.zeros((2, 0)), np.zeros((2, 0)))
    assert values.shape == (2,) and np.isnan(values).all()


def test_several_sets_have_the_errors_of_each_alone():
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 4, (6, 40)) * generator.integers(0, 2, (6, 40))
    pixels[2] = 0
    right = generator.binomial(pixels, 0.6)
    curves = gap_curve(right, pixels, pixels * np.linspace(0.1, 0.9, 40))
    together = adaptive_ece(curves, pixels)
    for count, curve, value in zip(pixels, curves, together, strict=True):
        filled = count > 0  # confidences without a pixel change nothing
        np.testing.assert_allclose(value, adaptive_ece(curve[filled], count[filled]), rtol=1e-12)
    assert np.isnan(together).tolist() == [False, False, True, False, False, False]
