"""Pearson's r of scores that are measured on few images, corrected for the noise of the images, with an interval.

The models are a sample of a population. The score of a model on a set of images differs from its score on infinitely
many images by noise, which weakens r. Let s be the covariance matrix, across models, of the scores of two sides, and t
that of their noise, both about the mean over models. The correlation of the noise-free scores is

    (s_xy - t_xy) / sqrt((s_xx - t_xx) (s_yy - t_yy)).

The bootstrap over images gives t. Noise that all models share cancels, since t is about the mean over models. Two sides
whose images are drawn together have correlated noise, t_xy.

Intervals are quantiles of generalised pivots: draws of the population's covariance matrix given s, less draws of t
given its degrees of freedom. Without noise, the interval of r is exact for normal scores of any number of models. A
draw in which the noise explains all of the variance of a side is counted as -1 at the lower end and as 1 at the upper
end.

Sources: Spearman, "The proof and measurement of association between two things" (American Journal of Psychology 1904)
for the correction; Krishnamoorthy and Xia, "Inferences on correlation coefficients: one-sample, independent and
correlated cases" (Journal of Statistical Planning and Inference 2007) for the pivots; Satterthwaite, "An approximate
distribution of estimates of variance components" (Biometrics 1946) for the degrees of freedom.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PIVOT_DRAWS = 4000
# The pivots are quantiles of known distributions, computed by simulation. Their seed is no choice of the user.
_PIVOT_SEED = 0
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Scores:
    """One metric of several models on a set, in percent."""

    value: np.ndarray  # float64 (M,); NaN for models without results
    drawn: np.ndarray | None  # float64 (D, M), the same on resampled images; None where images cannot be resampled
    units: int | None = None  # images, or groups of images, that were resampled; None where they are many

    def select(self, models: np.ndarray) -> Scores:
        """Return the scores of the models at these indices."""
        return Scores(self.value[models], None if self.drawn is None else self.drawn[:, models], self.units)


@dataclass(frozen=True)
class Corrected:
    """A correlation, or a difference of two, of noise-free scores."""

    value: float  # NaN where noise explains all of the variance of a side
    low: float
    high: float
    share_above: float  # share of the draws above 0; one that is not defined counts half


def corrected_correlation(x: Scores, y: Scores, coverage: float = 0.95) -> Corrected:
    """Return Pearson's r of the noise-free scores of two sides.

    Args:
        x: scores of M > 2 models, without NaN.
        y: the same of the other side.
        coverage: of the interval.

    >>> a = np.array([1.0, 2.0, 3.0, 5.0, 4.0, 6.0, 8.0, 7.0])
    >>> found = corrected_correlation(Scores(a, None), Scores(a[::-1] ** 2, None))
    >>> round(found.value, 2), found.low < found.value < found.high
    (-0.93, True)
    """
    sides = _Sides.measure([x, y])
    value, low, high = sides.correlation(0, 1)
    return _summary(value, low, high, coverage)


def corrected_difference(first: Scores, second: Scores, y: Scores, coverage: float = 0.95) -> Corrected:
    """Return the correlation of `first` with `y` less that of `second` with `y`, of noise-free scores.

    The pivots of three sides depend on the order of the sides. Half of the draws are of either order of the two
    predictors, so that the interval has the same level on both sides. Arguments are those of `corrected_correlation`.
    """
    sides = _Sides.measure([first, second, y])
    value, low, high = _minus(sides.correlation(0, 2), sides.correlation(1, 2))
    swapped = _Sides.measure([second, first, y])
    _, other_low, other_high = _minus(swapped.correlation(1, 2), swapped.correlation(0, 2))
    return _summary(value, np.concatenate([low, other_low]), np.concatenate([high, other_high]), coverage)


_Drawn = tuple[float, np.ndarray, np.ndarray]
"""A correlation, and its draws (PIVOT_DRAWS,): for the lower end and for the upper end of the interval."""


@dataclass(frozen=True)
class _Sides:
    """Covariance matrices of the noise-free scores of S sides: the estimate (S, S), and draws (S, S, PIVOT_DRAWS)."""

    covariance: np.ndarray
    drawn: np.ndarray

    @classmethod
    def measure(cls, sides: Sequence[Scores]) -> _Sides:
        deviations = [_deviations(side) for side in sides]
        noise = _noise_covariance(deviations)
        pairs = enumerate(zip(sides, deviations, strict=True))
        factor = np.stack([_draw_noise_factor(side, of_side, stream) for stream, (side, of_side) in pairs])
        values = np.stack([side.value for side in sides])
        drawn = _draw_covariances(values) - noise[:, :, None] * factor[:, None] * factor[None]
        return cls(np.cov(values) - noise, drawn)

    def correlation(self, a: int, b: int) -> _Drawn:
        """The correlation of two sides; a draw that is not defined is -1 at the lower end and 1 at the upper end."""
        value = _correlation(self.covariance, a, b)
        drawn = _correlation(self.drawn, a, b)
        undefined = np.isnan(drawn)
        return float(value), np.where(undefined, -1.0, drawn), np.where(undefined, 1.0, drawn)


def _minus(a: _Drawn, b: _Drawn) -> _Drawn:
    return a[0] - b[0], a[1] - b[2], a[2] - b[1]


def _correlation(covariance: np.ndarray, a: int, b: int) -> np.ndarray:
    """The correlation of two sides in covariance matrices (S, S, ...), NaN where a variance is not positive."""
    defined = (covariance[a, a] > 0) & (covariance[b, b] > 0)
    product = np.where(defined, covariance[a, a] * covariance[b, b], np.nan)
    return np.asarray((covariance[a, b] / np.sqrt(product)).clip(-1.0, 1.0))


def _summary(value: float, low: np.ndarray, high: np.ndarray, coverage: float) -> Corrected:
    tail = (1 - coverage) / 2
    # Two equal predictors differ by rounding errors in some draws.
    above = (np.mean(low > _ROUNDING) + np.mean(high > _ROUNDING)) / 2
    ends = np.array([np.quantile(low, tail), np.quantile(high, 1 - tail)])
    start, end = np.where(abs(ends) < _ROUNDING, 0.0, ends).tolist()
    return Corrected(value, start, end, float(above))


def _deviations(side: Scores) -> np.ndarray | None:
    """Each draw's noise about the mean over models, float64 (D, M), NaN in draws that are not defined; None where it is
    not known."""
    if side.drawn is None:
        return None
    defined = ~np.isnan(side.drawn).any(1, keepdims=True)
    deviations = np.where(defined, side.drawn - side.drawn.mean(0, where=defined), np.nan)
    # The bootstrap's variance is too small by (n - 1) / n.
    factor = 1.0 if side.units is None else math.sqrt(side.units / (side.units - 1))
    return np.asarray(factor * (deviations - deviations.mean(1, keepdims=True)))


def _noise_covariance(deviations: Sequence[np.ndarray | None]) -> np.ndarray:
    """The covariance matrix of the noise across models, float64 (S, S): the mean over draws, 0 where not known."""
    noise = np.zeros((len(deviations), len(deviations)))
    for i, a in enumerate(deviations):
        for j, b in enumerate(deviations[: i + 1]):
            if a is not None and b is not None:
                products = (a * b).sum(1)
                noise[i, j] = np.nansum(products) / (np.isfinite(products).sum() - 1) / (a.shape[1] - 1)
                noise[j, i] = noise[i, j]
    return noise


def _noise_freedom(deviations: np.ndarray, units: int) -> float:
    """The degrees of freedom of the estimated variance of a side's noise.

    With n images the noise of each independent direction across models has n - 1. The number of directions follows from
    how much the variance differs between draws, which gives tr(G^2) / tr(G)^2 of the noise's covariance matrix G across
    models. The estimate from n images is too large and is corrected as for the covariance matrix of n normal vectors.
    """
    each = units - 1
    squares = (deviations**2).sum(1)
    squares = squares[np.isfinite(squares)]
    if each < 2 or squares.var() == 0:
        return float(each)
    ratio = (squares.var() / (2 * squares.mean() ** 2) - 1 / each) * each**2 / ((each - 1) * (each + 2))
    return float(each / np.clip(ratio, 1 / (deviations.shape[1] - 1), 1.0))


def _draw_noise_factor(side: Scores, deviations: np.ndarray | None, stream: int) -> np.ndarray:
    """Draws of the noise's standard deviation divided by its estimate, float64 (PIVOT_DRAWS,).

    Source: Wilson and Hilferty, "The distribution of chi-square" (1931), for quantiles of chi-square from normal ones.
    """
    if deviations is None or side.units is None:
        return np.ones(PIVOT_DRAWS)
    part = 2 / (9 * _noise_freedom(deviations, side.units))
    chi_square = (1 - part + math.sqrt(part) * _normal_draws(stream)).clip(0.1) ** 3
    return np.asarray(1 / np.sqrt(chi_square))


def _draw_covariances(values: np.ndarray) -> np.ndarray:
    """Draws of the population's covariance matrix given scores (S, M), float64 (S, S, PIVOT_DRAWS)."""
    sides, models = values.shape
    # Unlike a Cholesky decomposition of the covariance matrix, this is defined for two equal sides too.
    upper = np.asarray(np.linalg.qr((values - values.mean(1, keepdims=True)).T, mode="r"))
    lower = (upper * np.where(np.diag(upper) < 0, -1, 1)[:, None]).T
    roots = (lower @ _inverse_pivots(models - 1, sides).reshape(sides, -1)).reshape(sides, sides, -1)
    return np.einsum("ikd,jkd->ijd", roots, roots)


@functools.lru_cache(16)
def _inverse_pivots(freedom: int, sides: int) -> np.ndarray:
    """Inverses of the Cholesky factors of standard Wishart matrices, float64 (sides, sides, PIVOT_DRAWS).

    Source: the decomposition of Bartlett, "On the theory of statistical regression" (1933).
    """
    generator = np.random.default_rng(_PIVOT_SEED)
    factors = np.zeros((PIVOT_DRAWS, sides, sides))
    for row in range(sides):
        factors[:, row, row] = np.sqrt(generator.chisquare(freedom - row, PIVOT_DRAWS))
        factors[:, row, :row] = generator.normal(size=(PIVOT_DRAWS, row))
    return np.ascontiguousarray(np.linalg.inv(factors).transpose(1, 2, 0))


@functools.lru_cache(16)
def _normal_draws(stream: int) -> np.ndarray:
    return np.random.default_rng([_PIVOT_SEED, stream]).normal(size=PIVOT_DRAWS)
