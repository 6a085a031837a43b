"""The work of ood_detection/main_gen_ood.py: one model on one set of pictures with objects, block by block, resumable.

A block is up to 32 pictures of one object (or of one public set). It is measured by one process, in one forward pass a
picture, and its counts are written when it is complete: a killed run loses at most the blocks that were being measured,
and as counts add up, neither kills nor the number of processes change a figure. Memory does not grow with the set, but
for a line of figures a picture.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from genval.artifacts.fingerprint import file_mark, weights_hash
from genval.artifacts.settings import write_settings
from genval.datasets import BadFile, Batch, Item, find_items, load_batches, partition
from genval.datasets.items import ALL
from genval.datasets.ood_sets import (
    GENERATED,
    GeneratedFolders,
    OodItem,
    OodSet,
    blocks_of,
    find_ood_items,
    read_kinds,
    read_ood_pair,
)
from genval.evaluation.inference import infer, launch_ood_batch
from genval.metrics.ood_components import Sizes, best_level, component_metrics, measure_components
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
    write_results,
    write_scores,
)
from genval.results.scenes import folder_name, image_record, model_list
from genval.runtime.background import BackgroundWriter, one_behind
from genval.runtime.devices import launch_fabric, same_outcome
from genval.runtime.errors import GenValError
from genval.runtime.files import read_json, remove_leftovers, write_json, write_png
from genval.runtime.paths import resolve
from genval.runtime.progress import progress_bar

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch import nn


@dataclass(frozen=True)
class Detected:
    """What a run of one model over one set did."""

    results: OodResults
    rows: list[dict[str, Any]]  # of the table of scores
    left_out: dict[str, int]  # pictures that were not measured, by reason


def detect_all(args: argparse.Namespace) -> list[Detected]:
    """Every model of `args.model` on every set of `args.trg_dataset`.

    Returns:
        On the first process what there is now; nothing on the others, and nothing with `--dry_run`, which prints what
        would be done.
    """
    models = model_list(args.model, args.preset)
    if STANDARDISED in args.components and args.standardise is None:
        raise GenValError(f"--components {STANDARDISED} needs a set of known classes: --standardise Cityscapes, say.")
    unpaired: dict[str, list[BadFile]] = {dataset: [] for dataset in args.trg_dataset}
    sets = {dataset: find(args, dataset, bad) for dataset, bad in unpaired.items()}
    if args.dry_run:
        for dataset, found in sets.items():
            reasons = "".join(f"; left out: {number} {reason}" for reason, number in found.left_out.items())
            print(f"{dataset}: {len(found.items)} pictures for each of {len(models)} models{reasons}")
        return []

    from genval.segmenters import load_segmenter  # a model's library takes seconds to import

    fabric = launch_fabric(args)
    done: list[Detected] = []
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
        standard = known_max_logits(args, fabric, segmenter, model)
        for dataset, found in sets.items():
            detected = detect(args, fabric, segmenter, model, dataset, found, unpaired[dataset], standard)
            done += [detected] if detected else []
    return done


def find(args: argparse.Namespace, dataset: str, unpaired: list[BadFile]) -> OodSet:
    """The pictures that the flags name; files without a partner are added to `unpaired` with `--skip_bad`."""
    found = find_ood_items(
        dataset,
        args.datasets_dir,
        args.trg_root,
        GeneratedFolders(args.images_dir, args.masks_dir, args.positions_dir),
        args.objects if dataset == GENERATED else None,
        not args.uncurated,
        args.void or (),
        unpaired if args.skip_bad else None,
    )
    return OodSet(found.items[: args.limit], found.left_out)


def results_name(args: argparse.Namespace, dataset: str) -> str:
    """The name that a set's results have: a part of the generated set is another set."""
    if dataset != GENERATED:
        return dataset
    parts = [dataset, *(["uncurated"] if args.uncurated else []), *(["+".join(args.objects)] if args.objects else [])]
    return "-".join(parts)


def known_max_logits(
    args: argparse.Namespace, fabric: Fabric, segmenter: nn.Module, model: str
) -> tuple[np.ndarray, np.ndarray] | None:
    """Mean and standard deviation of the largest logit of each class on the set `args.standardise`, kept on the disk.

    The first process measures, one image at a time; None without the flag.
    """
    if args.standardise is None:
        return None
    path = resolve(args.results_dir) / "max_logits" / f"{folder_name(model)}.json"
    with same_outcome(fabric):
        about = {"weights": weights_hash(segmenter), "precision": args.precision, "set": args.standardise}
        about |= {"images": args.standardise_images}
        if fabric.is_global_zero and not _is_measured(path, about):
            items = find_items(args.standardise, split=ALL, datasets_dir=args.datasets_dir)
            chosen = [items[i] for i in np.unique(np.linspace(0, len(items) - 1, args.standardise_images).astype(int))]
            total: MaxLogits | None = None
            for batch in load_batches(partition(chosen, 1), args.num_workers):
                with torch.inference_mode():
                    measured = MaxLogits.measure(infer(segmenter, batch.images, fabric.device)[0])
                total = measured if total is None else total + measured
            assert total is not None
            write_json(path, {**about, **{k: getattr(total, k).tolist() for k in ("pixels", "sums", "squares")}})
    content = read_json(path)
    return MaxLogits(*(np.array(content[key]) for key in ("pixels", "sums", "squares"))).moments()


def detect(
    args: argparse.Namespace,
    fabric: Fabric,
    segmenter: nn.Module,
    model: str,
    dataset: str,
    found: OodSet,
    unpaired: list[BadFile],
    standard: tuple[np.ndarray, np.ndarray] | None = None,
) -> Detected | None:
    """One model on one set: measure the blocks that are missing, then add all of them up.

    Args:
        args: the flags of ood_detection/main_gen_ood.py.
        fabric: the processes that share the work.
        segmenter: on its device.
        model: as the user spelled it.
        dataset: likewise.
        found: from `find`.
        unpaired: from `find`.
        standard: from `known_max_logits`.

    Returns:
        On the first process what there is now; None on the others.
    """
    results = OodResults(resolve(args.results_dir), results_name(args, dataset), model)
    run = _Run(args, segmenter, model, results, found, standard, fabric.device)
    open_blocks = [name for name in run.blocks if args.overwrite or not run.is_done(name)]
    with same_outcome(fabric):  # no process writes before all have looked
        if fabric.is_global_zero:
            remove_leftovers(results.folder)
            if open_blocks:
                write_settings(results.folder, args)
            for name in open_blocks:  # what is there now is of other pictures, or of another model
                results.lines(name).unlink(missing_ok=True)
                # Levels say nothing of what they are of: what this run does not write again would outlast its picture.
                for score, item in itertools.product((*SCORES, STANDARDISED), run.blocks[name]):
                    results.levels(score, item.id).unlink(missing_ok=True)
            for path in (results.json, results.csv, results.objects_csv) if open_blocks else ():
                path.unlink(missing_ok=True)

    mine = open_blocks[fabric.global_rank :: fabric.world_size]
    unreadable: list[BadFile] | None = [] if args.skip_bad else None
    bar = progress_bar(sum(len(run.blocks[name]) for name in mine), f"{model} on {dataset}", rank=fabric.global_rank)
    # A waiting block holds 100 MB.
    with same_outcome(fabric), bar, BackgroundWriter(threads=2, waiting=2) as writer:
        for items, kept in run.measure(mine, unreadable):
            bar.update(items)
            if kept is not None:
                writer.submit(run.write, kept)
    unread = [bad for rank in range(fabric.world_size) for bad in fabric.broadcast(unreadable or [], rank)]
    # Not in the order of the processes that found them.
    skipped = sorted(unpaired + unread, key=lambda bad: bad.file)
    detected: Detected | None = None
    with same_outcome(fabric):
        if fabric.is_global_zero:
            detected = run.finish(skipped)
    return detected


@dataclass
class _Block:
    """A block that is being measured."""

    name: str
    items: list[OodItem]
    counts: list[OodCounts]
    exact: list[list[dict[str, float]]]


class _Run:
    """One model on one set."""

    def __init__(
        self,
        args: argparse.Namespace,
        segmenter: nn.Module,
        model: str,
        results: OodResults,
        found: OodSet,
        standard: tuple[np.ndarray, np.ndarray] | None,
        device: torch.device,
    ) -> None:
        self.args, self.segmenter, self.results, self.found, self.device = args, segmenter, results, found, device
        self.blocks = blocks_of(found.items)
        self.scores = SCORES if standard is None else (*SCORES, STANDARDISED)
        self.standard: tuple[torch.Tensor, torch.Tensor] | None = None
        made_with: dict[str, Any] = {"void": sorted(args.void or ()), "levels": SCORE_LEVELS, "exact": args.exact}
        if standard is not None:
            mean, deviation = (torch.from_numpy(part).float().to(device) for part in standard)
            self.standard = mean, deviation
            made_with["standardised"] = [args.standardise, args.standardise_images]
        weights = weights_hash(segmenter)
        self.records = {
            item: {
                **image_record(item.id, item.image, item.mask, model, weights, args.precision),
                **({"frame_mark": file_mark(item.frame)} if item.frame else {}),
                **made_with,
            }
            for item in found.items
        }

    def is_done(self, name: str) -> bool:
        """Whether everything of a block that is asked for is there."""
        items, results = self.blocks[name], self.results
        return (
            results.is_done(name, [self.records[item] for item in items])
            and all(results.levels(score, item.id).exists() for score in self.args.components for item in items)
            and (not self.args.exact or all(has_scores(results.scores(item.id), self.scores) for item in items))
        )

    def measure(self, names: Sequence[str], unreadable: list[BadFile] | None) -> Iterator[tuple[int, _Block | None]]:
        """Measure blocks; gives the number of pictures just measured, and a block when it is complete.

        A failure loses at most the block in which it is: the one before it is given first.
        """
        chunks = [chunk for name in names for chunk in partition(self.blocks[name], self.args.batch_size)]
        block: _Block | None = None
        batches = load_batches(chunks, self.args.num_workers, unreadable, read_ood_pair)
        left = {name: len(self.blocks[name]) for name in names}
        for batch, wait in one_behind((batch, self._launch(batch)) for batch in batches):
            name = cast(OodItem, batch.items[0]).block
            if block is not None and block.name != name:  # pictures of it were set aside
                yield 0, block
                block = None
            block = block or _Block(name, [], [], [])
            for item, kinds, (counts, scores) in zip(batch.items, batch.train_ids, wait(), strict=True):
                # What waits for the rest of its block takes half the memory.
                counts.levels = counts.levels.astype(np.uint32)
                block.items.append(cast(OodItem, item))
                block.counts.append(counts)
                if scores is not None:
                    self._keep(item, scores, kinds, block)
            left[name] -= len(batch.items)
            complete, block = (None, block) if left[name] else (block, None)
            yield len(batch.items), complete
        if block is not None:
            yield 0, block

    def _launch(self, batch: Batch) -> Callable[[], list[tuple[OodCounts, torch.Tensor | None]]]:
        names = [str(item.image) for item in batch.items]
        keep = bool(self.args.components) or self.args.exact
        return launch_ood_batch(self.segmenter, batch.images, batch.train_ids, names, self.device, self.standard, keep)

    def _keep(self, item: Item, scores: torch.Tensor, kinds: np.ndarray, block: _Block) -> None:
        """Write what is asked for of each pixel."""
        for score in self.args.components:
            level = score_level(scores[self.scores.index(score)], score).reshape(kinds.shape)
            write_png(self.results.levels(score, item.id), level.cpu().numpy().astype(np.uint16))
        if self.args.exact:
            flat = kinds.ravel()
            parts = [[np.sort(row[flat == kind]) for kind in (BACKGROUND, OBJECT)] for row in scores.cpu().numpy()]
            write_scores(self.results.scores(item.id), dict(zip(self.scores, parts, strict=True)))
            block.exact.append([exact_metrics(*part) for part in parts])

    def write(self, block: _Block) -> None:
        """Write a measured block."""
        lines = [
            image_line(self.records[item], item.scene, counts, self.scores, block.exact[index] if block.exact else None)
            for index, (item, counts) in enumerate(zip(block.items, block.counts, strict=True))
        ]
        coarse = np.stack([coarse_levels(counts.levels) for counts in block.counts])
        levels = np.zeros(block.counts[0].levels.shape, np.int64)
        for counts in block.counts:
            levels += counts.levels
        self.results.write_block(block.name, lines, levels, coarse)

    def finish(self, skipped: list[BadFile]) -> Detected:
        """Add all blocks up and write the tables."""
        args, results = self.args, self.results
        for bad in skipped:
            print(f"skipped {bad.file}: {bad.reason}")
        names = [name for name in self.blocks if results.lines(name).exists()]
        pooled = pool_blocks(results, names, len(self.scores), args.draws, args.seed)
        ids = [line["made_from"]["id"] for line in pooled.lines]
        by_id = {item.id: item for item in self.found.items}
        exact = None
        if args.exact:
            exact = [pool_scores([results.scores(item_id) for item_id in ids], score) for score in self.scores]
        components = {
            score: self._components(score, [by_id[item_id] for item_id in ids], pooled.levels[index])
            for index, score in enumerate(self.scores)
            if score in args.components
        }
        left_out = {**self.found.left_out, **({"set aside (--skip_bad)": len(skipped)} if skipped else {})}
        about = {
            "src_dataset": args.src_dataset,
            "void": sorted(args.void or ()),
            "limit": args.limit,
            "draws": args.draws,
            "left_out": left_out,
            "skipped": [{"file": bad.file, "reason": bad.reason} for bad in skipped],
        }
        rows = write_results(results, pooled, self.scores, about, exact, components)
        return Detected(results, rows, left_out)

    def _components(self, score: str, items: Sequence[OodItem], levels: np.ndarray) -> dict[str, Any]:
        """The component figures of a score, at the threshold of the best F1 of all pixels."""
        last = best_level(levels)
        sizes = Sizes(*self.args.component_sizes)

        def sums_of(item: OodItem) -> np.ndarray:
            found = read_levels(self.results.levels(score, item.id)) <= last
            return measure_components(found, read_kinds(item), sizes).sums()

        bootstrap = SumBootstrap(self.args.draws, self.args.seed)
        with ThreadPoolExecutor(self.args.num_workers, thread_name_prefix="components") as pool:
            for item, sums in zip(items, pool.map(sums_of, items), strict=True):
                bootstrap.update(item.id, sums)
        values = {name: float(value) for name, value in component_metrics(bootstrap.total).items()}
        ends = bootstrap.intervals(component_metrics)
        about = {"threshold": level_edge(last, score), "predicted_size": sizes.predicted, "object_size": sizes.object}
        return about | {name: (value, *ends[name]) for name, value in values.items()}


def _is_measured(path: Path, about: dict[str, Any]) -> bool:
    content = read_json(path) if path.exists() else {}
    return {key: content.get(key) for key in about} == about
