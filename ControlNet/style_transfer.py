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
    *(
        "base_hash",
        "controlnet_hash",
        "frames_hash",
        "domain_text",
        "seed",
        "from_train",
        "height",
        "width",
        "precision",
    ),
    *("sampler", "ddim_steps", "guidance_scale", "strength", "prompt_template", "negative_prompt"),
)


def parse_args() -> argparse.Namespace:
    parser = script_parser(__doc__, "ControlNet/style_transfer")
    what = parser.add_argument_group("what to draw")
    domain = what.add_mutually_exclusive_group(required=True)
    domain.add_argument("--domain", help="a name from path_dicts.DOMAINS: fog, night, rain, snow, india")
    domain.add_argument("--prompt", help="any other domain in words: 'dense fog' ends the prompts in 'in dense fog'")
    what.add_argument("--num_samples", type=positive_int, default=512, help="images, of masks drawn with replacement")
    what.add_argument("--data_dir", help="Cityscapes' folder (default: its place in path_dicts.py)")
    what.add_argument("--from_train", action="store_true", help="draw masks from the training set")
    what.add_argument("--captions", help="captioned pairs (default: training/{split}.jsonl in DATA_DIR or ControlNet/)")
    what.add_argument("--prompt_template", default="{caption}, {domain}", help="how a prompt is put together")
    what.add_argument("--negative_prompt", default="", help="what guidance leads away from")
    models = parser.add_argument_group("models")
    models.add_argument("--base", default="stable-diffusion-v1-5/stable-diffusion-v1-5", help="Stable Diffusion model")
    models.add_argument("--controlnet", default="checkpoints/controlnet_cs", help="made by ControlNet/train.py")
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument("--sampler", choices=["ddim", "dpm++"], default="ddim", help="dpm++ needs fewer steps")
    sampling.add_argument("--ddim_steps", type=positive_int, default=25, help="sampling steps, of either sampler")
    sampling.add_argument("--guidance_scale", type=float, default=8.0, help="1 is off")
    sampling.add_argument("--strength", type=float, default=1.0, help="of the ControlNet")
    sampling.add_argument("--height", type=positive_int, default=512, help="of the images, cut from the frames")
    sampling.add_argument("--width", type=positive_int, default=512, help="of the images")
    sampling.add_argument("--batch_size", type=positive_int, default=4, help="images at a time on a device")
    parser.add_argument("--output_dir", default="images/style_transfer", help="the domain's folder is made in it")
    add_bad_input_arguments(parser)
    add_run_arguments(parser)
    add_device_arguments(parser)
    return parse(parser)


def main(args: argparse.Namespace) -> None:
    from genval.artifacts.manifest import Manifest
    from genval.datasets.items import BadFile, find_items
    from genval.datasets.layouts import find_root
    from genval.datasets.reading import readable
    from genval.diffusion.controlnet import find_controlnet, load_controlnet
    from genval.diffusion.pairs import find_jsonl
    from genval.diffusion.pipelines import checkpoint_hash, find_base, load_base, locked_dtype, move
    from genval.diffusion.sampling import SamplingConfig
    from genval.diffusion.transfer import (
        TransferRun,
        draw_transfers,
        find_domain,
        frames_hash,
        prepare_folder,
        read_captions,
    )
    from genval.runtime.devices import launch_fabric, same_outcome

    domain = find_domain(args.domain, args.prompt)
    config = SamplingConfig(args.ddim_steps, args.guidance_scale, args.strength, args.sampler)
    split = "train" if args.from_train else "val"
    data_dir = find_root("Cityscapes", args.data_dir, flag="--data_dir")
    # The embedded world's captions lie beside its Cityscapes folder, the published ones in it or in ControlNet/.
    captions = read_captions(find_jsonl(args.captions or f"training/{split}.jsonl", data_dir, data_dir.parent))
    bad: list[BadFile] | None = [] if args.skip_bad else None
    items = find_items("Cityscapes", split=split, root=data_dir, set_aside=bad)
    items = items if bad is None else readable(items, bad)
    transfers = draw_transfers(items, captions, domain, args.num_samples, args.seed, args.prompt_template)[: args.limit]
    folder = resolve(args.output_dir) / domain.name
    hashes = {
        "base_hash": checkpoint_hash(find_base(args.base)),
        "controlnet_hash": checkpoint_hash(find_controlnet(args.controlnet)),
    }
    if args.dry_run:
        print(f"Would draw {len(transfers)} images of {len(items)} frames in {folder}, such as: {transfers[0].prompt}")
        return

    fabric, dtype = launch_fabric(args), locked_dtype(args.precision)
    for file in (bad or []) if fabric.is_global_zero else ():
        print(f"skipped {file.file}: {file.reason}")
    base = load_base(args.base, fabric.device, dtype)
    controlnet = move(load_controlnet(args.controlnet, base), fabric.device, dtype).eval()
    settings = {**vars(args), **hashes, "domain_text": domain.text, "frames_hash": frames_hash(items, captions)}
    # An item's own seed is in its line as "seed".
    record = {"run_seed" if key == "seed" else key: settings[key] for key in SAME}
    transfer_run = TransferRun(folder, base, controlnet, config, args.height, args.width, args.negative_prompt, record)
    with same_outcome(fabric):
        if fabric.is_global_zero:
            prepare_folder(folder, settings, SAME, args.overwrite)
    with same_outcome(fabric):
        made = transfer_run.make(transfers, args.batch_size, fabric.global_rank, fabric.world_size)
    if fabric.is_global_zero:
        Manifest(folder).finish([transfer.id for transfer in transfers])
        note = f", {transfer_run.retried} drawn again" if transfer_run.retried else ""
        note += f", {len(bad)} bad files set aside" if bad else ""
        print(f"Wrote {len(transfers)} images ({made} new on this device{note}) and manifest.jsonl to {folder}")


if __name__ == "__main__":
    run(main, parse_args)
