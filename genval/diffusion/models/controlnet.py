"""The ControlNet: a trainable copy of the UNet's encoder, connected to the UNet by zero convolutions.

Zhang, Rao, Agrawala, "Adding Conditional Control to Text-to-Image Diffusion Models", ICCV 2023.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from genval.diffusion.models.hints import (
    CITYSCAPES_IDS,
    ENCODING_KEY,
    HintEncoding,
    init_hinges,
    read_encoding,
    record_encoding,
)
from genval.diffusion.models.pipelines import StableDiffusion, find_file, find_model, load_strictly, move
from genval.diffusion.original.keys import SAVE_DTYPES
from genval.diffusion.original.reading import open_original
from genval.runtime.errors import GenValError
from genval.runtime.files import temporary_folder

_WEIGHTS = "diffusion_pytorch_model.safetensors"
_FILES = ("config.json", _WEIGHTS)
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
    "transformer_layers_per_block",
    "addition_embed_type",
    "projection_class_embeddings_input_dim",
)
DEFAULT_BASE = "stable-diffusion-v1-5/stable-diffusion-v1-5"


def add_control(
    base: StableDiffusion,
    encoding: HintEncoding = CITYSCAPES_IDS,
    hint_init: str = "default",
    seed: int = 0,
    hint_widths: Sequence[int] = (),
) -> Any:
    """Make an untrained ControlNet for `base`: a copy of its UNet's encoder, zero convolutions and a hint embedding.

    Args:
        base: the Stable Diffusion model.
        encoding: how masks are encoded as hints; it sets the hint's channels and is saved in the config.
        hint_init: "default" (random, as published) or "hinges" (`genval.diffusion.models.hints.init_hinges`).
        seed: of the random initialisation.
        hint_widths: channels of the hint embedding at each resolution, from the image's to the latents'; empty for the
            published ones. Narrow ones suit a small base, in whose ControlNet the published embedding is most of the
            computation.

    Returns:
        diffusers' ControlNetModel, float32. Its outputs are zero before training.

    Raises:
        GenValError: hinges with another encoding than label_id, or another number of widths than of resolutions.
    """
    from diffusers import ControlNetModel

    halvings = base.downscale.bit_length() - 1
    # For VAEs deeper than the published one, the last width is repeated.
    widths = _EMBEDDING_CHANNELS[: halvings + 1] + _EMBEDDING_CHANNELS[-1:] * (halvings + 1 - len(_EMBEDDING_CHANNELS))
    if hint_widths and len(hint_widths) != len(widths):
        raise GenValError(
            f"--hint_widths: expected {len(widths)} numbers for a VAE that shrinks by {base.downscale}, found "
            f"{len(hint_widths)}."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        controlnet = ControlNetModel.from_unet(
            base.unet,
            conditioning_embedding_out_channels=tuple(hint_widths) or widths,
            conditioning_channels=encoding.channels,
        )
    if hint_init == "hinges":
        init_hinges(controlnet.controlnet_cond_embedding.conv_in, encoding)
    record_encoding(controlnet, encoding)
    return controlnet.float().requires_grad_(True)


def load_controlnet(
    name: str | Path,
    base: StableDiffusion,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Any:
    """Load a ControlNet for label masks.

    Args:
        name: a diffusers folder, a file of the original format (`controlnet_cs.ckpt`, with or without a base in it) or
            a Hugging Face name.
        base: the Stable Diffusion model that it will be used with.
        device, dtype: of the weights.

    Raises:
        GenValError: a file is missing or damaged, keys or shapes differ from its config, it has no known hint encoding,
            or it does not fit `base`.
    """
    from diffusers import ControlNetModel

    path = find_controlnet(name)
    if path.is_file():
        controlnet = open_original(path).load_controlnet(device, dtype)
        # Files of the original format do not record the encoding; one channel means the published one.
        if ENCODING_KEY not in controlnet.config and controlnet.config.conditioning_channels == 1:
            record_encoding(controlnet)
    else:
        controlnet = load_strictly(ControlNetModel, path, _WEIGHTS, device, dtype)
    read_encoding(controlnet, path)
    check_fits(controlnet, base, path)
    return controlnet


def find_controlnet(name: str | Path) -> Path:
    """Return the folder of a ControlNet with config and weights, or its file; GenValError if there is none."""
    return find_file(name) or find_model(name, _FILES)


def default_base(controlnet: str | Path) -> str | Path:
    """Return the default base of a ControlNet: the base in its own file, or Stable Diffusion 1.5."""
    path = find_controlnet(controlnet)
    return path if path.is_file() and open_original(path).has_base else DEFAULT_BASE


def check_fits(controlnet: Any, base: StableDiffusion, source: object) -> None:
    """Check that a ControlNet was made for a base.

    Args:
        controlnet: diffusers' ControlNetModel.
        base: the Stable Diffusion model.
        source: the ControlNet's name in errors.

    Raises:
        GenValError: entries of the two configs differ; the message lists them.
    """
    levels = len(base.unet.config.block_out_channels)
    pairs = {key: [_comparable(model.config.get(key), levels) for model in (controlnet, base.unet)] for key in _SHARED}
    differing = [f"{key} {ours} instead of {theirs}" for key, (ours, theirs) in pairs.items() if ours != theirs]
    factor = 2 ** (len(controlnet.config.conditioning_embedding_out_channels) - 1)
    if factor != base.downscale:
        differing.append(f"hints shrunk by {factor} instead of the VAE's {base.downscale}")
    if differing:
        raise GenValError(
            f"The ControlNet {source} does not fit the base {base.folder}: {'; '.join(differing)}. "
            "Give the base it was trained with."
        )


def save_controlnet(controlnet: Any, folder: str | Path, dtype: str = "fp32") -> None:
    """Write a ControlNet as a diffusers folder: safetensors, then config.json, each replaced atomically.

    Args:
        dtype: of the weights, "fp32" or "fp16".

    Raises:
        GenValError: the folder cannot be written.
    """
    folder = Path(folder)
    try:
        with temporary_folder(folder) as temporary:
            move(copy.deepcopy(controlnet), "cpu", SAVE_DTYPES[dtype]).save_pretrained(temporary)
            # safetensors makes files that only their owner can read.
            (temporary / _WEIGHTS).chmod((temporary / "config.json").stat().st_mode)
            # The config is written last, so a folder with a config is complete.
            for file in (_WEIGHTS, "config.json"):
                os.replace(temporary / file, folder / file)
    except OSError as error:
        raise _not_writable(folder, error) from error


def _not_writable(folder: str | Path, error: OSError) -> GenValError:
    return GenValError(f"Cannot write {folder}: {error.strerror or error}. Free disk space, or choose another folder.")


def _comparable(value: Any, levels: int) -> Any:
    """Return an entry of a config for comparison: a list of equal values for all levels becomes one value."""
    plain = list(value) if isinstance(value, (list, tuple)) else value
    return plain[0] if isinstance(plain, list) and len(plain) == levels and len(set(map(str, plain))) == 1 else plain
