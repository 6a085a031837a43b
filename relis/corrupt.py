"""Corrupt clear streets with an augmentation library's fog, rain, snow and darkness: the baseline of generation.

Reads:  datasets/cityscapes (or another --src_dataset): images and masks
Writes: {output_dir}/{domain}/{leftImg8bit,gtFine}/{split}/{city}/, manifest.jsonl, settings.json; evaluated as
        relis/eval.py --trg_dataset Cityscapes_corrupt_{domain}

    python relis/corrupt.py --domain fog,rain,snow,night

Run again, it goes on where it was. There is none for india: no corruption stands for another country.
"""

from __future__ import annotations

import argparse

from genval.runtime import cli


def parse_args() -> argparse.Namespace:
    parser = cli.script_parser(__doc__, "relis/corrupt")
    parser.add_argument("--domain", type=cli.comma_list, default="fog,rain,snow,night", help="what to corrupt with")
    parser.add_argument("--severity", type=int, default=3, help="1 to 5, as of ImageNet-C")
    parser.add_argument("--src_dataset", default="Cityscapes", help="the clear set; its masks must be of labelIds")
    parser.add_argument("--split", help="a split's folder, or all; by default the data set's usual one")
    parser.add_argument("--datasets_dir", default="datasets", help="the folder of the data sets")
    parser.add_argument("--output_dir", default="images/corrupted", help="where the corrupted sets are saved")
    cli.add_run_arguments(parser)
    return cli.parse(parser)


def main(args: argparse.Namespace) -> None:
    from genval.datasets import find_items
    from genval.datasets.corruptions import check
    from genval.evaluation.corruptions import corrupt_set
    from genval.runtime.paths import resolve

    for domain in args.domain:
        check(domain, args.severity)
    items = find_items(args.src_dataset, split=args.split, datasets_dir=args.datasets_dir)[: args.limit]
    for domain in args.domain:
        folder = resolve(args.output_dir) / domain
        if args.dry_run:
            print(f"{domain}: {len(items)} images to {folder}")
            continue
        made = corrupt_set(args, items, domain, folder)
        print(f"{domain}: made {made} of {len(items)} images, the others were there; wrote {args.output_dir}/{domain}")


if __name__ == "__main__":
    cli.run(main, parse_args)
