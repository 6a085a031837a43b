"""Corrupt clear streets with an augmentation library's fog, rain, snow and darkness, as a baseline for generation.

Reads:  datasets/cityscapes (or another --src_dataset): images and masks
Writes: {output_dir}/{domain}/{leftImg8bit,gtFine}/{split}/{city}/, manifest.jsonl, settings.json; to be
        evaluated by relis/eval.py --trg_dataset Cityscapes_corrupt_{domain}

    python relis/corrupt.py --domains fog,rain,snow,night

Run the same command again to resume. There is no corruption for india: none represents another country.
"""

from __future__ import annotations

import sys

try:
    from genval.evaluation.settings import CorruptionSettings
    from genval.runtime import cli
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed in this environment. Run: make install")


def main(settings: CorruptionSettings) -> None:
    from genval.datasets import find_items
    from genval.datasets.corruptions import check
    from genval.evaluation.corruptions import corrupt_set
    from genval.runtime.paths import resolve

    for domain in settings.domains:
        check(domain, settings.severity)
    items = find_items(settings.src_dataset, split=settings.split, datasets_dir=settings.datasets_dir)[
        : settings.run.limit
    ]
    for domain in settings.domains:
        folder = resolve(settings.output_dir) / domain
        if settings.run.dry_run:
            print(f"{domain}: {len(items)} images to {folder}")
            continue
        made = corrupt_set(settings, items, domain, folder)
        print(f"{domain}: corrupted {made} of {len(items)} images, the others existed; wrote {folder}")


if __name__ == "__main__":
    cli.run(main, CorruptionSettings, __doc__)
