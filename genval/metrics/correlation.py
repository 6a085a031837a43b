"""Correlations: how well one set of scores predicts another."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from genval.metrics.division import safe_divide
from genval.runtime.errors import GenValError


def pearson_r(x: Sequence[float], y: Sequence[float]) -> float:
    """Return Pearson's correlation of paired values.

    Returns:
        A number in -1..1; NaN with fewer than two pairs or where one side does not vary.

    Raises:
        GenValError: the lengths differ or a value is not finite.

    >>> round(pearson_r([1, 2, 3], [2, 4, 7]), 4)
    0.9934
    """
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise GenValError(f"A correlation needs two lists of one length, found {a.shape} and {b.shape}.")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise GenValError("A correlation needs finite values, found NaN or infinity.")
    # Rounding may move the mean of a constant list away from its value. Compare the values themselves.
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    a, b = a - a.mean(), b - b.mean()
    return float(np.clip(a @ b / math.sqrt((a @ a) * (b @ b)), -1.0, 1.0))


def pearson_interval(r: float, pairs: int, z: float = 1.959964) -> tuple[float, float]:
    """Return a confidence interval of a correlation by Fisher's transformation, 95 % by default.

    Returns:
        Lower and upper end; (NaN, NaN) with fewer than four pairs, where the interval is not defined.

    >>> tuple(round(end, 3) for end in pearson_interval(0.9, 12))
    (0.674, 0.972)
    """
    if pairs < 4 or math.isnan(r):
        return math.nan, math.nan
    if abs(r) == 1.0:
        return r, r
    centre, half = math.atanh(r), z / math.sqrt(pairs - 3)
    return math.tanh(centre - half), math.tanh(centre + half)


def agreement(predicted: Sequence[float], reference: Sequence[float]) -> dict[str, float | int | None]:
    """Compare predicted scores with reference scores; pairs with a NaN are skipped.

    Returns:
        `pairs`, the number of pairs compared; `pearson_r`; `low` and `high`, its 95 % interval; `mean_difference`,
        predicted minus reference, in the unit of the scores. None where a value is not defined.

    >>> agreement([10.0, 20.0, math.nan], [12.0, 24.0, 30.0])["mean_difference"]
    -3.0
    """
    kept = [(x, y) for x, y in zip(predicted, reference, strict=True) if not (math.isnan(x) or math.isnan(y))]
    # The correlation of two pairs is always 1 or -1.
    r = pearson_r([x for x, _ in kept], [y for _, y in kept]) if len(kept) > 2 else math.nan
    low, high = pearson_interval(r, len(kept))
    difference = sum(x - y for x, y in kept) / len(kept) if kept else math.nan
    values = {"pearson_r": r, "low": low, "high": high, "mean_difference": difference}
    return {"pairs": len(kept)} | {key: None if math.isnan(value) else value for key, value in values.items()}


def pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return Pearson's correlation along the last axis, for many lists.

    Args:
        x: float (..., N); NaN makes that list's result NaN.
        y: the same, of a shape that broadcasts with it.

    Returns:
        float64 (...) in -1..1; NaN with fewer than two pairs or where one side does not vary.

    >>> pearson(np.array([[1, 2, 3], [3, 2, 1]]), np.array([2, 4, 7])).round(4).tolist()
    [0.9934, -0.9934]
    """
    x, y = np.broadcast_arrays(np.asarray(x, np.float64), np.asarray(y, np.float64))
    if x.shape[-1] < 2:
        return np.full(x.shape[:-1], np.nan)
    varies = (np.ptp(x, -1) > 0) & (np.ptp(y, -1) > 0)
    a, b = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    return _bounded_ratio((a * b).sum(-1), np.sqrt((a * a).sum(-1) * (b * b).sum(-1)), varies)


def spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return Spearman's rank correlation along the last axis: Pearson's correlation of ranks, averaged over ties.

    Arguments and result are those of `pearson`.

    >>> float(spearman(np.array([1, 2, 3]), np.array([1, 4, 900])))
    1.0
    """
    from scipy.stats import rankdata

    x, y = np.broadcast_arrays(np.asarray(x, np.float64), np.asarray(y, np.float64))
    return pearson(*(np.where(np.isnan(v), np.nan, rankdata(v, axis=-1)) for v in (x, y)))


def kendall(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return Kendall's tau-b along the last axis: concordant minus discordant pairs, corrected for ties.

    Source: Kendall, "The treatment of ties in ranking problems" (Biometrika 1945). Arguments and result are those of
    `pearson`. Time and memory grow with N squared.

    >>> round(float(kendall(np.array([1, 2, 3, 4]), np.array([1, 2, 4, 3]))), 4)
    0.6667
    """
    x, y = np.broadcast_arrays(np.asarray(x, np.float64), np.asarray(y, np.float64))
    a, b = _orders(x), _orders(y)
    # Every pair is counted twice, which cancels in the ratio. int8 products and sums are the fastest.
    untied = np.sqrt(np.square(a).sum((-2, -1), np.int64) * np.square(b).sum((-2, -1), np.int64).astype(np.float64))
    defined = (untied > 0) & ~np.isnan(x).any(-1) & ~np.isnan(y).any(-1)
    return _bounded_ratio((a * b).sum((-2, -1), np.int64), untied, defined)


def _orders(x: np.ndarray) -> np.ndarray:
    """Return the order, 1, 0 or -1, of each pair of (..., N): int8 (..., N, N)."""
    above: np.ndarray = x[..., :, None] > x[..., None, :]
    return above.view(np.int8) - above.swapaxes(-2, -1).view(np.int8)


def _bounded_ratio(numerator: np.ndarray, denominator: np.ndarray, defined: np.ndarray) -> np.ndarray:
    """Return the ratio, clipped to -1..1; NaN where it is not defined."""
    return np.where(defined, safe_divide(numerator, denominator).clip(-1.0, 1.0), np.nan)
