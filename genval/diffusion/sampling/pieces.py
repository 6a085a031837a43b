"""Batches computed in smaller pieces where they do not fit into the device's memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from genval.runtime.errors import GenValError

Part = TypeVar("Part")


class Pieces:
    """How many images are computed at a time: half as many whenever the device's memory is full.

    Args:
        rows: images at a time, to begin with.
        advice: what a user can do where not even one image fits.
    """

    def __init__(self, rows: int, advice: str = "Give --precision bf16-true, or a smaller size.") -> None:
        self.rows = rows
        self.advice = advice

    def compute(self, count: int, draw: Callable[[slice, int], Part], release: Callable[[], None]) -> list[Part]:
        """Compute a batch of `count` images.

        Args:
            draw: of a slice of the batch and the number of images at a time: what is to be kept.
            release: gives back what `draw` holds of the device's memory, before a smaller piece is tried.

        Returns:
            What `draw` gave, in order.

        Raises:
            GenValError: not even one image fits.
        """
        parts: list[Part] = []
        start = 0
        while start < count:
            piece = slice(start, min(start + self.rows, count))
            part: Part | None
            try:
                part = draw(piece, self.rows)
            except torch.OutOfMemoryError as error:
                if self.rows == 1:
                    raise GenValError(f"One image does not fit into the device's memory. {self.advice}") from error
                part = None
            if part is None:
                # Out here the exception is gone, and with it the failed attempt's tensors, which its frames held.
                release()
                torch.cuda.empty_cache()
                print(f"Out of memory with {self.rows} images at a time: going on with {self.rows // 2}.", flush=True)
                self.rows //= 2
                continue
            parts.append(part)
            start = piece.stop
        return parts
