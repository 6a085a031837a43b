"""From a frame to the square an inpainting model takes, and back into the frame."""

from __future__ import annotations

import cv2
import numpy as np

from genval.datasets.boxes import Box

# The published code blurs a mask of 512 pixels with a box of 128.
_BLUR = 1 / 4


def cut(frame: np.ndarray, crop: Box, height: int, width: int) -> np.ndarray:
    """A part of an RGB uint8 (H, W, 3) frame, resized to (height, width) by cubic interpolation, as published."""
    part = frame[crop.rows, crop.columns]
    if part.shape[:2] == (height, width):
        return part.copy()
    return cv2.resize(part, (width, height), interpolation=cv2.INTER_CUBIC)


def box_mask(box: Box, crop: Box, height: int, width: int, blurred: bool = False) -> np.ndarray:
    """Where a crop of (height, width) pixels is drawn anew, bool (height, width): inside the box.

    Args:
        blurred: as the published `sd_inpaint.py`, which blurs the mask by a quarter of its side, while the pipeline
            takes what is above one half: the edges stay, the corners are cut off. No wider than the box.
    """
    down, across = height / crop.height, width / crop.width
    top, bottom = (round((row - crop.top) * down) for row in (box.top, box.top + box.height))
    left, right = (round((column - crop.left) * across) for column in (box.left, box.left + box.width))
    mask: np.ndarray = np.zeros((height, width), np.float32)
    bottom, right = max(bottom, top + 1), max(right, left + 1)
    mask[top:bottom, left:right] = 1
    if blurred:
        # Wider than the box, the blur would leave less than a half everywhere: nothing would be drawn. Odd sides have a
        # middle: even ones would move the mask by half a pixel.
        sides = (min(round(width * _BLUR), right - left - 1) | 1, min(round(height * _BLUR), bottom - top - 1) | 1)
        mask = cv2.blur(mask, sides)
    return mask >= 0.5


def paste_box(frame: np.ndarray, image: np.ndarray, crop: Box, box: Box) -> np.ndarray:
    """The frame with the box of a drawn image in it; every other pixel is the frame's, byte for byte.

    Args:
        frame: RGB uint8 (H, W, 3).
        image: RGB uint8 (h, w, 3), what was drawn of the crop.
    """
    drawn = cut(image, Box(0, 0, *image.shape[:2]), crop.height, crop.width)
    pasted = frame.copy()
    top, left = box.top - crop.top, box.left - crop.left
    inside = drawn[top : top + box.height, left : left + box.width]
    pasted[box.rows, box.columns] = inside
    return pasted


def paste_feathered(frame: np.ndarray, image: np.ndarray, crop: Box, box: Box, feather: int) -> np.ndarray:
    """The frame with a drawn image's box in it, and around the box a seam where the two are mixed.

    Args:
        frame: RGB uint8 (H, W, 3).
        image: RGB uint8 (h, w, 3), what was drawn of the crop.
        feather: width of the seam in the frame's pixels. The drawn image's share falls evenly from 1 at the box to 0
            at that distance, or at the crop's edge where that is nearer; pixels beyond are the frame's, byte for byte.
    """
    drawn = cut(image, Box(0, 0, *image.shape[:2]), crop.height, crop.width).astype(np.float32)
    share = seam(crop, box, feather)[..., None]
    pasted = frame.copy()
    part = pasted[crop.rows, crop.columns]
    mixed = np.rint(share * drawn + (1 - share) * part)
    part[:] = np.where(share > 0, mixed, part).astype(np.uint8)
    return pasted


def seam(crop: Box, box: Box, feather: int) -> np.ndarray:
    """The drawn image's share of each pixel of a crop, float32 (h, w), 0..1: 1 in the box, 0 outside its seam."""

    def along(start: int, stop: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Distance to the box, and the room there is on that side."""
        places = np.arange(length)
        distance = np.maximum(np.maximum(start - places, places - (stop - 1)), 0)
        room = np.where(places < start, start, np.where(places >= stop, length - stop, feather))
        return distance, np.minimum(np.maximum(room, 1), max(feather, 1)) if feather else np.ones(length)

    top, left = box.top - crop.top, box.left - crop.left
    rows, row_room = along(top, top + box.height, crop.height)
    columns, column_room = along(left, left + box.width, crop.width)
    distance = np.hypot((rows / row_room)[:, None], (columns / column_room)[None])
    return np.clip(1 - distance, 0, 1).astype(np.float32)
