"""Intervals of pooled figures over the choice of images, from images that come one at a time.

Poisson bootstrap: in each draw an image counts as often as a Poisson number of mean 1 says, drawn from the image's own
seed. A draw is then a sum over images in any order and over any number of processes, and memory is that of the draws,
however many images there are. Source: Chamandy et al., "Estimating Uncertainty for Massive Data Streams" (Google
technical report, 2012), section 3; it approaches Efron's bootstrap as the number of images grows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from genval.metrics.ood_scores import FIGURES, LEVELS, figures_of
from genval.runtime.seeds import item_seed

# Levels that are one level in the draws: what that costs is far below an interval's width.
_POOLED = 32
COARSE = LEVELS // _POOLED
# Draws at a time, so that what a figure works on stays in a CPU's cache.
_DRAWS_AT_ONCE = 40
_NOWHERE = (math.nan, math.nan)


def coarse_levels(levels: np.ndarray) -> np.ndarray:
    """Counts (..., LEVELS) on levels 32 times as wide, (..., COARSE)."""
    return levels.reshape(*levels.shape[:-1], COARSE, _POOLED).sum(-1)


def poisson_weights(item_id: str, draws: int, seed: int) -> np.ndarray:
    """How often an image counts in each draw, int64 (draws,)."""
    return np.random.default_rng(item_seed(seed, item_id)).poisson(1.0, draws)


class PoissonBootstrap:
    """Draws of a set of images.

    Args:
        scores: number of scores.
        means: number of further figures of an image, of which the mean over images is of interest.
        draws: number of resampled sets.
        seed: of the drawing; the same images have the same draws, whatever the model.
    """

    def __init__(self, scores: int, means: int, draws: int = 1000, seed: int = 0) -> None:
        self.scores, self.draws, self.seed = scores, draws, seed
        self.images = 0
        self._levels = np.zeros((draws, scores * 2 * COARSE))
        self._sums = np.zeros((draws, means))
        self._counts = np.zeros((draws, means))

    def add(self, ids: Sequence[str], levels: np.ndarray, values: np.ndarray) -> None:
        """Add images.

        Args:
            ids: of each.
            levels: counts (N, S, 2, COARSE), the highest score first.
            values: further figures (N, means); NaN where an image has none.
        """
        weights = np.stack([poisson_weights(item_id, self.draws, self.seed) for item_id in ids], 1).astype(np.float64)
        # Whole numbers below 2^53: the sums round nothing, in whatever order images come.
        self._levels += weights @ levels.reshape(len(ids), -1).astype(np.float64)
        self._sums += weights @ np.nan_to_num(values)
        self._counts += weights @ np.isfinite(values).astype(np.float64)
        self.images += len(ids)

    def drawn_levels(self) -> np.ndarray:
        """Counts of each draw, float64 (draws, S, 2, COARSE), the highest score first."""
        return self._levels.reshape(self.draws, self.scores, 2, COARSE)

    def intervals(self, coverage: float = 0.95) -> tuple[list[dict[str, tuple[float, float]]], np.ndarray]:
        """Percentile intervals.

        Returns:
            Of each score, the ends of `ood.FIGURES` of all pixels; of each further figure, the ends of its mean (means,
            2). NaN with fewer than two images, or where more than a tenth of the draws has no such figure.
        """
        if self.images < 2:
            nowhere = [dict.fromkeys(FIGURES, _NOWHERE) for _ in range(self.scores)]
            return nowhere, np.full((self._sums.shape[1], 2), math.nan)
        tail = 50 * (1 - coverage)
        levels = self._levels.reshape(self.draws, self.scores, 2, COARSE)
        ends = []
        for score in range(self.scores):
            of_score = (levels[start : start + _DRAWS_AT_ONCE, score] for start in range(0, self.draws, _DRAWS_AT_ONCE))
            pieces = [figures_of(drawn[:, 0], drawn[:, 1]) for drawn in of_score]
            ends.append({name: _ends(np.concatenate([piece[name] for piece in pieces]), tail) for name in FIGURES})
        means = np.divide(self._sums, self._counts, out=np.full(self._sums.shape, math.nan), where=self._counts > 0)
        return ends, np.array([_ends(column, tail) for column in means.T]).reshape(-1, 2)


class SumBootstrap:
    """Draws of sums over images, of which figures are made.

    Args:
        draws: number of resampled sets.
        seed: of the drawing.
    """

    def __init__(self, draws: int = 1000, seed: int = 0) -> None:
        self.draws, self.seed, self.images = draws, seed, 0
        self.total: np.ndarray = np.zeros(1)
        self._drawn: np.ndarray = np.zeros(1)

    def add(self, item_id: str, sums: np.ndarray) -> None:
        """Add an image's sums, float64 (K,)."""
        self.total = self.total + sums
        self._drawn = self._drawn + np.outer(poisson_weights(item_id, self.draws, self.seed), sums)
        self.images += 1

    def intervals(
        self, figures: Callable[[np.ndarray], dict[str, np.ndarray]], coverage: float = 0.95
    ) -> dict[str, tuple[float, float]]:
        """The ends of the interval of each figure that `figures` makes of sums (draws, K)."""
        tail = 50 * (1 - coverage)
        drawn = figures(self._drawn)
        return {name: _ends(values, tail) if self.images > 1 else _NOWHERE for name, values in drawn.items()}


def _ends(values: np.ndarray, tail: float) -> tuple[float, float]:
    defined = values[~np.isnan(values)]
    if len(defined) < 0.9 * len(values):
        return _NOWHERE
    low, high = np.percentile(defined, [tail, 100 - tail])
    return float(low), float(high)
