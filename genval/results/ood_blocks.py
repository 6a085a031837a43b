"""The files that ood_detection/main_gen_ood.py leaves, a data set and model at a time.

    {results_dir}/{set}/{model}.json       published figures by image, and of all pixels under "pooled"
                        {model}.csv        a row a score: figures of all pixels and means over images, with intervals
                        {model}_objects.csv  a row an object and score: means over its images
                        {model}/settings.json  flags and versions
                        {model}/blocks/{block}.npz  counts of the block together, coarser ones of each image
                                       {block}.jsonl  a line an image: what it was made from, its figures
                        {model}/scores/{id}/  with --exact: {score}_{background,object}.npy, every pixel's, ascending
                        {model}/levels/{score}/{id}.png  with --components: the level of each pixel, 16 bit

A block's `.jsonl` is written last: where it is, the block is complete. The published names are kept in the JSON:
`aupr_in` is the area under the precision-recall curve with the OBJECT as the positive class, `aupr_out` with the
background, the other way round than in most of the literature; `fpr` is the FPR at 95 % TPR. In the tables they are
`aupr_object`, `aupr_background` and `fpr95`.
"""

from __future__ import annotations

import io
import itertools
import math
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genval.metrics.ood_components import COMPONENT_FIGURES
from genval.metrics.ood_pooling import PoissonBootstrap, SumBootstrap
from genval.metrics.ood_scores import FIGURES, ExactFigures, OodCounts, bounds, exact_counts, level_figures
from genval.metrics.segmentation import plain
from genval.results.scenes import folder_name
from genval.runtime.errors import GenValError
from genval.runtime.files import read_jsonl, write_bytes, write_csv, write_json, write_jsonl

PUBLISHED_KEYS = {"auroc": "auroc", "fpr95": "fpr", "aupr_object": "aupr_in", "aupr_background": "aupr_out"}
"""The published name of each of `ood.FIGURES`."""
_MEANS = tuple(f"image_{name}" for name in FIGURES)


@dataclass(frozen=True)
class OodResults:
    """The place of one model's results on one set."""

    root: Path
    dataset: str
    model: str

    @property
    def _stem(self) -> str:
        return folder_name(self.model)

    @property
    def folder(self) -> Path:
        """Where the blocks are."""
        return self.root / folder_name(self.dataset) / self._stem

    @property
    def json(self) -> Path:
        """The figures by image."""
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
        """A line for each image of a block."""
        return self.folder / "blocks" / f"{block}.jsonl"

    def counts(self, block: str) -> Path:
        """The counts of a block."""
        return self.folder / "blocks" / f"{block}.npz"

    def scores(self, item_id: str) -> Path:
        """The folder of the scores of an image's pixels."""
        return self.folder / "scores" / item_id

    def levels(self, score: str, item_id: str) -> Path:
        """The level of each of an image's pixels."""
        return self.folder / "levels" / score / f"{item_id}.png"

    def is_done(self, block: str, records: Sequence[Mapping[str, Any]]) -> bool:
        """Whether a block was measured, from what `records` say of each of its images."""
        if not (self.lines(block).exists() and self.counts(block).exists()):
            return False
        lines = read_jsonl(self.lines(block))
        return [line["made_from"] for line in lines] == list(records)

    def write_block(
        self, block: str, lines: Sequence[Mapping[str, Any]], levels: np.ndarray, coarse: np.ndarray
    ) -> None:
        """Write a measured block.

        Args:
            block: its name.
            lines: of its images, from `image_line`.
            levels: counts of all of them together, (S, 2, LEVELS).
            coarse: of each, (N, S, 2, COARSE).
        """
        data = io.BytesIO()
        np.savez_compressed(data, levels=levels.astype(np.uint32), coarse=coarse.astype(np.uint32))
        write_bytes(self.counts(block), data.getvalue())
        write_jsonl(self.lines(block), lines)

    def read_block(self, block: str) -> tuple[list[dict[str, Any]], np.ndarray, np.ndarray]:
        """Lines and counts, as `write_block` takes them.

        Raises:
            GenValError: a file is missing or damaged.
        """
        path = self.counts(block)
        try:
            with np.load(path) as arrays:
                levels, coarse = arrays["levels"].astype(np.int64), arrays["coarse"].astype(np.int64)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise GenValError(f"{path} is missing or damaged ({error}). Delete it and run again.") from error
        return read_jsonl(self.lines(block)), levels, coarse


def image_line(
    record: Mapping[str, Any],
    name: str,
    counts: OodCounts,
    scores: Sequence[str],
    exact: Sequence[Mapping[str, float]] | None = None,
) -> dict[str, Any]:
    """What is kept of an image beside its counts.

    Args:
        record: what it is made from.
        name: of the object in it.
        counts: its own.
        scores: the scores' names.
        exact: the figures of single pixels by score; None is those of levels.
    """
    figures = exact or [level_figures(levels) for levels in counts.levels]
    return {
        "made_from": dict(record),
        "image": record["image"],
        "object": name,
        "pixels": dict(zip(("background", "object", "void"), counts.pixels.tolist(), strict=True)),
        "entropy_sums": counts.entropy.tolist(),
        **_plain_entropies(np.array([*counts.entropy, *counts.pixels[:2]], np.float64)),
        "figures": {
            score: {PUBLISHED_KEYS[key]: plain(value) for key, value in of_score.items()}
            for score, of_score in zip(scores, figures, strict=True)
        },
    }


@dataclass(frozen=True)
class Pooled:
    """All images of a set together."""

    lines: list[dict[str, Any]]
    levels: np.ndarray  # int64 (S, 2, LEVELS)
    intervals: list[dict[str, tuple[float, float]]]  # by score and figure, of all pixels
    mean_intervals: list[dict[str, tuple[float, float]]]  # by score and figure, of the mean over images
    entropies: dict[str, float | None]
    entropy_intervals: dict[str, tuple[float, float]]


def pool_blocks(results: OodResults, blocks: Iterable[str], scores: int, draws: int, seed: int) -> Pooled:
    """Add up blocks, one at a time."""
    lines: list[dict[str, Any]] = []
    total: np.ndarray | None = None
    bootstrap, entropies = PoissonBootstrap(scores, scores * len(FIGURES), draws, seed), SumBootstrap(draws, seed)
    for block in blocks:
        of_block, levels, coarse = results.read_block(block)
        lines += of_block
        total = levels if total is None else total + levels
        values = np.array([_image_values(line) for line in of_block], np.float64)
        bootstrap.add([line["made_from"]["id"] for line in of_block], coarse, values)
        for line in of_block:
            pixels = (line["pixels"]["background"], line["pixels"]["object"])
            entropies.add(line["made_from"]["id"], np.array([*line["entropy_sums"], *pixels], np.float64))
    if total is None:
        raise GenValError("There is no image to sum up.")
    intervals, ends = bootstrap.intervals()
    pairs = [(float(low), float(high)) for low, high in ends]
    means = [dict(zip(FIGURES, pairs[i * 4 : i * 4 + 4], strict=True)) for i in range(scores)]
    of_entropies = entropies.intervals(_entropies)
    return Pooled(lines, total, intervals, means, _plain_entropies(entropies.total), of_entropies)


def write_scores(folder: Path, scores: Mapping[str, Sequence[np.ndarray]]) -> None:
    """Write the scores of an image's background and object pixels, each float32 ascending, by the score's name."""
    for path, values in zip(_score_files(folder, scores), itertools.chain(*scores.values()), strict=True):
        data = io.BytesIO()
        np.save(data, values, allow_pickle=False)
        write_bytes(path, data.getvalue())


def has_scores(folder: Path, scores: Iterable[str]) -> bool:
    """Whether `write_scores` has written there."""
    return all(path.exists() for path in _score_files(folder, scores))


def pool_scores(folders: Sequence[Path], score: str, piece: int = 1 << 23) -> dict[str, float]:
    """`ood.FIGURES` of all single pixels of images together, about `piece` of them in memory at a time.

    Args:
        folders: of the images, from `write_scores`.
        score: its name.
        piece: pixels.

    Raises:
        GenValError: a file is missing or damaged.
    """
    paths = [[_score_files(folder, [score])[kind] for folder in folders] for kind in (0, 1)]
    # Every so-many-th score of each image: any value between two cuts belongs to one piece, with all its ties.
    stride = max(1, piece // (4 * len(folders)))
    totals, samples = [0, 0], []
    for kind, path in ((kind, path) for kind, of_kind in enumerate(paths) for path in of_kind):
        array = _mapped(path)
        totals[kind] += len(array)
        samples.append(np.array(array[::stride]))
    marks = np.sort(np.concatenate(samples))
    cuts = np.unique(marks[:: max(1, piece // (2 * stride))])
    figures = ExactFigures(*totals)
    for low, high in reversed(list(itertools.pairwise([*cuts, np.float32(np.inf)]))):
        parts = []
        for of_kind in paths:
            found = []
            for path in of_kind:  # one file is open at a time: a process may often have no more than 1,024
                array = _mapped(path)
                found.append(np.array(array[np.searchsorted(array, low) : np.searchsorted(array, high)]))
            parts.append(np.sort(np.concatenate(found)))
        figures.add(*exact_counts(*parts))
    return figures.figures()


def read_levels(path: Path) -> np.ndarray:
    """The level of each pixel, from a 16-bit PNG, uint16 (H, W).

    Raises:
        GenValError: the file is missing or damaged.
    """
    import cv2

    levels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if levels is None or levels.dtype != np.uint16 or levels.ndim != 2:
        raise GenValError(f"{path} is missing or not a 16-bit PNG. Delete it and run again.")
    return levels


def mean_figures(lines: Sequence[Mapping[str, Any]], scores: Sequence[str]) -> list[dict[str, float]]:
    """Of each score, the mean of each of `ood.FIGURES` over the images that have both an object and background."""
    values = np.array([_image_values(line) for line in lines], np.float64).reshape(len(lines), -1)
    both = values[~np.isnan(values[:, 0])]
    means = both.mean(0) if len(both) else np.full(values.shape[1], math.nan)
    return [dict(zip(FIGURES, map(float, means[i * 4 : i * 4 + 4]), strict=True)) for i in range(len(scores))]


def has_both(line: Mapping[str, Any]) -> bool:
    """Whether an image has pixels of an object and of the background, hence figures of its own."""
    return bool(line["pixels"]["object"] and line["pixels"]["background"])


def write_results(
    results: OodResults,
    pooled: Pooled,
    scores: Sequence[str],
    about: Mapping[str, Any],
    exact: Sequence[Mapping[str, float]] | None = None,
    components: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """Write the JSON and the tables; return the rows of the table of scores.

    Args:
        results: where.
        pooled: from `pool_blocks`.
        scores: the scores' names.
        about: added to the JSON's "pooled".
        exact: figures of all single pixels, by score; None is those of levels.
        components: by score, `threshold`, and `COMPONENT_FIGURES` as (value, low, high).
    """
    lines = pooled.lines
    figures = list(exact) if exact is not None else [level_figures(levels) for levels in pooled.levels]
    means = mean_figures(lines, scores)
    pixels = {kind: sum(line["pixels"][kind] for line in lines) for kind in ("background", "object", "void")}
    rows: list[dict[str, Any]] = []
    for index, score in enumerate(scores):
        row: dict[str, Any] = {
            "set": results.dataset,
            "model": results.model,
            "score": score,
            "images": len(lines),
            "images_with_both": sum(map(has_both, lines)),
            "objects": len({line["object"] for line in lines}),
            "object_pixels": pixels["object"],
            "background_pixels": pixels["background"],
        }
        row |= _triples(figures[index], pooled.intervals[index])
        row |= _triples(means[index], pooled.mean_intervals[index], "image_")
        for name in COMPONENT_FIGURES:
            of_score = (components or {}).get(score, {}).get(name, (math.nan,) * 3)
            row |= dict(zip((name, f"{name}_low", f"{name}_high"), of_score, strict=True))
        rows.append(row)
    of_all: dict[str, Any] = {
        "set": results.dataset,
        "model": results.model,
        **about,
        "images": len(lines),
        "images_without_both": [line["image"] for line in lines if not has_both(line)],
        "pixels": pixels,
        **pooled.entropies,
        "exact": exact is not None,
    }
    for index, score in enumerate(scores):
        of_all[score] = {
            **{PUBLISHED_KEYS[key]: plain(value) for key, value in figures[index].items()},
            "intervals": {PUBLISHED_KEYS[k]: _ends(ends) for k, ends in pooled.intervals[index].items()},
            "mean_of_images": {PUBLISHED_KEYS[k]: plain(value) for k, value in means[index].items()},
            "mean_intervals": {PUBLISHED_KEYS[k]: _ends(ends) for k, ends in pooled.mean_intervals[index].items()},
        }
        if exact is None:
            limits = bounds(pooled.levels[index])
            of_all[score]["bounds"] = {PUBLISHED_KEYS[key]: plain(value) for key, value in limits.items()}
        if components and score in components:
            of_all[score]["components"] = {k: _jsonable(value) for k, value in components[score].items()}
    of_all["entropy_intervals"] = {name: _ends(ends) for name, ends in pooled.entropy_intervals.items()}
    content = {line["image"]: _public(line) for line in lines} | {"pooled": of_all}
    header = list(rows[0])
    cells = ([plain(value) if isinstance(value, float) else value for value in row.values()] for row in rows)
    write_csv(results.csv, header, cells)
    _write_objects(results, lines, scores)
    write_json(results.json, content)
    return rows


def _write_objects(results: OodResults, lines: Sequence[Mapping[str, Any]], scores: Sequence[str]) -> None:
    rows = []
    for name in sorted({line["object"] for line in lines}):
        of_object = [line for line in lines if line["object"] == name]
        number = sum(map(has_both, of_object))
        for score, figures in zip(scores, mean_figures(of_object, scores), strict=True):
            rows.append([name, score, len(of_object), number, *map(plain, figures.values())])
    write_csv(results.objects_csv, ["object", "score", "images", "images_with_both", *_MEANS], rows)


def _score_files(folder: Path, scores: Iterable[str]) -> list[Path]:
    return [folder / f"{score}_{kind}.npy" for score in scores for kind in ("background", "object")]


def _mapped(path: Path) -> np.ndarray:
    """The scores of a file, read where they are asked for."""
    try:
        array: np.ndarray = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise GenValError(f"{path} is missing or damaged ({error}). Delete it and run again.") from error
    return array


def _public(line: Mapping[str, Any]) -> dict[str, Any]:
    """What the JSON says of an image."""
    head = {key: line[key] for key in ("raw_entropy", "rel_entropy", "object", "pixels")}
    return {**head, **line["figures"]}


def _image_values(line: Mapping[str, Any]) -> list[float]:
    """An image's figures, score by score in the order of `ood.FIGURES`; NaN where it has none."""
    values = [of_score[PUBLISHED_KEYS[name]] for of_score in line["figures"].values() for name in FIGURES]
    return [math.nan if value is None else value for value in values]


def _entropies(sums: np.ndarray) -> dict[str, np.ndarray]:
    """The mean entropy of the object's pixels in nats, and its ratio to the background's; NaN where there is none.

    Args:
        sums: (..., 4), of the entropies of background and object, and of their pixels.
    """
    means = np.divide(
        sums[..., :2], sums[..., 2:], out=np.full((*sums.shape[:-1], 2), math.nan), where=sums[..., 2:] > 0
    )
    background, of_object = means[..., 0], means[..., 1]
    ratio = np.divide(of_object, background, out=np.full(background.shape, math.nan), where=background > 0)
    return {"raw_entropy": of_object, "rel_entropy": ratio}


def _plain_entropies(sums: np.ndarray) -> dict[str, float | None]:
    """`_entropies` of sums (4,), as JSON has them."""
    return {name: plain(float(value)) for name, value in _entropies(sums).items()}


def _triples(
    values: Mapping[str, float], intervals: Mapping[str, tuple[float, float]], prefix: str = ""
) -> dict[str, float]:
    """Each figure beside the ends of its interval, as columns."""
    columns: dict[str, float] = {}
    for name, value in values.items():
        low, high = intervals[name]
        columns |= {f"{prefix}{name}": value, f"{prefix}{name}_low": low, f"{prefix}{name}_high": high}
    return columns


def _ends(ends: Sequence[float]) -> list[float | None]:
    return [plain(end) for end in ends]


def _jsonable(value: Any) -> Any:
    return _ends(value) if isinstance(value, tuple) else value
