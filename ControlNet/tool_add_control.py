"""Make the untrained ControlNet of a Stable Diffusion model: its encoder copied, joined by zero convolutions.

Reads:  IN, a Stable Diffusion 1.x or XL model: diffusers folder, Hugging Face name, or .ckpt or .safetensors of the
        original format.
Writes: OUT, to be trained by ControlNet/train.py: a ControlNet in diffusers' folder layout or, where OUT ends in .ckpt
        or .safetensors, one file of the original format with base and ControlNet. With --controlnet a trained
        ControlNet is written in place of a new one, which brings it from either format into the other.

    python ControlNet/tool_add_control.py stable-diffusion-v1-5/stable-diffusion-v1-5 checkpoints/control_seg
    python ControlNet/tool_add_control.py models/v1-5-pruned.ckpt models/control_seg.ckpt
    python ControlNet/tool_add_control.py models/v1-5-pruned.ckpt mine.ckpt --controlnet checkpoints/controlnet_mine
"""

from __future__ import annotations

import argparse

from genval.runtime.cli import parse, run, script_parser, seed_number
from genval.runtime.errors import GenValError
from genval.runtime.paths import resolve


def parse_args() -> argparse.Namespace:
    parser = script_parser(__doc__, "ControlNet/tool_add_control")
    parser.add_argument("input", metavar="IN", help="the Stable Diffusion model to copy from")
    parser.add_argument("output", metavar="OUT", help="folder or .ckpt or .safetensors file to write")
    parser.add_argument(
        "--hint_encoding",
        choices=["label_id", "colour", "one_hot"],
        default="label_id",
        help="what the ControlNet reads: one channel of ids as published, three of colours, or one a class",
    )
    parser.add_argument(
        "--hint_labels", default="cityscapes", help="the masks' ids: cityscapes, idd, camvid, or a JSON file"
    )
    parser.add_argument(
        "--hint_init",
        choices=["default", "hinges"],
        default="default",
        help="how the hint embedding starts: at random as published, or as steps between the class ids",
    )
    parser.add_argument("--seed", type=seed_number, default=0, help="of the random initialisation")
    parser.add_argument("--controlnet", help="a trained ControlNet of IN, to write in place of a new one")
    parser.add_argument(
        "--export_original",
        action="store_true",
        help="write the original format, into OUT.ckpt where OUT does not end as such a file",
    )
    parser.add_argument("--save_dtype", choices=["fp32", "fp16"], default="fp32", help="of the weights in OUT")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT")
    return parse(parser)


def main(args: argparse.Namespace) -> None:
    from genval.diffusion.models.controlnet import add_control, load_controlnet, save_controlnet
    from genval.diffusion.models.hints import make_encoding
    from genval.diffusion.models.pipelines import load_base
    from genval.diffusion.original.checkpoints import is_original, save_original

    output = resolve(args.output)
    if args.export_original and not is_original(output):
        output = output.with_name(f"{output.name}.ckpt")
    if output.exists() and not args.overwrite:
        raise GenValError(f"{output} exists. Give another OUT, or --overwrite.")
    encoding = make_encoding(args.hint_encoding, args.hint_labels)
    base = load_base(args.input)
    if args.controlnet:
        controlnet, kind = load_controlnet(args.controlnet, base), "the"
    else:
        controlnet, kind = add_control(base, encoding, args.hint_init, args.seed), "an untrained"
    if is_original(output):
        save_original(base, controlnet, output, args.save_dtype)
        kind = f"the base and {kind}"
    else:
        save_controlnet(controlnet, output, args.save_dtype)
    count = sum(parameter.numel() for parameter in controlnet.parameters())
    print(f"Wrote {kind} ControlNet with {count / 1e6:.1f} million parameters to {output}")


if __name__ == "__main__":
    run(main, parse_args)
