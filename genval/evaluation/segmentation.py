"""Evaluation of segmenters on labelled images: one forward pass per image, on the engine for resumable work."""

from __future__ import annotations

import contextlib
import functools
import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from genval.artifacts.fingerprint import UNIDENTIFIED
from genval.artifacts.settings import write_settings
from genval.artifacts.stage import Stage, StageReport, run_stage
from genval.artifacts.tensors import is_damaged, pack, packed_ids, read_about, write_part
from genval.datasets import BadFile, Item, label_space_of, partition, read_pair
from genval.datasets.gate import GATE, GATED
from genval.datasets.layouts import GATED_SUFFIX, find_layout
from genval.datasets.reading import DecodedCache, memory_for_images
from genval.evaluation.evaluation_set import EvaluationSet, find_images, results_name
from genval.evaluation.inference import Measured, launch_batch, sample_pixels, start_device
from genval.evaluation.loading import check_names, load_segmenters
from genval.evaluation.settings import EvaluationSettings
from genval.metrics.reliability import reliability_metrics
from genval.metrics.segmentation import mean_iou, pixel_accuracy
from genval.metrics.statistics import PixelStatistics
from genval.results.early_summary import EarlySummaries
from genval.results.finished import read_total, summary_key, write_total
from genval.results.scenes import (
    SceneResults,
    Summary,
    finish_scene,
    image_record,
    model_list,
    save_image,
    summarise,
)
from genval.runtime.devices import launch_fabric, same_outcome
from genval.runtime.errors import GenValError
from genval.runtime.files import read_json, remove_leftovers
from genval.runtime.paths import resolve
from genval.segmenters.features import ImageFeatures, find_layer
from genval.segmenters.identity import model_identity
from genval.segmenters.prediction import filled, stack_batch
from genval.segmenters.recipe import refuse_trained_images

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class Evaluated:
    """The results of one segmenter on one data set.

    Attributes:
        model: the segmenter's name, as given.
        dataset: the data set's name; that of a gated set ends in "-gated".
        scenes: the results by condition and scene; scenes without an evaluated image are absent.
        images: number of evaluated images by condition.
        skipped: number of skipped images by condition.
        totals: statistics of all scenes together, by condition.
    """

    model: str
    dataset: str
    scenes: dict[tuple[str, str], SceneResults]
    images: dict[str, int]
    skipped: dict[str, int]
    totals: dict[str, PixelStatistics]

    def metrics(self, cond: str | None = None) -> dict[str, Any]:
        """Compute the metrics of one condition, or of all images together.

        Returns:
            `miou` over the data set's classes, `pixel_accuracy` in percent, and the metrics of
            `genval.metrics.reliability`: `ece`, `auroc`, `nll` and others. Fractions are 0 to 1.
        """
        total = self.totals[cond] if cond is not None else functools.reduce(operator.add, self.totals.values())
        miou = mean_iou(total.confusion, label_space_of(self.dataset).classes)
        return {"miou": miou, "pixel_accuracy": pixel_accuracy(total.confusion), **reliability_metrics(total)}


def evaluate_all(settings: EvaluationSettings, segmenter: nn.Module | None = None) -> list[Evaluated]:
    """Evaluate every segmenter of the settings on every data set of the settings; resume where a run stopped.

    Args:
        settings: the settings of the evaluation.
        segmenter: a loaded segmenter (see `genval.segmenters.base`) to evaluate under the name in `settings.model`,
            in its own precision; None loads the segmenters that the settings name.

    Returns:
        The results, in the first process; an empty list in the others, and with `dry_run`, which prints what would be
        done.

    Raises:
        GenValError: a data set or a checkpoint is missing, an image is bad, or a result cannot be written.
    """
    if segmenter is None:
        names = model_list(settings.model.segmenters, settings.preset)
    else:
        names = [settings.model.segmenters]
        settings = _with_precision(settings, getattr(segmenter, "precision", settings.device.precision))
    jobs = {results_name(settings, dataset): find_images(settings, dataset) for dataset in settings.trg_dataset}
    if settings.run.dry_run:
        if segmenter is None:
            check_names(names)
        for dataset, found in jobs.items():
            number = f"{len(found.items)} images, {len(found.bad)} bad files"
            print(f"{dataset}: {number}, for each of {len(names)} segmenters")
        return []
    fabric = launch_fabric(settings.device)
    start_device(fabric.device)
    models: Iterator[tuple[nn.Module, str]]
    if segmenter is None:
        images = ((item.image, functools.partial(_read_image, item)) for found in jobs.values() for item in found.items)
        models = load_segmenters(settings.model, names, fabric, settings.device.precision, images)
    else:
        models = iter([(segmenter.to(fabric.device), model_identity(segmenter))])
    # The next segmenters read the same images.
    pairs = DecodedCache(memory_for_images(fabric.world_size // settings.device.num_nodes) if len(names) > 1 else 0)
    done: list[Evaluated] = []
    for name, (loaded, identity) in zip(names, models, strict=True):
        if fabric.is_global_zero and identity.startswith(UNIDENTIFIED):
            print(f"{name} has no weights to identify it by: its images are evaluated again in every run.")
        for dataset, listed in jobs.items():
            # Files may have vanished since they were found: loading a segmenter takes seconds.
            found = listed.openable() if settings.skip_bad else listed
            with same_outcome(fabric):
                refuse_trained_images(loaded, found.items)
            read = functools.partial(pairs.read, decode=read_pair)
            stage = EvaluationStage(settings, loaded, identity, fabric.device, name, dataset, found, read)
            with contextlib.closing(stage):
                run_stage(
                    stage,
                    found.items,
                    fabric=fabric,
                    batch_size=stage.batch_size,
                    num_workers=settings.model.num_workers,
                    overwrite=settings.run.overwrite,
                    skip_bad=settings.skip_bad,
                )
            done += [stage.evaluated] if stage.evaluated else []
    return done


def _read_image(item: Item) -> np.ndarray:
    return read_pair(item)[0]


def _with_precision(settings: EvaluationSettings, precision: Any) -> EvaluationSettings:
    """Return the settings with another precision, which is recorded with the results."""
    return replace(settings, device=replace(settings.device, precision=precision))


_Pair = tuple[np.ndarray, np.ndarray]
_TENSORS = {"logits", "features"}  # kinds of tensors that --save names


@dataclass(frozen=True)
class _Batch:
    """A batch of images of one size. For a GPU, its arrays are in pinned memory."""

    names: list[str]
    images: np.ndarray  # RGB uint8 (B, H, W, 3)
    train_ids: np.ndarray  # uint8 (B, H, W)
    samples: list[np.ndarray] | None  # for each image, the pixels whose confidences are measured
    kept: list[np.ndarray] | None  # for each image, the pixels whose logits are saved


@dataclass(frozen=True)
class _Output:
    """The result of a forward pass for one image."""

    measured: Measured
    kept: np.ndarray | None  # flat indices of the pixels whose logits are saved
    features: np.ndarray | None


class EvaluationStage(Stage[Item, _Pair, _Output]):
    """One segmenter on one data set: an item is an image with its mask, its outputs are the files of its scene.

    Args:
        settings: the settings of the evaluation.
        segmenter: the segmenter, on `device`.
        identity: its `model_identity`.
        device: where the segmenter runs.
        model: the segmenter's name, as given.
        dataset: from `results_name`.
        found: the images, from `find_images`.
        read: reads an item, as `read_pair`.

    Attributes:
        batch_size: images per forward pass.
        evaluated: the results, in the first process, when the stage is finished.
    """

    asynchronous = True

    def __init__(
        self,
        settings: EvaluationSettings,
        segmenter: nn.Module,
        identity: str,
        device: torch.device,
        model: str,
        dataset: str,
        found: EvaluationSet,
        read: Callable[[Item], _Pair] = read_pair,
    ) -> None:
        self.settings, self.segmenter, self.device = settings, segmenter, device
        self.model, self.dataset, self.read = model, dataset, read
        self.title = f"{model} on {dataset}"
        self.unpaired, self.limit, self.gate, items = found.bad, found.limit, found.gate, found.items
        self.evaluated: Evaluated | None = None
        # A feature vector is read from the backbone after a pass over one image: one image per batch.
        self.batch_size = 1 if "features" in settings.save else settings.model.batch_size
        self._full_shapes: set[tuple[int, ...]] = set()  # of images that filled a batch
        root = resolve(settings.eval_dir)
        self.scenes = {
            (item.cond, item.scene): SceneResults(root, model, dataset, item.cond, item.scene) for item in items
        }
        sample = None if settings.sample == -1 else {"number": settings.sample, "seed": settings.seed}
        precision = settings.device.precision
        space = label_space_of(dataset)
        self.groups = space.groups
        self.records = {
            item: image_record(
                item.id, item.image, item.mask, model, identity, precision, sample, space.groups, space.mark
            )
            for item in items
        }
        if (revision := getattr(segmenter, "revision", None)) is not None:
            self.records = {item: {**record, "revision": revision} for item, record in self.records.items()}
        if (recipe := getattr(segmenter, "recipe", None)) is not None:
            self.records = {item: {**record, "recipe": recipe.mark} for item, record in self.records.items()}
        dtype = "float16" if settings.fp16 else "float32"
        metadata: dict[str, dict[str, Any]] = {
            "logits": {"pixels": settings.logit_pixels, "seed": settings.seed, "dtype": dtype},
            "features": {"layer": settings.layer or "backbone", "dtype": dtype},
        }
        self.model_record: dict[str, Any] = {"identity": identity, "precision": precision}
        if self.groups:
            self.model_record["class_groups"] = self.groups.to_json()
        self.tensors = {kind: values | self.model_record for kind, values in metadata.items() if kind in settings.save}
        self.keep_prediction = "predictions" in settings.save
        self.packed: dict[tuple[str, SceneResults], set[str]] = {}
        self.covering: dict[tuple[str, SceneResults], Mapping[str, Any]] = {}
        self.finished: dict[SceneResults, PixelStatistics] = {}
        self.early: EarlySummaries | None = None
        self.members: dict[SceneResults, list[Item]] = {results: [] for results in self.scenes.values()}
        for item in items:
            self.members[self.results_of(item)].append(item)

    def key(self, item: Item) -> str:
        return f"{item.cond}/{item.scene}/{item.id}"

    def results_of(self, item: Item) -> SceneResults:
        """Return the results of an item's scene."""
        return self.scenes[item.cond, item.scene]

    def partition(self, items: Sequence[Item], batch_size: int) -> list[list[Sequence[Item]]]:
        return [[batch] for batch in partition(items, batch_size)]

    def folders(self) -> list[Path]:
        return [results.folder for results in self.scenes.values()]

    def begin(self, items: Sequence[Item], overwrite: bool) -> None:
        if "features" in self.tensors:
            find_layer(self.segmenter, self.settings.layer)
        for results in self.scenes.values():
            remove_leftovers(results.folder)
        self.finished = {} if overwrite else self._find_finished()
        items = [item for item in items if self.results_of(item) not in self.finished]
        self._remove_damaged(items, overwrite)
        outdated = [results for results in self.scenes.values() - self.finished.keys() if _is_unidentified(results)]
        if outdated and not overwrite:
            print(
                f"{self.title}: earlier results do not state which model made them, e.g. in {outdated[0].folder}. "
                "They are computed again."
            )
        if self.limit is not None:
            self._keep_whole(items, overwrite)

    def _find_finished(self) -> dict[SceneResults, PixelStatistics]:
        """Return the sums of the statistics of the scenes whose results are whole and those of this run."""
        found: dict[SceneResults, PixelStatistics] = {}
        for results, members in self.members.items():
            records = [self.records[item] for item in members]
            key = self._summary_key(results, records, self.unpaired)
            total = read_total(results, records, key, self.keep_prediction)
            found |= {} if total is None else {results: total}
        return found

    def _remove_damaged(self, items: Sequence[Item], overwrite: bool) -> None:
        """Remove files of earlier runs that cannot be read, so that their images are computed again, and say so."""
        damaged: list[Path] = []
        if not overwrite:
            with ThreadPoolExecutor(self.settings.model.num_workers) as pool:
                found = pool.map(lambda item: self.results_of(item).damaged_file(item.id), items)
                damaged += [path for path in found if path is not None]
        for kind in self.tensors:
            paths = [results.packed(kind) for results in self.scenes.values()]
            paths += [self.results_of(item).part(kind, item.id) for item in items]
            damaged += filter(is_damaged, paths)
        for path in damaged:
            path.unlink()
        if damaged:
            print(
                f"{self.title}: damaged files of earlier results: {len(damaged)}, such as {damaged[0]}. "
                "Their images are computed again."
            )

    def _keep_whole(self, items: Sequence[Item], overwrite: bool) -> None:
        """Refuse to replace the results of all images of a scene by those of a part."""
        whole = {results for results in self.scenes.values() if _is_whole(results)}
        for item in items:
            results = self.results_of(item)
            if results in whole and (overwrite or not results.is_done(self.records[item], self.keep_prediction)):
                raise GenValError(
                    f"{results.folder} holds results of all images, by another model or with other settings: --limit "
                    "would replace them by results of a part. Give another --eval_dir, or no --limit."
                )

    def open(self, rank: int) -> None:
        if rank > 0:  # the first process has begun
            self.finished = self._find_finished()
        overwrite = self.settings.run.overwrite
        for (kind, wanted), results in itertools.product(self.tensors.items(), self.scenes.values()):
            path = results.packed(kind)
            saved = read_about(path)
            covered = saved if saved and not overwrite and _covers(saved, wanted) else None
            self.packed[kind, results] = set(packed_ids(path)) if covered else set()
            self.covering[kind, results] = covered or wanted
        if rank == 0 and not overwrite:
            self._keep_saved()

    def _keep_saved(self) -> None:
        """Refuse to replace saved logits or features of the same model by others that hold less."""
        for (kind, wanted), (results, members) in itertools.product(self.tensors.items(), self.members.items()):
            path = results.packed(kind)
            saved = read_about(path)
            if saved is None or _covers(wanted, saved):
                continue
            of_same_model = all(saved.get(key) == value for key, value in self.model_record.items())
            if of_same_model and not (self.packed[kind, results] and all(map(self.is_done, members))):
                differing = [f"{key} {saved.get(key)} (now {v})" for key, v in wanted.items() if saved.get(key) != v]
                raise GenValError(
                    f"{path} was saved with {', '.join(differing)}. Give the flags of the run that saved it, "
                    "--overwrite to replace it, or another --eval_dir."
                )

    def is_done(self, item: Item) -> bool:
        results = self.results_of(item)
        is_saved = results in self.finished or results.is_done(self.records[item], self.keep_prediction)
        return is_saved and all(
            item.id in self.packed[kind, results] or self._is_wanted(kind, results, item.id) for kind in self.tensors
        )

    def _is_wanted(self, kind: str, results: SceneResults, item_id: str) -> bool:
        """Whether a part exists, has the flags of this run, and holds no less than the packed file that this run keeps.

        Raises:
            GenValError: the part is damaged.
        """
        saved = read_about(results.part(kind, item_id))
        return saved == self.tensors[kind] and _covers(saved, self.covering[kind, results])

    def prepare(self, missing: Sequence[Item]) -> None:
        for results in {self.results_of(item) for item in missing}:
            write_settings(results.folder, self.settings)
            if self.limit is None or not _is_whole(results):
                results.metrics.unlink(missing_ok=True)
            self.finished.pop(results, None)
        # Logits and features of another model or image, which this run does not write again, are outdated.
        changed = {
            item
            for item in missing
            if not self.results_of(item).is_done(self.records[item], prediction=False, any_sample=True)
        }
        self._summarise_early(missing)
        for kind in sorted(_TENSORS - self.tensors.keys()):
            outdated: list[Path] = []
            for results, members in self.members.items():
                ids = {item.id: None for item in members if item in changed}
                packed = results.packed(kind)
                # Images that are new in the set leave what was saved of the others.
                if ids and (is_damaged(packed) or not ids.keys().isdisjoint(packed_ids(packed))):
                    outdated.append(packed)
                outdated += [part for part in (results.part(kind, item_id) for item_id in ids) if part.exists()]
            for path in outdated:
                path.unlink()
            if outdated:
                print(
                    f"{self.title}: removed {kind} of another model, precision or image: {len(outdated)} files, such "
                    f"as {outdated[0]}. relis/extract_{kind}.py saves them again."
                )

    def _summarise_early(self, missing: Sequence[Item]) -> None:
        space, overwrite = label_space_of(self.dataset), self.settings.run.overwrite
        changed = {self.results_of(item): None for item in missing}
        written = [
            (results, item.id)
            for item, results in ((item, self.results_of(item)) for item in missing)
            if overwrite or not results.is_done(self.records[item], self.keep_prediction)
        ]
        self.early = EarlySummaries(
            {results: [self.records[item] for item in self.members[results]] for results in changed},
            written,
            lambda images, number: summarise(images, space.names, space.classes, space.class_sets, number=number),
        )

    def close(self) -> None:
        """End what still runs if the run has failed."""
        if self.early is not None:
            self.early.cancel()

    def load(self, item: Item) -> _Pair:
        return self.read(item)

    def split(self, batch: list[tuple[Item, _Pair]]) -> Iterable[list[tuple[Item, _Pair]]]:
        return [list(group) for _, group in itertools.groupby(batch, key=lambda pair: pair[1][1].shape)]

    def collate(self, items: Sequence[Item], loaded: Sequence[_Pair]) -> _Batch:
        settings, device = self.settings, self.device
        # A GPU's libraries prepare kernels for each size of a batch, which takes seconds; a compiler takes a minute.
        shape = loaded[0][1].shape
        if len(items) == self.batch_size:
            self._full_shapes.add(shape)
        elif settings.model.compile == "on" or (device.type == "cuda" and shape in self._full_shapes):
            items, loaded = filled(items, self.batch_size), filled(loaded, self.batch_size)
        images, train_ids = (stack_batch(arrays, device) for arrays in zip(*loaded, strict=True))
        pixels = train_ids[0].size

        def chosen(number: int) -> list[np.ndarray]:
            return [sample_pixels(pixels, number, settings.seed, item.id) for item in items]

        samples = None if settings.sample == -1 else chosen(settings.sample)
        kept = chosen(settings.logit_pixels) if "logits" in self.tensors else None
        return _Batch([str(item.image) for item in items], images, train_ids, samples, kept)

    def compute(self, items: Sequence[Item], batch: _Batch) -> Callable[[], list[_Output]]:
        settings, number, kept = self.settings, len(items), batch.kept
        with contextlib.ExitStack() as stack:
            features = None
            if "features" in self.tensors:
                features = stack.enter_context(ImageFeatures(self.segmenter, settings.layer))
            wait = launch_batch(
                self.segmenter, batch.images, batch.train_ids, batch.names, self.device, batch.samples, kept,
                settings.fp16, self.groups,
            )  # fmt: skip

        def finish() -> list[_Output]:
            measured = wait()
            vector = None if features is None else features.vector()
            return [_Output(one, kept[i] if kept else None, vector) for i, one in enumerate(measured[:number])]

        return finish

    def write(self, item: Item, loaded: _Pair, output: _Output) -> None:
        results, half = self.results_of(item), self.settings.fp16
        if output.kept is not None and output.measured.logits is not None:
            labels = loaded[1].reshape(-1)[output.kept]
            arrays = {"indices": output.kept.astype(np.int32), "labels": labels, "logits": output.measured.logits}
            write_part(results.part("logits", item.id), arrays, self.tensors["logits"])
        if output.features is not None:
            vector = output.features.astype(np.float16) if half else output.features
            write_part(results.part("features", item.id), {"features": vector}, self.tensors["features"])
        prediction = output.measured.prediction if self.keep_prediction else None
        if self.early is not None:
            self.early.add(results, item.id, output.measured.statistics)
        overwrite = self.settings.run.overwrite
        save_image(results, self.records[item], prediction, output.measured.statistics, overwrite)

    def finish(self, items: Sequence[Item], report: StageReport[Item]) -> None:
        bad = [
            BadFile(one.item.id, one.item.cond, one.item.scene, str(one.item.image), one.reason)
            for one in report.skipped
        ]
        self.evaluated = self._summarise(self.unpaired + bad)

    def _summarise(self, skipped: list[BadFile]) -> Evaluated:
        """Summarise each scene, and print what was skipped."""
        without = {(bad.cond, bad.scene, bad.id) for bad in skipped}
        kept = [item for item in self.records if (item.cond, item.scene, item.id) not in without]
        is_kept = set(kept)
        dropped = [bad for bad in skipped if bad.reason.startswith(GATED)]
        for bad in skipped:
            if bad not in dropped:
                print(f"skipped {bad.file}: {bad.reason}")
        if self.limit is not None:
            print(f"{self.title}: results of a part of the images only (--limit {self.limit})")
        if dropped:
            print(f"{self.dataset}: {len(dropped)} images dropped by its {GATE}")
        with_images = {self.results_of(item) for item in kept}
        scenes = {key: results for key, results in self.scenes.items() if results in with_images}
        for key in {(bad.cond, bad.scene) for bad in dropped} - scenes.keys():
            # The gate drops all of its images: metrics of an earlier gate must not be pooled with the others.
            root = resolve(self.settings.eval_dir)
            SceneResults(root, self.model, self.dataset, *key).metrics.unlink(missing_ok=True)
        if not kept:
            raise GenValError(f"Every image of {self.dataset} was skipped (see above): no image is left to evaluate.")
        summaries = self.early.take() if self.early is not None else {}
        totals: dict[str, PixelStatistics] = {}
        for (cond, _), results in scenes.items():
            members = [item for item in self.members[results] if item in is_kept]
            # The thread waits for all images of a scene.
            early = summaries.get(results) if members == self.members[results] else None
            total = self._finish_scene(results, members, skipped, early)
            totals[cond] = totals[cond] + total if cond in totals else total
        conds = sorted({item.cond for item in kept})
        images, bad_count = ({c: sum(e.cond == c for e in entries) for c in conds} for entries in (kept, skipped))
        return Evaluated(self.model, self.dataset, scenes, images, bad_count, totals)

    def _finish_scene(
        self, results: SceneResults, items: Sequence[Item], skipped: Sequence[BadFile], summary: Summary | None
    ) -> PixelStatistics:
        space, records = label_space_of(self.dataset), [self.records[item] for item in items]
        keeps = self.limit is not None and _is_whole(results)
        for kind in self.tensors:
            if not keeps or {item.id for item in items}.issuperset(packed_ids(results.packed(kind))):
                self._pack(kind, results, items)
        if results in self.finished:
            return self.finished[results]
        if keeps:
            return functools.reduce(operator.add, map(results.read_image, records))
        key = self._summary_key(results, records, skipped)
        return finish_scene(
            results,
            records,
            space.names,
            space.classes,
            space.class_sets,
            self._head(results, skipped),
            _listed(results, skipped),
            lambda total, metrics: write_total(results, records, total, key, metrics),
            summary,
        ).total

    def _pack(self, kind: str, results: SceneResults, items: Sequence[Item]) -> None:
        parts = {item.id: results.part(kind, item.id) for item in items}
        for item_id, part in parts.items():
            if part.exists() and (is_damaged(part) or not self._is_wanted(kind, results, item_id)):
                part.unlink()  # of an interrupted run with other flags
        pack(results.packed(kind), parts, self.covering[kind, results])

    def _head(self, results: SceneResults, skipped: Sequence[BadFile]) -> dict[str, Any]:
        """Return what the summary of a scene states about the run."""
        settings = self.settings
        head: dict[str, Any] = {
            "src_dataset": settings.model.src_dataset,
            "split": settings.split or find_layout(self.dataset.removesuffix(GATED_SUFFIX)).default_split,
            "limit": self.limit,
            "class_map": settings.model.class_map,
        }
        if settings.gate:
            dropped = [bad for bad in skipped if bad.reason.startswith(GATED)]
            head["gate_mark"] = self.gate
            head["dropped_by_gate"] = sum((bad.cond, bad.scene) == (results.cond, results.scene) for bad in dropped)
        return head

    def _summary_key(
        self, results: SceneResults, records: Sequence[Mapping[str, Any]], skipped: Sequence[BadFile]
    ) -> str:
        space = label_space_of(self.dataset)
        classes = [list(space.names), list(space.classes), {name: list(ids) for name, ids in space.class_sets.items()}]
        return summary_key(records, self._head(results, skipped), _listed(results, skipped), classes)


def _listed(results: SceneResults, skipped: Sequence[BadFile]) -> list[dict[str, str]]:
    """Return the skipped files of a scene as its summary lists them."""
    key = results.cond, results.scene
    return [{"file": bad.file, "reason": bad.reason} for bad in skipped if (bad.cond, bad.scene) == key]


def _covers(saved: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> bool:
    """Whether saved logits or features hold at least what is wanted: of the same model as many pixels, as precisely.

    Args:
        saved, wanted: the metadata of their files.
    """
    if saved is None:
        return False
    free = ("pixels", "seed", "dtype")
    same = all(saved.get(key) == wanted.get(key) for key in (saved.keys() | wanted.keys()) - set(free))
    precise = saved.get("dtype") in ("float32", wanted.get("dtype"))
    pixels, number = saved.get("pixels"), wanted.get("pixels")
    more = pixels == number or (number not in (None, -1) and pixels is not None and number < pixels)
    return same and precise and (pixels == -1 or (more and saved.get("seed") == wanted.get("seed")))


def _is_whole(results: SceneResults) -> bool:
    """Whether a scene has finished results of all of its images."""
    return results.metrics.exists() and read_json(results.metrics).get("limit") is None


def _is_unidentified(results: SceneResults) -> bool:
    """Whether a scene has results of a version that did not record the identity of the model."""
    try:
        return results.metrics.exists() and any("identity" not in record for record in results.records())
    except GenValError:  # a missing or damaged manifest is written again
        return False
