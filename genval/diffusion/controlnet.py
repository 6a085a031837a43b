"""The ControlNet: a trainable copy of the denoiser's encoder, joined to it by convolutions that start at zero.

Zhang, Rao, Agrawala, "Adding Conditional Control to Text-to-Image Diffusion Models", ICCV 2023.
"""

from __future__ import annotations

import copy
import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from genval.diffusion.hints import check_encoding, init_hinges, record_encoding
from genval.diffusion.pipelines import StableDiffusion, find_model, load_strictly, move
from genval.runtime.errors import GenValError

_WEIGHTS = "diffusion_pytorch_model.safetensors"
_FILES = ("config.json", _WEIGHTS)
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
# The hint embedding of the published ControlNet, for a VAE that shrinks by 8: each later entry halves the hint once.
_EMBEDDING_CHANNELS = (16, 32, 96, 256)
# A ControlNet fits a UNet when these entries of their configs agree.
_SHARED = (
    "in_channels",
    "block_out_channels",
    "down_block_types",
    "layers_per_block",
    "cross_attention_dim",
    "attention_head_dim",
)


def add_control(
    base: StableDiffusion, conditioning_channels: int = 1, hint_init: str = "default", seed: int = 0
) -> Any:
    """A new ControlNet for `base`: its UNet's encoder copied, zero convolutions, a hint embedding for its VAE's factor.

    Args:
        conditioning_channels: channels of the hint; label masks have one.
        hint_init: "default" (the published random initialisation) or "hinges" (`genval.diffusion.hints.init_hinges`).
        seed: of the random initialisation.

    Returns:
        diffusers' ControlNetModel, float32. Before training it changes nothing: all its outputs are zero.

    Raises:
        GenValError: hinges for more than one channel.
    """
    from diffusers import ControlNetModel

    if hint_init == "hinges" and conditioning_channels != 1:
        raise GenValError(f"--hint_init hinges is for 1 hint channel, found {conditioning_channels}.")
    halvings = base.downscale.bit_length() - 1
    # Deeper VAEs than the published one repeat the last width.
    widths = _EMBEDDING_CHANNELS[: halvings + 1] + _EMBEDDING_CHANNELS[-1:] * (halvings + 1 - len(_EMBEDDING_CHANNELS))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        controlnet = ControlNetModel.from_unet(
            base.unet, conditioning_embedding_out_channels=widths, conditioning_channels=conditioning_channels
        )
    if hint_init == "hinges":
        init_hinges(controlnet.controlnet_cond_embedding.conv_in)
    if conditioning_channels == 1:
        record_encoding(controlnet)
    return controlnet.float().requires_grad_(True)


def load_controlnet(name: str | Path, base: StableDiffusion) -> Any:
    """Load a ControlNet for label masks from a diffusers folder or Hugging Face name, float32 on the CPU.

    Raises:
        GenValError: a file is missing or damaged, keys or shapes differ from its config, it reads other hints, or it
            does not fit `base`.
    """
    from diffusers import ControlNetModel

    folder = find_controlnet(name)
    controlnet = load_strictly(ControlNetModel, folder, _WEIGHTS)
    check_encoding(controlnet, folder)
    check_fits(controlnet, base, folder)
    return controlnet.float()


def find_controlnet(name: str | Path) -> Path:
    """The folder of a ControlNet with its config and weights; GenValError where there is none."""
    return find_model(name, _FILES)


def check_fits(controlnet: Any, base: StableDiffusion, source: object) -> None:
    """Refuse a ControlNet made for another base.

    Raises:
        GenValError: with the entries of the two configs that differ.
    """
    differing = [
        f"{key} {_plain(controlnet.config[key])} instead of {_plain(base.unet.config[key])}"
        for key in _SHARED
        if _plain(controlnet.config[key]) != _plain(base.unet.config[key])
    ]
    factor = 2 ** (len(controlnet.config.conditioning_embedding_out_channels) - 1)
    if factor != base.downscale:
        differing.append(f"hints shrunk by {factor} instead of the VAE's {base.downscale}")
    if differing:
        raise GenValError(
            f"The ControlNet {source} does not fit the base {base.folder}: {'; '.join(differing)}. "
            "Give the base it was trained with."
        )


def check_writable(folder: str | Path) -> None:
    """Try to write into a folder, before hours of training are put into it; nothing is left there.

    Raises:
        GenValError: the folder cannot be made or written.
    """
    folder = Path(folder)
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryDirectory(prefix=".part-", dir=folder).cleanup()
        if is_new:
            folder.rmdir()
    except OSError as error:
        raise _not_writable(folder, error) from error


def save_controlnet(controlnet: Any, folder: str | Path, dtype: str = "fp32") -> None:
    """Write a ControlNet as a diffusers folder: safetensors, then config.json, each whole or not at all.

    Args:
        dtype: of the weights, "fp32" or "fp16".

    Raises:
        GenValError: the folder cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".part-", dir=folder) as temporary:
            move(copy.deepcopy(controlnet), "cpu", _DTYPES[dtype]).save_pretrained(temporary)
            # The config comes last: a folder with a config is complete.
            for file in (_WEIGHTS, "config.json"):
                os.replace(Path(temporary) / file, folder / file)
    except OSError as error:
        raise _not_writable(folder, error) from error


def _not_writable(folder: str | Path, error: OSError) -> GenValError:
    return GenValError(f"Cannot write {folder}: {error.strerror or error}. Free disk space, or choose another folder.")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value
