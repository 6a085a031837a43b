"""Run segmenters on labelled images: predictions, and the counts every robustness figure is computed from.

Reads:  datasets/ or images/style_transfer/, and the segmenters' checkpoints
Writes: {root_exp_dir}/{model_arch}/{trg_dataset}/{cond}/{scene}/: predictions/{id}.png (trainIds), statistics/{id}.json
        (the image's confusion matrix), metrics.json, confusion_matrix.csv, per_image.csv, manifest.jsonl, settings.json

    python relis/eval.py --trg_dataset ACDC --cond fog --model_arch SegFormer-B0,DLV3+ResNet50

Run again, it goes on where it was. relis/compute_final_metrics.py pools scenes.
"""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

import path_dicts
from genval.runtime import cli
from genval.runtime.errors import GenValError

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch import nn

    from genval.datasets import BadFile, Item
    from genval.metrics.results import SceneResults


def parse_args() -> argparse.Namespace:
    parser = cli.script_parser(__doc__, "relis/eval")
    what = parser.add_argument_group("what is evaluated")
    what.add_argument("--model_arch", required=True, help="models from path_dicts.py or specifications, or all")
    what.add_argument("--src_dataset", default="Cityscapes", help="what the models were trained on; only recorded")
    what.add_argument("--trg_dataset", required=True, type=cli.comma_list, help="Cityscapes, ACDC, Cityscapes_fog, ...")
    what.add_argument("--cond", type=cli.comma_list, default="all", help="conditions, e.g. fog,night")
    what.add_argument("--scene", type=cli.comma_list, default="all", help="cities, recordings or folders")
    what.add_argument("--split", help="a split's folder, or all; by default the data set's usual one")
    where = parser.add_argument_group("where things are")
    where.add_argument("--root_exp_dir", default="results/eval", help="where results are saved")
    where.add_argument("--datasets_dir", default="datasets", help="the folder of the data sets")
    where.add_argument("--generated_dir", default=path_dicts.GENERATED_ROOT, help="the folder of the generated sets")
    where.add_argument("--trg_root", help="the data set's own folder, where it is not found")
    cli.add_bad_input_arguments(parser)
    cli.add_run_arguments(parser, seed=False)
    cli.add_device_arguments(parser)
    speed = parser.add_argument_group("speed")
    speed.add_argument("--batch_size", type=cli.positive_int, default=1, help="images a forward pass")
    workers = min(8, os.cpu_count() or 1)
    speed.add_argument("--num_workers", type=cli.positive_int, default=workers, help="threads that decode images")
    return cli.parse(parser)


def main(args: argparse.Namespace) -> None:
    from genval.metrics.results import model_list

    models = model_list(args.model_arch, args.preset)
    jobs = {dataset: find(args, dataset) for dataset in args.trg_dataset}
    if args.dry_run:
        for dataset, (items, bad) in jobs.items():
            print(f"{dataset}: {len(items)} images, {len(bad)} bad files, for each of {len(models)} models")
        return

    from genval.metrics.tables import markdown_table
    from genval.runtime.devices import launch_fabric, same_outcome
    from genval.segmenters import load_segmenter

    fabric = launch_fabric(args)
    rows: list[list[Any]] = []
    for model in models:
        with same_outcome(fabric):
            segmenter = load_segmenter(model, fabric.device, args.precision)
        for dataset, (items, bad) in jobs.items():
            rows += evaluate(args, fabric, segmenter, model, dataset, items, bad)
    if fabric.global_rank == 0:
        header = ["model", "data set", "condition", "images", "skipped", "mIoU %", "pixel accuracy %"]
        print(markdown_table(header, rows, digits=2))
        print(f"wrote {args.root_exp_dir}/{{model}}/{{data set}}/{{condition}}/{{scene}}/metrics.json")


def find(args: argparse.Namespace, dataset: str) -> tuple[list[Item], list[BadFile]]:
    """The images to evaluate, sorted, and the files set aside."""
    from genval.datasets import find_items
    from genval.metrics.results import pair

    places = (args.split, args.trg_root, args.datasets_dir, args.generated_dir)
    items: set[Item] = set()
    bad: list[BadFile] = []
    for cond, scene in pair(args.cond, args.scene):
        items.update(find_items(dataset, cond, scene, *places, bad if args.skip_bad else None))
    ordered = sorted(items, key=lambda item: (item.cond, item.scene, item.id))
    return ordered[: args.limit], list(dict.fromkeys(bad))


def evaluate(
    args: argparse.Namespace,
    fabric: Fabric,
    segmenter: nn.Module,
    model: str,
    dataset: str,
    items: list[Item],
    unpaired: list[BadFile],
) -> list[list[Any]]:
    """One model on one data set: compute what is missing, then sum up each scene. Returns the table's rows."""
    from genval.artifacts.fingerprint import weights_hash
    from genval.artifacts.settings import write_settings
    from genval.datasets import load_batches, partition
    from genval.metrics.inference import predict
    from genval.metrics.results import SceneResults, image_record, save_image
    from genval.runtime.background import BackgroundWriter
    from genval.runtime.devices import same_outcome
    from genval.runtime.files import remove_leftovers
    from genval.runtime.paths import resolve
    from genval.runtime.progress import progress_bar

    root, made_with = resolve(args.root_exp_dir), (model, weights_hash(segmenter), args.precision)
    scenes = {(item.cond, item.scene): SceneResults(root, model, dataset, item.cond, item.scene) for item in items}
    records = {item: image_record(item.id, item.image, item.mask, *made_with) for item in items}
    where = {item: scenes[item.cond, item.scene] for item in items}
    chunks = partition(items, args.batch_size)
    open_chunks = [c for c in chunks if args.overwrite or not all(where[i].is_done(records[i]) for i in c)]
    with same_outcome(fabric):  # no process writes before all have looked
        unfinished = {where[item] for chunk in open_chunks for item in chunk}
        for results in scenes.values() if fabric.is_global_zero else ():
            remove_leftovers(results.folder)
            if results in unfinished:
                write_settings(results.folder, args)
                results.metrics.unlink(missing_ok=True)

    mine = open_chunks[fabric.global_rank :: fabric.world_size]
    unreadable: list[BadFile] | None = [] if args.skip_bad else None
    bar = progress_bar(sum(map(len, mine)), f"{model} on {dataset}", rank=fabric.global_rank)
    with same_outcome(fabric), bar, BackgroundWriter() as writer:
        for batch in load_batches(mine, args.num_workers, unreadable):
            predictions = predict(segmenter, batch.images, [str(item.image) for item in batch.items], fabric.device)
            for item, prediction, train_ids in zip(batch.items, predictions, batch.train_ids, strict=True):
                writer.submit(save_image, where[item], records[item], prediction, train_ids, args.overwrite)
            bar.update(len(batch.items))
    skipped = unpaired + [bad for rank in range(fabric.world_size) for bad in fabric.broadcast(unreadable or [], rank)]
    rows: list[list[Any]] = []
    with same_outcome(fabric):
        if fabric.is_global_zero:
            rows = finish(args, dataset, scenes, records, skipped)
    return rows


def finish(
    args: argparse.Namespace,
    dataset: str,
    scenes: dict[tuple[str, str], SceneResults],
    records: dict[Item, dict[str, Any]],
    skipped: list[BadFile],
) -> list[list[Any]]:
    """Sum up each scene and name what was set aside. Returns the table's rows, one a condition."""
    import numpy as np

    from genval.datasets import CLASS_SETS, CLASSES, classes_of
    from genval.metrics.results import finish_scene
    from genval.metrics.segmentation import mean_iou, pixel_accuracy

    left_out = {(bad.cond, bad.scene, bad.id) for bad in skipped}
    kept = [item for item in records if (item.cond, item.scene, item.id) not in left_out]
    for bad in skipped:
        print(f"skipped {bad.file}: {bad.reason}")
    if not kept:
        raise GenValError(f"Every image of {dataset} was set aside (see above): there is nothing to measure.")
    about = {"src_dataset": args.src_dataset, "split": args.split, "limit": args.limit}
    rows = []
    for cond in sorted({item.cond for item in kept}):
        total = np.zeros((len(CLASSES), len(CLASSES)), np.int64)
        for scene in sorted({item.scene for item in kept if item.cond == cond}):
            of_scene = [records[item] for item in kept if (item.cond, item.scene) == (cond, scene)]
            bad_here = [{"file": b.file, "reason": b.reason} for b in skipped if (b.cond, b.scene) == (cond, scene)]
            results = scenes[cond, scene]
            finish_scene(results, of_scene, CLASSES, classes_of(dataset), CLASS_SETS, about, bad_here)
            total += results.read_matrix()
        images, bad_count = (sum(entry.cond == cond for entry in entries) for entries in (kept, skipped))
        miou = 100 * mean_iou(total, classes_of(dataset))
        rows.append([results.model, dataset, cond, images, bad_count, miou, pixel_accuracy(total)])
    return rows


if __name__ == "__main__":
    cli.run(main, parse_args)
