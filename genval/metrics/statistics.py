"""What one pass over an image's logits leaves: counts and sums that add up over images, processes and data sets.

Every figure of robustness, calibration and misclassification detection follows from them
(`genval.metrics.reliability`), so that another figure or another pooling of sets costs no inference.

- The confusion matrix, and 15 bins of equal width of the confidence and of each class's probability: exact. A float32
  confidence between 1/32 and 1 is a whole number of 2^-28, so that float64 sums of up to 2^25 of them round nothing,
  in whatever order a device adds.
- Right and wrong pixels at each of 57,345 levels of confidence p. A level is a range of the odds against, 1/p - 1, as
  float32 writes them: its exponent and 11 bits of mantissa. No confidence is further than 6.2e-5 from its level's
  middle, and near 1, where confidences crowd, levels are as fine as float32 itself. Cutting off mantissa bits costs
  one shift; a logarithm would cost more than the rest.
- Sums of the negative log likelihood, the Brier score and the entropy, in float64.

All pixels with a label are measured, or a seeded sample of them.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from genval.metrics.calibration import BINS
from genval.metrics.confusion import confusion_matrix
from genval.runtime.errors import GenValError

if TYPE_CHECKING:
    from torch import Tensor

MANTISSA_BITS = 11
# The smallest odds above 0 that float32 softmax gives are 2^-23, the largest below 2^5 for up to 32 classes.
_SMALLEST, _LARGEST = -23, 5
LEVELS = ((_LARGEST - _SMALLEST) << MANTISSA_BITS) + 1
FIRST_KEY = (127 + _SMALLEST) << MANTISSA_BITS
MAX_CLASSES = 32
# Logits further below the largest count as this far below it.
LOWEST = -40.0
# Pixels at a time on a CPU: 19 float32 logits each, and what is made of them, stay in the second-level cache.
_CPU_CHUNK = 16384
SUMS = ("nll", "brier", "entropy_right", "entropy_wrong", "squared_entropy")


class LogitsNotFiniteError(GenValError):
    """A logit is NaN or infinite where it must not be."""


@dataclass
class PixelStatistics:
    """Mergeable statistics of pixels; `a + b` are those of both sets.

    "Wrong" is index 0 and "right" index 1 of an axis of two.
    """

    confusion: np.ndarray  # int64 (C, C), rows are labels
    levels: np.ndarray  # int64 (2, LEVELS): wrong and right pixels by level, the highest confidence first
    bins: np.ndarray  # int64 (2, BINS): wrong and right pixels by equal-width bin of the confidence
    bin_confidence: np.ndarray  # float64 (BINS,): sum of the confidences in each bin
    class_bins: np.ndarray  # int64 (2, C, BINS): pixels not of and of the class, by bin of the class's probability
    class_confidence: np.ndarray  # float64 (C, BINS): sum of the class's probabilities in each bin
    sums: np.ndarray  # float64 (len(SUMS),): over pixels, in nats where it is a likelihood or an entropy

    def __add__(self, other: PixelStatistics) -> PixelStatistics:
        return PixelStatistics(*(a + b for a, b in zip(self.arrays(), other.arrays(), strict=True)))

    def arrays(self) -> list[np.ndarray]:
        """The fields, in order."""
        return [getattr(self, field.name) for field in dataclasses.fields(self)]

    @classmethod
    def empty(cls, num_classes: int = 19) -> PixelStatistics:
        """The statistics of no pixel."""
        return cls(
            confusion=np.zeros((num_classes, num_classes), np.int64),
            levels=np.zeros((2, LEVELS), np.int64),
            bins=np.zeros((2, BINS), np.int64),
            bin_confidence=np.zeros(BINS),
            class_bins=np.zeros((2, num_classes, BINS), np.int64),
            class_confidence=np.zeros((num_classes, BINS)),
            sums=np.zeros(len(SUMS)),
        )


@lru_cache
def level_confidence() -> np.ndarray:
    """The confidence in the middle of each level, float64 (LEVELS,), descending from 1."""
    keys = np.arange(FIRST_KEY, FIRST_KEY + LEVELS, dtype=np.int64) << (23 - MANTISSA_BITS)
    edges = keys.astype(np.int32).view(np.float32).astype(np.float64)
    return 1 / (1 + np.concatenate([[0.0], (edges[:-1] + edges[1:]) / 2]))


def level_of(odds: Tensor) -> Tensor:
    """The level of odds against, 1/p - 1 (float32, 0 or 2^-23 up to below 2^5), as int32."""
    import torch

    return ((odds.view(torch.int32) >> (23 - MANTISSA_BITS)) - (FIRST_KEY - 1)).clamp_(0, LEVELS - 1)


def measure(logits: Tensor, labels: Tensor, ignore: int = 255) -> tuple[Tensor, PixelStatistics]:
    """Predict and measure one image, on the device of its logits.

    On a CPU pixels go through in pieces that fit the cache; on a GPU all at once, which
    `genval.kernels.statistics` does faster, for batches.

    Args:
        logits: (C, ...), not soft-maxed, C at most 32; finite, but for minus infinity at classes that are ruled out.
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
    known = torch.where(counted, flat_labels, 0).long()
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
    sums, *counts = (torch.stack(parts).sum(0).cpu().numpy() for parts in zip(*tallies, strict=True))
    if not np.isfinite(sums).all():
        raise LogitsNotFiniteError("Logits must be finite, found NaN or infinity.")
    statistics.confusion[:] = confusion_matrix(flat_labels, predictions, classes, ignore)
    statistics.sums[:] = sums[:-1]
    statistics.levels[:] = _count_levels(keys)
    bins, statistics.bin_confidence[:], of_label, high, high_sum, total = counts
    statistics.bins[:] = bins.reshape(BINS, 2).T
    fill_classes(statistics, of_label, high, high_sum, total)
    return predictions.reshape(labels.shape), statistics


def check_shapes(logits: Tensor, labels: Tensor) -> None:
    """Raise GenValError unless logits (B, C, ...) of 1 to `MAX_CLASSES` classes and labels (B, ...) fit."""
    if (len(logits), *logits.shape[2:]) != labels.shape or not 1 <= logits.shape[1] <= MAX_CLASSES:
        raise GenValError(
            f"Expected logits (C, ...) of 1 to {MAX_CLASSES} classes and labels of the shape of the rest, found "
            f"{tuple(logits.shape[1:])} and {tuple(labels.shape[1:])}, of {len(logits)} and {len(labels)} images."
        )


def count_confidences(totals: Tensor, right: Tensor, counted: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count pixels by level and by equal-width bin of their confidence.

    Args:
        totals: one over the confidence, float32 (N,).
        right: whether the prediction is right, bool (N,).
        counted: which pixels have a label, bool (N,).

    Returns:
        `levels`, `bins` and `bin_confidence` of `PixelStatistics`.
    """
    import torch

    keys = torch.empty(totals.shape, dtype=torch.int32, device=totals.device)
    parts = [_tally_confidence(totals[i], right[i], counted[i], keys[i]) for i in _pieces(totals)]
    bins, sums = (torch.stack(values).sum(0).cpu().numpy() for values in zip(*parts, strict=True))
    return _count_levels(keys), bins.reshape(BINS, 2).T, sums


def _pieces(pixels: Tensor) -> list[slice]:
    """What goes through at a time: what fits a CPU's cache, or everything at once on a GPU."""
    step = _CPU_CHUNK if pixels.device.type == "cpu" else max(1, len(pixels))
    return [slice(start, start + step) for start in range(0, len(pixels), step)]


def _count_levels(keys: Tensor) -> np.ndarray:
    """`levels` from the keys that `_tally_confidence` leaves; one call, since it has 100,000 cells."""
    import torch

    counts: np.ndarray = torch.bincount(keys, minlength=2 * LEVELS + 2)[: 2 * LEVELS].cpu().numpy()
    return counts.reshape(LEVELS, 2).T


def _tally_confidence(totals: Tensor, right: Tensor, counted: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Fill in each pixel's key of level and correctness; return `bins`, transposed and flat, and `bin_confidence`."""
    import torch

    # Pixels that are not measured go to one more level and one more bin.
    torch.add(torch.where(counted, level_of(totals - 1), LEVELS) * 2, right, out=keys)
    confidence = totals.reciprocal()
    index = torch.where(counted, _bin(confidence), BINS)
    bins = torch.bincount(index * 2 + right, minlength=2 * BINS + 2)[: 2 * BINS]
    return bins, torch.bincount(index, confidence.double(), minlength=BINS + 1)[:BINS]


def _tally(logits: Tensor, known: Tensor, counted: Tensor, predictions: Tensor, keys: Tensor) -> tuple[Tensor, ...]:
    """Measure pixels (C, n): fill in `predictions` and `keys`, return what adds up over pieces.

    Returns:
        `sums`, with one more that is NaN if a logit of any pixel is NaN or infinite; `bins`, transposed and flat;
        `bin_confidence`; pixels of each class by bin of its probability (C * BINS,); all counted pixels likewise, from
        the second bin on; the sum of these probabilities; the sum of all probabilities (C,). Counts are int64, sums
        float64.
    """
    import torch

    largest = logits.amax(0)
    predictions.copy_(_first_of(logits, largest))
    below = logits - largest
    of_known = below.gather(0, known[None])[0]
    # exp(-40) is nothing beside 1, and its square still a normal number: with denormal ones a pass takes twice as long.
    probabilities = below.clamp_(min=LOWEST).exp()
    totals = probabilities.sum(0)
    probabilities /= totals
    log_totals = totals.log()
    nll = log_totals - of_known
    of_label = probabilities.gather(0, known[None])[0]
    # The products take the place of what is not needed again: memory is most of the time here.
    entropy = log_totals - torch.mul(below, probabilities, out=below).sum(0)
    brier = 1 - 2 * of_label + torch.mul(probabilities, probabilities, out=below).sum(0)
    right = (predictions == known) & counted
    chosen = (counted, nll), (counted, brier), (right, entropy), (counted & ~right, entropy), (counted, entropy**2)
    sums = [torch.where(mask, values, 0).sum(dtype=torch.float64) for mask, values in chosen]
    sums.append(totals.sum(dtype=torch.float64))

    cells = len(logits) * BINS
    label_key = torch.where(counted, known.int() * BINS + _bin(of_label), cells)
    # Nearly all probabilities are in the first bin, whose counts follow from the others'.
    where = _above(probabilities, np.float32(1) / np.float32(BINS), counted)
    high = probabilities.reshape(-1)[where]
    key = torch.div(where, logits.shape[1], rounding_mode="floor").int() * BINS + _bin(high)
    return (
        torch.stack(sums),
        *_tally_confidence(totals, right, counted, keys),
        torch.bincount(label_key, minlength=cells + 1)[:cells],
        torch.bincount(key, minlength=cells),
        # Of no values torch returns integers, weights or not.
        torch.bincount(key, high.double(), minlength=cells).double(),
        _class_sums(probabilities, counted),
    )


def _bin(probabilities: Tensor) -> Tensor:
    """`calibration.bin_index` of a tensor, as int32."""
    import torch

    return torch.ceil(probabilities * BINS).int().sub_(1).clamp_(0, BINS - 1)


def _class_sums(probabilities: Tensor, counted: Tensor) -> Tensor:
    """The sum of each class's probabilities (C, n) over counted pixels, float64 (C,)."""
    import torch

    if probabilities.device.type == "cpu":
        return (probabilities @ counted.float()).double()
    # A GPU's matrix product may run in TF32, which has 10 bits of mantissa.
    return torch.where(counted, probabilities, 0).sum(1, dtype=torch.float64)


def _first_of(logits: Tensor, largest: Tensor) -> Tensor:
    """The first class that has the largest logit; on a CPU 6 times as fast as `argmax` over the leading dimension."""
    if logits.device.type != "cpu":
        return logits.argmax(0)
    import torch

    rank = np.arange(len(logits), 0, -1, dtype=np.uint8)[:, None]
    is_largest = np.equal(logits.numpy(), largest.numpy())
    return torch.from_numpy(len(logits) - (is_largest.view(np.uint8) * rank).max(0))


def _above(probabilities: Tensor, threshold: np.float32, counted: Tensor) -> Tensor:
    """Flat indices of the probabilities (C, n) above a threshold, in counted pixels."""
    import torch

    if probabilities.device.type != "cpu":
        return torch.nonzero(((probabilities > float(threshold)) & counted).reshape(-1))[:, 0]
    return torch.from_numpy(np.flatnonzero((probabilities.numpy() > threshold) & counted.numpy()))


def fill_classes(
    statistics: PixelStatistics, of_label: np.ndarray, high: np.ndarray, high_sum: np.ndarray, total: np.ndarray
) -> None:
    """Fill in the bins of each class's probability, the first from what the others leave of all pixels.

    Args:
        statistics: whose confusion matrix is there.
        of_label: pixels of each class by bin of its probability, C * BINS integers.
        high: all counted pixels likewise, from the second bin on.
        high_sum: the sum of these probabilities.
        total: the sum of all probabilities of each class (C,).
    """
    shape = statistics.class_confidence.shape
    pixels, confidence = high.reshape(shape), high_sum.reshape(shape)
    pixels[:, 0] = statistics.confusion.sum() - pixels.sum(1)
    confidence[:, 0] = total - confidence.sum(1)
    statistics.class_bins[1] = of_label.reshape(shape)
    statistics.class_bins[0] = pixels - statistics.class_bins[1]
    statistics.class_confidence[:] = confidence
