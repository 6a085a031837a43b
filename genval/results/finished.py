"""`total.npz`: what tells that a scene is finished without reading the files of each of its images.

It holds the sum of the images' statistics, the sizes of their files, and a hash of what else decides about the scene's
summary. A scene is finished if the file states the wanted images, every file has its size, and none has changed after
`metrics.json` was written. A file whose content changes without a change of its size and times, as by a damaged disk,
is found when it is read, and does not change the sum.
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

_FOLDERS = {"predictions": (".png",), "statistics": (".json", ".npz")}
_FIELDS = tuple(PixelStatistics.empty(1).__dict__)
_ABSENT = -1


def summary_key(records: Sequence[Mapping[str, Any]], *others: Any) -> str:
    """Return a hash of the images' records and of what else decides about a scene's summary, fit for JSON."""
    digest = hashlib.blake2b(digest_size=16)
    for value in (SUMMARY_VERSION, others, *records):
        digest.update(json.dumps(value, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def write_total(results: SceneResults, records: Sequence[Mapping[str, Any]], total: PixelStatistics, key: str) -> None:
    """Write the scene's `total.npz`, before its `metrics.json`.

    Args:
        results: the scene.
        records: of its images.
        total: the sum of the images' statistics.
        key: from `summary_key`.
    """
    sizes = [[-1 if state is None else state[0] for state in states] for states in _states(results, records)]
    key_bytes = np.frombuffer(bytes.fromhex(key), np.uint8)
    write_arrays(results.total, {**vars(total), "sizes": np.asarray(sizes, np.int64), "key": key_bytes})


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
    if not results.metrics.exists() or not results.total.exists() or not all(map(is_reusable, records)):
        return None
    try:
        arrays = read_arrays(results.total, (*_FIELDS, "sizes", "key"), "")
    except GenValError:
        return None
    sizes, last = arrays.pop("sizes"), results.metrics.stat().st_ctime_ns
    if arrays.pop("key").tobytes().hex() != key or sizes.shape != (len(records), 3):
        return None
    for states, expected in zip(_states(results, records), sizes.tolist(), strict=True):
        for state, size in zip(states, expected, strict=True):
            if (state is None) != (size == _ABSENT) or (state is not None and (state[0] != size or state[1] >= last)):
                return None
    if (sizes[:, 1:] == _ABSENT).any() or (prediction and (sizes == _ABSENT).any()):
        return None
    return PixelStatistics(**arrays)


def _states(results: SceneResults, records: Sequence[Mapping[str, Any]]) -> list[list[tuple[int, int] | None]]:
    """Return size and time of change of each image's prediction, confusion matrix and counts; None where absent."""
    found = {folder: _scan(results.folder / folder) for folder in _FOLDERS}
    return [
        [found[folder].get(f"{record['id']}{suffix}") for folder, suffixes in _FOLDERS.items() for suffix in suffixes]
        for record in records
    ]


def _scan(folder: Path) -> dict[str, tuple[int, int]]:
    try:
        with os.scandir(folder) as entries:
            states = ((entry.name, entry.stat()) for entry in entries)
            return {name: (state.st_size, state.st_ctime_ns) for name, state in states}
    except OSError:
        return {}
