"""What a training run shows while it goes: a progress bar, and pictures of fixed validation masks."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from genval.datasets.labels import CITYSCAPES, colourise
from genval.diffusion.pairs import Pair, load_framed
from genval.diffusion.pipelines import move
from genval.diffusion.sampling import SamplingConfig, generate
from genval.runtime.errors import GenValError
from genval.runtime.files import write_png
from genval.runtime.progress import progress_bar
from genval.runtime.seeds import item_seed


class StepProgress(Callback):
    """A bar of optimiser steps with the loss; a resumed run starts where it stopped."""

    def __init__(self, every: int = 10) -> None:
        self.every = every
        self.bar: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.bar = progress_bar(
            trainer.max_steps, "Training", unit="step", initial=trainer.global_step, rank=trainer.global_rank
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Reading the loss waits for the device, so it is not done at every step.
        if trainer.global_step - self.bar.n >= self.every or trainer.global_step == trainer.max_steps:
            self.bar.set_postfix(loss=f"{float(trainer.callback_metrics['loss']):.4f}", refresh=False)
            self.bar.update(trainer.global_step - self.bar.n)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.bar.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self.bar is not None:  # the error's line must not be glued to the bar's
            self.bar.close()


class StepCheckpoints(Callback):
    """Writes `step={n}.ckpt` every so many optimiser steps and at the last one, then removes the one before.

    Weights that are not finite end the run instead: they would take the place of the last good ones.

    Args:
        folder: where they go.
        every: optimiser steps between two.
    """

    def __init__(self, folder: Path, every: int) -> None:
        self.folder = folder
        self.every = every
        self._last = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        due = step % self.every == 0 or step == trainer.max_steps
        # With accumulation several batches end at one step; the first of them is the one that took the step.
        if not due or step == self._last:
            return
        self._last = step
        if not all(bool(parameter.isfinite().all()) for parameter in pl_module.parameters()):
            raise GenValError(
                f"The weights are not finite after step {step}: nothing was saved of it. Give a lower --lr, "
                "--gradient_clip 1, or --precision 32-true or bf16-mixed, and --resume last if there is a checkpoint."
            )
        older = list(self.folder.glob("step=*.ckpt"))
        path = self.folder / f"step={step}.ckpt"
        trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            for file in older:
                if file != path:
                    file.unlink(missing_ok=True)


class ImageLog(Callback):
    """Writes `step_{n}.png`: a row a validation pair, with the mask, the picture generated from it and the real one.

    Args:
        folder: where the pictures go.
        pairs: the validation pairs to show; their crops and noise are the same at every step.
        every: optimiser steps between two pictures.
        sampling: how to sample.
    """

    def __init__(self, folder: Path, pairs: Sequence[Pair], every: int, sampling: SamplingConfig) -> None:
        self.folder = folder
        self.pairs = pairs
        self.every = every
        self.sampling = sampling
        self._last = -1

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step > 0 and step % self.every == 0 and step != self._last and trainer.is_global_zero:
            self._last = step
            self.write(pl_module, step)

    def write(self, module: Any, step: int) -> None:
        """Generate with the module's trained ControlNet and write the picture of `step`."""
        config = module.config
        framed = [load_framed(pair, config.height, config.width, 0.5) for pair in self.pairs]
        controlnet = move(copy.deepcopy(module.trained), module.base.device, module.base.dtype).eval()
        # These shapes come up once in a while: trying out convolution algorithms for them costs more than it saves.
        with torch.backends.cudnn.flags(enabled=True, benchmark=False):
            generated = generate(
                module.base,
                controlnet,
                np.stack([one.mask for one in framed]),
                [pair.caption for pair in self.pairs],
                [""] * len(self.pairs),
                [item_seed(config.seed, f"image log {i}") for i in range(len(self.pairs))],
                self.sampling,
            ).images
        rows = [
            np.concatenate([colourise(CITYSCAPES.table[one.mask]), picture, one.image], axis=1)
            for one, picture in zip(framed, generated, strict=True)
        ]
        write_png(self.folder / f"step_{step:06d}.png", np.concatenate(rows))
