"""Put objects that have no class into real streets: Stable Diffusion inpainting draws each in a square of a frame.

Reads:  --model, Cityscapes val (--data_dir) and a list of objects (--objects_file, or --objects)
Writes: images/ood_objects/with_positions/{object}/: {i}.png, the frame with the object; {i}_gt.png, its labelIds;
        {i}_pos.json, the row, column and side of the square. manifest.jsonl, one line a picture; settings.json.

    python ood_objects/sd_inpaint.py --objects lion,elephant --num_images 16

Run again, it goes on where it stopped. An object whose name is not safe as a folder's gets a made-up one; the manifest
has the name.
"""

from __future__ import annotations

import argparse
import os

from genval.runtime import cli
from genval.runtime.paths import resolve

# What decides about the pictures: every line of the manifest says these, and pictures of others are not gone on with.
SAME = (
    *("model_hash", "frames_hash", "placement_rule", "min_box", "max_box", "context", "size", "precision"),
    *("sampler", "steps", "guidance_scale", "strength", "negative_prompt"),
)
SDXL = "diffusers/stable-diffusion-xl-1.0-inpainting-0.1"


def parse_args() -> argparse.Namespace:
    parser = cli.script_parser(__doc__, "ood_objects/sd_inpaint")
    what = parser.add_argument_group("what to draw")
    what.add_argument("--objects", type=cli.comma_list, help="names, in place of the list's")
    what.add_argument("--objects_file", default="ood_objects/objects.txt", help="a list, one object a line")
    what.add_argument("--num_images", type=cli.positive_int, default=512, help="images an object")
    what.add_argument("--data_dir", help="Cityscapes' folder (default: its place in path_dicts.py)")
    what.add_argument("--from_train", action="store_true", help="draw into frames of the training set")
    what.add_argument("--prompt_template", default="A photo of {article} {object}", help="{article} is 'a' or 'an'")
    what.add_argument("--negative_prompt", default="", help="what guidance leads away from")
    where = parser.add_argument_group("where to draw it; sizes are for frames of 1024 rows and follow the frame's")
    where.add_argument(
        "--placement",
        choices=["published", "road"],
        default="published",
        help="published: anywhere below a quarter; road: standing on road or sidewalk, smaller the farther away",
    )
    where.add_argument("--min_box", type=cli.positive_int, help="smallest side (default: 256; road: 96)")
    where.add_argument("--max_box", type=cli.positive_int, default=512, help="largest side")
    where.add_argument("--context", type=float, default=1.5, help="what the model sees, as a multiple of the side")
    model = parser.add_argument_group("model")
    model.add_argument("--model", help="inpainting model: hub name, folder or original .ckpt (default: 1.5's)")
    model.add_argument("--sdxl", action="store_true", help="Stable Diffusion XL's inpainting model, 1024 pixels")
    model.add_argument("--sampler", choices=["ddim", "dpm++", "unipc"], default="ddim", help="dpm++, unipc: 15 steps")
    model.add_argument("--steps", type=cli.positive_int, default=50, help="sampling steps")
    model.add_argument("--guidance_scale", type=float, default=15.0, help="1 is off")
    model.add_argument("--strength", type=float, default=1.0, help="below 1 what was there shines through")
    model.add_argument("--size", type=cli.positive_int, help="side of what is drawn (default: 512; --sdxl: 1024)")
    parser.add_argument("--output_dir", default="images/ood_objects/with_positions", help="folder of the pictures")
    cli.add_bad_input_arguments(parser)
    cli.add_run_arguments(parser)
    cli.add_device_arguments(parser, precision="auto")
    speed = parser.add_argument_group("speed")
    speed.add_argument("--batch_size", type=cli.positive_int, help="images at a time (default: 32 on a GPU)")
    speed.add_argument("--compile", choices=["auto", "on", "off"], default="auto", help="auto: on where it saves time")
    workers = min(8, os.cpu_count() or 1)
    speed.add_argument("--num_workers", type=cli.positive_int, default=workers, help="threads for files")
    return cli.parse(parser)


def main(args: argparse.Namespace) -> None:
    from genval.artifacts.manifest import Manifest
    from genval.artifacts.settings import write_settings
    from genval.datasets.items import BadFile, find_items
    from genval.datasets.layouts import find_root
    from genval.datasets.ood_objects import read_objects
    from genval.datasets.placement import PlacementConfig
    from genval.datasets.reading import readable
    from genval.diffusion.inpainting.model import DEFAULT_MODEL, InpaintingConfig, load_inpainting
    from genval.diffusion.inpainting.prompts import check_object_template
    from genval.diffusion.inpainting.stages import ObjectRun, check_folder, plan_objects
    from genval.diffusion.models.pipelines import checkpoint_hash, find_base, locked_dtype
    from genval.diffusion.style_transfer import choose_compiling, default_batch_size, frames_hash
    from genval.runtime.devices import choose_precision, launch_fabric, same_outcome
    from genval.runtime.files import remove_leftovers

    args.model = args.model or (SDXL if args.sdxl else DEFAULT_MODEL)
    args.size = args.size or (1024 if args.sdxl else 512)
    args.min_box = args.min_box or (96 if args.placement == "road" else 256)
    config = InpaintingConfig(args.steps, args.guidance_scale, args.strength, args.sampler)
    placement = PlacementConfig(args.placement, args.min_box, args.max_box, args.context)
    check_object_template(args.prompt_template)
    bad: list[BadFile] | None = [] if args.skip_bad else None
    data_dir = find_root("Cityscapes", args.data_dir, flag="--data_dir")
    frames = find_items("Cityscapes", split="train" if args.from_train else "val", root=data_dir, set_aside=bad)
    frames = frames if bad is None else readable(frames, bad)
    objects = args.objects or read_objects(resolve(args.objects_file))
    items = plan_objects(objects, args.num_images, args.prompt_template, args.seed)[: args.limit]
    folder = resolve(args.output_dir)
    hashes = {"model_hash": checkpoint_hash(find_base(args.model)), "frames_hash": frames_hash(frames, {})}
    if args.dry_run:
        print(f"Would draw {len(items)} pictures of {len(objects)} objects in {folder}, such as: {items[0].prompt}")
        return

    fabric = launch_fabric(args)
    args.precision = choose_precision(args.precision, fabric.device)
    for file in (bad or []) if fabric.is_global_zero else ():
        print(f"skipped {file.file}: {file.reason}")
    settings = {**vars(args), **hashes, "placement_rule": args.placement}
    record = {"run_seed": args.seed, **{key: settings[key] for key in SAME}}
    with same_outcome(fabric):
        if fabric.is_global_zero:
            check_folder(folder, items, record, "sd_inpaint.py", args.overwrite)
            remove_leftovers(folder)
            Manifest(folder).merge()
            write_settings(folder, settings)
    model = load_inpainting(args.model, fabric.device, locked_dtype(args.precision))
    batch_size = args.batch_size or default_batch_size(fabric.device, args.size, args.size)
    share = len(items) // fabric.world_size
    size = (args.size, args.size)
    compiled = choose_compiling(args.compile, fabric.device, share, batch_size, *size, config.taken)
    shown = (frames, placement, args.size, args.negative_prompt)
    objects_run = ObjectRun(folder, model, config, record, *shown, compiled)
    ranks = (fabric.global_rank, fabric.world_size)
    with same_outcome(fabric):
        made = objects_run.make(items, batch_size, args.num_workers, *ranks, args.overwrite)
    if fabric.is_global_zero:
        Manifest(folder).finish([item.id for item in items])
        note = f", {objects_run.retried} drawn again" if objects_run.retried else ""
        note += f", {len(bad)} bad files set aside" if bad else ""
        print(f"Wrote {len(items)} pictures ({made} new on this device{note}) and manifest.jsonl to {folder}")


if __name__ == "__main__":
    cli.run(main, parse_args)
