"""Bootstrap intervals of pooled OOD metrics over the choice of images, updated image by image.

Poisson bootstrap: in each draw an image counts as often as a Poisson number of mean 1, drawn from the image's own seed.
A draw is then a sum over images, in any order and over any number of processes, and memory does not grow with the
number of images. Source: Chamandy et al., "Estimating Uncertainty for Massive Data Streams" (Google technical report,
2012), section 3. It approaches Efron's bootstrap as the number of images grows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from genval.kernels.layout import SCORE_LEVELS
from genval.metrics.bootstrap import (
    DRAWS_PER_BATCH,
    LEVELS_PER_COARSE_LEVEL,
    UNDEFINED,
    filled_levels,
    percentile_interval,
)
from genval.metrics.division import safe_divide
from genval.metrics.ood_scores import OOD_METRICS, ood_metrics
from genval.runtime.seeds import item_seed

COARSE = SCORE_LEVELS // LEVELS_PER_COARSE_LEVEL
IMAGES_AT_A_TIME = 256
"""Images whose counts are added to the draws at a time."""


def coarse_levels(levels: np.ndarray) -> np.ndarray:
    """Add up counts (..., SCORE_LEVELS) on coarse levels, (..., COARSE)."""
    return levels.reshape(*levels.shape[:-1], COARSE, LEVELS_PER_COARSE_LEVEL).sum(-1)


def poisson_weights(item_id: str, draws: int, seed: int) -> np.ndarray:
    """Return how often an image counts in each draw, int64 (draws,)."""
    return np.random.default_rng(item_seed(seed, item_id)).poisson(1.0, draws)


class PoissonBootstrap:
    """Draws of the counts of a set of images, and of the means of per-image values.

    Args:
        scores: number of scores.
        means: number of per-image values whose mean over images is computed.
        draws: number of resampled sets.
        seed: of the draws; the same images have the same draws, whatever the model.
    """

    def __init__(self, scores: int, means: int, draws: int = 1000, seed: int = 0) -> None:
        self.scores, self.draws, self.seed = scores, draws, seed
        self.images = 0
        self._levels: np.ndarray | None = None  # (draws, S, 2, COARSE)
        # Weights and levels of images that are not in `_levels` yet: adding many at a time passes over its memory once.
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []
        self._sums = np.zeros((draws, means))
        self._counts = np.zeros((draws, means))

    def update(self, ids: Sequence[str], levels: np.ndarray, values: np.ndarray) -> None:
        """Add images.

        Args:
            ids: of the N images.
            levels: counts (N, S, 2, COARSE), the highest score first.
            values: per-image values (N, means); NaN where an image has none.
        """
        weights = np.stack([poisson_weights(item_id, self.draws, self.seed) for item_id in ids], 1).astype(np.float64)
        self._waiting.append((weights, levels))
        if sum(weights.shape[1] for weights, _ in self._waiting) >= IMAGES_AT_A_TIME:
            added = self._draw_waiting(slice(None))
            self._levels = added if self._levels is None else np.add(self._levels, added, out=self._levels)
            self._waiting.clear()
        self._sums += weights @ np.nan_to_num(values)
        self._counts += weights @ np.isfinite(values).astype(np.float64)
        self.images += len(ids)

    def _draw_waiting(self, score: int | slice, filled: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Draw the counts of the images that wait, of a score and of some levels."""
        weights = np.concatenate([weights for weights, _ in self._waiting], 1)
        levels = np.concatenate([levels[:, score][..., filled] for _, levels in self._waiting]).astype(np.float64)
        # Whole numbers below 2^53: the sums do not round, whatever the order of the images.
        return (weights @ levels.reshape(len(levels), -1)).reshape(self.draws, *levels.shape[1:])

    def drawn_metrics(self, score: int) -> dict[str, np.ndarray]:
        """Compute `OOD_METRICS` of all pixels of each draw, float64 (draws,), for the score of this index.

        Raises:
            ValueError: there are no images.
        """
        counts = [levels[:, score] for _, levels in self._waiting]
        counts += [] if self._levels is None else [self._levels[:, score]]
        filled = filled_levels(np.stack([part.any((0, 1)) for part in counts]))  # the others change no metric
        levels = None if self._levels is None else self._levels[:, score][..., filled]
        if self._waiting:
            waiting = self._draw_waiting(score, filled)
            levels = waiting if levels is None else levels + waiting
        levels = np.ascontiguousarray(levels)  # the rounding of sums depends on the layout
        batches = (levels[start : start + DRAWS_PER_BATCH] for start in range(0, self.draws, DRAWS_PER_BATCH))
        metrics = [ood_metrics(batch[:, 0], batch[:, 1]) for batch in batches]
        return {name: np.concatenate([values[name] for values in metrics]) for name in OOD_METRICS}

    def intervals(self, coverage: float = 0.95) -> tuple[list[dict[str, tuple[float, float]]], np.ndarray]:
        """Compute percentile intervals.

        Returns:
            For each score, the ends of each of `OOD_METRICS` of all pixels; for each per-image value, the ends of its
            mean (means, 2). NaN with fewer than two images, or if the metric is not defined in more than a tenth of the
            draws.
        """
        if self.images < 2:
            undefined = [dict.fromkeys(OOD_METRICS, UNDEFINED) for _ in range(self.scores)]
            return undefined, np.full((self._sums.shape[1], 2), np.nan)
        ends = [
            {name: percentile_interval(values, coverage) for name, values in self.drawn_metrics(score).items()}
            for score in range(self.scores)
        ]
        means = safe_divide(self._sums, self._counts)
        return ends, np.array([percentile_interval(column, coverage) for column in means.T]).reshape(-1, 2)


class SumBootstrap:
    """Draws of sums over images, from which metrics are computed.

    Args:
        draws: number of resampled sets.
        seed: of the draws.
    """

    def __init__(self, draws: int = 1000, seed: int = 0) -> None:
        self.draws, self.seed, self.images = draws, seed, 0
        self.total: np.ndarray = np.zeros(1)
        self._drawn: np.ndarray = np.zeros(1)

    def update(self, item_id: str, sums: np.ndarray) -> None:
        """Add the sums of an image, float64 (K,)."""
        self.total = self.total + sums
        self._drawn = self._drawn + np.outer(poisson_weights(item_id, self.draws, self.seed), sums)
        self.images += 1

    def intervals(
        self, metrics: Callable[[np.ndarray], dict[str, np.ndarray]], coverage: float = 0.95
    ) -> dict[str, tuple[float, float]]:
        """Compute the ends of the interval of each metric that `metrics` computes from sums (draws, K)."""
        drawn = metrics(self._drawn)
        return {
            name: percentile_interval(values, coverage) if self.images > 1 else UNDEFINED
            for name, values in drawn.items()
        }
