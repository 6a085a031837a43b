"""Every figure of a set of pixels from its statistics, and each figure's interval over the choice of images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from genval.metrics import calibration, ranking
from genval.metrics.statistics import LEVELS, SUMS, PixelStatistics, level_confidence
from genval.runtime.errors import GenValError

# The bootstrap draws sets from levels pooled by this many: what that costs is far below an interval's width.
_POOLED = 32
# Draws at a time: what a figure works on (500 KB) fits a CPU's cache; 250 at a time take twice as long.
_DRAWS_AT_ONCE = 40


def reliability_figures(statistics: PixelStatistics) -> dict[str, float]:
    """Calibration, misclassification detection and entropy of pixels.

    Returns:
        `mean_confidence`; the calibration errors `ece`, `adaptive_ece`, `ks`, `classwise_ece` (fractions); `nll`
        (nats a pixel), `brier` (0..2); of confidence as a detector of errors, `auroc`, `aupr_right` and `aupr_wrong`
        (right or wrong pixels as the positive class), `fpr95` (share of the wrong pixels among those kept where 95 % of
        the right ones are), `prr_percent`; the entropy in nats, `entropy`, its standard deviation `entropy_std`, and
        its means `entropy_right` and `entropy_wrong`. NaN where a figure is not defined.
    """
    figures = _figures(*(array[None] for array in statistics.arrays()), confidence=level_confidence())
    return {name: float(value[0]) for name, value in figures.items()}


def bounds(statistics: PixelStatistics) -> dict[str, float]:
    """How far figures from levels can be from those of single pixels, at most.

    `ece`, `classwise_ece`, `nll`, `brier` and the entropies are exact. The others are right but for the order inside a
    level: `auroc` (and half of `prr_percent` / 100) by half the pairs inside one level; `fpr95` by the errors in the
    level where the threshold is; `ks` by half the largest level, each side of which it is evaluated at, and the width
    of the levels.

    >>> bounds(PixelStatistics.empty())["auroc"]
    nan
    """
    wrong, right = statistics.levels
    found = np.cumsum(right)
    level = int(np.argmax(found >= 0.95 * right.sum()))
    pixels = int((wrong + right).sum())
    return {
        "auroc": float(ranking.auroc_bound(right, wrong)),
        "fpr95": float(wrong[level] / wrong.sum()) if wrong.any() else math.nan,
        "ks": float((wrong + right).max() / pixels + 6.2e-5) if pixels else math.nan,
    }


def pool(
    images: Iterable[PixelStatistics],
    further: Mapping[str, Callable[[np.ndarray], np.ndarray]] | None = None,
    draws: int = 1000,
    seed: int = 0,
    coverage: float = 0.95,
) -> tuple[PixelStatistics, dict[str, tuple[float, float]]]:
    """The statistics of a set of images, and percentile bootstrap intervals of its figures over the choice of images.

    Images are drawn with replacement; as statistics add, a draw is one weighted sum of them, and all draws together are
    matrix products. Source: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13.

    Args:
        images: one an image, taken one at a time; float sums are added in their order.
        further: functions of confusion matrices (D, C, C) that give values (D,), by the figure's name.
        draws: number of resampled sets.
        seed: of the drawing; for as many images the same ones are drawn, whatever the model.
        coverage: of the interval.

    Returns:
        The sum; lower and upper end by the figures' names, NaN with fewer than two images, or where more than a tenth
        of the draws has no such figure.

    Raises:
        GenValError: there is no image.
    """
    total: PixelStatistics | None = None
    rows: list[list[np.ndarray]] = []
    shapes: list[tuple[int, ...]] = []
    for image in images:
        total = image if total is None else total + image
        arrays = [_pool_levels(array) if array is image.levels else array for array in image.arrays()]
        shapes = [array.shape for array in arrays]
        rows.append([array.ravel().astype(np.float64) for array in arrays])
    if total is None:
        raise GenValError("There is no image to sum up.")
    names = [*reliability_figures(total), *(further or {})]
    if len(rows) < 2:
        return total, dict.fromkeys(names, (math.nan, math.nan))
    count = len(rows)
    weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), draws).astype(np.float64)
    stacked = [np.stack(values) for values in zip(*rows, strict=True)]
    parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for start in range(0, draws, _DRAWS_AT_ONCE):
        drawn = weights[start : start + _DRAWS_AT_ONCE]
        sums = [(drawn @ values).reshape(-1, *shape) for values, shape in zip(stacked, shapes, strict=True)]
        values = _figures(*sums, confidence=_pooled_confidence())
        values |= {name: function(sums[0]) for name, function in (further or {}).items()}
        for name, value in values.items():
            parts[name].append(value)
    tail = 50 * (1 - coverage)
    return total, {name: _percentiles(np.concatenate(values), tail) for name, values in parts.items()}


def _figures(
    confusion: np.ndarray,
    levels: np.ndarray,
    bins: np.ndarray,
    bin_confidence: np.ndarray,
    class_bins: np.ndarray,
    class_confidence: np.ndarray,
    sums: np.ndarray,
    *,
    confidence: np.ndarray,
) -> dict[str, np.ndarray]:
    """The figures of several sets at once: every array has a leading dimension; `confidence` is that of the levels."""
    wrong, right = levels[:, 0].astype(np.float64), levels[:, 1].astype(np.float64)
    pixels, wrongs, rights = (values.sum(-1) for values in (wrong + right, wrong, right))
    # Ascending in confidence.
    in_level = (wrong + right)[:, ::-1]
    curve = calibration.gap_curve(right[:, ::-1], in_level, in_level * confidence[::-1])
    named = dict(zip(SUMS, np.moveaxis(sums, -1, 0), strict=True))
    entropy = _mean(named["entropy_right"] + named["entropy_wrong"], pixels)
    variance = _mean(named["squared_entropy"], pixels) - entropy**2
    return {
        "mean_confidence": _mean(bin_confidence.sum(-1), pixels),
        "ece": calibration.ece_of_bins(bins[:, 1], bins.sum(1), bin_confidence),
        "adaptive_ece": calibration.adaptive_ece(curve, in_level),
        "ks": calibration.ks_error(curve),
        "classwise_ece": calibration.ece_of_bins(class_bins[:, 1], class_bins.sum(1), class_confidence).mean(-1),
        "nll": _mean(named["nll"], pixels),
        "brier": _mean(named["brier"], pixels),
        "auroc": ranking.auroc(right, wrong),
        "aupr_right": ranking.aupr(right, wrong),
        "aupr_wrong": ranking.aupr(wrong[:, ::-1], right[:, ::-1]),
        "fpr95": ranking.fpr_at_tpr(right, wrong, interpolate=True),
        "prr_percent": ranking.prediction_rejection_ratio(right, wrong),
        "entropy": entropy,
        "entropy_std": np.sqrt(np.maximum(variance, 0)),
        "entropy_right": _mean(named["entropy_right"], rights),
        "entropy_wrong": _mean(named["entropy_wrong"], wrongs),
    }


def _mean(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    return np.divide(total, count, out=np.full(np.shape(total), np.nan), where=count > 0)


def _pool_levels(levels: np.ndarray) -> np.ndarray:
    """Counts (2, LEVELS) on levels 32 times as wide; level 0, confidence 1, stays alone."""
    return np.concatenate([levels[:, :1], levels[:, 1:].reshape(2, (LEVELS - 1) // _POOLED, _POOLED).sum(-1)], 1)


def _pooled_confidence() -> np.ndarray:
    of_levels = level_confidence()
    return np.concatenate([of_levels[:1], of_levels[1:].reshape(-1, _POOLED).mean(-1)])


def _percentiles(values: np.ndarray, tail: float) -> tuple[float, float]:
    defined = values[~np.isnan(values)]
    if len(defined) < 0.9 * len(values):
        return math.nan, math.nan
    low, high = np.percentile(defined, [tail, 100 - tail])
    return float(low), float(high)
