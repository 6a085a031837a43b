"""Judge generated images: does each show its mask and its domain, and is it a picture of its own?

Reads:  a folder of ControlNet/style_transfer.py, or of the released data; a reference segmenter; with --clip a CLIP
        model.
Writes: into the folder: "scores" of each image in manifest.jsonl (scores.jsonl where there is no manifest), scores.png
        (histograms), and gate.json, the kept and the dropped images with reasons: `relis/eval.py --gate` heeds it.
        Run again, it goes on where it stopped; other thresholds need no new scores.

    python ControlNet/check_generated.py --domain fog --segmenter SegFormer-B5 --clip ViT-L-14/openai
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

import path_dicts
from genval.runtime import cli
from genval.runtime.errors import GenValError
from genval.runtime.paths import resolve

if TYPE_CHECKING:
    from genval.evaluation.scoring import Phrases


def parse_args() -> argparse.Namespace:
    parser = cli.script_parser(__doc__, "ControlNet/check_generated")
    what = parser.add_argument_group("what is judged")
    where = what.add_mutually_exclusive_group(required=True)
    where.add_argument("--domain", help="a folder below --generated_dir: fog, night, ...")
    where.add_argument("--folder", help="any folder with leftImg8bit/ and gtFine/")
    what.add_argument("--generated_dir", default=path_dicts.GENERATED_ROOT, help="the folder of the generated sets")
    models = parser.add_argument_group("models")
    models.add_argument(
        "--segmenter", default="SegFormer-B5", help="the reference; better none that is evaluated later"
    )
    models.add_argument("--clip", help="a CLIP model: name or folder; without it the domain is not judged")
    models.add_argument("--domain_phrase", help="what the domain is in words (default: as the images were made)")
    models.add_argument("--clear_phrase", default=path_dicts.DOMAINS["clear"], help="what it is compared with")
    models.add_argument("--clip_template", default="a street {phrase}", help="the text around either phrase")
    limits = parser.add_argument_group("thresholds")
    limits.add_argument("--min_of_median", type=float, default=0.6, help="agreement, as a share of the set's median")
    limits.add_argument(
        "--min_agreement", type=float, default=0.0, help="agreement: mIoU, as a share of the original's"
    )
    limits.add_argument("--min_domain", type=float, default=0.5, help="probability of the domain's phrase")
    limits.add_argument("--min_bits", type=int, default=16, help="differing bits of 256 that make another picture")
    cli.add_bad_input_arguments(parser)
    cli.add_run_arguments(parser, seed=False)
    cli.add_device_arguments(parser)
    speed = parser.add_argument_group("speed")
    speed.add_argument(
        "--batch_size", type=cli.positive_int, default=4, help="images at a time, each with its original"
    )
    workers = min(8, os.cpu_count() or 1)
    speed.add_argument("--num_workers", type=cli.positive_int, default=workers, help="threads that decode images")
    return cli.parse(parser)


def main(args: argparse.Namespace) -> None:
    from genval.datasets import BadFile, find_items
    from genval.evaluation.image_scores import Thresholds

    folder = resolve(args.folder) if args.folder else resolve(args.generated_dir) / args.domain
    thresholds = Thresholds(args.min_of_median, args.min_agreement, args.min_domain, args.min_bits)
    bad: list[BadFile] | None = [] if args.skip_bad else None
    items = find_items(f"Cityscapes_{folder.name}", split="all", root=folder, set_aside=bad)[: args.limit]
    phrases = find_phrases(args, folder) if args.clip else None
    if args.dry_run:
        print(f"Would judge {len(items)} images of {folder}")
        return

    from genval.artifacts.manifest import Manifest
    from genval.datasets.gate import GATE, write_gate
    from genval.evaluation.image_scores import agreement_floor, draw_histograms, judge, summary
    from genval.evaluation.scoring import ScoringRun
    from genval.runtime.devices import launch_fabric, same_outcome
    from genval.runtime.files import remove_leftovers
    from genval.runtime.tables import markdown_table
    from genval.segmenters import load_segmenter

    fabric = launch_fabric(args)
    with same_outcome(fabric):
        if fabric.is_global_zero:
            remove_leftovers(folder)
            Manifest(folder, name="scores").merge()
    with same_outcome(fabric):
        segmenter = load_segmenter(args.segmenter, fabric.device, args.precision)
        clip = None
        if args.clip:
            from genval.captions.clip import load_clip

            clip = load_clip(args.clip, args.precision).to(fabric.device)
        share = (fabric.global_rank, fabric.world_size, args.overwrite)
        scoring = ScoringRun(folder, items, segmenter, args.precision, clip, phrases, *share)
        if fabric.is_global_zero:
            (folder / GATE).unlink(missing_ok=True)  # it would speak of earlier scores until the new one is there
    with same_outcome(fabric):
        made = scoring.score(args.batch_size, args.num_workers, fabric.device, bad)
    aside = [file for rank in range(fabric.world_size) for file in fabric.broadcast(bad or [], rank)]
    unreadable = {item.id: [f.reason for f in aside if f.id == item.id] for item in items}
    with same_outcome(fabric):
        if fabric.is_global_zero:
            scores = scoring.finish()
            reasons = judge(scores, thresholds) | {key: why for key, why in unreadable.items() if why}
            floor = dict([agreement_floor(scores.values(), thresholds)])
            about = {"thresholds": vars(thresholds), "floor": floor, "scored_with": scoring.about}
            kept, dropped = write_gate(folder, [item for item in items if item.id in reasons], reasons, about)
            title = f"{folder.name}: {kept} kept, {dropped} dropped"
            draw_histograms(folder / "scores.png", scores.values(), thresholds, title)
            print(markdown_table(*summary(scores.values()), digits=3))
            for item_id, why in reasons.items():
                print(*(f"dropped {item_id}: {reason}" for reason in why), sep="\n", end="\n" if why else "")
            print(f"Scored {made} images on this device; {title}. Wrote {GATE} and scores.png to {folder}")


def find_phrases(args: argparse.Namespace, folder: Path) -> Phrases:
    """The two texts CLIP compares an image with."""
    from genval.artifacts.manifest import Manifest
    from genval.evaluation.scoring import Phrases

    recorded = (record["domain_text"] for record in Manifest(folder).records.values() if "domain_text" in record)
    domain = args.domain_phrase or next(recorded, path_dicts.DOMAINS.get(folder.name))
    if domain is None:
        raise GenValError(f"What is {folder.name} in words? Its manifest has no domain_text: give --domain_phrase.")
    if "{phrase}" not in args.clip_template:
        raise GenValError(f"--clip_template: expected a text with {{phrase}}, found {args.clip_template!r}.")
    return Phrases(*(args.clip_template.replace("{phrase}", text) for text in (domain, args.clear_phrase)))


if __name__ == "__main__":
    cli.run(main, parse_args)
