"""Calibration errors: how far confidence is from accuracy.

Two ways lead to each figure. From single pixels (`top1_figures`, `classwise_ece`): exact. From counts that add up over
images, processes and data sets (`genval.metrics.statistics`): equal-width bins exact, the others on levels of
confidence that are at most 1.3e-4 wide.

Sources: Naeini et al., "Obtaining Well Calibrated Probabilities Using Bayesian Binning" (AAAI 2015) for the ECE; Nguyen
and O'Connor, "Posterior calibration and exploratory analysis for natural language processing models" (EMNLP 2015) for
equal populations; Gupta et al., "Calibration of Neural Networks using Splines" (ICLR 2021) for KS; Kull et al., "Beyond
temperature scaling" (NeurIPS 2019) for the class-wise ECE. 15 bins, as published.
"""

from __future__ import annotations

import numpy as np

from genval.runtime.errors import GenValError

BINS = 15


def bin_index(confidence: np.ndarray, bins: int = BINS) -> np.ndarray:
    """The equal-width bin (lower, upper] that a probability is in; 0 is in the first.

    Args:
        confidence: floats in 0..1, any shape.
        bins: number of bins.

    Returns:
        int64 of the same shape, 0..bins-1.

    >>> bin_index(np.array([0.0, 0.2, 0.21, 1.0]), bins=5).tolist()
    [0, 0, 1, 4]
    """
    # In float32 a product i/15 * 15 rounds to i exactly, for its neighbours to either side: the edges are those of
    # float32, as in the published code.
    scaled = np.asarray(confidence, np.float32) * np.float32(bins)
    return np.clip(np.ceil(scaled).astype(np.int64) - 1, 0, bins - 1)


def ece_of_bins(right: np.ndarray, pixels: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """Expected calibration error of bins: the mean over pixels of |confidence - accuracy| of their bin.

    Args:
        right: pixels predicted right, in each bin (..., bins).
        pixels: all pixels, in each bin.
        confidence: sum of confidences, in each bin.

    Returns:
        float64 (...) in 0..1; NaN without pixels.

    >>> float(ece_of_bins(np.array([1, 3]), np.array([2, 4]), np.array([1.0, 3.8])))
    0.1333333333333333
    """
    total = np.asarray(pixels, np.float64).sum(-1)
    gaps = np.abs(np.asarray(confidence) - right).sum(-1)
    return np.divide(gaps, total, out=np.full(np.shape(gaps), np.nan), where=total > 0)


def gap_curve(right: np.ndarray, pixels: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """Cumulated confidence minus cumulated accuracy in ascending order of confidence, as a share of all pixels.

    Args:
        right: pixels predicted right at each confidence (..., L), the lowest confidence first.
        pixels: all pixels at each confidence.
        confidence: sum of their confidences.

    Returns:
        float64 (..., L), after each level; NaN without pixels.
    """
    total = np.asarray(pixels, np.float64).sum(-1, keepdims=True)
    gaps = np.cumsum(np.asarray(confidence, np.float64) - right, -1)
    return np.divide(gaps, total, out=np.full(gaps.shape, np.nan), where=total > 0)


def ks_error(curve: np.ndarray) -> np.ndarray:
    """Kolmogorov-Smirnov calibration error: the largest gap of a `gap_curve` (..., L); NaN without pixels."""
    return np.abs(curve).max(-1) if curve.shape[-1] else np.full(curve.shape[:-1], np.nan)


def adaptive_ece(curve: np.ndarray, pixels: np.ndarray, bins: int = BINS, drop_lowest: bool = False) -> np.ndarray:
    """ECE over bins of equal population, cut from a `gap_curve`.

    A cut may fall among pixels of one confidence: they are then shared between the two bins in proportion, right and
    wrong alike, which is what a random order among them gives on average. (The published bins, cut at confidences, lose
    pixels and become empty where many tie.)

    Args:
        curve: from `gap_curve` (..., L).
        pixels: pixels at each confidence (..., L), the lowest first.
        bins: number of bins.
        drop_lowest: cut as the published code does without ties: each cut one pixel later, and none before the first
            pixel, so that the least confident pixel is in no bin.

    Returns:
        float64 (...) in 0..1; NaN without pixels.
    """
    pixels = np.asarray(pixels, np.float64)
    if not pixels.size:
        return np.full(pixels.shape[:-1], np.nan)
    flat_pixels, flat_curve = pixels.reshape(-1, pixels.shape[-1]), curve.reshape(-1, pixels.shape[-1])
    errors = []
    for counts, gaps in zip(flat_pixels, flat_curve, strict=True):
        kept = counts > 0
        ranks = np.concatenate([[0.0], np.cumsum(counts[kept])])
        cuts = np.linspace(0, ranks[-1], bins + 1)
        if drop_lowest:
            cuts = np.minimum(np.floor(cuts) + 1, ranks[-1])
        at_cuts = np.interp(cuts, ranks, np.concatenate([[0.0], gaps[kept]]))
        errors.append(np.abs(np.diff(at_cuts)).sum() if len(ranks) > 1 else np.nan)
    return np.array(errors).reshape(pixels.shape[:-1])


def top1_figures(confidence: np.ndarray, right: np.ndarray, drop_lowest: bool = False) -> dict[str, float]:
    """ECE, adaptive ECE and KS error of single pixels, exactly.

    Args:
        confidence: of the predicted class, floats in 0..1 (N,).
        right: whether the prediction is right, bool (N,).
        drop_lowest: as in `adaptive_ece`.

    Returns:
        `ece`, `adaptive_ece` and `ks`, fractions; NaN without pixels.

    Raises:
        GenValError: shapes differ, or a confidence is not in 0..1.

    >>> figures = top1_figures(np.array([0.5, 0.9, 0.9, 0.9, 0.9]), np.array([0, 1, 1, 1, 0]))
    >>> {name: round(value, 3) for name, value in figures.items()}
    {'ece': 0.22, 'adaptive_ece': 0.22, 'ks': 0.22}
    """
    confidence, right = np.ravel(confidence), np.ravel(right).astype(bool)
    if confidence.shape != right.shape:
        raise GenValError(f"Confidences and labels differ in number: {len(confidence)} and {len(right)}.")
    if not ((confidence >= 0) & (confidence <= 1)).all():
        raise GenValError("A confidence is a probability, 0..1; found another value or NaN. Give softmax outputs.")
    index = bin_index(confidence)
    bins = [np.bincount(index, weights, BINS) for weights in (right, None, confidence)]
    order = np.argsort(confidence)
    ordered = confidence[order].astype(np.float64)
    # A pixel alone is a level: ties stand beside each other, and their order changes neither figure's definition
    # where they are merged first.
    last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True)) if len(ordered) else np.zeros(0, np.int64)
    hits, sums = (np.diff(np.cumsum(values)[last], prepend=0) for values in (right[order].astype(np.float64), ordered))
    counts = np.diff(last + 1, prepend=0)
    curve = gap_curve(hits, counts, sums)
    return {
        "ece": float(ece_of_bins(*bins)),
        "adaptive_ece": float(adaptive_ece(curve, counts, drop_lowest=drop_lowest)),
        "ks": float(ks_error(curve)),
    }


def classwise_ece(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """ECE of each class's probability against whether the pixel is of that class.

    Args:
        probabilities: floats (N, C).
        labels: integers (N,), 0..C-1.

    Returns:
        float64 (C,); NaN without pixels. The class-wise ECE is their mean.

    >>> classwise_ece(np.array([[0.8, 0.2], [0.4, 0.6]]), np.array([0, 1])).round(3).tolist()
    [0.3, 0.3]
    """
    errors = []
    for index, column in enumerate(np.asarray(probabilities).T):
        bins = bin_index(column)
        of_class = np.ravel(labels) == index
        errors.append(ece_of_bins(*(np.bincount(bins, weights, BINS) for weights in (of_class, None, column))))
    return np.array(errors)
