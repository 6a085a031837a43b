"""The files `relis/eval.py` leaves, one folder for each model, data set, condition and scene.

    {root_exp_dir}/{model}/{dataset}/{cond}/{scene}/predictions/{id}.png     trainIds, uint8 (H, W)
                                                    statistics/{id}.json     the image's confusion matrix, and of what
                                                    statistics/{id}.npz      counts and sums of its confidences
                                                    logits.safetensors       with --save logits: pixels of each image
                                                    features.safetensors     with --save features: a vector an image
                                                    metrics.json             figures of the whole scene, with intervals
                                                    confusion_matrix.csv     of the whole scene, rows are labels
                                                    per_image.csv            figures of each image
                                                    manifest.jsonl           one line an image
                                                    settings.json            flags and versions

`metrics.json` is written last and taken away first: where it is, the scene is complete.
"""

from __future__ import annotations

import difflib
import hashlib
import io
import json
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import path_dicts
from genval.artifacts.fingerprint import file_mark
from genval.metrics.reliability import pool, reliability_figures
from genval.metrics.segmentation import (
    batch_figures,
    figures,
    mean_class_accuracy,
    mean_iou,
    pixel_accuracy,
    plain,
)
from genval.metrics.statistics import PixelStatistics
from genval.runtime.commands import Command
from genval.runtime.errors import GenValError
from genval.runtime.files import read_json, read_jsonl, write_bytes, write_csv, write_json, write_jsonl, write_png
from genval.runtime.paths import REPO_ROOT

ALL = "all"
# The end of a generated set's name where --gate left pictures out: never to be mixed with figures of the whole set.
GATED_SUFFIX = "-gated"
_CHECKPOINTS = (".pth", ".pt", ".ckpt", ".safetensors")
_IMAGE_HEADER = ["id", "miou", "pixel_accuracy_percent", "mean_class_accuracy", "pixels"]
_IMAGE_FIGURES = ["ece", "nll", "brier", "auroc", "entropy"]
# What statistics/{id}.npz holds, in the order of `PixelStatistics`, and the types in memory.
_SAVED: dict[str, Any] = {
    "levels": np.int64,
    "bins": np.int64,
    "bin_confidence": np.float64,
    "class_bins": np.int64,
    "class_confidence": np.float64,
    "sums": np.float64,
}


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
        return self.root / folder_name(self.model) / folder_name(self.dataset) / self.cond / self.scene

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

    def counts(self, item_id: str) -> Path:
        """The counts and sums of an image's confidences."""
        return self.folder / "statistics" / f"{item_id}.npz"

    def packed(self, kind: str) -> Path:
        """The scene's file of "logits" or "features"."""
        return self.folder / f"{kind}.safetensors"

    def part(self, kind: str, item_id: str) -> Path:
        """An image's logits or features, before they are packed."""
        return self.folder / kind / f"{item_id}.safetensors"

    def is_done(self, record: Mapping[str, Any], prediction: bool = True) -> bool:
        """Whether an image's files exist and were made from what `record` says (see `image_record`).

        `prediction` says whether the predicted classes are among the files.
        """
        statistics = self.statistics(record["id"])
        wanted = [statistics, self.counts(record["id"]), *([self.prediction(record["id"])] if prediction else [])]
        if not all(path.exists() for path in wanted):
            return False
        return {**_read_counts(statistics), "confusion_matrix": None} == {**record, "confusion_matrix": None}

    def read_matrix(self) -> np.ndarray:
        """The scene's confusion matrix, int64 (C, C)."""
        path = self.folder / "confusion_matrix.csv"
        try:
            return np.loadtxt(path, np.int64, delimiter=",", skiprows=1, ndmin=2, converters={0: lambda name: 0})[:, 1:]
        except (OSError, ValueError) as error:
            raise GenValError(
                f"{path} cannot be read ({error}). Run: {self.command().with_flags(overwrite=True)}"
            ) from error

    def ids(self) -> list[str]:
        """The images' ids, in the manifest's order."""
        return [record["id"] for record in read_jsonl(self.folder / "manifest.jsonl")]

    def read_pixels(self) -> Iterator[tuple[dict[str, Any], PixelStatistics]]:
        """Each image's record and statistics, in the manifest's order, one at a time.

        Raises:
            GenValError: a file is missing or damaged.
        """
        for record in read_jsonl(self.folder / "manifest.jsonl"):
            yield record, self.read_image(record["id"])

    def read_image(self, item_id: str) -> PixelStatistics:
        """An image's statistics.

        Raises:
            GenValError: a file is missing or damaged.
        """
        matrix, path = read_statistics(self.statistics(item_id)), self.counts(item_id)
        try:
            with np.load(path) as arrays:
                statistics = PixelStatistics(matrix, *(arrays[name].astype(dtype) for name, dtype in _SAVED.items()))
            return PixelStatistics.empty(len(matrix)) + statistics
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise GenValError(f"{path} is missing or damaged. Delete it and run: {self.command()}") from error

    def command(self, preset: str | None = None) -> Command:
        """Return the command that computes these results."""
        flags = {
            "preset": preset,
            "segmenters": self.model,
            "trg_dataset": self.dataset.removesuffix(GATED_SUFFIX),
            "cond": self.cond,
            "scene": self.scene,
            "eval_dir": _short(self.root),
            "gate": self.dataset.endswith(GATED_SUFFIX),
        }
        return Command("relis/eval", flags)


def finish_scene(
    results: SceneResults,
    records: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    label_space: Sequence[int],
    class_sets: Mapping[str, Sequence[int]],
    about: Mapping[str, Any],
    skipped: Sequence[Mapping[str, str]] = (),
) -> Summary:
    """Write a scene's manifest, tables and figures from its images' statistics; return what they sum up to.

    Args:
        results: where.
        records: of every image, in the manifest's order.
        names: the classes' names.
        label_space: as for `summarise`.
        class_sets: likewise.
        about: added to the head of `metrics.json`.
        skipped: what `--skip_bad` set aside.
    """
    summary = summarise(
        ((record["id"], results.read_image(record["id"])) for record in records), names, label_space, class_sets
    )
    write_jsonl(
        results.folder / "manifest.jsonl",
        [
            {**record, "prediction": f"predictions/{record['id']}.png"}
            if results.prediction(record["id"]).exists()
            else record
            for record in records
        ],
    )
    write_csv(
        results.folder / "confusion_matrix.csv",
        ["label", *names],
        [[name, *row] for name, row in zip(names, summary.total.confusion.tolist(), strict=True)],
    )
    write_csv(results.folder / "per_image.csv", *summary.table)
    values = {
        "model": results.model,
        "dataset": results.dataset,
        "cond": results.cond,
        "scene": results.scene,
        **about,
        "images": len(records),
        "skipped": list(skipped),
        **summary.figures,
    }
    write_json(results.metrics, values)
    return summary


@dataclass(frozen=True)
class Summary:
    """A set of images."""

    total: PixelStatistics
    figures: dict[str, Any]  # fit for JSON; `intervals` holds the ends of each figure's 95 % interval over images
    table: tuple[list[str], list[list[Any]]]  # header and rows of each image's figures


def summarise(
    images: Iterable[tuple[str, PixelStatistics]],
    names: Sequence[str],
    label_space: Sequence[int],
    class_sets: Mapping[str, Sequence[int]],
    fixed: bool = False,
) -> Summary:
    """Every figure of a set of images, each with its interval.

    Args:
        images: id and statistics of each, in the order in which their float sums are added.
        names: the classes' names.
        label_space: the classes of `miou`.
        class_sets: as for `segmentation.figures`.
        fixed: `miou` is over exactly these classes, and undefined where one is absent.
    """
    ids: list[str] = []
    rows: list[list[Any]] = []

    def each() -> Iterator[PixelStatistics]:
        for item_id, statistics in images:
            ids.append(item_id)
            of_image = reliability_figures(statistics)
            rows.append([item_id, *_image_row(statistics.confusion, label_space)])
            rows[-1] += [plain(of_image[name]) for name in _IMAGE_FIGURES]
            yield statistics

    total, ends = pool(each(), batch_figures(names, label_space, class_sets, fixed))
    of_confusion = figures(total.confusion, names, label_space, class_sets)
    if fixed:
        of_confusion["miou"] = plain(mean_iou(total.confusion, label_space, complete=True))
    of_confidence = {name: plain(value) for name, value in reliability_figures(total).items()}
    measured = int(total.bins.sum())
    values = of_confusion | of_confidence | {"measured_pixels": measured}
    values["intervals"] = {name: [plain(low), plain(high)] for name, (low, high) in ends.items()}
    return Summary(total, values, ([*_IMAGE_HEADER, *_IMAGE_FIGURES], rows))


def _image_row(matrix: np.ndarray, classes: Sequence[int]) -> list[Any]:
    """An image's cells below `_IMAGE_HEADER`; one without a labelled pixel has empty cells."""
    accuracies = [pixel_accuracy(matrix), mean_class_accuracy(matrix, classes)]
    return [*(plain(value) for value in [mean_iou(matrix, classes), *accuracies]), int(matrix.sum())]


def image_record(
    item_id: str,
    image: Path,
    mask: Path,
    model: str,
    weights: str,
    precision: str,
    sample: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """What an image's results are made from. Results with another record are stale, and made again.

    Args:
        item_id: the image's id.
        image: its file; recorded from the repository's root where it is below it, with a mark of its content.
        mask: its labels' file, likewise.
        model: the segmenter's name.
        weights: the segmenter's hash.
        precision: the arithmetic it ran in.
        sample: number and seed of the pixels whose confidences are measured; None is all pixels.
    """
    return {
        "id": item_id,
        "model": model,
        "weights": weights,
        "precision": precision,
        "image": _short(image),
        "image_mark": file_mark(image),
        "mask": _short(mask),
        "mask_mark": file_mark(mask),
        "confidences_of": dict(sample) if sample else "all pixels",
    }


def save_image(
    results: SceneResults,
    record: Mapping[str, Any],
    prediction: np.ndarray | None,
    statistics: PixelStatistics,
    overwrite: bool = False,
) -> None:
    """Write an image's prediction and statistics; files of the same record that are there already are kept.

    Args:
        results: where.
        record: from `image_record`.
        prediction: trainIds, uint8 (H, W); None where they are not kept.
        statistics: from `statistics.measure`.
        overwrite: write them in any case.
    """
    if not overwrite and results.is_done(record, prediction is not None):
        return
    if prediction is None:  # what is there is of another record
        results.prediction(record["id"]).unlink(missing_ok=True)
    else:
        write_png(results.prediction(record["id"]), prediction)
    write_counts(results.counts(record["id"]), statistics)
    # Last: this file is what says that those beside it are of this record.
    write_statistics(results.statistics(record["id"]), record, statistics.confusion)


def write_counts(path: Path, statistics: PixelStatistics) -> None:
    """Write what an image's statistics hold beside the confusion matrix, compressed: about 50 KB for 1024x2048."""
    stream = io.BytesIO()
    # As `numpy.savez_compressed`, which has no flag for the level: a fourth of its time for a fifth more bytes.
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=2) as archive:
        for name in _SAVED:
            values = getattr(statistics, name)
            # An image has less than 2^32 pixels.
            saved = values.astype(np.uint32) if values.dtype == np.int64 else values
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, np.ascontiguousarray(saved), allow_pickle=False)
    write_bytes(path, stream.getvalue())


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
            others = list_models(root) if not _folders(above) else [model]
            close = [] if model in others else difflib.get_close_matches(model, others, n=1)
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
    """The models of `--segmenters`, by commas; "all" is every name of the preset's zoo.

    The commas inside `mmseg:CONFIG,CHECKPOINT` and `smp:ARCHITECTURE,ENCODER,CHECKPOINT` belong to the model, and so
    does a checkpoint after `torchvision:NAME`.

    >>> model_list("DLV3+ResNet18,mmseg:a.py,a.pth,torchvision:fcn_resnet50,fcn.pth,torchvision:fcn_resnet50,SwinLarge")
    ['DLV3+ResNet18', 'mmseg:a.py,a.pth', 'torchvision:fcn_resnet50,fcn.pth', 'torchvision:fcn_resnet50', 'SwinLarge']
    """
    if text == ALL:
        return list(path_dicts.MINI_SEGMENTERS if preset == "mini" else path_dicts.ZOO)
    models: list[str] = []
    for part in (part.strip() for part in text.split(",")):
        kind, _, rest = models[-1].partition(":") if models else ("", "", "")
        commas = {"mmseg": 1, "smp": 2, "torchvision": 1 if part.endswith(_CHECKPOINTS) else 0}.get(kind, 0)
        if rest.count(",") < commas:
            models[-1] += f",{part}"
        else:
            models.append(part)
    if not all(models):
        raise GenValError(f"--segmenters expects names separated by commas, found {text!r}.")
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


def _short(path: Path) -> str:
    return (path.relative_to(REPO_ROOT) if path.is_relative_to(REPO_ROOT) else path).as_posix()


def _folders(place: Path) -> list[str]:
    return sorted(entry.name for entry in place.iterdir() if entry.is_dir()) if place.is_dir() else []
