"""Finished results on disk: which there are, and whether they can be used together."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from genval.artifacts.tensors import PackedTensors
from genval.results.provenance import (
    Provenance,
    SceneRecords,
    common_provenance,
    images_mark,
    require_classes,
    require_model,
)
from genval.results.scenes import ALL, GATED_SUFFIX, SceneResults
from genval.results.shapes import SceneModel, SceneSummary
from genval.runtime.errors import GenValError
from genval.runtime.files import read_json


class NoResultsError(GenValError):
    """A segmenter was not evaluated on a set, or not completely."""


def list_scenes(
    root: Path,
    model: str,
    dataset: str,
    pairs: Iterable[tuple[str, str]],
    preset: str | None = None,
    limited: bool = False,
    **flags: Any,
) -> list[SceneResults]:
    """Return the scenes of `find_scenes`, without what made them."""
    return find_scenes(root, model, dataset, pairs, preset, limited, **flags)[0]


def find_scenes(
    root: Path,
    model: str,
    dataset: str,
    pairs: Iterable[tuple[str, str]],
    preset: str | None = None,
    limited: bool = False,
    **flags: Any,
) -> tuple[list[SceneResults], Provenance]:
    """Return the scenes on disk that match, each with a finished evaluation, after checking that they can be pooled.

    Args:
        root: `--eval_dir`.
        model: as passed to relis/eval.py.
        dataset: `--trg_dataset`.
        pairs: (condition, scene), of which both may be "all"; see `pair`.
        preset: of the command that an error recommends.
        limited: accept results of a part of the images, from --limit.
        flags: other flags of the command that an error about missing results recommends.

    Returns:
        At least one, sorted by condition and scene, without duplicates; and what made their results.

    Raises:
        NoResultsError: a named condition or scene has no results, or its evaluation has not finished.
        GenValError: the results cannot be pooled, see `genval.results.provenance.common_provenance`.
    """
    base = SceneResults(root, model, dataset, ALL, ALL)
    above = base.folder.parent.parent
    found: set[tuple[str, str]] = set()
    for cond, scene in pairs:
        conds = _folders(above) if cond == ALL else [cond]
        matches = {(c, s) for c in conds for s in _folders(above / c) if scene in (ALL, s)}
        if not matches:
            missing = SceneResults(root, model, dataset, cond, scene)
            others = list_models(root) if not _folders(above) else [model]
            close = [] if model in others else difflib.get_close_matches(model, others, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            existing = ", ".join(f"{c}/{s}" for c in _folders(above) for s in _folders(above / c)) or "nothing"
            raise NoResultsError(
                f"No results of {model} on {dataset} for condition {cond}, scene {scene} in {root}: found {existing}."
                f"{hint} Run: {missing.command(preset).with_flags(**flags)}"
            )
        found |= matches
    scenes = [SceneResults(root, model, dataset, cond, scene) for cond, scene in sorted(found)]
    for results in scenes:
        if not (results.metrics.exists() and (results.folder / "manifest.jsonl").exists()):
            command = results.command(preset).with_flags(**flags)
            raise NoResultsError(f"No finished results in {results.folder}. Run: {command}")
    made = provenance(scenes, preset)
    if made.limit is not None and not limited:
        raise GenValError(
            f"{scenes[0].folder} holds results of a part of the images (--limit {made.limit}). "
            f"Run: {scenes[0].command(preset)}"
        )
    return scenes, made


def provenance(scenes: Sequence[SceneResults], preset: str | None = None) -> Provenance:
    """Return what made the results of scenes that are pooled.

    Raises:
        GenValError: see `genval.results.provenance.common_provenance`.
    """
    by_folder = {results.folder: results for results in scenes}
    places = [
        SceneRecords(
            folder,
            results.dataset.removesuffix(GATED_SUFFIX),
            results.records(),
            read_json(results.metrics, SceneSummary),
        )
        for folder, results in by_folder.items()
    ]
    return common_provenance(places, lambda folder: f"Run: {by_folder[folder].command(preset)}")


def require_one_model(sets: Iterable[Sequence[SceneResults]], preset: str | None = None) -> Provenance | None:
    """Refuse to compare sets that one segmenter name stands for different models on; return what made the first set.

    Args:
        sets: the scenes of each set, from `list_scenes`; None is returned for no set.
        preset: of the command that an error recommends.

    Raises:
        GenValError: the model's identity or precision, or the classes differ between the sets; the message names both.
    """
    first: tuple[Provenance, Path] | None = None
    for scenes in sets:
        made, folder = provenance(scenes, preset), scenes[0].folder
        if first is None:
            first = made, folder
        require_model(first[0].model_record, first[1], made.model_record, folder, f"Run: {scenes[0].command(preset)}")
        require_classes(first[0].model_record, first[1], made.model_record, folder)
    return first[0] if first else None


def mark_of(scenes: Iterable[SceneResults]) -> str:
    """Return the `genval.results.provenance.images_mark` of all images of scenes."""
    return images_mark(record for results in scenes for record in results.records())


def open_tensors(results: SceneResults, kind: str, **flags: Any) -> PackedTensors:
    """Open the saved logits or features of a scene.

    Args:
        results: a scene of `list_scenes`.
        kind: "logits" or "features".
        flags: of the command that an error recommends.

    Raises:
        GenValError: they were not saved, or they are of another model or of other images than the scene's results.
    """
    command = results.command().with_script(f"relis/extract_{kind}").with_flags(**flags)
    path = results.packed(kind)
    if not path.exists():
        raise GenValError(f"No {kind} in {path}. Run: {command}")
    tensors, records = PackedTensors(path), results.records()
    made = {(record.get("identity"), record.get("precision")) for record in records}
    own = (tensors.about.get("identity"), tensors.about.get("precision"))
    if made != {own}:
        shown = " and ".join(sorted(f"{identity} in {precision}" for identity, precision in made))
        raise GenValError(
            f"{path} holds {kind} of another model than the other results of its folder: model identity {own[0]} in "
            f"{own[1]}, expected {shown}. Run: {command}"
        )
    if sorted(tensors.ids) != sorted(str(record["id"]) for record in records):
        raise GenValError(
            f"{path} holds {kind} of {len(tensors.ids)} images, its manifest.jsonl lists {len(records)}. Run: {command}"
        )
    return tensors


def list_models(root: Path) -> list[str]:
    """Return the names of the models with finished results below `root`, as passed to relis/eval.py."""
    return sorted({read_json(path, SceneModel)["model"] for path in root.glob("*/*/*/*/metrics.json")})


def _folders(parent: Path) -> list[str]:
    return sorted(entry.name for entry in parent.iterdir() if entry.is_dir()) if parent.is_dir() else []
