"""What Lightning's `--precision` means where no Trainer runs the model: the dtype of weights and of arithmetic."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from genval.runtime.errors import GenValError

if TYPE_CHECKING:
    import torch

# `true` casts the weights, `mixed` keeps them in float32 and casts inside the operations.
_NAMES = {"32-true": "float32", "16-true": "float16", "bf16-true": "bfloat16"}
_MIXED = {"16-mixed": "float16", "bf16-mixed": "bfloat16"}


def weights_dtype(precision: str) -> torch.dtype:
    """The dtype of the weights.

    Raises:
        GenValError: the precision is unknown.
    """
    import torch

    if precision not in _NAMES and precision not in _MIXED:
        raise GenValError(f"Unknown precision {precision!r}: expected one of {', '.join((*_NAMES, *_MIXED))}.")
    return getattr(torch, _NAMES.get(precision, "float32"))


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The context in which a forward pass runs with weights of `weights_dtype`."""
    import torch

    name = _MIXED.get(precision)
    return torch.autocast(device.type, getattr(torch, name)) if name else contextlib.nullcontext()
