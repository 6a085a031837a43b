"""Whether detection of generated objects predicts that of reference objects, by ood_detection/main_gen_ood.py."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genval.datasets.ood_sets import GENERATED, has_generated_objects
from genval.metrics.ood_pooling import PoissonBootstrap
from genval.report.comparison import FEWEST_COMPARED, compare, number
from genval.report.evidence import architectures, short_names
from genval.report.schema import CLEAR, SYNTHETIC, TRUE, ComparedSet, Comparison, OodMeans
from genval.report.scores import Scores
from genval.report.settings import CorrelationSettings
from genval.results.ood_blocks import OodResults
from genval.results.provenance import Provenance, require_different_models, require_model
from genval.runtime.commands import Command, Missing
from genval.runtime.errors import GenValError
from genval.runtime.files import read_json
from genval.runtime.paths import resolve
from genval.runtime.seeds import item_seed

# Metrics of a row, and whether more is better.
METRICS = {"auroc": True, "aupr_object": True, "aupr_background": True, "fpr95": False}
# An update adds to the counts of all draws, 160 MB for 1,000 draws and 5 scores: blocks of 4 images are added together.
_IMAGES_PER_UPDATE = 64


@dataclass(frozen=True)
class Detection:
    """One set, and how well several models detect its objects."""

    name: str
    rows: dict[str, dict[str, dict[str, float]]]  # by model, score and column, fractions
    drawn: dict[str, dict[str, dict[str, np.ndarray]]]  # by model, score and metric, (D,); only models with counts
    images: int

    @property
    def scores(self) -> list[str]:
        """The scores of any model, in their order."""
        return list(dict.fromkeys(score for by_score in self.rows.values() for score in by_score))

    def select(self, models: Sequence[str], score: str, metric: str) -> Scores:
        """Return a metric of models in percent, NaN where missing; resampled if every model on the set is."""
        values = 100 * np.array([self.rows.get(model, {}).get(score, {}).get(metric, np.nan) for model in models])
        if not self.drawn or self.drawn.keys() != self.rows.keys():
            return Scores(values, None)
        any_model = next(iter(self.drawn.values()))[score][metric]
        columns = [
            self.drawn[model][score][metric] if model in self.drawn else np.full(len(any_model), np.nan)
            for model in models
        ]
        return Scores(values, 100 * np.stack(columns, 1), self.images)


def compare_ood_detection(
    settings: CorrelationSettings,
    models: Sequence[str],
    clear_miou: Scores | None,
    missing: list[Missing],
    made: dict[str, Provenance],
) -> tuple[dict[str, dict[str, dict[str, Comparison]]], dict[str, dict[str, OodMeans]]]:
    """Compare the generated set with each reference set, and compute the mean metrics of every set.

    Args:
        settings: of report/correlate.py.
        models: names as given to relis/eval.py.
        clear_miou: the clear-weather mIoU of every model, the baseline.
        missing: what is missing is appended.
        made: what made the results of relis/eval.py, by model.
    """
    root = resolve(settings.ood_dir)
    records: dict[str, dict[str, Any]] = {model: dict(one.model_record) for model, one in made.items()}
    places = sorted(place.name for place in root.glob("*") if place.is_dir())
    sets = {name: read_detection(settings, root, name, models, missing, records) for name in places}
    require_different_models({model: one["identity"] for model, one in records.items() if one["identity"]})
    sets = {name: detection for name, detection in sets.items() if detection.rows}
    references = [name for name in sets if not has_generated_objects(name)]
    others = [sets[name] for name in sets if has_generated_objects(name) and name != GENERATED]
    if GENERATED not in sets:
        missing.append(Missing("detection of generated objects", _command(settings, models)))
    if not references:
        missing.append(Missing("detection of reference objects", _command(settings, models, "RoadAnomaly21")))
    values: dict[str, dict[str, dict[str, Comparison]]] = {}
    for name in references if GENERATED in sets else ():
        by_score = _compare_set(settings, models, sets[GENERATED], sets[name], clear_miou, others)
        if by_score:
            values[name] = by_score
        else:
            what = f"at least {FEWEST_COMPARED} segmenters on both {GENERATED} and {name}"
            missing.append(Missing(what, f"{_command(settings, models)} && {_command(settings, models, name)}"))
    return values, {name: _means(detection) for name, detection in sets.items()}


def read_detection(
    settings: CorrelationSettings,
    root: Path,
    name: str,
    models: Sequence[str],
    missing: list[Missing],
    made: dict[str, dict[str, Any]],
) -> Detection:
    """Read the metrics of each model on a set and resample them: images are drawn by their names, for all models alike.

    Args:
        settings: of report/correlate.py.
        root: folder of all sets.
        name: of the set.
        models: names as given to relis/eval.py.
        missing: models on other images than most models are appended.
        made: the `model_record` of other results of the models; those of new models are added.

    Raises:
        GenValError: a file does not have the columns, a value is not a number, or counts are damaged; results are of a
            part of the images, or of another model than on other sets.
    """
    rows, images = {}, {}
    for model in models:
        results = OodResults(root, name, model)
        if results.csv.exists():
            pooled = _check(results, made, _command(settings, [model], name))
            rows[model] = _read_rows(results.csv)
            # The content counts too: a set may be generated again, with the same names, between two measurements.
            images[model] = next(iter(rows[model].values())).get("images", np.nan), pooled.get("images_mark")
    usual = Counter(images.values()).most_common(1)[0][0] if images else (0, None)
    other = [model for model, found in images.items() if found != usual]
    if other:
        short = short_names(models)
        who = ", ".join(short[model] for model in other)
        missing.append(
            Missing(f"detection by {who} on the same images of {name} as the others", _command(settings, other, name))
        )
    rows = {model: by_score for model, by_score in rows.items() if model not in other}
    # The seed is one for all models: an image counts as often for each of them.
    seed = item_seed(settings.seed, f"{name} images")
    drawn = {
        model: _draw(OodResults(root, name, model), list(rows[model]), int(usual[0]), settings.bootstrap_draws, seed)
        for model in rows
    }
    return Detection(name, rows, {model: of_model for model, of_model in drawn.items() if of_model}, int(usual[0]))


def _check(results: OodResults, made: dict[str, dict[str, Any]], command: str) -> dict[str, Any]:
    """Return what results state of all images together; a new model is added to `made`.

    Raises:
        GenValError: they are of a part of the images, or of another model than in `made`.
    """
    pooled: dict[str, Any] = read_json(results.json).get("pooled", {})
    if pooled.get("limit") is not None:
        raise GenValError(f"{results.json} holds results of a part of the images (--limit). Run: {command}")
    known = made.setdefault(results.model, {key: pooled.get(key) for key in ("identity", "precision")})
    require_model(known, f"other results of {results.model}", pooled, results.json, f"Run: {command}")
    return pooled


def _read_rows(path: Path) -> dict[str, dict[str, float]]:
    """Read the values by score and column."""
    rows: dict[str, dict[str, float]] = {}
    with open(path, newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            if "score" not in row or "auroc" not in row:
                raise GenValError(f"{path} has no columns score and auroc. Run ood_detection/main_gen_ood.py again.")
            cells = {key: value for key, value in row.items() if key not in ("set", "model", "score")}
            rows[row["score"]] = {key: _number(path, key, value) for key, value in cells.items()}
    if not rows:
        raise GenValError(f"{path} has no rows. Run ood_detection/main_gen_ood.py again.")
    return rows


def _number(path: Path, key: str, value: str | None) -> float:
    try:
        return float(value) if value else np.nan
    except ValueError as error:
        raise GenValError(
            f"{path}, column {key}: expected a number, found {value!r}. Run ood_detection/main_gen_ood.py again."
        ) from error


def _draw(
    results: OodResults, scores: Sequence[str], images: int, draws: int, seed: int
) -> dict[str, dict[str, np.ndarray]] | None:
    """Compute each score's metrics on drawn images; None where the counts do not belong to the table."""
    bootstrap = PoissonBootstrap(len(scores), 0, draws, seed)
    ids: list[str] = []
    counts: list[np.ndarray] = []
    paths = sorted((results.folder / "blocks").glob("*.npz"))
    for path in paths:
        lines, _, coarse = results.read_block(path.stem)
        if coarse.shape[1] != len(scores):
            return None
        ids += [line["made_from"]["id"] for line in lines]
        counts.append(coarse)
        if len(ids) >= _IMAGES_PER_UPDATE or path == paths[-1]:
            bootstrap.update(ids, np.concatenate(counts), np.empty((len(ids), 0)))
            ids, counts = [], []
    if bootstrap.images != images or images < 2:
        return None
    drawn: dict[str, dict[str, np.ndarray]] = {}
    for index, score in enumerate(scores):
        values = bootstrap.drawn_metrics(index)
        drawn[score] = {metric: values[metric] for metric in METRICS}
    return drawn


def _compare_set(
    settings: CorrelationSettings,
    models: Sequence[str],
    generated: Detection,
    reference: Detection,
    clear_miou: Scores | None,
    others: Sequence[Detection],
) -> dict[str, dict[str, Comparison]]:
    """The comparisons by score and metric, where enough models have results on both sets.

    Other generated sets, of all objects or in other conditions, are predictors beside clear weather.
    """
    values: dict[str, dict[str, Comparison]] = {}
    for score in generated.scores:
        for metric, higher in METRICS.items():
            pair = {SYNTHETIC: generated.select(models, score, metric), TRUE: reference.select(models, score, metric)}
            kept = np.flatnonzero(~np.isnan(pair[SYNTHETIC].value + pair[TRUE].value))
            if len(kept) < FEWEST_COMPARED:
                continue
            sides = {side: scores.select(kept) for side, scores in pair.items()}
            if clear_miou is not None and np.isfinite(clear_miou.value[kept]).sum() >= FEWEST_COMPARED:
                # A model with more mIoU should have fewer false alarms: the sign is changed, so that r has one sign.
                sign = 1 if higher else -1
                clear = clear_miou.select(kept)
                drawn = None if clear.drawn is None else sign * clear.drawn
                sides[CLEAR] = Scores(sign * clear.value, drawn, clear.units)
            for other in others:
                theirs = other.select(models, score, metric).select(kept)
                if np.isfinite(theirs.value).sum() >= FEWEST_COMPARED:
                    sides[other.name] = theirs
            values.setdefault(score, {})[metric] = compare(
                [models[index] for index in kept.tolist()],
                sides,
                metric=metric,
                higher_is_better=higher,
                sets={SYNTHETIC: ComparedSet(GENERATED), TRUE: ComparedSet(reference.name)},
                draws=settings.bootstrap_draws,
                seed=item_seed(settings.seed, f"{reference.name} {score} {metric}"),
            )
    return values


def _means(detection: Detection) -> dict[str, OodMeans]:
    values: dict[str, OodMeans] = {}
    for score in detection.scores:
        found = [by_score[score] for by_score in detection.rows.values() if score in by_score]
        columns = {metric: np.array([100 * row.get(metric, np.nan) for row in found]) for metric in METRICS}
        values[score] = OodMeans(len(found), **{metric: number(column.mean()) for metric, column in columns.items()})
    return values


def _command(settings: CorrelationSettings, models: Sequence[str], dataset: str | None = None) -> str:
    segmenters = architectures(models, settings.preset)
    flags = {"preset": settings.preset, "segmenters": segmenters, "trg_dataset": dataset}
    return str(Command("ood_detection/main_gen_ood", flags))
