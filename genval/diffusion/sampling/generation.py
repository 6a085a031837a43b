"""Images from label masks and prompts: classifier-free guided sampling with a ControlNet.

The loop is that of diffusers' StableDiffusionControlNetPipeline (tests compare the two), with two differences: an
item's noise depends only on its own seed, not on its place in a batch, and latents stay in float32 between steps. A
single step is computed in `genval.diffusion.sampling.denoiser`.

Instead of noise, a denoising can start from photos under noise, at a later step (Meng et al., "SDEdit: Guided Image
Synthesis and Editing with Stochastic Differential Equations", ICLR 2022), as in diffusers'
StableDiffusionControlNetImg2ImgPipeline.

Images larger than a model was trained for are generated either in overlapping windows (Bar-Tal et al.,
"MultiDiffusion", ICML 2023: at each step the predictions of all windows are averaged), or small first, then enlarged
and denoised again.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import torch

from genval.datasets.boxes import Box
from genval.diffusion.models.hints import encode_hint, read_encoding
from genval.diffusion.models.pipelines import StableDiffusion, to_uint8
from genval.diffusion.sampling.denoiser import Denoiser, compile_shapes
from genval.diffusion.sampling.windows import blend_weights, windows
from genval.diffusion.settings import SamplingConfig, steps_taken
from genval.kernels.availability import can_fuse
from genval.runtime.devices import to_device, to_host
from genval.runtime.errors import GenValError
from genval.runtime.seeds import item_seed

# No pixel of a failed image is brighter than this.
_BLACK = 8
_RETRIES = 3


@dataclasses.dataclass(frozen=True)
class Generated:
    """A batch of images: `images` RGB uint8 (B, H, W, 3), the `seeds` used, and the number of `retries` of each."""

    images: np.ndarray
    seeds: list[int]
    retries: list[int]


@dataclasses.dataclass(frozen=True)
class GenerationBatch:
    """The inputs of a batch of B images.

    Attributes:
        masks: uint8 (B, H, W), ids of the ControlNet's label set; without a ControlNet only their size counts. H and W
            are the size of the images.
        prompts, negative_prompts, seeds: one per image.
        photos: RGB uint8 (B, H, W, 3), the images to start from if the denoising strength is below 1.
        denoising_strength: fraction of the steps that are taken, from as much noise; 1 starts from noise alone.
        clear_prompts: one per image; the images are then between these (0) and the prompts (1).
        domain_strength: where between them, 0 to 1: the text states are interpolated linearly.
    """

    masks: np.ndarray
    prompts: Sequence[str]
    negative_prompts: Sequence[str]
    seeds: Sequence[int]
    photos: np.ndarray | None = None
    denoising_strength: float = 1.0
    clear_prompts: Sequence[str] | None = None
    domain_strength: float = 1.0

    def __len__(self) -> int:
        return len(self.seeds)

    def rows(self, chosen: Sequence[int]) -> GenerationBatch:
        return GenerationBatch(
            self.masks[list(chosen)],
            [self.prompts[i] for i in chosen],
            [self.negative_prompts[i] for i in chosen],
            [self.seeds[i] for i in chosen],
            None if self.photos is None else self.photos[list(chosen)],
            self.denoising_strength,
            None if self.clear_prompts is None else [self.clear_prompts[i] for i in chosen],
            self.domain_strength,
        )

    def resized(self, height: int, width: int) -> GenerationBatch:
        masks = [cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT) for mask in self.masks]
        return dataclasses.replace(self, masks=np.stack(masks))


@dataclasses.dataclass(frozen=True)
class _Start:
    """What a denoising from a later step on starts from.

    Attributes:
        latents: (B, C, h, w) float32, without noise.
        seeds: of the noise that is added, one per item.
        first: takes the number of steps of a whole denoising, and returns the index of the first one that is taken.
    """

    latents: torch.Tensor
    seeds: Sequence[int]
    first: Callable[[int], int]


# What waits for the device, and returns images, uint8 (B, H, W, 3), and which of them are good, bool (B,).
Sampled = Callable[[], tuple[np.ndarray, np.ndarray]]


def generate(
    base: StableDiffusion, controlnet: Any, batch: GenerationBatch, config: SamplingConfig, rows: int | None = None
) -> Generated:
    """Generate one image per mask, from noise or from a photo under noise.

    An image that is black or not finite is generated again with the next seed of its item, up to three times.

    Args:
        base, controlnet: on one device and of one dtype; the ControlNet may be None.
        batch: masks, prompts and seeds.
        config: how to sample.
        rows: images or windows computed at a time (default: all images of the batch).

    Raises:
        GenValError: the size does not suit the model, or an image fails with every seed.
    """
    return start_generation(make_denoiser(base, controlnet, config), batch, config, rows)()


def start_generation(
    denoiser: Denoiser, batch: GenerationBatch, config: SamplingConfig, rows: int | None = None
) -> Callable[[], Generated]:
    """Start what `generate` does, with the denoiser of other batches.

    On a GPU the work is still running when this returns. Meanwhile the host can start the next batch.

    Args:
        denoiser: of `make_denoiser`, for the same config.
        batch: as for `generate`.
        config: how to sample.
        rows: as for `generate`. For a compiled denoiser, smaller batches are padded to this size.

    Returns:
        A function that waits for the device and returns the images. It raises GenValError if an image fails with every
        seed.

    Raises:
        GenValError: the size does not suit the model.
    """
    check_size(denoiser.base, config, *batch.masks.shape[1:])
    at_a_time = rows or len(batch)

    def sample(chosen: list[int], seeds: list[int]) -> Sampled:
        return _start_images(denoiser, dataclasses.replace(batch.rows(chosen), seeds=seeds), config, at_a_time)

    return sample_with_retries(sample, batch.prompts, batch.seeds)


def sample_with_retries(
    sample: Callable[[list[int], list[int]], Sampled], prompts: Sequence[str], seeds: Sequence[int]
) -> Callable[[], Generated]:
    """Start to sample a batch of images.

    Args:
        sample: takes the numbers of items and their seeds, and starts to sample their images.
        prompts, seeds: of all items.

    Returns:
        A function that waits for the images, and samples bad ones again with the next seeds of their items, up to three
        times. It raises GenValError if an image is bad with every seed.
    """
    first = sample(list(range(len(seeds))), list(seeds))

    def finish() -> Generated:
        images, good = first()
        used, retries = list(seeds), [0] * len(seeds)
        for attempt in range(1, _RETRIES + 1):
            failed = np.flatnonzero(~good).tolist()
            if not failed:
                break
            for i in failed:
                used[i], retries[i] = item_seed(seeds[i], f"retry {attempt}"), attempt
            images[failed], good[failed] = sample(failed, [used[i] for i in failed])()
        if not good.all():
            failed_prompts = "; ".join(repr(prompts[i]) for i in np.flatnonzero(~good)[:3])
            raise GenValError(
                f"Black or non-finite images with {_RETRIES + 1} seeds for {failed_prompts}. "
                "Try --precision 32-true, or check the checkpoints."
            )
        return Generated(images, used, retries)

    return finish


def make_denoiser(
    base: StableDiffusion, controlnet: Any, config: SamplingConfig, compiled: bool = False, graphed: bool = False
) -> Denoiser:
    """Return the denoiser of a run, and prepare the VAE: tiled for large images, and with fast kernels.

    Raises:
        GenValError: a network does not have Stable Diffusion's architecture.
    """
    if config.large != "direct":
        base.vae.enable_tiling()
    prepare_vae(base, compiled and config.large == "direct")
    return Denoiser(base, controlnet, config.control_scale, config.guidance_scale, compiled, graphed)


def prepare_vae(base: StableDiffusion, compiled: bool) -> None:
    """Run the residual blocks of the VAE with fused or, if `compiled`, those of its decoder with generated kernels.

    Blocks of one shape share generated kernels. If neither kind of kernel can be used, nothing is changed.
    """
    if compiled:
        # The cached functions that diffusers calls here return library versions, which do not change.
        warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`")
        base.vae.to(memory_format=torch.channels_last)
        for block in base.vae.modules():
            block.__dict__.pop("forward", None)  # of an earlier denoiser's fused kernels
        for block in base.vae.decoder.modules():
            if type(block).__name__ == "ResnetBlock2D":
                compile_shapes(block)
    elif can_fuse(base.device):
        from genval.diffusion.sampling.fused import fuse_vae

        fuse_vae(base.vae)


def check_size(base: StableDiffusion, config: SamplingConfig, height: int, width: int) -> None:
    """Check that the model can generate images and windows of a size.

    Raises:
        GenValError: a side is not a multiple of the base's step.
    """
    base.check_size(height, width)
    if config.large != "direct":
        try:
            base.check_size(*_window_size(base, config, height, width))
        except GenValError as error:
            raise GenValError(f"--tile {config.tile}: {error}") from error


def make_scheduler(config: dict[str, Any], sampler: str) -> Any:
    """Return diffusers' scheduler of a sampler, with the base's noise schedule, prediction type and timestep spacing.

    With Stable Diffusion 1.5's config, "ddim" is the published sampler: DDIM, eta 0, leading timesteps with offset 1,
    the last step to alphas_cumprod[0], no clipping.
    """
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, LCMScheduler, UniPCMultistepScheduler

    if sampler == "ddim":
        # Clipping is for pixel models, but it is diffusers' default if the config does not set it.
        return DDIMScheduler.from_config(config, clip_sample=False)
    if sampler == "lcm":
        return LCMScheduler.from_config(config, clip_sample=False)
    if sampler == "unipc":
        return UniPCMultistepScheduler.from_config(config, solver_order=2)
    return DPMSolverMultistepScheduler.from_config(config, algorithm_type="dpmsolver++", solver_order=2)


def set_steps(scheduler: Any, steps: int) -> None:
    """Set a scheduler's timesteps on the CPU, so that its arithmetic does not synchronise with the device.

    DDIM with leading timesteps takes every (1000 // steps)-th of 1000, as the original latent diffusion code does. If
    `steps` does not divide 1000, that is more than `steps` (31 for 30). diffusers drops the additional timesteps and
    starts from less noise.
    """
    scheduler.set_timesteps(steps)
    config = scheduler.config
    if type(scheduler).__name__ == "DDIMScheduler" and config.timestep_spacing == "leading":
        last = config.num_train_timesteps
        # The offset is subtracted from the end: otherwise 3 steps include timestep 1000, at which the original fails.
        leading = torch.arange(0, last - config.steps_offset, last // steps)
        scheduler.timesteps = leading.flip(0) + config.steps_offset


def item_noise(seeds: Sequence[int], shape: tuple[int, ...]) -> torch.Tensor:
    """Return (B, *shape) float32 standard normal noise on the CPU; row i depends only on `seeds[i]`."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


@torch.no_grad()
def _start_images(denoiser: Denoiser, batch: GenerationBatch, config: SamplingConfig, rows: int) -> Sampled:
    return check_pixels(_decode(denoiser, _latents(denoiser, batch, config, rows), rows))


def check_pixels(pixels: torch.Tensor) -> Sampled:
    """Start to convert raw pixels (B, 3, H, W) to images, and to check which images are finite and not black."""
    finite = pixels.isfinite().flatten(1).all(1)
    images = to_uint8(pixels.nan_to_num())
    good = finite & (images.flatten(1).amax(1) > _BLACK)
    copied = to_host(images, good)

    def wait() -> tuple[np.ndarray, np.ndarray]:
        # Copied out of pinned memory, of which only the batches in progress should hold any.
        images, good = (values.copy() for values in copied())
        return images, good

    return wait


def _decode(denoiser: Denoiser, latents: torch.Tensor, rows: int) -> torch.Tensor:
    """Decode latents to raw pixels, (B, 3, H, W) float32; pad to `rows` latents if the decoder is compiled."""
    missing = rows - len(latents) if denoiser.compiled else 0
    filled = torch.cat([latents, latents[-1:].expand(missing, -1, -1, -1)]) if missing > 0 else latents
    return denoiser.base.decode_latents(filled)[: len(latents)]


@torch.no_grad()
def sample_latents(
    base: StableDiffusion, controlnet: Any, batch: GenerationBatch, config: SamplingConfig
) -> torch.Tensor:
    """Run the denoising loop; return the final scaled latents, (B, C, h, w) float32. Arguments as for `generate`."""
    return _latents(make_denoiser(base, controlnet, config), batch, config, len(batch))


def _latents(denoiser: Denoiser, batch: GenerationBatch, config: SamplingConfig, rows: int) -> torch.Tensor:
    base = denoiser.base
    height, width = batch.masks.shape[1:]
    window = _window_size(base, config, height, width)
    if batch.photos is not None and batch.denoising_strength < 1:
        latents = _encode_each(base, torch.from_numpy(batch.photos).permute(0, 3, 1, 2))
        taken = steps_taken(config.steps, batch.denoising_strength)
        start = _Start(latents, batch.seeds, lambda count: max(0, count - taken))
        return _denoise(denoiser, batch, config, start, window, rows)
    if config.large != "upscaled":
        return _denoise(denoiser, batch, config, None, window, rows)
    small = dataclasses.replace(config, large="direct")
    pixels = _decode(denoiser, _latents(denoiser, batch.resized(*window), small, rows), rows)
    enlarged = torch.nn.functional.interpolate(pixels.clamp(-1, 1), (height, width), mode="bicubic", antialias=True)
    seeds = [item_seed(seed, "upscale") for seed in batch.seeds]
    kept = 1 - config.upscale_denoising_strength
    start = _Start(
        _encode_each(base, enlarged * 127.5 + 127.5), seeds, lambda count: min(count - 1, round(count * kept))
    )
    return _denoise(denoiser, batch, config, start, window, rows)


def _encode_each(base: StableDiffusion, images: torch.Tensor) -> torch.Tensor:
    """Encode (B, 3, H, W) RGB images, 0..255, one by one: large ones need much memory. Return float32 latents."""
    return torch.cat([base.encode_images(image[None]) for image in images]).float()


def _denoise(
    denoiser: Denoiser,
    batch: GenerationBatch,
    config: SamplingConfig,
    start: _Start | None,
    window: tuple[int, int],
    rows: int,
) -> torch.Tensor:
    """Denoise pure noise or, from a later step on, given latents with added noise."""
    base = denoiser.base
    scheduler = make_scheduler(base.scheduler_config, config.sampler)
    set_steps(scheduler, config.steps)
    timesteps = scheduler.timesteps
    if start is None:
        latents = _noise(base, batch.seeds, *batch.masks.shape[1:]) * scheduler.init_noise_sigma
    else:
        first = start.first(len(timesteps))
        timesteps = timesteps[first:]
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(first)
        noise = _noise(base, start.seeds, *batch.masks.shape[1:])
        latents = scheduler.add_noise(start.latents, noise, timesteps[:1])
    height, width = (side // base.downscale for side in window)
    places = windows(latents.shape[2], latents.shape[3], height, width)
    weights = blend_weights(height, width, base.device)
    parts = [(item, place) for item in range(len(batch)) for place in places]
    chunks = [parts[i : i + rows] for i in range(0, len(parts), rows)]
    conditions = _conditions(denoiser, batch, chunks, timesteps, rows)
    generators = [torch.Generator().manual_seed(item_seed(seed, "lcm")) for seed in batch.seeds]
    noisy_steps = {"generator": generators} if config.sampler == "lcm" else {}
    for step, timestep in enumerate(timesteps):
        scaled = scheduler.scale_model_input(latents, timestep)
        outputs = []
        for chunk, condition in zip(chunks, conditions, strict=True):
            crops = torch.stack([place.cut(scaled[item]) for item, place in _filled(denoiser, chunk, rows)])
            outputs.append(denoiser(crops, step, condition)[: len(chunk)])
        predicted = torch.cat(outputs)
        if len(places) > 1:
            predicted = _blend(predicted, places, weights, latents.shape)
        latents = scheduler.step(predicted, timestep, latents, **noisy_steps, return_dict=False)[0]
    return latents


def _blend(
    predicted: torch.Tensor, places: Sequence[Box], weights: torch.Tensor, shape: tuple[int, ...]
) -> torch.Tensor:
    """Join the predictions of windows, (items x windows, C, h, w), to `shape` by their weighted mean."""
    total, covered = predicted.new_zeros(shape), predicted.new_zeros(shape[2:])
    by_item = predicted.unflatten(0, (-1, len(places)))
    for number, place in enumerate(places):
        place.cut(total).add_(by_item[:, number] * weights)
        place.cut(covered).add_(weights)
    return total / covered


def _conditions(
    denoiser: Denoiser, batch: GenerationBatch, chunks: Sequence[Any], timesteps: torch.Tensor, rows: int
) -> list[Any]:
    base, controlnet = denoiser.base, denoiser.controlnet
    encoding = None if controlnet is None else read_encoding(controlnet, "The ControlNet")
    negative = list(batch.negative_prompts) if denoiser.guided else []
    text = base.encode_text([*negative, *batch.prompts])
    if batch.clear_prompts is not None:
        text = base.encode_text([*negative, *batch.clear_prompts]).lerp(text, batch.domain_strength)
    conditions = []
    for chunk in chunks:
        filled = _filled(denoiser, chunk, rows)
        items = [item for item, _ in filled]
        masks = np.stack([place.times(base.downscale).cut(batch.masks[item]) for item, place in filled])
        hints = None if encoding is None else encode_hint(to_device(masks, base.device), encoding)
        chosen_rows = [*items, *(len(batch) + item for item in items)] if denoiser.guided else items
        # Choosing rows waits for the device.
        chosen = text if chosen_rows == [*range(len(text))] else text[chosen_rows]
        added = base.added_conditions(chosen, *masks.shape[1:])
        conditions.append(denoiser.condition(chosen, hints, timesteps, added))
    return conditions


def _filled(denoiser: Denoiser, chunk: Sequence[Any], rows: int) -> list[Any]:
    """Repeat the last row of a chunk up to `rows`, if the denoiser is compiled."""
    return [*chunk, *([chunk[-1]] * (rows - len(chunk) if denoiser.compiled else 0))]


def _window_size(base: StableDiffusion, config: SamplingConfig, height: int, width: int) -> tuple[int, int]:
    """Return the size of a window in pixels: the whole image, a square, or the whole image at a smaller scale."""
    if config.large == "direct":
        return height, width
    if config.large == "tiled":
        return min(config.tile, height), min(config.tile, width)
    scale = min(1.0, config.tile / min(height, width))
    return round(height * scale), round(width * scale)


def _noise(base: StableDiffusion, seeds: Sequence[int], height: int, width: int) -> torch.Tensor:
    shape = (base.unet.config.in_channels, height // base.downscale, width // base.downscale)
    return to_device(item_noise(seeds, shape), base.device)
