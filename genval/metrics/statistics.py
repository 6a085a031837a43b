"""Statistics of one forward pass: counts and sums that add up over images, processes and data sets.

Every metric of robustness, calibration and misclassification detection follows from them
(`genval.metrics.reliability`). A further metric, or another pooling of sets, therefore needs no inference.

- The confusion matrix, and 15 bins of equal width of the confidence and of each class's probability. All are exact. A
  float32 confidence between 1/32 and 1 is a whole number of 2^-28, so float64 sums of up to 2^25 confidences do not
  round, in whatever order a device adds.
- Right and wrong pixels at each of 64,641 levels of the odds against the prediction (`genval.kernels.layout`). Levels
  keep the order of confidences that float32 rounds to 1.
- Sums of the negative log likelihood, the Brier score and the entropy, in float64.

All pixels with a label are measured, or a seeded sample of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from genval.kernels.layout import (
    BINS,
    CONFIDENCE_LEVELS,
    KEY_SHIFT,
    LOG_SMALLEST_ODDS,
    LOWEST_LOGIT,
    MAX_CLASSES,
    SMALLEST_ODDS,
    SUMS,
    level_edges,
)
from genval.metrics.confusion import confusion_matrix
from genval.metrics.states import MergeableState
from genval.runtime.errors import GenValError

if TYPE_CHECKING:
    from torch import Tensor

    from genval.kernels.statistics import BatchCounts

# Pixels at a time on a CPU: their 19 float32 logits each, and the intermediate results, fit the second-level cache.
_CPU_CHUNK = 16384

# The level of `SMALLEST_ODDS`.
_SMALLEST_LEVEL = int(np.searchsorted(level_edges("confidence"), np.float32(SMALLEST_ODDS)))

COUNTS_VERSION = 2
"""Version of what is counted in an image. Counts of different versions are never pooled: raise it when a change of the
code changes counts of the same logits."""


class LogitsNotFiniteError(GenValError):
    """A logit is NaN or infinite where it must not be."""

    def __init__(self, message: str = "Logits must be finite, found NaN or infinity.") -> None:
        super().__init__(message)


@dataclass
class PixelStatistics(MergeableState):
    """Mergeable statistics of pixels; `a + b` are those of both sets.

    "Wrong" is index 0 and "right" index 1 of an axis of two.
    """

    confusion: np.ndarray  # int64 (C, C), rows are labels
    levels: np.ndarray  # int64 (2, CONFIDENCE_LEVELS): wrong and right pixels by level, the highest confidence first
    bins: np.ndarray  # int64 (2, BINS): wrong and right pixels by equal-width bin of the confidence
    bin_confidence: np.ndarray  # float64 (BINS,): sum of the confidences in each bin
    class_bins: np.ndarray  # int64 (2, C, BINS): pixels not of and of the class, by bin of the class's probability
    class_confidence: np.ndarray  # float64 (C, BINS): sum of the class's probabilities in each bin
    sums: np.ndarray  # float64 (len(SUMS),): over pixels, in nats where they are of a likelihood or an entropy

    @classmethod
    def empty(cls, num_classes: int = 19) -> PixelStatistics:
        """Return the statistics of no pixel."""
        return cls(
            confusion=np.zeros((num_classes, num_classes), np.int64),
            levels=np.zeros((2, CONFIDENCE_LEVELS), np.int64),
            bins=np.zeros((2, BINS), np.int64),
            bin_confidence=np.zeros(BINS),
            class_bins=np.zeros((2, num_classes, BINS), np.int64),
            class_confidence=np.zeros((num_classes, BINS)),
            sums=np.zeros(len(SUMS)),
        )


@lru_cache
def level_confidence() -> np.ndarray:
    """Return the confidence in the middle of each level, float64 (CONFIDENCE_LEVELS,), descending from 1."""
    edges = level_edges("confidence").astype(np.float64)
    return 1 / (1 + np.concatenate([[0.0], edges[1:-1] + np.diff(edges[1:]) / 2, edges[-1:]]))


@lru_cache
def _level_table(name: str, device: str) -> Tensor:
    """Return the level of every positive float32 number by its bits without the last `KEY_SHIFT`, int32."""
    import torch

    numbers = (np.arange(1 << (31 - KEY_SHIFT), dtype=np.int32) << KEY_SHIFT).view(np.float32)
    levels = np.searchsorted(level_edges(name), numbers, side="right") - 1
    return torch.from_numpy(levels.astype(np.int32)).to(device)


def magnitude_level(numbers: Tensor, name: str) -> Tensor:
    """Return the level, int32, of the absolute values of numbers (float32, (N,)); 0 for 0, ascending."""
    import torch

    # A look-up takes a third of the time of the arithmetic of `level_ranges`.
    key = (numbers.view(torch.int32) >> KEY_SHIFT).bitwise_and_((1 << (31 - KEY_SHIFT)) - 1)
    return _level_table(name, str(numbers.device)).index_select(0, key)


def odds_against(logits: Tensor) -> Tensor:
    """Return the odds against the class with the largest logit, (1 - p) / p, in the order of p for logits of any size.

    Args:
        logits: float32 (C, N), finite, except for minus infinity at classes that are ruled out.

    Returns:
        float32 (N,): the sum of the exponentials of the other logits minus the largest one, or what replaces it below
        `genval.kernels.layout.SMALLEST_ODDS`.
    """
    import torch

    largest = logits.amax(0)
    others = logits.scatter(0, first_of(logits, largest).long()[None], -torch.inf)
    second = others.amax(0)
    log_odds = others.sub_(second).clamp_(min=LOWEST_LOGIT).exp_().sum(0).log_().add_(second - largest)
    # Without another class `second` is minus infinity, and the logarithm is NaN.
    replacements = (LOG_SMALLEST_ODDS / log_odds).sqrt_().mul_(SMALLEST_ODDS).nan_to_num_(nan=0.0)
    return torch.where(log_odds >= LOG_SMALLEST_ODDS, log_odds.exp(), replacements)


def measure(logits: Tensor, labels: Tensor, ignore: int = 255) -> tuple[Tensor, PixelStatistics]:
    """Predict and measure one image, on the device of its logits.

    A CPU processes pixels in pieces that fit the cache. For batches on a GPU, `measure_batch` is faster.

    Args:
        logits: (C, ...), not soft-maxed, C at most 32; finite, except for minus infinity at classes that are ruled out.
        labels: uint8 of the shape of the rest, 0..C-1 or `ignore`, on the same device.
        ignore: label of pixels that are not measured.

    Returns:
        The predicted classes, uint8, of the shape of `labels`; the statistics.

    Raises:
        LogitsNotFiniteError: a logit is NaN or infinite, or minus infinity at the label.
        GenValError: shapes do not fit, or a label does not exist.
    """
    import torch

    classes = len(logits)
    check_shapes(logits[None], labels[None])
    flat, flat_labels = logits.detach().float().reshape(classes, -1), labels.reshape(-1)
    statistics = PixelStatistics.empty(classes)
    counted = flat_labels != ignore
    known = torch.where(counted, flat_labels, 0)
    if int(known.max() if len(known) else 0) >= classes:
        raise GenValError(f"The labels hold classes that do not exist: expected 0..{classes - 1}, found {known.max()}.")
    predictions = torch.empty(flat_labels.shape, dtype=torch.uint8, device=flat.device)
    keys = torch.empty(flat_labels.shape, dtype=torch.int32, device=flat.device)
    tallies = [
        _tally(flat[:, piece], known[piece], counted[piece], predictions[piece], keys[piece])
        for piece in _pieces(flat_labels)
    ]
    if not tallies:
        return predictions.reshape(labels.shape), statistics
    # Exponentials of these pixels underflow. They are few, or none.
    small = flat_nonzero(keys < 2 * _SMALLEST_LEVEL)
    if len(small):
        level = magnitude_level(odds_against(flat.index_select(1, small)), "confidence")
        keys[small] = level * 2 + (keys[small] & 1)
    sums, *counts = (torch.stack(parts).sum(0).cpu().numpy() for parts in zip(*tallies, strict=True))
    if not np.isfinite(sums).all():
        raise LogitsNotFiniteError
    statistics.confusion[:] = confusion_matrix(flat_labels, predictions, classes, ignore)
    statistics.sums[:] = sums
    statistics.levels[:] = _count_levels(keys)
    bins, statistics.bin_confidence[:], label_bins, high_bins, high_confidence, class_confidence = counts
    statistics.bins[:] = bins.reshape(BINS, 2).T
    _fill_classes(statistics, label_bins, high_bins, high_confidence, class_confidence)
    return predictions.reshape(labels.shape), statistics


def measure_batch(
    logits: Tensor, labels: Tensor, ignore: int = 255
) -> Callable[[], Iterator[tuple[np.ndarray, PixelStatistics]]]:
    """Start to predict and measure a batch of images on a GPU, by one Triton kernel.

    Args:
        logits: floating point (B, C, ...); otherwise as for `measure`.
        labels: uint8 (B, ...), 0..C-1 or `ignore`, on the same device.
        ignore: label of pixels that are not measured.

    Returns:
        A function that waits for the device. It yields, image by image, the predicted classes (a uint8 array of the
        labels' shape) and the statistics, and raises the errors of `measure`.

    Raises:
        GenValError: shapes do not fit, or an image is too large for 32-bit offsets.
    """
    from genval.kernels.statistics import launch

    check_shapes(logits, labels)
    read = launch(logits, labels, ignore)

    def images() -> Iterator[tuple[np.ndarray, PixelStatistics]]:
        counts = read()
        for index, predictions in enumerate(counts.predictions):
            yield predictions, _from_counts(counts, index)

    return images


def _from_counts(counts: BatchCounts, index: int) -> PixelStatistics:
    """Return the statistics of one image of a batch."""
    classes = counts.confusion.shape[1]
    if counts.invalid_labels[index]:
        raise GenValError(
            f"The labels hold classes that do not exist ({counts.invalid_labels[index]} pixels): "
            f"expected 0..{classes - 1}."
        )
    if not counts.finite[index]:
        raise LogitsNotFiniteError
    statistics = PixelStatistics.empty(classes)
    for name in ("confusion", "levels", "bins", "bin_confidence", "sums"):
        getattr(statistics, name)[:] = getattr(counts, name)[index]
    _fill_classes(
        statistics,
        counts.label_bins[index],
        counts.high_bins[index],
        counts.high_confidence[index],
        counts.class_confidence[index],
    )
    return statistics


def check_shapes(logits: Tensor, labels: Tensor) -> None:
    """Raise GenValError unless logits (B, C, ...) of 1 to `MAX_CLASSES` classes and labels (B, ...) fit."""
    if (len(logits), *logits.shape[2:]) != labels.shape or not 1 <= logits.shape[1] <= MAX_CLASSES:
        raise GenValError(
            f"Expected logits (C, ...) of 1 to {MAX_CLASSES} classes and labels of the shape of the rest, found "
            f"{tuple(logits.shape[1:])} and {tuple(labels.shape[1:])}, of {len(logits)} and {len(labels)} images."
        )


def count_confidences(odds: Tensor, right: Tensor, counted: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count pixels by level and by equal-width bin of their confidence.

    Args:
        odds: against the prediction, from `odds_against`, float32 (N,).
        right: whether the prediction is right, bool (N,).
        counted: which pixels have a label, bool (N,).

    Returns:
        `levels`, `bins` and `bin_confidence` of `PixelStatistics`.
    """
    import torch

    keys = torch.empty(odds.shape, dtype=torch.int32, device=odds.device)
    parts = [_tally_confidence(odds[i], odds[i] + 1, right[i], counted[i], keys[i]) for i in _pieces(odds)]
    bins, sums = (torch.stack(values).sum(0).cpu().numpy() for values in zip(*parts, strict=True))
    return _count_levels(keys), bins.reshape(BINS, 2).T, sums


def _pieces(pixels: Tensor) -> list[slice]:
    """Split pixels into pieces that fit a CPU's cache; on a GPU there is one piece."""
    step = _CPU_CHUNK if pixels.device.type == "cpu" else max(1, len(pixels))
    return [slice(start, start + step) for start in range(0, len(pixels), step)]


def _count_levels(keys: Tensor) -> np.ndarray:
    """Return `levels` from the keys of `_tally_confidence`, in one call, since it has 100,000 cells."""
    import torch

    counts: np.ndarray = (
        torch.bincount(keys, minlength=2 * CONFIDENCE_LEVELS + 2)[: 2 * CONFIDENCE_LEVELS].cpu().numpy()
    )
    return counts.reshape(CONFIDENCE_LEVELS, 2).T


def _tally_confidence(
    odds: Tensor, totals: Tensor, right: Tensor, counted: Tensor, keys: Tensor
) -> tuple[Tensor, Tensor]:
    """Fill in each pixel's key of level and correctness; return `bins`, transposed and flat, and `bin_confidence`.

    Args:
        odds: against the prediction (n,).
        totals: one over the confidence (n,).
        right: whether the prediction is right (n,).
        counted: which pixels have a label (n,).
        keys: filled in (n,).
    """
    import torch

    # Pixels that are not measured are counted at an extra level and in an extra bin, which are then dropped.
    torch.add(torch.where(counted, magnitude_level(odds, "confidence"), CONFIDENCE_LEVELS) * 2, right, out=keys)
    confidence = totals.reciprocal()
    index = torch.where(counted, _bin(confidence), BINS)
    bins = torch.bincount(index * 2 + right, minlength=2 * BINS + 2)[: 2 * BINS]
    return bins, torch.bincount(index, confidence.double(), minlength=BINS + 1)[:BINS]


def _tally(logits: Tensor, known: Tensor, counted: Tensor, predictions: Tensor, keys: Tensor) -> tuple[Tensor, ...]:
    """Measure pixels (C, n): fill in `predictions` and `keys`, and return what adds up over pieces.

    Returns:
        `sums`; `bins`, transposed and flat; `bin_confidence`; and the last 4 arguments of `_fill_classes`, flat. Counts
        are int64, sums float64.

    Raises:
        LogitsNotFiniteError: a logit of any pixel is NaN or infinite, or all of them are minus infinity.
    """
    import torch

    largest = logits.amax(0)
    if not math.isfinite(largest.sum(dtype=torch.float64)):
        raise LogitsNotFiniteError
    predictions.copy_(first_of(logits, largest))
    # Flat indices of the label and of the prediction. `index_select` is faster than `gather`.
    place = _places(logits.shape[1], str(logits.device))
    at_label = place.add(known, alpha=len(place))
    at_largest = place.add(predictions, alpha=len(place)).long()
    below = (logits - largest).contiguous()
    label_below = below.view(-1).index_select(0, at_label)
    probabilities = below.clamp_(min=LOWEST_LOGIT).exp()
    # Without the largest, whose exponential is 1, the sum keeps the digits of the others.
    odds = probabilities.view(-1).index_fill_(0, at_largest, 0).view_as(probabilities).sum(0)
    totals = odds + 1
    probabilities /= totals
    probabilities.view(-1).index_copy_(0, at_largest, totals.reciprocal())
    log_totals = totals.log()
    nll = log_totals - label_below
    label_probability = probabilities.view(-1).index_select(0, at_label)
    # Products overwrite arrays that are not needed again: most of the time is spent on memory.
    entropy = log_totals - torch.mul(below, probabilities, out=below).sum(0)
    brier = 1 - 2 * label_probability + torch.mul(probabilities, probabilities, out=below).sum(0)
    right = (predictions == known) & counted
    nll, brier, entropy = (torch.where(counted, values, 0) for values in (nll, brier, entropy))
    entropy_right = torch.where(right, entropy, 0)
    # The squares are summed in float64: otherwise their mean minus the squared mean is lost in rounding.
    parts = (nll, brier, entropy_right, entropy - entropy_right, entropy.double().square_())
    sums = torch.stack([values.sum(dtype=torch.float64) for values in parts])

    cells = len(logits) * BINS
    label_key = torch.where(counted, _bin(label_probability).add_(known, alpha=BINS), cells)
    # Nearly all probabilities are in the first bin. Its counts follow from those of the other bins.
    where, classes = _above(probabilities, np.float32(1) / np.float32(BINS), counted)
    high = probabilities.view(-1).index_select(0, where)
    key = classes.int() * BINS + _bin(high)
    return (
        sums,
        *_tally_confidence(odds, totals, right, counted, keys),
        torch.bincount(label_key, minlength=cells + 1)[:cells],
        torch.bincount(key, minlength=cells),
        # Without values torch returns integers, even with weights.
        torch.bincount(key, high.double(), minlength=cells).double(),
        _class_sums(probabilities, counted),
    )


@lru_cache(maxsize=4)
def _places(count: int, device: str) -> Tensor:
    """Return 0..count-1, int32."""
    import torch

    return torch.arange(count, dtype=torch.int32, device=device)


def _bin(probabilities: Tensor) -> Tensor:
    """As `calibration.bin_index`, for a tensor; int32."""
    import torch

    return torch.ceil(probabilities * BINS).int().sub_(1).clamp_(0, BINS - 1)


def _class_sums(probabilities: Tensor, counted: Tensor) -> Tensor:
    """Return the sum of each class's probabilities (C, n) over counted pixels, float64 (C,)."""
    import torch

    if probabilities.device.type == "cpu":
        return (probabilities @ counted.float()).double()
    # A GPU's matrix product may run in TF32, which has 10 bits of mantissa.
    return torch.where(counted, probabilities, 0).sum(1, dtype=torch.float64)


def first_of(logits: Tensor, largest: Tensor) -> Tensor:
    """Return the first class with the largest logit, of finite `largest` logits (N,).

    On a CPU it is 6 times as fast as `argmax` over dimension 0.
    """
    if logits.device.type != "cpu":
        return logits.argmax(0)
    import torch

    rank = np.arange(len(logits), 0, -1, dtype=np.uint8)[:, None]
    is_largest = np.equal(logits.numpy(), largest.numpy())
    return torch.from_numpy(len(logits) - (is_largest.view(np.uint8) * rank).max(0))


def flat_nonzero(mask: Tensor) -> Tensor:
    """Return the flat indices of the true elements, int64; on a CPU 7 times as fast as `nonzero`."""
    import torch

    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return torch.nonzero(mask.reshape(-1))[:, 0]


def _above(probabilities: Tensor, threshold: np.float32, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Return flat indices and classes of the probabilities (C, n) above a threshold, in counted pixels."""
    import torch

    if probabilities.device.type != "cpu":
        where = flat_nonzero((probabilities > float(threshold)) & counted)
        return where, torch.div(where, len(counted), rounding_mode="floor")
    mask = probabilities.numpy() > threshold
    mask &= counted.numpy()
    found = np.flatnonzero(mask)
    return torch.from_numpy(found), torch.from_numpy(found // len(counted))  # torch takes three times as long


def _fill_classes(
    statistics: PixelStatistics,
    label_bins: np.ndarray,
    high_bins: np.ndarray,
    high_confidence: np.ndarray,
    class_confidence: np.ndarray,
) -> None:
    """Fill in the bins of each class's probability; the first bin holds the pixels that the other bins do not.

    Args:
        statistics: with a complete confusion matrix.
        label_bins: pixels of each class by bin of its probability, C * BINS integers.
        high_bins: all counted pixels likewise, from the second bin on.
        high_confidence: the sum of these probabilities.
        class_confidence: the sum of all probabilities of each class (C,).
    """
    shape = statistics.class_confidence.shape
    pixels, confidence = high_bins.reshape(shape).copy(), high_confidence.reshape(shape).copy()
    pixels[:, 0] = statistics.confusion.sum() - pixels.sum(1)
    confidence[:, 0] = class_confidence - confidence.sum(1)
    statistics.class_bins[1] = label_bins.reshape(shape)
    statistics.class_bins[0] = pixels - statistics.class_bins[1]
    statistics.class_confidence[:] = confidence
