"""Check a data set before an evaluation: missing partners, unreadable files, sizes and ids.

Reads:  datasets/ or images/style_transfer/, every image and mask
Writes: {output_dir}/{trg_dataset}.json (pairs, scenes, sizes, pixels of each id and class, faults)

    python relis/check_dataset.py --trg_dataset ACDC --split all

Exit status: 0 if there are no faults, 1 if there are faults, 2 if the data set is missing.
"""

from __future__ import annotations

import sys

try:
    from genval.datasets.settings import CheckSettings
    from genval.runtime import cli
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed in this environment. Run: make install")

LISTED = 10


def main(settings: CheckSettings) -> None:
    faults = sum(check(settings, dataset) for dataset in settings.trg_dataset)
    sys.exit(1 if faults else 0)


def check(settings: CheckSettings, dataset: str) -> int:
    """Check one data set, write its report and print its contents. Return the number of faults."""
    from genval.datasets import BadFile, find_items, label_space_of
    from genval.datasets.checking import check_items
    from genval.results.scenes import folder_name
    from genval.runtime.files import write_json
    from genval.runtime.flags import flatten
    from genval.runtime.paths import resolve
    from genval.runtime.progress import progress_bar

    unpaired: list[BadFile] = []
    items = find_items(
        dataset,
        settings.cond,
        settings.scene,
        split=settings.split,
        root=settings.trg_root,
        datasets_dir=settings.datasets_dir,
        generated_dir=settings.generated_dir,
        skipped=unpaired,
    )
    with progress_bar(len(items), f"checking {dataset}", unit="pair") as bar:
        report = check_items(items, unpaired, settings.num_workers, bar.update)
    faults = report["faults"]
    path = resolve(settings.output_dir) / f"{folder_name(dataset)}.json"
    write_json(path, {"dataset": dataset, "settings": flatten(settings), **report})

    sizes = ", ".join(f"{count} of {size}" for size, count in report["sizes"].items())
    space = label_space_of(dataset)
    missing = [space.names[i] for i in space.classes if not report["classes"][space.names[i]]["pixels"]]
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
    cli.run(main, CheckSettings, __doc__)
