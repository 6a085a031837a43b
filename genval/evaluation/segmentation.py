"""The work of relis/eval.py and its relatives: one model on one data set, image by image, resumable."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from genval.artifacts.fingerprint import weights_hash
from genval.artifacts.settings import write_settings
from genval.artifacts.tensors import pack, packed_ids, read_about, write_part
from genval.datasets import (
    CLASS_SETS,
    CLASSES,
    BadFile,
    Batch,
    Item,
    classes_of,
    find_items,
    load_batches,
    partition,
)
from genval.datasets.gate import GATE, GATED, apply_gate
from genval.datasets.layouts import find_root, is_generated
from genval.evaluation.inference import Measured, launch_batch, sample_pixels
from genval.metrics.statistics import PixelStatistics
from genval.results.scenes import (
    GATED_SUFFIX,
    SceneResults,
    finish_scene,
    image_record,
    model_list,
    pair,
    save_image,
)
from genval.runtime.background import BackgroundWriter, one_behind
from genval.runtime.devices import launch_fabric, same_outcome
from genval.runtime.errors import GenValError
from genval.runtime.files import remove_leftovers
from genval.runtime.paths import resolve
from genval.runtime.progress import progress_bar
from genval.segmenters.features import ImageFeatures

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch import nn


def evaluate_all(args: argparse.Namespace) -> list[Evaluated]:
    """Every model of `args.model_arch` on every data set of `args.trg_dataset`.

    Args:
        args: the flags of `arguments.add_evaluation_arguments`, `save` (some of `arguments.SAVED`) and `sample`, the
            number of pixels an image whose confidences are measured, -1 for all.

    Returns:
        On the first process what there is now; nothing on the others, and nothing with `--dry_run`, which prints what
        would be done.
    """
    models = model_list(args.model_arch, args.preset)
    jobs = {results_name(args, dataset): find(args, dataset) for dataset in args.trg_dataset}
    if args.dry_run:
        for dataset, (items, bad) in jobs.items():
            print(f"{dataset}: {len(items)} images, {len(bad)} bad files, for each of {len(models)} models")
        return []

    from genval.segmenters import load_segmenter  # a model's library takes seconds to import

    fabric = launch_fabric(args)
    done: list[Evaluated] = []
    for model in models:
        with same_outcome(fabric):
            segmenter = load_segmenter(
                model,
                fabric.device,
                args.precision,
                class_map=args.class_map,
                compiled=args.compile,
                channels_last=args.channels_last,
            )
        for dataset, (items, bad) in jobs.items():
            evaluated = evaluate(args, fabric, segmenter, model, dataset, items, bad)
            done += [evaluated] if evaluated else []
    return done


def find(args: argparse.Namespace, dataset: str) -> tuple[list[Item], list[BadFile]]:
    """The images that the flags name, sorted, and the files set aside."""
    places = (args.split, args.trg_root, args.datasets_dir, args.generated_dir)
    items: set[Item] = set()
    bad: list[BadFile] = []
    for cond, scene in pair(args.cond, args.scene):
        items.update(find_items(dataset, cond, scene, *places, bad if args.skip_bad else None))
    ordered = sorted(items, key=lambda item: (item.cond, item.scene, item.id))
    if args.gate and is_generated(dataset):
        ordered, dropped = apply_gate(ordered, find_root(dataset, *places[1:]))
        bad += dropped
    return ordered[: args.limit], list(dict.fromkeys(bad))


def results_name(args: argparse.Namespace, dataset: str) -> str:
    """The name that a data set's results have: a gated one is another set, `Cityscapes_fog-gated`."""
    return f"{dataset}{GATED_SUFFIX}" if args.gate and is_generated(dataset) else dataset


@dataclass(frozen=True)
class Evaluated:
    """What a run of one model over one data set did."""

    model: str
    dataset: str
    scenes: dict[tuple[str, str], SceneResults]  # by condition and scene, those with an image left
    images: dict[str, int]  # evaluated, by condition
    skipped: dict[str, int]  # set aside, by condition
    totals: dict[str, PixelStatistics]  # of all scenes together, by condition


def evaluate(
    args: argparse.Namespace,
    fabric: Fabric,
    segmenter: nn.Module,
    model: str,
    dataset: str,
    items: list[Item],
    unpaired: list[BadFile],
) -> Evaluated | None:
    """One model on one data set: compute what is missing, then sum up each scene.

    Args:
        args: as for `evaluate_all`.
        fabric: the processes that share the work.
        segmenter: on its device.
        model: as the user spelled it.
        dataset: from `results_name`.
        items: from `find`.
        unpaired: from `find`.

    Returns:
        On the first process what there is now; None on the others.
    """
    run = _Run(args, segmenter, model, dataset, items)
    # A feature vector is what a pass over one image leaves in the backbone: that image has to be alone in it.
    chunks = partition(items, 1 if "features" in args.save else args.batch_size)
    open_chunks = [chunk for chunk in chunks if args.overwrite or not all(map(run.is_done, chunk))]
    with same_outcome(fabric):  # no process writes before all have looked
        unfinished = {run.where[item] for chunk in open_chunks for item in chunk}
        for results in run.scenes.values() if fabric.is_global_zero else ():
            remove_leftovers(results.folder)
            if results in unfinished:
                write_settings(results.folder, args)
                results.metrics.unlink(missing_ok=True)

    mine = open_chunks[fabric.global_rank :: fabric.world_size]
    unreadable: list[BadFile] | None = [] if args.skip_bad else None
    bar = progress_bar(sum(map(len, mine)), f"{model} on {dataset}", rank=fabric.global_rank)
    with same_outcome(fabric), bar, BackgroundWriter(threads=4) as writer:
        for submit in one_behind(
            run.launch(batch, fabric.device) for batch in load_batches(mine, args.num_workers, unreadable)
        ):
            bar.update(submit(writer))
    skipped = unpaired + [bad for rank in range(fabric.world_size) for bad in fabric.broadcast(unreadable or [], rank)]
    evaluated: Evaluated | None = None
    with same_outcome(fabric):
        if fabric.is_global_zero:
            evaluated = run.finish(skipped)
    return evaluated


class _Run:
    """One model on one data set."""

    def __init__(
        self, args: argparse.Namespace, segmenter: nn.Module, model: str, dataset: str, items: list[Item]
    ) -> None:
        self.args, self.segmenter, self.model, self.dataset = args, segmenter, model, dataset
        root = resolve(args.root_exp_dir)
        self.scenes = {
            (item.cond, item.scene): SceneResults(root, model, dataset, item.cond, item.scene) for item in items
        }
        self.where = {item: self.scenes[item.cond, item.scene] for item in items}
        sample = None if args.sample == -1 else {"number": args.sample, "seed": args.seed}
        made_with = (model, weights_hash(segmenter), args.precision, sample)
        self.records = {item: image_record(item.id, item.image, item.mask, *made_with) for item in items}
        dtype = "float16" if args.fp16 else "float32"
        of_kind = {
            "logits": {"pixels": args.logit_pixels, "seed": args.seed, "dtype": dtype},
            "features": {"layer": args.layer or "backbone", "dtype": dtype},
        }
        self.tensors = {kind: about for kind, about in of_kind.items() if kind in args.save}
        self.keep_prediction = "predictions" in args.save
        # A packed file is of use as long as it was made in the same way.
        self.packed = {
            (kind, results): set(packed_ids(path)) if read_about(path) == about else set()
            for kind, about in self.tensors.items()
            for results in self.scenes.values()
            for path in [results.packed(kind)]
        }

    def is_done(self, item: Item) -> bool:
        """Whether everything that is asked for is there."""
        results = self.where[item]
        return results.is_done(self.records[item], self.keep_prediction) and all(
            item.id in self.packed[kind, results] or read_about(results.part(kind, item.id)) == about
            for kind, about in self.tensors.items()
        )

    def launch(self, batch: Batch, device: Any) -> Callable[[BackgroundWriter], int]:
        """Start a batch; the function given back waits for it, has it written and returns its number of images."""
        args, ids = self.args, [item.id for item in batch.items]
        pixels = batch.train_ids[0].size
        samples = None if args.sample == -1 else [sample_pixels(pixels, args.sample, args.seed, name) for name in ids]
        kept = None
        if "logits" in self.tensors:
            kept = [sample_pixels(pixels, args.logit_pixels, args.seed, name) for name in ids]
        names = [str(item.image) for item in batch.items]
        with contextlib.ExitStack() as stack:
            features = None
            if "features" in self.tensors:
                features = stack.enter_context(ImageFeatures(self.segmenter, args.layer))
            wait = launch_batch(self.segmenter, batch.images, batch.train_ids, names, device, samples, kept, args.fp16)

        def submit(writer: BackgroundWriter) -> int:
            results = wait()
            vector = None if features is None else features.vector()
            for index, (item, measured) in enumerate(zip(batch.items, results, strict=True)):
                indices = None if kept is None else kept[index]
                writer.submit(self._save, item, measured, batch.train_ids[index], indices, vector)
            return len(batch.items)

        return submit

    def _save(
        self,
        item: Item,
        measured: Measured,
        train_ids: np.ndarray,
        indices: np.ndarray | None,
        vector: np.ndarray | None,
    ) -> None:
        results, record, overwrite = self.where[item], self.records[item], self.args.overwrite
        if indices is not None and measured.logits is not None:
            labels = train_ids.reshape(-1)[indices]
            arrays = {"indices": indices.astype(np.int32), "labels": labels, "logits": measured.logits}
            write_part(results.part("logits", item.id), arrays, self.tensors["logits"])
        if vector is not None:
            arrays = {"features": vector.astype(np.float16) if self.args.fp16 else vector}
            write_part(results.part("features", item.id), arrays, self.tensors["features"])
        save_image(
            results, record, measured.prediction if self.keep_prediction else None, measured.statistics, overwrite
        )

    def finish(self, skipped: list[BadFile]) -> Evaluated:
        """Sum up each scene and name what was set aside."""
        args = self.args
        left_out = {(bad.cond, bad.scene, bad.id) for bad in skipped}
        kept = [item for item in self.records if (item.cond, item.scene, item.id) not in left_out]
        dropped = [bad for bad in skipped if bad.reason.startswith(GATED)]
        for bad in skipped:
            if bad not in dropped:
                print(f"skipped {bad.file}: {bad.reason}")
        if dropped:
            print(f"{self.dataset}: {len(dropped)} images dropped by its {GATE}")
        scenes = {key: results for key, results in self.scenes.items() if any(self.where[i] == results for i in kept)}
        for key in {(bad.cond, bad.scene) for bad in dropped} - scenes.keys():
            # Nothing of it is kept now: figures of an earlier gate must not be pooled with the others.
            SceneResults(resolve(args.root_exp_dir), self.model, self.dataset, *key).metrics.unlink(missing_ok=True)
        if not kept:
            raise GenValError(f"Every image of {self.dataset} was set aside (see above): there is nothing to measure.")
        about: dict[str, Any] = {"src_dataset": args.src_dataset, "split": args.split, "limit": args.limit}
        totals: dict[str, PixelStatistics] = {}
        for (cond, scene), results in scenes.items():
            of_scene = [item for item in kept if self.where[item] == results]
            for kind, how in self.tensors.items():
                pack(results.packed(kind), {item.id: results.part(kind, item.id) for item in of_scene}, how)
            bad_here = [{"file": b.file, "reason": b.reason} for b in skipped if (b.cond, b.scene) == (cond, scene)]
            if args.gate:
                about["dropped_by_gate"] = sum((b.cond, b.scene) == (cond, scene) for b in dropped)
            records = [self.records[item] for item in of_scene]
            label_space = classes_of(self.dataset)
            of_classes = (CLASSES, label_space, CLASS_SETS)
            total = finish_scene(results, records, *of_classes, about, bad_here).total
            totals[cond] = totals[cond] + total if cond in totals else total
        conds = sorted({item.cond for item in kept})
        images, bad_count = ({c: sum(e.cond == c for e in entries) for c in conds} for entries in (kept, skipped))
        return Evaluated(self.model, self.dataset, scenes, images, bad_count, totals)
