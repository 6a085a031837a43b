"""Prediction and measurement of batches of images."""

import doctest
import math

import numpy as np
import pytest
import torch

from genval.evaluation import inference
from genval.evaluation.inference import launch_batch, sample_pixels
from genval.runtime.errors import GenValError
from genval.segmenters.prediction import predict


def test_examples_in_docstrings():
    outcome = doctest.testmod(inference)
    assert outcome.attempted > 0 and outcome.failed == 0


def segmenter(logits):
    callable_ = lambda images, size: logits.expand(len(images), -1, *size)  # noqa: E731
    return type("Fake", (), {"name": "fake", "__call__": staticmethod(callable_)})()


def test_predict_takes_the_largest_logit():
    logits = torch.arange(19.0).view(1, 19, 1, 1).roll(3, 1)
    predictions = predict(segmenter(logits), np.zeros((2, 4, 5, 3), np.uint8), ["a", "b"], torch.device("cpu"))
    assert predictions.dtype == np.uint8 and predictions.shape == (2, 4, 5) and (predictions == 2).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_predict_refuses_logits_that_are_not_finite(value):
    class Second:
        name = "fake"

        def __call__(self, images, size):
            logits = torch.zeros(2, 19, *size)
            logits[1, :, 0, 0] = value
            return logits

    with pytest.raises(GenValError, match=r"fake gives NaN or infinite logits for b\.png"):
        predict(Second(), np.zeros((2, 4, 5, 3), np.uint8), ["a.png", "b.png"], torch.device("cpu"))


def test_predict_refuses_one_class_that_is_nan():
    logits = torch.zeros(1, 19, 1, 1)
    logits[0, 7] = float("nan")
    with pytest.raises(GenValError, match="NaN"):
        predict(segmenter(logits), np.zeros((1, 2, 2, 3), np.uint8), ["a"], torch.device("cpu"))


def test_a_sample_is_seeded_and_the_confusion_matrix_is_of_all_pixels():
    sample = sample_pixels(48, 10, 0, "a")
    assert len(set(sample.tolist())) == 10 and (np.diff(sample) > 0).all() and sample.max() < 48
    assert sample.tolist() != sample_pixels(48, 10, 0, "b").tolist() != sample_pixels(48, 10, 1, "b").tolist()
    assert sample_pixels(48, -1, 0, "a").tolist() == sample_pixels(48, 99, 0, "a").tolist() == list(range(48))

    logits = torch.randn(1, 19, 6, 8, generator=torch.manual_seed(1))
    segmenter = type("Fake", (), {"name": "fake", "__call__": staticmethod(lambda images, size: logits)})()
    labels = np.random.default_rng(0).integers(0, 19, (1, 6, 8)).astype(np.uint8)
    images = np.zeros((1, 6, 8, 3), np.uint8)
    (whole,) = launch_batch(segmenter, images, labels, ["a"], torch.device("cpu"))()
    (part,) = launch_batch(segmenter, images, labels, ["a"], torch.device("cpu"), [sample], [sample], half=True)()
    assert (part.statistics.confusion == whole.statistics.confusion).all() and whole.logits is None
    assert part.statistics.bins.sum() == 10 and whole.statistics.bins.sum() == 48
    assert part.logits.dtype == np.float16 and (part.logits == logits[0].flatten(1).T[sample].half().numpy()).all()
    assert (part.prediction == whole.prediction).all()
    logits[0, 3, 0, next(i for i in range(8) if i not in sample)] = math.nan  # predicted, though not measured
    with pytest.raises(GenValError, match="fake gives NaN or infinite logits for a"):
        launch_batch(segmenter, images, labels, ["a"], torch.device("cpu"), [sample])()
