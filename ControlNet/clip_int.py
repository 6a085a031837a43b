"""Caption pictures by CLIP-interrogator's method, and leave weather, time of day and noise words out.

Reads:  the pictures of a data set (--dataset) or of a pattern (--images); or captions made before (--from_captions).
Writes: captions/captions_{dataset}.json, {dataset: {path: caption}}; with --jsonl the lines ControlNet/train.py reads;
        captions/{dataset}/manifest.jsonl, one line a picture with the unfiltered text; settings.json beside it, with
        what the filter dropped. Run again, it goes on where it stopped.

    python ControlNet/clip_int.py --dataset cityscapes --jsonl
"""

from __future__ import annotations

import argparse
import os
from typing import Any

from genval.runtime import cli
from genval.runtime.errors import GenValError
from genval.runtime.paths import resolve


def parse_args() -> argparse.Namespace:
    parser = cli.script_parser(__doc__, "ControlNet/clip_int")
    what = parser.add_argument_group("what is captioned")
    what.add_argument("--dataset", help="cityscapes, idd, acdc_{fog,night,rain,snow}, camvid, mini (path_dicts.py)")
    what.add_argument("--images", metavar="PATTERN", help="any pictures instead: 'folder/**/*.png', in quotes")
    what.add_argument("--from_captions", metavar="FILE", help="a .json or .jsonl of captions, only to be filtered")
    what.add_argument("--split", help="a split's folder (default: all with public labels)")
    what.add_argument("--datasets_dir", help="the folder of the data sets (default: datasets)")
    how = parser.add_argument_group("how")
    modes = "BLIP's sentence; with CLIP's phrases ranked once; with the best of each list; or added one by one"
    how.add_argument("--mode", default="fast", choices=["caption", "fast", "classic", "best"], help=modes)
    how.add_argument("--blip", default="Salesforce/blip-image-captioning-large", help="hub name or folder")
    how.add_argument("--clip", default="ViT-L-14/openai", help="open_clip name, hf-hub:NAME, or folder")
    how.add_argument("--max_tokens", type=cli.positive_int, default=32, help="length of BLIP's sentence")
    how.add_argument("--max_flavors", type=cli.positive_int, default=8, help="phrases added, in fast and best")
    how.add_argument("--candidates", type=cli.positive_int, default=96, help="flavours that best tries")
    how.add_argument("--flavors", metavar="FILE", help="phrases of your own, or a folder of CLIP-interrogator's lists")
    how.add_argument("--filter", metavar="FILE", help="what to leave out (default: genval/captions/phrases/filter.txt)")
    how.add_argument("--no_filter", action="store_true", help="leave nothing out")
    where = parser.add_argument_group("where it goes")
    where.add_argument("--output_dir", default="captions", help="folder of the captions")
    where.add_argument("--name", help="the set's name in the files (default: the data set, or images)")
    where.add_argument("--jsonl", nargs="?", const="", metavar="FILE", help="write training lines too")
    cli.add_bad_input_arguments(parser)
    cli.add_run_arguments(parser, seed=False)
    cli.add_device_arguments(parser)
    speed = parser.add_argument_group("speed")
    speed.add_argument("--batch_size", type=cli.positive_int, default=16, help="pictures a forward pass")
    workers = min(8, os.cpu_count() or 1)
    speed.add_argument("--num_workers", type=cli.positive_int, default=workers, help="threads that decode pictures")
    return cli.parse(parser)


def main(args: argparse.Namespace) -> None:
    from genval.captions.filter import DEFAULT_FILTER, CaptionFilter, read_phrases
    from genval.captions.sources import find_sources, match_sources
    from genval.datasets.items import BadFile

    given = [flag for flag in ("dataset", "images", "from_captions") if getattr(args, flag)]
    if len(given) != 1:
        raise GenValError("Give one of --dataset NAME, --images PATTERN and --from_captions FILE.")
    caption_filter = CaptionFilter([] if args.no_filter else read_phrases(resolve(args.filter or DEFAULT_FILTER)))
    if args.from_captions:
        filter_existing(args, caption_filter)
        return
    bad: list[BadFile] | None = [] if args.skip_bad else None
    sources = (
        match_sources(args.images) if args.images else find_sources(args.dataset, args.split, args.datasets_dir, bad)
    )[: args.limit]
    name = args.name or args.dataset or "images"
    if args.dry_run:
        print(f"Would caption {len(sources)} pictures, such as {sources[0].key}, in mode {args.mode}")
        return

    from genval.artifacts.manifest import Manifest
    from genval.artifacts.settings import write_settings
    from genval.captions.captioning import CaptionRun, gather, write_training_list
    from genval.captions.interrogator import InterrogatorConfig, load_interrogator
    from genval.datasets.captions import write_captions
    from genval.runtime.devices import launch_fabric, same_outcome

    config = InterrogatorConfig(args.mode, args.max_tokens, args.max_flavors, args.candidates)
    fabric = launch_fabric(args)
    folder = resolve(args.output_dir) / name
    unreadable: dict[str, str] | None = {} if args.skip_bad else None
    with same_outcome(fabric):
        if fabric.is_global_zero:
            Manifest(folder).merge()
        interrogator = load_interrogator(config, args.blip, args.clip, args.flavors, args.precision, fabric.device)
        record = interrogator.record
        run = CaptionRun(folder, interrogator, record, unreadable)
    with same_outcome(fabric):
        made = run.make(
            sources, args.batch_size, args.num_workers, fabric.global_rank, fabric.world_size, args.overwrite
        )
    unread = {
        key: why for rank in range(fabric.world_size) for key, why in fabric.broadcast(unreadable or {}, rank).items()
    }
    if not fabric.is_global_zero:
        return
    captions, report = gather(folder, sources, record, caption_filter)
    if not captions:
        raise GenValError("Every picture was set aside by --skip_bad: there is nothing to write.")
    output = folder.parent / f"captions_{name}.json"
    write_captions(output, name, captions)
    skipped = {**{file.file: file.reason for file in bad or []}, **unread}
    write_settings(folder, {**vars(args), **record, "filter_report": report, "skipped": skipped})
    if args.jsonl is not None:
        write_training_list(resolve(args.jsonl or output.with_suffix(".jsonl")), sources, captions)
    print_report(report, skipped)
    print(f"Wrote {len(captions)} captions ({made} new on this device) to {output}")


def filter_existing(args: argparse.Namespace, caption_filter: Any) -> None:
    """Filter a file of captions into the output folder, under its own name."""
    from genval.artifacts.settings import write_settings
    from genval.captions.captioning import refilter

    source = resolve(args.from_captions)
    output = resolve(args.output_dir) / (f"{args.name}{source.suffix}" if args.name else source.name)
    if output.exists() and not args.overwrite:
        raise GenValError(f"{output} exists. Give --overwrite to replace it, or another --output_dir or --name.")
    report = refilter(source, caption_filter, output)
    write_settings(output.parent / output.stem, {**vars(args), "filter_report": report})
    print_report(report, {})
    print(f"Wrote the filtered captions to {output}")


def print_report(report: dict[str, Any], skipped: dict[str, str]) -> None:
    for file, reason in skipped.items():
        print(f"skipped {file}: {reason}")
    if report["dropped"]:
        counts = ", ".join(f"{phrase} {count}" for phrase, count in report["dropped"].items())
        print(f"Dropped from {report['changed']} captions: {counts}")
    if report["emptied"]:
        print(f"{len(report['emptied'])} captions are empty without what was dropped, such as {report['emptied'][0]}'s")


if __name__ == "__main__":
    cli.run(main, parse_args)
