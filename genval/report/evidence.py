"""Results of relis/eval.py of every model on one set, per image, as arrays that resampling can weigh."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from genval.artifacts.tensors import read_arrays
from genval.datasets.layouts import GATED_SUFFIX, GENERATED_PREFIX, domain_of
from genval.kernels.layout import BINS
from genval.results.finding import NoResultsError, find_scenes
from genval.results.provenance import Provenance, require_classes, require_model
from genval.results.scenes import ALL, SceneResults, model_list, read_statistics
from genval.results.shapes import ImageLine
from genval.runtime.commands import Missing
from genval.runtime.errors import GenValError
from genval.runtime.files import read_jsonl
from genval.runtime.progress import progress_bar


@dataclass(frozen=True)
class Place:
    """A set of images as relis/eval.py names it."""

    dataset: str
    cond: str


@dataclass(frozen=True)
class Evidence:
    """One set, and the counts of several models on its images; missing models have NaN."""

    place: Place
    images: tuple[str, ...]  # scene/id
    sources: tuple[str, ...]  # of each image: the labelled street it was made from, or itself
    counts: np.ndarray  # float64 (N, M, 3, C): hits, labelled pixels and predicted pixels of each class
    bins: np.ndarray | None  # float64 (N, M, 3, B): right pixels, pixels and sum of confidences by confidence
    made: dict[str, Provenance] = field(default_factory=dict)  # by model

    @property
    def units(self) -> int:
        """The number of sources: images of one source are resampled together."""
        return len(set(self.sources))

    def of_images(self, images: Collection[str]) -> Evidence:
        """Return the evidence on some of the images."""
        rows = [row for row, image in enumerate(self.images) if image in images]
        return replace(
            self,
            images=tuple(self.images[row] for row in rows),
            sources=tuple(self.sources[row] for row in rows),
            counts=self.counts[rows],
            bins=None if self.bins is None else self.bins[rows],
        )

    def units_by_class(self) -> np.ndarray:
        """Return the number of sources with labelled pixels of each class, int (C,)."""
        labelled = np.nan_to_num(self.counts[:, :, 1]).any(1)
        by_source: dict[str, np.ndarray] = {}
        for source, of_image in zip(self.sources, labelled, strict=True):
            by_source[source] = by_source.get(source, False) | of_image
        return np.asarray(np.sum(list(by_source.values()), axis=0))

    def has(self) -> np.ndarray:
        """Return which models were evaluated on the set, bool (M,)."""
        return np.asarray(~np.isnan(self.counts[0, :, 0, 0]))

    def has_bins(self) -> np.ndarray:
        """Return which models have counts of confidences, bool (M,)."""
        if self.bins is None:
            return np.zeros(self.counts.shape[1], bool)
        return np.asarray(~np.isnan(self.bins[:, :, 0, 0]).any(0))

    def labelled(self) -> np.ndarray:
        """Return which classes have labelled pixels, bool (C,)."""
        return np.asarray(np.nan_to_num(self.counts[:, :, 1]).sum((0, 1)) > 0)


def read_evidence(
    root: Path, models: Sequence[str], place: Place, preset: str | None, missing: list[Missing], made_by: str = ""
) -> Evidence | None:
    """Read the counts of every model on a set.

    Args:
        root: folder of the evaluation results.
        models: names as given to relis/eval.py; they are the axis M.
        place: the set.
        preset: for the commands.
        missing: models without finished results on this set, or on other images than most models, are appended.
        made_by: the command that makes the images of the set; it is reported if no model has results.

    Returns:
        None when no model has results.

    Raises:
        GenValError: a file is damaged, or results cannot be pooled.
    """
    found: dict[str, list[SceneResults]] = {}
    made: dict[str, Provenance] = {}
    for model in models:
        try:
            found[model], made[model] = find_scenes(root, model, place.dataset, [(place.cond, ALL)], preset)
        except NoResultsError:
            continue
    records = {
        model: [(scene, record) for scene in scenes for record in _records(scene)] for model, scenes in found.items()
    }
    # The content is compared too: a set may be generated again, with the same names, between two evaluations.
    marks = {model: tuple(map(_mark, images)) for model, images in records.items()}
    usual = Counter(marks.values()).most_common(1)[0][0] if marks else ()
    absent = [model for model in models if model not in found]
    other = [model for model in found if marks[model] != usual]

    def report(without: Sequence[str], what: str) -> None:
        if without:
            command = evaluation(root, without, place, preset)
            command = f"{made_by} && {command}" if made_by and not found else command
            missing.append(Missing(_sentence(without, models, place, what), command))

    report(absent, "no results")
    report(other, "results on other images")
    kept = {model: images for model, images in records.items() if model not in other}
    if not usual:
        return None
    counts, bins = _read(models, kept, place)
    without = [model for model in kept if bins is None or np.isnan(bins[:, list(models).index(model), 0, 0]).any()]
    report(without, "no counts of confidences")
    images = tuple(name for name, *_ in usual)
    sources = tuple(f"{place.dataset}/{image}" for image in images)
    return Evidence(place, images, sources, counts, bins, made)


def with_street_sources(evidence: Evidence, domain: str | None = None) -> Evidence:
    """Take the source of each image from its name, `{domain}_{number}_{street}` or just `{street}`.

    For sets made from the labelled streets: one generated or corrupted from the same street shares its source. The
    domain is that of the data set's name by default; the name of a set made by another tool may not tell it.
    """
    dataset = evidence.place.dataset.removesuffix(GATED_SUFFIX)
    domain = re.escape(domain or domain_of(dataset)) if dataset.startswith(GENERATED_PREFIX) else ""
    sources = []
    for image in evidence.images:
        name = image.rpartition("/")[2]
        match = re.fullmatch(rf"{domain}_\d+_(.+)", name) if domain else None
        sources.append(match[1] if match else name)
    return replace(evidence, sources=tuple(sources))


def require_same_models(sides: Iterable[Evidence], root: Path, preset: str | None) -> dict[str, Provenance]:
    """Refuse to compare sets on which one segmenter name stands for different models, or counts of different versions.

    Returns:
        What made the results, by segmenter.

    Raises:
        GenValError: the identity or the precision of a model, or the classes differ between two sets, or versions of
            the code that counted differ between two results; the message names both.
    """
    first: dict[str, tuple[Provenance, Place]] = {}
    versions: dict[int, tuple[str, Place]] = {}
    for evidence in sides:
        for model, made in evidence.made.items():
            known, place = first.setdefault(model, (made, evidence.place))
            names = [f"results of {model} on {one.dataset} ({one.cond})" for one in (place, evidence.place)]
            remedy = f"Run: {evaluation(root, [model], evidence.place, preset)}"
            require_model(known.model_record, names[0], made.model_record, names[1], remedy)
            require_classes(known.model_record, names[0], made.model_record, names[1])
            versions.setdefault(made.counts_version, (model, evidence.place))
    if len(versions) > 1:
        (old, (model, place)), *_, (new, (other, other_place)) = sorted(versions.items())
        raise GenValError(
            f"Results of {model} on {place.dataset} ({place.cond}) and of {other} on {other_place.dataset} "
            f"({other_place.cond}) were counted by different versions of the code, {old} and {new}. Run: "
            f"{evaluation(root, [model], place, preset)}"
        )
    return {model: made for model, (made, _) in first.items()}


def evaluation(root: Path, models: Sequence[str], place: Place, preset: str | None) -> str:
    """Return the command that evaluates models on a set: one for all models that need the same flags."""
    groups: dict[tuple[tuple[str, Any], ...], list[str]] = {}
    for model in models:
        flags = SceneResults(root, model, place.dataset, place.cond, ALL).saved_flags(preset)
        groups.setdefault(tuple(flags.items()), []).append(model)
    return " && ".join(
        str(
            SceneResults(root, architectures(group, preset), place.dataset, place.cond, ALL)
            .command(preset)
            .with_flags(**dict(flags))
        )
        for flags, group in groups.items()
    )


def architectures(models: Sequence[str], preset: str | None) -> str:
    """Return models as `--segmenters` takes them."""
    return ALL if set(models) == set(model_list(ALL, preset)) else ",".join(models)


def _records(scene: SceneResults) -> list[dict[str, Any]]:
    return read_jsonl(scene.folder / "manifest.jsonl", ImageLine)


def _mark(image: tuple[SceneResults, dict[str, Any]]) -> tuple[str, str | None, str | None]:
    """An image's name, and the marks of its file and of its mask."""
    scene, record = image
    return f"{scene.scene}/{record['id']}", record.get("image_mark"), record.get("mask_mark")


def _sentence(models: Sequence[str], every: Sequence[str], place: Place, what: str) -> str:
    short = short_names(every)
    who = "any segmenter" if len(models) == len(every) else ", ".join(short[model] for model in models)
    return f"{what} of {who} on {place.dataset} ({place.cond})"


def short_names(models: Sequence[str]) -> dict[str, str]:
    """Return short names: the last part of a specification such as `hf:FOLDER`, if no other model has the same.

    >>> short_names(["SwinLarge", "hf:some/segformer", "mmseg:nets/unet.py,nets/unet.pth"])["hf:some/segformer"]
    'segformer'
    """
    last = {model: model.partition(":")[2].partition(",")[0] if ":" in model else model for model in models}
    last = {model: name.rstrip("/").rpartition("/")[2].removesuffix(".py") or model for model, name in last.items()}
    number = Counter(last.values())
    return {model: name if number[name] == 1 else model for model, name in last.items()}


def _read(
    models: Sequence[str], images: dict[str, list[tuple[SceneResults, dict[str, Any]]]], place: Place
) -> tuple[np.ndarray, np.ndarray | None]:
    counts: np.ndarray | None = None
    bins: np.ndarray | None = None
    with progress_bar(sum(map(len, images.values())), f"reading {place.dataset}") as bar:
        for column, model in enumerate(models):
            for row, (scene, record) in enumerate(images.get(model, ())):
                name = record["id"]
                matrix = read_statistics(scene.statistics(name), record)
                if counts is None:
                    counts = np.full((len(images[model]), len(models), 3, len(matrix)), np.nan)
                counts[row, column] = np.diag(matrix), matrix.sum(1), matrix.sum(0)
                if scene.counts(name).exists():
                    tally = read_bins(scene.counts(name))
                    if bins is None:
                        bins = np.full((len(images[model]), len(models), *tally.shape), np.nan)
                    bins[row, column] = tally
                bar.update()
    assert counts is not None
    return counts, bins


def read_bins(path: Path) -> np.ndarray:
    """Right pixels, pixels and sum of confidences in each bin of the confidence, float64 (3, B)."""
    arrays = read_arrays(path, ("bins", "bin_confidence"), "Delete it and run relis/eval.py again.")
    bins, confidence = arrays["bins"].astype(np.float64), arrays["bin_confidence"]
    if bins.shape != (2, BINS) or confidence.shape != (BINS,):
        raise GenValError(f"{path}: expected {BINS} bins, found {bins.shape}. Delete it and run relis/eval.py again.")
    return np.stack([bins[1], bins.sum(0), confidence])
