"""What a training run is made of: its settings, and which pairs each batch holds.

Everything drawn at random (the order of the pairs, crops, flips, dropped captions, noise, timesteps) is a function of
the seed and the number of the batch, never of what was drawn before: a resumed run goes on as if it had not stopped.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from genval.diffusion.framing import IMAGE_RESIZES
from genval.runtime.errors import GenValError
from genval.runtime.seeds import item_seed

OPTIMIZERS = ("adamw", "adamw8bit")
ATTENTIONS = ("auto", "cudnn")


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
    image_resize: str = "area"  # of the crops: area or bilinear; "nearest", as published, aliases
    crops: int = 1  # places a frame is cut at where pairs are encoded once; on the fly every crop is another
    ema: float = 0.0  # decay of the averaged weights; 0 is off
    optimizer: str = "adamw"  # or "adamw8bit": moments in 8 bits, for a fifth less memory
    gradient_checkpointing: bool = False  # compute activations again in the backward pass instead of keeping them
    compile: bool = False  # of the whole forward and backward pass, for a minute or two at the start
    attention: str = "auto"  # PyTorch's choice of kernel, or "cudnn" before it
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("height", "width", "batch_size", "accumulate", "max_epochs", "max_steps", "crops"):
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
        for name, choices in (
            ("lr_schedule", ("constant", "cosine")),
            ("image_resize", IMAGE_RESIZES),
            ("optimizer", OPTIMIZERS),
            ("attention", ATTENTIONS),
        ):
            if getattr(self, name) not in choices:
                raise GenValError(f"--{name}: expected {' or '.join(choices)}, found {getattr(self, name)}.")

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
