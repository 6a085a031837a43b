"""LoRA: low-rank additions to a UNet's weights, for example for sampling in four to eight steps.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021; Luo et al., "LCM-LoRA", 2023.
The file is read by diffusers' loader, which knows the usual naming schemes. The product is added to the weights, so
sampling takes the same time as without a LoRA.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from genval.runtime.errors import GenValError
from genval.runtime.paths import resolve

_WEIGHTS = "pytorch_lora_weights.safetensors"


def find_lora(name: str | Path | None) -> Path:
    """Return the safetensors file of a LoRA: the file itself, or `pytorch_lora_weights.safetensors` in a folder.

    Raises:
        GenValError: the name is None, or the file does not exist.
    """
    if name is None:
        raise GenValError(
            "--sampler lcm needs a base that was made for it: give --lora, for example a download of "
            "latent-consistency/lcm-lora-sdv1-5, with --ddim_steps 4 to 8 and --guidance_scale 1 to 2."
        )
    path = resolve(name)
    path = path / _WEIGHTS if path.is_dir() else path
    if not path.is_file() or path.suffix != ".safetensors":
        raise GenValError(
            f"--lora: no LoRA at {path}: expected a .safetensors file or a folder with {_WEIGHTS}. Fetch one made for "
            "your base, for example latent-consistency/lcm-lora-sdv1-5."
        )
    return path


@torch.no_grad()
def fuse_lora(unet: Any, name: str | Path) -> int:
    """Add a LoRA to a UNet's weights: W + (alpha / rank) up down, computed in float32.

    Args:
        unet: diffusers' UNet2DConditionModel, changed in place.
        name: as for `find_lora`. Keys in diffusers', PEFT's or kohya's naming.

    Returns:
        The number of changed layers.

    Raises:
        GenValError: the file is damaged, is for another model or another base, or has only one of a layer's matrices.
    """
    from diffusers.loaders import StableDiffusionLoraLoaderMixin
    from diffusers.utils import convert_unet_state_dict_to_peft

    file = find_lora(name)
    try:
        state, alphas = StableDiffusionLoraLoaderMixin.lora_state_dict(str(file), unet_config=unet.config)
    except Exception as error:  # OSError, SafetensorError, ValueError of an unknown scheme: one message for the user
        raise GenValError(f"--lora: {file} cannot be read ({' '.join(str(error).split())[:200]}).") from error
    others = sorted({key.partition(".")[0] for key in state if not key.startswith("unet.")})
    if others:
        raise GenValError(f"--lora: {file} changes {', '.join(others)}: expected one for the UNet alone.")
    weights = convert_unet_state_dict_to_peft({key.removeprefix("unet."): value for key, value in state.items()})
    # The key of an alpha is the name of its layer, or of the layer's first matrix.
    named = {key.removeprefix("unet.").removesuffix(".alpha"): float(value) for key, value in (alphas or {}).items()}
    alphas = {key.partition(".lora_")[0]: value for key, value in convert_unet_state_dict_to_peft(named).items()}
    modules = dict(unet.named_modules())
    names = sorted({key.partition(".lora_")[0] for key in weights})
    for module_name in names:
        pair = [weights.get(f"{module_name}.lora_{half}.weight") for half in "AB"]
        module = modules.get(module_name)
        if module is None or pair[0] is None or pair[1] is None:
            raise GenValError(
                f"--lora: {file} does not fit the base's UNet at {module_name}. Give one made for this base."
            )
        down, up = (half.to(module.weight.device, torch.float32) for half in pair)
        product = (up.flatten(1) @ down.flatten(1)) * (alphas.get(module_name, len(down)) / len(down))
        if product.numel() != module.weight.numel() or len(product) != len(module.weight):
            raise GenValError(
                f"--lora: {file} has {tuple(product.shape)} at {module_name}, where the base's UNet has "
                f"{tuple(module.weight.shape)}. Give one made for this base."
            )
        module.weight.copy_(module.weight.float() + product.reshape(module.weight.shape))
    return len(names)
