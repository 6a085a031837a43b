"""Batches that are split into smaller ones when they do not fit into the device's memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from genval.runtime.errors import GenValError

Part = TypeVar("Part")


class MicroBatches:
    """Computes batches in micro-batches, whose size is halved each time the device runs out of memory.

    Args:
        rows: images per micro-batch at the start.
        advice: what a user can do if not even one image fits.
    """

    def __init__(self, rows: int, advice: str = "Give --precision bf16-true, or a smaller size.") -> None:
        self.rows = rows
        self.advice = advice

    def compute(self, count: int, function: Callable[[slice, int], Part], release: Callable[[], None]) -> list[Part]:
        """Compute a batch of `count` images.

        Args:
            function: takes a slice of the batch and the size of a micro-batch, and returns the result of that slice.
            release: frees the device's memory that `function` keeps, before a smaller micro-batch is tried.

        Returns:
            The results of `function`, in order.

        Raises:
            GenValError: not even one image fits.
        """
        parts: list[Part] = []
        start = 0
        while start < count:
            piece = slice(start, min(start + self.rows, count))
            part: Part | None
            try:
                part = function(piece, self.rows)
            except torch.OutOfMemoryError as error:
                if self.rows == 1:
                    raise GenValError(f"One image does not fit into the device's memory. {self.advice}") from error
                part = None
            if part is None:
                # Outside the except block the exception is freed, and with it the tensors that its frames held.
                release()
                torch.cuda.empty_cache()
                print(f"Out of memory with {self.rows} images at a time: continuing with {self.rows // 2}.", flush=True)
                self.rows //= 2
                continue
            parts.append(part)
            start = piece.stop
        return parts
