"""The files `relis/eval.py` leaves, one folder for each model, data set, condition and scene.

    {root_exp_dir}/{model}/{dataset}/{cond}/{scene}/predictions/{id}.png     trainIds, uint8 (H, W)
                                                    statistics/{id}.json     the image's confusion matrix, and of what
                                                    metrics.json             figures of the whole scene
                                                    confusion_matrix.csv     of the whole scene, rows are labels
                                                    per_image.csv            figures of each image
                                                    manifest.jsonl           one line an image
                                                    settings.json            flags and versions

`metrics.json` is written last and taken away first: where it is, the scene is complete.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import path_dicts
from genval.metrics.confusion import confusion_matrix
from genval.metrics.segmentation import figures, mean_class_accuracy, mean_iou, pixel_accuracy, plain
from genval.runtime.errors import GenValError
from genval.runtime.files import read_json, read_jsonl, write_bytes, write_csv, write_json, write_jsonl, write_png
from genval.runtime.paths import REPO_ROOT

ALL = "all"
# Bytes of a file's end that its mark covers.
_END = 4096


@dataclass(frozen=True)
class SceneResults:
    """The place of one scene's results."""

    root: Path
    model: str
    dataset: str
    cond: str
    scene: str

    @property
    def folder(self) -> Path:
        """Where everything about this scene is."""
        return self.root / folder_name(self.model) / self.dataset / self.cond / self.scene

    @property
    def metrics(self) -> Path:
        """The summary; it exists when the scene is complete."""
        return self.folder / "metrics.json"

    def prediction(self, item_id: str) -> Path:
        """The predicted trainIds of an image."""
        return self.folder / "predictions" / f"{item_id}.png"

    def statistics(self, item_id: str) -> Path:
        """The counts of an image."""
        return self.folder / "statistics" / f"{item_id}.json"

    def is_done(self, record: Mapping[str, Any]) -> bool:
        """Whether an image's files exist and were made from what `record` says (see `image_record`)."""
        statistics = self.statistics(record["id"])
        if not (statistics.exists() and self.prediction(record["id"]).exists()):
            return False
        return {**_read_counts(statistics), "confusion_matrix": None} == {**record, "confusion_matrix": None}

    def read_matrix(self) -> np.ndarray:
        """The scene's confusion matrix, int64 (C, C)."""
        path = self.folder / "confusion_matrix.csv"
        try:
            return np.loadtxt(path, np.int64, delimiter=",", skiprows=1, ndmin=2, converters={0: lambda name: 0})[:, 1:]
        except (OSError, ValueError) as error:
            raise GenValError(f"{path} cannot be read ({error}). Run: {self.command()} --overwrite") from error

    def read(self) -> list[tuple[dict[str, Any], np.ndarray]]:
        """Each image's record and confusion matrix, int64 (C, C), in the manifest's order.

        Raises:
            GenValError: a file is missing or damaged.
        """
        return [
            (record, read_statistics(self.statistics(record["id"])))
            for record in read_jsonl(self.folder / "manifest.jsonl")
        ]

    def command(self, preset: str | None = None) -> str:
        """The command that makes these results."""
        flags = {
            "--preset": preset,
            "--model_arch": self.model,
            "--trg_dataset": self.dataset,
            "--cond": self.cond,
            "--scene": self.scene,
            "--root_exp_dir": _short(self.root),
        }
        return "python relis/eval.py " + " ".join(f"{flag} {shlex.quote(v)}" for flag, v in flags.items() if v)


def finish_scene(
    results: SceneResults,
    records: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    label_space: Sequence[int],
    class_sets: Mapping[str, Sequence[int]],
    about: Mapping[str, Any],
    skipped: Sequence[Mapping[str, str]] = (),
) -> dict[str, Any]:
    """Write a scene's manifest, tables and figures from its images' statistics; return what `metrics.json` holds.

    Args:
        results: where.
        records: of every image, in the manifest's order.
            about: added to the head of `metrics.json`.
        skipped: what `--skip_bad` set aside.
    """
    matrices = [read_statistics(results.statistics(record["id"])) for record in records]
    total = np.sum(matrices, axis=0)
    write_jsonl(
        results.folder / "manifest.jsonl",
        [{**record, "prediction": f"predictions/{record['id']}.png"} for record in records],
    )
    write_csv(
        results.folder / "confusion_matrix.csv",
        ["label", *names],
        [[name, *row] for name, row in zip(names, total.tolist(), strict=True)],
    )
    header, rows = per_image_table([record["id"] for record in records], matrices, label_space)
    write_csv(results.folder / "per_image.csv", header, rows)
    values = {
        "model": results.model,
        "dataset": results.dataset,
        "cond": results.cond,
        "scene": results.scene,
        **about,
        "images": len(records),
        "skipped": list(skipped),
        **figures(total, names, label_space, class_sets),
    }
    write_json(results.metrics, values)
    return values


def per_image_table(
    ids: Sequence[str], matrices: Sequence[np.ndarray], classes: Sequence[int]
) -> tuple[list[str], list[list[Any]]]:
    """Header and rows of each image's figures; an image without a labelled pixel has empty cells."""
    header = ["id", "miou", "pixel_accuracy_percent", "mean_class_accuracy", "pixels"]
    rows = [
        [
            item_id,
            plain(mean_iou(matrix, classes)),
            plain(pixel_accuracy(matrix)),
            plain(mean_class_accuracy(matrix, classes)),
            int(matrix.sum()),
        ]
        for item_id, matrix in zip(ids, matrices, strict=True)
    ]
    return header, rows


def image_record(item_id: str, image: Path, mask: Path, model: str, weights: str, precision: str) -> dict[str, Any]:
    """What an image's results are made from. Results with another record are stale, and made again.

    Args:
        item_id: the image's id.
        image: its file; recorded from the repository's root where it is below it, with a mark of its content.
        mask: its labels' file, likewise.
        model: the segmenter's name.
        weights: the segmenter's hash.
        precision: the arithmetic it ran in.
    """
    return {
        "id": item_id,
        "model": model,
        "weights": weights,
        "precision": precision,
        "image": _short(image),
        "image_mark": _mark(image),
        "mask": _short(mask),
        "mask_mark": _mark(mask),
    }


def save_image(
    results: SceneResults,
    record: Mapping[str, Any],
    prediction: np.ndarray,
    train_ids: np.ndarray,
    overwrite: bool = False,
) -> None:
    """Write an image's prediction and counts; files of the same record that are there already are kept.

    Args:
        results: where.
        record: from `image_record`.
        prediction: trainIds, uint8 (H, W).
        train_ids: the labels, uint8 (H, W).
        overwrite: write them in any case.
    """
    if overwrite or not results.is_done(record):
        write_png(results.prediction(record["id"]), prediction)
        # Last: the statistics are what says that the prediction beside them is of this record.
        write_statistics(results.statistics(record["id"]), record, confusion_matrix(train_ids, prediction))


def write_statistics(path: Path, record: Mapping[str, Any], matrix: np.ndarray) -> None:
    """Write an image's confusion matrix with the record of what it was made from.

    All on one line: a folder holds thousands of these.
    """
    value = {**record, "confusion_matrix": matrix.tolist()}
    write_bytes(path, (json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n").encode())


def read_statistics(path: Path) -> np.ndarray:
    """The confusion matrix of an image, int64 (C, C).

    Raises:
        GenValError: the file is missing or damaged.
    """
    matrix = np.asarray(_read_counts(path)["confusion_matrix"])
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.dtype.kind != "i" or matrix.min() < 0:
        raise GenValError(f"{path} holds no confusion matrix. Delete it and run relis/eval.py again.")
    return matrix


def list_scenes(
    root: Path, model: str, dataset: str, pairs: Iterable[tuple[str, str]], preset: str | None = None
) -> list[SceneResults]:
    """Result folders on the disk, each with a finished evaluation.

    Args:
        root: `--root_exp_dir`.
        model: as it was given to relis/eval.py.
        dataset: `--trg_dataset`.
        pairs: (condition, scene), either may be "all"; see `pair`.
        preset: for the command that an error recommends.

    Returns:
        Sorted by condition and scene, each once; never empty.

    Raises:
        GenValError: a named condition or scene has no results, or its evaluation has not finished.
    """
    base = SceneResults(root, model, dataset, ALL, ALL)
    above = base.folder.parent.parent
    found: set[tuple[str, str]] = set()
    for cond, scene in pairs:
        conds = _folders(above) if cond == ALL else [cond]
        matches = {(c, s) for c in conds for s in _folders(above / c) if scene in (ALL, s)}
        if not matches:
            missing = SceneResults(root, model, dataset, cond, scene)
            close = difflib.get_close_matches(model, list_models(root), n=1) if not _folders(above) else []
            hint = f" Did you mean {close[0]}?" if close else ""
            have = ", ".join(f"{c}/{s}" for c in _folders(above) for s in _folders(above / c)) or "nothing"
            raise GenValError(
                f"No results of {model} on {dataset} for condition {cond}, scene {scene} in {root}: found {have}."
                f"{hint} Run: {missing.command(preset)}"
            )
        found |= matches
    scenes = [SceneResults(root, model, dataset, cond, scene) for cond, scene in sorted(found)]
    for results in scenes:
        if not results.metrics.exists():
            raise GenValError(f"No finished results in {results.folder}. Run: {results.command(preset)}")
    return scenes


def pair(conds: Sequence[str], scenes: Sequence[str]) -> list[tuple[str, str]]:
    """Conditions and scenes as the published commands mean them: lists of one length are paired, others crossed.

    >>> pair(["fog", "night"], ["GOPR0475", "GOPR0351"])
    [('fog', 'GOPR0475'), ('night', 'GOPR0351')]
    >>> pair(["fog", "night"], ["all"])
    [('fog', 'all'), ('night', 'all')]
    """
    if len(conds) == len(scenes):
        return list(zip(conds, scenes, strict=True))
    return [(cond, scene) for cond in conds for scene in scenes]


def model_list(text: str, preset: str | None = None) -> list[str]:
    """The models of `--model_arch`, by commas; "all" is every name of the preset's zoo.

    The comma inside `mmseg:CONFIG,CHECKPOINT` belongs to the model.

    >>> model_list("DLV3+ResNet18,mmseg:a.py,a.pth,SwinLarge")
    ['DLV3+ResNet18', 'mmseg:a.py,a.pth', 'SwinLarge']
    """
    if text == ALL:
        return list(path_dicts.MINI_SEGMENTERS if preset == "mini" else path_dicts.ZOO)
    models: list[str] = []
    for part in (part.strip() for part in text.split(",")):
        if models and models[-1].startswith("mmseg:") and "," not in models[-1]:
            models[-1] += f",{part}"
        else:
            models.append(part)
    if not all(models):
        raise GenValError(f"--model_arch expects names separated by commas, found {text!r}.")
    return models


def folder_name(model: str) -> str:
    """A model's folder: its name, with what is not safe in a path replaced and a hash to keep names apart.

    >>> folder_name("DLV3+ResNet18"), folder_name("hf:nvidia/segformer-b0")
    ('DLV3+ResNet18', 'hf_nvidia_segformer-b0-1c03469a')
    """
    safe = re.sub(r"[^A-Za-z0-9._+-]+", "_", model).lstrip(".")[:100]
    return safe if safe == model else f"{safe}-{hashlib.blake2b(model.encode(), digest_size=4).hexdigest()}"


def list_models(root: Path) -> list[str]:
    """The models with finished results below `root`, by the names they were given."""
    return sorted({read_json(path)["model"] for path in root.glob("*/*/*/*/metrics.json")})


def _read_counts(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict) or "confusion_matrix" not in value:
        raise GenValError(f"{path} holds no confusion matrix. Delete it and run relis/eval.py again.")
    return value


def _mark(path: Path) -> str:
    """A file's size in bytes and a hash of its end: cheap, and a PNG's end holds checksums of all of its pixels."""
    try:
        with open(path, "rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - _END))
            return f"{size}-{hashlib.blake2b(stream.read(), digest_size=4).hexdigest()}"
    except OSError as error:
        raise GenValError(f"Cannot read {path}: {error.strerror or error}.") from error


def _short(path: Path) -> str:
    return (path.relative_to(REPO_ROOT) if path.is_relative_to(REPO_ROOT) else path).as_posix()


def _folders(place: Path) -> list[str]:
    return sorted(entry.name for entry in place.iterdir() if entry.is_dir()) if place.is_dir() else []
