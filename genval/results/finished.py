"""`total.npz`: what tells that a scene is finished without reading the files of each of its images.

It holds the sum of the images' statistics, the sizes of the scene's files, and hashes of `metrics.json` and of what
else decides about it. A scene is finished if the file states the wanted images, every file has its size, and none has
changed after `metrics.json` was written. A file whose content changes without a change of its size and times, as on a
damaged disk, is found when it is read, and does not change the sum.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from genval.artifacts.tensors import read_arrays, write_arrays
from genval.metrics.statistics import PixelStatistics
from genval.results.provenance import is_reusable
from genval.results.scenes import SceneResults
from genval.runtime.errors import GenValError

SUMMARY_VERSION = 1
"""Version of what the summary of a scene holds: raise it when `metrics.json` or a table gets other content."""

_SCENE_FILES = ("manifest.jsonl", "confusion_matrix.csv", "per_image.csv")
_FOLDERS = {"predictions": (".png",), "statistics": (".json", ".npz")}
_FIELDS = tuple(PixelStatistics.empty(1).__dict__)
_ABSENT = -1


def summary_key(records: Sequence[Mapping[str, Any]], *others: Any) -> str:
    """Return a hash of the images' records and of what else decides about a scene's summary, fit for JSON."""
    digest = hashlib.blake2b(digest_size=16)
    for value in (SUMMARY_VERSION, others, *records):
        digest.update(json.dumps(value, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def write_total(
    results: SceneResults, records: Sequence[Mapping[str, Any]], total: PixelStatistics, key: str, metrics: bytes
) -> None:
    """Write the scene's `total.npz`, after its other files and before `metrics.json`.

    Args:
        results: the scene.
        records: of its images.
        total: the sum of the images' statistics.
        key: from `summary_key`.
        metrics: the content of `metrics.json`.
    """
    scene, images = _sizes(results, records, None)
    write_arrays(
        results.total,
        {**vars(total), "scene_sizes": scene, "image_sizes": images, "marks": _marks(key, metrics)},
    )


def read_total(
    results: SceneResults, records: Sequence[Mapping[str, Any]], key: str, prediction: bool
) -> PixelStatistics | None:
    """Return the sum of the statistics of a finished scene; None where the scene must be looked at image by image.

    Args:
        results: the scene.
        records: of its images, as this run would write them.
        key: from `summary_key`.
        prediction: whether the predicted classes must be there.
    """
    try:
        arrays = read_arrays(results.total, (*_FIELDS, "scene_sizes", "image_sizes", "marks"), "")
        metrics, written = results.metrics.read_bytes(), results.metrics.stat().st_ctime_ns
    except (GenValError, OSError):
        return None
    expected = [arrays.pop(name) for name in ("scene_sizes", "image_sizes", "marks")]
    found = [*_sizes(results, records, written), _marks(key, metrics)]
    required = found[1] if prediction else found[1][:, 1:]
    is_whole = not (required == _ABSENT).any() and all(map(is_reusable, records))
    is_same = all(map(np.array_equal, expected, found))
    return PixelStatistics(**arrays) if is_whole and is_same else None


def _marks(key: str, metrics: bytes) -> np.ndarray:
    """Return both hashes, uint8 (2, 16)."""
    marks = bytes.fromhex(key), hashlib.blake2b(metrics, digest_size=16).digest()
    return np.stack([np.frombuffer(mark, np.uint8) for mark in marks])


def _sizes(
    results: SceneResults, records: Sequence[Mapping[str, Any]], written: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the sizes of the scene's tables, and those of each image's prediction, confusion matrix and counts.

    Files that are absent, or have changed since `written`, have the size `_ABSENT`.
    """
    of_scene, *of_images = (
        _scan(folder, written) for folder in (results.folder, *(results.folder / name for name in _FOLDERS))
    )
    sizes = [
        [
            found.get(f"{record['id']}{suffix}", _ABSENT)
            for found, suffixes in zip(of_images, _FOLDERS.values(), strict=True)
            for suffix in suffixes
        ]
        for record in records
    ]
    return np.array([of_scene.get(name, _ABSENT) for name in _SCENE_FILES]), np.array(sizes)


def _scan(folder: Path, written: int | None) -> dict[str, int]:
    try:
        with os.scandir(folder) as entries:
            states = {entry.name: entry.stat() for entry in entries}
    except OSError:
        return {}
    return {name: state.st_size for name, state in states.items() if written is None or state.st_ctime_ns < written}
