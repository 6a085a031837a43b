"""Calibration errors: the difference between confidence and accuracy.

An error can be computed in two ways. From single pixels it is exact (`top1_metrics`). From counts
that add up over images, processes and data sets (`genval.metrics.statistics`), errors over bins of equal width are
exact; the others use levels of confidence that are at most 1.3e-4 wide.

Sources: Naeini et al., "Obtaining Well Calibrated Probabilities Using Bayesian Binning" (AAAI 2015) for the ECE; Nguyen
and O'Connor, "Posterior calibration and exploratory analysis for natural language processing models" (EMNLP 2015) for
equal populations; Gupta et al., "Calibration of Neural Networks using Splines" (ICLR 2021) for KS; Kull et al., "Beyond
temperature scaling" (NeurIPS 2019) for the class-wise ECE. 15 bins, as published.
"""

from __future__ import annotations

import numpy as np

from genval.kernels.layout import BINS
from genval.metrics.division import safe_divide
from genval.runtime.errors import GenValError


def bin_index(confidence: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Return the equal-width bin (lower, upper] of a probability; 0 is in the first bin.

    Args:
        confidence: floats in 0..1, any shape.
        bins: number of bins.

    Returns:
        int64 of the same shape, 0..bins-1.

    >>> bin_index(np.array([0.0, 0.2, 0.21, 1.0]), bins=5).tolist()
    [0, 0, 1, 4]
    """
    # In float32 the product i/15 * 15 rounds to exactly i, and the products of the numbers next to i/15 do not. The bin
    # edges are therefore the float32 numbers of the published code.
    scaled = np.asarray(confidence, np.float32) * np.float32(bins)
    return np.clip(np.ceil(scaled).astype(np.int64) - 1, 0, bins - 1)


def binned_ece(right: np.ndarray, pixels: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """Return the expected calibration error: the mean over pixels of |confidence - accuracy| of the pixel's bin.

    Args:
        right: correctly predicted pixels in each bin (..., bins).
        pixels: all pixels in each bin.
        confidence: sum of the confidences in each bin.

    Returns:
        float64 (...) in 0..1; NaN without pixels.

    >>> float(binned_ece(np.array([1, 3]), np.array([2, 4]), np.array([1.0, 3.8])))
    0.1333333333333333
    """
    total = np.asarray(pixels, np.float64).sum(-1)
    gaps = np.abs(np.asarray(confidence) - right).sum(-1)
    return safe_divide(gaps, total)


def gap_curve(right: np.ndarray, pixels: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """Return cumulated confidence minus cumulated accuracy, in ascending order of confidence, divided by all pixels.

    Args:
        right: correctly predicted pixels at each confidence (..., L), the lowest confidence first.
        pixels: all pixels at each confidence.
        confidence: sum of their confidences.

    Returns:
        float64 (..., L), after each level; NaN without pixels.
    """
    total = np.asarray(pixels, np.float64).sum(-1, keepdims=True)
    gaps = np.cumsum(np.asarray(confidence, np.float64) - right, -1)
    return safe_divide(gaps, total)


def ks_error(curve: np.ndarray) -> np.ndarray:
    """Return the Kolmogorov-Smirnov error: the largest gap of a `gap_curve` (..., L); NaN without pixels."""
    return np.abs(curve).max(-1) if curve.shape[-1] else np.full(curve.shape[:-1], np.nan)


def adaptive_ece(curve: np.ndarray, pixels: np.ndarray, bins: int = BINS, drop_lowest: bool = False) -> np.ndarray:
    """Return the ECE over bins of equal population, from a `gap_curve`.

    A cut between two bins may fall among pixels of the same confidence. Right and wrong pixels are then divided between
    the two bins in proportion, which equals the average over random orders. (The published bins are cut at confidences;
    they lose pixels and become empty where many pixels tie.)

    Args:
        curve: from `gap_curve` (..., L).
        pixels: pixels at each confidence (..., L), the lowest first.
        bins: number of bins.
        drop_lowest: cut as the published code does without ties: each cut is one pixel later, including the first, so
            that the least confident pixel is in no bin.

    Returns:
        float64 (...) in 0..1; NaN without pixels.
    """
    pixels = np.asarray(pixels, np.float64)
    if not pixels.size:
        return np.full(pixels.shape[:-1], np.nan)
    flat_pixels, flat_curve = pixels.reshape(-1, pixels.shape[-1]), curve.reshape(-1, pixels.shape[-1])
    # Each set's ranks and gaps before the first confidence and after each one. One without pixels repeats both.
    ranks, gaps = (np.zeros((len(flat_pixels), flat_pixels.shape[1] + 1)) for _ in range(2))
    np.cumsum(flat_pixels, -1, out=ranks[:, 1:])
    gaps[:, 1:] = flat_curve
    totals = ranks[:, -1]
    cuts = np.linspace(0, totals, bins + 1, axis=-1)
    if drop_lowest:
        cuts = np.minimum(np.floor(cuts) + 1, totals[:, None])
    at_cuts = np.stack([np.interp(*each) for each in zip(cuts, ranks, gaps, strict=True)])
    errors = np.abs(np.diff(at_cuts)).sum(-1)
    return np.where(totals > 0, errors, np.nan).reshape(pixels.shape[:-1])


def top1_metrics(confidence: np.ndarray, right: np.ndarray, drop_lowest: bool = False) -> dict[str, float]:
    """Return the exact ECE, adaptive ECE and KS error of single pixels.

    Args:
        confidence: of the predicted class, floats in 0..1 (N,).
        right: whether the prediction is right, bool (N,).
        drop_lowest: as in `adaptive_ece`.

    Returns:
        `ece`, `adaptive_ece` and `ks`, fractions; NaN without pixels.

    Raises:
        GenValError: shapes differ, or a confidence is not in 0..1.

    >>> metrics = top1_metrics(np.array([0.5, 0.9, 0.9, 0.9, 0.9]), np.array([0, 1, 1, 1, 0]))
    >>> {name: round(value, 3) for name, value in metrics.items()}
    {'ece': 0.22, 'adaptive_ece': 0.22, 'ks': 0.22}
    """
    confidence, right = np.ravel(confidence), np.ravel(right).astype(bool)
    if confidence.shape != right.shape:
        raise GenValError(f"Confidences and labels differ in number: {len(confidence)} and {len(right)}.")
    if not ((confidence >= 0) & (confidence <= 1)).all():
        raise GenValError("A confidence is a probability, 0..1; found another value or NaN. Pass softmax outputs.")
    index = bin_index(confidence)
    bins = [np.bincount(index, weights, BINS) for weights in (right, None, confidence)]
    order = np.argsort(confidence)
    ordered = confidence[order].astype(np.float64)
    # Pixels of the same confidence are merged, so that their order does not matter.
    last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True)) if len(ordered) else np.zeros(0, np.int64)
    hits, sums = (np.diff(np.cumsum(values)[last], prepend=0) for values in (right[order].astype(np.float64), ordered))
    counts = np.diff(last + 1, prepend=0)
    curve = gap_curve(hits, counts, sums)
    return {
        "ece": float(binned_ece(*bins)),
        "adaptive_ece": float(adaptive_ece(curve, counts, drop_lowest=drop_lowest)),
        "ks": float(ks_error(curve)),
    }
