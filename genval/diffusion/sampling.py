"""Pictures from label masks and prompts: classifier-free guided sampling with a ControlNet.

The loop is the one of diffusers' StableDiffusionControlNetPipeline (tests hold the two together) with three
differences: an item's noise comes from its own seed wherever it lies in a batch, latents stay in float32 between steps,
and the hint embedding, which does not depend on the timestep, is computed once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from genval.diffusion.hints import encode_hint
from genval.diffusion.pipelines import StableDiffusion, to_uint8
from genval.runtime.errors import GenValError
from genval.runtime.seeds import item_seed

SAMPLERS = ("ddim", "dpm++")
# No pixel of a failed picture is brighter than this.
_BLACK = 8
_RETRIES = 3


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How pictures are sampled; the defaults are the published ones."""

    steps: int = 25
    guidance_scale: float = 8.0  # 1 or less is off
    strength: float = 1.0  # factor on all of the ControlNet's residuals
    sampler: str = "ddim"  # eta 0; or "dpm++", DPM-Solver++ 2M, for fewer steps

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise GenValError(f"--sampler: expected {' or '.join(SAMPLERS)}, found {self.sampler}.")
        for flag, value in (("guidance_scale", self.guidance_scale), ("strength", self.strength)):
            if not math.isfinite(value):
                raise GenValError(f"--{flag}: expected a finite number, found {value}.")
        if self.steps < 1:
            raise GenValError(f"--ddim_steps: expected a number above 0, found {self.steps}.")


@dataclasses.dataclass(frozen=True)
class Generated:
    """A batch of pictures: `images` RGB uint8 (B, H, W, 3), the `seeds` they were drawn with, and `retries` of each."""

    images: np.ndarray
    seeds: list[int]
    retries: list[int]


def generate(
    base: StableDiffusion,
    controlnet: Any,
    masks: np.ndarray,
    prompts: Sequence[str],
    negative_prompts: Sequence[str],
    seeds: Sequence[int],
    config: SamplingConfig,
) -> Generated:
    """Generate one picture a mask.

    A picture that is black or not finite is drawn again with the next seed of its item, up to three times.

    Args:
        base, controlnet: on one device and of one dtype.
        masks: (B, H, W) uint8 labelIds; H and W are the pictures' size.
        prompts, negative_prompts, seeds: one an item.

    Raises:
        GenValError: the size does not suit the model, or a picture fails with every seed.
    """
    base.check_size(*masks.shape[1:])
    images, good = _sample(base, controlnet, masks, prompts, negative_prompts, seeds, config)
    used, retries = list(seeds), [0] * len(seeds)
    for attempt in range(1, _RETRIES + 1):
        failed = np.flatnonzero(~good).tolist()
        if not failed:
            break
        for i in failed:
            used[i], retries[i] = item_seed(seeds[i], f"retry {attempt}"), attempt
        images[failed], good[failed] = _sample(
            base,
            controlnet,
            masks[failed],
            [prompts[i] for i in failed],
            [negative_prompts[i] for i in failed],
            [used[i] for i in failed],
            config,
        )
    if not good.all():
        failed_prompts = "; ".join(repr(prompts[i]) for i in np.flatnonzero(~good)[:3])
        raise GenValError(
            f"Black or non-finite pictures with {_RETRIES + 1} seeds for {failed_prompts}. "
            "Try --precision 32-true, or check the checkpoints."
        )
    return Generated(images, used, retries)


def make_scheduler(config: dict[str, Any], sampler: str) -> Any:
    """diffusers' scheduler for a sampler, on a base's own noise schedule, prediction type and timestep spacing.

    Of Stable Diffusion 1.5's config, "ddim" makes the published sampler: DDIM, eta 0, leading steps with offset 1, the
    last step to alphas_cumprod[0], no clipping.
    """
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

    if sampler == "ddim":
        # Clipping belongs to pixel models, but is on by default where a config does not mention it.
        return DDIMScheduler.from_config(config, clip_sample=False)
    return DPMSolverMultistepScheduler.from_config(config, algorithm_type="dpmsolver++", solver_order=2)


def item_noise(seeds: Sequence[int], shape: tuple[int, ...]) -> torch.Tensor:
    """(B, *shape) float32 standard normal noise on the CPU; row i depends on `seeds[i]` alone, on any machine."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


@torch.no_grad()
def _sample(
    base: StableDiffusion,
    controlnet: Any,
    masks: np.ndarray,
    prompts: Sequence[str],
    negative_prompts: Sequence[str],
    seeds: Sequence[int],
    config: SamplingConfig,
) -> tuple[np.ndarray, np.ndarray]:
    """Pictures, RGB uint8 (B, H, W, 3), and which of them are good, bool (B,)."""
    latents = sample_latents(base, controlnet, masks, prompts, negative_prompts, seeds, config)
    pixels = base.decode_latents(latents)
    finite = pixels.isfinite().flatten(1).all(1).cpu().numpy()
    images = to_uint8(pixels.nan_to_num())
    return images, finite & (images.reshape(len(images), -1).max(1) > _BLACK)


@torch.no_grad()
def sample_latents(
    base: StableDiffusion,
    controlnet: Any,
    masks: np.ndarray,
    prompts: Sequence[str],
    negative_prompts: Sequence[str],
    seeds: Sequence[int],
    config: SamplingConfig,
) -> torch.Tensor:
    """The denoising loop: final latents (B, C, h, w) float32, scaled. Arguments as for `generate`."""
    guided = config.guidance_scale > 1
    copies = 2 if guided else 1
    scheduler = make_scheduler(base.scheduler_config, config.sampler)
    scheduler.set_timesteps(config.steps, device=base.device)
    shape = (base.unet.config.in_channels, *(side // base.downscale for side in masks.shape[1:]))
    latents = item_noise(seeds, shape).to(base.device) * scheduler.init_noise_sigma
    text = base.encode_text([*negative_prompts, *prompts] if guided else prompts)
    hints = encode_hint(torch.from_numpy(np.ascontiguousarray(masks)).to(base.device)).to(base.dtype)
    with _embedded_once(controlnet, hints) as embedded:
        repeated = embedded.repeat(copies, 1, 1, 1)
        for timestep in scheduler.timesteps:
            noisy = scheduler.scale_model_input(latents, timestep).to(base.dtype).repeat(copies, 1, 1, 1)
            down, middle = controlnet(
                noisy, timestep, text, repeated, conditioning_scale=config.strength, return_dict=False
            )
            predicted = base.unet(
                noisy,
                timestep,
                text,
                down_block_additional_residuals=down,
                mid_block_additional_residual=middle,
                return_dict=False,
            )[0].float()
            if guided:
                unconditional, conditional = predicted.chunk(2)
                predicted = unconditional + config.guidance_scale * (conditional - unconditional)
            latents = scheduler.step(predicted, timestep, latents, return_dict=False)[0]
    return latents


@contextmanager
def _embedded_once(controlnet: Any, hints: torch.Tensor) -> Iterator[torch.Tensor]:
    """Give the hints' embedding; inside the block the ControlNet takes it in the hints' place."""
    embedding = controlnet.controlnet_cond_embedding
    embedded = embedding(hints)
    controlnet.controlnet_cond_embedding = torch.nn.Identity()
    try:
        yield embedded
    finally:
        controlnet.controlnet_cond_embedding = embedding
