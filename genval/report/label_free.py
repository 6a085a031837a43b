"""Estimates of accuracy on a set from predictions and confidences alone, without its labels.

They are rivals of generation: whoever has unlabelled images of a condition can use them. Each is computed from what
relis/eval.py saved, without inference.

- Vote: the agreement of a segmenter with the majority vote of the others, as the mean IoU. Agreement between models
  as an estimate: Jiang et al., "Assessing generalization of SGD via disagreement" (ICLR 2022), and Baek et al.,
  "Agreement-on-the-line" (NeurIPS 2022).
- Average confidence (AC): Hendrycks and Gimpel, "A baseline for detecting misclassified and out-of-distribution
  examples" (ICLR 2017).
- Difference of confidences (DoC): accuracy on labelled images, minus the drop of the average confidence from these to
  the unlabelled ones. Guillory et al., "Predicting with confidence on unseen distributions" (ICCV 2021).
- Average thresholded confidence (ATC): the share of pixels whose confidence is above the threshold at which this share
  equals the accuracy on labelled images. Garg et al., "Leveraging unlabeled data to predict out-of-distribution
  performance" (ICLR 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from genval.artifacts.tensors import read_arrays
from genval.datasets import CLASSES
from genval.datasets.reading import read_mask
from genval.kernels.layout import CONFIDENCE_LEVELS
from genval.report.evidence import Evidence
from genval.report.scores import Scores, weigh
from genval.results.scenes import SceneResults
from genval.runtime.errors import GenValError
from genval.runtime.progress import progress_bar

# The vote counts pixels of a grid of at most this many points per image. On the 16 images of `make demo` per domain
# (256x512), scores change by at most 0.07 points of mIoU, of a spread of 8 to 15 between the models.
GRID_PIXELS = 2**16
_WORKERS = 8


def vote_counts(predictions: np.ndarray, classes: int = len(CLASSES)) -> np.ndarray:
    """Compare each model's prediction with the majority vote of the other models, as if the vote were the label.

    Args:
        predictions: uint8 (M, P), trainIds of P pixels, M at least 3.
        classes: how many classes exist. Ties go to the class with the smaller trainId.

    Returns:
        float64 (M, 3, classes): hits, pixels that the others vote for, and pixels that the model predicts, by class.

    >>> vote_counts(np.array([[0, 1], [0, 1], [0, 0]], np.uint8), 2)[2].tolist()
    [[1.0, 0.0], [1.0, 1.0], [2.0, 0.0]]
    """
    votes = np.stack([(predictions == train_id).sum(0, dtype=np.int16) for train_id in range(classes)])
    first = votes.argmax(0)
    first_votes = votes.max(0)
    np.put_along_axis(votes, first[None], -1, axis=0)
    second, second_votes = votes.argmax(0), votes.max(0)
    counts = np.empty((len(predictions), 3, classes))
    for model, predicted in enumerate(predictions):
        # Without the model's own vote, the second class can win.
        left = first_votes - 1
        overtaken = (predicted == first) & ((left < second_votes) | ((left == second_votes) & (second < first)))
        vote = np.where(overtaken, second, first)
        counts[model] = [
            np.bincount(values, minlength=classes)[:classes] for values in (vote[vote == predicted], vote, predicted)
        ]
    return counts


def read_votes(root: Path, models: Sequence[str], evidence: Evidence) -> np.ndarray:
    """Return `vote_counts` of every image of a set from the saved predictions.

    Args:
        root: folder of the evaluation results.
        models: the models that vote and are judged, at least 3; all have results on the set.
        evidence: the set.

    Returns:
        float64 (N, M, 3, C).

    Raises:
        GenValError: a prediction is missing (relis/eval.py ran without `--save predictions`) or damaged.
    """

    def count(image: str) -> np.ndarray:
        scene, _, item = image.rpartition("/")
        grids = []
        for model in models:
            path = _results(root, model, evidence, scene).prediction(item)
            if not path.exists():
                raise GenValError(f"{path} is missing: run relis/eval.py with --save predictions.")
            grids.append(_on_grid(read_mask(path)))
        if len({grid.shape for grid in grids}) > 1:
            raise GenValError(f"Predictions of {image} differ in size: run relis/eval.py --overwrite.")
        return vote_counts(np.stack([grid.reshape(-1) for grid in grids]))

    with ThreadPoolExecutor(_WORKERS) as pool, progress_bar(len(evidence.images), "votes") as bar:
        counts = []
        for one in pool.map(count, evidence.images):
            counts.append(one)
            bar.update()
    return np.stack(counts)


def _on_grid(pixels: np.ndarray) -> np.ndarray:
    """Return the pixels (H, W) of a regular grid of at most `GRID_PIXELS` points."""
    step = int(np.ceil(np.sqrt(max(1, pixels.size / GRID_PIXELS))))
    return pixels[step // 2 :: step, step // 2 :: step]


def confidence_scores(evidence: Evidence, weights: np.ndarray) -> Scores:
    """Estimate the accuracy in percent by the average confidence (AC)."""
    assert evidence.bins is not None
    return Scores(_confidence(evidence.bins.sum(0)), _confidence(weigh(evidence.bins, weights)))


def difference_scores(
    evidence: Evidence, weights: np.ndarray, labelled: Evidence, labelled_weights: np.ndarray
) -> Scores:
    """Estimate the accuracy in percent by the difference of confidences (DoC).

    Args:
        evidence: the unlabelled set.
        weights: of its images, float64 (D, N).
        labelled: the set whose labels are known.
        labelled_weights: of its images.
    """
    assert evidence.bins is not None and labelled.bins is not None

    def estimate(bins: np.ndarray, known: np.ndarray) -> np.ndarray:
        accuracy = 100 * known[..., 0, :].sum(-1) / known[..., 1, :].sum(-1)
        return np.asarray(accuracy - (_confidence(known) - _confidence(bins)))

    return Scores(
        estimate(evidence.bins.sum(0), labelled.bins.sum(0)),
        estimate(weigh(evidence.bins, weights), weigh(labelled.bins, labelled_weights)),
    )


def _confidence(bins: np.ndarray) -> np.ndarray:
    return np.asarray(100 * bins[..., 2, :].sum(-1) / bins[..., 1, :].sum(-1))


def threshold_level(levels: np.ndarray) -> float:
    """Return the level above which the share of pixels equals the accuracy.

    Args:
        levels: int64 (2, L): wrong and right pixels by level, the highest confidence first.

    Returns:
        The number of levels above the threshold, with the fraction of the last one.

    >>> threshold_level(np.array([[0, 1, 1], [2, 0, 0]]))
    1.0
    """
    pixels = levels.sum(0)
    above = np.concatenate([[0], np.cumsum(pixels)])
    occupied = np.concatenate([[True], pixels > 0])
    return float(np.interp(levels[1].sum(), above[occupied], np.flatnonzero(occupied)))


def pixels_above(levels: np.ndarray, threshold: float) -> tuple[float, float]:
    """Count the pixels above a threshold from `threshold_level`, and all pixels.

    >>> pixels_above(np.array([[0, 2, 1], [2, 0, 0]]), 1.5)
    (3.0, 5.0)
    """
    pixels = levels.sum(0)
    whole = int(threshold)
    part = (threshold - whole) * pixels[whole] if whole < len(pixels) else 0.0
    return float(pixels[:whole].sum() + part), float(pixels.sum())


def accuracy_threshold(root: Path, model: str, labelled: Evidence) -> float:
    """Return a model's `threshold_level` on a whole set whose labels are known, real or generated.

    Args:
        root: folder of the evaluation results.
        model: one with results on the set.
        labelled: the set.
    """
    known = np.zeros((2, CONFIDENCE_LEVELS), np.int64)
    for image in labelled.images:
        known += _levels(root, model, labelled, image)
    return threshold_level(known)


def thresholded_scores(
    root: Path, models: Sequence[str], evidence: Evidence, weights: np.ndarray, thresholds: np.ndarray
) -> list[Scores]:
    """Estimate the accuracy in percent by the average thresholded confidence (ATC).

    Resampling draws images of the unlabelled set. The thresholds are those of whole labelled sets. The counts of an
    image are large and are read once for all thresholds.

    Args:
        root: folder of the evaluation results.
        models: M models with results on the set.
        evidence: the unlabelled set.
        weights: of its images, float64 (D, N).
        thresholds: from `accuracy_threshold` on K labelled sets, float64 (K, M); NaN for models without results there.

    Returns:
        K estimates; NaN for models without a threshold.
    """
    above = np.full((len(thresholds), len(evidence.images), len(models), 2), np.nan)
    for column, model in enumerate(models):
        known = np.flatnonzero(~np.isnan(thresholds[:, column])).tolist()
        for row, image in enumerate(evidence.images if known else ()):
            levels = _levels(root, model, evidence, image)
            for index in known:
                above[index, row, column] = pixels_above(levels, thresholds[index, column])

    def share(counts: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):  # models without a threshold have no pixels
            return np.asarray(100 * counts[..., 0] / counts[..., 1])

    return [Scores(share(counts.sum(0)), share(weigh(counts, weights))) for counts in above]


def _levels(root: Path, model: str, evidence: Evidence, image: str) -> np.ndarray:
    scene, _, item = image.rpartition("/")
    path = _results(root, model, evidence, scene).counts(item)
    levels = read_arrays(path, ("levels",), "Delete it and run relis/eval.py again.")["levels"].astype(np.int64)
    if levels.shape != (2, CONFIDENCE_LEVELS):
        raise GenValError(f"{path}: expected {CONFIDENCE_LEVELS} levels. Delete it and run relis/eval.py again.")
    return levels


def _results(root: Path, model: str, evidence: Evidence, scene: str) -> SceneResults:
    return SceneResults(root, model, evidence.place.dataset, evidence.place.cond, scene)
