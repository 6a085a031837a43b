"""Distance between the distributions of two sets of images: the maximum mean discrepancy of their embeddings.

Sources: Gretton et al., "A kernel two-sample test" (JMLR 2012). KID: Bińkowski et al., "Demystifying MMD GANs" (ICLR
2018). CMMD: Jayasumana et al., "Rethinking FID" (CVPR 2024).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from genval.metrics.bootstrap import draw_weights, percentile_interval
from genval.runtime.errors import GenValError

Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Discrepancy:
    """A squared maximum mean discrepancy with its 95 % interval over images of both sets; it can be below 0."""

    value: float
    low: float
    high: float


def kid_kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return KID's kernel (x y / D + 1)^3 of embeddings (N, D) and (M, D): float64 (N, M)."""
    return np.asarray((x @ y.T / x.shape[1] + 1) ** 3)


def cmmd_kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return CMMD's kernel of normalised embeddings (N, D) and (M, D): 1000 exp(-d^2 / 200), float64 (N, M)."""
    squared = 2 - 2 * np.clip(x @ y.T, -1, 1)
    return np.asarray(1000 * np.exp(-squared / 200))


def squared_mmd(x: np.ndarray, y: np.ndarray, kernel: Kernel, draws: int = 1000, seed: int = 0) -> Discrepancy:
    """Estimate the squared maximum mean discrepancy, without bias.

    Args:
        x: embeddings of one set, float (N, D), N at least 2.
        y: of the other set, float (M, D).
        kernel: `kid_kernel` or `cmmd_kernel`.
        draws: bootstrap draws of the images of both sets.
        seed: of the draws.

    Raises:
        GenValError: a set has fewer than 2 images, or an embedding is not finite.

    >>> squared_mmd(np.eye(3), np.eye(3)[:2], kid_kernel).value < 0.1
    True
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if min(len(x), len(y)) < 2:
        raise GenValError(f"A distance between sets needs 2 images in each, found {len(x)} and {len(y)}.")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise GenValError("A distance between sets needs finite embeddings, found NaN or infinity.")
    kernels = kernel(x, x), kernel(y, y), kernel(x, y)
    ones = np.ones((1, len(x))), np.ones((1, len(y)))
    weights = draw_weights(len(x), draws, seed).astype(float), draw_weights(len(y), draws, seed + 1).astype(float)
    low, high = percentile_interval(_mmd(*kernels, *weights))
    return Discrepancy(float(_mmd(*kernels, *ones)[0]), low, high)


def _mmd(kxx: np.ndarray, kyy: np.ndarray, kxy: np.ndarray, wx: np.ndarray, wy: np.ndarray) -> np.ndarray:
    """Return the discrepancies (D,) of sets whose images have weights (D, N) and (D, M)."""
    between = ((wx @ kxy) * wy).sum(1) / (wx.sum(1) * wy.sum(1))
    return np.asarray(_mean_of_pairs(kxx, wx) + _mean_of_pairs(kyy, wy) - 2 * between)


def _mean_of_pairs(k: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Return the weighted means of a kernel over pairs of different images. An image drawn twice is no pair."""
    total = ((w @ k) * w).sum(1) - w**2 @ k.diagonal()
    with np.errstate(invalid="ignore"):  # a draw of one image alone has no pair
        return np.asarray(total / (w.sum(1) ** 2 - (w**2).sum(1)))
