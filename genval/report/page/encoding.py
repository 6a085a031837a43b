"""Images as data URIs: JPEG for photographs, PNG with a palette for maps of classes."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

import numpy as np

from genval.datasets.labels import IGNORE, PALETTE

if TYPE_CHECKING:
    from PIL.Image import Image

QUALITY = 80
# Okabe and Ito's vermillion and orange: told apart from a grey image with any colour vision.
WRONG = (213, 94, 0, 235)
OUTLINE = (230, 159, 0, 255)
TINT = (230, 159, 0, 60)
_UNLABELLED = (0, 0, 0, 150)
_SHADES = 32  # of a map of scores


def photograph(image: np.ndarray, width: int) -> str:
    """An RGB uint8 (H, W, 3) image as JPEG, no wider than `width` pixels."""
    from PIL import Image

    size = _fit(image, width)
    resized = Image.fromarray(image).resize(size, Image.Resampling.LANCZOS) if size != image.shape[1::-1] else None
    stream = io.BytesIO()
    (resized or Image.fromarray(image)).save(stream, "JPEG", quality=QUALITY, optimize=True, progressive=True)
    return _uri("jpeg", stream)


def class_map(train_ids: np.ndarray, width: int) -> str:
    """TrainIds, uint8 (H, W), in the Cityscapes colours."""
    from PIL import Image

    map_image = Image.fromarray(shrink(train_ids, width))
    map_image.putpalette(PALETTE.tobytes())
    return _png(map_image)


def error_map(train_ids: np.ndarray, prediction: np.ndarray, width: int) -> str:
    """What is wrong in a prediction, to lay over the image: wrong pixels vermillion, unlabelled ones dark.

    Args:
        train_ids: of the mask, uint8 (H, W).
        prediction: trainIds of the same shape.
        width: of the result at most, pixels.
    """
    labels, predicted = shrink(train_ids, width), shrink(prediction, width)
    state = np.where(labels == IGNORE, 2, labels != predicted).astype(np.uint8)
    return _overlay(state, [(0, 0, 0, 0), WRONG, _UNLABELLED])


def object_map(mask: np.ndarray, width: int) -> str:
    """A mask, bool (H, W), to lay over the image: the object's outline, and a tint inside."""
    import cv2

    inside = shrink(mask.astype(np.uint8), width)
    thick = max(1, inside.shape[1] // 90)
    core = cv2.erode(inside, np.ones((3, 3), np.uint8), iterations=thick, borderType=cv2.BORDER_CONSTANT, borderValue=1)
    edge = (inside == 1) & (core == 0)
    return _overlay(inside + edge, [(0, 0, 0, 0), TINT, OUTLINE])


def shade_map(values: np.ndarray, width: int) -> str:
    """Values in 0..1, float (H, W), from black to white: the orange outline of an object can be seen on all of them."""
    import cv2
    from PIL import Image

    map_image = Image.fromarray(shrink(np.round((_SHADES - 1) * values).astype(np.uint8), width))
    steps = np.linspace(0, 255, _SHADES).round().astype(np.uint8)
    map_image.putpalette(cv2.applyColorMap(steps[:, None], cv2.COLORMAP_BONE)[:, 0, ::-1].tobytes())
    return _png(map_image)


def shrink(values: np.ndarray, width: int) -> np.ndarray:
    """Every n-th row and column of a map, so that it is no wider than `width`: classes are not mixed."""
    columns, rows = _fit(values, width)
    across = (np.arange(columns) + 0.5) * values.shape[1] / columns
    down = (np.arange(rows) + 0.5) * values.shape[0] / rows
    return values[np.ix_(down.astype(int), across.astype(int))]


def _fit(values: np.ndarray, width: int) -> tuple[int, int]:
    """The width and height of an image shrunk to a width."""
    height, full = values.shape[:2]
    return (full, height) if full <= width else (width, max(1, round(height * width / full)))


def _overlay(state: np.ndarray, colours: list[tuple[int, int, int, int]]) -> str:
    from PIL import Image

    map_image = Image.fromarray(state)
    map_image.putpalette([channel for colour in colours for channel in colour[:3]])
    map_image.info["transparency"] = bytes(colour[3] for colour in colours)
    return _png(map_image)


def _png(map_image: Image) -> str:
    stream = io.BytesIO()
    map_image.save(stream, "PNG", optimize=True)
    return _uri("png", stream)


def _uri(kind: str, stream: io.BytesIO) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
