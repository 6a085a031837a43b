"""The metrics of the BRAVO challenge, from counts at the 65,536 levels of its confidence images.

Source: Vu et al., "The BRAVO Semantic Segmentation Challenge Results in UNCV2024" (ECCV Workshops 2024), section 3, and
for details the challenge's toolkit. Pixels without a label never count. Semantic metrics are over valid pixels; OOD
metrics ask whether invalid pixels, on or behind an unknown object, have a low confidence. Areas under precision-recall
curves are sums of steps, not trapezoids.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from genval.datasets.labels import CLASSES, IGNORE
from genval.metrics.confusion import confusion_matrix
from genval.metrics.states import MergeableState

LEVELS = 1 << 16
_LOWER_IS_BETTER = ("ece", "fpr95")
_BINS = 15


@dataclass
class BravoCounts(MergeableState):
    """Counts of pixels; `a + b` are those of both sets.

    Attributes:
        confusion: int64 (19, 19) of valid pixels, rows are labels.
        semantic: int64 (2, LEVELS), wrong and right valid pixels by confidence, the lowest first.
        ood: int64 (2, LEVELS), valid and invalid pixels by confidence.
    """

    confusion: np.ndarray
    semantic: np.ndarray
    ood: np.ndarray

    @classmethod
    def measure(
        cls, prediction: np.ndarray, confidence: np.ndarray, train_ids: np.ndarray, invalid: np.ndarray
    ) -> BravoCounts:
        """Count the pixels of an image.

        Args:
            prediction: trainIds, uint8 (H, W).
            confidence: uint16 (H, W).
            train_ids: labels, uint8 (H, W); 255 has no label.
            invalid: bool (H, W), pixels that are no known class.
        """
        labelled = train_ids != IGNORE
        valid = labelled & ~invalid
        right = prediction == train_ids
        semantic = [np.bincount(confidence[valid & kind], minlength=LEVELS) for kind in (~right, right)]
        ood = [np.bincount(confidence[part], minlength=LEVELS) for part in (valid, labelled & invalid)]
        matrix = confusion_matrix(train_ids[valid], prediction[valid], len(CLASSES))
        return cls(matrix.astype(np.int64), np.stack(semantic), np.stack(ood))


def quantise(probability: np.ndarray) -> np.ndarray:
    """Return the confidence image of probabilities, uint16: the challenge reads level n as (n + 1/2) / 65536.

    >>> quantise(np.array([0.0, 0.5, 1.0])).tolist()
    [0, 32768, 65535]
    """
    return np.clip(np.floor(probability.astype(np.float64) * LEVELS), 0, LEVELS - 1).astype(np.uint16)


def semantic_metrics(counts: BravoCounts) -> dict[str, float]:
    """Compute the metrics of the known classes, fractions; NaN where not defined."""
    confusion = counts.confusion.astype(np.float64)
    hits = np.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - hits
    wrong, right = counts.semantic[:, ::-1].astype(np.float64)  # the highest confidence first
    auroc, fpr95 = _roc(right, wrong)
    return {
        "miou": float((hits[union > 0] / union[union > 0]).mean()) if (union > 0).any() else math.nan,
        "ece": _ece(counts.semantic),
        "auroc": auroc,
        "auprc_success": _step_area(right, wrong),
        "auprc_error": _step_area(wrong[::-1], right[::-1]),
        "fpr95": fpr95,
    }


def ood_metrics(counts: BravoCounts) -> dict[str, float]:
    """Compute the OOD metrics, fractions, with invalid pixels as the positive class; NaN where not defined."""
    valid, invalid = counts.ood.astype(np.float64)  # the lowest confidence first
    auroc, fpr95 = _roc(invalid, valid)
    return {"auroc": auroc, "auprc": _step_area(invalid, valid), "fpr95": fpr95}


def bravo_index(semantic: Iterable[Mapping[str, float]], ood: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Compute `semantic_hmean`, `ood_hmean` and `bravo_index` from the metrics of all subsets.

    They are harmonic means. Metrics of which lower is better enter as 1 minus them. NaN without a subset.
    """
    means = {
        "semantic_hmean": _harmonic(_goodness(one) for one in semantic),
        "ood_hmean": _harmonic(_goodness(one) for one in ood),
    }
    return {**means, "bravo_index": _harmonic([list(means.values())])}


def _goodness(metrics: Mapping[str, float]) -> list[float]:
    return [1 - value if name in _LOWER_IS_BETTER else value for name, value in metrics.items()]


def _harmonic(groups: Iterable[Iterable[float]]) -> float:
    values = [value for group in groups for value in group]
    if not values or any(math.isnan(value) for value in values):
        return math.nan
    return 0.0 if min(values) <= 0 else len(values) / sum(1 / value for value in values)


def _roc(positives: np.ndarray, negatives: np.ndarray) -> tuple[float, float]:
    """The area under the ROC curve, and the false positive rate at the first level that 95 % of the positives reach."""
    found, false = np.cumsum(positives), np.cumsum(negatives)
    if not found[-1] or not false[-1]:
        return math.nan, math.nan
    tpr, fpr = (np.concatenate([[0], part / part[-1]]) for part in (found, false))
    return float(np.trapezoid(tpr, fpr)), float(fpr[int(np.searchsorted(tpr, 0.95))])


def _step_area(positives: np.ndarray, negatives: np.ndarray) -> float:
    found, alarms = np.cumsum(positives), np.cumsum(positives + negatives)
    if not found[-1]:
        return math.nan
    return float((positives * found / np.maximum(alarms, 1)).sum() / found[-1])


def _ece(semantic: np.ndarray) -> float:
    """The expected calibration error over 15 bins of levels."""
    starts = np.round(np.linspace(0, LEVELS, _BINS + 1)).astype(np.int64)[:-1]
    pixels = semantic.sum(0).astype(np.float64)
    total = pixels.sum()
    if not total:
        return math.nan
    confidence = pixels * (np.arange(LEVELS) + 0.5) / LEVELS
    right = semantic[1].astype(np.float64)
    return float(np.abs(np.add.reduceat(confidence, starts) - np.add.reduceat(right, starts)).sum() / total)
