"""`genval.metrics.ood_scores.measure_ood` of whole batches on an NVIDIA GPU: one kernel, and small sums of what it leaves.

As in `genval.kernels.statistics`, logits are read where they are if they are contiguous, counts are added by
atomic operations, and sums are kept for each program and added in their order. The counts are those of `measure_ood`
but for the last bits of the exponentials, which may move a pixel to the next level.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from genval.kernels.statistics import largest_logit
from genval.metrics.ood_scores import LEVELS, LOWEST, SCORES, STANDARDISED, OodCounts, scale
from genval.metrics.statistics import LogitsNotFiniteError
from genval.runtime.errors import GenValError

PIXELS = 1024  # of a program
# An image's numbers: pixels of the background, of the object, void, others; the two sums of entropies; one that is
# finite if all logits and scores are.
_NUMBERS = 7


def launch(
    logits: Tensor, kinds: Tensor, standard: tuple[Tensor, Tensor] | None = None, keep: bool = False
) -> tuple[Callable[[], Iterator[OodCounts]], Tensor | None]:
    """Start to score and count a batch of images, and to copy the counts to the host.

    Args:
        logits: floating point (B, C, ...), not soft-maxed; finite, but for minus infinity at classes ruled out.
        kinds: uint8 (B, ...), `BACKGROUND`, `OBJECT` or `VOID`, on the same device.
        standard: as for `anomaly_scores`.
        keep: give the scores as well.

    Returns:
        A function to call when the device has done all that, which gives image by image the counts, with the errors of
        `measure_ood`; and the scores, float32 (B, S, N) on the device, or None.

    Raises:
        GenValError: shapes do not fit, or an image is too large for 32-bit offsets.
    """
    if (len(logits), *logits.shape[2:]) != kinds.shape:
        raise GenValError(f"Logits {tuple(logits.shape)} and masks {tuple(kinds.shape)} do not fit.")
    images, classes = logits.shape[:2]
    flat, flat_kinds = logits.reshape(images, classes, -1).contiguous(), kinds.reshape(images, -1).contiguous()
    pixels, device = flat_kinds.shape[1], logits.device
    if max(classes, len(SCORES) + 1) * pixels >= 1 << 31:
        raise GenValError(f"Images of at most 2^31 logits can be scored, found {classes} classes of {pixels} pixels.")
    names = SCORES if standard is None else (*SCORES, STANDARDISED)
    programs = triton.cdiv(pixels, PIXELS)
    levels = torch.zeros((images, len(names), 2, LEVELS), dtype=torch.int32, device=device)
    parts = torch.zeros((images, programs, _NUMBERS), dtype=torch.float64, device=device)
    scores = torch.empty((images, len(names), pixels), device=device) if keep else None
    mean, deviation = (flat, flat) if standard is None else (moment.float().contiguous() for moment in standard)
    with torch.cuda.device_of(logits):  # where Triton launches
        if pixels:
            _count[(programs, images)](
                flat, flat_kinds, mean, deviation, flat if scores is None else scores, levels, parts, pixels, classes,
                *(number for name in names[:3] for number in scale(name)),
                LOWEST, LEVELS, len(names), standard is not None, keep, _NUMBERS, PIXELS,
            )  # fmt: skip
    on_host = [values.to("cpu", non_blocking=True) for values in (levels, parts.sum(1))]

    def read() -> Iterator[OodCounts]:
        for counts, numbers in zip(*(values.numpy() for values in on_host), strict=True):
            if not np.isfinite(numbers[-1]):
                raise LogitsNotFiniteError("Logits must be finite, found NaN or infinity.")
            if numbers[3]:
                raise GenValError("A mask holds 0, 1 and 255, found other values.")
            yield OodCounts(counts.astype(np.int64), numbers[4:6].copy(), numbers[:3].astype(np.int64))

    return read, scores


@triton.jit
def _add(levels, level, background, is_object, certain, LEVELS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Add pixels to a score's counts (2, LEVELS); those at the level `certain`, where they crowd, together."""
    crowd = background & (level == certain)
    tl.atomic_add(levels + certain, tl.sum(crowd.to(tl.int32)), sem="relaxed")
    cells = levels + level + tl.where(is_object, LEVELS, 0)
    tl.atomic_add(cells, 1, mask=(background & (level != certain)) | is_object, sem="relaxed")


@triton.jit
def _level(score, first, count, shift):  # type: ignore[no-untyped-def]
    """The level of a score that is not negative, as `genval.metrics.ood_scores.level_of`."""
    key = score.to(tl.int32, bitcast=True) >> shift
    return first + count - tl.minimum(tl.maximum(key, first), first + count)


@triton.jit
def _signed_level(score, first, count, shift):  # type: ignore[no-untyped-def]
    bits = score.to(tl.int32, bitcast=True)
    key = (((bits >> 31) & 0x7FFFFFFF) ^ bits) >> shift
    above = tl.minimum(tl.maximum(key, first), first + count)
    below = tl.minimum(tl.maximum(key, -first - count - 1), -first - 1)
    return count - 1 - above - below


@triton.jit
def _count(  # type: ignore[no-untyped-def]
    logits, kinds, mean, deviation, scores, levels, parts, pixels, classes,
    ENTROPY_FIRST: tl.constexpr, ENTROPY_COUNT: tl.constexpr, ENTROPY_SHIFT: tl.constexpr,
    ODDS_FIRST: tl.constexpr, ODDS_COUNT: tl.constexpr, ODDS_SHIFT: tl.constexpr,
    LOGIT_FIRST: tl.constexpr, LOGIT_COUNT: tl.constexpr, LOGIT_SHIFT: tl.constexpr,
    LOWEST: tl.constexpr, LEVELS: tl.constexpr, SCORES: tl.constexpr, STANDARDISED: tl.constexpr, KEEP: tl.constexpr,
    NUMBERS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """Score and count `PIXELS` pixels of an image: program (part, image).

    `logits` (B, C, N), `kinds` (B, N), `mean` and `deviation` (C,), `scores` (B, S, N), `levels` (B, S, 2, LEVELS),
    `parts` (B, programs, NUMBERS).
    """
    image = tl.program_id(1).to(tl.int64)
    here = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    inside = here < pixels
    kind = tl.load(kinds + image * pixels + here, mask=inside, other=255).to(tl.int32)
    background = inside & (kind == 0)
    is_object = inside & (kind == 1)
    void = inside & (kind == 255)
    logits += image * classes * pixels + here

    largest, predicted = largest_logit(logits, inside, pixels, classes)
    # NaN must stay NaN: comparisons choose it, where `tl.maximum` would not.
    totals = tl.zeros_like(largest)
    product = tl.zeros_like(largest)
    for index in range(classes):
        below = tl.load(logits + index * pixels, mask=inside, other=0.0).to(tl.float32) - largest
        below = tl.where(below < LOWEST, LOWEST, below)
        exponential = tl.exp(below)
        totals += exponential
        product += exponential * below
    # In float64: a GPU's fast logarithm has few good digits near 1.
    log_totals = tl.log(totals.to(tl.float64)).to(tl.float32)
    entropy = log_totals - tl.div_rn(product, totals)
    entropy = tl.where(entropy < 0, 0.0, entropy)
    one = tl.full([PIXELS], 1.0, tl.float32)
    confidence = tl.div_rn(one, totals)
    energy = -(largest + log_totals)

    levels += image * SCORES * 2 * LEVELS
    level = _level(entropy, ENTROPY_FIRST, ENTROPY_COUNT, ENTROPY_SHIFT)
    _add(levels, level, background, is_object, ENTROPY_COUNT, LEVELS)
    level = _level(tl.div_rn(one, confidence) - 1.0, ODDS_FIRST, ODDS_COUNT, ODDS_SHIFT)
    _add(levels + 2 * LEVELS, level, background, is_object, ODDS_COUNT, LEVELS)
    level = _signed_level(-largest, LOGIT_FIRST, LOGIT_COUNT, LOGIT_SHIFT)
    _add(levels + 4 * LEVELS, level, background, is_object, LOGIT_COUNT, LEVELS)
    level = _signed_level(energy, LOGIT_FIRST, LOGIT_COUNT, LOGIT_SHIFT)
    _add(levels + 6 * LEVELS, level, background, is_object, LOGIT_COUNT, LEVELS)
    scores += image * SCORES * pixels + here
    finite = totals + largest
    if STANDARDISED:
        away = tl.load(mean + predicted) - largest
        standardised = tl.div_rn(away, tl.load(deviation + predicted))
        finite += standardised
        level = _signed_level(standardised, LOGIT_FIRST, LOGIT_COUNT, LOGIT_SHIFT)
        _add(levels + 8 * LEVELS, level, background, is_object, LOGIT_COUNT, LEVELS)
        if KEEP:
            tl.store(scores + 4 * pixels, standardised, mask=inside)
    if KEEP:
        tl.store(scores, entropy, mask=inside)
        tl.store(scores + pixels, -confidence, mask=inside)
        tl.store(scores + 2 * pixels, -largest, mask=inside)
        tl.store(scores + 3 * pixels, energy, mask=inside)

    parts += (image * tl.num_programs(0) + tl.program_id(0)) * NUMBERS
    tl.store(parts, tl.sum(background.to(tl.float64)))
    tl.store(parts + 1, tl.sum(is_object.to(tl.float64)))
    tl.store(parts + 2, tl.sum(void.to(tl.float64)))
    tl.store(parts + 3, tl.sum((inside & ~(background | is_object | void)).to(tl.float64)))
    tl.store(parts + 4, tl.sum(tl.where(background, entropy, 0.0).to(tl.float64)))
    tl.store(parts + 5, tl.sum(tl.where(is_object, entropy, 0.0).to(tl.float64)))
    tl.store(parts + 6, tl.sum(tl.where(inside, finite, 0.0).to(tl.float64)))
