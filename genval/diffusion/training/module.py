"""The training step of a ControlNet or a LoRA on a frozen Stable Diffusion model."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from genval.diffusion.models.controlnet import save_controlnet
from genval.diffusion.models.hints import CITYSCAPES_IDS, HintEncoding, LabelSet, encode_hint, read_encoding
from genval.diffusion.models.lora import merged_unet, save_lora
from genval.diffusion.models.pipelines import StableDiffusion, TextStates, locked_dtype, move
from genval.diffusion.pairs import Pair
from genval.diffusion.sampling.denoiser import INDUCTOR_OPTIONS
from genval.diffusion.sampling.generation import prepare_vae
from genval.diffusion.training.data import EncodedFolder, LatentCache, encode_pairs
from genval.diffusion.training.settings import TrainingConfig
from genval.runtime.errors import GenValError
from genval.training.module import OptimisedModule


class DenoisingModule(OptimisedModule):
    """A network that is trained on a frozen model, and its training step.

    Checkpoints hold the network and its averaged weights, not the base.

    Args:
        base: the frozen model. It is not a submodule, so Lightning neither saves nor broadcasts it.
        network: what is trained, in float32. It becomes the attribute `NETWORK`, by which checkpoints name it.
        config: the run's settings.
        pairs: if given, they are encoded once at the start and kept on the device (`LatentCache`).
        workers: number of threads that decode images for the encoding.
        encoded: if given, the encoded pairs are read from this folder, and written to it first if they are missing.

    Raises:
        GenValError: the size does not suit the base, or the prediction type of its scheduler config is not supported.
    """

    config: TrainingConfig

    def __init__(
        self,
        base: StableDiffusion,
        network: Any,
        config: TrainingConfig,
        pairs: Sequence[Pair] | None = None,
        workers: int = 4,
        encoded: EncodedFolder | None = None,
    ) -> None:
        super().__init__(network, config)
        from diffusers import DDPMScheduler

        base.check_size(config.height, config.width)
        self.base = base
        self.noise_schedule = DDPMScheduler.from_config(base.scheduler_config)
        if self.noise_schedule.config.prediction_type not in ("epsilon", "v_prediction"):
            raise GenValError(
                f"{base.folder}: expected prediction_type epsilon or v_prediction in its scheduler config, "
                f"found {self.noise_schedule.config.prediction_type}."
            )
        if config.gradient_checkpointing:
            for model in self._networks():
                model.enable_gradient_checkpointing()
        self.cache: LatentCache | None = None
        self._pairs = pairs
        self._workers = workers
        self._encoded = encoded
        self._predict: Callable[..., torch.Tensor] = self._denoise
        if config.compile:
            # All training batches have one shape. The image log has other shapes and does not use the compiled step.
            # With several devices, PyTorch would compile a part for each 25 MiB of gradients, to exchange them early,
            # and would not look for these parts in its cache of forward and backward graphs.
            torch._dynamo.config.optimize_ddp = False
            options = INDUCTOR_OPTIONS if torch.cuda.is_available() else None
            self._predict = torch.compile(self._denoise, dynamic=False, options=options)

    @property
    def labels(self) -> LabelSet:
        """The label set of the masks."""
        return CITYSCAPES_IDS.labels

    @abstractmethod
    def sampling_models(self) -> tuple[StableDiffusion, Any]:
        """Return a base and a ControlNet (or None) that sample with `trained`."""

    @abstractmethod
    def write(self, folder: Path, dtype: str) -> None:
        """Write `trained` to a folder, with weights of a dtype, "fp32" or "fp16"."""

    @abstractmethod
    def _denoise(
        self,
        noisy: torch.Tensor,
        timesteps: torch.Tensor,
        text: torch.Tensor,
        added: dict[str, torch.Tensor] | None,
        hints: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return the prediction, of the shape of `noisy`."""

    def _networks(self) -> list[Any]:
        """Return the networks through which gradients pass."""
        return [self.base.unet]

    def _hints(self, masks: torch.Tensor) -> torch.Tensor | None:
        """Return the hints of masks (B, H, W) of ids."""
        return None

    def configure_model(self) -> None:
        # This runs before DDP wraps the module, because gradients are exchanged in the weights' memory format. Without
        # compiling, normalisations need contiguous memory, and the copies cost more than the convolutions save.
        if self.config.compile and self.trainer.strategy.root_device.type == "cuda":
            for model in (self, self.base.unet):
                torch.nn.Module.to(model, memory_format=torch.channels_last)

    def on_fit_start(self) -> None:
        # Pairs that are encoded once are encoded in float32.
        if self._encoded is not None:
            if self.global_rank == 0:
                self._encoded.prepare()
            # Every process waits at both barriers, because the folder may be finished before a slow process checks it.
            self.trainer.strategy.barrier()
            if not self._encoded.finished():
                self.base.to(self.device, torch.float32)
                self._encoded.write(self._workers, self.global_rank, self.trainer.world_size)
            self.trainer.strategy.barrier()
        if self._pairs is not None and self.cache is None:
            if self._encoded is not None:
                self.cache = self._encoded.to_device(self.device)
            else:
                self.base.to(self.device, torch.float32)
                self.cache = encode_pairs(
                    self.base, self._pairs, self.config, self._workers, self.global_rank, self.labels
                )
        self._freeze(locked_dtype(str(self.trainer.precision)))
        prepare_vae(self.base, compiled=False)

    def _freeze(self, dtype: torch.dtype) -> None:
        """Move the frozen weights to the device and their dtype."""
        self.base.to(self.device, dtype)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        """Return the mean squared error of the predicted noise or velocity (by the base's prediction type)."""
        if self.cache is not None:
            latents, masks, text = self.cache(batch)
        elif "latents" in batch:
            latents, masks, text = batch["latents"], batch["mask"], TextStates(batch["states"], batch.get("pooled"))
        else:
            # The frozen weights have the dtype of the computation. Autocast would normalise in float32.
            with torch.autocast(self.device.type, enabled=False):
                latents, masks = self.base.encode_images(batch["image"]), batch["mask"]
                text = self.base.encode_text(batch["caption"])
        generator = torch.Generator(self.device).manual_seed(batch["seed"])
        loss = self.denoising_loss(latents.float(), self._hints(masks), text.to(self.base.dtype), generator)
        self.log("loss", loss.detach(), prog_bar=True)
        return loss

    def denoising_loss(
        self, latents: torch.Tensor, hints: torch.Tensor | None, text: TextStates, generator: torch.Generator
    ) -> torch.Tensor:
        """Return the loss of one batch.

        Args:
            latents: (B, C, h, w) float32, scaled.
            hints: (B, channels, H, W) float32, of a ControlNet; None without one.
            text: text states, one per item.
            generator: of noise and timesteps.
        """
        schedule = self.noise_schedule
        noise = torch.randn(latents.shape, generator=generator, device=latents.device)
        last = schedule.config.num_train_timesteps
        timesteps = torch.randint(0, last, (len(latents),), generator=generator, device=latents.device)
        noisy = schedule.add_noise(latents, noise, timesteps).to(text.states.dtype)
        velocity = schedule.config.prediction_type == "v_prediction"
        target = schedule.get_velocity(latents, noise, timesteps) if velocity else noise
        added = self.base.added_conditions(text, *(side * self.base.downscale for side in latents.shape[2:]))
        hints = None if hints is None else hints.to(text.states.dtype)
        with self._attention():
            predicted = self._predict(noisy, timesteps, text.states, added, hints)
        return F.mse_loss(predicted.float(), target)

    @contextlib.contextmanager
    def _attention(self) -> Iterator[None]:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        if self.config.attention == "auto" or self.device.type != "cuda":
            yield
            return
        backends = (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)
        with sdpa_kernel([*backends, SDPBackend.MATH], set_priority=True):
            yield


class ControlNetModule(DenoisingModule):
    """A ControlNet and its training step; arguments as for `DenoisingModule`.

    The network is diffusers' ControlNetModel.
    """

    NETWORK = "controlnet"
    controlnet: Any

    @property
    def encoding(self) -> HintEncoding:
        """How masks are encoded as hints."""
        return read_encoding(self.controlnet, "The ControlNet")

    @property
    def labels(self) -> LabelSet:
        return self.encoding.labels

    def sampling_models(self) -> tuple[StableDiffusion, Any]:
        return self.base, move(copy.deepcopy(self.trained), self.base.device, self.base.dtype).eval()

    def write(self, folder: Path, dtype: str) -> None:
        save_controlnet(self.trained, folder, dtype)

    def _networks(self) -> list[Any]:
        return [self.controlnet, self.base.unet]

    def _hints(self, masks: torch.Tensor) -> torch.Tensor:
        return encode_hint(masks, self.encoding)

    def _groups(self) -> list[dict[str, Any]]:
        hint = list(self.controlnet.controlnet_cond_embedding.parameters())
        hint_ids = {id(parameter) for parameter in hint}
        rest = [parameter for parameter in self.controlnet.parameters() if id(parameter) not in hint_ids]
        rate = self.config.lr
        return [{"params": rest, "lr": rate}, {"params": hint, "lr": rate * self.config.hint_lr_scale}]

    def _denoise(
        self,
        noisy: torch.Tensor,
        timesteps: torch.Tensor,
        text: torch.Tensor,
        added: dict[str, torch.Tensor] | None,
        hints: torch.Tensor | None,
    ) -> torch.Tensor:
        down, middle = self.controlnet(noisy, timesteps, text, hints, added_cond_kwargs=added, return_dict=False)
        # The frozen weights already have the dtype of the computation. Under autocast every normalisation and its
        # output would be float32.
        with torch.autocast(noisy.device.type, enabled=False):
            # No input of the UNet's encoder needs a gradient, so autograd records only its decoder.
            return self.base.unet(
                noisy,
                timesteps,
                text,
                added_cond_kwargs=added,
                down_block_additional_residuals=[residual.to(noisy.dtype) for residual in down],
                mid_block_additional_residual=middle.to(noisy.dtype),
                return_dict=False,
            )[0]


class LoraModule(DenoisingModule):
    """A LoRA of the base's UNet and its training step; arguments as for `DenoisingModule`.

    The network is what `genval.diffusion.models.lora.add_lora` returned for this base's UNet.
    """

    NETWORK = "lora"
    lora: torch.nn.ParameterDict

    def sampling_models(self) -> tuple[StableDiffusion, None]:
        return dataclasses.replace(self.base, unet=merged_unet(self.base.unet, self.trained)), None

    def write(self, folder: Path, dtype: str) -> None:
        save_lora(self.base.unet, self.trained, folder, dtype)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As for every module, and refuse the checkpoint of a LoRA of another shape."""
        shapes = {f"{self.NETWORK}.{name}": value.shape for name, value in self.lora.state_dict().items()}
        saved = {key: value.shape for key, value in checkpoint["state_dict"].items() if key.startswith(self.NETWORK)}
        if saved != shapes:
            raise GenValError(
                "--resume: the checkpoint has a LoRA of other layers or another rank. Give --rank and "
                "--target_modules as in the run's settings.json, or start another run."
            )
        super().on_load_checkpoint(checkpoint)

    def _freeze(self, dtype: torch.dtype) -> None:
        # The LoRA, whose parameters are also in the UNet, stays in float32.
        trained = {id(parameter) for parameter in self.lora.parameters()}
        with torch.no_grad():
            for tensor in (*self.base.unet.parameters(), *self.base.unet.buffers()):
                if id(tensor) not in trained:
                    tensor.data = tensor.data.to(self.device, dtype)
        for model in self.base.models:
            if model is not self.base.unet:
                move(model, self.device, dtype)

    def _denoise(
        self,
        noisy: torch.Tensor,
        timesteps: torch.Tensor,
        text: torch.Tensor,
        added: dict[str, torch.Tensor] | None,
        hints: torch.Tensor | None,
    ) -> torch.Tensor:
        # As for the ControlNet: the weights already have the dtype of the computation, those of the LoRA when used.
        with torch.autocast(noisy.device.type, enabled=False):
            predicted: torch.Tensor = self.base.unet(
                noisy, timesteps, text, added_cond_kwargs=added, return_dict=False
            )[0]
        return predicted
