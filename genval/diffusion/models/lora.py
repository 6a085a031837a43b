"""LoRA: low-rank additions to a UNet's weights, for one's own images or for sampling in four to eight steps.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021; Luo et al., "LCM-LoRA", 2023.
The file is read by diffusers' loader, which knows the usual naming schemes. The product is added to the weights, so
sampling takes the same time as without a LoRA. For training, `peft` adds the matrices to the layers.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from genval.diffusion.original.keys import SAVE_DTYPES
from genval.runtime.errors import GenValError
from genval.runtime.files import replace_file
from genval.runtime.paths import resolve

WEIGHTS = "pytorch_lora_weights.safetensors"
_ADAPTER = "default"


def find_lora(name: str | Path | None) -> Path:
    """Return the safetensors file of a LoRA: the file itself, or `pytorch_lora_weights.safetensors` in a folder.

    Raises:
        GenValError: the name is None, or the file does not exist.
    """
    if name is None:
        raise GenValError(
            "--sampler lcm needs a base that was made for it: give --lora, for example a download of "
            "latent-consistency/lcm-lora-sdv1-5, with --steps 4 to 8 and --guidance_scale 1 to 2."
        )
    path = resolve(name)
    path = path / WEIGHTS if path.is_dir() else path
    if not path.is_file() or path.suffix != ".safetensors":
        raise GenValError(
            f"--lora: no LoRA at {path}: expected a .safetensors file or a folder with {WEIGHTS}. Fetch one made for "
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


class _Linear(torch.nn.Linear):
    """A linear layer whose float32 weights are trained in the dtype of its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class _Conv2d(torch.nn.Conv2d):
    """A convolution whose float32 weights are trained in the dtype of its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(x, self.weight.to(x.dtype), None)


def add_lora(unet: Any, rank: int, alpha: int, target_modules: Sequence[str], seed: int = 0) -> torch.nn.ParameterDict:
    """Add a LoRA to layers of a frozen UNet. Its outputs are those of the UNet before training.

    Args:
        unet: diffusers' UNet2DConditionModel, changed in place. Its own weights stay frozen.
        rank: of the matrices.
        alpha: the product of the matrices is scaled by alpha / rank.
        target_modules: ends of the names of linear layers and convolutions, such as "to_q".
        seed: of the random initialisation.

    Returns:
        The float32 parameters of the LoRA, by name with `/` for `.`: they are trained and saved apart from the UNet.

    Raises:
        GenValError: a name is not the end of the name of a linear layer or convolution.
    """
    from peft import LoraConfig

    layers = {name for name, module in unet.named_modules() if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d))}
    for target in target_modules:
        if not any(name == target or name.endswith(f".{target}") for name in layers):
            raise GenValError(
                f"--target_modules: the base's UNet has no linear layer or convolution whose name ends in {target!r}. "
                "Give names such as to_q, to_k, to_v, to_out.0, ff.net.2, proj_in, conv1 or conv2."
            )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet.add_adapter(
            LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(target_modules), init_lora_weights="gaussian"),
            _ADAPTER,
        )
    for module in unet.modules():
        if hasattr(module, "lora_A"):
            # peft computes in the dtype of these weights, float32, which is slow next to a base of 16 bits.
            module.cast_input_dtype_enabled = False
            for half in (module.lora_A[_ADAPTER], module.lora_B[_ADAPTER]):
                half.float().__class__ = _Linear if isinstance(half, torch.nn.Linear) else _Conv2d
    return torch.nn.ParameterDict(_parameters(unet))


def merged_unet(unet: Any, weights: torch.nn.ParameterDict) -> Any:
    """Return a copy of a UNet with a LoRA of `add_lora` added to its weights, as `fuse_lora` adds it from a file.

    Args:
        unet: with the LoRA.
        weights: the parameters of the LoRA to take, for example averaged ones.
    """
    merged = copy.deepcopy(unet)
    with torch.no_grad():
        for name, parameter in _parameters(merged).items():
            parameter.copy_(weights[name])
    merged.fuse_lora(adapter_names=[_ADAPTER])
    merged.unload_lora()
    return merged


def save_lora(unet: Any, weights: torch.nn.ParameterDict, folder: str | Path, dtype: str = "fp32") -> None:
    """Write `pytorch_lora_weights.safetensors`, which `fuse_lora` and diffusers' `load_lora_weights` read.

    The scale alpha / rank is multiplied into the second matrix, so readers that do not know alpha scale correctly too.

    Args:
        unet: with the LoRA of `add_lora`.
        weights: its parameters.
        folder: that the file is written to.
        dtype: of the weights, "fp32" or "fp16".

    Raises:
        GenValError: the folder cannot be written.
    """
    from safetensors.torch import save_file

    scales = {name: module.scaling[_ADAPTER] for name, module in unet.named_modules() if hasattr(module, "lora_A")}
    state = {}
    for name, parameter in weights.items():
        key = name.replace("/", ".")
        layer, _, half = key.partition(".lora_")
        weight = parameter.detach() * (scales[layer] if half.startswith("B") else 1)
        # Contiguous: on a GPU the training may keep matrices of convolutions in another memory format.
        state[f"unet.{key.replace(f'.{_ADAPTER}.', '.')}"] = weight.to("cpu", SAVE_DTYPES[dtype]).contiguous()
    with replace_file(Path(folder) / WEIGHTS) as temporary:
        save_file(state, temporary, metadata={"format": "pt"})


def _parameters(unet: Any) -> dict[str, torch.nn.Parameter]:
    named = unet.named_parameters()
    return {name.replace(".", "/"): parameter for name, parameter in named if f".{_ADAPTER}." in name}
