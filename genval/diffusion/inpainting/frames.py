"""Crops of a frame at the size of an inpainting model, and the inpainted crop pasted back into the frame."""

from __future__ import annotations

import cv2
import numpy as np

from genval.datasets.boxes import Box

# The published code blurs a mask of 512 pixels with a box of 128.
_BLUR = 1 / 4


def cut(frame: np.ndarray, crop: Box, height: int, width: int) -> np.ndarray:
    """Crop an RGB uint8 (H, W, 3) frame and resize the crop to (height, width) by cubic interpolation, as published."""
    part = frame[crop.rows, crop.columns]
    if part.shape[:2] == (height, width):
        return part.copy()
    return cv2.resize(part, (width, height), interpolation=cv2.INTER_CUBIC)


def box_mask(box: Box, crop: Box, height: int, width: int, blurred: bool = False) -> np.ndarray:
    """Return the mask of the pixels to inpaint, bool (height, width): the box inside the resized crop.

    Args:
        box, crop: in pixels of the frame.
        height, width: size of the resized crop.
        blurred: as in the published `sd_inpaint.py`, which blurs the mask by a quarter of its side, and whose pipeline
            thresholds it at one half: the edges stay, the corners are cut off. The blur is no wider than the box.
    """
    down, across = height / crop.height, width / crop.width
    top, bottom = (round((row - crop.top) * down) for row in (box.top, box.top + box.height))
    left, right = (round((column - crop.left) * across) for column in (box.left, box.left + box.width))
    mask: np.ndarray = np.zeros((height, width), np.float32)
    bottom, right = max(bottom, top + 1), max(right, left + 1)
    mask[top:bottom, left:right] = 1
    if blurred:
        # A blur wider than the box would make every value less than one half. Its sides are odd, because even ones
        # would shift the mask by half a pixel.
        sides = (min(round(width * _BLUR), right - left - 1) | 1, min(round(height * _BLUR), bottom - top - 1) | 1)
        mask = cv2.blur(mask, sides)
    return mask >= 0.5


def paste_box(frame: np.ndarray, image: np.ndarray, crop: Box, box: Box) -> np.ndarray:
    """Paste the box of an inpainted crop into its frame; all other pixels of the frame stay the same.

    Args:
        frame: RGB uint8 (H, W, 3).
        image: RGB uint8 (h, w, 3), the inpainted crop.
        crop, box: in pixels of the frame.
    """
    resized = cut(image, Box(0, 0, *image.shape[:2]), crop.height, crop.width)
    pasted = frame.copy()
    top, left = box.top - crop.top, box.left - crop.left
    inside = resized[top : top + box.height, left : left + box.width]
    pasted[box.rows, box.columns] = inside
    return pasted


def paste_feathered(frame: np.ndarray, image: np.ndarray, crop: Box, box: Box, feather: int) -> np.ndarray:
    """Paste the box of an inpainted crop into its frame, with a feathered seam around the box.

    Args:
        frame: RGB uint8 (H, W, 3).
        image: RGB uint8 (h, w, 3), the inpainted crop.
        crop, box: in pixels of the frame.
        feather: width of the seam in pixels of the frame. The weight of the inpainted crop falls linearly from 1 at the
            box to 0 at this distance, or at the edge of the crop if that is nearer. Pixels beyond it stay the same.
    """
    resized = cut(image, Box(0, 0, *image.shape[:2]), crop.height, crop.width).astype(np.float32)
    weight = seam(crop, box, feather)[..., None]
    pasted = frame.copy()
    part = pasted[crop.rows, crop.columns]
    mixed = np.rint(weight * resized + (1 - weight) * part)
    part[:] = np.where(weight > 0, mixed, part).astype(np.uint8)
    return pasted


def seam(crop: Box, box: Box, feather: int) -> np.ndarray:
    """Return the weight of the inpainted crop at each pixel, float32 (h, w), 0..1: 1 in the box, 0 outside the seam."""

    def along(start: int, stop: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the distance to the box along one axis, and the width of the seam on that side."""
        places = np.arange(length)
        distance = np.maximum(np.maximum(start - places, places - (stop - 1)), 0)
        room = np.where(places < start, start, np.where(places >= stop, length - stop, feather))
        return distance, np.minimum(np.maximum(room, 1), max(feather, 1)) if feather else np.ones(length)

    top, left = box.top - crop.top, box.left - crop.left
    rows, row_room = along(top, top + box.height, crop.height)
    columns, column_room = along(left, left + box.width, crop.width)
    distance = np.hypot((rows / row_room)[:, None], (columns / column_room)[None])
    return np.clip(1 - distance, 0, 1).astype(np.float32)
