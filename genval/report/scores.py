"""Scores of many models on many resampled sets: a resampled set is one weighted sum of its images' counts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from genval.metrics.calibration import binned_ece
from genval.metrics.noisy_correlation import Scores
from genval.report.evidence import Evidence


def weigh(counts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Sum images' counts (N, ...) by weights (D, N): float64 (D, ...). Counts up to 2^53 pixels are exact."""
    return (weights @ counts.reshape(len(counts), -1)).reshape(len(weights), *counts.shape[1:])


def class_iou(counts: np.ndarray) -> np.ndarray:
    """Compute the IoU of each class in percent.

    Args:
        counts: (..., 3, C): hits, labelled pixels, predicted pixels.

    Returns:
        float64 (..., C); NaN for a class without a labelled pixel. (`segmentation.iou_per_class` gives 0 where such a
        class is predicted. A small resample may not contain the class, and 0 would lower the score of every model.)
    """
    hits, labelled, predicted = np.moveaxis(counts, -2, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(labelled > 0, 100 * hits / (labelled + predicted - hits), np.nan))


def mean_iou(counts: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """Compute the mean of `class_iou` over those of `classes` that have labelled pixels, float64 (...)."""
    iou = class_iou(counts)[..., list(classes)]
    labelled = ~np.isnan(iou)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(labelled, iou, 0).sum(-1) / labelled.sum(-1))


def ece(bins: np.ndarray) -> np.ndarray:
    """Compute the expected calibration error in percent, from (..., 3, B): right pixels, pixels, sum of confidences."""
    right, pixels, confidence = np.moveaxis(bins, -2, 0)
    return 100 * binned_ece(right, pixels, confidence)


def miou_scores(evidence: Evidence, weights: np.ndarray, classes: Sequence[int]) -> Scores:
    """Compute the mean IoU over a class set."""
    value, drawn = (mean_iou(counts, classes) for counts in (evidence.counts.sum(0), weigh(evidence.counts, weights)))
    return Scores(value, drawn, evidence.units)


def class_scores(evidence: Evidence, weights: np.ndarray, classes: Sequence[int]) -> list[Scores]:
    """Compute the IoU of each class of a set."""
    value, drawn = class_iou(evidence.counts.sum(0)), class_iou(weigh(evidence.counts, weights))
    units = evidence.units_by_class()
    return [Scores(value[:, index], drawn[..., index], int(units[index])) for index in classes]


def ece_scores(evidence: Evidence, weights: np.ndarray) -> Scores:
    """Compute the expected calibration error."""
    assert evidence.bins is not None
    return Scores(ece(evidence.bins.sum(0)), ece(weigh(evidence.bins, weights)), evidence.units)
