"""How well one set of scores predicts another."""

from __future__ import annotations

import math
from collections.abc import Sequence

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
