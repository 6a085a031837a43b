"""Pool evaluated images over scenes and conditions: every figure again, with its 95 % interval; no inference.

Reads:  what relis/eval.py wrote below --root_exp_dir
Writes: {results_dir}/{model_arch}/{trg_dataset}/{conditions}.json, and .csv, _per_class.csv, _per_image.csv beside it

    python relis/compute_final_metrics.py --trg_dataset ACDC --cond fog,night --model_arch SegFormer-B0

Two sets can be compared only over one set of classes: IDD has no terrain and no train, so give --classes 17 for IDD and
for what it is compared with (Cityscapes_india, Cityscapes).
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from genval.runtime import cli

if TYPE_CHECKING:
    from collections.abc import Iterator


def parse_args() -> argparse.Namespace:
    parser = cli.script_parser(__doc__, "relis/compute_final_metrics")
    what = parser.add_argument_group("what is pooled")
    what.add_argument("--model_arch", required=True, help="models as given to relis/eval.py, or all")
    what.add_argument("--src_dataset", default="Cityscapes", help="what the models were trained on; only recorded")
    what.add_argument("--trg_dataset", required=True, type=cli.dataset_list, help="Cityscapes, ACDC, Cityscapes_fog")
    what.add_argument("--cond", type=cli.comma_list, default="all", help="conditions, paired with --scene if as many")
    what.add_argument("--scene", type=cli.comma_list, default="all", help="cities, recordings or folders")
    what.add_argument(
        "--classes",
        choices=["present", "19", "17", "11"],
        default="present",
        help="classes of the mean: those that occur (as published), or exactly all 19, IDD's 17 or CamVid's 11",
    )
    where = parser.add_argument_group("where things are")
    where.add_argument("--root_exp_dir", default="results/eval", help="the results of relis/eval.py")
    where.add_argument("--results_dir", default="results/final_metrics", help="where the figures are saved")
    return cli.parse(parser)


def main(args: argparse.Namespace) -> None:
    from genval.datasets.layouts import find_layout
    from genval.results.scenes import list_scenes, model_list, pair
    from genval.runtime.paths import resolve
    from genval.runtime.tables import markdown_table

    for dataset in args.trg_dataset:
        find_layout(dataset)  # refuses an unknown name before its results are looked for
    pairs = pair(args.cond, args.scene)
    rows = [
        pool(args, model, dataset, list_scenes(resolve(args.root_exp_dir), model, dataset, pairs, args.preset))
        for model in model_list(args.model_arch, args.preset)
        for dataset in args.trg_dataset
    ]
    header = ["model", "data set", "images", "mIoU %", "from", "to", "pixel accuracy %", "mean class accuracy %"]
    header += ["ECE %", "AUROC of errors %"]
    print(markdown_table(header, rows, digits=2))
    print(f"wrote {args.results_dir}/{{model}}/{{data set}}/{file_name(args)}.json and .csv tables beside it")


def pool(args: argparse.Namespace, model: str, dataset: str, scenes: list[Any]) -> list[Any]:
    """One model on one data set: write its files, return its row of the table."""
    from genval.datasets import CLASS_SETS, CLASSES, classes_of
    from genval.metrics.segmentation import miou_standard_error, plain
    from genval.results.scenes import folder_name, summarise
    from genval.runtime.files import write_csv, write_json
    from genval.runtime.paths import resolve
    from genval.runtime.tables import percent

    fixed = args.classes != "present"
    classes = CLASS_SETS[args.classes] if fixed else classes_of(dataset)
    places: list[Any] = []
    matrices: list[Any] = []

    def each_image() -> Iterator[Any]:
        for results in scenes:
            for record, statistics in results.read_pixels():
                places.append(results)
                matrices.append(statistics.confusion)
                yield record["id"], statistics

    summary = summarise(each_image(), CLASSES, classes, CLASS_SETS, fixed)
    overall = summary.metrics | {"miou_standard_error": plain(miou_standard_error(matrices, classes))}
    header, rows = summary.table

    stem = resolve(args.results_dir) / folder_name(model) / folder_name(dataset) / file_name(args)
    write_csv(
        stem.with_name(f"{stem.name}_per_image.csv"),
        ["cond", "scene", *header],
        [[results.cond, results.scene, *row] for results, row in zip(places, rows, strict=True)],
    )
    labelled, iou = summary.total.confusion.sum(1).tolist(), overall["iou_per_class"]
    write_csv(
        stem.with_name(f"{stem.name}_per_class.csv"),
        ["class", "iou", "in_mean", "labelled_pixels"],
        [[name, iou[name], int(index in classes), labelled[index]] for index, name in enumerate(CLASSES)],
    )
    about = {"model": model, "src_dataset": args.src_dataset, "dataset": dataset, "classes": args.classes}
    about |= {"images": len(rows), "scenes": [f"{results.cond}/{results.scene}" for results in scenes]}
    single = {key: value for key, value in (about | overall).items() if not isinstance(value, (dict, list))}
    write_csv(stem.with_name(f"{stem.name}.csv"), list(single), [list(single.values())])
    write_json(stem.with_name(f"{stem.name}.json"), about | overall)
    low, high = map(percent, overall["intervals"]["miou"])
    accuracies = [overall["pixel_accuracy_percent"], percent(overall["mean_class_accuracy"])]
    others = [percent(overall["ece"]), percent(overall["auroc"])]
    return [model, dataset, len(rows), percent(overall["miou"]), low, high, *accuracies, *others]


def file_name(args: argparse.Namespace) -> str:
    """The conditions, with the scenes and the classes where they are not the usual ones."""
    scenes = [] if args.scene == ["all"] else ["+".join(args.scene)]
    classes = [] if args.classes == "present" else [f"{args.classes}classes"]
    return "_".join(["+".join(args.cond), *scenes, *classes])


if __name__ == "__main__":
    cli.run(main, parse_args)
