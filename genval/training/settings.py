"""Settings of every training run. Importing this module does not import torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from genval.runtime.errors import GenValError

OPTIMIZERS = ("adamw", "adamw8bit")
LR_SCHEDULES = ("constant", "cosine")


@dataclass(frozen=True, kw_only=True)
class OptimisationConfig:
    """Settings of the optimisation; the defaults are those of the published training of the ControlNet."""

    batch_size: int = 8  # items per device
    accumulate: int = 16  # batches per optimiser step
    max_epochs: int = 150  # passes over the items
    max_steps: int | None = None  # optimiser steps, instead of max_epochs
    lr: float = 1e-5
    weight_decay: float = 0.01  # AdamW's default
    lr_schedule: str = "constant"  # or "cosine", to zero at the last step
    warmup_steps: int = 0  # linear from zero
    gradient_clip: float = 0.0  # maximum norm of the gradient; 0 disables it
    ema: float = 0.0  # decay of the averaged weights; 0 disables it
    optimizer: str = "adamw"  # or "adamw8bit": moments in 8 bits, for a fifth less memory
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulate", "max_epochs", "max_steps"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise GenValError(f"--{name}: expected a number above 0, found {getattr(self, name)}.")
        if not 0 <= self.ema < 1:
            raise GenValError(f"--ema: expected 0 up to below 1, found {self.ema}.")
        if not 0 < self.lr < math.inf:
            raise GenValError(f"--lr: expected a number above 0, found {self.lr}.")
        for name in ("warmup_steps", "gradient_clip", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise GenValError(f"--{name}: expected 0 or more, found {getattr(self, name)}.")
        for name, choices in (("lr_schedule", LR_SCHEDULES), ("optimizer", OPTIMIZERS)):
            if getattr(self, name) not in choices:
                raise GenValError(f"--{name}: expected {' or '.join(choices)}, found {getattr(self, name)}.")

    def total_steps(self, items: int, world_size: int = 1) -> int:
        """Return the optimiser steps of a run over `items` items on `world_size` devices."""
        passes = math.ceil(self.max_epochs * items / (self.batch_size * self.accumulate * world_size))
        return self.max_steps or passes
