"""The meaning of Lightning's `--precision` where no Trainer runs the model: the dtypes of weights and of arithmetic.

`*-true` casts the weights. `*-mixed` keeps the weights in float32 and casts inside the operations (autocast).
"""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from genval.runtime.errors import GenValError

if TYPE_CHECKING:
    import torch

# The dtype of the weights and the dtype of autocast, by precision; None means no autocast.
_DTYPES = {
    "32-true": ("float32", None),
    "16-true": ("float16", None),
    "bf16-true": ("bfloat16", None),
    "16-mixed": ("float32", "float16"),
    "bf16-mixed": ("float32", "bfloat16"),
}
PRECISIONS = tuple(_DTYPES)


def check_precision(precision: str) -> None:
    """Raise GenValError unless `precision` is one of `PRECISIONS`."""
    if precision not in PRECISIONS:
        raise GenValError(f"Unknown precision {precision!r}: expected one of {', '.join(PRECISIONS)}.")


def weights_dtype(precision: str) -> torch.dtype:
    """Return the dtype of the weights.

    Raises:
        GenValError: the precision is unknown.
    """
    import torch

    check_precision(precision)
    return getattr(torch, _DTYPES[precision][0])


def compute_dtype(precision: str) -> torch.dtype:
    """Return the dtype of the arithmetic: that of autocast, or else that of the weights.

    Weights that are not trained can be stored in it, since they need no float32 master copy.

    Raises:
        GenValError: the precision is unknown.
    """
    import torch

    check_precision(precision)
    weights, autocast_name = _DTYPES[precision]
    return getattr(torch, autocast_name or weights)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Return the context in which a forward pass with weights of `weights_dtype` runs.

    Raises:
        GenValError: the precision is unknown.
    """
    import torch

    check_precision(precision)
    name = _DTYPES[precision][1]
    return torch.autocast(device.type, getattr(torch, name)) if name else contextlib.nullcontext()
