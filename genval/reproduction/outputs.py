"""What of a step's files is on the disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from genval.artifacts.manifest import Manifest
from genval.report.schema import FORMAT
from genval.reproduction.steps import Outputs, newest
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
    files = sorted(folder.glob("manifest*.jsonl"))
    return Outputs(len(Manifest(folder).records), newest(*files)) if files else Outputs(0)


def of_files(files: Sequence[Path]) -> Outputs:
    there = [file for file in files if file.exists()]
    return Outputs(len(there), newest(*there), min(map(newest, there), default=None))


def of_evaluations(root: Path, places: Sequence[tuple[str, str, str]]) -> Outputs:
    """Images in finished scenes whose logits are there, of models on sets."""
    made, files = 0, []
    for model, dataset, cond in places:
        for path in SceneResults(root, model, dataset, cond, "*").folder.parent.glob("*/metrics.json"):
            if (path.parent / "logits.safetensors").exists():
                values = read_json(path, SceneSize)
                made += values["images"] + len(values["skipped"])
                files.append(path)
    return Outputs(made, newest(*files), min(map(newest, files), default=None))


def of_correlation(path: Path, domains: Sequence[str], models: str) -> Outputs:
    """The comparison, if it is of these domains and models, as flags name them."""
    try:
        content = read_json(path, _Comparison)
        found = content["format"], content["settings"]["domains"], content["settings"]["segmenters"]
        same = found == (FORMAT, list(domains), models)
    except GenValError:  # absent, or another format's: it is made again
        same = False
    return Outputs(int(same), newest(path))
