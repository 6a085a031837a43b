"""IoU and accuracy against plain references and the published numbers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_metrics import segmentations

from genval.metrics.bootstrap import draw_weights
from genval.metrics.confusion import confusion_matrix
from genval.metrics.segmentation import (
    iou_per_class,
    labelled_classes,
    mean_class_accuracy,
    mean_iou,
    metric_functions,
    miou_standard_error,
    pixel_accuracy,
    segmentation_metrics,
)


def slow_iou(labels, predictions, index):
    counted = labels != 255
    in_label, in_prediction = (labels == index) & counted, (predictions == index) & counted
    union = (in_label | in_prediction).sum()
    return (in_label & in_prediction).sum() / union if union else math.nan


@given(segmentations())
def test_metrics_follow_the_definitions(case):
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


def test_a_class_set_without_the_classes_that_idd_does_not_have():
    matrix = np.diag(np.full(19, 10))
    matrix[9, 9], matrix[9, 8] = 0, 10  # terrain is never found
    idd = [index for index in range(19) if index not in (9, 16)]
    assert mean_iou(matrix) == pytest.approx((17 + 0.5) / 19)
    assert mean_iou(matrix, idd) == pytest.approx(16.5 / 17)


def test_an_all_void_image_has_no_metrics():
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


def test_classes_that_are_labelled_in_every_set():
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


def close(value, expected):
    as_floats = [
        np.array([math.nan if v is None else v for v in np.ravel(values)], float) for values in (value, expected)
    ]
    np.testing.assert_allclose(*as_floats, rtol=0, atol=1e-9)


def test_published_metrics_of_the_data_set(golden):
    labels, predictions = golden[0]["labels"], golden[0]["logits"].argmax(1).astype(np.uint8)
    expected = golden[1]["robustness"]
    matrix = confusion_matrix(labels, predictions)
    assert matrix.tolist() == expected["confusion_matrix_rows_are_labels"]
    close(iou_per_class(matrix), expected["iou_per_class_dataset"])
    close(mean_iou(matrix), expected["miou_dataset_nanmean"])
    close(pixel_accuracy(matrix), expected["pixel_accuracy_dataset_percent"])
    close(mean_class_accuracy(matrix), expected["mean_class_accuracy_dataset"])


def test_published_metrics_of_each_image(golden):
    labels, predictions = golden[0]["labels"], golden[0]["logits"].argmax(1).astype(np.uint8)
    expected = golden[1]["robustness"]
    for index in range(len(labels)):
        matrix = confusion_matrix(torch.from_numpy(labels[index]), torch.from_numpy(predictions[index]))
        close(iou_per_class(matrix), expected["iou_per_class_per_image"][index])
        close(pixel_accuracy(matrix), expected["pixel_accuracy_per_image_percent"][index])
        close(mean_class_accuracy(matrix), expected["mean_class_accuracy_per_image"][index])


@pytest.mark.parametrize("complete", [False, True])
def test_metrics_of_many_matrices_equal_those_of_each(complete):
    generator = np.random.default_rng(0)
    matrices = generator.integers(0, 9, (6, 4, 4))
    matrices[1, 3] = matrices[1, :, 3] = 0  # absent
    matrices[2, 2] = 0  # predicted, not labelled
    matrices[3] = 0
    names, label_space, sets = ["a", "b", "c", "d"], [0, 1, 3], {"first": [0, 1], "last": [2, 3]}
    functions = metric_functions(names, label_space, sets, complete)
    assert [*functions] == [
        "miou", "miou_first", "miou_last", "pixel_accuracy_percent", "mean_class_accuracy",
        "iou a", "iou b", "iou c", "iou d",
    ]  # fmt: skip
    for index, matrix in enumerate(matrices):
        expected = segmentation_metrics(matrix, names, label_space, sets)
        expected |= {f"iou {name}": value for name, value in expected["iou_per_class"].items()}
        if complete:
            expected["miou"] = mean_iou(matrix, label_space, complete=True)
        for name, function in functions.items():
            values = function(matrices)
            assert values.shape == (6,) and values.dtype == np.float64
            close(values[index], expected[name])
    assert math.isnan(functions["miou"](matrices)[1]) == complete
    assert segmentation_metrics(matrices[1], names, label_space, sets)["miou_last"] is None
    default = metric_functions(names, label_space, sets)["miou"](matrices)
    close(default, [mean_iou(matrix, label_space) for matrix in matrices])


def test_each_class_needs_a_name():
    with pytest.raises(ValueError, match="longer"):
        segmentation_metrics(np.eye(3, dtype=np.int64), ["a", "b"], [0, 1], {})


def test_the_standard_error_of_two_images_is_that_of_the_draws():
    matrices = [np.array([[5, 1], [0, 4]]), np.array([[2, 6], [3, 9]])]
    draws = [sum(n * matrix for n, matrix in zip(row, matrices, strict=True)) for row in draw_weights(2, 1000, 0)]
    expected = np.std([mean_iou(matrix) for matrix in draws], ddof=1)
    assert miou_standard_error(matrices) == pytest.approx(expected, rel=1e-12) and expected > 0
