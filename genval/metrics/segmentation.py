"""IoU and accuracy, from confusion matrices whose rows are labels.

The IoU is defined by Everingham et al., "The Pascal Visual Object Classes Challenge" (IJCV 2015). The averages are
those of the published GenVal / relis evaluation and agree with its numbers to 1e-9.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from genval.metrics.bootstrap import draw_weights
from genval.metrics.division import safe_divide


def iou_per_class(matrix: np.ndarray) -> np.ndarray:
    """Return the intersection over union of each class.

    Args:
        matrix: int (..., C, C), rows are labels.

    Returns:
        float64 (..., C) in 0..1; NaN for a class that is in neither the labels nor the predictions. A class that is
        predicted but never labelled has IoU 0.

    >>> iou_per_class(np.array([[3, 1, 0], [0, 2, 0], [0, 0, 0]])).round(3).tolist()
    [0.75, 0.667, nan]
    """
    hits = np.diagonal(matrix, axis1=-2, axis2=-1).astype(np.float64)
    union = matrix.sum(-2) + matrix.sum(-1) - hits
    return safe_divide(hits, union)


def mean_iou(matrix: np.ndarray, classes: Sequence[int] | None = None, complete: bool = False) -> float:
    """Return the mean IoU over a class set.

    Args:
        matrix: int (C, C), rows are labels.
        classes: the class set, by index; None is all classes. A pixel of another class that is predicted as a class of
            the set still counts as a false positive, and a pixel of the set predicted as another class as a false
            negative.
        complete: return NaN if a class of the set is absent. Otherwise the mean is over those classes of the set that
            are in the labels or the predictions, as published, and its meaning depends on which classes those are.

    Returns:
        A fraction in 0..1, or NaN when there is no class to average.

    >>> matrix = np.array([[3, 1, 0], [0, 2, 0], [0, 0, 0]])
    >>> round(mean_iou(matrix), 4), mean_iou(matrix, classes=[0]), mean_iou(matrix, complete=True)
    (0.7083, 0.75, nan)
    """
    iou = iou_per_class(matrix)
    if classes is not None:
        iou = iou[list(classes)]
    if not complete:
        iou = iou[~np.isnan(iou)]
    return float(iou.mean()) if len(iou) else math.nan


def pixel_accuracy(matrix: np.ndarray) -> float:
    """Return the share of correctly predicted pixels in PERCENT, as published; NaN without pixels.

    >>> pixel_accuracy(np.array([[3, 1], [0, 4]]))
    87.5
    """
    total = int(matrix.sum())
    return 100.0 * int(np.trace(matrix)) / total if total else math.nan


def mean_class_accuracy(matrix: np.ndarray, classes: Sequence[int] | None = None) -> float:
    """Return the mean over labelled classes of the share of correctly predicted pixels, a FRACTION, as published.

    Args:
        matrix: int (C, C), rows are labels.
        classes: the class set, by index; None is all classes. Classes without a labelled pixel are skipped.

    Returns:
        A fraction in 0..1; NaN without pixels.

    >>> mean_class_accuracy(np.array([[3, 1], [0, 4]]))
    0.875
    """
    labelled = matrix.sum(1)
    chosen = labelled > 0
    if classes is not None:
        chosen &= np.isin(np.arange(len(matrix)), list(classes))
    return float((np.diag(matrix)[chosen] / labelled[chosen]).mean()) if chosen.any() else math.nan


def labelled_classes(matrices: Iterable[np.ndarray]) -> tuple[int, ...]:
    """Return the classes that have labelled pixels in every matrix: the set over which the matrices can be compared.

    >>> labelled_classes([np.diag([1, 2, 0]), np.diag([1, 0, 3])])
    (0,)
    """
    present = [matrix.sum(1) > 0 for matrix in matrices]
    return tuple(int(index) for index in np.flatnonzero(np.all(present, axis=0)))


def segmentation_metrics(
    matrix: np.ndarray,
    names: Sequence[str],
    label_space: Sequence[int],
    class_sets: Mapping[str, Sequence[int]],
) -> dict[str, Any]:
    """Return every metric of a confusion matrix, ready for JSON (NaN as None).

    Args:
        matrix: int (C, C), rows are labels.
        names: the classes' names.
        label_space: classes that the masks of the data set can hold. `miou` is over those of them that are in the
            labels or predictions. A class that no mask can hold would only add zeros (e.g. IDD has no terrain).
        class_sets: fixed sets, by name; `miou_{name}` is None if a class of the set is absent.
    """
    iou = iou_per_class(matrix)
    values: dict[str, Any] = {"miou": plain(mean_iou(matrix, label_space))}
    for name, classes in class_sets.items():
        values[f"miou_{name}"] = plain(mean_iou(matrix, classes, complete=True))
    return values | {
        "pixel_accuracy_percent": plain(pixel_accuracy(matrix)),
        "mean_class_accuracy": plain(mean_class_accuracy(matrix)),
        "pixels": int(matrix.sum()),
        "iou_per_class": {name: plain(value) for name, value in zip(names, iou.tolist(), strict=True)},
    }


def metric_functions(
    names: Sequence[str], label_space: Sequence[int], class_sets: Mapping[str, Sequence[int]], complete: bool = False
) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Return the metrics of `segmentation_metrics` as functions of many matrices; each class has `iou {name}`.

    Args:
        names: the classes' names.
        label_space: the classes of `miou`.
        class_sets: fixed sets, by name.
        complete: `miou` is NaN if a class of `label_space` is absent.

    Returns:
        Functions from (D, C, C), rows are labels, to float64 (D,).
    """

    last: tuple[np.ndarray | None, np.ndarray] = (None, np.zeros(0))

    def iou_of(matrices: np.ndarray) -> np.ndarray:
        # Most functions are called with the same matrices, one after the other.
        nonlocal last
        if last[0] is not matrices:
            last = matrices, iou_per_class(matrices)
        return last[1]

    def mean(matrices: np.ndarray, classes: Sequence[int], complete: bool) -> np.ndarray:
        iou = iou_of(matrices)[:, list(classes)]
        present = ~np.isnan(iou)
        means = safe_divide(np.where(present, iou, 0).sum(-1), present.sum(-1))
        return np.where(present.all(-1), means, np.nan) if complete else means

    def class_accuracy(matrices: np.ndarray) -> np.ndarray:
        labelled = matrices.sum(-1)
        accuracy = safe_divide(np.diagonal(matrices, axis1=1, axis2=2), labelled)
        return safe_divide(np.where(labelled > 0, accuracy, 0).sum(-1), (labelled > 0).sum(-1))

    values: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "miou": lambda matrices: mean(matrices, label_space, complete),
        **{
            f"miou_{key}": lambda matrices, classes=classes: mean(matrices, classes, True)  # type: ignore[misc]
            for key, classes in class_sets.items()
        },
        "pixel_accuracy_percent": lambda matrices: (
            100 * safe_divide(np.trace(matrices, axis1=1, axis2=2), matrices.sum((1, 2)))
        ),
        "mean_class_accuracy": class_accuracy,
    }
    for index, name in enumerate(names):
        values[f"iou {name}"] = lambda matrices, index=index: iou_of(matrices)[:, index]  # type: ignore[misc]
    return values


def miou_standard_error(
    matrices: Sequence[np.ndarray], classes: Sequence[int] | None = None, draws: int = 1000, seed: int = 0
) -> float:
    """Return the bootstrap standard error of a data set's mIoU over the choice of images.

    Images are drawn with replacement `draws` times. Since matrices add up, a draw is a weighted sum of them.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), algorithm 6.1.

    Args:
        matrices: one per image, int (C, C), rows are labels.
        classes: as in `mean_iou`.
        draws: number of resampled data sets.
        seed: of the draws.

    Returns:
        A fraction, as the mIoU; NaN with fewer than two images.
    """
    if len(matrices) < 2:
        return math.nan
    count = len(matrices)
    weights = draw_weights(count, draws, seed)
    # float64 counts exactly up to 2^53 pixels and is multiplied by BLAS, unlike int64.
    stacked = np.stack(matrices).reshape(count, -1).astype(np.float64)
    resampled = (weights @ stacked).reshape(draws, *matrices[0].shape)
    return float(np.nanstd([mean_iou(matrix, classes) for matrix in resampled], ddof=1))


def plain(value: float) -> float | None:
    """Return `value` for JSON and CSV: None for NaN."""
    return None if math.isnan(value) else value
