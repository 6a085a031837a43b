"""Temperature scaling: the number by which logits are divided so that confidence meets accuracy.

Source: Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017). The published search takes, of 950
temperatures from 0.5 to 9.99, the one of least ECE. `search_ece` returns the same one after a few dozen evaluations:

- With A the accuracy and C(T) the mean confidence, ECE(T) >= |A - C(T)|, since the ECE is a sum of absolute gaps and
  this is the absolute value of their sum. Scaling does not change A.
- A pixel's confidence 1 / sum_j exp(-d_j / T), with d_j >= 0 the distance of logit j from the largest, falls as T
  rises, and so does C(T).

So |A - C(T)| grows with the distance from where C crosses A. The search evaluates the ECE outwards from there, on
either side until the gap alone is above the least ECE found: nothing beyond can be better, however many local minima
the ECE has.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from genval.metrics.calibration import BINS
from genval.runtime.errors import GenValError

# 950 temperatures; the published grid, to its last bit.
GRID = np.arange(0.5, 10, 0.01)
METRICS = ("ece", "nll")
# Pixels at a time: 19 float64 logits each stay in the cache.
_CHUNK = 8192
# What the rounding of a sum of confidences may hide.
_SLACK = 1e-11


@dataclass(frozen=True)
class Pixels:
    """Labelled pixels on which a temperature is searched."""

    below: Tensor  # float64 (C, N): each logit minus the pixel's largest, so 0 or less
    labels: Tensor  # int64 (N,)
    predictions: Tensor  # int64 (N,)

    @classmethod
    def of(cls, logits: np.ndarray, labels: np.ndarray, ignore: int = 255) -> Pixels:
        """Those of `logits` (N, C) whose label is not `ignore`.

        Raises:
            GenValError: a logit is not finite, or no pixel has a label.
        """
        counted = np.ravel(labels) != ignore
        if not counted.any():
            raise GenValError(
                "No pixel has a label: there is nothing to calibrate on. Give other scenes or conditions."
            )
        chosen = torch.from_numpy(np.ascontiguousarray(logits[counted].T)).double()
        if not bool(torch.isfinite(chosen).all()):
            raise GenValError("Logits must be finite, found NaN or infinity.")
        largest, predictions = chosen.max(0)
        return cls(chosen - largest, torch.from_numpy(np.ravel(labels)[counted].astype(np.int64)), predictions)

    def where(self, chosen: Tensor) -> Pixels:
        """Some of the pixels, bool (N,)."""
        return Pixels(self.below[:, chosen].contiguous(), self.labels[chosen], self.predictions[chosen])

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Found:
    """The outcome of a search."""

    temperature: float
    value: float  # of the metric there
    evaluations: int  # of the metric or of the mean confidence


def ece_at(pixels: Pixels, temperature: float) -> tuple[float, float]:
    """ECE over 15 equal-width bins at a temperature, and accuracy minus mean confidence; float64.

    >>> pixels = Pixels.of(np.array([[2.0, 0.0], [0.0, 2.0]]), np.array([0, 0]))
    >>> tuple(round(value, 4) for value in ece_at(pixels, 1.0))
    (0.3808, -0.3808)
    """
    gaps = np.zeros(BINS)
    right = (pixels.predictions == pixels.labels).numpy()
    for start in range(0, len(pixels), _CHUNK):
        piece = slice(start, start + _CHUNK)
        confidence = _confidence(pixels.below[:, piece], temperature).numpy()
        index = np.minimum(np.ceil(confidence * BINS), BINS).astype(np.int64) - 1
        gaps += np.bincount(index, right[piece] - confidence, BINS)
    return float(np.abs(gaps).sum() / len(pixels)), float(gaps.sum() / len(pixels))


def search_ece(pixels: Pixels, grid: np.ndarray = GRID) -> Found:
    """The temperature of a grid with the least ECE, provably (see the module); the smallest where several have it.

    Args:
        pixels: at least one.
        grid: temperatures above 0, ascending.
    """
    right = float((pixels.predictions == pixels.labels).double().mean())
    # The first grid point at which the mean confidence is no more than the accuracy, by bisection. Single precision
    # suffices to find a start: what is decided below is decided in double precision.
    single = pixels.below.float()
    low, high, evaluations = 0, len(grid) - 1, 0
    while low < high:
        middle = (low + high) // 2
        evaluations += 1
        if _mean_confidence(single, float(grid[middle])) <= right:
            high = middle
        else:
            low = middle + 1
    best = (math.inf, 0)
    sides = [(range(low, len(grid)), 1), (range(low - 1, -1, -1), -1)]
    for side, direction in sides:
        for index in side:
            ece, gap = ece_at(pixels, float(grid[index]))
            evaluations += 1
            best = min(best, (ece, index))
            # On the side of higher temperatures accuracy exceeds confidence, more with every step; below the reverse.
            if gap * direction > best[0] + _SLACK:
                break
    return Found(float(grid[best[1]]), best[0], evaluations)


def nll_at(pixels: Pixels, temperature: float) -> float:
    """Mean negative log likelihood of the labels at a temperature, in nats."""
    return _nll(pixels, 1 / temperature)[0]


def search_nll(pixels: Pixels, lowest: float = float(GRID[0]), highest: float = float(GRID[-1])) -> Found:
    """The temperature of least negative log likelihood in a range.

    The likelihood is convex in 1/T: Newton's method, with bisection where a step would leave what is known to hold the
    minimum, finds the global one to 1e-9.
    """
    low, high = 1 / highest, 1 / lowest
    evaluations = 2
    if _nll(pixels, low)[1] >= 0:
        return Found(highest, nll_at(pixels, highest), evaluations)
    if _nll(pixels, high)[1] <= 0:
        return Found(lowest, nll_at(pixels, lowest), evaluations)
    scale = min(max(1.0, low), high)
    while high - low > 1e-10:
        _, slope, curvature = _nll(pixels, scale)
        evaluations += 1
        low, high = (low, scale) if slope > 0 else (scale, high)
        step = scale - slope / curvature if curvature > 0 else math.nan
        inside = low < step < high
        following = step if inside else (low + high) / 2
        if inside and abs(following - scale) < 1e-10:
            scale = following
            break
        scale = following
    return Found(1 / scale, nll_at(pixels, 1 / scale), evaluations)


def search(pixels: Pixels, metric: str = "ece") -> Found:
    """`search_ece` or `search_nll`."""
    if metric not in METRICS:
        raise GenValError(f"Unknown metric {metric!r}: expected one of {', '.join(METRICS)}.")
    return search_ece(pixels) if metric == "ece" else search_nll(pixels)


def search_per_class(pixels: Pixels, metric: str = "ece", grid: np.ndarray = GRID) -> np.ndarray:
    """A temperature for each PREDICTED class, from the pixels predicted as it; scaling never changes a prediction.

    A class that is never predicted keeps 1, as published: nothing is known about it.

    Returns:
        float64 (C,).
    """
    found = np.ones(len(pixels.below))
    for index in torch.unique(pixels.predictions).tolist():
        of_class = pixels.where(pixels.predictions == index)
        found[index] = (search_ece(of_class, grid) if metric == "ece" else search(of_class, metric)).temperature
    return found


def scale_logits(logits: np.ndarray, temperature: float | np.ndarray) -> np.ndarray:
    """Divide logits (N, C) by a temperature, or each pixel's by that of its predicted class, (C,)."""
    temperature = np.asarray(temperature, logits.dtype)
    if temperature.ndim == 0:
        return logits / temperature
    scaled: np.ndarray = logits / temperature[logits.argmax(1)][:, None]
    return scaled


def _confidence(below: Tensor, temperature: float) -> Tensor:
    return (below / temperature).exp_().sum(0).reciprocal_()


def _mean_confidence(below: Tensor, temperature: float) -> float:
    sums = [
        _confidence(below[:, start : start + _CHUNK], temperature).sum(dtype=torch.float64)
        for start in range(0, below.shape[1], _CHUNK)
    ]
    return float(torch.stack(sums).sum()) / below.shape[1]


def _nll(pixels: Pixels, scale: float) -> tuple[float, float, float]:
    """Mean negative log likelihood of logits times `scale`, and its first two derivatives by it."""
    total = np.zeros(3)
    for start in range(0, len(pixels), _CHUNK):
        piece = slice(start, start + _CHUNK)
        below = pixels.below[:, piece]
        of_label = below.gather(0, pixels.labels[None, piece])[0]
        weights = (below * scale).exp_()
        sums = weights.sum(0)
        weights /= sums
        mean = (weights * below).sum(0)
        variance = (weights * below * below).sum(0) - mean * mean
        nll = sums.log() - scale * of_label
        total += [float(values.sum()) for values in (nll, mean - of_label, variance)]
    value, slope, curvature = (total / len(pixels)).tolist()
    return value, slope, curvature
