"""Overlapping windows that cover an image larger than a model was trained for."""

from __future__ import annotations

import math

import torch

from genval.datasets.boxes import Box

# Neighbouring windows share at least this part of their side.
_OVERLAP = 0.25


def windows(height: int, width: int, window_height: int, window_width: int) -> list[Box]:
    """Return the fewest evenly spaced windows that cover (height, width), each overlapping the next by a quarter."""
    tops, lefts = _starts(height, window_height), _starts(width, window_width)
    return [Box(top, left, window_height, window_width) for top in tops for left in lefts]


def blend_weights(height: int, width: int, device: torch.device) -> torch.Tensor:
    """Return the (height, width) float32 weights of a window: largest in the middle, above zero, without a seam."""
    down, across = (1 - (torch.arange(n, device=device) * 2 + 1 - n).abs() / (n + 1) for n in (height, width))
    return down[:, None] * across[None]


def _starts(side: int, window: int) -> list[int]:
    count = 1 if side <= window else math.ceil((side - window) / (window * (1 - _OVERLAP))) + 1
    return [round(i * (side - window) / max(1, count - 1)) for i in range(count)]
