"""Score and count a whole batch on an NVIDIA GPU: the counts of `genval.metrics.ood_scores.OodCounts`.

As in `genval.kernels.statistics`, contiguous logits are read where they are, counts are added by atomic operations, and
sums are stored per program and added in a fixed order. Results equal those of `genval.metrics.ood_scores.measure_ood`
except for the last bits of the exponentials, which may move a pixel to the next level.
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
    LOG_SMALLEST_ODDS,
    LOWEST_LOGIT,
    SCORE_LEVELS,
    SCORES,
    SMALLEST_ODDS,
    STANDARDISED,
    level_edges,
)
from genval.kernels.statistics import flat_ranges, largest_logit, magnitude_level, replace_small_odds
from genval.runtime.devices import to_host
from genval.runtime.errors import GenValError

PIXELS = 1024  # per program
# Programs count in this number of copies of the counts, which are then added. Pixels near each other are often at one
# level of a score, and atomic additions to one number wait for each other.
_COPIES = 16
# A program's numbers: pixels of the background, of the object, void, of any other value; the sums of the entropies of
# background and object; 1 number that is finite if all logits and scores are.
_NUMBERS = 7


@dataclass(frozen=True)
class BatchCounts:
    """The counts of a batch of B images and S scores, on the host."""

    levels: np.ndarray  # int (B, S, 2, SCORE_LEVELS): background and object pixels by level, the highest score first
    entropy: np.ndarray  # float64 (B, 2): sum of the entropies of background and object, nats
    pixels: np.ndarray  # float64 (B, 3): background, object and void
    invalid_kinds: np.ndarray  # float64 (B,): pixels whose mask has another value
    finite: np.ndarray  # bool (B,): whether all logits and scores are finite


def launch(
    logits: Tensor, kinds: Tensor, standard: tuple[Tensor, Tensor] | None = None, keep: bool = False
) -> tuple[Callable[[], BatchCounts], Tensor | None]:
    """Start to score and count a batch of images, and to copy the counts to the host.

    Args:
        logits: floating point (B, C, ...), not soft-maxed; finite, except for minus infinity at classes ruled out.
        kinds: uint8 (B, ...), `BACKGROUND`, `OBJECT` or `VOID`, on the same device.
        standard: mean and standard deviation (C,) of the largest logit, for the score `standardised`.
        keep: return the scores as well.

    Returns:
        A function that waits for the counts and returns them; and the scores, float32 (B, S, N) on the device, or None.

    Raises:
        GenValError: an image is too large for 32-bit offsets.
    """
    images, classes = logits.shape[:2]
    flat, flat_kinds = logits.reshape(images, classes, -1).contiguous(), kinds.reshape(images, -1).contiguous()
    pixels, device = flat_kinds.shape[1], logits.device
    if max(classes, len(SCORES) + 1) * pixels >= 1 << 31:
        raise GenValError(
            f"Expected fewer than 2^31 logits or scores per image, found {classes} classes of {pixels} pixels. "
            "Use smaller images."
        )
    names = SCORES if standard is None else (*SCORES, STANDARDISED)
    programs = triton.cdiv(pixels, PIXELS)
    levels = torch.zeros((_COPIES, images, len(names), 2, SCORE_LEVELS), dtype=torch.int32, device=device)
    parts = torch.zeros((images, programs, _NUMBERS), dtype=torch.float64, device=device)
    scores = torch.empty((images, len(names), pixels), device=device) if keep else None
    mean, deviation = (flat, flat) if standard is None else (moment.float().contiguous() for moment in standard)
    with torch.cuda.device_of(logits):  # where Triton launches
        if pixels:
            _count[(programs, images)](
                flat, flat_kinds, mean, deviation, flat if scores is None else scores, levels, parts, pixels, classes,
                *(part for name in names[:3] for part in (flat_ranges(name), len(level_edges(name)) - 1)),
                LOWEST_LOGIT, SMALLEST_ODDS, LOG_SMALLEST_ODDS,
                SCORE_LEVELS, _COPIES, len(names), standard is not None, keep, _NUMBERS, PIXELS,
            )  # fmt: skip
    wait = to_host(levels.sum(0, dtype=torch.int32), parts.sum(1))

    def read() -> BatchCounts:
        counts, numbers = wait()
        return BatchCounts(
            levels=counts,
            entropy=numbers[:, 4:6],
            pixels=numbers[:, :3],
            invalid_kinds=numbers[:, 3],
            finite=np.isfinite(numbers[:, 6]),
        )

    return read, scores


@triton.jit
def _add(levels, level, background, is_object, certain, LEVELS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Add pixels to a score's counts (2, LEVELS).

    Many background pixels are at the level `certain`. They are added together, since single additions would wait for
    each other.
    """
    at_certain = background & (level == certain)
    tl.atomic_add(levels + certain, tl.sum(at_certain.to(tl.int32)), sem="relaxed")
    cells = levels + level + tl.where(is_object, LEVELS, 0)
    tl.atomic_add(cells, 1, mask=(background & (level != certain)) | is_object, sem="relaxed")


@triton.jit
def _level(score, RANGES: tl.constexpr, LAST: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the level of a score, of `LAST` + 1, as `genval.metrics.ood_scores.score_level` does."""
    level = magnitude_level(score, RANGES)
    sign = score.to(tl.int32, bitcast=True) >> 31  # -1 for negative numbers, else 0
    return LAST - ((level ^ sign) - sign)


@triton.jit
def _score(  # type: ignore[no-untyped-def]
    logits, inside, pixels, classes, LOWEST: tl.constexpr, SMALLEST: tl.constexpr, LOG_SMALLEST: tl.constexpr
):
    """Return per pixel: largest logit, predicted class, entropy, odds against and energy."""
    largest, predicted = largest_logit(logits, inside, pixels, classes)
    # NaN must stay NaN: comparisons keep it, `tl.maximum` would not.
    odds = tl.zeros_like(largest)
    product = tl.zeros_like(largest)
    for index in range(classes):
        below = tl.load(logits + index * pixels, mask=inside, other=0.0).to(tl.float32) - largest
        below = tl.where(below < LOWEST, LOWEST, below)
        exponential = tl.where(index == predicted, 0.0, tl.exp(below))
        odds += exponential
        product += exponential * below
    # In float64: a GPU's fast logarithm has few correct digits near 1. log(1 + x) is x for the smallest.
    wide = odds.to(tl.float64)
    log_totals = tl.where(wide < 1e-9, wide, tl.log(1.0 + wide)).to(tl.float32)
    entropy = log_totals - tl.div_rn(product, 1.0 + odds)
    entropy = tl.where(entropy < 0, 0.0, entropy)
    odds = replace_small_odds(odds, logits, largest, predicted, inside, pixels, classes, SMALLEST, LOG_SMALLEST)
    return largest, predicted, entropy, odds, -(largest + log_totals)


@triton.jit
def _store_numbers(parts, background, is_object, void, inside, entropy, finite):  # type: ignore[no-untyped-def]
    """Store a program's numbers, described at `_NUMBERS`."""
    tl.store(parts, tl.sum(background.to(tl.float64)))
    tl.store(parts + 1, tl.sum(is_object.to(tl.float64)))
    tl.store(parts + 2, tl.sum(void.to(tl.float64)))
    tl.store(parts + 3, tl.sum((inside & ~(background | is_object | void)).to(tl.float64)))
    tl.store(parts + 4, tl.sum(tl.where(background, entropy, 0.0).to(tl.float64)))
    tl.store(parts + 5, tl.sum(tl.where(is_object, entropy, 0.0).to(tl.float64)))
    tl.store(parts + 6, tl.sum(tl.where(inside, finite, 0.0).to(tl.float64)))


@triton.jit
def _count(  # type: ignore[no-untyped-def]
    logits, kinds, mean, deviation, scores, levels, parts, pixels, classes,
    ENTROPY_RANGES: tl.constexpr, ENTROPY_LAST: tl.constexpr,
    ODDS_RANGES: tl.constexpr, ODDS_LAST: tl.constexpr,
    LOGIT_RANGES: tl.constexpr, LOGIT_LAST: tl.constexpr,
    LOWEST: tl.constexpr, SMALLEST: tl.constexpr, LOG_SMALLEST: tl.constexpr, LEVELS: tl.constexpr,
    COPIES: tl.constexpr, SCORES: tl.constexpr, STANDARDISED: tl.constexpr, KEEP: tl.constexpr, NUMBERS: tl.constexpr,
    PIXELS: tl.constexpr,
):  # fmt: skip
    """Score and count `PIXELS` pixels of an image: program (part, image).

    `logits` (B, C, N), `kinds` (B, N), `mean` and `deviation` (C,), `scores` (B, S, N), `levels`
    (COPIES, B, S, 2, LEVELS), `parts` (B, programs, NUMBERS).
    """
    image = tl.program_id(1).to(tl.int64)
    here = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    inside = here < pixels
    kind = tl.load(kinds + image * pixels + here, mask=inside, other=255).to(tl.int32)
    background = inside & (kind == 0)
    is_object = inside & (kind == 1)
    void = inside & (kind == 255)
    logits += image * classes * pixels + here
    largest, predicted, entropy, odds, energy = _score(
        logits, inside, pixels, classes, LOWEST, SMALLEST, LOG_SMALLEST
    )  # fmt: skip

    copy = tl.program_id(0) % COPIES
    levels += (copy * tl.num_programs(1) + image) * SCORES * 2 * LEVELS
    level = _level(entropy, ENTROPY_RANGES, ENTROPY_LAST)
    _add(levels, level, background, is_object, ENTROPY_LAST, LEVELS)
    level = _level(odds, ODDS_RANGES, ODDS_LAST)
    _add(levels + 2 * LEVELS, level, background, is_object, ODDS_LAST, LEVELS)
    level = _level(-largest, LOGIT_RANGES, LOGIT_LAST)
    _add(levels + 4 * LEVELS, level, background, is_object, LOGIT_LAST, LEVELS)
    level = _level(energy, LOGIT_RANGES, LOGIT_LAST)
    _add(levels + 6 * LEVELS, level, background, is_object, LOGIT_LAST, LEVELS)
    scores += image * SCORES * pixels + here
    finite = odds + largest
    if STANDARDISED:
        distance = tl.load(mean + predicted) - largest
        standardised = tl.div_rn(distance, tl.load(deviation + predicted))
        finite += standardised
        level = _level(standardised, LOGIT_RANGES, LOGIT_LAST)
        _add(levels + 8 * LEVELS, level, background, is_object, LOGIT_LAST, LEVELS)
        if KEEP:
            tl.store(scores + 4 * pixels, standardised, mask=inside)
    if KEEP:
        tl.store(scores, entropy, mask=inside)
        tl.store(scores + pixels, odds, mask=inside)
        tl.store(scores + 2 * pixels, -largest, mask=inside)
        tl.store(scores + 3 * pixels, energy, mask=inside)
    parts += (image * tl.num_programs(0) + tl.program_id(0)) * NUMBERS
    _store_numbers(parts, background, is_object, void, inside, entropy, finite)
