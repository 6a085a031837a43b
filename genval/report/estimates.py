"""The table of relis/estimate.py: label-free estimates of every segmenter on images without masks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from genval.artifacts.manifest import Manifest
from genval.datasets import CLASSES
from genval.report.comparison import FEWEST_IMAGES
from genval.report.evidence import Evidence, Place, read_bins, read_evidence, short_names
from genval.report.label_free import confidence_scores, difference_scores, read_votes
from genval.report.resampling import draw_images, interval
from genval.report.schema import ValueWithInterval
from genval.report.scores import Scores, mean_iou, weigh
from genval.report.unlabelled import CONFIDENCE, DOC, FEWEST_VOTERS, VOTE
from genval.results.provenance import require_model
from genval.results.scenes import SceneResults
from genval.runtime.commands import Missing
from genval.runtime.tables import markdown_table

_HEADER = {
    VOTE: "mIoU with the vote %",
    CONFIDENCE: "average confidence %",
    DOC: "accuracy by difference of confidences %",
}


@dataclasses.dataclass(frozen=True)
class Estimates:
    """Label-free estimates on one set, in percent.

    Attributes:
        name: of the set.
        images: their number.
        values: by estimate (vote, confidence, doc) and model; intervals over images, from eight images on.
        missing: estimates that could not be computed, each with the command that makes what it needs.
    """

    name: str
    images: int
    values: dict[str, dict[str, ValueWithInterval]]
    missing: list[Missing]

    def models(self) -> list[str]:
        """The models, those with the highest first estimate first."""
        first = next(iter(self.values.values()))
        return sorted(first, key=lambda model: (-(first[model].value or 0), model))

    def to_markdown(self) -> str:
        """Return the table."""
        models = self.models()
        short = short_names(models)
        header = ["segmenter", *(cell for estimate in self.values for cell in (_HEADER[estimate], "95 %"))]
        rows = []
        for model in models:
            row: list[Any] = [short[model]]
            for by_model in self.values.values():
                ends = by_model[model].ends
                row += [by_model[model].value, f"{ends[0]:.1f} to {ends[1]:.1f}" if ends else ""]
            rows.append(row)
        return f"## {self.name}: {self.images} unlabelled images\n\n{markdown_table(header, rows)}"


def estimate(
    root: Path,
    models: Sequence[str],
    name: str,
    ids: Sequence[str],
    place: Place,
    clear: tuple[Path, Place],
    *,
    draws: int,
    seed: int,
    preset: str | None = None,
) -> Estimates:
    """Estimate the accuracy of every model on a set of images without masks.

    Args:
        root: folder of the predictions and counts.
        models: all of them have results.
        name: of the set.
        ids: of its images.
        place: of its results below `root`; its scene has the name of its condition.
        clear: the folder of the results of relis/eval.py, and the labelled clear-weather set; used if it is there.
        draws: bootstrap draws.
        seed: of the draws.
        preset: of the commands.

    Raises:
        GenValError: a file is damaged, or the clear-weather results are of another model.
    """

    def results(model: str) -> SceneResults:
        return SceneResults(root, model, place.dataset, place.cond, place.cond)

    bins = np.stack([[read_bins(results(model).counts(item_id)) for model in models] for item_id in ids])
    images = tuple(f"{place.cond}/{item_id}" for item_id in ids)
    counts = np.full((len(ids), len(models), 3, len(CLASSES)), np.nan)
    evidence = Evidence(place, images, images, counts, bins)
    weights = draw_images({name: images}, draws, seed)[name]
    missing: list[Missing] = []
    found: dict[str, Scores] = {}
    if len(models) >= FEWEST_VOTERS:
        votes = read_votes(root, models, evidence)
        classes = range(len(CLASSES))
        found[VOTE] = Scores(mean_iou(votes.sum(0), classes), mean_iou(weigh(votes, weights), classes))
    found[CONFIDENCE] = confidence_scores(evidence, weights)
    labelled = read_evidence(clear[0], models, clear[1], preset, missing)
    if labelled is not None and labelled.has_bins().all():
        for model in models:
            _require_same_model(results(model), labelled, model)
        drawn = draw_images({"clear": labelled.sources}, draws, seed + 1)["clear"]
        found[DOC] = difference_scores(evidence, weights, labelled, drawn)
    enough = len(ids) >= FEWEST_IMAGES
    values = {key: _by_model(models, scores, enough) for key, scores in found.items()}
    return Estimates(name, len(ids), values, missing)


def _require_same_model(results: SceneResults, labelled: Evidence, model: str) -> None:
    """Refuse clear-weather results of other weights or another precision than those of the predictions."""
    record = next(iter(Manifest(results.folder).records.values()))
    known = labelled.made[model].model_record
    remedy = "Run relis/eval.py and relis/estimate.py with the same weights and --precision."
    require_model(known, f"results of {model} on {labelled.place.dataset}", record, results.folder, remedy)


def _by_model(models: Sequence[str], scores: Scores, with_intervals: bool) -> dict[str, ValueWithInterval]:
    assert scores.drawn is not None
    ends = [interval(column) if with_intervals else None for column in scores.drawn.T]
    values = zip(models, scores.value.tolist(), ends, strict=True)
    return {model: ValueWithInterval.of_ends(value, of_model) for model, value, of_model in values}
