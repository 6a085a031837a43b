"""The metrics of the BRAVO challenge against scikit-learn and the definition, pixel by pixel."""

import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from genval.metrics.bravo import BravoCounts, bravo_index, ood_metrics, quantise, semantic_metrics


@pytest.fixture
def image():
    rng = np.random.default_rng(0)
    shape = (40, 50)
    prediction = rng.integers(0, 19, shape).astype(np.uint8)
    confidence = rng.integers(0, 1 << 16, shape).astype(np.uint16)
    train_ids = np.where(rng.random(shape) < confidence / 65536, prediction, rng.integers(0, 19, shape))
    train_ids[:5] = 255
    return prediction, confidence, train_ids.astype(np.uint8), rng.random(shape) < 0.2


def test_metrics_are_those_of_single_pixels(image):
    prediction, confidence, train_ids, invalid = image
    counts = BravoCounts.measure(*image)
    valid = (train_ids != 255) & ~invalid
    right, ranked = (prediction == train_ids)[valid], confidence[valid].astype(float)
    found = semantic_metrics(counts)
    assert found["auroc"] == pytest.approx(roc_auc_score(right, ranked))
    assert found["auprc_success"] == pytest.approx(average_precision_score(right, ranked))
    assert found["auprc_error"] == pytest.approx(average_precision_score(~right, -ranked))
    fpr, tpr, _ = roc_curve(right, ranked, drop_intermediate=False)
    assert found["fpr95"] == pytest.approx(fpr[np.searchsorted(tpr, 0.95)])
    iou = [
        ((prediction == c) & (train_ids == c) & valid).sum() / (((prediction == c) | (train_ids == c)) & valid).sum()
        for c in range(19)
    ]
    assert found["miou"] == pytest.approx(np.mean(iou))
    bins = np.searchsorted(np.round(np.linspace(0, 65536, 16)), ranked, side="right") - 1
    probability = (ranked + 0.5) / 65536
    errors = [abs((probability - right)[bins == b].sum()) for b in range(15)]
    assert found["ece"] == pytest.approx(sum(errors) / len(right))
    labelled = train_ids != 255
    found = ood_metrics(counts)
    assert found["auroc"] == pytest.approx(roc_auc_score(invalid[labelled], -confidence[labelled].astype(float)))
    assert found["auprc"] == pytest.approx(
        average_precision_score(invalid[labelled], -confidence[labelled].astype(float))
    )


def test_counts_add_up(image):
    halves = [BravoCounts.measure(*(part[rows] for part in image)) for rows in (slice(0, 20), slice(20, None))]
    assert semantic_metrics(halves[0] + halves[1]) == semantic_metrics(BravoCounts.measure(*image))


def test_the_index_is_a_harmonic_mean_of_harmonic_means():
    found = bravo_index([{"miou": 0.5, "ece": 0.5}, {"miou": 0.25, "ece": 0.75}], [{"auroc": 1.0, "fpr95": 0.0}])
    assert found["semantic_hmean"] == pytest.approx(4 / (2 + 2 + 4 + 4)) and found["ood_hmean"] == 1
    assert found["bravo_index"] == pytest.approx(2 / (3 + 1))
    assert math.isnan(bravo_index([], [{"auroc": 1.0}])["bravo_index"])
    assert bravo_index([{"miou": 0.0}], [{"auroc": 1.0}])["bravo_index"] == 0


def test_confidences_use_the_whole_range():
    assert quantise(np.array([0.0, 1 / 65536, 0.99999999, 1.0])).tolist() == [0, 1, 65535, 65535]
