"""Many images' arrays in one safetensors file: written an image at a time, then packed; read an image at a time.

A part holds one image's arrays by their names. Packing copies the bytes of the parts one after the other, whatever
their size, under the keys `{id}/{name}`; the ids' order is the file's.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from genval.runtime.errors import GenValError
from genval.runtime.files import parse_json, replace_file, write_bytes

_HEADER = struct.Struct("<Q")
_HEADER_SHAPE = dict[str, dict[str, Any]]
_COPIED = 1 << 24
_DTYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "U8": "u1", "I32": "<i4", "I64": "<i8"}


def write_part(path: Path, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
    """Write one image's arrays, with `about` (fit for JSON) as the file's metadata, whole or not at all."""
    from safetensors.numpy import save

    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    write_bytes(path, save(contiguous, {"about": _dump(about)}))


def read_about(path: Path) -> dict[str, Any] | None:
    """The metadata of a part or of a packed file; None where there is no such file.

    Raises:
        GenValError: the file is damaged.
    """
    if not path.exists():
        return None
    about = _read_header(path)[0].get("__metadata__", {}).get("about", "{}")
    return dict(parse_json(about, f"the metadata of {path}", dict[str, Any], "Delete it and run again."))


def packed_ids(path: Path) -> list[str]:
    """The images in a packed file, in its order; none where there is no such file."""
    if not path.exists():
        return []
    header = _read_header(path)[0]
    return list(dict.fromkeys(key.rpartition("/")[0] for key in header if key != "__metadata__"))


def is_damaged(path: Path) -> bool:
    """Whether a part or a packed file exists and is not whole."""
    try:
        read_about(path)
    except GenValError:
        return True
    return False


def pack(path: Path, parts: Mapping[str, Path], about: Mapping[str, Any]) -> None:
    """Write one file of several images, and remove the parts.

    Args:
        path: the packed file. Where it exists, images without a part keep what it holds.
        parts: the place of each image's part, whether it is there or not; their order is the file's.
        about: metadata, fit for JSON.

    Raises:
        GenValError: an image has no part and is not in the file.
    """
    present = [part for part in parts.values() if part.exists()]
    if not present and packed_ids(path) == list(parts) and read_about(path) == about:
        return
    old_header, old_start = _read_header(path) if path.exists() else ({}, 0)
    header: dict[str, Any] = {"__metadata__": {"about": _dump(about)}}
    sources: list[tuple[Path, int, int]] = []
    position = 0
    for item_id, part in parts.items():
        if part.exists():
            entries, start = _read_header(part)
            of_item, source = {f"{item_id}/{key}": entry for key, entry in entries.items()}, part
        else:
            prefix = f"{item_id}/"
            of_item = {
                key: entry
                for key, entry in old_header.items()
                if key.startswith(prefix) and "/" not in key[len(prefix) :]
            }
            start, source = old_start, path
        of_item.pop(f"{item_id}/__metadata__", None)
        if not of_item:
            raise GenValError(f"{path} has no {item_id}: expected {part}. Run the same command again.")
        for key, entry in sorted(of_item.items(), key=lambda pair: pair[1]["data_offsets"][0]):
            first, last = entry["data_offsets"]
            header[key] = {**entry, "data_offsets": [position, position + last - first]}
            sources.append((source, start + first, last - first))
            position += last - first
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8 bytes
    with replace_file(path) as temporary, open(temporary, "wb") as target:
        target.write(_HEADER.pack(len(text)) + text)
        for source, start, size in sources:
            _copy(source, start, size, target)
    for part in present:
        part.unlink()
    folders = {part.parent for part in parts.values()}
    for folder in folders:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def read_arrays(path: Path, names: Iterable[str], remedy: str) -> dict[str, np.ndarray]:
    """Read arrays of numbers from an `.npz` file.

    Args:
        path: of the file.
        names: the arrays to read; others are not read.
        remedy: what to do if the file is damaged, for the error.

    Raises:
        GenValError: the file is missing or damaged, or an array is missing or does not hold finite numbers.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in names}
    except Exception as error:  # a damaged file may raise any of a dozen kinds, from zipfile's to tokenize's
        raise GenValError(f"{path} is missing or damaged ({type(error).__name__}). {remedy}") from error
    for name, array in found.items():
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "iuf" or not np.isfinite(array).all():
            raise GenValError(f"{path}: {name} does not hold finite numbers. {remedy}")
    return found


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays into a compressed `.npz` file, whole or not at all; the same arrays give the same bytes."""
    stream = io.BytesIO()
    # As `numpy.savez_compressed`, which has no argument for the level: a quarter of its time for a fifth more bytes.
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=2) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)
    write_bytes(path, stream.getvalue())


class PackedTensors:
    """A packed file, read image by image without loading the rest.

    Raises:
        GenValError: the file is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ids = packed_ids(path)
        self.about = read_about(path) or {}
        if not self.ids:
            raise GenValError(f"{path} does not exist or is empty.")
        # Read once: safetensors' own reader parses it at every opening, which takes a time quadratic in the images.
        self._header, self._start = _read_header(path)

    def read(self, item_id: str, *names: str) -> list[np.ndarray]:
        """Some of an image's arrays."""
        try:
            with open(self.path, "rb") as stream:
                return [self._read(stream, self._header[f"{item_id}/{name}"]) for name in names]
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise GenValError(f"{self.path} has no {', '.join(names)} of {item_id} ({error}).") from error

    def _read(self, stream: BinaryIO, entry: Mapping[str, Any]) -> np.ndarray:
        first, last = entry["data_offsets"]
        stream.seek(self._start + first)
        data = np.frombuffer(bytearray(stream.read(last - first)), _DTYPES[entry["dtype"]])
        return data.reshape(entry["shape"])


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """A safetensors file's header, and where its data start."""
    try:
        with open(path, "rb") as stream:
            (size,) = _HEADER.unpack(stream.read(_HEADER.size))
            header = parse_json(stream.read(size), path, _HEADER_SHAPE, "Delete it and run again.")
        ends = [int(entry["data_offsets"][1]) for key, entry in header.items() if key != "__metadata__"]
        if path.stat().st_size != _HEADER.size + size + max(ends, default=0):
            raise ValueError("its length is not what its header says")
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        struct.error,
        MemoryError,
        OverflowError,
        IndexError,
        RecursionError,
    ) as error:
        raise GenValError(f"{path} is not a whole safetensors file ({error}). Delete it and run again.") from error
    return header, _HEADER.size + size


def _copy(source: Path, start: int, size: int, target: Any) -> None:
    with open(source, "rb") as stream:
        stream.seek(start)
        while size:
            data = stream.read(min(size, _COPIED))
            if not data:
                raise GenValError(f"{source} ends early. Delete it and run again.")
            target.write(data)
            size -= len(data)


def _dump(about: Mapping[str, Any]) -> str:
    return json.dumps(about, sort_keys=True, ensure_ascii=False, allow_nan=False)
