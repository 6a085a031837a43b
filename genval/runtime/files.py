"""Files that appear whole or not at all, and images that are read strictly.

Every writer goes through `replace_file`: the bytes are written to a temporary name in the same folder, flushed to the
disk and renamed, so that a killed process leaves either the old file or the new one.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genval.runtime.errors import GenValError

if TYPE_CHECKING:
    import numpy as np


@contextlib.contextmanager
def replace_file(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; when the block ends well, flush it to disk and rename it to `path`.

    Raises:
        GenValError: the folder cannot be made or written, or the disk is full. Nothing is left at `path`.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{_own_mark(os.getpid())}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors makes files that nobody but their owner can read
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except OSError as error:
        raise GenValError(
            f"Cannot write {path}: {error.strerror or error}. Free disk space, or choose a folder you may write to."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def remove_leftovers(folder: str | Path) -> None:
    """Remove the temporary files that a killed process left anywhere below `folder`.

    A file's name ends in its process's number and start time; those of processes that run on this machine are left
    alone. Call it before other machines write there.
    """
    for path in Path(folder).rglob(".*.part"):
        number, _, start = path.name.split(".")[-2].partition("-")
        if not (number.isdecimal() and _is_running(int(number), start)):
            path.unlink(missing_ok=True)


@functools.cache
def _own_mark(process: int) -> str:
    return "-".join(part for part in (str(process), _start_time(process)) if part)


def _start_time(process: int) -> str:
    """When a process started, in clock ticks since the system did; "" where the system does not tell."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
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
    """Write `data` to `path`, whole or not at all."""
    with replace_file(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON; NaN and infinity are refused, since JSON has no word for them."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def write_jsonl(path: str | Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line."""
    lines = "".join(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n" for record in records)
    write_bytes(path, lines.encode())


def write_csv(path: str | Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV table with one header line; `None` becomes an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode())


def write_png(path: str | Path, image: np.ndarray, compression: int = 1, noisy: bool = False) -> None:
    """Write an RGB (H, W, 3) or single-channel (H, W) uint8 array as PNG.

    `compression` is zlib's level, 0..9; 1 is several times faster than the usual 6 for a file about a tenth larger.
    `noisy` says that RGB pixels carry sensor noise: no run of them comes twice, and with one row filter and no search
    for repeats they are encoded in half the time, a few percent larger.
    """
    import cv2

    options = [cv2.IMWRITE_PNG_COMPRESSION, compression]
    png_filter = getattr(cv2, "IMWRITE_PNG_FILTER", None)  # OpenCV 4.10 has no such flag
    if png_filter is not None and image.ndim == 2:  # as good on label maps as choosing among all, and twice as fast
        options += [png_filter, cv2.IMWRITE_PNG_FILTER_UP]
    elif png_filter is not None and noisy:
        options += [png_filter, cv2.IMWRITE_PNG_FILTER_AVG]
        options += [cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY]
    pixels = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image
    ok, data = cv2.imencode(".png", pixels, options)
    if not ok:
        raise GenValError(f"Cannot encode {path} as PNG: shape {image.shape}, dtype {image.dtype}.")
    write_bytes(path, data.tobytes())


def read_json(path: str | Path) -> Any:
    """Parse a JSON file.

    Raises:
        GenValError: the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_bytes())
    except OSError as error:
        raise GenValError(f"Cannot read {path}: {error.strerror or error}.") from error
    except ValueError as error:
        raise GenValError(f"{path} is not valid JSON ({error}). Write it again or delete it.") from error


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Parse a file of one JSON object a line; blank lines are passed over.

    Raises:
        GenValError: the file is missing, or a line is not JSON (the message has its number).
    """
    try:
        # Not splitlines: a text may hold what Unicode calls a line separator.
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise GenValError(f"Cannot read {path}: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise GenValError(f"{path} is not a text file: expected one JSON object a line.") from error
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise GenValError(f"{path}, line {number} is not valid JSON ({error}). Mend or remove the line.") from error
    return records


def read_image(path: str | Path) -> np.ndarray:
    """Decode an image file into RGB uint8 (H, W, 3).

    Raises:
        GenValError: the file is missing, truncated or not an image.
    """
    from PIL import Image

    return _decode(path, lambda image: image if image.mode == "RGB" else image.convert("RGB"), Image)


def read_mask(path: str | Path) -> np.ndarray:
    """Decode a single-channel 8-bit label image into uint8 (H, W), palette images as their indices.

    Raises:
        GenValError: the file is missing, truncated or not a single-channel 8-bit image.
    """
    from PIL import Image

    def check(image: Any) -> Any:
        if image.mode not in ("L", "P"):
            raise GenValError(
                f"{path} is not a label mask: expected one 8-bit channel of ids, found mode {image.mode}. "
                "Give the *_labelIds.png (or trainIds) file, not the colour one."
            )
        return image

    return _decode(path, check, Image)


def _decode(path: str | Path, convert: Any, image_module: Any) -> np.ndarray:
    import numpy as np

    try:
        with image_module.open(path) as image:
            # Pillow refuses truncated files here unless a caller has turned that off; np.asarray forces the decoding.
            return np.asarray(convert(image)).copy()
    except GenValError:
        raise
    except FileNotFoundError as error:
        raise GenValError(f"{path} does not exist.") from error
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError and zlib.error for damaged files
        raise GenValError(
            f"{path} cannot be decoded ({error}). Fetch or make the file again, or set it aside (--skip_bad)."
        ) from error
