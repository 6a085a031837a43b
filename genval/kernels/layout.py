"""The layout of the counts that kernels and metrics share: bins, levels, sums and scores.

A level is a range of float32 numbers that share the sign, the exponent and the first bits of the mantissa. How many
bits depends on the exponent: most where values usually are, few where they are rare. The levels of logits reach the
smallest and the largest normal float32 number, so that no finite logit is beyond them.

Confidences p have 64,641 levels of their odds against, (1 - p) / p, which are the sum of the exponentials of the other
logits minus the largest one. No confidence is further than 6.2e-5 from its level's middle. Where a float32 confidence
is 1, the odds still differ. Odds below 2^-100 are replaced by numbers in the same order (`SMALLEST_ODDS`).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

BINS = 15
"""Bins of equal width of a probability, as in the published evaluation."""
MAX_CLASSES = 32

SMALLEST_ODDS = 2.0**-100
"""Odds below this, whose logarithm is x, count as SMALLEST_ODDS * sqrt(log(SMALLEST_ODDS) / x).

Their exponentials would underflow, and then many pixels would tie. The replacements have the order of the odds, and are
normal float32 numbers down to x = -3 * 10^17."""
LOG_SMALLEST_ODDS = math.log(SMALLEST_ODDS)
LOWEST_LOGIT = -83.0
"""Logits further below the pixel's largest logit count as this far below it.

Their probabilities are then still normal float32 numbers (denormal numbers would double the time of a pass), and too
small to change odds that are not replaced."""
SUMS = ("nll", "brier", "entropy_right", "entropy_wrong", "squared_entropy")
"""Further sums over pixels; in nats where they are of a likelihood or an entropy."""

SCORES = ("entropy", "confidence", "logits", "energy")
"""The anomaly scores that need nothing but a pixel's logits, in the order in which they are counted."""
STANDARDISED = "standardised"
"""The anomaly score that needs the moments of a known set; it is counted last."""
MORE_SCORES = ("rba", "mahalanobis", "knn", "odin")
"""The anomaly scores that need the features or gradients of a network, or are not of its softmax."""
BACKGROUND, OBJECT, VOID = 0, 1, 255
"""The values of an object mask."""
SCORE_LEVELS = 1 << 16
SIGNED_SCORES = ("logits", "energy", STANDARDISED, *MORE_SCORES)
# Ranges of exponents, from the first up to but not including the second, and the bits of mantissa that separate levels.
# Smaller numbers count as 0, larger ones as the largest. All exponents of normal float32 numbers are -126 to 127.
_SIGNED_RANGES = ((-126, -6, 4), (-6, 0, 9), (0, 9, 11), (9, 14, 10), (14, 128, 5))
_RANGES = {
    # Entropies below 2^-105 are not exact, since distant logits count as `LOWEST_LOGIT`.
    "entropy": ((-105, -24, 6), (-24, 3, 11)),
    "confidence": ((-126, -102, 4), (-102, -100, 10), (-100, -40, 5), (-40, -23, 7), (-23, 5, 11), (5, 8, 8)),
    **dict.fromkeys(SIGNED_SCORES, _SIGNED_RANGES),
}
KEY_SHIFT = 23 - max(bits for ranges in _RANGES.values() for *_, bits in ranges)
"""Float32 numbers that differ in this many of their last bits only are at the same level of every score."""


def level_ranges(name: str) -> tuple[tuple[int, int, int], ...]:
    """Return the levels of a score on one side of 0, as ranges of the bits of float32 numbers.

    Level n of a number is the sum over the ranges of `(clamp(bits, first, last) - first) >> shift`.

    Returns:
        For each range: first, last and shift.
    """
    ranges = [((127 + low) << 23, ((127 + high) << 23) - 1, 23 - bits) for low, high, bits in _RANGES[name]]
    # Level 0 is below the first range: the range begins a level earlier, and a range ends where the next begins.
    (first, last, shift), *further = ranges
    joined = [(first - (1 << shift), last, shift), *further]
    ends = [following[0] for following in joined[1:]] + [joined[-1][1]]
    return tuple((low, end, step) for (low, _, step), end in zip(joined, ends, strict=True))


@lru_cache
def level_edges(name: str) -> np.ndarray:
    """Return the smallest number of each level on the positive side of 0, float32, ascending from 0."""
    (first, last, shift), *further = level_ranges(name)
    starts = [
        np.arange(first + (1 << shift), last, 1 << shift),
        *(np.arange(a, b, 1 << step) for a, b, step in further),
    ]
    return np.concatenate([[0], *starts]).astype(np.int32).view(np.float32)


CONFIDENCE_LEVELS = 1 + sum((high - low) << bits for low, high, bits in _RANGES["confidence"])
