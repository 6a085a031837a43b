"""Which pairs a training batch holds, and how each is augmented.

All random numbers (order of the pairs, crops, flips, dropped captions, noise, timesteps) depend only on the seed and
the number of the batch. A resumed run therefore trains on the same batches as a run that was not interrupted.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np

from genval.diffusion.training.settings import TrainingConfig
from genval.runtime.seeds import item_seed
from genval.training.batches import Passes


@dataclasses.dataclass(frozen=True)
class PairSample:
    """One sample of a batch.

    Attributes:
        index: of the pair.
        place: 0..1, where the crop lies along the frame's longer side.
        flip: whether image and mask are mirrored.
        drop_caption: whether the caption is replaced by an empty one.
        batch_seed: seed of the batch's noise and timesteps.
    """

    index: int
    place: float
    flip: bool
    drop_caption: bool
    batch_seed: int


class PairSampler:
    """The endless sequence of batches of one process. Batch n depends only on n and the seed.

    Each pass over the pairs is one seeded permutation, shared out among the processes. Passes follow each other without
    a gap, so every batch is full.

    Args:
        count: number of pairs.
        config: batch size, seed, flips and caption dropout.
        start: number of the first batch.
        rank, world_size: this process and the number of processes.
    """

    def __init__(self, count: int, config: TrainingConfig, start: int = 0, rank: int = 0, world_size: int = 1) -> None:
        self.count = count
        self.config = config
        self.start = start
        self.rank = rank
        self.world_size = world_size
        self._passes = Passes(count, config.seed)

    def __iter__(self) -> Iterator[list[PairSample]]:
        return map(self.batch, itertools.count(self.start))

    def batch(self, number: int) -> list[PairSample]:
        """Return batch `number` (0, 1, ...) of this process."""
        config = self.config
        first = (number * self.world_size + self.rank) * config.batch_size
        indices = self._passes(np.arange(first, first + config.batch_size))
        seed = item_seed(config.seed, f"batch {number} of process {self.rank}")
        rng = np.random.default_rng(seed)
        places = rng.random(config.batch_size)
        flips = (rng.random(config.batch_size) < 0.5) & config.flip
        drops = rng.random(config.batch_size) < config.caption_dropout
        return [
            PairSample(int(index), float(place), bool(flip), bool(drop), seed)
            for index, place, flip, drop in zip(indices, places, flips, drops, strict=True)
        ]
