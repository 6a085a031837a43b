"""Label-free estimates against plain loops, and on cases whose answer is known."""

from collections import Counter

import numpy as np
import pytest

from genval.kernels.layout import BINS, CONFIDENCE_LEVELS
from genval.report.evidence import Evidence, Place
from genval.report.label_free import (
    accuracy_threshold,
    confidence_scores,
    difference_scores,
    pixels_above,
    read_votes,
    threshold_level,
    thresholded_scores,
    vote_counts,
)
from genval.results.scenes import SceneResults
from genval.runtime.errors import GenValError
from genval.runtime.files import write_png


@pytest.mark.parametrize("models", [3, 4, 9])
def test_the_vote_is_that_of_the_other_models(models):
    predictions = np.random.default_rng(models).integers(0, 4, (models, 300), dtype=np.uint8)
    counts = vote_counts(predictions, 5)
    for model in range(models):
        expected = np.zeros((3, 5))
        for pixel in range(300):
            others = Counter(predictions[np.arange(models) != model, pixel].tolist())
            vote = min(others, key=lambda train_id: (-others[train_id], train_id))
            predicted = predictions[model, pixel]
            expected[0, vote] += vote == predicted
            expected[1, vote] += 1
            expected[2, predicted] += 1
        assert (counts[model] == expected).all()


def test_a_threshold_gives_the_accuracy_on_the_set_it_is_chosen_on():
    generator = np.random.default_rng(0)
    levels = generator.integers(0, 20, (2, 400)) * (generator.random((2, 400)) < 0.3)
    above, pixels = pixels_above(levels, threshold_level(levels))
    assert above / pixels == pytest.approx(levels[1].sum() / levels.sum())


def test_a_threshold_does_not_divide_empty_levels():
    levels = np.array([[0, 0, 0, 2], [2, 0, 0, 0]])
    assert threshold_level(levels) == 1
    assert pixels_above(np.array([[0, 0, 5, 0], [0, 5, 0, 0]]), 1.0) == (0, 10)


def bins(right, pixels, confidence):
    values = np.zeros((1, 1, 3, BINS))
    values[0, 0, :, 3] = right, pixels, confidence
    return values


def evidence(dataset="ACDC", images=("a/1",), counts=None):
    return Evidence(Place(dataset, "fog"), images, images, np.zeros((len(images), 1, 3, 19)), counts)


def test_confidences_estimate_the_accuracy():
    one = np.ones((2, 1))
    unlabelled, labelled = evidence(counts=bins(0, 10, 6.0)), evidence(counts=bins(8, 10, 9.0))
    assert confidence_scores(unlabelled, one).value.tolist() == pytest.approx([60])
    score = difference_scores(unlabelled, one, labelled, one)
    assert score.value.tolist() == pytest.approx([80 - 30])
    assert score.drawn.tolist() == pytest.approx(np.full((2, 1), 50))


def test_estimates_are_read_from_saved_results(tmp_path):
    models = ["one", "two", "three"]
    images = ("a/1", "a/2")
    predictions = np.random.default_rng(0).integers(0, 3, (2, 3, 6, 8), dtype=np.uint8)
    for row, item in enumerate(("1", "2")):
        for column, model in enumerate(models):
            results = SceneResults(tmp_path, model, "ACDC", "fog", "a")
            write_png(results.prediction(item), predictions[row, column])
            levels = np.zeros((2, CONFIDENCE_LEVELS), np.int64)
            levels[1, 0], levels[0, 100] = 30 + row, 18 - row
            results.counts(item).parent.mkdir(parents=True, exist_ok=True)
            np.savez(results.counts(item), levels=levels)
    votes = read_votes(tmp_path, models, evidence(images=images))
    assert (votes[1] == vote_counts(predictions[1].reshape(3, -1))).all()
    fog = evidence(images=images)
    thresholds = np.array([[accuracy_threshold(tmp_path, model, fog) for model in models], [np.nan, np.nan, 0.5]])
    scores, other = thresholded_scores(tmp_path, models, fog, np.eye(2), thresholds)
    assert np.isnan(other.value).tolist() == [True, True, False]
    assert scores.value.tolist() == pytest.approx([100 * 61 / 96] * 3)
    assert scores.drawn[:, 0].tolist() == pytest.approx([100 * 30 / 48, 100 * 31 / 48])
    SceneResults(tmp_path, "two", "ACDC", "fog", "a").prediction("2").unlink()
    with pytest.raises(GenValError, match="--save predictions"):
        read_votes(tmp_path, models, fog)
