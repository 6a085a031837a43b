"""The files of `relis/eval.py`, in one folder per model, data set, condition and scene.

    {eval_dir}/{model}/{dataset}/{cond}/{scene}/predictions/{id}.png     trainIds, uint8 (H, W)
                                                statistics/{id}.json     the image's confusion matrix and its record
                                                statistics/{id}.npz      counts and sums of its confidences
                                                logits.safetensors       with --save logits: of pixels of each image
                                                features.safetensors     with --save features: one vector per image
                                                metrics.json             metrics of the whole scene, with intervals
                                                confusion_matrix.csv     of the whole scene, rows are labels
                                                per_image.csv            metrics of each image
                                                total.npz                see `genval.results.finished`
                                                manifest.jsonl           one line per image
                                                settings.json            flags and versions

`metrics.json` is written last and removed first: if it exists, the scene is complete.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import path_dicts
from genval.artifacts.fingerprint import current_mark, file_mark
from genval.artifacts.tensors import read_arrays, write_arrays
from genval.datasets.labels import ClassGroups
from genval.datasets.layouts import GATED_SUFFIX
from genval.metrics.reliability import pool, reliability_metrics
from genval.metrics.segmentation import (
    mean_class_accuracy,
    mean_iou,
    metric_functions,
    pixel_accuracy,
    plain,
    segmentation_metrics,
)
from genval.metrics.statistics import COUNTS_VERSION, PixelStatistics
from genval.results.provenance import is_reusable
from genval.results.shapes import ImageLine, ImageStatistics, SavedSettings
from genval.runtime.commands import Command
from genval.runtime.errors import GenValError
from genval.runtime.files import json_bytes, read_json, read_jsonl, write_bytes, write_csv, write_jsonl, write_png
from genval.runtime.paths import REPO_ROOT, inside

ALL = "all"
_CHECKPOINTS = (".pth", ".pt", ".ckpt", ".safetensors")
_IMAGE_HEADER = ["id", "miou", "pixel_accuracy_percent", "mean_class_accuracy", "pixels"]
_IMAGE_METRICS = ["ece", "nll", "brier", "auroc", "entropy"]
# Flags of relis/eval.py without which a repeated evaluation is another one.
_MODEL_FLAGS = ("class_map", "input_size", "precision", "trust_code")
_SET_FLAGS = ("split", "trg_root", "datasets_dir", "generated_dir")
_DEFAULTS = {"precision": "32-true", "datasets_dir": "datasets", "generated_dir": path_dicts.GENERATED_ROOT}
# The arrays of statistics/{id}.npz, in the order of `PixelStatistics`, and their types in memory.
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
    """The paths of the results of one scene."""

    root: Path
    model: str
    dataset: str
    cond: str
    scene: str

    @functools.cached_property
    def folder(self) -> Path:
        """The folder of all results of the scene."""
        return self.root / folder_name(self.model) / folder_name(self.dataset) / self.cond / self.scene

    @property
    def metrics(self) -> Path:
        """The summary; it exists if the scene is complete."""
        return self.folder / "metrics.json"

    @property
    def total(self) -> Path:
        """The sum of the statistics, by which a finished scene is recognised."""
        return self.folder / "total.npz"

    def prediction(self, item_id: str) -> Path:
        """Return the path of an image's predicted trainIds."""
        return self.folder / "predictions" / f"{item_id}.png"

    def statistics(self, item_id: str) -> Path:
        """Return the path of an image's confusion matrix and record."""
        return self.folder / "statistics" / f"{item_id}.json"

    def counts(self, item_id: str) -> Path:
        """Return the path of the counts and sums of an image's confidences."""
        return self.folder / "statistics" / f"{item_id}.npz"

    def packed(self, kind: str) -> Path:
        """Return the path of the scene's "logits" or "features"."""
        return self.folder / f"{kind}.safetensors"

    def part(self, kind: str, item_id: str) -> Path:
        """Return the path of an image's logits or features, before they are packed."""
        return self.folder / kind / f"{item_id}.safetensors"

    def is_done(self, record: Mapping[str, Any], prediction: bool = True, any_sample: bool = False) -> bool:
        """Return whether an image's files exist and have this record (see `image_record`).

        Args:
            record: of the image.
            prediction: whether the predicted classes are among the files.
            any_sample: whether the confidences may be those of other pixels.
        """
        statistics = self.statistics(record["id"])
        required = [statistics, self.counts(record["id"]), *([self.prediction(record["id"])] if prediction else [])]
        if not is_reusable(record) or not all(path.exists() for path in required):
            return False
        try:
            ignored = dict.fromkeys(("confusion_matrix", "confidences_of") if any_sample else ("confusion_matrix",))
            return {**_read_counts(statistics), **ignored} == {**record, **ignored}
        except GenValError:  # a damaged file is computed again
            return False

    def damaged_file(self, item_id: str) -> Path | None:
        """Return the file of an image's statistics that exists and cannot be read; None where there is none."""
        path = self.statistics(item_id)
        try:
            if path.exists():
                _read_counts(path)
                path = self.counts(item_id)
                if path.exists():
                    self.read_image({"id": item_id})
        except GenValError:
            return path
        return None

    def read_matrix(self) -> np.ndarray:
        """Read the scene's confusion matrix, int64 (C, C).

        Raises:
            GenValError: the file is missing or damaged.
        """
        path = self.folder / "confusion_matrix.csv"
        try:
            return np.loadtxt(path, np.int64, delimiter=",", skiprows=1, ndmin=2, converters={0: lambda name: 0})[:, 1:]
        except (OSError, ValueError) as error:
            raise GenValError(
                f"{path} cannot be read ({error}). Run: {self.command().with_flags(overwrite=True)}"
            ) from error

    def records(self) -> list[dict[str, Any]]:
        """Read the images' records, in the order of the manifest."""
        return read_jsonl(self.folder / "manifest.jsonl", ImageLine, "Delete it and run relis/eval.py again.")

    def ids(self) -> list[str]:
        """Return the images' ids, in the order of the manifest."""
        return [record["id"] for record in self.records()]

    def read_pixels(self) -> Iterator[tuple[dict[str, Any], PixelStatistics]]:
        """Yield each image's record and statistics, in the order of the manifest, one at a time.

        Raises:
            GenValError: a file is missing or damaged.
        """
        for record in self.records():
            yield record, self.read_image(record)

    def read_image(self, record: Mapping[str, Any]) -> PixelStatistics:
        """Read the statistics of an image, by its record.

        Raises:
            GenValError: a file is missing or damaged, or it was made from something else than its record states.
        """
        matrix, path = read_statistics(self.statistics(record["id"]), record), self.counts(record["id"])
        try:
            arrays = read_arrays(path, _SAVED, "Delete it")
        except GenValError as error:
            raise GenValError(f"{error} and run: {self.command()}") from error
        statistics = PixelStatistics(matrix, *(arrays[name].astype(dtype) for name, dtype in _SAVED.items()))
        for name, empty in vars(PixelStatistics.empty(len(matrix))).items():
            values = getattr(statistics, name)
            # A sum of confidences is rounded: one that is 0 may lie slightly below.
            lowest = 0 if values.dtype == np.int64 else -1e-5 * statistics.bins.sum()
            if values.shape != empty.shape or (name != "sums" and (values < lowest).any()):
                raise GenValError(
                    f"{path}: {name} does not hold counts of shape {empty.shape}. Delete it and run: {self.command()}"
                )
        return statistics

    def saved_flags(self, preset: str | None = None) -> dict[str, Any]:
        """Read the flags that repeat how a model was evaluated: of the model from any of its results, of the set from
        results on the set. Flags that have their default, or that of the preset, are left out."""
        defaults = _DEFAULTS | path_dicts.PRESETS.get(preset or "", {}).get("relis/eval", {})
        above = self.folder.parent.parent
        on_set = sorted(above.glob("*/*/settings.json"))
        on_any = on_set or sorted(above.parent.glob("*/*/*/settings.json"))
        flags: dict[str, Any] = {}
        for paths, names in ((on_any, _MODEL_FLAGS), (on_set, _SET_FLAGS)):
            values = read_json(paths[0], SavedSettings)["settings"] if paths else {}
            flags |= {name: values[name] for name in names if values.get(name) not in (None, False, defaults.get(name))}
        if isinstance(flags.get("input_size"), list):
            flags["input_size"] = "x".join(map(str, flags["input_size"]))
        return flags

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
            **self.saved_flags(preset),
        }
        return Command("relis/eval", flags)


def finish_scene(
    results: SceneResults,
    records: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    label_space: Sequence[int],
    class_sets: Mapping[str, Sequence[int]],
    metadata: Mapping[str, Any],
    skipped: Sequence[Mapping[str, str]] = (),
    before_metrics: Callable[[PixelStatistics, bytes], None] | None = None,
    summary: Summary | None = None,
) -> Summary:
    """Write a scene's manifest, tables and metrics from the statistics of its images; return their summary.

    Args:
        results: where to write.
        records: of all images, in the order of the manifest.
        names: the classes' names.
        label_space: as for `summarise`.
        class_sets: as for `summarise`.
        metadata: added to the head of `metrics.json`.
        skipped: files that `--skip_bad` skipped.
        before_metrics: is called with the sum of the statistics and the content of `metrics.json` before it is
            written.
        summary: of these images, if it is known already.
    """
    summary = summary or summarise(
        ((record["id"], results.read_image(record)) for record in records),
        names,
        label_space,
        class_sets,
        number=len(records),
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
        **metadata,
        "images": len(records),
        "skipped": list(skipped),
        **summary.metrics,
    }
    content = json_bytes(values)
    if before_metrics is not None:
        before_metrics(summary.total, content)
    write_bytes(results.metrics, content)
    return summary


@dataclass(frozen=True)
class Summary:
    """The metrics of a set of images."""

    total: PixelStatistics
    metrics: dict[str, Any]  # ready for JSON; `intervals` holds the ends of each metric's 95 % interval over images
    table: tuple[list[str], list[list[Any]]]  # header and one row of metrics per image


def summarise(
    images: Iterable[tuple[str, PixelStatistics]],
    names: Sequence[str],
    label_space: Sequence[int],
    class_sets: Mapping[str, Sequence[int]],
    fixed: bool = False,
    number: int | None = None,
) -> Summary:
    """Compute every metric of a set of images, with its interval.

    Args:
        images: id and statistics of each image, in the order in which float sums are added.
        names: the classes' names.
        label_space: the classes of `miou`.
        class_sets: as for `segmentation_metrics`.
        fixed: `miou` is over exactly these classes, and not defined if one is absent.
        number: as for `pool`.
    """
    ids: list[str] = []
    rows: list[list[Any]] = []

    def each() -> Iterator[PixelStatistics]:
        for item_id, statistics in images:
            ids.append(item_id)
            metrics = reliability_metrics(statistics, _IMAGE_METRICS)
            rows.append([item_id, *_image_row(statistics.confusion, label_space)])
            rows[-1] += [plain(metrics[name]) for name in _IMAGE_METRICS]
            yield statistics

    total, ends = pool(each(), metric_functions(names, label_space, class_sets, fixed), number=number)
    values = segmentation_metrics(total.confusion, names, label_space, class_sets)
    if fixed:
        values["miou"] = plain(mean_iou(total.confusion, label_space, complete=True))
    values |= {name: plain(value) for name, value in reliability_metrics(total).items()}
    values["measured_pixels"] = int(total.bins.sum())
    values["intervals"] = {name: [plain(low), plain(high)] for name, (low, high) in ends.items()}
    return Summary(total, values, ([*_IMAGE_HEADER, *_IMAGE_METRICS], rows))


def _image_row(matrix: np.ndarray, classes: Sequence[int]) -> list[Any]:
    """Return an image's cells of `_IMAGE_HEADER` except the id; they are empty without a labelled pixel."""
    accuracies = [pixel_accuracy(matrix), mean_class_accuracy(matrix, classes)]
    return [*(plain(value) for value in [mean_iou(matrix, classes), *accuracies]), int(matrix.sum())]


def image_record(
    item_id: str,
    image: Path,
    mask: Path,
    model: str,
    identity: str,
    precision: str,
    sample: Mapping[str, int] | None = None,
    groups: ClassGroups | None = None,
    labels_mark: str | None = None,
) -> dict[str, Any]:
    """Return the record of an image's results. Results with a different record are computed again.

    Args:
        item_id: the image's id.
        image: the image file. The record holds its path, relative to the repository if it is inside, and a mark of its
            content.
        mask: the file of the labels, likewise.
        model: the model's name.
        identity: what identifies the model, see `genval.segmenters.identity.model_identity`.
        precision: arithmetic of the forward pass.
        sample: number and seed of the pixels whose confidences are measured; None is all pixels.
        groups: the merged classes that were evaluated; None is the 19 classes.
        labels_mark: the mark of the mask's label space, where that is a file.
    """
    return {
        "id": item_id,
        "model": model,
        "identity": identity,
        "precision": precision,
        "image": _short(image),
        "image_mark": current_mark(image) or file_mark(image),
        "mask": _short(mask),
        "mask_mark": current_mark(mask) or file_mark(mask),
        "confidences_of": dict(sample) if sample else "all pixels",
        "counts_version": COUNTS_VERSION,
        **({"class_groups": groups.to_json()} if groups else {}),
        **({"labels_mark": labels_mark} if labels_mark is not None else {}),
    }


def save_image(
    results: SceneResults,
    record: Mapping[str, Any],
    prediction: np.ndarray | None,
    statistics: PixelStatistics,
    overwrite: bool = False,
) -> None:
    """Write an image's prediction and statistics; existing files of the same record are kept.

    Args:
        results: where to write.
        record: from `image_record`.
        prediction: trainIds, uint8 (H, W); None does not keep them.
        statistics: from `genval.metrics.statistics.measure`.
        overwrite: write the files in any case.
    """
    if not overwrite and results.is_done(record, prediction is not None):
        return
    # It states the record of the image's other files: removed first and written last.
    results.statistics(record["id"]).unlink(missing_ok=True)
    if prediction is None:  # an existing file has another record
        results.prediction(record["id"]).unlink(missing_ok=True)
    else:
        write_png(results.prediction(record["id"]), prediction)
    write_counts(results.counts(record["id"]), statistics)
    write_statistics(results.statistics(record["id"]), record, statistics.confusion)


def write_counts(path: Path, statistics: PixelStatistics) -> None:
    """Write an image's statistics except the confusion matrix, compressed: about 70 KB for 1024x2048."""
    values = {name: getattr(statistics, name) for name in _SAVED}
    # An image has less than 2^32 pixels.
    write_arrays(
        path, {name: array.astype(np.uint32) if array.dtype == np.int64 else array for name, array in values.items()}
    )


def write_statistics(path: Path, record: Mapping[str, Any], matrix: np.ndarray) -> None:
    """Write an image's confusion matrix and record, on one line: a folder holds thousands of these files."""
    value = {**record, "confusion_matrix": matrix.tolist()}
    write_bytes(path, (json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n").encode())


def read_statistics(path: Path, record: Mapping[str, Any] | None = None) -> np.ndarray:
    """Read the confusion matrix of an image, int64 (C, C).

    Args:
        path: of the file.
        record: the image's line of the manifest, with which the file must agree.

    Raises:
        GenValError: the file is missing or damaged, or it was made from something else than the record states.
    """
    if not path.exists():
        raise GenValError(f"{path} does not exist, and manifest.jsonl of its scene lists it. Run relis/eval.py again.")
    content = _read_counts(path)
    if any(content.get(key) != value for key, value in (record or {}).items() if key != "prediction"):
        raise GenValError(
            f"{path} is not of the image and the model that manifest.jsonl of its scene states. Delete it and run "
            "relis/eval.py again."
        )
    return np.asarray(content["confusion_matrix"])


def pair(conds: Sequence[str], scenes: Sequence[str]) -> list[tuple[str, str]]:
    """Combine conditions and scenes as the published commands do: pair lists of equal length, cross others.

    >>> pair(["fog", "night"], ["GOPR0475", "GOPR0351"])
    [('fog', 'GOPR0475'), ('night', 'GOPR0351')]
    >>> pair(["fog", "night"], ["all"])
    [('fog', 'all'), ('night', 'all')]
    """
    for name in (*conds, *scenes):
        inside("the data set's results", name, "--cond and --scene")
    if len(conds) == len(scenes):
        return list(zip(conds, scenes, strict=True))
    return [(cond, scene) for cond in conds for scene in scenes]


def model_list(text: str, preset: str | None = None) -> list[str]:
    """The models of `--segmenters`, by commas, each one once; "all" is every name of the preset's zoo.

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
    return list(dict.fromkeys(models))


def folder_name(model: str) -> str:
    """Return the folder name of a model or set: its name, with unsafe characters replaced and a hash of the name.

    >>> folder_name("DLV3+ResNet18"), folder_name("hf:nvidia/segformer-b0"), folder_name("Cityscapes@idd-level1")
    ('DLV3+ResNet18', 'hf_nvidia_segformer-b0-1c03469a', 'Cityscapes@idd-level1')
    """
    if re.fullmatch(r"\w[\w.+-]*@[\w.+-]+", model, re.ASCII):  # a set and its merged classes
        return model
    safe = re.sub(r"[^A-Za-z0-9._+-]+", "_", model).lstrip(".")[:100]
    return safe if safe == model else f"{safe}-{hashlib.blake2b(model.encode(), digest_size=4).hexdigest()}"


def _read_counts(path: Path) -> dict[str, Any]:
    return dict(
        read_json(path, ImageStatistics, "The file holds no confusion matrix: delete it and run relis/eval.py again.")
    )


def _short(path: Path) -> str:
    return (path.relative_to(REPO_ROOT) if path.is_relative_to(REPO_ROOT) else path).as_posix()
