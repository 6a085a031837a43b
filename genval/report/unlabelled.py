"""Label-free estimates of a domain as predictors: what unlabelled images of the condition tell without generation.

They are computed on the reference images, without their labels. The noise of an estimate and of the reference scores is
therefore correlated, which the correction of r accounts for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from genval.datasets import CLASSES
from genval.report.evidence import Evidence, evaluation
from genval.report.label_free import confidence_scores, difference_scores, read_votes, thresholded_scores
from genval.report.schema import CLEAR, SYNTHETIC, TRUE, UNLABELLED, Predictor
from genval.report.scores import Scores, mean_iou, weigh
from genval.runtime.commands import Missing
from genval.runtime.errors import GenValError

VOTE, CONFIDENCE, DOC, ATC_CLEAR, ATC_GENERATED = "vote", "confidence", "doc", "atc_clear", "atc_generated"
NAMES = {
    VOTE: "vote of the other models",
    CONFIDENCE: "average confidence",
    DOC: "difference of confidences",
    ATC_CLEAR: "ATC, thresholds of clear images",
    ATC_GENERATED: "ATC, thresholds of generated images",
}
# Models that vote or are judged by the vote of the others.
FEWEST_VOTERS = 3


def parse_label_free(names: Sequence[str]) -> list[str]:
    """Read `--label_free`: estimates by name, all or none.

    Raises:
        GenValError: a name is not known.
    """
    if tuple(names) in (("all",), ("none",)):
        return list(NAMES) if names[0] == "all" else []
    if unknown := [name for name in names if name not in NAMES]:
        raise GenValError(
            f"--label_free: expected some of {', '.join(NAMES)}, all or none; found {', '.join(unknown)}."
        )
    return list(names)


def label_free_predictors(names: Sequence[str]) -> list[Predictor]:
    """Return the estimates as predictors."""
    return [Predictor(name, NAMES[name], UNLABELLED) for name in names]


def label_free_scores(
    names: Sequence[str],
    root: Path,
    models: Sequence[str],
    kept: np.ndarray,
    sides: Mapping[str, Evidence],
    weights: Mapping[str, np.ndarray],
    classes: Sequence[int],
    missing: list[Missing],
    preset: str | None,
) -> dict[str, Scores]:
    """Compute the estimates that the saved results allow, of the models at `kept`.

    Args:
        names: of the estimates.
        root: folder of the evaluation results of every side in `sides`.
        models: all models, the axis of the sides.
        kept: indices of those compared.
        sides: the reference set, clear weather and the generated set.
        weights: how often each image is drawn, float64 (D, N) by side.
        classes: of the mean IoU of the vote.
        missing: estimates without their files are appended.
        preset: for the commands.

    Returns:
        Scores of the kept models by estimate; NaN for models without confidences.
    """
    reference = sides[TRUE]
    voters = [models[index] for index in kept]
    found: dict[str, Scores] = {}
    for name in names:
        try:
            if name == VOTE:
                scores = _vote(root, voters, reference, weights[TRUE], classes)
            else:
                scores = _from_confidences(name, root, models, kept, sides, weights)
        except GenValError as error:
            commands = evaluation(root, voters, reference.place, preset).split(" && ")
            command = " && ".join(f"{command} --save predictions" for command in commands)
            missing.append(Missing(f"{NAMES[name]} on {reference.place.dataset} ({error})", command))
            continue
        if scores is not None:
            found[name] = dataclasses.replace(scores, units=reference.units)
    return found


def _vote(
    root: Path, models: Sequence[str], reference: Evidence, drawn: np.ndarray, classes: Sequence[int]
) -> Scores | None:
    # Votes are counted in the 19 classes of the saved predictions, which the reference set must have too.
    if len(models) < FEWEST_VOTERS or reference.counts.shape[-1] != len(CLASSES):
        return None
    votes = read_votes(root, models, reference)
    return Scores(mean_iou(votes.sum(0), classes), mean_iou(weigh(votes, drawn), classes))


def _from_confidences(
    name: str,
    root: Path,
    models: Sequence[str],
    kept: np.ndarray,
    sides: Mapping[str, Evidence],
    weights: Mapping[str, np.ndarray],
) -> Scores | None:
    """An estimate from confidences; None where no model has them on the sides that it needs."""
    labelled = {DOC: CLEAR, ATC_CLEAR: CLEAR, ATC_GENERATED: SYNTHETIC}.get(name, TRUE)
    if labelled not in sides:
        return None
    reference, known = sides[TRUE], sides[labelled]
    has = (reference.has_bins() & known.has_bins())[kept]
    if not has.any():
        return None
    with np.errstate(divide="ignore", invalid="ignore"):  # models without confidences have no pixels
        if name == CONFIDENCE:
            return confidence_scores(reference, weights[TRUE]).select(kept)
        if name == DOC:
            return difference_scores(reference, weights[TRUE], known, weights[labelled]).select(kept)
        measured = thresholded_scores(root, [models[index] for index in kept[has]], reference, weights[TRUE], known)
    assert measured.drawn is not None
    value, of_draws = np.full(len(kept), np.nan), np.full((len(measured.drawn), len(kept)), np.nan)
    value[has], of_draws[:, has] = measured.value, measured.drawn
    return Scores(value, of_draws)
