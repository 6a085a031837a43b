"""Temperature scaling: dividing logits by a number, so that confidence matches accuracy.

Source: Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017). The published search evaluates 950
temperatures from 0.5 to 9.99 and returns the one with the lowest ECE. `search_ece` returns the same temperature after a
few dozen evaluations:

- Let A be the accuracy and C(T) the mean confidence. ECE(T) >= |A - C(T)|, since the ECE is a sum of absolute gaps and
  A - C(T) is the sum of these gaps. Scaling does not change A.
- The confidence of a pixel is 1 / sum_j exp(-d_j / T), where d_j >= 0 is the distance of logit j from the largest
  logit. It falls as T rises, and so does C(T).

Therefore |A - C(T)| grows with the distance from the temperature at which C(T) = A. The search evaluates the ECE from
there outwards, on either side until |A - C(T)| is above the lowest ECE found. No temperature beyond can be better,
however many local minima the ECE has.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from genval.kernels.layout import BINS
from genval.runtime.errors import GenValError

# The 950 temperatures of the published grid, equal to the last bit.
GRID = np.arange(0.5, 10, 0.01)
METRICS = ("ece", "nll")
# Pixels at a time: their 19 float64 logits each stay in the cache.
_CHUNK = 8192
# Tolerance for the rounding of a sum of confidences.
_SLACK = 1e-11


@dataclass(frozen=True)
class Pixels:
    """Labelled pixels for which a temperature is searched."""

    below: Tensor  # float64 (C, N): each logit minus the pixel's largest logit
    labels: Tensor  # int64 (N,)
    predictions: Tensor  # int64 (N,)

    @classmethod
    def from_logits(cls, logits: np.ndarray, labels: np.ndarray, ignore: int = 255) -> Pixels:
        """Return the pixels of `logits` (N, C) whose label is not `ignore`.

        Raises:
            GenValError: a logit is not finite, or no pixel has a label.
        """
        counted = np.ravel(labels) != ignore
        if not counted.any():
            raise GenValError(
                "No pixel has a label, so a temperature cannot be fitted. Choose other scenes or conditions."
            )
        chosen = torch.from_numpy(np.ascontiguousarray(logits[counted].T)).double()
        if not bool(torch.isfinite(chosen).all()):
            raise GenValError("Logits must be finite, found NaN or infinity.")
        largest, predictions = chosen.max(0)
        return cls(chosen - largest, torch.from_numpy(np.ravel(labels)[counted].astype(np.int64)), predictions)

    def select(self, chosen: Tensor) -> Pixels:
        """Return the pixels where `chosen`, bool (N,), is true."""
        return Pixels(self.below[:, chosen].contiguous(), self.labels[chosen], self.predictions[chosen])

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class SearchResult:
    """The result of a search."""

    temperature: float
    value: float  # of the metric at this temperature


def ece_at(pixels: Pixels, temperature: float) -> tuple[float, float]:
    """Return the ECE over 15 equal-width bins at a temperature, and accuracy minus mean confidence.

    >>> pixels = Pixels.from_logits(np.array([[2.0, 0.0], [0.0, 2.0]]), np.array([0, 0]))
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


def search_ece(pixels: Pixels, grid: np.ndarray = GRID) -> SearchResult:
    """Return the temperature of a grid with the lowest ECE; the smallest one if several have it.

    Args:
        pixels: at least one.
        grid: temperatures above 0, ascending.
    """
    right = float((pixels.predictions == pixels.labels).double().mean())
    # Find the first grid point at which the mean confidence is not above the accuracy, by bisection. Single precision
    # is enough for a starting point; the search below uses double precision.
    single = pixels.below.float()
    low, high = 0, len(grid) - 1
    while low < high:
        middle = (low + high) // 2
        if _mean_confidence(single, float(grid[middle])) <= right:
            high = middle
        else:
            low = middle + 1
    best = (math.inf, 0)
    sides = [(range(low, len(grid)), 1), (range(low - 1, -1, -1), -1)]
    for side, direction in sides:
        for index in side:
            ece, gap = ece_at(pixels, float(grid[index]))
            best = min(best, (ece, index))
            # At higher temperatures accuracy exceeds confidence, more with every step; at lower ones the reverse holds.
            if gap * direction > best[0] + _SLACK:
                break
    return SearchResult(float(grid[best[1]]), best[0])


def nll_at(pixels: Pixels, temperature: float) -> float:
    """Return the mean negative log likelihood of the labels at a temperature, in nats."""
    return _nll(pixels, 1 / temperature)[0]


def search_nll(pixels: Pixels, lowest: float = float(GRID[0]), highest: float = float(GRID[-1])) -> SearchResult:
    """Return the temperature with the lowest negative log likelihood in a range.

    The negative log likelihood is convex in 1/T. Newton's method, with bisection where a step would leave the interval
    that contains the minimum, finds the global minimum to 1e-9.
    """
    low, high = 1 / highest, 1 / lowest
    if _nll(pixels, low)[1] >= 0:
        return SearchResult(highest, nll_at(pixels, highest))
    if _nll(pixels, high)[1] <= 0:
        return SearchResult(lowest, nll_at(pixels, lowest))
    scale = min(max(1.0, low), high)
    while high - low > 1e-10:
        _, slope, curvature = _nll(pixels, scale)
        low, high = (low, scale) if slope > 0 else (scale, high)
        step = scale - slope / curvature if curvature > 0 else math.nan
        inside = low < step < high
        following = step if inside else (low + high) / 2
        if inside and abs(following - scale) < 1e-10:
            scale = following
            break
        scale = following
    return SearchResult(1 / scale, nll_at(pixels, 1 / scale))


def search(pixels: Pixels, metric: str = "ece") -> SearchResult:
    """Search by `search_ece` or `search_nll`.

    Raises:
        GenValError: the metric is unknown.
    """
    if metric not in METRICS:
        raise GenValError(f"Unknown metric {metric!r}: expected one of {', '.join(METRICS)}.")
    return search_ece(pixels) if metric == "ece" else search_nll(pixels)


def search_per_class(pixels: Pixels, metric: str = "ece", grid: np.ndarray = GRID) -> np.ndarray:
    """Return a temperature for each PREDICTED class, from the pixels predicted as that class.

    Scaling does not change predictions. A class that is never predicted has temperature 1, as published.

    Returns:
        float64 (C,).
    """
    found = np.ones(len(pixels.below))
    for index in torch.unique(pixels.predictions).tolist():
        in_class = pixels.select(pixels.predictions == index)
        found[index] = (search_ece(in_class, grid) if metric == "ece" else search(in_class, metric)).temperature
    return found


def scale_logits(logits: np.ndarray, temperature: float | np.ndarray) -> np.ndarray:
    """Divide logits (N, C) by one temperature, or by that of each pixel's predicted class, (C,)."""
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
    """Return the mean negative log likelihood of logits times `scale`, and its first two derivatives by `scale`."""
    total = np.zeros(3)
    for start in range(0, len(pixels), _CHUNK):
        piece = slice(start, start + _CHUNK)
        below = pixels.below[:, piece]
        label_below = below.gather(0, pixels.labels[None, piece])[0]
        weights = (below * scale).exp_()
        sums = weights.sum(0)
        weights /= sums
        mean = (weights * below).sum(0)
        variance = (weights * below * below).sum(0) - mean * mean
        nll = sums.log() - scale * label_below
        total += [float(values.sum()) for values in (nll, mean - label_below, variance)]
    value, slope, curvature = (total / len(pixels)).tolist()
    return value, slope, curvature
