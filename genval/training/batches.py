"""The order in which a training run sees its items, and batches that threads load in advance."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import cv2
import numpy as np
import torch

from genval.runtime.seeds import item_seed

_BATCHES_AHEAD = 2

_Sample = TypeVar("_Sample")
_Loaded = TypeVar("_Loaded")


class Passes:
    """Endless passes over a number of items, each in a seeded random order.

    Args:
        count: number of items.
        seed: of the run.
        name: what the seeds of the passes are derived from; two sets of one run have different names.
    """

    def __init__(self, count: int, seed: int, name: str = "pass") -> None:
        self.count, self.seed, self.name = count, seed, name
        self._last: tuple[int, np.ndarray] | None = None  # the current pass and its permutation

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Return the indices of the items, int64 (N,), at positions 0, 1, ... of the endless sequence."""
        passes = positions // self.count
        indices = np.empty(len(positions), dtype=np.int64)
        for number in np.unique(passes):
            chosen = passes == number
            indices[chosen] = self._permutation(int(number))[positions[chosen] % self.count]
        return indices

    def _permutation(self, number: int) -> np.ndarray:
        if self._last is None or self._last[0] != number:
            rng = np.random.default_rng(item_seed(self.seed, f"{self.name} {number}"))
            self._last = (number, rng.permutation(self.count))
        return self._last[1]


def read_ahead(
    batches: Iterable[list[_Sample]], load: Callable[[_Sample], _Loaded], workers: int
) -> Iterator[tuple[list[_Sample], list[_Loaded]]]:
    """Yield each batch of samples with their loaded data; threads load the next batches in advance."""
    cv2.setNumThreads(1)  # OpenCV's own threads, one per CPU core, would compete with these
    with ThreadPoolExecutor(workers, thread_name_prefix="load") as pool:
        waiting: deque[tuple[list[_Sample], list[Future[_Loaded]]]] = deque()
        for samples in batches:
            waiting.append((samples, [pool.submit(load, sample) for sample in samples]))
            if len(waiting) > _BATCHES_AHEAD:
                ready, loaded = waiting.popleft()
                yield ready, [future.result() for future in loaded]
        while waiting:
            ready, loaded = waiting.popleft()
            yield ready, [future.result() for future in loaded]


def pinned(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor in pinned memory if there is a CUDA device."""
    return tensor.pin_memory() if torch.cuda.is_available() else tensor
