"""What a training run is made of: its settings, and which pairs each batch holds.

Everything drawn at random (the order of the pairs, crops, flips, dropped captions, noise, timesteps) is a function of
the seed and the number of the batch, never of what was drawn before: a resumed run goes on as if it had not stopped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from genval.diffusion.settings import TrainingConfig
from genval.runtime.seeds import item_seed


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
