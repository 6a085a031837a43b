"""Figures of many models on many resampled sets at once: a drawn set is one weighted sum of its images' counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from genval.metrics.calibration import binned_ece
from genval.report.evidence import Evidence


@dataclass(frozen=True)
class Figure:
    """One figure of several models on a set, in percent."""

    value: np.ndarray  # float64 (M,); NaN for models without it
    drawn: np.ndarray | None  # float64 (D, M), the same on resampled images; None where images cannot be drawn

    def of(self, models: np.ndarray) -> Figure:
        """Of the models at these indices."""
        return Figure(self.value[models], None if self.drawn is None else self.drawn[:, models])


def weigh(counts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Sums of images' counts (N, ...) by weights (D, N): float64 (D, ...). Counts up to 2^53 pixels are exact."""
    return (weights @ counts.reshape(len(counts), -1)).reshape(len(weights), *counts.shape[1:])


def class_iou(counts: np.ndarray) -> np.ndarray:
    """IoU of each class in percent.

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
    """Mean of `class_iou` over those of `classes` that have labelled pixels, float64 (...)."""
    iou = class_iou(counts)[..., list(classes)]
    there = ~np.isnan(iou)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(there, iou, 0).sum(-1) / there.sum(-1))


def ece(bins: np.ndarray) -> np.ndarray:
    """Expected calibration error in percent, from (..., 3, B): right pixels, pixels, sum of confidences."""
    right, pixels, confidence = np.moveaxis(bins, -2, 0)
    return 100 * binned_ece(right, pixels, confidence)


def miou_figure(evidence: Evidence, weights: np.ndarray, classes: Sequence[int]) -> Figure:
    """Mean IoU over a class set."""
    return Figure(mean_iou(evidence.counts.sum(0), classes), mean_iou(weigh(evidence.counts, weights), classes))


def class_figures(evidence: Evidence, weights: np.ndarray, classes: Sequence[int]) -> list[Figure]:
    """IoU of each class of a set."""
    value, drawn = class_iou(evidence.counts.sum(0)), class_iou(weigh(evidence.counts, weights))
    return [Figure(value[:, index], drawn[..., index]) for index in classes]


def ece_figure(evidence: Evidence, weights: np.ndarray) -> Figure:
    """Expected calibration error."""
    assert evidence.bins is not None
    return Figure(ece(evidence.bins.sum(0)), ece(weigh(evidence.bins, weights)))
