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
from genval.report.evidence import Evidence, Place, evaluation
from genval.report.label_free import (
    accuracy_threshold,
    confidence_scores,
    difference_scores,
    read_votes,
    thresholded_scores,
)
from genval.report.schema import CLEAR, SYNTHETIC, TRUE, UNLABELLED, Predictor
from genval.report.scores import Scores, mean_iou, weigh
from genval.runtime.commands import Missing
from genval.runtime.errors import GenValError

VOTE, CONFIDENCE, DOC, ATC_CLEAR, ATC_GENERATED = "vote", "confidence", "doc", "atc_clear", "atc_generated"
NAMES = {
    VOTE: "vote of the other segmenters",
    CONFIDENCE: "average confidence",
    DOC: "difference of confidences",
    ATC_CLEAR: "ATC, thresholds of clear images",
    ATC_GENERATED: "ATC, thresholds of generated images",
}
_ATC = {ATC_CLEAR: CLEAR, ATC_GENERATED: SYNTHETIC}
"""The side whose labels give the thresholds."""
Thresholds = dict[tuple[str, Place], float]
"""Thresholds of ATC by model and labelled set. Clear images give the same ones in every domain."""
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
    thresholds: Thresholds,
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
        thresholds: of ATC, on sets that were read before; others are added.
        missing: estimates without their files are appended.
        preset: for the commands.

    Returns:
        Scores of the kept models by estimate; NaN for models without confidences.
    """
    reference, drawn = sides[TRUE], weights[TRUE]
    voters = [models[index] for index in kept]
    found: dict[str, Scores] = {}
    for together in ((VOTE,), (CONFIDENCE,), (DOC,), tuple(_ATC)):
        wanted = [name for name in together if name in names]
        try:
            if VOTE in wanted:
                found |= _vote(root, voters, reference, drawn, classes)
            elif wanted and together == tuple(_ATC):
                found |= _thresholded(wanted, root, models, kept, sides, drawn, thresholds)
            elif wanted:
                found |= _from_confidences(wanted[0], kept, sides, weights)
        except GenValError as error:
            commands = evaluation(root, voters, reference.place, preset).split(" && ")
            command = " && ".join(f"{command} --save predictions" for command in commands)
            what = f"on {reference.place.dataset} ({error})"
            missing += [Missing(f"{NAMES[name]} {what}", command) for name in wanted]
    return {name: dataclasses.replace(found[name], units=reference.units) for name in names if name in found}


def _vote(
    root: Path, models: Sequence[str], reference: Evidence, drawn: np.ndarray, classes: Sequence[int]
) -> dict[str, Scores]:
    # Votes are counted in the 19 classes of the saved predictions, which the reference set must have too.
    if len(models) < FEWEST_VOTERS or reference.counts.shape[-1] != len(CLASSES):
        return {}
    votes = read_votes(root, models, reference)
    return {VOTE: Scores(mean_iou(votes.sum(0), classes), mean_iou(weigh(votes, drawn), classes))}


def _from_confidences(
    name: str, kept: np.ndarray, sides: Mapping[str, Evidence], weights: Mapping[str, np.ndarray]
) -> dict[str, Scores]:
    """AC or DoC; nothing where no model has confidences on the sides that it needs."""
    labelled = CLEAR if name == DOC else TRUE
    if labelled not in sides or not _have_confidences(sides[TRUE], sides[labelled])[kept].any():
        return {}
    reference, known = sides[TRUE], sides[labelled]
    with np.errstate(divide="ignore", invalid="ignore"):  # models without confidences have no pixels
        if name == CONFIDENCE:
            return {name: confidence_scores(reference, weights[TRUE]).select(kept)}
        return {name: difference_scores(reference, weights[TRUE], known, weights[labelled]).select(kept)}


def _thresholded(
    names: Sequence[str],
    root: Path,
    models: Sequence[str],
    kept: np.ndarray,
    sides: Mapping[str, Evidence],
    drawn: np.ndarray,
    thresholds: Thresholds,
) -> dict[str, Scores]:
    """ATC with the thresholds of each set; nothing where no model has confidences on the sides that it needs."""
    reference = sides[TRUE]
    values: dict[str, np.ndarray] = {}
    for name in (name for name in names if _ATC[name] in sides):
        labelled = sides[_ATC[name]]
        has = _have_confidences(reference, labelled)
        values[name] = np.full(len(kept), np.nan)
        for column, index in enumerate(kept):
            key = models[index], labelled.place
            if has[index] and key not in thresholds:
                thresholds[key] = accuracy_threshold(root, models[index], labelled)
            values[name][column] = thresholds[key] if has[index] else np.nan
    values = {name: of_models for name, of_models in values.items() if np.isfinite(of_models).any()}
    if not values:
        return {}
    voters = [models[index] for index in kept]
    estimates = thresholded_scores(root, voters, reference, drawn, np.stack(list(values.values())))
    return dict(zip(values, estimates, strict=True))


def _have_confidences(reference: Evidence, labelled: Evidence) -> np.ndarray:
    """Which models have confidences on both sets, bool (M,)."""
    return np.asarray(reference.has_bins() & labelled.has_bins())
