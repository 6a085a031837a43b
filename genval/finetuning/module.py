"""The training step of a fine-tuning: cross-entropy of known pixels and the loss of outliers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genval.datasets.labels import IGNORE
from genval.finetuning.losses import energy, margin_loss, outlier_margins, rba, uniform_loss
from genval.finetuning.settings import FinetuneConfig
from genval.runtime.errors import GenValError
from genval.segmenters import Segmenter
from genval.training.module import OptimisedModule

# Smallest crop, in pixels, of the pass that finds the weights without a gradient.
_PROBE = 64


class FinetuneModule(OptimisedModule):
    """A segmenter's network that is fine-tuned; arguments besides those of `OptimisedModule` are these.

    Statistics of batch norms stay as they are: batches of a fine-tuning are small, and a part of them is generated.
    Weights that the logits do not depend on, such as those of auxiliary heads, stay as they are, too.

    Args:
        segmenter: on the CPU, in float32.
        config: the run's settings.
        loss: `uniform`, `energy` or `rba`.
        first: a batch, by which margins are measured.

    Attributes:
        trained_on: what was trained on, for the recipe. That of a checkpoint is added when it is loaded.
        fixed: what a resumed run must not change, by flag. Checkpoints hold both.
    """

    NETWORK = "segmenting"
    segmenting: Any
    config: FinetuneConfig
    margins: Tensor

    def __init__(self, segmenter: Segmenter, config: FinetuneConfig, loss: str, first: dict[str, Any]) -> None:
        freeze_unused(segmenter)
        super().__init__(segmenter.network, config)
        self._held = [segmenter]  # in a list: it is no submodule, since its network is one
        self.loss_name = loss
        self._first = first
        # Measured at the start of the training, and restored with a checkpoint.
        self.register_buffer("margins", torch.full((2,), torch.nan))
        self.trained_on: dict[str, list[str]] = {}
        self.fixed: dict[str, Any] = {}

    @property
    def segmenter(self) -> Segmenter:
        """The segmenter, whose network is `network`."""
        return self._held[0]

    def _groups(self) -> list[dict[str, Any]]:
        return [
            {"params": [weight for weight in self.network.parameters() if weight.requires_grad], "lr": self.config.lr}
        ]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["finetuning"] = {"trained_on": self.trained_on, "fixed": self.fixed}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        before = checkpoint.get("finetuning", {"trained_on": {}, "fixed": {}})
        changed = [
            f"{name} {value} (was {before['fixed'][name]})"
            for name, value in self.fixed.items()
            if before["fixed"].get(name, value) != value
        ]
        if changed:
            raise GenValError(
                f"--resume: {', '.join(changed)}. A run cannot be continued with another segmenter, loss or "
                "validation. Give those of the run so far, or start again (--run NAME without --resume)."
            )
        seen = before["trained_on"]
        self.trained_on = {key: sorted({*value, *seen.get(key, ())}) for key, value in self.trained_on.items()}

    def train(self, mode: bool = True) -> FinetuneModule:
        super().train(mode)
        for module in self.network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def on_fit_start(self) -> None:
        self.segmenter.to(self.device)
        if self.loss_name != "uniform" and not bool(self.margins.isfinite().all()):
            with torch.no_grad():
                self.eval()
                logits = self.logits(self._first["image"].to(self.device))
                scores = self.scores(logits)[self._first["train_ids"].to(self.device) != IGNORE]
                self.margins = outlier_margins(
                    self.loss_name, scores, logits.shape[1], self.config.gap, self.segmenter.of_queries
                )
        self.train()

    def logits(self, images: Tensor) -> Tensor:
        """Float32 logits (B, 19, H, W) of crops, uint8 (B, 3, H, W)."""
        logits = self.segmenter.crop_logits(images)
        if logits.shape[-2:] == images.shape[-2:]:
            return logits
        return F.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=self.segmenter.align_corners)

    def scores(self, logits: Tensor) -> Tensor:
        """The anomaly scores (B, H, W) whose margins are trained."""
        return energy(logits) if self.loss_name == "energy" else rba(logits, self.segmenter.of_queries)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        torch.manual_seed(batch["seed"])  # of dropout, so that a resumed run drops the same
        labels, outliers = batch["train_ids"].long(), batch["outliers"]
        logits = self.logits(batch["image"])
        known = labels != IGNORE
        # A batch without a known pixel has no cross-entropy, not an undefined one.
        entropy = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum") / known.sum().clamp(min=1)
        loss = entropy
        if self.config.outlier_weight:
            if self.loss_name == "uniform":
                outlier = uniform_loss(logits, outliers)
            else:
                outlier = margin_loss(self.scores(logits), known, outliers, self.margins)
            loss = entropy + self.config.outlier_weight * outlier
            self.log("outlier_loss", outlier.detach())
        self.log_dict({"loss": loss.detach(), "cross_entropy": entropy.detach()})
        return loss


def freeze_unused(segmenter: Segmenter) -> None:
    """Freeze the weights that the logits do not depend on: processes that train together must not wait for them.

    Raises:
        GenValError: the logits depend on no weight that has a gradient.
    """
    network: nn.Module = segmenter.network.requires_grad_(True)
    side = max(_PROBE, segmenter.minimum_size)
    height_width = (-(-side // segmenter.size_divisor) * segmenter.size_divisor,) * 2
    images = torch.randint(0, 256, (1, 3, *height_width), generator=torch.Generator().manual_seed(0))
    logits = segmenter.crop_logits(images)
    if logits.requires_grad:
        logits.square().mean().backward()
    for parameter in network.parameters():
        parameter.requires_grad_(parameter.grad is not None)
        parameter.grad = None
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise GenValError(f"{segmenter.name} has no weights that can be trained.")
