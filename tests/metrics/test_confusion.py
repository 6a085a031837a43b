"""The confusion matrix against a plain reference written from the definition."""

import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference_metrics import segmentations

from genval.metrics import confusion
from genval.metrics.confusion import confusion_matrix
from genval.runtime.errors import GenValError

# The function that counts tensors on a GPU also runs on the CPU.
on_device = partial(confusion._count_torch, num_classes=19, ignore=255)


def slow_matrix(labels, predictions, num_classes):
    matrix = [[0] * num_classes for _ in range(num_classes)]
    for label, prediction in zip(labels.ravel().tolist(), predictions.ravel().tolist(), strict=True):
        if label != 255:
            matrix[label][prediction] += 1
    return matrix


@given(segmentations())
def test_the_matrix_follows_the_definition(case):
    labels, predictions, num_classes = case
    expected = slow_matrix(labels, predictions, num_classes)
    matrix = confusion_matrix(labels, predictions, num_classes)
    assert matrix.dtype == np.int64 and matrix.tolist() == expected
    assert confusion_matrix(labels.astype(np.int64), predictions.astype(np.int32), num_classes).tolist() == expected
    tensors = torch.from_numpy(labels), torch.from_numpy(predictions)
    assert confusion_matrix(*tensors, num_classes).tolist() == expected
    assert on_device(*tensors, num_classes=num_classes).tolist() == expected


@given(segmentations(), st.integers(0, 12))
def test_merging_is_addition(case, cut):
    labels, predictions, num_classes = case
    parts = [
        confusion_matrix(labels[rows], predictions[rows], num_classes) for rows in (slice(None, cut), slice(cut, None))
    ]
    assert (sum(parts) == confusion_matrix(labels, predictions, num_classes)).all()


def test_more_pixels_than_float32_can_count_are_counted_exactly():
    labels = np.zeros(2**24 + 5, np.uint8)
    assert confusion_matrix(labels, labels)[0, 0] == 2**24 + 5


@pytest.mark.parametrize("as_type", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
@pytest.mark.parametrize(
    ("labels", "predictions", "message"),
    [
        ([0, 1], [0, 19], r"predictions hold classes that do not exist: expected 0\.\.18, found 19"),
        ([0, 1], [0, 255], "predictions hold .* found 255"),
        ([0, 77], [0, 1], "labels hold classes .* found 77"),
        ([0, 1, 2], [0, 1], r"differ in shape: .*\(3,\) and \(2,\)"),
    ],
)
def test_invalid_classes_are_refused(as_type, labels, predictions, message):
    arrays = as_type(np.array(labels, np.uint8)), as_type(np.array(predictions, np.uint8))
    with pytest.raises(GenValError, match=message):
        confusion_matrix(*arrays)
    if as_type is torch.from_numpy and len(labels) == len(predictions):
        with pytest.raises(GenValError, match=message):
            on_device(*arrays)


@pytest.mark.parametrize("as_type", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_scores_and_nan_are_refused(as_type):
    arrays = as_type(np.zeros(2, np.uint8)), as_type(np.array([0.0, math.nan], np.float32))
    with pytest.raises(GenValError, match=r"predictions must be integers, found .*float"):
        confusion_matrix(*arrays)
    if as_type is torch.from_numpy:
        with pytest.raises(GenValError, match=r"predictions must be integers, found .*float"):
            on_device(*arrays)


def test_an_array_and_a_tensor_are_not_mixed():
    with pytest.raises(GenValError, match="found one of each"):
        confusion_matrix(np.zeros(2, np.uint8), torch.zeros(2, dtype=torch.uint8))


def test_negative_classes_are_refused():
    with pytest.raises(GenValError, match=r"must be in 0\.\.255, found -1"):
        confusion_matrix(np.array([0, 1]), np.array([0, -1]))
    with pytest.raises(GenValError, match="predictions hold classes that do not exist"):
        on_device(torch.tensor([0, 1]), torch.tensor([0, -1]))


def test_a_prediction_does_not_matter_where_the_label_is_void():
    assert confusion_matrix(np.array([255], np.uint8), np.array([200], np.uint8)).sum() == 0
    assert on_device(torch.tensor([255]), torch.tensor([200])).sum() == 0


def test_classes_that_do_not_exist_are_listed_up_to_eight():
    predictions = np.arange(20, 30, dtype=np.uint8)
    message = r"^The predictions hold classes that do not exist: expected 0\.\.18, found "
    with pytest.raises(GenValError, match=message + r"20, 21, 22, 23, 24, 25, 26, 27, \.\.\.\.$"):
        confusion_matrix(np.zeros(10, np.uint8), predictions)
    with pytest.raises(GenValError, match=message + r"20, 21, 22, 23, 24, 25, 26, 27\.$"):
        confusion_matrix(np.zeros(8, np.uint8), predictions[:8])


def test_labels_are_named_and_tensors_of_the_cpu_count_as_arrays():
    with pytest.raises(GenValError, match=r"^The labels must be integers, found float64. Take the argmax"):
        confusion_matrix(np.zeros(2), np.zeros(2, np.uint8))
    with pytest.raises(GenValError, match=r"^The labels must be in 0\.\.255, found 0\.\.256\.$"):
        confusion_matrix(torch.tensor([0, 256]), torch.tensor([0, 0]))


def test_tensors_of_a_gpu_are_counted_there(monkeypatch):
    labels, predictions = (SimpleNamespace(shape=(2,), device=torch.device("cuda")) for _ in range(2))
    counted = []
    monkeypatch.setattr(confusion, "_count_torch", lambda *args: counted.append(args))
    confusion_matrix(labels, predictions)
    assert counted == [(labels, predictions, 19, 255)]
