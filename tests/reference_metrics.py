"""Plain references of metrics, written from the definitions, and the cases on which tests compare them."""

import itertools
import math

import numpy as np
import torch
from hypothesis import strategies as st

from genval.metrics.calibration import BINS
from genval.runtime.paths import REPO_ROOT

GOLDEN = REPO_ROOT / "tests/golden"


def softmax(logits):
    """The softmax of float64 (N, C)."""
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


def realistic(seed=0, pixels=400_000):
    """Logits with the heavy ends of a trained network's: most pixels are confident, errors less so."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 19, (pixels,), generator=generator)
    logits = torch.randn(19, pixels, generator=generator)
    strength = torch.randn(pixels, generator=generator).mul(1.2).add(1.6).exp()
    logits.scatter_add_(0, labels[None], strength[None])
    return logits, labels.to(torch.uint8)


def sklearn_ood_metrics(scores, objects):
    """The published OOD metrics of scores (N,), by the names of `OOD_METRICS`; `objects` is a bool mask (N,)."""
    from sklearn.metrics import auc, precision_recall_curve, roc_curve

    fpr, tpr, _ = roc_curve(objects, scores)
    curves = [precision_recall_curve(objects, scores), precision_recall_curve(~objects, -scores)]
    aupr_object, aupr_background = (auc(recall, precision) for precision, recall, _ in curves)
    return {
        "auroc": auc(fpr, tpr),
        "fpr95": fpr[np.argmax(tpr >= 0.95)],
        "aupr_object": aupr_object,
        "aupr_background": aupr_background,
    }


def log_odds(logits):
    """The logarithm of the odds against the largest logit, float64 (N,), of logits (C, ...): exact for any size.

    Minus infinity, where there is no other class, is a finite number.
    """
    ordered = np.sort(np.asarray(logits, np.float64).reshape(len(logits), -1), 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        others = np.log(np.exp(ordered[:-1] - ordered[-2:-1]).sum(0)) + (ordered[-2:-1].sum(0) - ordered[-1])
    return np.nan_to_num(others, nan=-1e300, neginf=-1e300)


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
