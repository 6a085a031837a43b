"""Files that appear whole or not at all, and text and JSON that are read strictly.

Every writer goes through `write_bytes` or `replace_file`: the bytes are written to a temporary name in the same folder,
flushed to the disk and renamed, so that a killed process leaves either the old file or the new one.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import functools
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from genval.runtime.errors import GenValError
from genval.runtime.json_record import ShapeError, decode

if TYPE_CHECKING:
    import numpy as np


@contextlib.contextmanager
def replace_file(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; when the block ends well, flush it to disk and rename it to `path`.

    Raises:
        GenValError: the folder cannot be made or written, or the disk is full. Nothing is left at `path`.
    """
    with _renamed(Path(path)) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors makes files that nobody but their owner can read
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _renamed(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`, and rename it when the block ends well. Errors are as in `replace_file`."""
    temporary = path.with_name(f".{path.name}.{_own_mark(os.getpid())}.part")
    try:
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        why = _why_unwritten(error) if isinstance(error, Exception) else None
        if why is None:
            raise
        raise GenValError(
            f"Cannot write {path}: {why}. Free disk space, or choose a folder you may write to."
        ) from error


def _why_unwritten(error: Exception) -> str | None:
    """Why a file could not be written, or None: safetensors and torch have errors of their own for a full disk."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    text = str(error)
    if type(error).__name__ == "SafetensorError" and "I/O error: " in text:
        return text.partition("I/O error: ")[2]
    return "not all bytes could be written" if isinstance(error, RuntimeError) and "inline_container" in text else None


@contextlib.contextmanager
def temporary_folder(parent: str | Path) -> Iterator[Path]:
    """Give a new folder in `parent`, which is made if needed, and remove it afterwards.

    What killed processes left in `parent` is removed first.

    Raises:
        OSError: it cannot be made.
    """
    parent = Path(parent)
    remove_leftovers(parent)
    temporary = parent / f".folder.{_own_mark(os.getpid())}.part"
    temporary.mkdir(parents=True)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_writable(folder: str | Path) -> None:
    """Check, before a long training, that a folder can be written. The check leaves no files.

    Raises:
        GenValError: the folder cannot be made or written.
    """
    folder = Path(folder)
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary_folder(folder):
            pass
        if is_new:
            folder.rmdir()
    except OSError as error:
        raise GenValError(
            f"Cannot write {folder}: {error.strerror or error}. Free disk space, or choose a folder you may write to."
        ) from error


def remove_leftovers(folder: str | Path) -> None:
    """Remove the temporary files and folders that a killed process left anywhere below `folder`.

    A name ends in its process's number and start time; those of processes that run on this machine are left
    alone. Call it before other machines write there.
    """
    for path in list(Path(folder).rglob(".*.part")):
        number, _, start = path.name.split(".")[-2].partition("-")
        if number.isdecimal() and _is_running(int(number), start):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@functools.cache
def _own_mark(process: int) -> str:
    return "-".join(part for part in (str(process), _start_time(process)) if part)


def _start_time(process: int) -> str:
    """When a process started, in clock ticks since the system did; "" where the system does not tell.

    It is "ended" for a process that ended and waits for its parent to notice: its number is still in use.
    """
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return "ended" if state[0] in "ZX" else state[19]
    except (OSError, IndexError):
        return ""


def _is_running(process: int, start: str) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        pass
    if start:
        return start == _start_time(process)  # otherwise another process has the number now
    return process != os.getpid()  # our own is just starting: what bears its number is an earlier process's


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all.

    Raises:
        GenValError: as `replace_file`.
    """
    # A system call releases Python's lock, and the thread then waits for the lock. `open` makes more system calls.
    with _renamed(Path(path)) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o666)
        try:
            left = memoryview(data).cast("B")
            while left:
                left = left[os.write(descriptor, left) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON; NaN and infinity are refused, since JSON has no word for them."""
    write_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """Return what `write_json` writes."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_jsonl(path: str | Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line."""
    write_bytes(path, jsonl_bytes(records))


def jsonl_bytes(records: Iterable[Mapping[str, Any]]) -> bytes:
    """Return what `write_jsonl` writes."""
    return "".join(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n" for record in records).encode()


def write_csv(path: str | Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV table with one header line; `None` becomes an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode())


def write_png(path: str | Path, image: np.ndarray, compression: int = 1, noisy: bool = False) -> None:
    """Write an RGB (H, W, 3) uint8 array, or a single-channel (H, W) uint8 or uint16 array, as PNG.

    `compression` is zlib's level, 0..9; 1 is several times faster than the usual 6 for a file about a tenth larger.
    `noisy` says that pixels carry noise, such as a camera's: no run of them comes twice, and with one row filter and no
    search for repeats they are encoded in half the time, a few percent larger.
    """
    import cv2

    options = [cv2.IMWRITE_PNG_COMPRESSION, compression]
    png_filter = getattr(cv2, "IMWRITE_PNG_FILTER", None)  # OpenCV 4.10 has no such flag
    if png_filter is not None and image.ndim == 2 and not noisy:
        # As good on label maps as choosing among all, and twice as fast.
        options += [png_filter, cv2.IMWRITE_PNG_FILTER_UP]
    elif png_filter is not None and noisy:
        options += [png_filter, cv2.IMWRITE_PNG_FILTER_AVG]
        options += [cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY]
    pixels = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image
    ok, data = cv2.imencode(".png", pixels, options)
    if not ok:
        raise GenValError(f"Cannot encode {path} as PNG: shape {image.shape}, dtype {image.dtype}.")
    write_bytes(path, data.tobytes())


_REMEDY = "Write it again or delete it."


def read_bytes(path: str | Path) -> bytes:
    """Read a file.

    Raises:
        GenValError: the file is missing or may not be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise GenValError(f"Cannot read {path}: {error.strerror or error}.") from error


def read_text(path: str | Path) -> str:
    """Read a text file in UTF-8, or in UTF-16 with a byte order mark, which is no part of the text.

    Raises:
        GenValError: the file is missing or not text.
    """
    return _decode_text(read_bytes(path), path)


def _decode_text(data: bytes, source: str | Path) -> str:
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        where = f"byte {data[error.start]:#04x} at position {error.start}"
        raise GenValError(f"{source} is not a text file in UTF-8 ({where}). Save it as UTF-8.") from error


def read_lines(path: str | Path) -> list[str]:
    """The lines of a text file without spaces at their ends; blank lines are skipped.

    Raises:
        GenValError: as `read_text`.
    """
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def parse_json(text: str | bytes, source: str | Path, shape: Any = Any, remedy: str = _REMEDY) -> Any:
    """Parse strict JSON and check its shape.

    NaN and infinite numbers, a key that an object has twice, and half of a surrogate pair are refused: what they mean
    depends on the reader.

    Args:
        text: of the JSON.
        source: where it is from, for the error.
        shape: see `genval.runtime.json_record`.
        remedy: what to do, for the error.

    Raises:
        GenValError: it is not JSON, or has another shape.
    """
    try:
        if not text.strip():
            raise ValueError("it is empty")
        text = _decode_text(text, source) if isinstance(text, bytes) else text
        value = json.loads(
            text, object_pairs_hook=_without_duplicates, parse_constant=_refuse_number, parse_float=_finite
        )
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise GenValError(f"{source} is not valid JSON (it is nested too deeply). {remedy}") from error
    except ValueError as error:
        raise GenValError(f"{source} is not valid JSON ({error}). {remedy}") from error
    return check_shape(value, shape, source, remedy)


def check_shape(value: Any, shape: Any, source: str | Path, remedy: str = _REMEDY) -> Any:
    """Return a value that was read from JSON, as the type of a shape.

    Raises:
        GenValError: it has another shape.
    """
    try:
        return decode(shape, value)
    except ShapeError as error:
        raise GenValError(f"{source}: {error}. {remedy}") from error


def read_json(path: str | Path, shape: Any = Any, remedy: str = _REMEDY) -> Any:
    """Parse a JSON file, strictly (see `parse_json`), and check its shape.

    Args:
        path: of the file.
        shape: what it must hold, see `genval.runtime.json_record`; `Any` leaves that to the caller.
        remedy: what to do, for the error.

    Raises:
        GenValError: the file is missing, is not JSON, or has another shape.
    """
    return parse_json(read_text(path), path, shape, remedy)


def read_jsonl(path: str | Path, shape: Any = dict[str, Any], remedy: str = "Correct or remove the line.") -> list[Any]:
    """Parse a file of one JSON object a line, strictly (see `parse_json`); blank lines are skipped.

    Args:
        path: of the file.
        shape: of each line, see `genval.runtime.json_record`.
        remedy: what to do, for the error.

    Raises:
        GenValError: the file is missing, or a line is not JSON or has another shape (the message has its number).
    """
    lines = split_jsonl(read_text(path).encode(), path)
    return [
        parse_json(line, f"{path}, line {number}", shape, remedy)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]


def split_jsonl(data: bytes, source: str | Path) -> list[bytes]:
    """Split a file of one JSON object a line into its lines.

    Raises:
        GenValError: it is one JSON list, or text in UTF-16.
    """
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise GenValError(f"{source} is in UTF-16, not UTF-8. Save it as UTF-8.")
    data = data.removeprefix(codecs.BOM_UTF8)
    if data.lstrip().startswith(b"["):
        raise GenValError(
            f"{source} holds a JSON list: expected one JSON object a line, without brackets around them and commas "
            "between them. Write each entry on a line of its own."
        )
    # Not splitlines, which also splits at a carriage return alone.
    return data.removesuffix(b"\n").split(b"\n")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it has the key {twice!r} twice")
    return content


def _refuse_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{text} is too large a number")
    return value
