"""What of a step's files is on the disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from genval.artifacts.manifest import Manifest, manifest_parts
from genval.report.schema import FORMAT
from genval.reproduction.steps import Outputs
from genval.results.scenes import SceneResults
from genval.results.shapes import SceneSize
from genval.runtime.errors import GenValError
from genval.runtime.files import read_json


class _Compared(TypedDict):
    domains: list[str]
    segmenters: str


class _Comparison(TypedDict):
    """The part of `correlation.json` that says what was compared."""

    format: int
    settings: _Compared


def nothing() -> Outputs:
    return Outputs(0)


def of_manifest(folder: Path) -> Outputs:
    """Finished items of a stage that keeps a manifest."""
    files = manifest_parts(folder)
    return Outputs(len(Manifest(folder).records), tuple(files)) if files else Outputs(0)


def of_files(files: Sequence[Path]) -> Outputs:
    there = [file for file in files if file.exists()]
    return Outputs(len(there), tuple(there))


def of_evaluations(root: Path, places: Sequence[tuple[str, str, str]]) -> Outputs:
    """Images in finished scenes whose logits are there, of models on sets."""
    made = 0
    files: list[Path] = []
    for model, dataset, cond in places:
        for path in SceneResults(root, model, dataset, cond, "*").folder.parent.glob("*/metrics.json"):
            logits = path.with_name("logits.safetensors")
            if logits.exists():
                values = read_json(path, SceneSize)
                made += values["images"] + len(values["skipped"])
                files += [path, path.with_name("manifest.jsonl"), logits]
    return Outputs(made, tuple(files))


def of_correlation(path: Path, domains: Sequence[str], models: str) -> Outputs:
    """The comparison, if it is of these domains and models, as flags name them."""
    try:
        content = read_json(path, _Comparison)
        found = content["format"], content["settings"]["domains"], content["settings"]["segmenters"]
        same = found == (FORMAT, list(domains), models)
    except GenValError:  # absent, or another format's: it is made again
        same = False
    return Outputs(int(same), (path,))
