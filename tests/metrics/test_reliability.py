"""One pass's statistics against the published numbers and against plain references written from the definitions."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from genval.evaluation.inference import launch_batch, sample_pixels
from genval.metrics.calibration import BINS, adaptive_ece, bin_index, classwise_ece, gap_curve, top1_metrics
from genval.metrics.ranking import aupr, auroc, counts_by_score, fpr_at_tpr, prediction_rejection_ratio
from genval.metrics.reliability import pool, reliability_bounds, reliability_metrics
from genval.metrics.statistics import CONFIDENCE_LEVELS, PixelStatistics, confidence_level, level_confidence, measure
from genval.runtime.errors import GenValError
from genval.runtime.paths import REPO_ROOT

GOLDEN = REPO_ROOT.parent / "shared/golden"


# Plain references
def softmax(logits):
    """Of float64 (N, C)."""
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def slow_ece(confidence, right):
    total = 0.0
    for index in range(BINS):
        lower, upper = np.float32(index / BINS), np.float32((index + 1) / BINS)
        inside = (confidence > lower) & (confidence <= upper) if index else confidence <= upper
        if inside.any():
            total += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    return total


def slow_ks(confidence, right):
    gaps = [0.0]
    for value in np.unique(confidence):
        below = confidence <= value
        gaps.append(abs((confidence[below] - right[below]).sum()) / len(confidence))
    return max(gaps[1:])


def slow_auroc(scores, positive):
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[positive] for b in scores[~positive]]
    return np.mean(pairs) if pairs else math.nan


def slow_aupr(scores, positive):
    if not positive.any():
        return math.nan
    area, recall, precision = 0.0, 0.0, 1.0
    for threshold in np.unique(scores)[::-1]:
        passed = scores >= threshold
        now = (passed & positive).sum() / positive.sum(), (passed & positive).sum() / passed.sum()
        area += (now[0] - recall) * (now[1] + precision) / 2
        recall, precision = now
    return area


def slow_fpr(scores, positive):
    if positive.all() or not positive.any():
        return math.nan
    for threshold in np.unique(scores)[::-1]:
        if (scores[positive] >= threshold).mean() >= 0.95:
            return (scores[~positive] >= threshold).mean()


def slow_prr(confidence, right):
    """Areas under the rejection curves by trapezoids."""
    if right.all() or not right.any():
        return math.nan

    def area(errors_kept):
        return np.mean([(a + b) / 2 for a, b in itertools.pairwise(errors_kept)])

    def kept(order):
        return np.concatenate([[0], np.cumsum(~right[order])]) / len(right)

    by_confidence = area(kept(np.argsort(-confidence)))
    oracle, chance = area(kept(np.argsort(~right, kind="stable"))), (~right).mean() / 2
    return 100 * (chance - by_confidence) / (chance - oracle)


# Cases
@st.composite
def cases(draw):
    """Logits and labels: any shape, classes missing, some or all of it void, constant and extreme logits, one pixel."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    classes = draw(st.integers(1, 19))
    shape = draw(st.tuples(st.integers(1, 8), st.integers(1, 8)))
    scale = draw(st.sampled_from([0.0, 0.3, 3.0, 30.0]))
    logits = (scale * generator.normal(size=(classes, *shape))).astype(np.float32)
    labels = generator.choice(generator.permutation(classes)[: draw(st.integers(1, classes))], shape).astype(np.uint8)
    labels[generator.random(shape) < draw(st.sampled_from([0.0, 0.3, 1.0]))] = 255
    return logits, labels


def single_pixels(logits, labels):
    """Float64 probabilities (N, C) and labels (N,) of the pixels that are not void."""
    flat = np.moveaxis(logits, 0, -1).reshape(-1, len(logits)).astype(np.float64)
    counted = labels.ravel() != 255
    return softmax(flat[counted]), labels.ravel()[counted].astype(int)


def same(a, b, atol=1e-9):
    np.testing.assert_allclose(a, b, rtol=0, atol=atol)


# Rankings
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=25))
def test_rankings_follow_the_definitions_ties_included(pairs):
    scores, positive = np.array([s for s, _ in pairs], float), np.array([p for _, p in pairs])
    counts = counts_by_score(scores, positive)
    same(auroc(*counts), slow_auroc(scores, positive))
    same(aupr(*counts), slow_aupr(scores, positive))
    same(fpr_at_tpr(*counts), slow_fpr(scores, positive) if len(set(positive)) == 2 else math.nan)
    if len(set(scores)) == len(scores):
        same(prediction_rejection_ratio(*counts), slow_prr(scores, positive))
        same(prediction_rejection_ratio(*counts), 100 * (2 * auroc(*counts) - 1))


def test_a_perfect_ranker_has_prr_100_and_the_worst_minus_100():
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


def test_no_score_may_be_nan():
    with pytest.raises(GenValError, match="finite"):
        counts_by_score(np.array([0.1, math.nan]), np.array([True, False]))
    with pytest.raises(GenValError, match="differ in number: 1 and 2"):
        counts_by_score(np.array([0.1]), np.array([True, False]))


# Calibration
def test_bin_edges_belong_to_the_lower_bin():
    edges = (np.arange(1, BINS + 1) / BINS).astype(np.float32)
    assert bin_index(edges).tolist() == list(range(BINS))
    assert bin_index(np.nextafter(edges[:-1], np.float32(2))).tolist() == list(range(1, BINS))


@given(cases())
def test_errors_of_single_pixels_follow_the_definitions(case):
    probabilities, labels = single_pixels(*case)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    if len(np.unique(confidence)) < len(confidence):
        confidence = np.round(confidence, 2)  # ties of one value, not of rounding
    metrics = top1_metrics(confidence, right)
    if not len(labels):
        assert all(math.isnan(value) for value in metrics.values())
        return
    same(metrics["ece"], slow_ece(confidence, right))
    same(metrics["ks"], slow_ks(confidence, right))
    assert metrics["adaptive_ece"] <= 2 * BINS * metrics["ks"] + 1e-12
    same(classwise_ece(probabilities, labels), [slow_ece(p, labels == c) for c, p in enumerate(probabilities.T)])


def test_equal_populations_are_means_over_fifteenths():
    generator = np.random.default_rng(0)
    confidence = np.sort(generator.random(45))
    right = generator.random(45) < confidence
    parts = [np.abs((c - r).sum()) / 45 for c, r in zip(confidence.reshape(15, 3), right.reshape(15, 3), strict=True)]
    same(top1_metrics(confidence, right)["adaptive_ece"], sum(parts))
    # Tied pixels are shared: the order in which right and wrong ones come does not matter, and no bin is empty.
    tied = np.full(30, 0.7)
    for hits in (np.arange(30) < 15, np.arange(30) % 2 == 0):
        same(top1_metrics(tied, hits)["adaptive_ece"], 0.2)
    same(adaptive_ece(gap_curve(np.array([0]), np.array([1]), np.array([0.4])), np.array([1])), 0.4)


def test_no_confidence_outside_0_to_1():
    for bad in (1.5, math.nan, -0.1):
        with pytest.raises(GenValError, match="a probability"):
            top1_metrics(np.array([bad]), np.array([True]))


# One pass
@given(cases())
def test_one_pass_follows_the_definitions(case):
    logits, labels = case
    predictions, statistics = measure(torch.from_numpy(logits), torch.from_numpy(labels))
    assert predictions.shape == labels.shape and (predictions.numpy() == logits.argmax(0)).all()
    probabilities, known = single_pixels(logits, labels)
    metrics = reliability_metrics(statistics)
    if not len(known):
        assert all(math.isnan(value) for value in metrics.values()) and statistics.levels.sum() == 0
        return
    counted = labels.ravel() != 255
    right = (logits.argmax(0) == labels).ravel()[counted]
    confidence = torch.from_numpy(logits).softmax(0).amax(0).numpy().ravel()[counted].astype(np.float64)
    entropy = -(probabilities * np.log(probabilities + 1e-15)).sum(1)
    expected_nll = -np.log(np.maximum(probabilities[np.arange(len(known)), known], 1e-300)).mean()
    one_hot = np.eye(len(logits))[known]
    assert statistics.bins.sum() == statistics.levels.sum() == len(known)
    assert statistics.class_bins.min() >= 0 and (statistics.class_bins.sum((0, 2)) == len(known)).all()
    same(metrics["mean_confidence"], confidence.mean(), 1e-6)
    same(metrics["nll"], expected_nll, 1e-5 * max(1, expected_nll))
    same(metrics["brier"], ((probabilities - one_hot) ** 2).sum(1).mean(), 1e-5)
    same(metrics["entropy"], entropy.mean(), 1e-5)
    same(metrics["entropy_std"], entropy.std(), 5e-3)
    for name, chosen in (("entropy_right", right), ("entropy_wrong", ~right)):
        same(metrics[name], entropy[chosen].mean() if chosen.any() else math.nan, 1e-5)
    counts = counts_by_score(confidence, right)
    slack = reliability_bounds(statistics)
    if right.any() and not right.all():
        assert abs(metrics["auroc"] - auroc(*counts)) <= slack["auroc"] + 1e-6 + 2 / right.sum() / (~right).sum()
        same(metrics["prr_percent"], 200 * metrics["auroc"] - 100)
    assert abs(metrics["ks"] - top1_metrics(confidence.clip(0, 1), right)["ks"]) <= slack["ks"] + 1e-6


@given(cases(), cases())
def test_statistics_of_two_images_add_up_to_those_of_both(a, b):
    classes = min(len(a[0]), len(b[0]))
    images = [
        (z[:classes].reshape(classes, -1), np.where(y < classes, y, 255).ravel().astype(np.uint8)) for z, y in (a, b)
    ]
    parts = [measure(*map(torch.from_numpy, image))[1] for image in images]
    both = measure(*(torch.from_numpy(np.concatenate(arrays, -1)) for arrays in zip(*images, strict=True)))[1]
    merged = PixelStatistics.empty(classes) + parts[0] + parts[1]
    assert (merged.confusion == both.confusion).all()
    # An exponential may differ in its last bit by its place in memory. That moves a pixel to another level, of which
    # there are 2048 between the two smallest odds: what counts is how far the confidence moves: a level at most.
    assert merged.levels.sum() == both.levels.sum()
    distance = np.abs(np.subtract(merged.levels.cumsum(-1), both.levels.cumsum(-1), dtype=float))[:, :-1]
    assert (distance * np.abs(np.diff(level_confidence()))).sum() <= 1.3e-4 * both.levels.sum()
    for name in ("bins", "class_bins"):
        in_last_axis = (getattr(one, name).astype(float).cumsum(-1) for one in (merged, both))
        assert getattr(merged, name).sum() == getattr(both, name).sum()
        assert np.count_nonzero(np.subtract(*in_last_axis)) <= 0.01 * getattr(both, name).size + 40
    same(merged.class_confidence.sum(1), both.class_confidence.sum(1), 1e-4)
    np.testing.assert_allclose(merged.sums, both.sums, rtol=1e-5, atol=1e-4)


def test_confidences_add_up_without_rounding_in_any_order():
    logits, labels = torch.randn(19, 40000, generator=torch.manual_seed(0)), torch.zeros(40000, dtype=torch.uint8)
    order = torch.randperm(40000)
    a, b = measure(logits, labels)[1], measure(logits[:, order], labels[order])[1]
    assert (a.bin_confidence == b.bin_confidence).all() and (a.class_bins == b.class_bins).all()


def test_no_confidence_is_far_from_its_level():
    odds = torch.cat([torch.zeros(1), torch.logspace(-23, math.log2(31), 200001, base=2.0)])
    levels = confidence_level(odds).numpy()
    assert levels[0] == 0 and (np.diff(levels) >= 0).all() and levels.max() < CONFIDENCE_LEVELS
    error = np.abs(level_confidence()[levels] - 1 / (1 + odds.double().numpy()))
    assert error.max() < 6.2e-5


def realistic(seed=0, pixels=400_000):
    """Logits with the heavy ends of a trained network's: most pixels sure, errors less so."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 19, (pixels,), generator=generator)
    logits = torch.randn(19, pixels, generator=generator)
    strength = torch.randn(pixels, generator=generator).mul(1.2).add(1.6).exp()
    logits.scatter_add_(0, labels[None], strength[None])
    return logits, labels.to(torch.uint8)


def test_levels_are_within_1e_4_on_realistic_logits():
    logits, labels = realistic()
    metrics, slack = (function(measure(logits, labels)[1]) for function in (reliability_metrics, reliability_bounds))
    probabilities = logits.softmax(0)
    confidence, right = probabilities.amax(0).numpy(), (logits.argmax(0) == labels).numpy()
    exact = top1_metrics(confidence, right)
    counts = counts_by_score(confidence, right)
    exact |= {"auroc": float(auroc(*counts)), "aupr_right": float(aupr(*counts)), "fpr95": float(fpr_at_tpr(*counts))}
    exact |= {
        "aupr_wrong": float(aupr(*(c[::-1] for c in counts[::-1]))),
        "classwise_ece": classwise_ece(probabilities.T.numpy(), labels.numpy()).mean(),
    }
    exact["prr_percent"] = float(prediction_rejection_ratio(*counts))
    for name, value in exact.items():
        assert abs(metrics[name] - value) < (1e-2 if name == "prr_percent" else 1e-4), name
    same(metrics["ece"], exact["ece"], 1e-7)
    assert all(abs(metrics[name] - exact[name]) <= bound + 1e-6 for name, bound in slack.items())


def test_probabilities_that_are_all_in_the_first_bin():
    statistics = measure(torch.zeros(15, 3), torch.zeros(3, dtype=torch.uint8))[1]
    same(statistics.class_confidence[:, 0], 3 / 15, 1e-6)
    same(reliability_metrics(statistics)["classwise_ece"], (14 / 15 + 14 * 1 / 15) / 15, 1e-6)


def test_a_class_that_is_ruled_out_has_probability_0():
    logits, labels = torch.randn(3, 50, generator=torch.manual_seed(0)), torch.zeros(50, dtype=torch.uint8)
    without = reliability_metrics(measure(logits[:2], labels)[1])
    logits[2] = -math.inf
    within = reliability_metrics(measure(logits, labels)[1])
    assert all(abs(without[name] - within[name]) < 1e-6 for name in ("ece", "nll", "brier", "auroc", "entropy"))
    logits[0] = -math.inf  # nor does it matter in pixels that have no label
    assert measure(logits[:2], labels + 255)[1].confusion.sum() == 0


def test_what_cannot_be_measured_is_refused():
    labels = torch.zeros(2, 2, dtype=torch.uint8)
    for bad, where in ((math.nan, 1), (math.inf, 1), (-math.inf, 0), (-math.inf, slice(None))):
        logits = torch.zeros(3, 2, 2)
        logits[where, 0, 1] = bad
        with pytest.raises(GenValError, match="finite"):
            measure(logits, labels)
    with pytest.raises(GenValError, match="classes that do not exist"):
        measure(torch.zeros(3, 2, 2), labels + 3)
    with pytest.raises(GenValError, match=r"found \(3, 2, 2\) and \(4,\)"):
        measure(torch.zeros(3, 2, 2), labels.flatten())


def test_a_sample_is_seeded_and_leaves_the_confusion_matrix_whole():
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


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_intervals_agree_with_resampling_one_by_one(seed):
    generator = np.random.default_rng(seed)
    images = []
    for _ in range(10):
        logits, labels = realistic(int(generator.integers(2**31)), 300)
        images.append(measure(logits * float(generator.uniform(0.5, 2)), labels)[1])
    total, ends = pool(iter(images), {"pixels": lambda matrices: matrices.sum((1, 2))}, draws=1000)
    assert (total.levels == sum(image.levels for image in images)).all()
    assert pool(iter(images))[1]["ece"] == ends["ece"] and ends["pixels"] == (3000, 3000)
    slow = [sum((images[i] for i in generator.integers(0, 10, 10)), PixelStatistics.empty()) for _ in range(200)]
    for name in ("ece", "auroc", "nll", "ks", "entropy_wrong"):
        low, high = np.percentile([reliability_metrics(one)[name] for one in slow], [2.5, 97.5])
        assert (
            abs(ends[name][0] - low) < 0.3 * (high - low) + 1e-3
            and abs(ends[name][1] - high) < 0.3 * (high - low) + 1e-3
        )


def test_one_image_has_no_interval_and_none_is_refused():
    statistics = measure(*realistic(pixels=100))[1]
    assert all(math.isnan(end) for ends in pool([statistics])[1].values() for end in ends)
    with pytest.raises(GenValError, match="no image"):
        pool([])


# The published numbers
@pytest.fixture(scope="module")
def golden():
    if not (GOLDEN / "metrics.npz").exists():
        pytest.skip("../shared/golden is not here")
    with np.load(GOLDEN / "metrics.npz") as arrays:
        return dict(arrays), json.loads((GOLDEN / "metrics.json").read_text())


@pytest.mark.parametrize(("name", "temperature"), [("calibration_T1", 1), ("calibration_T2", 2), ("after", 1.36)])
def test_published_calibration(golden, name, temperature):
    arrays, expected = golden
    expected = expected["temperature"]["after"] if name == "after" else expected[name]
    logits = torch.from_numpy(arrays["logits"]) / temperature
    probabilities, labels = single_pixels(np.moveaxis(logits.numpy(), 1, 0), arrays["labels"])
    metrics = top1_metrics(probabilities.max(1), probabilities.argmax(1) == labels, drop_lowest=True)
    by_class = [top1_metrics(column.clip(0, 1), labels == index) for index, column in enumerate(probabilities.T)]
    same(metrics["ece"], expected["ece_15_equal_size_bins"], 1e-6)
    same(metrics["adaptive_ece"], expected["ece_15_equal_population_bins"], 1e-6)
    same(metrics["ks"], expected["ks_error"], 1e-6)
    same([values["ece"] for values in by_class], expected["ece_per_class_equal_size"], 1e-6)
    same([values["ks"] for values in by_class], expected["ks_per_class"], 1e-6)

    total = sum(
        (measure(z, y)[1] for z, y in zip(logits, torch.from_numpy(arrays["labels"]), strict=True)),
        PixelStatistics.empty(),
    )
    metrics = reliability_metrics(total)
    same(metrics["ece"], expected["ece_15_equal_size_bins"], 1e-6)
    same(metrics["classwise_ece"], np.mean(expected["ece_per_class_equal_size"]), 1e-6)
    same(metrics["nll"], expected["nll"], 1e-6)
    same(metrics["ks"], expected["ks_error"], 1e-4)
    # Few pixels, so that a pixel to either side of each of 14 cuts already matters.
    same(metrics["adaptive_ece"], expected["ece_15_equal_population_bins"], 5e-4)


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
