"""Division where a denominator may be 0."""

from __future__ import annotations

import numpy as np


def safe_divide(numerator: np.ndarray, denominator: np.ndarray, default: float = np.nan) -> np.ndarray:
    """Divide where the denominator is above 0.

    Args:
        numerator: numbers of any shape.
        denominator: numbers that broadcast with it, usually counts.
        default: the value where the denominator is not above 0.

    Returns:
        float64 of the broadcast shape.

    >>> safe_divide(np.array([1, 2]), np.array([4, 0])).tolist()
    [0.25, nan]
    """
    numerator, denominator = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    shape = np.broadcast_shapes(numerator.shape, denominator.shape)
    return np.divide(numerator, denominator, out=np.full(shape, float(default)), where=denominator > 0)
