"""The confusion matrix, from which every accuracy and IoU is computed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from genval.runtime.errors import GenValError

if TYPE_CHECKING:
    import torch

# OpenCV counts in float32, which is exact up to 2^24 pixels per call.
_CHUNK = 1 << 24


def confusion_matrix(
    labels: np.ndarray | torch.Tensor, predictions: np.ndarray | torch.Tensor, num_classes: int = 19, ignore: int = 255
) -> np.ndarray:
    """Count pixels by labelled and predicted class. The sum of matrices is the matrix of all their pixels.

    On the CPU OpenCV counts one 256x256 joint histogram (2.6 ms for 1024x2048 on one thread, a third of the time of
    NumPy's `bincount`); on a GPU it is one `bincount`.

    Args:
        labels: integers of any shape, 0..num_classes-1 or `ignore`.
        predictions: integers of the same shape, 0..num_classes-1 wherever `labels` is not `ignore`.
        num_classes: number of classes, at most 255.
        ignore: label of pixels that are not counted, 0..255.

    Returns:
        int64 (num_classes, num_classes); rows are labels, columns predictions.

    Raises:
        GenValError: shapes differ, values are not integers (so a NaN cannot enter), or a class does not exist.

    >>> labels = np.array([[0, 0, 1, 255]], np.uint8)
    >>> predictions = np.array([[0, 1, 1, 1]], np.uint8)
    >>> confusion_matrix(labels, predictions, num_classes=2).tolist()
    [[1, 1], [0, 1]]
    """
    if tuple(labels.shape) != tuple(predictions.shape):
        raise GenValError(
            "Labels and predictions differ in shape: expected one shape, found "
            f"{tuple(labels.shape)} and {tuple(predictions.shape)}."
        )
    if not isinstance(labels, np.ndarray) and not isinstance(predictions, np.ndarray):
        if labels.device.type != "cpu":
            return _count_torch(labels, predictions, num_classes, ignore)
        labels, predictions = labels.numpy(), predictions.numpy()
    if isinstance(labels, np.ndarray) and isinstance(predictions, np.ndarray):
        return _count_numpy(_as_uint8(labels, "labels"), _as_uint8(predictions, "predictions"), num_classes, ignore)
    raise GenValError("Labels and predictions must both be NumPy arrays or both be tensors, found one of each.")


def _as_uint8(values: np.ndarray, name: str) -> np.ndarray:
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind not in "iu":
        raise GenValError(f"The {name} must be integers, found {values.dtype}. Take the argmax of the scores first.")
    if values.size and (values.min() < 0 or values.max() > 255):
        raise GenValError(f"The {name} must be in 0..255, found {values.min()}..{values.max()}.")
    return values.astype(np.uint8)


def _count_numpy(labels: np.ndarray, predictions: np.ndarray, num_classes: int, ignore: int) -> np.ndarray:
    import cv2

    labels, predictions = labels.reshape(1, -1), predictions.reshape(1, -1)
    joint = np.zeros((256, 256), np.int64)
    for start in range(0, labels.size, _CHUNK):
        pair = [labels[:, start : start + _CHUNK], predictions[:, start : start + _CHUNK]]
        joint += cv2.calcHist(pair, [0, 1], None, [256, 256], [0, 256, 0, 256]).astype(np.int64)
    joint[ignore] = 0
    for name, invalid in (("labels", joint[num_classes:].sum(1)), ("predictions", joint[:, num_classes:].sum(0))):
        if invalid.any():
            _refuse(name, (np.flatnonzero(invalid) + num_classes).tolist(), num_classes)
    return joint[:num_classes, :num_classes].copy()


def _count_torch(labels: torch.Tensor, predictions: torch.Tensor, num_classes: int, ignore: int) -> np.ndarray:
    import torch

    for name, values in (("labels", labels), ("predictions", predictions)):
        if values.is_floating_point() or values.is_complex():
            raise GenValError(
                f"The {name} must be integers, found {values.dtype}. Take the argmax of the scores first."
            )
    cells = num_classes * num_classes
    labels, predictions = labels.flatten().long(), predictions.flatten().long()
    key = labels * num_classes + predictions
    invalid = (labels < 0) | (labels >= num_classes) | (predictions < 0) | (predictions >= num_classes)
    # Two more cells, for ignored and for invalid pixels, so that one pass and one synchronisation are enough.
    key = torch.where(labels == ignore, cells, torch.where(invalid, cells + 1, key))
    counts = torch.bincount(key, minlength=cells + 2).cpu().numpy()
    if counts[cells + 1]:
        counted = labels != ignore
        for name, values in (("labels", labels), ("predictions", predictions)):
            found = torch.unique(values[counted & ((values < 0) | (values >= num_classes))])
            if len(found):
                _refuse(name, found.tolist(), num_classes)
    return counts[:cells].reshape(num_classes, num_classes)


def _refuse(name: str, found: list[Any], num_classes: int) -> None:
    shown = ", ".join(map(str, found[:8])) + (", ..." if len(found) > 8 else "")
    raise GenValError(f"The {name} hold classes that do not exist: expected 0..{num_classes - 1}, found {shown}.")
