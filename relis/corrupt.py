"""Change clear streets without a generative model, as a baseline for generation.

By default an augmentation library adds fog, rain, snow and darkness. --method histogram and --method fourier transfer
the appearance of unlabelled images of the domain.

Reads:  datasets/cityscapes (or another --src_dataset): images and masks; --reference images of the other methods
Writes: {output_dir}/{domain}/{leftImg8bit,gtFine}/{split}/{city}/, manifest.jsonl, settings.json; to be
        evaluated by relis/eval.py --trg_dataset Cityscapes_corrupt_{domain} (Cityscapes_{method}_{domain})

    python relis/corrupt.py --domains fog,rain,snow,night
    python relis/corrupt.py --method histogram --domains fog,night --reference fog=PATH,night=PATH

Run the same command again to resume. There is no corruption for india: no corruption represents another country.
"""

from __future__ import annotations

import sys
from pathlib import Path

try:
    from genval.evaluation.settings import CorruptionSettings
    from genval.runtime import cli
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed in this environment. Run: make install")


def main(settings: CorruptionSettings) -> None:
    from genval.datasets import BadFile, find_items
    from genval.datasets.appearance import find_references, parse_references
    from genval.datasets.corruptions import check
    from genval.datasets.items import openable
    from genval.datasets.reading import check_ids, readable_images
    from genval.evaluation.corruptions import corrupt_set, sets_folder
    from genval.runtime.paths import inside

    bad: list[BadFile] = []
    skipped = bad if settings.skip_bad else None
    references: dict[str, list[Path]] = {}
    if settings.method == "corruption":
        for domain in settings.domains:
            check(domain, settings.severity)
    else:
        places = parse_references(settings.reference, settings.domains)
        references = {domain: find_references(place) for domain, place in places.items()}
        if skipped is not None:
            references = {
                domain: readable_images(files, domain, skipped, settings.num_workers)
                for domain, files in references.items()
            }
    found = find_items(settings.src_dataset, split=settings.split, datasets_dir=settings.datasets_dir, skipped=skipped)
    check_ids(found)
    items = found[: settings.run.limit]
    done = "corrupted" if settings.method == "corruption" else "changed"
    for domain in settings.domains:
        folder = inside(sets_folder(settings), domain, "--domains")
        chosen = references.get(domain, [])
        if settings.run.dry_run:
            like = f", like {len(chosen)} reference images" if chosen else ""
            print(f"{domain}: {len(items)} images to {folder}{like}, {len(bad)} bad files")
            continue
        if skipped is not None:  # files may vanish while another domain is made
            items = openable(items, bad)
        report = corrupt_set(settings, items, domain, folder, chosen)
        reasons = {bad_file.file: bad_file.reason for bad_file in bad}
        reasons |= {str(one.item.image): one.reason for one in report.skipped}
        for file, reason in reasons.items():
            print(f"skipped {file}: {reason}")
        existed = len(items) - report.written - len(report.skipped)
        others = f"{existed} existed, skipped {len(reasons)} bad files" if reasons else f"{existed} existed"
        print(f"{domain}: {done} {report.written} of {len(items)} images, {others}; wrote to {folder}")


if __name__ == "__main__":
    cli.run(main, CorruptionSettings, __doc__)
