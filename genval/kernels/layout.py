"""The layout of the counts that kernels and metrics share: bins, levels, sums and scores.

A level is a range of float32 numbers that share the sign, the exponent and the first bits of the mantissa. Its index
follows from the bits of the number by a shift, which costs less than a logarithm.

Confidences p have 57,345 levels of their odds against, 1/p - 1. No confidence is further than 6.2e-5 from its level's
middle, and near 1, where most confidences are, levels are as fine as float32 itself.

Each anomaly score has 65,536 levels. They resolve scores of any scale to one part in 2,048 (entropy: 1,024), and much
finer where confidences are near 1.
"""

from __future__ import annotations

BINS = 15
"""Bins of equal width of a probability, as in the published evaluation."""
MAX_CLASSES = 32

CONFIDENCE_MANTISSA_BITS = 11
# float32 softmax gives odds of 0, or of at least 2^-23; they are below 2^5 for up to 32 classes.
_SMALLEST_ODDS, _LARGEST_ODDS = -23, 5
CONFIDENCE_LEVELS = ((_LARGEST_ODDS - _SMALLEST_ODDS) << CONFIDENCE_MANTISSA_BITS) + 1
FIRST_CONFIDENCE_KEY = (127 + _SMALLEST_ODDS) << CONFIDENCE_MANTISSA_BITS
LOWEST_LOGIT = -40.0
"""Logits further below the pixel's largest logit count as this far below it, where confidences are counted."""
SUMS = ("nll", "brier", "entropy_right", "entropy_wrong", "squared_entropy")
"""Further sums over pixels; in nats where they are of a likelihood or an entropy."""

SCORES = ("entropy", "confidence", "logits", "energy")
"""The anomaly scores that need nothing but a pixel's logits, in the order in which they are counted."""
STANDARDISED = "standardised"
"""The anomaly score that needs the moments of a known set; it is counted last."""
BACKGROUND, OBJECT, VOID = 0, 1, 255
"""The values of an object mask."""
SCORE_LEVELS = 1 << 16
LOWEST_SCORE_LOGIT = -80.0
"""As `LOWEST_LOGIT`, where anomaly scores are counted; exp(-80) is still a normal float32 number."""
SIGNED_SCORES = ("logits", "energy", STANDARDISED)
# The lowest and the highest exponent that have levels of their own, and the bits of mantissa that separate levels.
# Smaller numbers count as 0, larger ones as the largest. Odds against of 19 classes are 0, or 2^-24 to 18. An entropy
# is at most log 19 and may be tiny. Logits may have any value.
_SCALES = {
    "entropy": (-58, 3, 10),
    "confidence": (-25, 5, 11),
    "logits": (-6, 9, 11),
    "energy": (-6, 9, 11),
    STANDARDISED: (-6, 9, 11),
}


def level_scale(name: str) -> tuple[int, int, int]:
    """Return the levels of an anomaly score on one side of 0.

    Returns:
        The key before the first level, the number of levels, and the number of mantissa bits that a key drops.
    """
    lowest, highest, mantissa_bits = _SCALES[name]
    return ((127 + lowest) << mantissa_bits) - 1, (highest - lowest) << mantissa_bits, 23 - mantissa_bits
