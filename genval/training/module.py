"""What every trained module has: the optimiser, the learning rate, clipped gradients and averaged weights."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from pytorch_lightning import LightningModule
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from genval.runtime.errors import GenValError
from genval.training.settings import OptimisationConfig


class OptimisedModule(LightningModule):
    """A network that is trained with AdamW. Checkpoints hold the network and its averaged weights.

    Args:
        network: what is trained, in float32. It becomes the attribute `NETWORK`, by which checkpoints name it.
        config: the run's settings.
    """

    NETWORK: ClassVar[str]

    def __init__(self, network: Any, config: OptimisationConfig) -> None:
        super().__init__()
        self.config = config
        setattr(self, self.NETWORK, network.train())
        self.average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(config.ema)) if config.ema else None
        if self.average is not None:
            self.average.requires_grad_(False)

    @property
    def network(self) -> Any:
        """What is trained."""
        return getattr(self, self.NETWORK)

    @property
    def trained(self) -> Any:
        """The network to save and to sample with: the averaged one if `ema` is set."""
        return self.network if self.average is None else self.average.module

    def _groups(self) -> list[dict[str, Any]]:
        """Return the optimiser's groups of parameters."""
        return [{"params": list(self.network.parameters()), "lr": self.config.lr}]

    def configure_optimizers(self) -> Any:
        config = self.config
        groups = self._groups()
        if config.optimizer == "adamw8bit":
            optimizer = _adamw_8bit(groups, config.weight_decay)
        else:
            fused = self.device.type == "cuda" and self.trainer.precision != "16-mixed"
            optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=fused)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self._lr_factor(step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Let a resumed run use its own learning rates and weight decay instead of the checkpoint's."""
        rates = [group["lr"] for group in self._groups()]
        for optimizer in checkpoint.get("optimizer_states", []):
            for group, rate in zip(optimizer["param_groups"], rates, strict=True):
                group["lr"] *= rate / group["initial_lr"]
                group |= {"initial_lr": rate, "weight_decay": self.config.weight_decay}
        for schedule in checkpoint.get("lr_schedulers", []):
            schedule["base_lrs"] = rates

    def _lr_factor(self, step: int) -> float:
        config = self.config
        factor = min(1.0, (step + 1) / (config.warmup_steps + 1))
        if config.lr_schedule == "cosine":
            factor *= 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.trainer.max_steps)))
        return factor

    def on_train_start(self) -> None:
        if self.device.type == "cuda":
            # PyTorch's work on the CPU is to stack batches and to start kernels. If it used several threads, they would
            # wait for cores on which images are decoded. The rest of the process keeps this setting.
            torch.set_num_threads(1)

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        # Lightning refuses to clip with fused optimisers under mixed precision, although bf16 does not scale gradients.
        if self.config.gradient_clip:
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.config.gradient_clip)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.average is not None:
            self.average.update_parameters(self.network)


def check_optimizer(name: str) -> None:
    """Check that the optimiser's library is installed, before anything is loaded.

    Raises:
        GenValError: adamw8bit without bitsandbytes.
    """
    if name == "adamw8bit":
        _adamw_8bit_class()


def _adamw_8bit(groups: list[dict[str, Any]], weight_decay: float) -> torch.optim.Optimizer:
    optimizer: torch.optim.Optimizer = _adamw_8bit_class()(groups, weight_decay=weight_decay)
    return optimizer


def _adamw_8bit_class() -> Any:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise GenValError(
            "--optimizer adamw8bit needs the package bitsandbytes, which is not installed here. Run: pip install "
            "bitsandbytes. Or use --optimizer adamw."
        ) from error
    return AdamW8bit
