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

import sys

try:
    from genval.diffusion.settings import AddControlSettings
    from genval.runtime import cli
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed in this environment. Run: make install")


def main(settings: AddControlSettings) -> None:
    from genval.diffusion.models.controlnet import add_control, load_controlnet, save_controlnet
    from genval.diffusion.models.hints import make_encoding
    from genval.diffusion.models.pipelines import load_base
    from genval.diffusion.original.reading import is_original
    from genval.diffusion.original.writing import save_original
    from genval.runtime.errors import GenValError
    from genval.runtime.paths import resolve

    output = resolve(settings.output)
    if settings.export_original and not is_original(output):
        output = output.with_name(f"{output.name}.ckpt")
    if output.exists() and not settings.overwrite:
        raise GenValError(f"{output} exists. Give another OUTPUT, or --overwrite.")
    encoding = make_encoding(settings.hint_encoding, settings.hint_labels)
    base = load_base(settings.input)
    if settings.controlnet:
        controlnet, kind = load_controlnet(settings.controlnet, base), "the"
    else:
        controlnet, kind = (
            add_control(base, encoding, settings.hint_init, settings.seed, settings.hint_widths),
            "an untrained",
        )
    if is_original(output):
        save_original(base, controlnet, output, settings.save_dtype)
        kind = f"the base and {kind}"
    else:
        save_controlnet(controlnet, output, settings.save_dtype)
    count = sum(parameter.numel() for parameter in controlnet.parameters())
    print(f"Wrote {kind} ControlNet with {count / 1e6:.1f} million parameters to {output}")


if __name__ == "__main__":
    cli.run(main, AddControlSettings, __doc__)
