"""`genval.metrics.statistics.measure` of whole batches on an NVIDIA GPU: one kernel, and small sums of what it leaves.

Logits are read where they are, and nothing of their size is written: at 1024x2048 with 19 classes that is what the
time goes into. (Logits that are not contiguous are copied first.) A program measures 512 pixels of an image. Counts are
added to the image's by atomic operations, which are exact in any order; sums of floating-point numbers are kept for
each program and added in their order, so that a result does not depend on which program was first.

The figures are those of `measure` but for the last bits of the exponentials.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from genval.metrics.calibration import BINS
from genval.metrics.statistics import (
    FIRST_KEY,
    LEVELS,
    LOWEST,
    MANTISSA_BITS,
    SUMS,
    LogitsNotFiniteError,
    PixelStatistics,
    check_shapes,
    fill_classes,
)
from genval.runtime.errors import GenValError

PIXELS = 512  # of a program
# Bins in memory: a histogram's length must be a power of two.
_BINS = 16
# An image's counts: labels that do not exist; and behind them, of (C, _BINS), bins of the label's probability; (C, C).
_CELLS = 1
# A program's sums: `SUMS`, one that is finite if all logits are; and behind them, (C,), the classes' probabilities.
_CLASS_SUMS = len(SUMS) + 1
# A program's confidences by bin, wrong and right, and behind them each class's probabilities by bin, from the second
# on: their number in the upper bits, in the lower their sum. Above 1/32 a float32 number is a whole number of `_UNIT`.
_UNIT, _NUMBER_BIT = 2.0**-28, 40


def launch(
    logits: Tensor, labels: Tensor, ignore: int = 255
) -> Callable[[], Iterator[tuple[np.ndarray, PixelStatistics]]]:
    """Start to predict and measure a batch of images, and to copy what it gives to the host.

    Args:
        logits: floating point (B, C, ...), not soft-maxed, C at most 32; finite, but for minus infinity at classes that
            are ruled out.
        labels: uint8 (B, ...), 0..C-1 or `ignore`, on the same device.
        ignore: label of pixels that are not measured.

    Returns:
        A function to call when the device has done all that; it gives image by image what `measure` does: the
        predicted classes, a uint8 array of the labels' shape, and the statistics; with its errors.

    Raises:
        GenValError: shapes do not fit, or an image is too large for 32-bit offsets.
    """
    check_shapes(logits, labels)
    images, classes = logits.shape[:2]
    flat, flat_labels = logits.reshape(images, classes, -1).contiguous(), labels.reshape(images, -1).contiguous()
    pixels = flat_labels.shape[1]
    if classes * pixels >= 1 << 31:
        raise GenValError(f"Images of at most 2^31 logits can be measured, found {classes} classes of {pixels} pixels.")
    programs = triton.cdiv(pixels, PIXELS)
    device = logits.device
    predictions = torch.empty((images, pixels), dtype=torch.uint8, device=device)
    levels = torch.zeros((images, 2 * LEVELS), dtype=torch.int32, device=device)
    counts = torch.zeros((images, _CELLS + classes * _BINS + classes**2), dtype=torch.int32, device=device)
    parts = torch.empty((images, programs, _CLASS_SUMS + classes), dtype=torch.float64, device=device)
    packed = torch.zeros((images, programs, (2 + classes) * _BINS), dtype=torch.int64, device=device)
    with torch.cuda.device_of(logits):  # where Triton launches
        if pixels:
            _tally[(programs, images)](
                flat, flat_labels, predictions, levels, counts, parts, packed, pixels, ignore,
                counts.shape[1], parts.shape[2], packed.shape[2], classes,
                max(_BINS, triton.next_power_of_2(classes**2)), triton.next_power_of_2(classes * _BINS),
                LEVELS, FIRST_KEY, 23 - MANTISSA_BITS, LOWEST, BINS, float(np.float32(1) / np.float32(BINS)),
                _BINS, _CELLS, _CLASS_SUMS, 1 / _UNIT, _NUMBER_BIT, PIXELS,
            )  # fmt: skip
    numbers = (packed >> _NUMBER_BIT).sum(1)
    units = (packed & ((1 << _NUMBER_BIT) - 1)).sum(1)
    made = (predictions, levels, counts, parts.sum(1), numbers, units)
    on_host = [values.to("cpu", non_blocking=True) for values in made]

    def read() -> Iterator[tuple[np.ndarray, PixelStatistics]]:
        for predicted, *tallies in zip(*(values.numpy() for values in on_host), strict=True):
            yield predicted.reshape(labels.shape[1:]), _statistics(classes, *tallies)

    return read


def _statistics(
    classes: int, levels: np.ndarray, counts: np.ndarray, sums: np.ndarray, numbers: np.ndarray, units: np.ndarray
) -> PixelStatistics:
    """An image's statistics from what the kernel leaves."""
    if counts[0]:
        raise GenValError(f"The labels hold classes that do not exist ({counts[0]} pixels): expected 0..{classes - 1}.")
    if not np.isfinite(sums).all():
        raise LogitsNotFiniteError("Logits must be finite, found NaN or infinity.")
    statistics = PixelStatistics.empty(classes)
    cells = _CELLS + classes * _BINS
    statistics.confusion[:] = counts[cells:].reshape(classes, classes)
    statistics.sums[:] = sums[: len(SUMS)]
    statistics.levels[:] = levels.reshape(LEVELS, 2).T
    probabilities = units * _UNIT
    statistics.bins[:] = numbers[: 2 * _BINS].reshape(2, _BINS)[:, :BINS]
    statistics.bin_confidence[:] = probabilities[: 2 * _BINS].reshape(2, _BINS)[:, :BINS].sum(0)
    of_label, high, high_sum = (
        values.reshape(classes, _BINS)[:, :BINS]
        for values in (counts[_CELLS:cells], numbers[2 * _BINS :], probabilities[2 * _BINS :])
    )
    fill_classes(statistics, of_label, high, high_sum, sums[_CLASS_SUMS:])
    return statistics


@triton.jit
def largest_logit(logits, inside, pixels, classes):  # type: ignore[no-untyped-def]
    """The largest of the classes' logits, float32, and the first class that has it, int32: for kernels.

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
def _tally(  # type: ignore[no-untyped-def]
    logits, labels, predictions, levels, counts, parts, packed, pixels, ignore, counts_stride, parts_stride,
    packed_stride, CLASSES: tl.constexpr, PAIRS: tl.constexpr, CELLS: tl.constexpr, LEVELS: tl.constexpr,
    FIRST_KEY: tl.constexpr, SHIFT: tl.constexpr, LOWEST: tl.constexpr, BINS: tl.constexpr, FIRST_BIN: tl.constexpr,
    ROW: tl.constexpr, AT_CELLS: tl.constexpr, AT_CLASSES: tl.constexpr, UNITS: tl.constexpr, NUMBER_BIT: tl.constexpr,
    PIXELS: tl.constexpr,
):  # fmt: skip
    """Measure `PIXELS` pixels of an image: program (part, image).

    `logits` (B, C, N), `labels` and `predictions` (B, N), `levels` (B, 2 * LEVELS), `counts`, `parts` and `packed` as
    the constants above say. The classes' logits are read three times, from the cache but for the first: a program's do
    not fit the registers.
    """
    image = tl.program_id(1).to(tl.int64)
    here = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    inside = here < pixels
    known = tl.load(labels + image * pixels + here, mask=inside, other=ignore).to(tl.int32)
    counted = inside & (known != ignore)
    strange = counted & (known >= CLASSES)
    counts += image * counts_stride
    tl.atomic_add(counts, tl.sum(strange.to(tl.int32)), sem="relaxed")
    counted = counted & (known < CLASSES)
    logits += image * CLASSES * pixels + here

    largest, predicted = largest_logit(logits, inside, pixels, CLASSES)
    tl.store(predictions + image * pixels + here, predicted.to(tl.uint8), mask=inside)

    # NaN must stay NaN: comparisons choose it, where `tl.maximum` would not.
    totals = tl.zeros_like(largest)
    for index in range(CLASSES):
        below = tl.load(logits + index * pixels, mask=inside, other=0.0).to(tl.float32) - largest
        totals += tl.exp(tl.where(below < LOWEST, LOWEST, below))

    right = counted & (predicted == known)
    of_pairs = tl.histogram(known * CLASSES + predicted, PAIRS, mask=counted)
    pair = tl.arange(0, PAIRS)
    tl.atomic_add(counts + AT_CELLS + CLASSES * ROW + pair, of_pairs, mask=of_pairs > 0, sem="relaxed")
    # Odds of 0 crowd on one cell, where single additions would wait for each other.
    level = ((totals - 1.0).to(tl.int32, bitcast=True) >> SHIFT) - (FIRST_KEY - 1)
    key = 2 * tl.minimum(tl.maximum(level, 0), LEVELS - 1) + right.to(tl.int32)
    levels += image * 2 * LEVELS
    tl.atomic_add(levels + 1, tl.sum((counted & (key == 1)).to(tl.int32)), sem="relaxed")
    tl.atomic_add(levels + key, 1, mask=counted & (key != 1), sem="relaxed")

    program = image * tl.num_programs(0) + tl.program_id(0)
    packed += program * packed_stride
    confidence = tl.div_rn(tl.full([PIXELS], 1.0, tl.float32), totals)
    of_bin = packed + tl.where(right, ROW, 0) + _bin(confidence, BINS)
    tl.atomic_add(of_bin, _pack(confidence, UNITS, NUMBER_BIT), mask=counted, sem="relaxed")

    parts += program * parts_stride
    packed += 2 * ROW
    product = tl.zeros_like(largest)
    squares = tl.zeros_like(largest)
    of_label = tl.zeros_like(largest)
    label_below = tl.zeros_like(largest)
    for index in range(CLASSES):
        below = tl.load(logits + index * pixels, mask=inside, other=0.0).to(tl.float32) - largest
        clamped = tl.where(below < LOWEST, LOWEST, below)
        probability = tl.div_rn(tl.exp(clamped), totals)
        product += clamped * probability
        squares += probability * probability
        of_label = tl.where(known == index, probability, of_label)
        label_below = tl.where(known == index, below, label_below)
        tl.store(parts + AT_CLASSES + index, tl.sum(tl.where(counted, probability, 0.0)).to(tl.float64))
        # Nearly all probabilities are in the first bin, whose counts follow from the others'.
        high = counted & (probability > FIRST_BIN)
        of_bin = packed + index * ROW + _bin(probability, BINS)
        tl.atomic_add(of_bin, _pack(probability, UNITS, NUMBER_BIT), mask=high, sem="relaxed")
    of_cells = tl.histogram(known * ROW + _bin(of_label, BINS), CELLS, mask=counted)
    cell = tl.arange(0, CELLS)
    tl.atomic_add(counts + AT_CELLS + cell, of_cells, mask=of_cells > 0, sem="relaxed")

    # In float64: a GPU's fast logarithm has few good digits near 1.
    log_totals = tl.log(totals.to(tl.float64))
    entropy = log_totals - product
    tl.store(parts, tl.sum(tl.where(counted, log_totals - label_below, 0.0)))
    tl.store(parts + 1, tl.sum(tl.where(counted, 1.0 - 2.0 * of_label + squares, 0.0).to(tl.float64)))
    tl.store(parts + 2, tl.sum(tl.where(right, entropy, 0.0)))
    tl.store(parts + 3, tl.sum(tl.where(counted & (predicted != known), entropy, 0.0)))
    tl.store(parts + 4, tl.sum(tl.where(counted, entropy * entropy, 0.0)))
    tl.store(parts + 5, tl.sum(tl.where(inside, totals, 0.0).to(tl.float64)))
