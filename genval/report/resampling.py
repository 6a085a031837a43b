"""Bootstrap draws that all scores of a report share: differences are between scores of the same draws.

Source: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993): percentile intervals (chapter 13), and drawing
whole clusters where images are not independent (chapter 8).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from genval.metrics.bootstrap import draw_weights, percentile_interval

DRAWS = 1000


def draw_models(models: int, draws: int, seed: int) -> np.ndarray:
    """Indices of models drawn with replacement, int (draws, models)."""
    return np.random.default_rng(seed).integers(0, models, (draws, models))


def draw_images(sources: Mapping[str, Sequence[str]], draws: int, seed: int) -> dict[str, np.ndarray]:
    """Draw the sources of the images with replacement, and count how often each image of several sets is drawn.

    Images of one source (the same street in clear weather, corrupted, and generated from its mask twice) are
    drawn together, in all sets.

    Args:
        sources: of each image of each set, in the set's order.
        draws: how many.
        seed: of the drawing.

    Returns:
        float64 (draws, images) by set.
    """
    units = sorted({source for by_image in sources.values() for source in by_image})
    place = {source: index for index, source in enumerate(units)}
    weights = draw_weights(len(units), draws, seed)
    return {
        name: weights[:, [place[source] for source in by_image]].astype(np.float64)
        for name, by_image in sources.items()
    }


def interval(values: np.ndarray, coverage: float = 0.95) -> list[float] | None:
    """The percentile interval of drawn values, [low, high]; None where over a tenth of the draws is not defined.

    >>> interval(np.arange(101.0), coverage=0.5)
    [25.0, 75.0]
    """
    low, high = percentile_interval(values, coverage)
    return None if math.isnan(low) else [low, high]


def wilson_interval(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """An interval of a share, 95 % by default; unlike a bootstrap it has a width where all or none succeed.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference" (JASA 1927).

    >>> tuple(round(end, 3) for end in wilson_interval(9, 10))
    (0.596, 0.982)
    """
    if trials == 0:
        return math.nan, math.nan
    share, squared = successes / trials, z * z / trials
    centre = (share + squared / 2) / (1 + squared)
    half = z * math.sqrt(share * (1 - share) / trials + squared / (4 * trials)) / (1 + squared)
    return max(0.0, centre - half), min(1.0, centre + half)
