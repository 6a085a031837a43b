"""OOD detection: one segmenter on one set of images with objects, on the engine for resumable work.

A unit is a block of up to 32 images of one object (or of one public set). One process measures it, with one forward
pass per image, and writes its counts when it is complete: a killed run loses at most the blocks in progress.
Counts add up, so neither kills nor the number of processes change a metric. Memory does not grow with the set, except
for one line of metrics per image.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from genval.artifacts.fingerprint import current_mark, file_mark
from genval.artifacts.settings import write_settings
from genval.artifacts.stage import Stage, StageReport, run_stage
from genval.datasets import BadFile, Item, find_items, read_pair
from genval.datasets.items import ALL, openable
from genval.datasets.ood_sets import (
    GeneratedFolders,
    OodItem,
    OodSet,
    blocks_of,
    find_ood_items,
    has_generated_objects,
    read_kinds,
    read_ood_pair,
)
from genval.datasets.reading import DecodedCache, memory_for_images
from genval.evaluation.evaluation_set import without_duplicates
from genval.evaluation.inference import launch_ood_batch
from genval.evaluation.loading import check_names, load_segmenters
from genval.evaluation.more_scores import (
    FEATURE_SCORES,
    MoreScores,
    check_scores,
    fit_known,
    known_record,
    read_known,
)
from genval.evaluation.settings import MORE_SCORES, OodDetectionSettings
from genval.metrics.ood_components import (
    Sizes,
    benchmark_threshold,
    best_level,
    component_metrics,
    image_bins,
    measure_components,
)
from genval.metrics.ood_pooling import SumBootstrap, coarse_levels
from genval.metrics.ood_scores import (
    BACKGROUND,
    OBJECT,
    SCORE_LEVELS,
    SCORES,
    STANDARDISED,
    MaxLogits,
    OodCounts,
    exact_metrics,
    level_edge,
    score_level,
)
from genval.results.ood_blocks import (
    OodResults,
    has_scores,
    image_line,
    pool_blocks,
    pool_scores,
    read_levels,
    read_values,
    write_results,
    write_scores,
    write_values,
)
from genval.results.provenance import images_mark, is_reusable
from genval.results.scenes import folder_name, image_record, model_list
from genval.results.shapes import MaxLogitSums
from genval.runtime.devices import launch_fabric, same_outcome
from genval.runtime.errors import GenValError
from genval.runtime.files import read_json, remove_leftovers, write_json, write_png
from genval.runtime.paths import resolve
from genval.segmenters.prediction import infer, stack_batch
from genval.segmenters.recipe import refuse_trained_images

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch import nn


@dataclass(frozen=True)
class Detected:
    """The results of one segmenter on one set.

    Attributes:
        results: the place of the results.
        rows: of the table of scores.
        left_out: number of skipped images, by reason.
    """

    results: OodResults
    rows: list[dict[str, Any]]
    left_out: dict[str, int]


def detect_all(settings: OodDetectionSettings) -> list[Detected]:
    """Measure every segmenter of the settings on every set of the settings; resume where a run stopped.

    Returns:
        The results, in the first process; an empty list in the others, and with `dry_run`, which prints what would be
        done.

    Raises:
        GenValError: a set or a checkpoint is missing, an image is bad, or a result cannot be written.
    """
    names = model_list(settings.model.segmenters, settings.preset)
    unpaired: dict[str, list[BadFile]] = {dataset: [] for dataset in settings.trg_dataset}
    sets = {dataset: find_objects(settings, dataset, bad) for dataset, bad in unpaired.items()}
    if settings.run.dry_run:
        check_names(names)
        for dataset, found in sets.items():
            reasons = "".join(f"; skipped: {number} {reason}" for reason, number in found.left_out.items())
            print(f"{dataset}: {len(found.items)} images for each of {len(names)} segmenters{reasons}")
        return []
    fabric = launch_fabric(settings.device)
    images = ((item.image, functools.partial(_read_image, item)) for found in sets.values() for item in found.items)
    models = load_segmenters(settings.model, names, fabric, settings.device.precision, images)
    # The next segmenters read the same images.
    pairs = DecodedCache(memory_for_images(fabric.world_size // settings.device.num_nodes) if len(names) > 1 else 0)
    read = functools.partial(pairs.read, decode=read_ood_pair)
    done: list[Detected] = []
    for name, (segmenter, identity) in zip(names, models, strict=True):
        standard = known_max_logits(settings, fabric, segmenter, identity, name)
        more = known_scores(settings, fabric, segmenter, identity, name)
        for dataset, found in sets.items():
            bad = list(unpaired[dataset])
            if settings.skip_bad:  # files may have vanished since they were found: loading a segmenter takes seconds
                found = OodSet(tuple(openable(found.items, bad)), found.left_out)
            with same_outcome(fabric):
                refuse_trained_images(segmenter, found.items)
            stage = OodStage(
                settings, segmenter, identity, fabric.device, name, dataset, found, bad, standard, more, read
            )
            run_stage(
                stage,
                found.items,
                fabric=fabric,
                batch_size=settings.model.batch_size,
                num_workers=settings.model.num_workers,
                overwrite=settings.run.overwrite,
                skip_bad=settings.skip_bad,
            )
            done += [stage.detected] if stage.detected else []
    return done


def _read_image(item: OodItem) -> np.ndarray:
    return read_ood_pair(item)[0]


def find_objects(settings: OodDetectionSettings, dataset: str, unpaired: list[BadFile]) -> OodSet:
    """Find the images that the settings name; with `skip_bad`, files without a partner are added to `unpaired`."""
    found = find_ood_items(
        dataset,
        settings.datasets_dir,
        settings.trg_root,
        GeneratedFolders(settings.images_dir, settings.masks_dir, settings.positions_dir),
        settings.objects if has_generated_objects(dataset) else None,
        not settings.uncurated,
        settings.void or (),
        unpaired if settings.skip_bad else None,
    )
    limit = settings.run.limit if settings.run.limit is not None and settings.run.limit < len(found.items) else None
    items = without_duplicates(found.items[:limit], unpaired if settings.skip_bad else None)
    return OodSet(tuple(items), found.left_out, limit)


def ood_results_name(settings: OodDetectionSettings, dataset: str) -> str:
    """Return the name of a set's results: a part of the generated set is another set."""
    if not has_generated_objects(dataset):
        return dataset
    parts = [dataset, *(["uncurated"] if settings.uncurated else [])]
    return "-".join([*parts, *(["+".join(settings.objects)] if settings.objects else [])])


def known_max_logits(
    settings: OodDetectionSettings, fabric: Fabric, segmenter: nn.Module, identity: str, model: str
) -> tuple[np.ndarray, np.ndarray] | None:
    """Measure mean and standard deviation of each class's maximum logit on the set `standardise`, and save them.

    The first process measures, one image at a time. Without the setting, return None.
    """
    if settings.known is None:
        return None
    path = resolve(settings.output_dir) / "max_logits" / f"{folder_name(model)}.json"
    with same_outcome(fabric):
        record = {
            "identity": identity,
            "precision": settings.device.precision,
            "set": settings.known,
            "images": settings.known_images,
        }
        chosen = find_known(settings)
        record["marks"] = [current_mark(item.image) for item in chosen]
        if fabric.is_global_zero and not _is_measured(path, record):
            total: MaxLogits | None = None
            for item in chosen:
                with torch.inference_mode():
                    measured = MaxLogits.measure(infer(segmenter, read_pair(item)[0][None], fabric.device)[0])
                total = measured if total is None else total + measured
            assert total is not None
            write_json(path, {**record, **{k: getattr(total, k).tolist() for k in ("pixels", "sums", "squares")}})
    content = read_json(path, MaxLogitSums)
    return MaxLogits(*(np.array(content[key]) for key in ("pixels", "sums", "squares"))).moments()


def find_known(settings: OodDetectionSettings) -> list[Item]:
    """Find the images of known classes that the settings name, evenly spaced over their set."""
    assert settings.known is not None
    items = find_items(settings.known, split=settings.known_split or ALL, datasets_dir=settings.datasets_dir)
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, settings.known_images).astype(int))]


def known_scores(
    settings: OodDetectionSettings, fabric: Fabric, segmenter: nn.Module, identity: str, model: str
) -> MoreScores | None:
    """Prepare the further scores of the settings; the first process fits features to known images, and saves that.

    Without such scores, return None.
    """
    if not settings.scores:
        return None
    known = None
    with same_outcome(fabric):
        check_scores(settings.scores, segmenter)
    if set(settings.scores) & set(FEATURE_SCORES):
        path = resolve(settings.output_dir) / "features" / f"{folder_name(model)}.safetensors"
        with same_outcome(fabric):
            items = find_known(settings)
            record = {
                "identity": identity,
                "precision": settings.device.precision,
                "marks": [[current_mark(item.image), current_mark(item.mask)] for item in items],
                **known_record(),
            }
            if fabric.is_global_zero:
                fit_known(segmenter, items, fabric.device, path, record)
        known = read_known(path, fabric.device)
    return MoreScores(settings.scores, segmenter, known)


_Pair = tuple[np.ndarray, np.ndarray]
_Measured = tuple[OodCounts, "torch.Tensor | None"]


class OodStage(Stage[OodItem, _Pair, _Measured]):
    """One segmenter on one set: an item is an image with its mask, a unit is a block of images.

    Args:
        settings: the settings of the script.
        segmenter: the segmenter, on `device`.
        identity: its `model_identity`.
        device: where the segmenter runs.
        model: the segmenter's name, as given.
        dataset: the set's name, as given.
        found: the set, from `find_objects`.
        unpaired: bad files, from `find_objects`.
        standard: mean and standard deviation from `known_max_logits`.
        more: further scores, from `known_scores`.
        read: reads an item, as `read_ood_pair`.

    Attributes:
        detected: the results, in the first process, when the stage is finished.
    """

    asynchronous = True
    max_waiting = 64  # two blocks; a block holds 100 MB

    def __init__(
        self,
        settings: OodDetectionSettings,
        segmenter: nn.Module,
        identity: str,
        device: torch.device,
        model: str,
        dataset: str,
        found: OodSet,
        unpaired: Sequence[BadFile] = (),
        standard: tuple[np.ndarray, np.ndarray] | None = None,
        more: MoreScores | None = None,
        read: Callable[[OodItem], _Pair] = read_ood_pair,
    ) -> None:
        self.settings, self.segmenter, self.device, self.read = settings, segmenter, device, read
        self.found, self.unpaired = found, list(unpaired)
        self.title = f"{model} on {dataset}"
        self.identity = identity
        self.results = OodResults(resolve(settings.output_dir), ood_results_name(settings, dataset), model)
        self.blocks = blocks_of(found.items)
        self.more = more
        self.scores = (*SCORES, *([] if standard is None else [STANDARDISED]), *(more.names if more else ()))
        self.standard: tuple[torch.Tensor, torch.Tensor] | None = None
        self.detected: Detected | None = None
        common: dict[str, Any] = {"void": sorted(settings.void or ()), "levels": SCORE_LEVELS, "exact": settings.exact}
        if standard is not None:
            mean, deviation = (torch.from_numpy(part).float().to(device) for part in standard)
            self.standard = mean, deviation
            moments = hashlib.blake2b(b"".join(part.tobytes() for part in standard), digest_size=8).hexdigest()
            common["standardised"] = [settings.known, settings.known_images, moments]
        if more is not None:
            common["more"] = more.record
        if (recipe := getattr(segmenter, "recipe", None)) is not None:
            common["recipe"] = recipe.mark
        identity, precision = self.identity, settings.device.precision
        self.records = {
            item: {
                **image_record(item.id, item.image, item.mask, model, identity, precision),
                **({"frame_mark": file_mark(item.frame)} if item.frame else {}),
                **common,
            }
            for item in found.items
        }
        self._done: dict[str, bool] = {}

    def key(self, item: OodItem) -> str:
        return f"{item.block} {item.id}"

    def partition(self, items: Sequence[OodItem], batch_size: int) -> list[list[Sequence[OodItem]]]:
        return [
            [block[start : start + batch_size] for start in range(0, len(block), batch_size)]
            for block in self.blocks.values()
        ]

    def folders(self) -> list[Path]:
        return [self.results.folder]

    def begin(self, items: Sequence[OodItem], overwrite: bool) -> None:
        remove_leftovers(self.results.folder)
        damaged = [] if overwrite else [name for name in self.blocks if self.results.is_damaged(name)]
        for name in damaged:
            self.results.lines(name).unlink()
        if damaged:
            print(
                f"{self.title}: damaged blocks of earlier results: {len(damaged)}, such as "
                f"{self.results.lines(damaged[0])}. Their images are computed again."
            )
        if self.found.limit is not None and self.results.json.exists():
            pooled = read_json(self.results.json).get("pooled", {})
            if pooled.get("limit") is None:
                raise GenValError(
                    f"{self.results.json} holds results of all images: --limit would replace them by results of a "
                    "part. Give another --output_dir, or no --limit."
                )

    def open(self, rank: int) -> None:
        self._done = {name: self._is_complete(name) for name in self.blocks}

    def is_done(self, item: OodItem) -> bool:
        return self._done[item.block]

    def _is_complete(self, name: str) -> bool:
        """Whether all files of a block exist and have the same record."""
        items, results, settings = self.blocks[name], self.results, self.settings
        return (
            results.is_done(name, [self.records[item] for item in items])
            and all(self._pixels(score, item).exists() for score in settings.components for item in items)
            and (not settings.exact or all(has_scores(results.scores(item.id), self.scores) for item in items))
        )

    def _pixels(self, score: str, item: OodItem) -> Path:
        """The file of the scores of an image's pixels, or of their levels."""
        benchmark = self.settings.component_threshold == "benchmark"
        return (self.results.values if benchmark else self.results.levels)(score, item.id)

    def prepare(self, missing: Sequence[OodItem]) -> None:
        results = self.results
        if not missing:
            return
        write_settings(results.folder, self.settings)
        for name in {item.block for item in missing}:  # existing blocks are of other images or another segmenter
            results.lines(name).unlink(missing_ok=True)
        for score, item in itertools.product((*SCORES, STANDARDISED, *MORE_SCORES), missing):
            # These files have no record: one that this run does not write again would be outdated.
            results.levels(score, item.id).unlink(missing_ok=True)
            results.values(score, item.id).unlink(missing_ok=True)
        for path in (results.json, results.csv, results.objects_csv):
            path.unlink(missing_ok=True)

    def load(self, item: OodItem) -> _Pair:
        return self.read(item)

    def split(self, batch: list[tuple[OodItem, _Pair]]) -> Iterable[list[tuple[OodItem, _Pair]]]:
        return [list(group) for _, group in itertools.groupby(batch, key=lambda pair: pair[1][1].shape)]

    def collate(self, items: Sequence[OodItem], loaded: Sequence[_Pair]) -> list[np.ndarray]:
        return [stack_batch(arrays, self.device) for arrays in zip(*loaded, strict=True)]

    def compute(self, items: Sequence[OodItem], batch: Sequence[np.ndarray]) -> Callable[[], list[_Measured]]:
        images, kinds = batch
        keep = bool(self.settings.components) or self.settings.exact
        names = [str(item.image) for item in items]
        return launch_ood_batch(self.segmenter, images, kinds, names, self.device, self.standard, keep, self.more)

    def write(self, item: OodItem, loaded: _Pair, output: _Measured) -> dict[str, Any]:
        """Write the files per pixel that the settings ask for; the counts are written with the block."""
        (counts, scores), kinds = output, loaded[1]
        # Counts wait in memory until their block is complete: 32 bits halve their size.
        counts.levels = counts.levels.astype(np.uint32)
        exact: list[dict[str, float]] | None = None
        if scores is not None:
            for score in self.settings.components:
                row, path = scores[self.scores.index(score)].reshape(kinds.shape), self._pixels(score, item)
                if self.settings.component_threshold == "benchmark":
                    write_values(path, row.cpu().numpy())
                else:
                    level = score_level(row.flatten(), score).reshape(kinds.shape)
                    write_png(path, level.cpu().numpy().astype(np.uint16), noisy=True)
            if self.settings.exact:
                flat = kinds.ravel()
                parts = [[np.sort(row[flat == kind]) for kind in (BACKGROUND, OBJECT)] for row in scores.cpu().numpy()]
                write_scores(self.results.scores(item.id), dict(zip(self.scores, parts, strict=True)))
                exact = [exact_metrics(*part) for part in parts]
        line = image_line(self.records[item], item.scene, counts, self.scores, exact)
        return {"block": item.block, "line": line, "levels": counts.levels}

    def commit(self, lines: Sequence[dict[str, Any]]) -> None:
        coarse = np.stack([coarse_levels(line["levels"]) for line in lines])
        levels = np.zeros(lines[0]["levels"].shape, np.int64)
        for line in lines:
            levels += line["levels"]
        self.results.write_block(lines[0]["block"], [line["line"] for line in lines], levels, coarse)

    def finish(self, items: Sequence[OodItem], report: StageReport[OodItem]) -> None:
        """Add up all blocks and write the tables."""
        bad = [
            BadFile(one.item.id, one.item.cond, one.item.scene, str(one.item.image), one.reason)
            for one in report.skipped
        ]
        # Sorted: the order must not depend on the processes that found them.
        skipped = sorted(self.unpaired + bad, key=lambda one: one.file)
        settings, results = self.settings, self.results
        for one in skipped:
            print(f"skipped {one.file}: {one.reason}")
        names = [name for name in self.blocks if results.lines(name).exists()]
        pooled = pool_blocks(results, names, len(self.scores), settings.bootstrap_draws, settings.seed)
        ids = [line["made_from"]["id"] for line in pooled.lines]
        by_id = {item.id: item for item in self.found.items}
        exact = None
        if settings.exact:
            exact = [pool_scores([results.scores(item_id) for item_id in ids], score) for score in self.scores]
        components = {
            score: self._components(score, [by_id[item_id] for item_id in ids], pooled.levels[index])
            for index, score in enumerate(self.scores)
            if score in settings.components
        }
        left_out = {**self.found.left_out, **({"skipped (--skip_bad)": len(skipped)} if skipped else {})}
        head = {
            "src_dataset": settings.model.src_dataset,
            "void": sorted(settings.void or ()),
            "limit": self.found.limit,
            "identity": self.identity,
            "precision": settings.device.precision,
            "images_mark": images_mark(line["made_from"] for line in pooled.lines),
            "draws": settings.bootstrap_draws,
            "left_out": left_out,
            "skipped": [{"file": one.file, "reason": one.reason} for one in skipped],
        }
        rows = write_results(results, pooled, self.scores, head, exact, components)
        self.detected = Detected(results, rows, left_out)

    def _components(self, score: str, items: Sequence[OodItem], levels: np.ndarray) -> dict[str, Any]:
        """Return the component metrics of a score, at the threshold that has the best F1 over all pixels."""
        sizes = Sizes(*self.settings.component_sizes)
        benchmark = self.settings.component_threshold == "benchmark"
        if benchmark:
            bins = []
            for item in items:
                pixels, kinds = read_values(self._pixels(score, item)), read_kinds(item)
                parts = [pixels[kinds == kind] for kind in (BACKGROUND, OBJECT)]
                bins += [image_bins(*parts)] if len(parts[0]) + len(parts[1]) else []
            edge = benchmark_threshold(bins)
            threshold = -1 / (1 + edge) if score == "confidence" else edge  # confidences are stored as odds
        else:
            last = best_level(levels)
            threshold = level_edge(last, score)

        def sums_of(item: OodItem) -> np.ndarray:
            path = self._pixels(score, item)
            found = read_values(path) > edge if benchmark else read_levels(path) <= last
            return measure_components(found, read_kinds(item), sizes).sums()

        bootstrap = SumBootstrap(self.settings.bootstrap_draws, self.settings.seed)
        with ThreadPoolExecutor(self.settings.model.num_workers, thread_name_prefix="components") as pool:
            for item, sums in zip(items, pool.map(sums_of, items), strict=True):
                bootstrap.update(item.id, sums)
        values = {name: float(value) for name, value in component_metrics(bootstrap.total).items()}
        ends = bootstrap.intervals(component_metrics)
        head = {"threshold": threshold, "predicted_size": sizes.predicted, "object_size": sizes.object}
        return head | {name: (value, *ends[name]) for name, value in values.items()}


def _is_measured(path: Path, record: dict[str, Any]) -> bool:
    content = read_json(path, dict[str, Any]) if path.exists() else {}
    return is_reusable(record) and {key: content.get(key) for key in record} == record
