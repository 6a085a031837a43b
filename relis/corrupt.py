"""Corrupt clear streets with an augmentation library's fog, rain, snow and darkness, as a baseline for generation.

Reads:  datasets/cityscapes (or another --src_dataset): images and masks
Writes: {output_dir}/{domain}/{leftImg8bit,gtFine}/{split}/{city}/, manifest.jsonl, settings.json; to be
        evaluated by relis/eval.py --trg_dataset Cityscapes_corrupt_{domain}

    python relis/corrupt.py --domains fog,rain,snow,night

Run the same command again to resume. There is no corruption for india: no corruption represents another country.
"""

from __future__ import annotations

import sys

try:
    from genval.evaluation.settings import CorruptionSettings
    from genval.runtime import cli
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed in this environment. Run: make install")


def main(settings: CorruptionSettings) -> None:
    from genval.datasets import BadFile, find_items
    from genval.datasets.corruptions import check
    from genval.datasets.items import openable
    from genval.datasets.reading import check_ids
    from genval.evaluation.corruptions import corrupt_set
    from genval.runtime.paths import resolve

    for domain in settings.domains:
        check(domain, settings.severity)
    bad: list[BadFile] = []
    skipped = bad if settings.skip_bad else None
    found = find_items(settings.src_dataset, split=settings.split, datasets_dir=settings.datasets_dir, skipped=skipped)
    check_ids(found)
    items = found[: settings.run.limit]
    for domain in settings.domains:
        folder = resolve(settings.output_dir) / domain
        if settings.run.dry_run:
            print(f"{domain}: {len(items)} images to {folder}, {len(bad)} bad files")
            continue
        if skipped is not None:  # files may vanish while another domain is made
            items = openable(items, bad)
        report = corrupt_set(settings, items, domain, folder)
        reasons = {bad_file.file: bad_file.reason for bad_file in bad}
        reasons |= {str(one.item.image): one.reason for one in report.skipped}
        for file, reason in reasons.items():
            print(f"skipped {file}: {reason}")
        others = f"the others existed, skipped {len(reasons)} bad files" if reasons else "the others existed"
        print(f"{domain}: corrupted {report.written} of {len(items)} images, {others}; wrote to {folder}")


if __name__ == "__main__":
    cli.run(main, CorruptionSettings, __doc__)
