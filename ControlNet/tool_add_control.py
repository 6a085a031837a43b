"""Make the untrained ControlNet of a Stable Diffusion model: its encoder copied, joined by zero convolutions.

Reads:  IN, a Stable Diffusion model (diffusers folder or Hugging Face name).
Writes: OUT, a ControlNet in diffusers' folder layout, to be trained by ControlNet/train.py.

    python ControlNet/tool_add_control.py stable-diffusion-v1-5/stable-diffusion-v1-5 checkpoints/control_seg
"""

from __future__ import annotations

import argparse

from genval.runtime.cli import parse, positive_int, run, script_parser, seed_number
from genval.runtime.errors import GenValError
from genval.runtime.paths import resolve


def parse_args() -> argparse.Namespace:
    parser = script_parser(__doc__, "ControlNet/tool_add_control")
    parser.add_argument("input", metavar="IN", help="the Stable Diffusion model to copy from")
    parser.add_argument("output", metavar="OUT", help="folder to write the ControlNet to")
    parser.add_argument("--conditioning_channels", type=positive_int, default=1, help="channels of the hint")
    parser.add_argument(
        "--hint_init",
        choices=["default", "hinges"],
        default="default",
        help="how the hint embedding starts: at random as published, or as steps between the class ids",
    )
    parser.add_argument("--seed", type=seed_number, default=0, help="of the random initialisation")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT")
    return parse(parser)


def main(args: argparse.Namespace) -> None:
    output = resolve(args.output)
    if output.exists() and not args.overwrite:
        raise GenValError(f"{output} exists. Give another OUT, or --overwrite.")

    from genval.diffusion.controlnet import add_control, save_controlnet
    from genval.diffusion.pipelines import load_base

    base = load_base(args.input)
    controlnet = add_control(base, args.conditioning_channels, args.hint_init, args.seed)
    save_controlnet(controlnet, output)
    count = sum(parameter.numel() for parameter in controlnet.parameters())
    print(f"Wrote an untrained ControlNet with {count / 1e6:.1f} million parameters to {output}")


if __name__ == "__main__":
    run(main, parse_args)
