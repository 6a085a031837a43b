"""Which weights an output was made with."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


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
