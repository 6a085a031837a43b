"""Metrics of calibration, misclassification detection and entropy, and their intervals over the choice of images."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

import numpy as np

from genval.kernels.layout import CONFIDENCE_LEVELS, SUMS
from genval.metrics import calibration, ranking
from genval.metrics.bootstrap import (
    DRAWS_PER_BATCH,
    LEVELS_PER_COARSE_LEVEL,
    UNDEFINED,
    draw_weights,
    filled_levels,
    percentile_interval,
)
from genval.metrics.division import safe_divide
from genval.metrics.statistics import PixelStatistics, level_confidence
from genval.runtime.errors import GenValError

# Images whose counts are added to the draws at once.
_BLOCK = 256


def reliability_metrics(statistics: PixelStatistics, names: Collection[str] | None = None) -> dict[str, float]:
    """Compute the metrics of a set of pixels.

    Args:
        statistics: of the pixels.
        names: the metrics to compute; None means all.

    Returns:
        Calibration: `mean_confidence`; the errors `ece`, `adaptive_ece`, `ks` and `classwise_ece` (fractions); `nll`
        (nats per pixel); `brier` (0..2). Detection of errors by confidence: `auroc`; `aupr_right` and `aupr_wrong`
        (right or wrong pixels as the positive class); `fpr95` (the share of wrong pixels that are kept if 95 % of the
        right pixels are kept); `prr_percent`. Entropy in nats: the mean `entropy`, the standard deviation
        `entropy_std`, and the means `entropy_right` and `entropy_wrong`. NaN where a metric is not defined.
    """
    arrays = (array[None] for array in statistics.arrays())
    metrics = _metrics(*arrays, confidence=level_confidence(), names=names)
    return {name: float(value[0]) for name, value in metrics.items()}


def reliability_bounds(statistics: PixelStatistics) -> dict[str, float]:
    """Return the largest possible differences between metrics from levels and metrics from single pixels.

    `ece`, `classwise_ece`, `nll`, `brier` and the entropies are exact. For the others only the order inside a level is
    unknown. The bound of `auroc` (and of half of `prr_percent` / 100) is half the share of pairs inside one level; that
    of `fpr95` is the share of the errors in the level of the threshold; that of `ks`, which is evaluated at both ends
    of a level, is the largest level plus the width of the levels.

    >>> reliability_bounds(PixelStatistics.empty())["auroc"]
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
    number: int | None = None,
) -> tuple[PixelStatistics, dict[str, tuple[float, float]]]:
    """Add up the statistics of images, and compute percentile bootstrap intervals of the metrics over their choice.

    Images are drawn with replacement. Since statistics add up, a draw is a weighted sum of them, and all draws together
    are matrix products. Source: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13.

    Args:
        images: the statistics of each image, read one at a time; float sums are added in their order.
        further: functions that map confusion matrices (D, C, C) to values (D,), by the name of the metric.
        draws: number of resampled sets.
        seed: of the draws; sets of the same number of images have the same draws, whatever the model.
        coverage: of the interval.
        number: of the images, if it is known. Then the counts of the images are not kept in memory.

    Returns:
        The sum; and by the name of each metric the lower and upper end, NaN with fewer than two images or if the metric
        is not defined in more than a tenth of the draws.

    Raises:
        GenValError: there is no image.
    """
    total: PixelStatistics | None = None
    drawn = _DrawnSums(draws, seed, number)
    shapes: list[tuple[int, ...]] = []
    for image in images:
        if total is None:
            total = copy.deepcopy(image)
        else:
            total += image
        arrays = [_coarsen(array) if array is image.levels else array for array in image.arrays()]
        shapes = [array.shape for array in arrays]
        drawn.add(arrays)
    if total is None:
        raise GenValError("There is no image to add up.")
    names = [*reliability_metrics(total), *(further or {})]
    if drawn.count < 2:
        return total, dict.fromkeys(names, UNDEFINED)
    # Levels without a pixel change no metric, and are more than half of them on a small set.
    place = [array is total.levels for array in total.arrays()].index(True)
    filled = filled_levels(_coarsen(total.levels))
    drawn.select(place, np.concatenate([filled, shapes[place][1] + filled]))
    shapes[place] = (2, len(filled))
    confidence = _coarse_confidence()[filled]
    batches: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for batch in drawn.batches():
        sums = [values.reshape(-1, *shape) for values, shape in zip(batch, shapes, strict=True)]
        values = _metrics(*sums, confidence=confidence)
        values |= {name: function(sums[0]) for name, function in (further or {}).items()}
        for name, value in values.items():
            batches[name].append(value)
    ends = {name: percentile_interval(np.concatenate(values), coverage) for name, values in batches.items()}
    return total, ends


class _DrawnSums:
    """The sums of the arrays of images in each draw.

    If the number of images is known, the counts of a block of images are added to the sums of all draws, which is exact
    in any order. Sums of floats depend on the order: those of each image, which are few, are kept.

    Args:
        draws: number of draws.
        seed: of the draws.
        number: of the images; None where it is not known before they are added.

    Attributes:
        count: number of images that were added.
    """

    def __init__(self, draws: int, seed: int, number: int | None) -> None:
        self.count = 0
        self._draws, self._seed, self._number = draws, seed, number
        self._weights = draw_weights(number, draws, seed) if number is not None and number > _BLOCK else None
        # By the place of an array in those of an image: a row for each image; or the rows of a block, and their sums.
        self._rows: dict[int, list[np.ndarray]] = {}
        self._blocks: dict[int, np.ndarray] = {}
        self._sums: dict[int, np.ndarray] = {}

    def add(self, arrays: Sequence[np.ndarray]) -> None:
        """Add the arrays of an image."""
        self.count += 1
        for place, array in enumerate(arrays):
            if self._weights is not None and np.issubdtype(array.dtype, np.integer):
                self._add_counts(place, array.ravel(), self._weights)
            else:
                self._rows.setdefault(place, []).append(array.ravel().astype(np.float64))

    def _add_counts(self, place: int, counts: np.ndarray, weights: np.ndarray) -> None:
        if place not in self._sums:
            self._blocks[place] = np.empty((_BLOCK, len(counts)))
            self._sums[place] = np.zeros((self._draws, len(counts)))
        index = (self.count - 1) % _BLOCK
        self._blocks[place][index] = counts
        if index + 1 < _BLOCK and self.count != self._number:
            return
        block = self._blocks[place][: index + 1]
        for start in range(0, self._draws, DRAWS_PER_BATCH):
            part = slice(start, start + DRAWS_PER_BATCH)
            self._sums[place][part] += weights[part, self.count - len(block) : self.count].astype(np.float64) @ block

    def select(self, place: int, columns: np.ndarray) -> None:
        """Keep only some values of an array, after the last image."""
        if place in self._sums:
            self._sums[place] = self._sums[place].take(columns, 1)  # rows in order, as a product has them
        else:
            self._rows[place] = [row[columns] for row in self._rows[place]]

    def batches(self) -> Iterator[list[np.ndarray]]:
        """Yield the sums of each array, (D, values), of `DRAWS_PER_BATCH` draws at a time."""
        assert self._number in (None, self.count)
        weights = draw_weights(self.count, self._draws, self._seed) if self._weights is None else self._weights
        stacked = {place: np.stack(rows) for place, rows in self._rows.items()}
        for start in range(0, self._draws, DRAWS_PER_BATCH):
            part = slice(start, start + DRAWS_PER_BATCH)
            drawn = weights[part].astype(np.float64)
            places = sorted([*stacked, *self._sums])
            yield [drawn @ stacked[place] if place in stacked else self._sums[place][part] for place in places]


def _metrics(
    confusion: np.ndarray,
    levels: np.ndarray,
    bins: np.ndarray,
    bin_confidence: np.ndarray,
    class_bins: np.ndarray,
    class_confidence: np.ndarray,
    sums: np.ndarray,
    *,
    confidence: np.ndarray,
    names: Collection[str] | None = None,
) -> dict[str, np.ndarray]:
    """Compute the metrics of several sets: every array has a leading dimension; `confidence` is that of the levels.

    `bins` and `levels` count the same pixels.
    """
    wrongs, rights = bins[:, 0].sum(-1), bins[:, 1].sum(-1)
    pixels = wrongs + rights
    named = dict(zip(SUMS, np.moveaxis(sums, -1, 0), strict=True))
    entropy = safe_divide(named["entropy_right"] + named["entropy_wrong"], pixels)

    @functools.cache
    def by_level() -> tuple[np.ndarray, np.ndarray]:  # right and wrong pixels
        wrong, right = levels[:, 0].astype(np.float64), levels[:, 1].astype(np.float64)
        return right, wrong

    @functools.cache
    def in_level() -> np.ndarray:  # ascending in confidence
        right, wrong = by_level()
        return (wrong + right)[:, ::-1]

    @functools.cache
    def curve() -> np.ndarray:
        return calibration.gap_curve(by_level()[0][:, ::-1], in_level(), in_level() * confidence[::-1])

    def aupr_wrong() -> np.ndarray:
        right, wrong = by_level()
        return ranking.aupr(wrong[:, ::-1], right[:, ::-1])

    def entropy_std() -> np.ndarray:
        return np.sqrt(np.maximum(safe_divide(named["squared_entropy"], pixels) - entropy**2, 0))

    metrics: dict[str, Callable[[], np.ndarray]] = {
        "mean_confidence": lambda: safe_divide(bin_confidence.sum(-1), pixels),
        "ece": lambda: calibration.binned_ece(bins[:, 1], bins.sum(1), bin_confidence),
        "adaptive_ece": lambda: calibration.adaptive_ece(curve(), in_level()),
        "ks": lambda: calibration.ks_error(curve()),
        "classwise_ece": lambda: calibration.binned_ece(class_bins[:, 1], class_bins.sum(1), class_confidence).mean(-1),
        "nll": lambda: safe_divide(named["nll"], pixels),
        "brier": lambda: safe_divide(named["brier"], pixels),
        "auroc": lambda: ranking.auroc(*by_level()),
        "aupr_right": lambda: ranking.aupr(*by_level()),
        "aupr_wrong": aupr_wrong,
        "fpr95": lambda: ranking.fpr_at_tpr(*by_level(), interpolate=True),
        "prr_percent": lambda: ranking.prediction_rejection_ratio(*by_level()),
        "entropy": lambda: entropy,
        "entropy_std": entropy_std,
        "entropy_right": lambda: safe_divide(named["entropy_right"], rights),
        "entropy_wrong": lambda: safe_divide(named["entropy_wrong"], wrongs),
    }
    return {name: metric() for name, metric in metrics.items() if names is None or name in names}


def _coarsen(levels: np.ndarray) -> np.ndarray:
    """Add up counts (2, CONFIDENCE_LEVELS) on coarse levels; level 0, confidence 1, stays alone."""
    groups = (CONFIDENCE_LEVELS - 1) // LEVELS_PER_COARSE_LEVEL
    return np.concatenate([levels[:, :1], levels[:, 1:].reshape(2, groups, LEVELS_PER_COARSE_LEVEL).sum(-1)], 1)


def _coarse_confidence() -> np.ndarray:
    confidence = level_confidence()
    return np.concatenate([confidence[:1], confidence[1:].reshape(-1, LEVELS_PER_COARSE_LEVEL).mean(-1)])
