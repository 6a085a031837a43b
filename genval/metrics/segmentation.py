"""IoU and accuracy, from confusion matrices whose rows are labels.

Definitions: Everingham et al., "The Pascal Visual Object Classes Challenge" (IJCV 2015), for the IoU; the averages are
those of the published GenVal / relis evaluation and agree with its numbers to 1e-9.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np


def iou_per_class(matrix: np.ndarray) -> np.ndarray:
    """Intersection over union of each class.

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
    return np.divide(hits, union, out=np.full(hits.shape, np.nan), where=union > 0)


def mean_iou(matrix: np.ndarray, classes: Sequence[int] | None = None, complete: bool = False) -> float:
    """Mean IoU over a class set.

    Args:
        matrix: int (C, C), rows are labels.
        classes: the class set, by index; None is all. Pixels of other classes still count against the predictions
            that fall on them, and a label of the set predicted as another class is still missed.
        complete: give NaN when a class of the set is absent. Otherwise the mean is over the classes of the set that
            are in the labels or the predictions, as published, and its meaning depends on which those are.

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
    """Share of pixels predicted right, in PERCENT, as published; NaN without pixels.

    >>> pixel_accuracy(np.array([[3, 1], [0, 4]]))
    87.5
    """
    total = int(matrix.sum())
    return 100.0 * int(np.trace(matrix)) / total if total else math.nan


def mean_class_accuracy(matrix: np.ndarray, classes: Sequence[int] | None = None) -> float:
    """Mean over labelled classes of the share of their pixels predicted right, a FRACTION, as published.

    Args:
        matrix: int (C, C), rows are labels.
        classes: the class set, by index; None is all. Classes without a labelled pixel are left out.

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
    """Classes that have labelled pixels in every one of the matrices: the set over which they can be compared.

    >>> labelled_classes([np.diag([1, 2, 0]), np.diag([1, 0, 3])])
    (0,)
    """
    present = [matrix.sum(1) > 0 for matrix in matrices]
    return tuple(int(index) for index in np.flatnonzero(np.all(present, axis=0)))


def figures(
    matrix: np.ndarray,
    names: Sequence[str],
    label_space: Sequence[int],
    class_sets: Mapping[str, Sequence[int]],
) -> dict[str, Any]:
    """Every figure of a confusion matrix, ready for JSON (NaN as None).

    Args:
        matrix: int (C, C), rows are labels.
        names: the classes' names.
        label_space: classes that the data set's masks can hold. `miou` is over those of them that are in the labels
            or predictions: a class that no mask can hold would only add zeros (IDD has no terrain).
        class_sets: fixed sets, by name; `miou_{name}` is None when a class of the set is absent.
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


def batch_figures(
    names: Sequence[str], label_space: Sequence[int], class_sets: Mapping[str, Sequence[int]], complete: bool = False
) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """The figures of `figures`, and each class's as `iou {name}`, as functions of many matrices at once.

    Args:
        names: the classes' names.
        label_space: the classes of `miou`.
        class_sets: fixed sets, by name.
        complete: `miou` is NaN where a class of `label_space` is absent.

    Returns:
        Functions from (D, C, C), rows are labels, to float64 (D,).
    """

    def mean(matrices: np.ndarray, classes: Sequence[int], complete: bool) -> np.ndarray:
        iou = iou_per_class(matrices)[:, list(classes)]
        there = ~np.isnan(iou)
        means = _over(np.where(there, iou, 0).sum(-1), there.sum(-1))
        return np.where(there.all(-1), means, np.nan) if complete else means

    def class_accuracy(matrices: np.ndarray) -> np.ndarray:
        labelled = matrices.sum(-1)
        accuracy = _over(np.diagonal(matrices, axis1=1, axis2=2), labelled)
        return _over(np.where(labelled > 0, accuracy, 0).sum(-1), (labelled > 0).sum(-1))

    values: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "miou": lambda matrices: mean(matrices, label_space, complete),
        **{
            f"miou_{key}": lambda matrices, classes=classes: mean(matrices, classes, True)  # type: ignore[misc]
            for key, classes in class_sets.items()
        },
        "pixel_accuracy_percent": lambda matrices: (
            100 * _over(np.trace(matrices, axis1=1, axis2=2), matrices.sum((1, 2)))
        ),
        "mean_class_accuracy": class_accuracy,
    }
    for index, name in enumerate(names):
        values[f"iou {name}"] = lambda matrices, index=index: iou_per_class(matrices)[:, index]  # type: ignore[misc]
    return values


def _over(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(np.shape(below), np.nan), where=below > 0)


def miou_standard_error(
    matrices: Sequence[np.ndarray], classes: Sequence[int] | None = None, draws: int = 1000, seed: int = 0
) -> float:
    """Standard error of the data set's mIoU over the choice of images, by the bootstrap.

    Images are drawn with replacement `draws` times; as matrices add, a draw is one weighted sum of them.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), algorithm 6.1.

    Args:
        matrices: each image's, int (C, C), rows are labels.
        classes: as in `mean_iou`.
        draws: number of resampled data sets.
        seed: of the drawing.

    Returns:
        In the mIoU's own unit; NaN with fewer than two images.
    """
    if len(matrices) < 2:
        return math.nan
    count = len(matrices)
    weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), draws)
    # float64 counts exactly up to 2^53 pixels and multiplies by BLAS, which int64 does not.
    stacked = np.stack(matrices).reshape(count, -1).astype(np.float64)
    resampled = (weights @ stacked).reshape(draws, *matrices[0].shape)
    return float(np.nanstd([mean_iou(matrix, classes) for matrix in resampled], ddof=1))


def plain(value: float) -> float | None:
    """`value` as JSON and CSV have it: None for NaN."""
    return None if math.isnan(value) else value
