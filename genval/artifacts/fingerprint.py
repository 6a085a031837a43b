"""Which weights and files an output was made with."""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from genval.runtime.errors import GenValError

if TYPE_CHECKING:
    from torch import nn

UNIDENTIFIED = "callable-"
"""Start of the identity of a model without weights, such as a Python function: its results are never reused."""

# Bytes of a file's end that its mark covers.
_END = 4096


def weights_hash(module: nn.Module) -> str:
    """16 hex digits over the names, dtypes, shapes and values of a module's parameters and buffers (BLAKE2b).

    Two checkpoints under one name differ in it, the same weights on another device or from another file do not.
    """
    import torch

    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(module.state_dict().items()):
        if not isinstance(tensor, torch.Tensor):
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        # NumPy has no bfloat16: hash the bytes as they lie in memory.
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def file_mark(path: Path) -> str:
    """A file's size in bytes and a hash of its end: cheap, and a PNG's end holds checksums of all of its pixels.

    Raises:
        GenValError: the file cannot be read.
    """
    try:
        with open(path, "rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - _END))
            return f"{size}-{hashlib.blake2b(stream.read(), digest_size=4).hexdigest()}"
    except OSError as error:
        raise GenValError(f"Cannot read {path}: {error.strerror or error}.") from error


def current_mark(path: Path) -> str | None:
    """The mark of a file as it is now, computed once per state of the file; None where there is no such file."""
    try:
        state = path.stat()
    except OSError:
        return None
    return _mark_of_state(path, state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=1 << 17)
def _mark_of_state(path: Path, size: int, modified: int) -> str:
    return file_mark(path)
