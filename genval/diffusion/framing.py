"""Crop frames to the aspect ratio of a diffusion model's images and resize them.

The published training and generation crop a square with the frame's shorter side at a random place and resize it to
512x512. If the target has the aspect ratio of the frame, the whole frame is used.
"""

from __future__ import annotations

import cv2
import numpy as np

from genval.datasets.boxes import Box
from genval.runtime.errors import GenValError


def crop_box(height: int, width: int, target_height: int, target_width: int, place: float) -> Box:
    """Return the largest box with the target's aspect ratio inside an image.

    Args:
        height, width: size of the image in pixels.
        target_height, target_width: size to which the crop will be resized.
        place: 0..1, where the box lies along the longer side: 0 is the top or left, 1 the bottom or right.
    """
    scale = min(height / target_height, width / target_width)
    box_height = min(height, max(1, round(target_height * scale)))
    box_width = min(width, max(1, round(target_width * scale)))
    return Box(
        min(int(place * (height - box_height + 1)), height - box_height),
        min(int(place * (width - box_width + 1)), width - box_width),
        box_height,
        box_width,
    )


def check_pair(image: np.ndarray, mask: np.ndarray, image_path: object, mask_path: object) -> None:
    """Check that an image and its mask have the same size.

    Raises:
        GenValError: the heights or widths differ.
    """
    if image.shape[:2] != mask.shape:
        raise GenValError(
            f"{image_path} is {image.shape[1]}x{image.shape[0]} but its mask {mask_path} is "
            f"{mask.shape[1]}x{mask.shape[0]}. Give files of one frame."
        )


def fit_image(image: np.ndarray, box: Box, height: int, width: int, resize: str = "area") -> np.ndarray:
    """Crop an RGB uint8 (H, W, 3) image and resize it to (height, width).

    Args:
        resize: "area", which is bilinear if the image is not reduced, or "nearest", as published, which aliases.
    """
    crop = image[box.rows, box.columns]
    shrinks = height <= box.height and width <= box.width
    smooth = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    method = cv2.INTER_NEAREST_EXACT if resize == "nearest" else smooth
    return np.ascontiguousarray(cv2.resize(crop, (width, height), interpolation=method))


def fit_mask(mask: np.ndarray, box: Box, height: int, width: int) -> np.ndarray:
    """Crop a uint8 (H, W) mask and resize it to (height, width) by nearest neighbour: no new ids appear."""
    crop = mask[box.rows, box.columns]
    # The exact variant samples at pixel centres as the image resize does; plain INTER_NEAREST is half a pixel off.
    return np.ascontiguousarray(cv2.resize(crop, (width, height), interpolation=cv2.INTER_NEAREST_EXACT))
