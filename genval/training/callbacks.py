"""Callbacks of every training run: the progress bar and the checkpoints."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from genval.runtime.errors import GenValError
from genval.runtime.progress import progress_bar, seconds_since_start
from genval.training.interruption import Interruption


class StepProgress(Callback):
    """A progress bar of optimiser steps with the loss; in a resumed run it starts at the resumed step."""

    def __init__(self, every: int = 10) -> None:
        self.every = every
        self.bar: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.bar = progress_bar(
            trainer.max_steps, "Training", unit="step", initial=trainer.global_step, rank=trainer.global_rank
        )
        if trainer.is_global_zero:
            self.bar.write(f"Training: first batch {seconds_since_start():.1f} s after the start", file=sys.stderr)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Reading the loss synchronises with the device, so it is not done at every step.
        if trainer.global_step - self.bar.n >= self.every or trainer.global_step == trainer.max_steps:
            self.bar.set_postfix(loss=f"{float(trainer.callback_metrics['loss']):.4f}", refresh=False)
            self.bar.update(trainer.global_step - self.bar.n)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.bar.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self.bar is not None:  # the error must start on a new line
            self.bar.close()


class StepCheckpoints(Callback):
    """Writes `step={n}.ckpt` every `every` optimiser steps and at the last step, and keeps the checkpoint before it.

    After `minutes` it writes a checkpoint and stops the training. After Ctrl-C or SIGTERM, in any of the processes, it
    writes one and raises KeyboardInterrupt with the signal's number. Both happen after an optimiser step, so that a
    resumed run is exact.

    If a weight is not finite, the run ends with an error and the previous checkpoint is kept.

    Args:
        folder: folder of the checkpoints.
        every: optimiser steps between checkpoints.
        minutes: of training in this process, or None.
    """

    def __init__(self, folder: Path, every: int, minutes: float | None = None) -> None:
        self.folder = folder
        self.every = every
        self.minutes = minutes
        self._last = -1
        self._before: Path | None = None  # the checkpoint that was written or read last

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = time.monotonic()
        self._last = trainer.global_step
        self._before = Path(trainer.ckpt_path) if trainer.ckpt_path else None
        # In place of Lightning's handler, which ends a training between any two batches. Lightning restores the others.
        self._interruption = Interruption(speaks=trainer.is_global_zero)
        self._interruption.listen()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        # With accumulation several batches have the same step number; the first of them follows the optimiser step.
        if step == self._last:
            return
        self._last = step
        if self.minutes is not None:
            over = time.monotonic() - self._started >= 60 * self.minutes
            # The processes stop at the same step: when the first one does.
            trainer.should_stop = bool(trainer.strategy.broadcast(over))
        signal = self._interruption.number
        if trainer.world_size > 1:
            number = torch.tensor(signal, device=trainer.strategy.root_device)
            signal = int(trainer.strategy.reduce(number, reduce_op="max"))
        if not (signal or trainer.should_stop or step % self.every == 0 or step == trainer.max_steps):
            return
        if not all(bool(parameter.isfinite().all()) for parameter in pl_module.parameters()):
            raise GenValError(
                f"The weights are not finite after step {step}: nothing was saved of it. Give a lower --lr, "
                "--gradient_clip 1, or --precision 32-true or bf16-mixed, and --resume last if there is a checkpoint."
            )
        older = list(self.folder.glob("step=*.ckpt"))
        path = self.folder / f"step={step}.ckpt"
        # Here weights_only=False means that the optimiser's state is saved too. The file is loaded with
        # weights_only=True, which refuses pickled code.
        trainer.save_checkpoint(path, weights_only=False)
        if trainer.is_global_zero:
            for file in older:
                if file not in (path, self._before):
                    file.unlink(missing_ok=True)
        self._before = path
        if signal:
            raise KeyboardInterrupt(signal)
