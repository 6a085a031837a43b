"""Draw labelled Cityscapes streets in another domain: fog, night, rain, snow, India, or any text.

Reads:  --base and --controlnet, Cityscapes val (--data_dir) and captions of its images (--captions).
Writes: images/style_transfer/{domain}/{leftImg8bit,gtFine,original}/val/{city}/: the generated image, its mask and the
        real crop; manifest.jsonl, one line an image; settings.json. Run again, it goes on where it stopped.

    python ControlNet/style_transfer.py --domain fog --num_samples 512
"""

from __future__ import annotations

import argparse

from genval.runtime.cli import (
    add_bad_input_arguments,
    add_device_arguments,
    add_run_arguments,
    parse,
    positive_int,
    run,
    script_parser,
)
from genval.runtime.paths import resolve

# What decides about the pictures: a folder made with other values of these is not gone on with.
SAME = (
    *("base_hash", "controlnet_hash", "lora_hash", "frames_hash", "domain_text", "seed", "from_train"),
    *("without_replacement", "height", "width", "large", "tile", "upscale_strength", "precision"),
    *("sampler", "ddim_steps", "guidance_scale", "strength", "prompt_template", "negative_prompt"),
)


def parse_args() -> argparse.Namespace:
    parser = script_parser(__doc__, "ControlNet/style_transfer")
    what = parser.add_argument_group("what to draw")
    domain = what.add_mutually_exclusive_group(required=True)
    domain.add_argument("--domain", help="fog, night, rain, snow, india (path_dicts.DOMAINS), or words: 'thick smoke'")
    domain.add_argument("--prompt", help="words that are taken as they are, be they ever so close to a known domain")
    what.add_argument(
        "--prompt_file", help="a phrasing of the domain a line, such as 'in dense fog'; an item takes one"
    )
    what.add_argument("--num_samples", type=positive_int, default=512, help="images")
    what.add_argument("--without_replacement", action="store_true", help="draw each frame at most once")
    what.add_argument("--data_dir", help="Cityscapes' folder (default: its place in path_dicts.py)")
    what.add_argument("--from_train", action="store_true", help="draw masks from the training set")
    captions = what.add_mutually_exclusive_group()
    captions.add_argument("--captions", help=".jsonl of pairs or .json of clip_int.py (default: the published places)")
    captions.add_argument("--caption", help="one caption for every frame")
    captions.add_argument("--no_captions", action="store_const", const="", dest="caption", help="the domain alone")
    what.add_argument("--prompt_template", default="{caption}, {domain}", help="how a prompt is put together")
    what.add_argument("--negative_prompt", default="", help="what guidance leads away from")
    models = parser.add_argument_group("models")
    models.add_argument("--base", help="Stable Diffusion model (default: in the ControlNet's file, else 1.5)")
    models.add_argument("--controlnet", default="checkpoints/controlnet_cs", help="folder of train.py, or .ckpt file")
    models.add_argument(
        "--lora", help="a LoRA of the base's UNet, a file or folder; --sampler lcm needs one made for it"
    )
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument(
        "--sampler", choices=["ddim", "dpm++", "unipc", "lcm"], default="ddim", help="dpm++, unipc: 10 to 15 steps"
    )
    sampling.add_argument("--ddim_steps", type=positive_int, default=25, help="sampling steps, of any sampler")
    sampling.add_argument("--guidance_scale", type=float, default=8.0, help="1 is off")
    sampling.add_argument("--strength", type=float, default=1.0, help="of the ControlNet")
    size = parser.add_argument_group("size")
    size.add_argument("--frame", choices=["crop", "whole"], default="crop", help="whole: the width follows the height")
    size.add_argument("--height", type=positive_int, default=512, help="of the images, cut from the frames")
    size.add_argument("--width", type=positive_int, default=512, help="of the images")
    size.add_argument(
        "--large", choices=["direct", "tiled", "upscaled"], default="direct", help="how larger images are drawn"
    )
    size.add_argument("--tile", type=positive_int, default=512, help="side of a window, or of the small image")
    size.add_argument("--upscale_strength", type=float, default=0.4, help="how much is drawn anew when upscaled")
    parser.add_argument("--output_dir", default="images/style_transfer", help="the domain's folder is made in it")
    add_bad_input_arguments(parser)
    add_run_arguments(parser)
    add_device_arguments(parser, precision="auto")
    speed = parser.add_argument_group("speed")
    speed.add_argument("--batch_size", type=positive_int, help="images or windows at a time (default: 32 on a GPU)")
    speed.add_argument("--compile", choices=["auto", "on", "off"], default="auto", help="auto: on where it saves time")
    return parse(parser)


def main(args: argparse.Namespace) -> None:
    from genval.artifacts.manifest import Manifest
    from genval.datasets.items import BadFile, find_items
    from genval.datasets.layouts import find_root
    from genval.datasets.reading import readable
    from genval.diffusion.models.controlnet import default_base, find_controlnet, load_controlnet
    from genval.diffusion.models.hints import check_labels, read_encoding
    from genval.diffusion.models.lora import find_lora, fuse_lora
    from genval.diffusion.models.pipelines import checkpoint_hash, find_base, load_base, locked_dtype, move
    from genval.diffusion.prompts import find_captions, find_domain
    from genval.diffusion.sampling.generation import SamplingConfig
    from genval.diffusion.style_transfer import (
        TransferRun,
        caption_frames,
        choose_compiling,
        default_batch_size,
        draw_transfers,
        fit_prompts,
        frames_hash,
        prepare_folder,
        whole_width,
    )
    from genval.runtime.devices import choose_precision, launch_fabric, same_outcome

    domain = find_domain(args.domain, args.prompt, args.prompt_file)
    sampling = (args.ddim_steps, args.guidance_scale, args.strength, args.sampler)
    config = SamplingConfig(*sampling, args.large, args.tile, args.upscale_strength)
    split = "train" if args.from_train else "val"
    data_dir = find_root("Cityscapes", args.data_dir, flag="--data_dir")
    # The embedded world's captions lie beside its Cityscapes folder, the published ones in it or in ControlNet/.
    captions_of = (
        find_captions(args.captions, split, data_dir, data_dir.parent) if args.caption is None else args.caption
    )
    bad: list[BadFile] | None = [] if args.skip_bad else None
    items = find_items("Cityscapes", split=split, root=data_dir, set_aside=bad)
    items = items if bad is None else readable(items, bad)
    items, captions = caption_frames(items, captions_of, bad)
    drawn = (items, captions, domain, args.num_samples, args.seed, args.prompt_template, not args.without_replacement)
    transfers = draw_transfers(*drawn)[: args.limit]
    args.width = whole_width(items[0], args.height) if args.frame == "whole" else args.width
    folder = resolve(args.output_dir) / domain.name
    args.base = args.base or str(default_base(args.controlnet))
    hashes = {
        "base_hash": checkpoint_hash(find_base(args.base)),
        "controlnet_hash": checkpoint_hash(find_controlnet(args.controlnet)),
        "lora_hash": checkpoint_hash(find_lora(args.lora)) if args.lora or args.sampler == "lcm" else None,
    }
    if args.dry_run:
        print(f"Would draw {len(transfers)} images of {len(items)} frames in {folder}, such as: {transfers[0].prompt}")
        return

    fabric = launch_fabric(args)
    args.precision = choose_precision(args.precision, fabric.device)
    dtype = locked_dtype(args.precision)
    for file in (bad or []) if fabric.is_global_zero else ():
        print(f"skipped {file.file}: {file.reason}")
    base = load_base(args.base, fabric.device, dtype)
    controlnet = move(load_controlnet(args.controlnet, base), fabric.device, dtype).eval()
    check_labels(read_encoding(controlnet, args.controlnet), items[0].label_space, args.controlnet)
    fitting = fit_prompts(transfers, captions, domain, args.prompt_template, base.reads_whole)
    cut = sum(one != other for one, other in zip(transfers, fitting, strict=True))
    if args.lora:
        fuse_lora(base.unet, args.lora)
    settings = {
        **vars(args),
        **hashes,
        "domain_text": " | ".join(domain.texts),
        "frames_hash": frames_hash(items, captions),
    }
    # An item's own seed is in its line as "seed".
    record = {"run_seed" if key == "seed" else key: settings[key] for key in SAME}
    size = (args.height, args.width)
    batch_size = args.batch_size or default_batch_size(fabric.device, *size)
    share = len(transfers) // fabric.world_size
    compiled = choose_compiling(args.compile, fabric.device, share, batch_size, *size, args.ddim_steps)
    transfer_run = TransferRun(folder, base, controlnet, config, *size, args.negative_prompt, record, compiled)
    with same_outcome(fabric):
        if fabric.is_global_zero:
            prepare_folder(folder, settings, SAME, args.overwrite)
    with same_outcome(fabric):
        made = transfer_run.make(fitting, batch_size, fabric.global_rank, fabric.world_size)
    if fabric.is_global_zero:
        Manifest(folder).finish([transfer.id for transfer in transfers])
        note = f", {transfer_run.retried} drawn again" if transfer_run.retried else ""
        note += f", {len(bad)} bad files set aside" if bad else ""
        note += f", {cut} captions cut to what the base reads" if cut else ""
        print(f"Wrote {len(transfers)} images ({made} new on this device{note}) and manifest.jsonl to {folder}")


if __name__ == "__main__":
    run(main, parse_args)
