"""Training a ControlNet on a locked Stable Diffusion model, resumable to the step.

Everything drawn at random (the order of the pairs, crops, flips, dropped captions, noise, timesteps) is a function of
the seed and the number of the batch, never of what was drawn before: a resumed run goes on as if it had not stopped.
"""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pytorch_lightning import LightningDataModule, LightningModule
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from genval.diffusion.hints import encode_hint
from genval.diffusion.pairs import Pair, load_framed
from genval.diffusion.pipelines import StableDiffusion, locked_dtype
from genval.runtime.errors import GenValError
from genval.runtime.progress import progress_bar
from genval.runtime.seeds import item_seed

_BATCHES_AHEAD = 2


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """What a training run is made of; the defaults are the published ones where it had such a setting."""

    height: int = 512
    width: int = 512
    batch_size: int = 8  # a device
    accumulate: int = 16  # batches an optimiser step
    max_epochs: int = 150  # passes over the pairs
    max_steps: int | None = None  # optimiser steps, in place of max_epochs
    lr: float = 1e-5
    hint_lr_scale: float = 1.0  # the hint embedding learns this many times faster
    weight_decay: float = 0.01  # AdamW's default, as published
    lr_schedule: str = "constant"  # or "cosine", to zero at the last step
    warmup_steps: int = 0  # linear from zero
    gradient_clip: float = 0.0  # largest norm of the gradient; 0 is off
    caption_dropout: float = 0.1  # share of captions replaced by "", which guidance needs (published: 0)
    flip: bool = True  # mirror half of the pairs
    ema: float = 0.0  # decay of the averaged weights; 0 is off
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("height", "width", "batch_size", "accumulate", "max_epochs", "max_steps"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise GenValError(f"--{name}: expected a number above 0, found {getattr(self, name)}.")
        for name in ("caption_dropout", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise GenValError(f"--{name}: expected 0 up to below 1, found {getattr(self, name)}.")
        for name in ("lr", "hint_lr_scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise GenValError(f"--{name}: expected a number above 0, found {getattr(self, name)}.")
        for name in ("warmup_steps", "gradient_clip", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise GenValError(f"--{name}: expected 0 or more, found {getattr(self, name)}.")
        if self.lr_schedule not in ("constant", "cosine"):
            raise GenValError(f"--lr_schedule: expected constant or cosine, found {self.lr_schedule}.")

    def total_steps(self, pairs: int, world_size: int = 1) -> int:
        """Optimiser steps of a run over `pairs` pairs on `world_size` devices."""
        passes = math.ceil(self.max_epochs * pairs / (self.batch_size * self.accumulate * world_size))
        return self.max_steps or passes


@dataclasses.dataclass(frozen=True)
class Draw:
    """One place in a batch: which pair, how it is cut and mirrored, whether its caption is dropped."""

    index: int
    place: float
    flip: bool
    drop_caption: bool
    batch_seed: int


class DrawPlan:
    """The endless sequence of batches of one process, from batch number `start`; batch n depends on n alone.

    Each pass over the pairs is one seeded permutation, dealt out in turn to the processes; passes follow each other
    without a gap, so that every batch is full.
    """

    def __init__(self, count: int, config: TrainingConfig, start: int = 0, rank: int = 0, world_size: int = 1) -> None:
        self.count = count
        self.config = config
        self.start = start
        self.rank = rank
        self.world_size = world_size
        self._last: tuple[int, np.ndarray] | None = None  # the pass in use and its permutation

    def __iter__(self) -> Iterator[list[Draw]]:
        number = self.start
        while True:
            yield self.batch(number)
            number += 1

    def batch(self, number: int) -> list[Draw]:
        """Batch `number` (0, 1, ...) of this process."""
        config = self.config
        first = (number * self.world_size + self.rank) * config.batch_size
        positions = np.arange(first, first + config.batch_size)
        passes = positions // self.count
        indices = np.empty(config.batch_size, dtype=np.int64)
        for epoch in np.unique(passes):
            chosen = passes == epoch
            indices[chosen] = self._permutation(int(epoch))[positions[chosen] % self.count]
        seed = item_seed(config.seed, f"batch {number} of process {self.rank}")
        rng = np.random.default_rng(seed)
        places = rng.random(config.batch_size)
        flips = (rng.random(config.batch_size) < 0.5) & config.flip
        drops = rng.random(config.batch_size) < config.caption_dropout
        return [
            Draw(int(index), float(place), bool(flip), bool(drop), seed)
            for index, place, flip, drop in zip(indices, places, flips, drops, strict=True)
        ]

    def _permutation(self, epoch: int) -> np.ndarray:
        if self._last is None or self._last[0] != epoch:
            rng = np.random.default_rng(item_seed(self.config.seed, f"pass {epoch}"))
            self._last = (epoch, rng.permutation(self.count))
        return self._last[1]


class DrawnPairs:
    """Decoded batches of a plan, read ahead by threads (decoding releases Python's lock).

    A batch has `image` uint8 (B, 3, H, W), `mask` uint8 (B, H, W), the list `caption`, and `seed`, a number that stays
    on the CPU.

    Args:
        batches: the draws, batch by batch; may be endless.
        pairs: what their indices mean.
        config: gives the size.
        workers: threads.
    """

    def __init__(
        self, batches: Iterable[list[Draw]], pairs: Sequence[Pair], config: TrainingConfig, workers: int
    ) -> None:
        self.batches = batches
        self.pairs = pairs
        self.config = config
        self.workers = workers

    def __iter__(self) -> Iterator[dict[str, Any]]:
        with ThreadPoolExecutor(self.workers, thread_name_prefix="decode") as pool:
            waiting: deque[tuple[list[Draw], list[Future[tuple[torch.Tensor, torch.Tensor]]]]] = deque()
            for draws in self.batches:
                waiting.append((draws, [pool.submit(self._load, draw) for draw in draws]))
                if len(waiting) > _BATCHES_AHEAD:
                    yield self._collate(*waiting.popleft())
            while waiting:
                yield self._collate(*waiting.popleft())

    def _load(self, draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
        framed = load_framed(self.pairs[draw.index], self.config.height, self.config.width, draw.place)
        image, mask = framed.image.transpose(2, 0, 1), framed.mask
        if draw.flip:
            image, mask = image[..., ::-1], mask[..., ::-1]
        return torch.from_numpy(np.ascontiguousarray(image)), torch.from_numpy(np.ascontiguousarray(mask))

    def _collate(self, draws: list[Draw], loaded: list[Future[tuple[torch.Tensor, torch.Tensor]]]) -> dict[str, Any]:
        images, masks = zip(*(future.result() for future in loaded), strict=True)
        return {
            "image": torch.stack(images),
            "mask": torch.stack(masks),
            "caption": ["" if draw.drop_caption else self.pairs[draw.index].caption for draw in draws],
            "seed": draws[0].batch_seed,
        }


class DrawnIndices:
    """Batches of a plan as numbers, for a cache that lies on the device: `index`, `flip`, `drop_caption` and `seed`."""

    def __init__(self, batches: Iterable[list[Draw]]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for draws in self.batches:
            yield {
                "index": torch.tensor([draw.index for draw in draws]),
                "flip": torch.tensor([draw.flip for draw in draws]),
                "drop_caption": torch.tensor([draw.drop_caption for draw in draws]),
                "seed": draws[0].batch_seed,
            }


@dataclasses.dataclass
class LatentCache:
    """A whole training set encoded once, on the training device.

    Attributes:
        latents: (V, N, C, h, w) float16, V = 2 where pairs are mirrored (an encoding is not the mirror of one).
        masks: (N, H, W) uint8 labelIds.
        texts: (captions + 1, tokens, channels) float16, each caption once; the last is the empty one.
        text_index: (N,) int64 into `texts`.
    """

    latents: torch.Tensor
    masks: torch.Tensor
    texts: torch.Tensor
    text_index: torch.Tensor

    def __call__(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Latents, masks and text states of a batch of `DrawnIndices`."""
        index, flip = batch["index"], batch["flip"]
        mask = self.masks[index]
        mask = torch.where(flip[:, None, None], mask.flip(-1), mask)
        text = torch.where(batch["drop_caption"], len(self.texts) - 1, self.text_index[index])
        return self.latents[flip.long(), index], mask, self.texts[text]


def encode_pairs(
    base: StableDiffusion, pairs: Sequence[Pair], config: TrainingConfig, workers: int, rank: int = 0
) -> LatentCache:
    """Encode a training set with the base's VAE and text encoder, on the base's device.

    A frame that is not of the target's shape gets one crop, drawn for the item, for the whole training.
    """
    variants = 2 if config.flip else 1
    draws = [
        Draw(i, np.random.default_rng(item_seed(config.seed, f"crop {i}")).random(), False, False, 0)
        for i in range(len(pairs))
    ]
    chunks = [draws[i : i + 64] for i in range(0, len(draws), 64)]
    latents: list[list[torch.Tensor]] = [[] for _ in range(variants)]
    masks = []
    with progress_bar(len(pairs), "Encoding the training set", rank=rank) as bar:
        for batch in DrawnPairs(chunks, pairs, config, workers):
            images = batch["image"].to(base.device)
            for variant in range(variants):
                encoded = base.encode_images(images.flip(-1) if variant else images)
                latents[variant].append(encoded.half())
            masks.append(batch["mask"].to(base.device))
            bar.update(len(images))
    captions = sorted({pair.caption for pair in pairs})
    numbers = {caption: number for number, caption in enumerate(captions)}
    prompts = [*captions, ""]
    texts = [base.encode_text(prompts[i : i + 256]).half() for i in range(0, len(prompts), 256)]
    return LatentCache(
        latents=torch.stack([torch.cat(parts) for parts in latents]),
        masks=torch.cat(masks),
        texts=torch.cat(texts),
        text_index=torch.tensor([numbers[pair.caption] for pair in pairs], device=base.device),
    )


class ControlNetData(LightningDataModule):
    """The batches of a run, from where its last checkpoint stopped.

    Args:
        pairs: the training set.
        config: the run's settings.
        workers: threads that decode images.
        cached: give indices into a `LatentCache` instead of images.
    """

    def __init__(self, pairs: Sequence[Pair], config: TrainingConfig, workers: int = 4, cached: bool = False) -> None:
        super().__init__()
        self.pairs = pairs
        self.config = config
        self.workers = workers
        self.cached = cached

    def train_dataloader(self) -> DrawnPairs | DrawnIndices:
        """Endless batches: a training run is one pass of it, so that no step is cut short at an epoch's end."""
        trainer = self.trainer
        assert trainer is not None
        # Checkpoints are written between optimiser steps, so this many batches have been used.
        start = trainer.global_step * self.config.accumulate
        plan = DrawPlan(len(self.pairs), self.config, start, trainer.global_rank, trainer.world_size)
        return DrawnIndices(plan) if self.cached else DrawnPairs(plan, self.pairs, self.config, self.workers)


class ControlNetModule(LightningModule):
    """The ControlNet and its training step. Only the ControlNet (and its average) is in the checkpoints.

    Args:
        base: the locked model. It is not a submodule: Lightning neither saves, averages nor broadcasts it.
        controlnet: diffusers' ControlNetModel in float32.
        config: the run's settings.
        pairs: where given, they are encoded once when the run starts and kept on the device (`LatentCache`).
        workers: threads that decode images for that.
    """

    def __init__(
        self,
        base: StableDiffusion,
        controlnet: Any,
        config: TrainingConfig,
        pairs: Sequence[Pair] | None = None,
        workers: int = 4,
    ) -> None:
        super().__init__()
        from diffusers import DDPMScheduler

        base.check_size(config.height, config.width)
        self.base = base
        self.config = config
        self.controlnet = controlnet.train()
        self.average = AveragedModel(controlnet, multi_avg_fn=get_ema_multi_avg_fn(config.ema)) if config.ema else None
        if self.average is not None:
            self.average.requires_grad_(False)
        self.noise_schedule = DDPMScheduler.from_config(base.scheduler_config)
        self._pairs = pairs
        self._workers = workers
        self._cache: LatentCache | None = None

    @property
    def trained(self) -> Any:
        """The ControlNet to use: the averaged one where there is one."""
        return self.controlnet if self.average is None else self.average.module

    def on_fit_start(self) -> None:
        if self._pairs is not None and self._cache is None:
            # What is encoded once for the whole training is encoded in full precision.
            self.base.to(self.device, torch.float32)
            self._cache = encode_pairs(self.base, self._pairs, self.config, self._workers, self.global_rank)
        self.base.to(self.device, locked_dtype(str(self.trainer.precision)))
        if self.device.type == "cuda":
            for model in (self.base.unet, self.controlnet):
                torch.nn.Module.to(model, memory_format=torch.channels_last)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        """Mean squared error of the predicted noise, or velocity, as the base's scheduler config says."""
        if self._cache is None:
            latents, masks = self.base.encode_images(batch["image"]), batch["mask"]
            text = self.base.encode_text(batch["caption"])
        else:
            latents, masks, text = self._cache(batch)
        generator = torch.Generator(self.device).manual_seed(batch["seed"])
        loss = self.denoising_loss(latents.float(), encode_hint(masks), text.to(self.base.dtype), generator)
        self.log("loss", loss.detach(), prog_bar=True)
        return loss

    def denoising_loss(
        self, latents: torch.Tensor, hints: torch.Tensor, text: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        """The loss of one batch.

        Args:
            latents: (B, C, h, w) float32, scaled.
            hints: (B, 1, H, W) float32.
            text: (B, tokens, channels) text states.
            generator: draws noise and timesteps.
        """
        schedule = self.noise_schedule
        noise = torch.randn(latents.shape, generator=generator, device=latents.device)
        last = schedule.config.num_train_timesteps
        timesteps = torch.randint(0, last, (len(latents),), generator=generator, device=latents.device)
        noisy = schedule.add_noise(latents, noise, timesteps).to(text.dtype)
        if schedule.config.prediction_type == "v_prediction":
            target = schedule.get_velocity(latents, noise, timesteps)
        elif schedule.config.prediction_type == "epsilon":
            target = noise
        else:
            raise GenValError(
                f"{self.base.folder}: expected prediction_type epsilon or v_prediction in its scheduler config, "
                f"found {schedule.config.prediction_type}."
            )
        down, middle = self.controlnet(noisy, timesteps, text, hints.to(text.dtype), return_dict=False)
        # The base's encoder has no input that needs a gradient, so autograd records its decoder only.
        predicted = self.base.unet(
            noisy,
            timesteps,
            text,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
            return_dict=False,
        )[0]
        return F.mse_loss(predicted.float(), target)

    def configure_optimizers(self) -> Any:
        config = self.config
        hint = list(self.controlnet.controlnet_cond_embedding.parameters())
        hint_ids = {id(parameter) for parameter in hint}
        rest = [parameter for parameter in self.controlnet.parameters() if id(parameter) not in hint_ids]
        groups = [{"params": rest, "lr": config.lr}, {"params": hint, "lr": config.lr * config.hint_lr_scale}]
        fused = self.device.type == "cuda" and self.trainer.precision != "16-mixed"
        optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=fused)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self._lr_factor(step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _lr_factor(self, step: int) -> float:
        config = self.config
        factor = min(1.0, (step + 1) / (config.warmup_steps + 1))
        if config.lr_schedule == "cosine":
            factor *= 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.trainer.max_steps)))
        return factor

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        # Lightning refuses to clip for fused optimisers under mixed precision, although bfloat16 scales no gradients.
        if self.config.gradient_clip:
            torch.nn.utils.clip_grad_norm_(self.controlnet.parameters(), self.config.gradient_clip)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.average is not None:
            self.average.update_parameters(self.controlnet)
