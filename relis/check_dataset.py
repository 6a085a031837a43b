"""Walk a data set: missing partners, unreadable files, sizes, ids. Says what is wrong before an evaluation does.

Reads:  datasets/ or images/style_transfer/, every image and mask
Writes: {results_dir}/{trg_dataset}.json (pairs, scenes, sizes, pixels of each id and class, faults)

    python relis/check_dataset.py --trg_dataset ACDC --split all

Exit status: 0 if all is well, 1 if there are faults, 2 if the data set is not there at all.
"""

from __future__ import annotations

import argparse
import os
import sys

import path_dicts
from genval.runtime import cli

LISTED = 10


def parse_args() -> argparse.Namespace:
    parser = cli.script_parser(__doc__, "relis/check_dataset")
    parser.add_argument("--trg_dataset", required=True, type=cli.dataset_list, help="as relis/eval.py takes them")
    parser.add_argument("--cond", type=cli.comma_list, default="all", help="conditions, e.g. fog,night")
    parser.add_argument("--scene", type=cli.comma_list, default="all", help="cities, recordings or folders")
    parser.add_argument("--split", help="a split's folder, or all; by default the data set's usual one")
    parser.add_argument("--datasets_dir", default="datasets", help="the folder of the data sets")
    parser.add_argument("--generated_dir", default=path_dicts.GENERATED_ROOT, help="the folder of the generated sets")
    parser.add_argument("--trg_root", help="the data set's own folder, where it is not found")
    parser.add_argument("--results_dir", default="results/check", help="where the reports are saved")
    workers = min(16, os.cpu_count() or 1)
    parser.add_argument("--num_workers", type=cli.positive_int, default=workers, help="threads that decode files")
    return cli.parse(parser)


def main(args: argparse.Namespace) -> None:
    faults = sum(check(args, dataset) for dataset in args.trg_dataset)
    sys.exit(1 if faults else 0)


def check(args: argparse.Namespace, dataset: str) -> int:
    """Check one data set, write its report and print what is in it. Returns the number of faults."""
    from genval.datasets import CLASSES, BadFile, classes_of, find_items
    from genval.datasets.checking import check_items
    from genval.results.scenes import folder_name
    from genval.runtime.files import write_json
    from genval.runtime.paths import resolve
    from genval.runtime.progress import progress_bar

    unpaired: list[BadFile] = []
    places = (args.split, args.trg_root, args.datasets_dir, args.generated_dir)
    items = find_items(dataset, args.cond, args.scene, *places, unpaired)
    with progress_bar(len(items), f"checking {dataset}", unit="pair") as bar:
        report = check_items(items, unpaired, args.num_workers, bar.update)
    faults = report["faults"]
    path = resolve(args.results_dir) / f"{folder_name(dataset)}.json"
    write_json(path, {"dataset": dataset, "settings": vars(args), **report})

    sizes = ", ".join(f"{count} of {size}" for size, count in report["sizes"].items())
    missing = [CLASSES[i] for i in classes_of(dataset) if not report["classes"][CLASSES[i]]["pixels"]]
    print(f"{dataset}: {report['pairs']} pairs in {len(report['scenes'])} scenes; {sizes}")
    print(f"classes without a pixel: {', '.join(missing) or 'none'}")
    if report["masks_without_a_class"]:
        print(f"masks in which no pixel counts: {len(report['masks_without_a_class'])}")
    for fault in faults[:LISTED]:
        print(f"fault: {fault['file']}: {fault['reason']}")
    more = f" ({len(faults) - LISTED} not shown)" if len(faults) > LISTED else ""
    print(f"{len(faults)} faults{more}; wrote {path}")
    return len(faults)


if __name__ == "__main__":
    cli.run(main, parse_args)
