"""Outline generated objects: GroundingDINO finds the object by its name, Segment Anything gives its mask.

Reads:  images/ood_objects/refined/{object}/{i}.png and images/ood_objects/with_positions/{object}/{i}_pos.json
Writes: images/ood_objects/masks/{object}/{i}_mask.png (0 and 255, the whole frame), or {i}_mask.txt with the reason
        where nothing was found; manifest.jsonl, one line a picture: all detections, the chosen one, and how good the
        mask is; settings.json. With --curate: {object}/sheet.png and curated.json, for a person to choose in.

    python ood_objects/get_masks.py --detector groundingdino_swint_ogc.pth --sam sam_vit_h_4b8939.pth

Run again, it goes on where it stopped. The mask is that of the surest detection that names the object.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

from genval.runtime import cli
from genval.runtime.paths import resolve


def parse_args() -> argparse.Namespace:
    parser = cli.script_parser(__doc__, "ood_objects/get_masks")
    where = parser.add_argument_group("where things are")
    where.add_argument("--images_dir", default="images/ood_objects/refined", help="pictures, {object}/{i}.png")
    where.add_argument("--positions_dir", default="images/ood_objects/with_positions", help="their boxes")
    where.add_argument("--output_dir", default="images/ood_objects/masks", help="folder of the masks")
    where.add_argument("--objects", type=cli.comma_list, help="only these, by name or folder (default: all there are)")
    models = parser.add_argument_group("models: a hub name, a folder, or a .pth file of the original format")
    models.add_argument("--detector", default="IDEA-Research/grounding-dino-tiny", help="GroundingDINO")
    models.add_argument("--tokenizer", default="bert-base-uncased", help="BERT's, which a .pth file does not hold")
    models.add_argument("--sam", default="facebook/sam-vit-huge", help="Segment Anything, the first or the second")
    models.add_argument(
        "--clip", default="ViT-L-14/openai", help="judges the objects (ControlNet/clip_int.py); or none"
    )
    rules = parser.add_argument_group("what counts")
    rules.add_argument("--box_threshold", type=float, default=0.25, help="score of a detection")
    rules.add_argument("--text_threshold", type=float, default=0.25, help="probability of a token that counts as meant")
    rules.add_argument("--nms_threshold", type=float, default=0.8, help="overlap of two detections of one thing")
    rules.add_argument("--margin", type=float, default=0.0, help="context around the box, as a share of its side")
    rules.add_argument("--curate", action="store_true", help="write contact sheets and curated.json")
    cli.add_run_arguments(parser, seed=False)
    cli.add_device_arguments(parser)
    speed = parser.add_argument_group("speed")
    speed.add_argument("--batch_size", type=cli.positive_int, default=8, help="pictures a forward pass")
    workers = min(8, os.cpu_count() or 1)
    speed.add_argument("--num_workers", type=cli.positive_int, default=workers, help="threads that decode pictures")
    return cli.parse(parser)


def main(args: argparse.Namespace) -> None:
    from genval.datasets.ood_objects import find_object_pictures

    pictures = find_object_pictures(resolve(args.images_dir), resolve(args.positions_dir), args.objects)[: args.limit]
    if args.dry_run:
        objects = dict.fromkeys(picture.object for picture in pictures)
        print(f"Would outline {len(pictures)} objects: {', '.join(objects)}")
        return

    from genval.artifacts.manifest import Manifest
    from genval.artifacts.settings import write_settings
    from genval.grounding.curation import update_choices, write_sheets
    from genval.runtime.devices import launch_fabric, same_outcome
    from genval.runtime.files import remove_leftovers

    fabric = launch_fabric(args)
    folder = resolve(args.output_dir)
    with same_outcome(fabric):
        if fabric.is_global_zero:
            remove_leftovers(folder)
            Manifest(folder).merge()
        run = load_run(args, fabric.device)
    with same_outcome(fabric):
        made = run.make(
            pictures, args.batch_size, args.num_workers, fabric.global_rank, fabric.world_size, args.overwrite
        )
    if not fabric.is_global_zero:
        return
    manifest = Manifest(folder)
    manifest.finish([picture.id for picture in pictures])
    lines = {picture.id: manifest.records[picture.id] for picture in pictures}
    write_settings(folder, {**vars(args), **run.record})
    found = sum(line["mask"] is not None for line in lines.values())
    if args.curate:
        sheets = write_sheets(folder, pictures, lines, update_choices(folder, manifest.records))
        print(f"Wrote {len(sheets)} contact sheets; say true or false in {folder / 'curated.json'}")
    print(
        f"Wrote {found} masks to {folder} ({made} pictures new on this device); {len(lines) - found} without an object"
    )


def load_run(args: argparse.Namespace, device: Any) -> Any:
    """The models on a device, and what every line says of them."""
    from genval.captions.clip import load_clip
    from genval.grounding.detector import load_detector
    from genval.grounding.masks import MaskRun, Thresholds
    from genval.grounding.outliner import load_outliner
    from genval.grounding.similarity import Similarity

    thresholds = Thresholds(args.box_threshold, args.text_threshold, args.nms_threshold)
    detector = load_detector(args.detector, args.tokenizer, args.precision).to(device)
    outliner = load_outliner(args.sam, args.precision).to(device)
    similarity = None if args.clip == "none" else Similarity(load_clip(args.clip).to(device))
    record = {
        "detector_hash": detector.hash,
        "sam_hash": outliner.hash,
        "clip_hash": similarity.hash if similarity else None,
        "box_threshold": thresholds.box,
        "text_threshold": thresholds.text,
        "nms_threshold": thresholds.nms,
        "margin": args.margin,
        "precision": args.precision,
    }
    return MaskRun(resolve(args.output_dir), detector, outliner, thresholds, record, args.margin, similarity)


if __name__ == "__main__":
    cli.run(main, parse_args)
