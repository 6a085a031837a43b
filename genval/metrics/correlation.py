"""How well one set of scores predicts another."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from genval.runtime.errors import GenValError


def pearson_r(x: Sequence[float], y: Sequence[float]) -> float:
    """Pearson's correlation of paired values.

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
    # A constant list has a mean that rounding moves off its value: compare the values themselves.
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    a, b = a - a.mean(), b - b.mean()
    return float(np.clip(a @ b / math.sqrt((a @ a) * (b @ b)), -1.0, 1.0))


def pearson_interval(r: float, pairs: int, z: float = 1.959964) -> tuple[float, float]:
    """A confidence interval of a correlation by Fisher's transformation, 95 % by default.

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


def agreement(predicted: Sequence[float], true: Sequence[float]) -> dict[str, float | int | None]:
    """How well `predicted` stands for `true`; pairs with a NaN are left out. None stands for what is not defined.

    Returns:
        `pairs`, the number compared; `pearson_r`; `low` and `high`, its 95 % interval; `mean_difference`, predicted
        minus true, in their own unit.

    >>> agreement([10.0, 20.0, math.nan], [12.0, 24.0, 30.0])["mean_difference"]
    -3.0
    """
    kept = [(x, y) for x, y in zip(predicted, true, strict=True) if not (math.isnan(x) or math.isnan(y))]
    r = pearson_r([x for x, _ in kept], [y for _, y in kept])
    low, high = pearson_interval(r, len(kept))
    difference = sum(x - y for x, y in kept) / len(kept) if kept else math.nan
    values = {"pearson_r": r, "low": low, "high": high, "mean_difference": difference}
    return {"pairs": len(kept)} | {key: None if math.isnan(value) else value for key, value in values.items()}


def pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson's correlation along the last axis, of many lists at once.

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
    return _ratio((a * b).sum(-1), np.sqrt((a * a).sum(-1) * (b * b).sum(-1)), varies)


def spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation along the last axis: Pearson's of the ranks, ties sharing their average rank.

    Arguments and result are those of `pearson`.

    >>> float(spearman(np.array([1, 2, 3]), np.array([1, 4, 900])))
    1.0
    """
    from scipy.stats import rankdata

    x, y = np.broadcast_arrays(np.asarray(x, np.float64), np.asarray(y, np.float64))
    return pearson(*(np.where(np.isnan(v), np.nan, rankdata(v, axis=-1)) for v in (x, y)))


def kendall(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Kendall's tau-b along the last axis: pairs in one order less pairs in opposite order, ties accounted for.

    Source: Kendall, "The treatment of ties in ranking problems" (Biometrika 1945). Arguments and result are those of
    `pearson`; time and memory grow with N squared.

    >>> round(float(kendall(np.array([1, 2, 3, 4]), np.array([1, 2, 4, 3]))), 4)
    0.6667
    """
    x, y = np.broadcast_arrays(np.asarray(x, np.float64), np.asarray(y, np.float64))
    a, b = _orders(x), _orders(y)
    # Every pair is there twice, which the ratio does not notice. int8 products and sums are the fastest there are.
    untied = np.sqrt(np.square(a).sum((-2, -1), np.int64) * np.square(b).sum((-2, -1), np.int64).astype(np.float64))
    defined = (untied > 0) & ~np.isnan(x).any(-1) & ~np.isnan(y).any(-1)
    return _ratio((a * b).sum((-2, -1), np.int64), untied, defined)


def _orders(x: np.ndarray) -> np.ndarray:
    """1, 0 or -1 for each pair of (..., N): int8 (..., N, N)."""
    above: np.ndarray = x[..., :, None] > x[..., None, :]
    return above.view(np.int8) - above.swapaxes(-2, -1).view(np.int8)


def _ratio(above: np.ndarray, below: np.ndarray, defined: np.ndarray) -> np.ndarray:
    """`above` / `below` within -1..1, NaN where it is not defined."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(defined, np.clip(above / below, -1.0, 1.0), np.nan))


CORRELATIONS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "pearson": pearson,
    "spearman": spearman,
    "kendall": kendall,
}
