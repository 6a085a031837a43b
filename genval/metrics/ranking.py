"""Metrics of how well a score separates two kinds of pixels: AUROC, AUPR, FPR at 95 % TPR and PRR, from counts.

Each metric is a function of the numbers of positive and negative pixels at each score, the highest score first.
`counts_by_score` returns the exact counts of single pixels. A histogram holds the counts of any number of pixels, and
adding histograms merges data sets. Pixels of the same score (or level) have no order: a pair of them counts as half
right, which is the average over random orders.

Arrays may have leading dimensions, with one set of counts each (e.g. the draws of a bootstrap).
"""

from __future__ import annotations

import numpy as np

from genval.metrics.division import safe_divide
from genval.runtime.errors import GenValError


def counts_by_score(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count positive and negative pixels at each distinct score, the highest score first.

    Args:
        scores: finite floats (N,).
        positive: bool (N,).

    Returns:
        Two int64 arrays (number of distinct scores,).

    Raises:
        GenValError: shapes differ, or a score is NaN or infinite.

    >>> counts_by_score(np.array([0.1, 0.9, 0.9]), np.array([True, True, False]))
    (array([1, 1]), array([1, 0]))
    """
    scores, positive = np.ravel(scores), np.ravel(positive).astype(bool)
    if scores.shape != positive.shape:
        raise GenValError(f"Scores and labels differ in number: {len(scores)} and {len(positive)}.")
    if not np.isfinite(scores).all():
        raise GenValError("Scores must be finite, found NaN or infinity.")
    order = np.argsort(scores)[::-1]
    ordered, hits = scores[order], positive[order]
    last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True)) if len(scores) else np.zeros(0, np.int64)
    positives = np.diff(np.cumsum(hits, dtype=np.int64)[last], prepend=0)
    return positives, np.diff(last + 1, prepend=0) - positives


def auroc(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """Return the area under the ROC curve: the share of (positive, negative) pairs in which the positive scores higher.

    Args:
        positives: counts (..., L), the highest score first.
        negatives: counts of the negatives likewise.

    Returns:
        float64 (...) in 0..1; NaN where there are no positives or no negatives.

    >>> float(auroc(np.array([2, 1, 0]), np.array([0, 1, 1])))
    0.9166666666666666
    """
    positives, negatives = np.asarray(positives, np.float64), np.asarray(negatives, np.float64)
    below = negatives.sum(-1, keepdims=True) - np.cumsum(negatives, -1)
    pairs = (positives * (below + negatives / 2)).sum(-1)
    return safe_divide(pairs, positives.sum(-1) * negatives.sum(-1))


def auroc_bound(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """Return the largest possible error of an AUROC from levels: half the share of pairs inside one level.

    >>> float(auroc_bound(np.array([2, 1, 0]), np.array([0, 1, 1])))
    0.08333333333333333
    """
    positives, negatives = np.asarray(positives, np.float64), np.asarray(negatives, np.float64)
    return safe_divide((positives * negatives).sum(-1) / 2, positives.sum(-1) * negatives.sum(-1))


def aupr(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """Return the area under the precision-recall curve of the positives, by trapezoids, as published.

    The curve starts at recall 0 and precision 1, as in scikit-learn's `precision_recall_curve`.

    Returns:
        float64 (...) in 0..1; NaN where there are no positives.

    >>> float(aupr(np.array([1, 1]), np.array([0, 2])))
    0.875
    """
    positives = np.asarray(positives, np.float64)
    found = np.cumsum(positives, -1)
    alarms = found + np.cumsum(negatives, -1, dtype=np.float64)
    # A masked division takes three times as long.
    precision = np.where(alarms > 0, found / np.maximum(alarms, np.finfo(float).tiny), 1.0)
    before = np.concatenate([np.ones_like(precision[..., :1]), precision[..., :-1]], -1)
    area = (positives * (precision + before)).sum(-1) / 2
    return safe_divide(area, positives.sum(-1))


def fpr_at_tpr(
    positives: np.ndarray, negatives: np.ndarray, tpr: float = 0.95, interpolate: bool = False
) -> np.ndarray:
    """Return the share of negatives at or above the highest threshold that the share `tpr` of the positives reaches.

    Args:
        positives: counts (..., L), the highest score first.
        negatives: counts of the negatives likewise.
        tpr: in 0..1.
        interpolate: for histograms. Assume that positives and negatives are evenly mixed in the level of the threshold,
            and count only the part of the level above the threshold. Without it the whole level counts, as is right for
            pixels of the same score.

    Returns:
        float64 (...) in 0..1; NaN where there are no positives or no negatives.

    >>> float(fpr_at_tpr(np.array([2, 18, 0]), np.array([0, 1, 3])))
    0.25
    """
    positives, negatives = np.asarray(positives, np.float64), np.asarray(negatives, np.float64)
    found, false = np.cumsum(positives, -1), np.cumsum(negatives, -1)
    total = positives.sum(-1, keepdims=True)
    # The tolerance is needed because 0.95 * 20 is not 19 in floating point.
    level = np.argmax(found >= tpr * total - 1e-9 * total - 1e-12, axis=-1)[..., None]
    passed = np.take_along_axis(false, level, -1)[..., 0]
    if interpolate:
        here = np.take_along_axis(positives, level, -1)[..., 0]
        beyond = np.take_along_axis(found, level, -1)[..., 0] - tpr * total[..., 0]
        share = safe_divide(beyond, here, default=0).clip(0, 1)
        passed = passed - share * np.take_along_axis(negatives, level, -1)[..., 0]
    return np.where(total[..., 0] > 0, safe_divide(passed, negatives.sum(-1)), np.nan)


def prediction_rejection_ratio(right: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Return the prediction rejection ratio in PERCENT: the gain of rejection by confidence, relative to an oracle.

    The least confident pixels are rejected first. The rejection curve shows the errors among the remaining pixels,
    divided by ALL pixels, against the share of rejected pixels. If e is the share of errors, the area below the curve
    is e / 2 for random rejection and e^2 / 2 for the oracle, which rejects all errors first. The PRR is the reduction
    of the area below that of random rejection, divided by the oracle's reduction. Source: Malinin et al.,
    "Incorporating Uncertainty into Deep Learning for Spoken Language Assessment" (ACL 2017), section 3. The oracle of
    the published code is wrong by a factor of 100, so that no ranking reaches 100 there.

    Args:
        right: correctly predicted pixels (..., L), the highest confidence first.
        wrong: wrongly predicted pixels likewise.

    Returns:
        float64 (...), 100 for a perfect ranking, 0 for chance, -100 for the worst; NaN where all pixels are right or
        all are wrong.

    >>> float(prediction_rejection_ratio(np.array([3, 0]), np.array([0, 2])))
    100.0
    """
    right, wrong = np.asarray(right, np.float64), np.asarray(wrong, np.float64)
    total, errors = (right + wrong).sum(-1), wrong.sum(-1)
    kept_errors, pixels = np.cumsum(wrong, -1), right + wrong
    # The area by trapezoids, from keeping no pixel to keeping all.
    area = ((kept_errors - wrong / 2) * pixels).sum(-1)
    chance, oracle = errors * total / 2, errors**2 / 2
    return 100 * safe_divide(chance - area, chance - oracle)
