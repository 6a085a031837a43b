"""How the networks of this package run: the dtype of their weights and of their arithmetic, and in what pieces."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TypeVar

import torch

from genval.runtime.errors import GenValError

# Lightning's names: `true` casts the weights, `mixed` keeps them in float32 and casts inside the operations.
_TRUE = {"32-true": torch.float32, "16-true": torch.float16, "bf16-true": torch.bfloat16}
_MIXED = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}

T = TypeVar("T")


def weights_dtype(precision: str) -> torch.dtype:
    """The dtype of the weights under one of Lightning's precisions.

    Raises:
        GenValError: the precision is unknown.
    """
    if precision not in _TRUE and precision not in _MIXED:
        raise GenValError(f"Unknown precision {precision!r}: expected one of {', '.join((*_TRUE, *_MIXED))}.")
    return _TRUE.get(precision, torch.float32)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The context in which a forward pass runs."""
    dtype = _MIXED.get(precision)
    return torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext()


def pieces(values: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """`values` cut into runs of at most `size`."""
    for start in range(0, len(values), size):
        yield values[start : start + size]
