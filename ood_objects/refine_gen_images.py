"""Make inserted objects blend in: each object's square is drawn over again, beginning with what is in it.

Reads:  --model, images/ood_objects/with_positions/{object}/{i}.png and {i}_pos.json
Writes: images/ood_objects/refined/{object}/{i}.png; manifest.jsonl, one line a picture; settings.json. A square with
        some context is drawn and put back with a soft seam; all other pixels stay as they are. --whole_frame draws the
        whole frame, as published: its background then changes too.

    python ood_objects/refine_gen_images.py --objects lion,elephant

Run again, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import os

from genval.runtime import cli
from genval.runtime.paths import resolve

# What decides about the pictures: every line of the manifest says these, and pictures of others are not gone on with.
SAME = (
    *("model_hash", "whole_frame", "context", "feather", "size", "precision"),
    *("sampler", "steps", "guidance_scale", "strength", "negative_prompt"),
)
SDXL = "diffusers/stable-diffusion-xl-1.0-inpainting-0.1"


def parse_args() -> argparse.Namespace:
    parser = cli.script_parser(__doc__, "ood_objects/refine_gen_images")
    what = parser.add_argument_group("what to refine")
    what.add_argument("--images_dir", default="images/ood_objects/with_positions", help="pictures and boxes")
    what.add_argument("--objects", type=cli.comma_list, help="only these, by name or folder (default: all there are)")
    what.add_argument("--prompt_template", default="{object}", help="may have {article}, which is 'a' or 'an'")
    what.add_argument("--negative_prompt", default="", help="what guidance leads away from")
    crop = parser.add_argument_group("how much of the frame is drawn")
    crop.add_argument("--whole_frame", action="store_true", help="all of it, at its own size, as published")
    crop.add_argument("--context", type=float, default=1.5, help="side of the crop, as a multiple of the box's")
    crop.add_argument("--feather", type=float, default=0.125, help="width of the seam, as a share of the box's side")
    crop.add_argument("--size", type=cli.positive_int, help="side of what is drawn (default: 512; --sdxl: 1024)")
    model = parser.add_argument_group("model")
    model.add_argument("--model", help="inpainting model: hub name, folder or original .ckpt (default: 1.5's)")
    model.add_argument("--sdxl", action="store_true", help="Stable Diffusion XL's inpainting model, 1024 pixels")
    model.add_argument("--sampler", choices=["ddim", "dpm++", "unipc"], default="ddim", help="dpm++, unipc: 15 steps")
    model.add_argument("--steps", type=cli.positive_int, default=50, help="of which strength x steps are taken")
    model.add_argument("--guidance_scale", type=float, default=7.5, help="1 is off")
    model.add_argument("--strength", type=float, default=0.65, help="how much is drawn anew, above 0, up to 1")
    parser.add_argument("--output_dir", default="images/ood_objects/refined", help="folder of the pictures")
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
    from genval.datasets.ood_objects import find_object_pictures, frame_size
    from genval.diffusion.inpainting.model import DEFAULT_MODEL, InpaintingConfig, load_inpainting
    from genval.diffusion.inpainting.prompts import check_object_template
    from genval.diffusion.inpainting.stages import RefinementRun, check_folder, plan_refinements
    from genval.diffusion.models.pipelines import checkpoint_hash, find_base, locked_dtype
    from genval.diffusion.style_transfer import choose_compiling, default_batch_size
    from genval.runtime.devices import choose_precision, launch_fabric, same_outcome
    from genval.runtime.files import remove_leftovers

    args.model = args.model or (SDXL if args.sdxl else DEFAULT_MODEL)
    args.size = args.size or (1024 if args.sdxl else 512)
    config = InpaintingConfig(args.steps, args.guidance_scale, args.strength, args.sampler)
    check_object_template(args.prompt_template)
    images = resolve(args.images_dir)
    pictures = find_object_pictures(images, images, args.objects, maker="ood_objects/sd_inpaint.py")
    items = plan_refinements(pictures, args.prompt_template, args.seed)[: args.limit]
    folder = resolve(args.output_dir)
    model_hash = checkpoint_hash(find_base(args.model))
    if args.dry_run:
        print(f"Would refine {len(items)} pictures of {images} in {folder}, such as: {items[0].prompt}")
        return

    fabric = launch_fabric(args)
    args.precision = choose_precision(args.precision, fabric.device)
    settings = {**vars(args), "model_hash": model_hash}
    record = {"run_seed": args.seed, **{key: settings[key] for key in SAME}}
    with same_outcome(fabric):
        if fabric.is_global_zero:
            check_folder(folder, items, record, "refine_gen_images.py", args.overwrite)
            remove_leftovers(folder)
            Manifest(folder).merge()
            write_settings(folder, settings)
    model = load_inpainting(args.model, fabric.device, locked_dtype(args.precision))
    size = frame_size(pictures[0]) if args.whole_frame else (args.size, args.size)
    batch_size = args.batch_size or default_batch_size(fabric.device, *size)
    share = len(items) // fabric.world_size
    compiled = choose_compiling(args.compile, fabric.device, share, batch_size, *size, config.taken)
    shown = (args.size, args.context, args.feather, args.whole_frame, args.negative_prompt)
    refinement = RefinementRun(folder, model, config, record, *shown, compiled)
    ranks = (fabric.global_rank, fabric.world_size)
    with same_outcome(fabric):
        made = refinement.make(items, batch_size, args.num_workers, *ranks, args.overwrite)
    if fabric.is_global_zero:
        Manifest(folder).finish([item.id for item in items])
        note = f", {refinement.retried} drawn again" if refinement.retried else ""
        print(f"Wrote {len(items)} pictures ({made} new on this device{note}) and manifest.jsonl to {folder}")


if __name__ == "__main__":
    cli.run(main, parse_args)
