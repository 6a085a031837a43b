"""Parts of every bootstrap over images: the weights of images in each draw, and percentile intervals.

Source: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13.
"""

from __future__ import annotations

import math

import numpy as np

LEVELS_PER_COARSE_LEVEL = 32
"""Draws count pixels on levels this many times as wide: the error is far below the width of an interval."""
DRAWS_PER_BATCH = 20
"""Draws at a time: their counts (up to 300 KB) fit a CPU's cache, and are small enough that the C library keeps their
memory for the next draws."""
UNDEFINED = (math.nan, math.nan)
"""The interval of a metric that is not defined."""


def draw_weights(items: int, draws: int, seed: int) -> np.ndarray:
    """Return how often each item occurs in each draw with replacement, (draws, items); rows sum to `items`.

    The dtype is the smallest unsigned one that holds `items`: the array has a row of all items for each draw.
    """
    generator, weights = np.random.default_rng(seed), np.empty((draws, items), np.min_scalar_type(items))
    for start in range(0, draws, DRAWS_PER_BATCH):
        batch = weights[start : start + DRAWS_PER_BATCH]
        batch[:] = generator.multinomial(items, np.full(items, 1 / items), len(batch))
    return weights


def filled_levels(counts: np.ndarray) -> np.ndarray:
    """Return the indices of the levels with a count above 0, int64; that of the first level if there are none.

    Args:
        counts: at levels (..., L).

    >>> filled_levels(np.array([[[0, 2, 0, 1]], [[0, 0, 0, 3]]])).tolist()
    [1, 3]
    """
    filled = np.flatnonzero(counts.reshape(-1, counts.shape[-1]).any(0))
    return filled if len(filled) else np.zeros(1, np.int64)


def percentile_interval(values: np.ndarray, coverage: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of a metric's values in the draws.

    Args:
        values: floats (draws,); NaN where the metric is not defined.
        coverage: of the interval.

    Returns:
        Lower and upper end; NaN where the metric is not defined in more than a tenth of the draws.

    >>> percentile_interval(np.arange(101.0), coverage=0.5)
    (25.0, 75.0)
    """
    defined = values[~np.isnan(values)]
    if len(defined) == 0 or len(defined) < 0.9 * len(values):
        return UNDEFINED
    tail = 50 * (1 - coverage)
    low, high = np.percentile(defined, [tail, 100 - tail])
    return float(low), float(high)
