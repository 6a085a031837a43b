"""Decoding of images and masks, and the partition of items into batches.

Every image and mask of the project is read here. An image is read as a viewer shows it; a file that could be read in
two ways is refused by name. A mask is read as the samples that its file stores.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
import struct
import threading
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np

from genval.datasets.items import BadFile, Item
from genval.datasets.labels import CITYSCAPES, IGNORE, TRAIN_IDS, LabelSpace, find_label_space
from genval.datasets.palettes import holds_ids
from genval.runtime.devices import available_memory
from genval.runtime.errors import GenValError, without_skip_bad

if TYPE_CHECKING:
    from PIL.Image import Image

_R = TypeVar("_R")
_Item = TypeVar("_Item", bound=Item)
_File = TypeVar("_File", bound="Item | Path")
_Arrays = TypeVar("_Arrays", bound="tuple[np.ndarray, ...]")

# Pillow opens these alone: EPS would start Ghostscript, and GIF has 256 colours.
_IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF")
_MASK_FORMATS = ("PNG",)
_EIGHT_BITS = ("RGB", "L", "P", "1", "YCbCr")
_WITH_ALPHA = ("RGBA", "RGBa", "LA", "PA")
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
# TIFF and EXIF tags.
_BITS_PER_SAMPLE, _PHOTOMETRIC, _ORIENTATION = 258, 262, 274
_BLACK_IS_ZERO = 1
_BIT_DEPTH = 24  # place of this byte in a PNG file
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_PNG_HEAD = 33  # bytes of the signature and of the chunk IHDR
_PNG_RGB, _PNG_GREY = 2, 0  # colour types
_PIXEL_CHUNKS = frozenset(b"IHDR IDAT IEND".split())
# Chunks that do not change how the pixels of an 8-bit grey or RGB file are shown here.
_OTHER_CHUNKS = frozenset(b"pHYs tIME tEXt zTXt iTXt gAMA cHRM sRGB iCCP sBIT bKGD".split())
_MOST_PIXELS = 1 << 26

# How the files begin that are found under the name of an image, and what they are.
_BEGINNINGS = {
    b"GIF8": "a GIF file",
    b"%!PS": "an EPS file",
    b"\xc5\xd0\xd3\xc6": "an EPS file",
    b"%PDF": "a PDF file",
    b"BM": "a BMP file",
    b"8BPS": "a Photoshop file",
    b"\xff\xd8\xff": "a JPEG file",
    b"II*\0": "a TIFF file",
    b"MM\0*": "a TIFF file",
    b"RIFF": "a WebP or another RIFF file",
    b"\x00\x05\x16\x07": "the companion file that macOS makes of an image",
    b"version https://git-lfs": "a Git LFS pointer (run: git lfs pull)",
    b"<": "an HTML, XML or SVG text",
}


def read_image(path: str | Path) -> np.ndarray:
    """Decode an image file into RGB uint8 (H, W, 3), as a viewer shows it.

    The EXIF orientation is applied. 16-bit samples keep their upper 8 bits. Colour profiles are not applied.

    Raises:
        GenValError: the file is missing, damaged or not a PNG, JPEG, WebP or TIFF file; or it has several frames,
            transparent pixels, CMYK colours or samples of 32 bits, which do not say how they are to be shown.
    """

    def decode(image: Image, _: bytes) -> np.ndarray:
        return np.asarray(_upright(_as_rgb(image, path), image)).copy()

    pixels = _decode_plain_png(path, _PNG_RGB)
    if pixels is not None:
        return pixels
    return _open(path, _IMAGE_FORMATS, "a PNG, JPEG, WebP or TIFF file", decode)


def read_mask(path: str | Path, table: np.ndarray | None = None) -> np.ndarray:
    """Decode a label image, a PNG of one channel of at most 8 bits, into the stored samples, uint8 (H, W).

    Samples of 1, 2 and 4 bits are not scaled. Palette images give their indices where these are plainly ids: see
    `palettes.holds_ids`. The EXIF orientation is applied, as to images.

    Args:
        path: the file.
        table: trainId of each id, uint8 (256,), as `LabelSpace.table`; None where the meaning of the ids is unknown.

    Raises:
        GenValError: the file is missing, damaged or not such an image, or its palette does not show that indices are
            ids.
    """

    def decode(image: Image, head: bytes) -> np.ndarray:
        if image.mode == "P":
            if not holds_ids(bytes(image.palette.palette) if image.palette else b"", table):
                raise GenValError(
                    f"{path} is a palette image, and its palette does not show that the indices are ids. Give the mask "
                    "with the ids as 8-bit grey values. Make it from the original ids, not from the colours."
                )
        elif image.mode not in ("L", "1"):
            raise GenValError(
                f"{path} is not a label mask: expected one channel of ids of at most 8 bits, found mode {image.mode}. "
                "Give the *_labelIds.png (or trainIds) file, not the one of colours or of instances."
            )
        bits = head[_BIT_DEPTH]
        samples = np.asarray(_upright(image.convert("L") if image.mode == "1" else image, image))
        if image.mode != "P" and bits < 8:  # Pillow scales these to 0..255
            return samples // (255 // (2**bits - 1))
        return samples.copy()

    pixels = _decode_plain_png(path, _PNG_GREY)
    if pixels is not None:
        return pixels
    return _open(path, _MASK_FORMATS, "a PNG file, which keeps ids exactly", decode)


def read_pair(item: Item) -> tuple[np.ndarray, np.ndarray]:
    """Decode an item.

    Returns:
        The image, RGB uint8 (H, W, 3), and its trainIds (or the numbers of merged classes), uint8 (H, W).

    Raises:
        GenValError: a file is missing, truncated or of the wrong kind, the two differ in size, or the mask holds an
            unknown id or trainIds where labelIds are expected.
    """
    image = read_image(item.image)
    space = find_label_space(item.label_space)
    label_ids = read_mask(item.mask, space.train_id_table)
    if image.shape[:2] != label_ids.shape:
        raise GenValError(
            f"{item.image} and {item.mask} differ in size: expected one size, found {_size(image)} and "
            f"{_size(label_ids)} pixels. Resize the mask by nearest neighbour, or use --skip_bad."
        )
    train_ids = space.to_train_ids(label_ids, str(item.mask))
    if 2 * np.count_nonzero(train_ids == IGNORE) > train_ids.size:
        # Without a class most pixels may be ids of another kind.
        fault = space.fault(np.bincount(label_ids.ravel(), minlength=256))
        if fault is not None:
            raise GenValError(f"{item.mask} holds {fault}. Give the file with the raw ids, or use --skip_bad.")
    return image, train_ids


class DecodedCache:
    """Decoded files that are read several times; several threads may read at the same time.

    A file that changes is decoded again. When the memory is used up, further items are decoded at every reading. So are
    they while less than a quarter of the memory is free that was free at first: other processes may use it.

    Args:
        limit: number of bytes that are kept.
    """

    def __init__(self, limit: int) -> None:
        self._limit = self._room = limit
        self._reserve = available_memory() // 4
        self._kept: dict[Item, tuple[object, tuple[np.ndarray, ...]]] = {}
        self._lock = threading.Lock()

    def read(self, item: _Item, decode: Callable[[_Item], _Arrays]) -> _Arrays:
        """Return what `decode` returns for the item; do not write into the arrays.

        Args:
            item: what is decoded; always with the same function.
            decode: gives a tuple of arrays, such as `read_pair`.
        """
        if not self._limit:
            return decode(item)
        state = [_state(path) for path in item.files]
        before, kept = self._kept.get(item, (None, None))
        if kept is not None and before == state:
            return cast(_Arrays, kept)
        arrays = decode(item)
        size = sum(array.nbytes for array in arrays)
        with self._lock:
            if item not in self._kept and size <= self._room and available_memory() >= self._reserve:
                self._room -= size
                self._kept[item] = state, arrays
        return arrays


def memory_for_images(processes: int) -> int:
    """Return how many bytes of decoded images each process of a machine may keep: a part of the free memory."""
    return available_memory() // 4 // max(1, processes)


def _state(path: Path) -> tuple[int, int, int] | None:
    with contextlib.suppress(OSError):
        found = path.stat()
        return found.st_size, found.st_mtime_ns, found.st_ino
    return None


def check_ids(items: Sequence[Item]) -> None:
    """Refuse a set whose masks hold other ids than its label space says, or no class at all: see `check_masks`."""
    for name in dict.fromkeys(item.label_space for item in items):
        check_masks([item.mask for item in items if item.label_space == name], find_label_space(name))


def check_masks(masks: Sequence[Path], space: LabelSpace) -> None:
    """Refuse masks of other ids than the label space's, or without a class.

    Masks are read until one shows that the ids are right, which is usually the first. Masks that cannot be read are
    left to the reader of the items.

    Raises:
        GenValError: trainIds stand where labelIds are expected or the reverse, or no mask has a pixel with a class.
    """
    space = space.origin or space
    total = np.zeros(256, np.int64)
    other: Path | None = None
    for path in masks:
        try:
            pixels = np.bincount(read_mask(path, space.train_id_table).ravel(), minlength=256)
        except GenValError:
            continue
        if space.fault(pixels) is None:
            total += pixels
        elif space is TRAIN_IDS and CITYSCAPES.fault(pixels) is None:
            other = other or path
        if space.shows_kind(total):
            return
    if other is not None:
        raise GenValError(
            f"{other} holds Cityscapes labelIds, and no mask of the set holds 255 as trainIds do. Give the masks of "
            "trainIds, or name the labels of a set of your own: folder:IMAGES,MASKS,cityscapes."
        )
    if fault := space.set_fault(total):
        raise GenValError(f"{masks[0]} and {len(masks) - 1} others: {fault}.")


def readable(
    items: Sequence[_Item], skipped: list[BadFile], workers: int = 4, read: Callable[[_Item], object] = read_pair
) -> list[_Item]:
    """Return the items whose files can be decoded and have one size; the others are added to `skipped`.

    Args:
        items: images with masks.
        skipped: gets the others.
        workers: number of threads.
        read: reads an item, and raises an error if a file is bad.
    """
    faults = _faults(items, read, workers)
    skipped += [BadFile(item.id, item.cond, item.scene, str(item.image), reason) for item, reason in faults.items()]
    return [item for item in items if item not in faults]


def readable_images(files: Sequence[Path], domain: str, skipped: list[BadFile], workers: int = 4) -> list[Path]:
    """Return the images that can be decoded; the others are added to `skipped`.

    Raises:
        GenValError: no image can be decoded.
    """
    faults = _faults(files, read_image, workers)
    kept = [file for file in files if file not in faults]
    if not kept:
        raise GenValError(f"None of {len(files)} images of {domain} can be read, such as {files[0]}.")
    skipped += [BadFile(file.stem, domain, "", str(file), reason) for file, reason in faults.items()]
    return kept


def _faults(files: Sequence[_File], read: Callable[[_File], object], workers: int) -> dict[_File, str]:
    """Return the errors of those that cannot be read."""

    def fault(file: _File) -> str:
        try:
            read(file)
        except GenValError as error:
            return without_skip_bad(str(error))
        return ""

    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        faults = zip(files, pool.map(fault, files), strict=True)
        return {file: reason for file, reason in faults if reason}


def partition(items: Sequence[Item], batch_size: int) -> list[tuple[Item, ...]]:
    """Divide items into chunks of at most `batch_size`; no chunk spans two scenes.

    Chunks depend only on the items of a scene. An interrupted run, a run on other scenes and a run on more processes
    therefore compute each image in the same batch, and give bitwise equal results.
    """
    chunks: list[tuple[Item, ...]] = []
    for _, group in itertools.groupby(items, key=lambda item: (item.cond, item.scene)):
        members = tuple(group)
        chunks += [members[start : start + batch_size] for start in range(0, len(members), batch_size)]
    return chunks


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"


def _decode_plain_png(path: str | Path, colour: int) -> np.ndarray | None:
    """Decode the usual kind of PNG file with OpenCV: 8-bit samples, one frame, no transparency, no orientation.

    OpenCV takes two thirds of Pillow's time, and it does not wait for Python's lock at every 8 KB of the file, so that
    several threads decode at the same time.

    Args:
        path: the file.
        colour: `_PNG_RGB` or `_PNG_GREY`.

    Returns:
        uint8 (H, W, 3) or (H, W); None where the file is of another kind, damaged or missing: Pillow then reads it, or
        says what is wrong.
    """
    import cv2

    if not hasattr(cv2, "IMREAD_COLOR_RGB"):  # before OpenCV 4.11
        return None
    try:
        # A system call releases Python's lock, and the thread then waits for the lock. `open` makes more system calls.
        state = os.stat(path)
        if not stat.S_ISREG(state.st_mode):
            return None
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        try:
            head = os.read(descriptor, _PNG_HEAD)
            if not _is_plain_head(head, colour):
                return None
            os.lseek(descriptor, 0, os.SEEK_SET)
            data = os.read(descriptor, state.st_size)
        finally:
            os.close(descriptor)
    except OSError:
        return None
    pixel_data = _pixel_chunks(data)
    if pixel_data is None:
        return None
    flags = cv2.IMREAD_COLOR_RGB if colour == _PNG_RGB else cv2.IMREAD_GRAYSCALE
    with contextlib.suppress(cv2.error):
        # Damaged data give None: the decoder checks the checksums of the chunks and the number of pixels.
        pixels: np.ndarray | None = cv2.imdecode(np.frombuffer(pixel_data, np.uint8), flags)
        return pixels
    return None


def _is_plain_head(data: bytes, colour: int) -> bool:
    if len(data) < _PNG_HEAD or data[:16] != _PNG + b"\0\0\0\rIHDR":
        return False
    width, height, bits, kind = struct.unpack_from(">IIBB", data, 16)
    return (bits, kind) == (8, colour) and 0 < width * height <= _MOST_PIXELS


def _pixel_chunks(data: bytes) -> bytes | None:
    """Remove the chunks of a PNG file that do not change its pixels. OpenCV prints warnings about errors in them.

    Returns:
        The file without these chunks, or `data` itself if it has none of them. None if there is a chunk of an unknown
        kind, or if the file is damaged outside its pixels.
    """
    # Python holds its lock while it copies bytes, and other threads wait. Views of the bytes need no copies.
    view, place, removed = memoryview(data), len(_PNG), 0
    kept = [view[:place]]
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + length + 12
        # OpenCV checks the checksums of the pixels, and only warns about the others.
        if kind != b"IDAT" and data[end - 4 : end] != zlib.crc32(view[place + 4 : end - 4]).to_bytes(4, "big"):
            return None
        if kind in _PIXEL_CHUNKS:
            kept.append(view[place:end])
        elif kind in _OTHER_CHUNKS:
            removed += 1
        else:
            return None
        place = end
    if place != len(data) or kept[-1] != _PNG_END:
        return None
    return b"".join(kept) if removed else data


def _open(path: str | Path, formats: tuple[str, ...], expected: str, read: Callable[[Image, bytes], _R]) -> _R:
    """Apply `read` to an open image and the first bytes of its file."""
    from PIL import Image, UnidentifiedImageError

    path, head = Path(path), b""
    remedy = "Fetch or make the file again, or use --skip_bad."
    try:
        if path.exists() and not path.is_file():
            raise GenValError(f"{path} is not a file: expected {expected}. Move it elsewhere, or use --skip_bad.")
        with open(path, "rb") as stream:
            head = stream.read(32)
            stream.seek(0)
            # Pillow refuses truncated files unless a caller has turned that off.
            with Image.open(stream, formats=formats) as image:
                frames = getattr(image, "n_frames", 1)
                if frames > 1 and image.format != "MPO":  # the first frame of an MPO file is its image
                    raise GenValError(f"{path} has {frames} frames: expected one image. Save one of them as PNG.")
                return read(image, head)
    except GenValError:
        raise
    except FileNotFoundError as error:
        if path.is_symlink():
            raise GenValError(f"{path} is a link to a file that does not exist. {remedy}") from error
        raise GenValError(f"{path} does not exist.") from error
    except UnidentifiedImageError as error:
        found = next((kind for start, kind in _BEGINNINGS.items() if head.startswith(start)), None)
        if found is None:
            raise GenValError(f"{path} cannot be decoded: expected {expected}. {remedy}") from error
        raise GenValError(f"{path} cannot be decoded: expected {expected}, found {found}. {remedy}") from error
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError and zlib.error for damaged files
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise GenValError(f"{path} cannot be decoded ({reason}). {remedy}") from error


def _as_rgb(image: Image, path: str | Path) -> Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in _SIXTEEN_BITS:
        return _upper_bits(image, path).convert("RGB")
    if image.mode in _WITH_ALPHA or (image.mode in _EIGHT_BITS and "transparency" in image.info):
        with_alpha = image.convert("RGBA")
        if with_alpha.getchannel("A").getextrema() != (255, 255):
            raise GenValError(
                f"{path} has transparent pixels, which a viewer shows in the colour of its background. Save the image "
                "without transparency, or use --skip_bad."
            )
        return with_alpha.convert("RGB")
    if image.mode in _EIGHT_BITS:
        return image.convert("RGB")
    raise GenValError(
        f"{path} has samples of Pillow's mode {image.mode}: expected grey or RGB of 8 or 16 bits. Convert it to RGB of "
        "8 bits, or use --skip_bad."
    )


def _upper_bits(image: Image, path: str | Path) -> Image:
    """The upper 8 bits of 16-bit grey."""
    from PIL import Image as pillow

    tags = getattr(image, "tag_v2", None)
    if tags is not None and [tags.get(_BITS_PER_SAMPLE), tags.get(_PHOTOMETRIC)] != [(16,), _BLACK_IS_ZERO]:
        raise GenValError(
            f"{path} is a grey TIFF file of an unsupported kind: expected 16 bits with black as zero. Convert it "
            "to 8 bits, or use --skip_bad."
        )
    return pillow.fromarray((np.asarray(image) >> 8).astype(np.uint8))


def _upright(pixels: Image, image: Image) -> Image:
    """`pixels` of `image`, turned by the image's EXIF orientation."""
    from PIL.Image import Transpose

    image.load()  # in a PNG file the EXIF data may follow the pixels
    turn = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }.get(_orientation(image))
    return pixels if turn is None else pixels.transpose(turn)


def _orientation(image: Image) -> int:
    """The EXIF orientation, 1 to 8, that is still to be applied; 1 where there is none."""
    from PIL.Image import Exif

    data = image.info.get("exif")
    if not data or image.format == "TIFF":  # Pillow turns TIFF images itself
        return 1
    exif = Exif()
    try:
        exif.load(data)
        return int(exif.get(_ORIENTATION, 1))
    except Exception:  # viewers, too, show an image with damaged EXIF data as it is stored
        return 1
