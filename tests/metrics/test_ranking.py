"""Rankings from counts against plain references, scikit-learn and the published numbers."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference_metrics import same, slow_aupr, slow_auroc, slow_fpr, slow_prr, softmax

from genval.metrics.ranking import aupr, auroc, auroc_bound, counts_by_score, fpr_at_tpr, prediction_rejection_ratio
from genval.runtime.errors import GenValError


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=25))
def test_rankings_follow_the_definitions_with_ties(pairs):
    scores, positive = np.array([s for s, _ in pairs], float), np.array([p for _, p in pairs])
    counts = counts_by_score(scores, positive)
    same(auroc(*counts), slow_auroc(scores, positive))
    same(aupr(*counts), slow_aupr(scores, positive))
    same(fpr_at_tpr(*counts), slow_fpr(scores, positive) if len(set(positive)) == 2 else math.nan)
    if len(set(scores)) == len(scores):
        same(prediction_rejection_ratio(*counts), slow_prr(scores, positive))
        same(prediction_rejection_ratio(*counts), 100 * (2 * auroc(*counts) - 1))


def test_a_perfect_ranking_has_prr_100_and_the_worst_minus_100():
    right = np.arange(50) < 37
    for scores, expected in ((-np.arange(50.0), 100), (np.arange(50.0), -100), (np.zeros(50), 0)):
        assert prediction_rejection_ratio(*counts_by_score(scores, right)) == pytest.approx(expected, abs=1e-9)
    assert math.isnan(prediction_rejection_ratio(*counts_by_score(np.arange(3.0), np.ones(3, bool))))


def test_rankings_agree_with_scikit_learn():
    from sklearn.metrics import auc, precision_recall_curve, roc_auc_score

    generator = np.random.default_rng(0)
    positive = generator.random(500) < 0.2
    scores = np.round(generator.normal(size=500) + positive, 1)
    counts = counts_by_score(scores, positive)
    precision, recall, _ = precision_recall_curve(positive, scores)
    same(auroc(*counts), roc_auc_score(positive, scores))
    same(aupr(*counts), auc(recall, precision))


def test_scores_that_are_nan_or_unpaired_are_refused():
    with pytest.raises(GenValError, match="finite"):
        counts_by_score(np.array([0.1, math.nan]), np.array([True, False]))
    with pytest.raises(GenValError, match="differ in number: 1 and 2"):
        counts_by_score(np.array([0.1]), np.array([True, False]))


def test_published_ood_rankings_of_each_image(golden):
    arrays, expected = golden
    for logits, image in zip(arrays["ood_logits"], expected["ood_per_image"], strict=True):
        top, left, height, width = image["mask_box_yxhw"]
        is_object = np.zeros(logits.shape[1:], bool)
        is_object[top : top + height, left : left + width] = True
        probabilities = softmax(logits.reshape(19, -1).T.astype(np.float64))
        scores = {
            "entropy": -(probabilities * np.log(probabilities + 1e-15)).sum(1),
            "confidence": -probabilities.max(1),
            "logits": -logits.max(0).ravel(),
        }
        for name, score in scores.items():
            positives, negatives = counts_by_score(score, is_object)
            same(auroc(positives, negatives), image[name]["auroc"], 1e-6)
            same(fpr_at_tpr(positives, negatives), image[name]["fpr"], 1e-6)
            same(aupr(positives, negatives), image[name]["aupr_in"], 1e-6)
            same(aupr(negatives[::-1], positives[::-1]), image[name]["aupr_out"], 1e-6)


def test_no_pixel_has_no_counts():
    for counts in counts_by_score(np.zeros(0), np.zeros(0)):
        assert counts.dtype == np.int64 and counts.shape == (0,)
    with pytest.raises(GenValError, match=r"^Scores must be finite, found NaN or infinity.$"):
        counts_by_score(np.array([math.nan]), np.array([True]))


def test_bounds_of_many_sets_and_of_more_pixels_than_int64_can_square():
    right, wrong = np.array([[2, 1, 0], [4, 0, 1]]), np.array([[0, 1, 1], [1, 2, 1]])
    same(auroc_bound(right, wrong), [0.5 / 6, 2.5 / 20])
    assert prediction_rejection_ratio(np.array([10**10, 0]), np.array([0, 4 * 10**9])) == pytest.approx(100)


def test_the_share_of_the_level_of_the_threshold_that_counts():
    right, wrong = np.array([[100, 0, 0], [90, 10, 0], [5, 5, 90]]), np.array([[8, 1, 1], [2, 4, 4], [0, 0, 10]])
    same(fpr_at_tpr(right, wrong, interpolate=True), [0.95 * 0.8, 0.2 + 0.5 * 0.4, 85 / 90])
    same(fpr_at_tpr(right, wrong), [0.8, 0.6, 1])
