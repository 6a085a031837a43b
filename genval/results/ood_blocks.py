"""The files of ood_detection/main_gen_ood.py, for one data set and one model.

    {results_dir}/{set}/{model}.json       published metrics per image, and of all pixels under "pooled"
                        {model}.csv        one row per score: metrics of all pixels, means over images, intervals
                        {model}_objects.csv  one row per object and score: means over its images
                        {model}/settings.json  flags and versions
                        {model}/blocks/{block}.npz  counts of the whole block, and coarse counts of each image
                                       {block}.jsonl  one line per image: its record and its metrics
                        {model}/scores/{id}/  with --exact: {score}_{background,object}.npy, of every pixel, ascending
                        {model}/levels/{score}/{id}.png  with --components: the level of each pixel, 16 bit
                        {model}/values/{score}/{id}.npy  with --component_threshold benchmark: its score, float32

A block's `.jsonl` is written last: if it exists, the block is complete. The JSON keeps the published names: `aupr_in`
is the area under the precision-recall curve with the OBJECT as the positive class, `aupr_out` with the background, the
reverse of most of the literature; `fpr` is the FPR at 95 % TPR. The tables call them `aupr_object`, `aupr_background`
and `fpr95`.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from genval.artifacts.tensors import read_arrays, write_arrays
from genval.metrics.division import safe_divide
from genval.metrics.ood_components import COMPONENT_METRICS
from genval.metrics.ood_pooling import PoissonBootstrap, SumBootstrap
from genval.metrics.ood_scores import (
    OOD_METRICS,
    ExactMetrics,
    OodCounts,
    exact_counts,
    level_metrics,
    ood_bounds,
    saturated_share,
)
from genval.metrics.segmentation import plain
from genval.results.provenance import is_reusable
from genval.results.scenes import folder_name
from genval.results.shapes import BlockLine
from genval.runtime.errors import GenValError
from genval.runtime.files import read_jsonl, write_bytes, write_csv, write_json, write_jsonl

Value = TypeVar("Value")

PUBLISHED_KEYS = {"auroc": "auroc", "fpr95": "fpr", "aupr_object": "aupr_in", "aupr_background": "aupr_out"}
"""The published name of each of `OOD_METRICS`."""
_IMAGE_METRICS = tuple(f"image_{name}" for name in OOD_METRICS)
_KINDS = ("background", "object", "void")


@dataclass(frozen=True)
class OodResults:
    """The paths of the results of one model on one set."""

    root: Path
    dataset: str
    model: str

    @property
    def _stem(self) -> str:
        return folder_name(self.model)

    @property
    def folder(self) -> Path:
        """The folder of the blocks."""
        return self.root / folder_name(self.dataset) / self._stem

    @property
    def json(self) -> Path:
        """The metrics per image."""
        return self.folder.with_name(f"{self._stem}.json")

    @property
    def csv(self) -> Path:
        """The table of the scores."""
        return self.folder.with_name(f"{self._stem}.csv")

    @property
    def objects_csv(self) -> Path:
        """The table of the objects."""
        return self.folder.with_name(f"{self._stem}_objects.csv")

    def lines(self, block: str) -> Path:
        """Return the path of the lines of a block, one per image."""
        return self.folder / "blocks" / f"{block}.jsonl"

    def counts(self, block: str) -> Path:
        """Return the path of the counts of a block."""
        return self.folder / "blocks" / f"{block}.npz"

    def scores(self, item_id: str) -> Path:
        """Return the folder of the scores of an image's pixels."""
        return self.folder / "scores" / item_id

    def levels(self, score: str, item_id: str) -> Path:
        """Return the path of the levels of an image's pixels."""
        return self.folder / "levels" / score / f"{item_id}.png"

    def values(self, score: str, item_id: str) -> Path:
        """Return the path of the score of each of an image's pixels."""
        return self.folder / "values" / score / f"{item_id}.npy"

    def is_done(self, block: str, records: Sequence[Mapping[str, Any]]) -> bool:
        """Return whether a block was measured from images with these records."""
        if not all(map(is_reusable, records)) or not (self.lines(block).exists() and self.counts(block).exists()):
            return False
        lines = read_jsonl(self.lines(block), BlockLine)
        return [line["made_from"] for line in lines] == list(records)

    def is_damaged(self, block: str) -> bool:
        """Whether both files of a block exist and one cannot be read."""
        if not (self.lines(block).exists() and self.counts(block).exists()):
            return False
        try:
            self.read_block(block)
        except GenValError:
            return True
        return False

    def write_block(
        self, block: str, lines: Sequence[Mapping[str, Any]], levels: np.ndarray, coarse: np.ndarray
    ) -> None:
        """Write a measured block.

        Args:
            block: its name.
            lines: one per image, from `image_line`.
            levels: counts of all images together, (S, 2, SCORE_LEVELS).
            coarse: coarse counts of each image, (N, S, 2, COARSE).
        """
        write_arrays(self.counts(block), {"levels": levels.astype(np.uint32), "coarse": coarse.astype(np.uint32)})
        write_jsonl(self.lines(block), lines)

    def read_block(self, block: str) -> tuple[list[dict[str, Any]], np.ndarray, np.ndarray]:
        """Read a block.

        Returns:
            Lines and counts, as for `write_block`.

        Raises:
            GenValError: a file is missing or damaged.
        """
        arrays = read_arrays(self.counts(block), ("levels", "coarse"), "Delete it and run again.")
        levels, coarse = arrays["levels"].astype(np.int64), arrays["coarse"].astype(np.int64)
        return read_jsonl(self.lines(block), BlockLine), levels, coarse


def image_line(
    record: Mapping[str, Any],
    name: str,
    counts: OodCounts,
    scores: Sequence[str],
    exact: Sequence[Mapping[str, float]] | None = None,
) -> dict[str, Any]:
    """Return the line of an image: everything that is kept of it except its counts.

    Args:
        record: what the results are computed from.
        name: of the object in the image.
        counts: of the image.
        scores: names of the scores.
        exact: the metrics of single pixels by score; None computes the metrics from levels.
    """
    metrics = exact or [level_metrics(levels) for levels in counts.levels]
    return {
        "made_from": dict(record),
        "image": record["image"],
        "object": name,
        "pixels": dict(zip(_KINDS, counts.pixels.tolist(), strict=True)),
        "entropy_sums": counts.entropy.tolist(),
        **_plain_entropies(np.array([*counts.entropy, *counts.pixels[:2]], np.float64)),
        "figures": {score: _published(values) for score, values in zip(scores, metrics, strict=True)},
    }


@dataclass(frozen=True)
class Pooled:
    """The results of all images of a set together."""

    lines: list[dict[str, Any]]
    levels: np.ndarray  # int64 (S, 2, SCORE_LEVELS)
    intervals: list[dict[str, tuple[float, float]]]  # by score and metric, of all pixels
    mean_intervals: list[dict[str, tuple[float, float]]]  # by score and metric, of the mean over images
    entropies: dict[str, float | None]
    entropy_intervals: dict[str, tuple[float, float]]


def pool_blocks(results: OodResults, blocks: Iterable[str], scores: int, draws: int, seed: int) -> Pooled:
    """Add up blocks, one at a time."""
    lines: list[dict[str, Any]] = []
    total: np.ndarray | None = None
    bootstrap, entropies = PoissonBootstrap(scores, scores * len(OOD_METRICS), draws, seed), SumBootstrap(draws, seed)
    for block in blocks:
        in_block, levels, coarse = results.read_block(block)
        lines += in_block
        total = levels if total is None else total + levels
        values = np.array([_image_values(line) for line in in_block], np.float64)
        bootstrap.update([line["made_from"]["id"] for line in in_block], coarse, values)
        for line in in_block:
            pixels = (line["pixels"]["background"], line["pixels"]["object"])
            entropies.update(line["made_from"]["id"], np.array([*line["entropy_sums"], *pixels], np.float64))
    if total is None:
        raise GenValError("There is no image to add up.")
    intervals, ends = bootstrap.intervals()
    return Pooled(
        lines=lines,
        levels=total,
        intervals=intervals,
        mean_intervals=_by_score([(float(low), float(high)) for low, high in ends], scores),
        entropies=_plain_entropies(entropies.total),
        entropy_intervals=entropies.intervals(_entropies),
    )


def write_scores(folder: Path, scores: Mapping[str, Sequence[np.ndarray]]) -> None:
    """Write the scores of an image's background and object pixels, by score, each float32 and ascending."""
    for path, values in zip(_score_files(folder, scores), itertools.chain(*scores.values()), strict=True):
        data = io.BytesIO()
        np.save(data, values, allow_pickle=False)
        write_bytes(path, data.getvalue())


def has_scores(folder: Path, scores: Iterable[str]) -> bool:
    """Return whether the files of `write_scores` exist."""
    return all(path.exists() for path in _score_files(folder, scores))


def pool_scores(folders: Sequence[Path], score: str, piece: int = 1 << 23) -> dict[str, float]:
    """Compute `OOD_METRICS` of all single pixels of images together, with about `piece` of them in memory at a time.

    Args:
        folders: one per image, from `write_scores`.
        score: name of the score.
        piece: number of pixels.

    Raises:
        GenValError: a file is missing or damaged.
    """
    paths = [[_score_files(folder, [score])[kind] for folder in folders] for kind in (0, 1)]
    # Cut the range of scores at every n-th score of the images. A value lies between two cuts, with all its ties.
    stride = max(1, piece // (4 * len(folders)))
    totals, samples = [0, 0], []
    for kind, path in ((kind, path) for kind, kind_paths in enumerate(paths) for path in kind_paths):
        array = _open_scores(path)
        totals[kind] += len(array)
        samples.append(np.array(array[::stride]))
    marks = np.sort(np.concatenate(samples))
    cuts = np.unique(marks[:: max(1, piece // (2 * stride))])
    metrics = ExactMetrics(*totals)
    for low, high in reversed(list(itertools.pairwise([*cuts, np.float32(np.inf)]))):
        parts = []
        for kind_paths in paths:
            found = []
            for path in kind_paths:  # one open file at a time: a process may be limited to 1,024
                array = _open_scores(path)
                found.append(np.array(array[np.searchsorted(array, low) : np.searchsorted(array, high)]))
            parts.append(np.sort(np.concatenate(found)))
        metrics.update(*exact_counts(*parts))
    return metrics.compute()


def read_levels(path: Path) -> np.ndarray:
    """Read the level of each pixel from a 16-bit PNG, uint16 (H, W).

    Raises:
        GenValError: the file is missing or damaged.
    """
    import cv2

    levels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if levels is None or levels.dtype != np.uint16 or levels.ndim != 2:
        raise GenValError(f"{path} is missing or not a 16-bit PNG. Delete it and run again.")
    return levels


def write_values(path: Path, values: np.ndarray) -> None:
    """Write the score of each pixel of an image, float32 (H, W)."""
    data = io.BytesIO()
    np.save(data, values.astype(np.float32), allow_pickle=False)
    write_bytes(path, data.getvalue())


def read_values(path: Path) -> np.ndarray:
    """Read what `write_values` wrote.

    Raises:
        GenValError: the file is missing or damaged.
    """
    return np.array(_open_scores(path))


def mean_metrics(lines: Sequence[Mapping[str, Any]], scores: Sequence[str]) -> list[dict[str, float]]:
    """Return, per score, the mean of each of `OOD_METRICS` over the images that have both object and background."""
    values = np.array([_image_values(line) for line in lines], np.float64).reshape(len(lines), -1)
    both = values[~np.isnan(values[:, 0])]
    means = both.mean(0) if len(both) else np.full(values.shape[1], math.nan)
    return _by_score(list(map(float, means)), len(scores))


def has_both(line: Mapping[str, Any]) -> bool:
    """Return whether an image has object pixels and background pixels, and therefore metrics of its own."""
    return bool(line["pixels"]["object"] and line["pixels"]["background"])


def write_results(
    results: OodResults,
    pooled: Pooled,
    scores: Sequence[str],
    metadata: Mapping[str, Any],
    exact: Sequence[Mapping[str, float]] | None = None,
    components: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """Write the JSON and the tables; return the rows of the table of scores.

    Args:
        results: where to write.
        pooled: from `pool_blocks`.
        scores: names of the scores.
        metadata: added to "pooled" in the JSON.
        exact: metrics of all single pixels, by score; None computes the metrics from levels.
        components: by score, `threshold`, and `COMPONENT_METRICS` as (value, low, high).
    """
    lines = pooled.lines
    metrics = list(exact) if exact is not None else [level_metrics(levels) for levels in pooled.levels]
    means = mean_metrics(lines, scores)
    pixels = {kind: sum(line["pixels"][kind] for line in lines) for kind in _KINDS}
    head = {
        "images": len(lines),
        "images_with_both": sum(map(has_both, lines)),
        "objects": len({line["object"] for line in lines}),
        "object_pixels": pixels["object"],
        "background_pixels": pixels["background"],
    }
    rows: list[dict[str, Any]] = []
    values: dict[str, Any] = {
        "set": results.dataset,
        "model": results.model,
        **metadata,
        "images": len(lines),
        "images_without_both": [line["image"] for line in lines if not has_both(line)],
        "pixels": pixels,
        **pooled.entropies,
        "exact": exact is not None,
    }
    for index, score in enumerate(scores):
        found = (components or {}).get(score, {})
        row: dict[str, Any] = {"set": results.dataset, "model": results.model, "score": score, **head}
        row |= _columns(metrics[index], pooled.intervals[index])
        row |= _columns(means[index], pooled.mean_intervals[index], "image_")
        for name in COMPONENT_METRICS:
            row |= dict(zip((name, f"{name}_low", f"{name}_high"), found.get(name, (math.nan,) * 3), strict=True))
        # What is lost of the order of pixels: where a score has reached its end, and inside a level.
        row["saturated"] = saturated_share(pooled.levels[index], score)
        row["auroc_bound"] = 0.0 if exact is not None else ood_bounds(pooled.levels[index])["auroc"]
        rows.append(row)
        values[score] = _score_values(pooled, index, metrics[index], means[index], found, exact is not None)
        values[score]["saturated"] = plain(row["saturated"])
    values["entropy_intervals"] = {name: _ends(ends) for name, ends in pooled.entropy_intervals.items()}
    cells = ([plain(value) if isinstance(value, float) else value for value in row.values()] for row in rows)
    write_csv(results.csv, list(rows[0]), cells)
    _write_objects(results, lines, scores)
    write_json(results.json, {line["image"]: _public(line) for line in lines} | {"pooled": values})
    return rows


def _score_values(
    pooled: Pooled,
    index: int,
    metrics: Mapping[str, float],
    means: Mapping[str, float],
    components: Mapping[str, Any],
    is_exact: bool,
) -> dict[str, Any]:
    """Return what "pooled" in the JSON holds of one score."""
    values: dict[str, Any] = {
        **_published(metrics),
        "intervals": {PUBLISHED_KEYS[key]: _ends(ends) for key, ends in pooled.intervals[index].items()},
        "mean_of_images": _published(means),
        "mean_intervals": {PUBLISHED_KEYS[key]: _ends(ends) for key, ends in pooled.mean_intervals[index].items()},
    }
    if not is_exact:
        values["bounds"] = _published(ood_bounds(pooled.levels[index]))
    if components:
        values["components"] = {
            name: _ends(value) if isinstance(value, tuple) else value for name, value in components.items()
        }
    return values


def _write_objects(results: OodResults, lines: Sequence[Mapping[str, Any]], scores: Sequence[str]) -> None:
    rows = []
    for name in sorted({line["object"] for line in lines}):
        with_object = [line for line in lines if line["object"] == name]
        number = sum(map(has_both, with_object))
        for score, metrics in zip(scores, mean_metrics(with_object, scores), strict=True):
            rows.append([name, score, len(with_object), number, *map(plain, metrics.values())])
    write_csv(results.objects_csv, ["object", "score", "images", "images_with_both", *_IMAGE_METRICS], rows)


def _published(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Return metrics by their published names, for JSON."""
    return {PUBLISHED_KEYS[name]: plain(value) for name, value in metrics.items()}


def _by_score(values: Sequence[Value], scores: int) -> list[dict[str, Value]]:
    """Split the values of all scores into one dictionary of `OOD_METRICS` per score."""
    count = len(OOD_METRICS)
    return [dict(zip(OOD_METRICS, values[i * count : (i + 1) * count], strict=True)) for i in range(scores)]


def _score_files(folder: Path, scores: Iterable[str]) -> list[Path]:
    return [folder / f"{score}_{kind}.npy" for score in scores for kind in ("background", "object")]


def _open_scores(path: Path) -> np.ndarray:
    """Open the scores of a file as a memory map."""
    try:
        array: np.ndarray = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise GenValError(f"{path} is missing or damaged ({error}). Delete it and run again.") from error
    return array


def _public(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the JSON holds of an image."""
    head = {key: line[key] for key in ("raw_entropy", "rel_entropy", "object", "pixels")}
    return {**head, **line["figures"]}


def _image_values(line: Mapping[str, Any]) -> list[float]:
    """Return an image's metrics, score by score, in the order of `OOD_METRICS`; NaN where it has none."""
    values = [metrics[PUBLISHED_KEYS[name]] for metrics in line["figures"].values() for name in OOD_METRICS]
    return [math.nan if value is None else value for value in values]


def _entropies(sums: np.ndarray) -> dict[str, np.ndarray]:
    """Compute the mean entropy of the object's pixels in nats, and its ratio to the background's; NaN if not defined.

    Args:
        sums: (..., 4): the entropies of background and object, and their numbers of pixels.
    """
    means = safe_divide(sums[..., :2], sums[..., 2:])
    background, objects = means[..., 0], means[..., 1]
    return {"raw_entropy": objects, "rel_entropy": safe_divide(objects, background)}


def _plain_entropies(sums: np.ndarray) -> dict[str, float | None]:
    """Compute `_entropies` of sums (4,), for JSON."""
    return {name: plain(float(value)) for name, value in _entropies(sums).items()}


def _columns(
    values: Mapping[str, float], intervals: Mapping[str, tuple[float, float]], prefix: str = ""
) -> dict[str, float]:
    """Return each metric and the ends of its interval, by column."""
    columns: dict[str, float] = {}
    for name, value in values.items():
        low, high = intervals[name]
        columns |= {f"{prefix}{name}": value, f"{prefix}{name}_low": low, f"{prefix}{name}_high": high}
    return columns


def _ends(ends: Sequence[float]) -> list[float | None]:
    return [plain(end) for end in ends]
