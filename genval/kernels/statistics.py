"""Predict and count a whole batch on an NVIDIA GPU: the counts of `genval.metrics.statistics.PixelStatistics`.

One kernel reads the logits where they are and writes nothing of their size: at 1024x2048 with 19 classes, memory
traffic is most of the time. (Logits that are not contiguous are copied first.) A program measures 512 pixels of an
image. Counts are added to the image's counts by atomic operations, which are exact in any order. Sums of floating-point
numbers are stored per program and added in a fixed order, so that a result does not depend on the order of the
programs.

Results equal those of `genval.metrics.statistics.measure` except for the last bits of the exponentials.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from genval.kernels.layout import (
    BINS,
    CONFIDENCE_LEVELS,
    LOG_SMALLEST_ODDS,
    LOWEST_LOGIT,
    SMALLEST_ODDS,
    SUMS,
    level_ranges,
)
from genval.runtime.devices import to_host
from genval.runtime.errors import GenValError

PIXELS = 512  # per program
# Bins in memory: the length of a histogram must be a power of two.
_BINS = 16
# An image's counts: 1 cell for labels that do not exist; then (C, _BINS), bins of the label's probability; then (C, C),
# the confusion matrix.
_CELLS = 1
# A program's sums: `SUMS`; 1 number that is finite if all logits are; then (C,), the sums of each class's probability.
_CLASS_SUMS = len(SUMS) + 1
# A program's packed bins: confidences of wrong pixels, of right pixels, then each class's probability from the second
# bin on. The upper bits hold the number of pixels, the lower bits the sum of their probabilities in units of `_UNIT`.
# A float32 number between 1/32 and 1 is a whole number of units.
_UNIT, _NUMBER_BIT = 2.0**-28, 40


@dataclass(frozen=True)
class BatchCounts:
    """The counts of a batch of B images, on the host. "Wrong" is index 0 and "right" index 1 of an axis of two."""

    predictions: np.ndarray  # uint8 (B, ...): the predicted classes
    invalid_labels: np.ndarray  # int (B,): pixels whose label does not exist
    finite: np.ndarray  # bool (B,): whether all logits are finite
    confusion: np.ndarray  # int (B, C, C), rows are labels
    levels: np.ndarray  # int (B, 2, CONFIDENCE_LEVELS): wrong and right pixels by level, the highest confidence first
    bins: np.ndarray  # int (B, 2, BINS): wrong and right pixels by bin of the confidence
    bin_confidence: np.ndarray  # float64 (B, BINS): sum of the confidences in each bin
    label_bins: np.ndarray  # int (B, C, BINS): pixels of each class by bin of the class's probability
    high_bins: np.ndarray  # int (B, C, BINS): all pixels by bin of each class's probability, from the second bin on
    high_confidence: np.ndarray  # float64 (B, C, BINS): the sum of these probabilities
    class_confidence: np.ndarray  # float64 (B, C): the sum of all probabilities of each class
    sums: np.ndarray  # float64 (B, len(SUMS))


def launch(logits: Tensor, labels: Tensor, ignore: int = 255) -> Callable[[], BatchCounts]:
    """Start to predict and count a batch of images, and to copy the counts to the host.

    Args:
        logits: floating point (B, C, ...), not soft-maxed, C at most 32; finite, except for minus infinity at classes
            that are ruled out.
        labels: uint8 (B, ...), 0..C-1 or `ignore`, on the same device.
        ignore: label of pixels that are not counted.

    Returns:
        A function that waits for the counts and returns them.

    Raises:
        GenValError: an image is too large for 32-bit offsets.
    """
    images, classes = logits.shape[:2]
    flat, flat_labels = logits.reshape(images, classes, -1).contiguous(), labels.reshape(images, -1).contiguous()
    pixels = flat_labels.shape[1]
    if classes * pixels >= 1 << 31:
        raise GenValError(
            f"Expected fewer than 2^31 logits per image, found {classes} classes of {pixels} pixels. "
            "Use smaller images."
        )
    programs = triton.cdiv(pixels, PIXELS)
    device = logits.device
    predictions = torch.empty((images, pixels), dtype=torch.uint8, device=device)
    levels = torch.zeros((images, 2 * CONFIDENCE_LEVELS), dtype=torch.int32, device=device)
    counts = torch.zeros((images, _CELLS + classes * _BINS + classes**2), dtype=torch.int32, device=device)
    parts = torch.empty((images, programs, _CLASS_SUMS + classes), dtype=torch.float64, device=device)
    packed = torch.zeros((images, programs, (2 + classes) * _BINS), dtype=torch.int64, device=device)
    with torch.cuda.device_of(logits):  # where Triton launches
        if pixels:
            _tally[(programs, images)](
                flat, flat_labels, predictions, levels, counts, parts, packed, pixels, ignore,
                counts.shape[1], parts.shape[2], packed.shape[2], classes,
                max(_BINS, triton.next_power_of_2(classes**2)), triton.next_power_of_2(classes * _BINS),
                CONFIDENCE_LEVELS, flat_ranges("confidence"), LOWEST_LOGIT, SMALLEST_ODDS, LOG_SMALLEST_ODDS,
                BINS, float(np.float32(1) / np.float32(BINS)),
                _BINS, _CELLS, _CLASS_SUMS, 1 / _UNIT, _NUMBER_BIT, PIXELS,
            )  # fmt: skip
    numbers = (packed >> _NUMBER_BIT).sum(1)
    units = (packed & ((1 << _NUMBER_BIT) - 1)).sum(1)
    wait = to_host(predictions.reshape(labels.shape), levels, counts, parts.sum(1), numbers, units)
    return lambda: _unpack(classes, *wait())


def flat_ranges(name: str) -> tuple[int, ...]:
    """Return `level_ranges` in one row, for `magnitude_level`."""
    return tuple(number for numbers in level_ranges(name) for number in numbers)


def _unpack(
    classes: int,
    predictions: np.ndarray,
    levels: np.ndarray,
    counts: np.ndarray,
    sums: np.ndarray,
    numbers: np.ndarray,
    units: np.ndarray,
) -> BatchCounts:
    """Name the counts that the kernel leaves, described at the constants above."""
    images, cells = len(predictions), _CELLS + classes * _BINS
    in_bins = numbers.reshape(images, 2 + classes, _BINS)[:, :, :BINS]
    probabilities = (units * _UNIT).reshape(images, 2 + classes, _BINS)[:, :, :BINS]
    return BatchCounts(
        predictions=predictions,
        invalid_labels=counts[:, 0],
        finite=np.isfinite(sums).all(1),
        confusion=counts[:, cells:].reshape(images, classes, classes),
        levels=levels.reshape(images, CONFIDENCE_LEVELS, 2).swapaxes(1, 2),
        bins=in_bins[:, :2],
        bin_confidence=probabilities[:, :2].sum(1),
        label_bins=counts[:, _CELLS:cells].reshape(images, classes, _BINS)[:, :, :BINS],
        high_bins=in_bins[:, 2:],
        high_confidence=probabilities[:, 2:],
        class_confidence=sums[:, _CLASS_SUMS:],
        sums=sums[:, : len(SUMS)],
    )


@triton.jit
def largest_logit(logits, inside, pixels, classes):  # type: ignore[no-untyped-def]
    """Return the largest logit over the classes, float32, and the first class that has it, int32. For use in kernels.

    `logits` points to a block of pixels of the first class, of which those `inside` are read; the next class is
    `pixels` further.
    """
    largest = tl.load(logits, mask=inside, other=0.0).to(tl.float32)
    first = tl.zeros_like(inside.to(tl.int32))
    for index in range(1, classes):
        logit = tl.load(logits + index * pixels, mask=inside, other=0.0).to(tl.float32)
        first = tl.where(logit > largest, index, first)
        largest = tl.where(logit > largest, logit, largest)
    return largest, first


@triton.jit
def _bin(probability, bins: tl.constexpr):  # type: ignore[no-untyped-def]
    above = tl.ceil(probability * bins).to(tl.int32) - 1
    return tl.minimum(tl.maximum(above, 0), bins - 1)


@triton.jit
def _pack(probability, UNITS: tl.constexpr, NUMBER_BIT: tl.constexpr):  # type: ignore[no-untyped-def]
    one = tl.full(probability.shape, 1, tl.int64) << NUMBER_BIT
    return one + (probability * UNITS).to(tl.int64)


@triton.jit
def magnitude_level(number, RANGES: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the level of the absolute value of float32 numbers, as `genval.metrics.statistics.magnitude_level`."""
    bits = number.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    level = tl.zeros_like(bits)
    for index in tl.static_range(0, len(RANGES), 3):
        level += (tl.minimum(tl.maximum(bits, RANGES[index]), RANGES[index + 1]) - RANGES[index]) >> RANGES[index + 2]
    return level


@triton.jit
def replace_small_odds(  # type: ignore[no-untyped-def]
    odds, logits, largest, predicted, inside, pixels, classes, SMALLEST: tl.constexpr, LOG_SMALLEST: tl.constexpr
):
    """Replace odds below SMALLEST as `genval.metrics.statistics.odds_against` does. A program seldom has any."""
    small = inside & (odds < SMALLEST)
    if tl.max(small.to(tl.int32), 0) > 0:
        second = tl.full(largest.shape, float("-inf"), tl.float32)
        for index in range(classes):
            logit = tl.load(logits + index * pixels, mask=small, other=0.0).to(tl.float32)
            second = tl.where((index != predicted) & (logit > second), logit, second)
        total = tl.zeros_like(largest)
        for index in range(classes):
            logit = tl.load(logits + index * pixels, mask=small, other=0.0).to(tl.float32)
            total += tl.where(index != predicted, tl.exp(logit - second), 0.0)
        replacement = tl.sqrt(LOG_SMALLEST / (tl.log(total) + (second - largest))) * SMALLEST
        # Without another class, `second` is minus infinity and the logarithm NaN.
        replacement = tl.where(second == float("-inf"), 0.0, replacement)
        odds = tl.where(small, replacement, odds)
    return odds


@triton.jit
def _sum_others(logits, largest, predicted, inside, pixels, CLASSES: tl.constexpr, LOWEST: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the sum of the exponentials of the classes that are not predicted, relative to the predicted class."""
    # NaN must stay NaN: comparisons keep it, `tl.maximum` would not.
    odds = tl.zeros_like(largest)
    for index in range(CLASSES):
        below = tl.load(logits + index * pixels, mask=inside, other=0.0).to(tl.float32) - largest
        odds += tl.where(index == predicted, 0.0, tl.exp(tl.where(below < LOWEST, LOWEST, below)))
    return odds


@triton.jit
def _count_levels(levels, odds, right, counted, RANGES: tl.constexpr):  # type: ignore[no-untyped-def]
    """Count pixels by level and correctness in an image's `levels` (LEVELS, 2)."""
    tl.atomic_add(levels + 2 * magnitude_level(odds, RANGES) + right.to(tl.int32), 1, mask=counted, sem="relaxed")


@triton.jit
def _tally_classes(  # type: ignore[no-untyped-def]
    logits, largest, totals, known, counted, inside, class_sums, class_bins, pixels, CLASSES: tl.constexpr,
    LOWEST: tl.constexpr, BINS: tl.constexpr, FIRST_BIN: tl.constexpr, ROW: tl.constexpr, UNITS: tl.constexpr,
    NUMBER_BIT: tl.constexpr,
):  # fmt: skip
    """Sum and bin each class's probability in a program's `class_sums` (C,) and `class_bins` (C, ROW).

    Returns:
        Per pixel: the sum over classes of probability times distance from the largest logit, the sum of squared
        probabilities, the label's probability, and the distance of the label's logit from the largest.
    """
    product = tl.zeros_like(largest)
    squares = tl.zeros_like(largest)
    label_probability = tl.zeros_like(largest)
    label_below = tl.zeros_like(largest)
    for index in range(CLASSES):
        below = tl.load(logits + index * pixels, mask=inside, other=0.0).to(tl.float32) - largest
        clamped = tl.where(below < LOWEST, LOWEST, below)
        probability = tl.div_rn(tl.exp(clamped), totals)
        product += clamped * probability
        squares += probability * probability
        label_probability = tl.where(known == index, probability, label_probability)
        label_below = tl.where(known == index, below, label_below)
        tl.store(class_sums + index, tl.sum(tl.where(counted, probability, 0.0)).to(tl.float64))
        # Nearly all probabilities are in the first bin. Its counts follow from those of the other bins.
        high = counted & (probability > FIRST_BIN)
        cell = class_bins + index * ROW + _bin(probability, BINS)
        tl.atomic_add(cell, _pack(probability, UNITS, NUMBER_BIT), mask=high, sem="relaxed")
    return product, squares, label_probability, label_below


@triton.jit
def _store_sums(  # type: ignore[no-untyped-def]
    parts, largest, odds, product, squares, label_probability, label_below, right, counted, inside
):
    """Store a program's `SUMS`, and behind them a number that is finite if all logits are."""
    # In float64: a GPU's fast logarithm has few correct digits near 1.
    log_totals = tl.log(1.0 + odds.to(tl.float64))
    entropy = log_totals - product
    tl.store(parts, tl.sum(tl.where(counted, log_totals - label_below, 0.0)))
    tl.store(parts + 1, tl.sum(tl.where(counted, 1.0 - 2.0 * label_probability + squares, 0.0).to(tl.float64)))
    tl.store(parts + 2, tl.sum(tl.where(right, entropy, 0.0)))
    tl.store(parts + 3, tl.sum(tl.where(counted & (right == 0), entropy, 0.0)))
    tl.store(parts + 4, tl.sum(tl.where(counted, entropy * entropy, 0.0)))
    tl.store(parts + 5, tl.sum(tl.where(inside, largest + odds, 0.0).to(tl.float64)))


@triton.jit
def _tally(  # type: ignore[no-untyped-def]
    logits, labels, predictions, levels, counts, parts, packed, pixels, ignore, counts_stride, parts_stride,
    packed_stride, CLASSES: tl.constexpr, PAIRS: tl.constexpr, CELLS: tl.constexpr, LEVELS: tl.constexpr,
    RANGES: tl.constexpr, LOWEST: tl.constexpr, SMALLEST: tl.constexpr, LOG_SMALLEST: tl.constexpr, BINS: tl.constexpr,
    FIRST_BIN: tl.constexpr, ROW: tl.constexpr, AT_CELLS: tl.constexpr, AT_CLASSES: tl.constexpr, UNITS: tl.constexpr,
    NUMBER_BIT: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """Measure `PIXELS` pixels of an image: program (part, image).

    `logits` (B, C, N), `labels` and `predictions` (B, N), `levels` (B, 2 * LEVELS), `counts`, `parts` and `packed` as
    described at the constants above. The logits are read three times, the second and third time from the cache: those
    of a program do not fit the registers.
    """
    image = tl.program_id(1).to(tl.int64)
    here = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    inside = here < pixels
    known = tl.load(labels + image * pixels + here, mask=inside, other=ignore).to(tl.int32)
    counted = inside & (known != ignore)
    counts += image * counts_stride
    tl.atomic_add(counts, tl.sum((counted & (known >= CLASSES)).to(tl.int32)), sem="relaxed")
    counted = counted & (known < CLASSES)
    logits += image * CLASSES * pixels + here

    largest, predicted = largest_logit(logits, inside, pixels, CLASSES)
    tl.store(predictions + image * pixels + here, predicted.to(tl.uint8), mask=inside)
    odds = _sum_others(logits, largest, predicted, inside, pixels, CLASSES, LOWEST)
    totals = 1.0 + odds
    right = counted & (predicted == known)
    in_pairs = tl.histogram(known * CLASSES + predicted, PAIRS, mask=counted)
    pair = tl.arange(0, PAIRS)
    tl.atomic_add(counts + AT_CELLS + CLASSES * ROW + pair, in_pairs, mask=in_pairs > 0, sem="relaxed")
    ordered = replace_small_odds(
        odds, logits, largest, predicted, inside, pixels, CLASSES, SMALLEST, LOG_SMALLEST
    )  # fmt: skip
    _count_levels(levels + image * 2 * LEVELS, ordered, right, counted, RANGES)

    program = image * tl.num_programs(0) + tl.program_id(0)
    packed += program * packed_stride
    confidence = tl.div_rn(tl.full([PIXELS], 1.0, tl.float32), totals)
    cell_of_bin = packed + tl.where(right, ROW, 0) + _bin(confidence, BINS)
    tl.atomic_add(cell_of_bin, _pack(confidence, UNITS, NUMBER_BIT), mask=counted, sem="relaxed")

    parts += program * parts_stride
    product, squares, label_probability, label_below = _tally_classes(
        logits, largest, totals, known, counted, inside, parts + AT_CLASSES, packed + 2 * ROW, pixels, CLASSES, LOWEST,
        BINS, FIRST_BIN, ROW, UNITS, NUMBER_BIT,
    )  # fmt: skip
    in_cells = tl.histogram(known * ROW + _bin(label_probability, BINS), CELLS, mask=counted)
    cell = tl.arange(0, CELLS)
    tl.atomic_add(counts + AT_CELLS + cell, in_cells, mask=in_cells > 0, sem="relaxed")
    _store_sums(parts, largest, odds, product, squares, label_probability, label_below, right, counted, inside)
