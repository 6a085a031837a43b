"""Fast metrics against the published numbers and against plain references written from the definitions."""

import json
import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genval.metrics import confusion
from genval.metrics.confusion import confusion_matrix
from genval.metrics.segmentation import (
    iou_per_class,
    labelled_classes,
    mean_class_accuracy,
    mean_iou,
    miou_standard_error,
    pixel_accuracy,
    segmentation_metrics,
)
from genval.runtime.errors import GenValError
from genval.runtime.paths import REPO_ROOT

# What tensors on a GPU are counted by runs on the CPU too.
on_device = partial(confusion._count_torch, num_classes=19, ignore=255)
GOLDEN = REPO_ROOT.parent / "shared/golden"


@st.composite
def segmentations(draw):
    """Labels and predictions of 1..19 classes: any shape, classes missing, some or all of it void."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    num_classes = draw(st.integers(1, 19))
    shape = draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    used = generator.permutation(num_classes)[: draw(st.integers(1, num_classes))]
    labels = generator.choice(used, shape).astype(np.uint8)
    labels[generator.random(shape) < draw(st.sampled_from([0.0, 0.3, 1.0]))] = 255
    predictions = generator.integers(0, num_classes, shape).astype(np.uint8)
    return labels, predictions, num_classes


def slow_matrix(labels, predictions, num_classes):
    matrix = [[0] * num_classes for _ in range(num_classes)]
    for label, prediction in zip(labels.ravel().tolist(), predictions.ravel().tolist(), strict=True):
        if label != 255:
            matrix[label][prediction] += 1
    return matrix


def slow_iou(labels, predictions, index):
    counted = labels != 255
    in_label, in_prediction = (labels == index) & counted, (predictions == index) & counted
    union = (in_label | in_prediction).sum()
    return (in_label & in_prediction).sum() / union if union else math.nan


@given(segmentations())
def test_the_matrix_is_the_count_of_the_definition(case):
    labels, predictions, num_classes = case
    expected = slow_matrix(labels, predictions, num_classes)
    matrix = confusion_matrix(labels, predictions, num_classes)
    assert matrix.dtype == np.int64 and matrix.tolist() == expected
    assert confusion_matrix(labels.astype(np.int64), predictions.astype(np.int32), num_classes).tolist() == expected
    tensors = torch.from_numpy(labels), torch.from_numpy(predictions)
    assert confusion_matrix(*tensors, num_classes).tolist() == expected
    assert on_device(*tensors, num_classes=num_classes).tolist() == expected


@given(segmentations())
def test_figures_follow_the_definitions(case):
    labels, predictions, num_classes = case
    matrix = confusion_matrix(labels, predictions, num_classes)
    iou = [slow_iou(labels, predictions, index) for index in range(num_classes)]
    np.testing.assert_allclose(iou_per_class(matrix), iou, rtol=0, atol=1e-12)
    occurring = [value for value in iou if not math.isnan(value)]
    expected = sum(occurring) / len(occurring) if occurring else math.nan
    np.testing.assert_allclose(mean_iou(matrix), expected, rtol=0, atol=1e-12)
    complete = mean_iou(matrix, complete=True)
    assert math.isnan(complete) if len(occurring) < num_classes else abs(complete - expected) < 1e-12

    counted = labels != 255
    right = [(predictions == labels)[labels == index].mean() for index in np.unique(labels[counted])]
    accuracy = 100 * (predictions == labels)[counted].mean() if counted.any() else math.nan
    np.testing.assert_allclose(pixel_accuracy(matrix), accuracy, rtol=0, atol=1e-9)
    np.testing.assert_allclose(mean_class_accuracy(matrix), np.mean(right) if right else math.nan, rtol=0, atol=1e-12)


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
def test_what_is_no_class_is_refused(as_type, labels, predictions, message):
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


def test_one_class_set_for_a_comparison_with_idd():
    matrix = np.diag(np.full(19, 10))
    matrix[9, 9], matrix[9, 8] = 0, 10  # terrain is never found
    idd = [index for index in range(19) if index not in (9, 16)]
    assert mean_iou(matrix) == pytest.approx((17 + 0.5) / 19)
    assert mean_iou(matrix, idd) == pytest.approx(16.5 / 17)


def test_an_all_void_image_has_no_figures():
    assert segmentation_metrics(np.zeros((2, 2), np.int64), ["a", "b"], [0, 1], {"2": [0, 1]}) == {
        "miou": None,
        "miou_2": None,
        "pixel_accuracy_percent": None,
        "mean_class_accuracy": None,
        "pixels": 0,
        "iou_per_class": {"a": None, "b": None},
    }


def test_a_class_that_no_mask_can_hold_adds_no_zero_to_the_mean():
    matrix = np.array([[8, 0, 2], [0, 5, 0], [0, 0, 0]])
    assert segmentation_metrics(matrix, ["a", "b", "c"], [0, 1], {})["miou"] == pytest.approx(0.9)
    assert mean_iou(matrix) == pytest.approx(0.6)


def test_classes_labelled_in_every_set():
    assert labelled_classes([np.diag([3, 0, 1]), np.array([[0, 2, 0], [9, 9, 9], [1, 0, 0]])]) == (0, 2)


@settings(max_examples=5)
@given(st.integers(0, 2**32 - 1))
def test_the_standard_error_agrees_with_resampling_one_by_one(seed):
    generator = np.random.default_rng(seed)
    matrices = [generator.integers(0, 50, (4, 4)) + np.diag(generator.integers(0, 300, 4)) for _ in range(12)]
    fast = miou_standard_error(matrices)
    draws = [sum(matrices[index] for index in generator.integers(0, 12, 12)) for _ in range(2000)]
    slow = np.std([mean_iou(matrix) for matrix in draws])
    assert fast == pytest.approx(slow, rel=0.15)
    assert math.isnan(miou_standard_error(matrices[:1]))


@pytest.fixture(scope="module")
def golden():
    if not (GOLDEN / "metrics.npz").exists():
        pytest.skip("../shared/golden is not here")
    arrays = np.load(GOLDEN / "metrics.npz")
    expected = json.loads((GOLDEN / "metrics.json").read_text())["robustness"]
    return arrays["labels"], arrays["logits"].argmax(1).astype(np.uint8), expected


def close(value, expected):
    as_floats = [
        np.array([math.nan if v is None else v for v in np.ravel(values)], float) for values in (value, expected)
    ]
    np.testing.assert_allclose(*as_floats, rtol=0, atol=1e-9)


def test_published_figures_of_the_data_set(golden):
    labels, predictions, expected = golden
    matrix = confusion_matrix(labels, predictions)
    assert matrix.tolist() == expected["confusion_matrix_rows_are_labels"]
    close(iou_per_class(matrix), expected["iou_per_class_dataset"])
    close(mean_iou(matrix), expected["miou_dataset_nanmean"])
    close(pixel_accuracy(matrix), expected["pixel_accuracy_dataset_percent"])
    close(mean_class_accuracy(matrix), expected["mean_class_accuracy_dataset"])


def test_published_figures_of_each_image(golden):
    labels, predictions, expected = golden
    for index in range(len(labels)):
        matrix = confusion_matrix(torch.from_numpy(labels[index]), torch.from_numpy(predictions[index]))
        close(iou_per_class(matrix), expected["iou_per_class_per_image"][index])
        close(pixel_accuracy(matrix), expected["pixel_accuracy_per_image_percent"][index])
        close(mean_class_accuracy(matrix), expected["mean_class_accuracy_per_image"][index])
