"""Which weights and files an output was made with."""

from __future__ import annotations

import functools
import hashlib
import os
import struct
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genval.runtime.devices import background_stream
from genval.runtime.errors import GenValError

if TYPE_CHECKING:
    from torch import nn

UNIDENTIFIED = "callable-"
"""Start of the identity of a model without weights, such as a Python function: its results are never reused."""

# Bytes of a file's end that its mark covers.
_END = 4096
_PNG = b"\x89PNG\r\n\x1a\n"
_CHUNK = 12  # bytes of a PNG chunk besides its data
# The chunks of the pixels, and those that do not change how they are read.
_PLAIN_CHUNKS = b"IHDR IDAT IEND pHYs tIME tEXt zTXt iTXt gAMA cHRM sRGB iCCP sBIT bKGD".split()


def weights_hash(module: nn.Module) -> str:
    """16 hex digits over the names, dtypes, shapes and values of a module's parameters and buffers (BLAKE2b).

    Two checkpoints under one name differ in it, the same weights on another device or from another file do not.
    """
    return _hash_tensors(module.state_dict())


class Hashed:
    """A model whose weights are hashed in a thread.

    Hashing gigabytes takes seconds, in which the model is moved to its device or run.

    Args:
        module: the model with its weights as they were loaded. They must not be changed in place.
    """

    def __init__(self, module: nn.Module) -> None:
        pool = ThreadPoolExecutor(1, thread_name_prefix="hash")
        self._hash = pool.submit(_hash_aside, module.state_dict())
        pool.shutdown(wait=False)

    @property
    def hash(self) -> str:
        """`weights_hash` of the weights as they were loaded."""
        return self._hash.result()


def _hash_aside(tensors: Mapping[str, Any]) -> str:
    import torch

    devices = (tensor.device for tensor in tensors.values() if isinstance(tensor, torch.Tensor))
    with background_stream(next(devices, torch.device("cpu"))):
        return _hash_tensors(tensors)


def _hash_tensors(tensors: Mapping[str, Any]) -> str:
    import torch

    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(tensors.items()):
        if not isinstance(tensor, torch.Tensor):
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        # NumPy has no bfloat16: hash the bytes as they lie in memory.
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def file_mark(path: Path) -> str:
    """A file's size in bytes and a hash: of the end of a PNG file where that covers its pixels, else of the whole file.

    The pixels of a PNG file end in a checksum of all of them. The end does not cover a file with a palette,
    transparency, an orientation or several frames, nor one whose pixels are followed by much other data.

    Raises:
        GenValError: the file cannot be read.
    """
    try:
        with open(path, "rb", buffering=0) as stream:
            file = stream.fileno()
            size = os.fstat(file).st_size
            if _end_covers_pixels(file, size):
                end = os.pread(file, _END, max(0, size - _END))
                return f"{size}-{hashlib.blake2b(end, digest_size=4).hexdigest()}"
            return f"{size}-{hashlib.file_digest(stream, 'sha256').hexdigest()[:16]}"
    except OSError as error:
        raise GenValError(f"Cannot read {path}: {error.strerror or error}.") from error


def _end_covers_pixels(file: int, size: int) -> bool:
    """Whether an open file is a PNG whose last `_END` bytes hold the checksum of all that decides about its pixels."""
    if os.pread(file, len(_PNG), 0) != _PNG:
        return False
    place, checksum = len(_PNG), 0
    while place + _CHUNK <= size:
        length, kind = struct.unpack(">I4s", os.pread(file, 8, place))
        if kind not in _PLAIN_CHUNKS:
            return False
        place += length + _CHUNK
        if kind == b"IDAT" and length >= 4:
            checksum = place - 8  # the last four bytes of the data, before the chunk's own checksum
        if kind == b"IEND":
            return place == size and checksum >= size - _END
    return False


def current_mark(path: Path) -> str | None:
    """The mark of a file as it is now, computed once per state of the file; None where there is no such file."""
    try:
        state = path.stat()
    except OSError:
        return None
    return _mark_of_state(path, state.st_size, state.st_mtime_ns)


def files_hash(files: Iterable[Path]) -> str:
    """12 hexadecimal digits over the names and marks of files, in order; one that cannot be read has no mark."""
    digest = hashlib.sha256()
    for file in files:
        try:
            mark = current_mark(file)
        except GenValError:
            mark = None
        digest.update(f"{file.name} {mark};".encode(errors="surrogatepass"))
    return digest.hexdigest()[:12]


@functools.lru_cache(maxsize=1 << 17)
def _mark_of_state(path: Path, size: int, modified: int) -> str:
    return file_mark(path)
