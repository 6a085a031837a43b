"""Inpainting with a Stable Diffusion inpainting model: load it, save it, and inpaint the masked part of images.

The UNet of such a model has nine input channels: the noisy latents, the mask and the latents of the masked image
(Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", CVPR 2022, section 4.5, and the
published Stable Diffusion inpainting weights). The loop is that of diffusers' StableDiffusionInpaintPipeline (tests
compare the two), with the differences of `genval.diffusion.sampling.generation`. Images are encoded by the posterior's
mean, not by a sample.
"""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from genval.diffusion.models.pipelines import SHARED_PARTS, StableDiffusion, load_base, move
from genval.diffusion.original.keys import SAVE_DTYPES
from genval.diffusion.sampling.denoiser import Denoiser
from genval.diffusion.sampling.generation import (
    Generated,
    Sampled,
    check_pixels,
    item_noise,
    make_scheduler,
    prepare_vae,
    sample_with_retries,
    set_steps,
)
from genval.diffusion.settings import INPAINTING_MODEL, InpaintingConfig
from genval.runtime.devices import to_device
from genval.runtime.errors import GenValError
from genval.runtime.files import temporary_folder, write_json


@dataclasses.dataclass(frozen=True)
class InpaintingBatch:
    """The inputs of a batch.

    Attributes:
        images: RGB uint8 (B, H, W, 3); the masked pixels are used only if the denoising strength is below 1.
        masks: bool (B, H, W), true at the pixels to inpaint.
        prompts, negative_prompts, seeds: one per item.
    """

    images: np.ndarray
    masks: np.ndarray
    prompts: Sequence[str]
    negative_prompts: Sequence[str]
    seeds: Sequence[int]

    def __len__(self) -> int:
        return len(self.seeds)

    def rows(self, chosen: Sequence[int]) -> InpaintingBatch:
        """Return the items with the given numbers; a number may occur several times."""
        return InpaintingBatch(
            self.images[list(chosen)],
            self.masks[list(chosen)],
            [self.prompts[i] for i in chosen],
            [self.negative_prompts[i] for i in chosen],
            [self.seeds[i] for i in chosen],
        )


def load_inpainting(
    name: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> StableDiffusion:
    """Load a Stable Diffusion inpainting model, 1.x or XL.

    Args:
        name: as for `genval.diffusion.models.pipelines.load_base`: a folder in diffusers' layout, a file of the
            original format (`sd-v1-5-inpainting.ckpt`), or a Hugging Face name. Parts that are missing in a folder are
            read from the folder that its model_index.json names as `"shared_parts": "../other"`, a relative path.
        device, dtype: of the model; by default CPU and float32.

    Raises:
        GenValError: as `load_base`, or the UNet is not an inpainting UNet.
    """
    model = load_base(name, device, dtype)
    found, latent = model.unet.config.in_channels, model.vae.config.latent_channels
    if found != 2 * latent + 1:
        raise GenValError(
            f"{name} is not an inpainting model: expected a UNet with {2 * latent + 1} input channels (noisy latents, "
            f"mask, masked image), found {found}. Give one such as {INPAINTING_MODEL}."
        )
    return model


def save_inpainting(
    unet: Any, folder: str | Path, shared_parts: str, dtype: str = "fp16", text_encoder: Any | None = None
) -> None:
    """Write an inpainting UNet into a folder that shares its other parts with a base's folder.

    Args:
        unet: diffusers' UNet2DConditionModel with nine input channels.
        folder: the folder to write, which `load_inpainting` reads.
        shared_parts: folder of the other parts (vae, tokenizer, scheduler), relative to `folder`.
        dtype: dtype of the weights, "fp32" or "fp16".
        text_encoder: a text encoder that was trained with the UNet; by default the base's is shared.

    Raises:
        GenValError: the folder cannot be written.
    """
    folder = Path(folder)
    parts = {"unet": unet} if text_encoder is None else {"unet": unet, "text_encoder": text_encoder}
    index = {
        "_class_name": "StableDiffusionInpaintPipeline",
        SHARED_PARTS: shared_parts,
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    try:
        with temporary_folder(folder) as temporary:
            for name, part in parts.items():
                move(copy.deepcopy(part), "cpu", SAVE_DTYPES[dtype]).save_pretrained(temporary / name)
                for file in sorted((temporary / name).iterdir()):
                    (folder / name).mkdir(exist_ok=True)
                    file.chmod(0o644)  # safetensors makes files that only their owner can read
                    os.replace(file, folder / name / file.name)
    except OSError as error:
        raise GenValError(
            f"Cannot write {folder}: {error.strerror or error}. Free disk space, or choose another folder."
        ) from error
    # The index comes last: a folder with an index is complete.
    write_json(folder / "model_index.json", index)


def make_inpainter(
    model: StableDiffusion, config: InpaintingConfig, compiled: bool = False, graphed: bool = False
) -> Denoiser:
    """Return the denoiser of a run, for all its batches, and prepare the VAE's decoder.

    Raises:
        GenValError: a network does not have Stable Diffusion's architecture.
    """
    prepare_vae(model, compiled)
    return Denoiser(model, None, 1.0, config.guidance_scale, compiled, graphed)


def start_inpainting(
    denoiser: Denoiser, batch: InpaintingBatch, config: InpaintingConfig, rows: int | None = None
) -> Callable[[], Generated]:
    """Start to inpaint the masked part of each image; the other pixels are those of the VAE's reconstruction.

    An image that is black or not finite is inpainted again with the next seed of its item, up to three times.

    Args:
        denoiser: of `make_inpainter`, for the same config.
        batch: images, masks, prompts and seeds.
        config: how to sample.
        rows: with a compiled denoiser, smaller batches are padded to this size.

    Returns:
        A function that waits for the device and returns the images. It raises GenValError if an image fails with every
        seed.

    Raises:
        GenValError: the size does not suit the model.
    """
    denoiser.base.check_size(*batch.masks.shape[1:])
    count = rows if rows is not None and denoiser.compiled else 0

    def sample(chosen: list[int], seeds: list[int]) -> Sampled:
        filled = [*chosen, *[chosen[-1]] * (count - len(chosen))]
        padded = [*seeds, *[seeds[-1]] * (count - len(seeds))]
        latents = inpaint_latents(denoiser, dataclasses.replace(batch.rows(filled), seeds=padded), config)
        return check_pixels(denoiser.base.decode_latents(latents)[: len(chosen)])

    return sample_with_retries(sample, batch.prompts, batch.seeds)


@torch.no_grad()
def inpaint_latents(denoiser: Denoiser, batch: InpaintingBatch, config: InpaintingConfig) -> torch.Tensor:
    """Run the denoising loop for `start_inpainting`; return the final scaled latents, (B, C, h, w) float32."""
    model = denoiser.base
    scheduler = make_scheduler(model.scheduler_config, config.sampler)
    set_steps(scheduler, config.steps)
    first = max(0, len(scheduler.timesteps) - config.taken) if config.denoising_strength < 1 else 0
    timesteps = scheduler.timesteps[first:]
    height, width = batch.masks.shape[1:]
    shape = (model.vae.config.latent_channels, height // model.downscale, width // model.downscale)
    noise = to_device(item_noise(batch.seeds, shape), model.device)
    pixels = to_device(batch.images, model.device).permute(0, 3, 1, 2).float() / 127.5 - 1
    if config.denoising_strength < 1:
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(first)
        latents = scheduler.add_noise(model.encode_pixels(pixels).float(), noise, timesteps[:1])
    else:
        latents = noise * scheduler.init_noise_sigma
    conditions = _conditions(denoiser, batch, pixels, timesteps)
    for step, timestep in enumerate(timesteps):
        predicted = denoiser(scheduler.scale_model_input(latents, timestep), step, conditions)
        latents = scheduler.step(predicted, timestep, latents, return_dict=False)[0]
    return latents


def inpainting_channels(model: StableDiffusion, pixels: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Return the additional input channels of an inpainting UNet: the mask, then the latents of the masked image.

    Args:
        model: the inpainting model, whose VAE encodes the masked image.
        pixels: (B, 3, H, W) float, -1..1.
        masks: bool (B, H, W), true at the pixels to inpaint; these are set to 0 (mid-grey) before encoding.

    Returns:
        (B, 1 + C, h, w) in the model's dtype; the mask is 0 or 1, resized by nearest neighbour.
    """
    hidden = masks[:, None].to(pixels)
    latents = model.encode_pixels(pixels * (1 - hidden))
    return torch.cat([F.interpolate(hidden, size=latents.shape[2:]).to(latents), latents], dim=1)


def _conditions(denoiser: Denoiser, batch: InpaintingBatch, pixels: torch.Tensor, timesteps: torch.Tensor) -> Any:
    model = denoiser.base
    extra_channels = inpainting_channels(model, pixels, to_device(batch.masks, model.device))
    prompts = [*batch.negative_prompts, *batch.prompts] if denoiser.guided else batch.prompts
    text = model.encode_text(prompts)
    added = model.added_conditions(text, *pixels.shape[2:])
    return denoiser.condition(text, None, timesteps, added, extra_channels)
