"""Reliability diagrams of evaluated sets, and before and after temperatures found on generated images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from genval.metrics.calibration import BINS
from genval.runtime.files import read_json


def collect_diagrams(errors: Path, scaling: Path) -> list[dict[str, Any]]:
    """The diagrams of what relis/eval_calibration.py and relis/eval_calibration_clustering.py wrote.

    Args:
        errors: the --results_dir of the first.
        scaling: that of the second.

    Returns:
        Sorted by tested set, source and model: `model`, `tested_on`, `calibrated_on` and `method`, None where nothing
        was scaled, and `panels`, by "before" and "after scaling" the `ece` in percent and the `accuracy`, `confidence`
        and share of pixels `pixels` of each bin. Files without bins, which earlier versions wrote, are skipped.

    Raises:
        GenValError: a file is not one of these scripts'.
    """
    entries = [
        _read(path, "relis/eval_calibration.py", _Errors, _of_errors) for path in sorted(errors.glob("*/*.json"))
    ]
    entries += [
        _read(path, "relis/eval_calibration_clustering.py", _Scaling, _of_scaling)
        for path in sorted(scaling.glob("*/*/from_*/*.json"))
    ]
    kept = [entry for entry in entries if entry["panels"]]
    return sorted(kept, key=lambda e: (e["tested_on"], e["calibrated_on"] or "", e["method"] or "", e["model"]))


class _Bins(TypedDict):
    pixels: list[float]
    right: list[float]
    confidence: list[float]


class _Ece(TypedDict):
    ece: float


class _Errors(TypedDict):
    """A file of relis/eval_calibration.py."""

    model: str
    set: str
    ece: float
    reliability_bins: NotRequired[dict[str, _Bins]]


class _Scaling(TypedDict):
    """A file of relis/eval_calibration_clustering.py."""

    model: str
    tested_on: str
    calibrated_on: str
    before: _Ece
    after_mean: _Ece
    reliability_bins: NotRequired[dict[str, _Bins]]


def _read(path: Path, script: str, shape: Any, read: Callable[[Any, str], dict[str, Any]]) -> dict[str, Any]:
    return read(
        read_json(path, shape, f"It is not a file of {script}: delete it and run that script again."), path.stem
    )


def _of_errors(content: _Errors, stem: str) -> dict[str, Any]:
    about = {"model": content["model"], "tested_on": content["set"], "calibrated_on": None, "method": None}
    return about | {"panels": _panels(content, {"before": content["ece"]})}


def _of_scaling(content: _Scaling, stem: str) -> dict[str, Any]:
    about = {"model": content["model"], "tested_on": content["tested_on"], "calibrated_on": content["calibrated_on"]}
    ece = {"before": content["before"]["ece"], "after scaling": content["after_mean"]["ece"]}
    return about | {"method": stem, "panels": _panels(content, ece)}


def _panels(content: Mapping[str, Any], ece: Mapping[str, float]) -> dict[str, Any]:
    bins = content.get("reliability_bins", {})
    return {name: {"ece": 100 * ece[name], **diagram_of_bins(panel)} for name, panel in bins.items() if name in ece}


def diagram_of_bins(bins: Mapping[str, list[float]]) -> dict[str, list[float | None]]:
    """Accuracy, mean confidence (None in empty bins) and share of the pixels of each equal-width bin.

    Args:
        bins: `pixels`, `right` and `confidence`, the number of pixels and right pixels and the sum of confidences.

    >>> bins = {"pixels": [0, 4], "right": [0, 3], "confidence": [0.0, 3.2]}
    >>> diagram_of_bins(bins) == {"accuracy": [None, 0.75], "confidence": [None, 0.8], "pixels": [0.0, 1.0]}
    True
    """
    pixels = bins["pixels"]
    total = sum(pixels) or 1
    means: dict[str, list[float | None]] = {
        name: [value / count if count else None for value, count in zip(bins[key], pixels, strict=True)]
        for name, key in (("accuracy", "right"), ("confidence", "confidence"))
    }
    return {**means, "pixels": [count / total for count in pixels]}


def bin_edges() -> list[float]:
    """The lower ends of the bins."""
    return [index / BINS for index in range(BINS)]
