"""Render the embedded world's data sets: streets with labels and captions, laid out like the real sets.

Reads:  nothing.
Writes: --out, with cityscapes/ (clear), acdc/ (fog, night, rain, snow), IDD_Segmentation/ (india), a caption of every
        picture in captions/captions_{set}.json, the captioned clear pairs in training/{train,val}.jsonl, and the
        training pictures of every domain in training/diffusion.jsonl, where the caption names the weather too.
        The domain objects (not rendered unless named) is dataset_AnomalyTrack/, laid out as SegmentMeIfYouCan's
        RoadAnomaly21: --num_val clear streets with objects on them. --training_objects writes more of these, with what
        is needed to learn from them, below training/objects/, listed in training/objects.jsonl.
        Pictures that exist are kept, so that the same command goes on after a stop.

    python mini/render.py --num_train 2000 --num_val 200
"""

from __future__ import annotations

import argparse
import os

from genval.runtime.cli import comma_list, parse, positive_int, run, script_parser
from genval.runtime.errors import GenValError
from genval.runtime.paths import resolve
from mini.world.dataset import (
    CONDITIONS,
    OBJECTS,
    SPLITS,
    Target,
    check_size,
    plan,
    read_captions,
    render_all,
    write_captions,
    write_training_lists,
)
from mini.world.object_sets import render_test_set, render_training_set


def parse_args() -> argparse.Namespace:
    parser = script_parser(__doc__, "mini/render")
    parser.add_argument("--out", default="datasets/mini", help="folder for the data sets")
    parser.add_argument("--num_train", type=count, default=2000, help="training pictures a domain")
    parser.add_argument("--num_val", type=count, default=200, help="validation pictures a domain")
    parser.add_argument("--height", type=positive_int, default=256, help="pixels")
    parser.add_argument("--width", type=positive_int, default=512, help="pixels, twice the height")
    parser.add_argument("--domains", type=comma_list, default=list(CONDITIONS), help="separated by commas")
    parser.add_argument("--training_objects", type=count, default=0, help="training pictures with an object or none")
    parser.add_argument("--workers", type=positive_int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--overwrite", action="store_true", help="render existing pictures again")
    return parse(parser)


def count(text: str) -> int:
    """An argparse type: a whole number, zero included."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected a whole number, found {text}")
    return value


def main(args: argparse.Namespace) -> None:
    unknown = sorted(set(args.domains) - {*CONDITIONS, OBJECTS})
    if unknown:
        raise GenValError(f"--domains: {', '.join(unknown)} is none of {', '.join((*CONDITIONS, OBJECTS))}.")
    if args.width != 2 * args.height:
        raise GenValError(f"--width must be twice --height, found {args.width} and {args.height}.")

    from genval.runtime.files import write_json

    target = Target(resolve(args.out), args.height, args.width, args.overwrite)
    check_size(target)
    counts = {"train": args.num_train, "val": args.num_val}
    domains = [domain for domain in args.domains if domain != OBJECTS]
    jobs = [job for domain in domains for split in SPLITS for job in plan(domain, split, counts[split])]
    # The size is written first: a killed run leaves pictures of one size, and the next one must know which.
    write_json(target.out / "derived.json", {"made_by": "mini/render.py", "height": args.height, "width": args.width})

    captions = read_captions(target.out, domains)
    missing = [
        job
        for job in jobs
        if args.overwrite
        or job.image not in captions
        or not all((target.out / path).exists() for path in (job.image, job.mask))
    ]
    new, written = render_all(missing, target, args.workers)
    captions |= new
    write_captions(target.out, domains, captions)
    write_training_lists(target.out)
    asked = len(jobs) + args.training_objects
    if OBJECTS in args.domains:
        asked += args.num_val
        written += render_test_set(args.num_val, target, args.workers)
    if args.training_objects:
        written += render_training_set(args.training_objects, target, args.workers)
    print(f"Rendered {written} pictures, kept {asked - written}, in {target.out}: {', '.join(args.domains)}")


if __name__ == "__main__":
    run(main, parse_args)
