"""The place of an object in a street: the published random square, or one that stands on the ground.

Sizes are given for a frame of 1024 rows, as the published ones are, and scale with the frame's height.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from genval.datasets.boxes import Box
from genval.runtime.errors import GenValError

PLACEMENTS = ("published", "road")
REFERENCE_HEIGHT = 1024
# labelIds of Cityscapes: road and sidewalk.
GROUND_IDS = (7, 8)
# The published crop begins at this fraction of the frame's height, or below it, so that no object is in the sky.
_HIGHEST = 0.25
# The horizon of Cityscapes as a fraction of the frame's height, and the height of the camera in metres.
_HORIZON = 0.42
_CAMERA_HEIGHT = 1.22
# Boxes on the ground are this many metres high.
_METRES = (0.6, 2.4)
# At least this fraction of the lower quarter of a box is ground: the place of the object is free.
_ON_GROUND = 0.6
_TRIES = 200


@dataclass(frozen=True)
class Placement:
    """A box, and the square around it that a model sees.

    Attributes:
        box: where the object is inpainted.
        crop: the square, inside the frame; the box is in its middle unless the frame's edge is near.
        rule: "published" or "road".
    """

    box: Box
    crop: Box
    rule: str


@dataclass(frozen=True)
class PlacementConfig:
    """How boxes are chosen. The defaults are the published ones.

    Attributes:
        rule: "published", anywhere below a quarter of the frame, or "road": standing on road or sidewalk, smaller the
            farther up.
        smallest, largest: sides of a box in a frame of 1024 rows, in pixels.
        context: side of the crop, as a multiple of the box's side.
    """

    rule: str = "published"
    smallest: int = 256
    largest: int = 512
    context: float = 1.5

    def __post_init__(self) -> None:
        if self.rule not in PLACEMENTS:
            raise GenValError(f"--placement: expected one of {', '.join(PLACEMENTS)}, found {self.rule}.")
        if not 0 < self.smallest <= self.largest:
            raise GenValError(
                f"--min_box {self.smallest} --max_box {self.largest}: expected a number above 0, and one not below it."
            )
        if not self.context >= 1:
            raise GenValError(f"--context: expected 1 or more, the crop's side over the box's; found {self.context}.")


def place(label_ids: np.ndarray, config: PlacementConfig, rng: np.random.Generator, source: object = "") -> Placement:
    """Choose a place for an object at random.

    Args:
        label_ids: uint8 (H, W), the frame's mask of Cityscapes' labelIds.
        rng: the source of random numbers.
        source: what errors call the frame, usually its path.

    Returns:
        A place by the config's rule; by the published rule where no ground is large enough.

    Raises:
        GenValError: the frame is smaller than the crop around the largest box.
    """
    height, width = label_ids.shape
    smallest, largest = (max(1, round(side * height / REFERENCE_HEIGHT)) for side in (config.smallest, config.largest))
    room = (height - int(height * _HIGHEST), width) if config.rule == "published" else (height, width)
    if int(config.context * largest) > min(room):
        raise GenValError(
            f"{source} is {width}x{height}: expected room for a crop of {int(config.context * largest)} pixels around "
            f"a box of {largest}, found {room[1]} columns and {room[0]} rows below row {height - room[0]}. Give a "
            f"smaller --max_box (for frames of {REFERENCE_HEIGHT} rows) or --context, or leave out such frames."
        )
    if config.rule == "road":
        box = _on_ground(label_ids, smallest, largest, rng)
        if box is not None:
            return Placement(box, crop_around(box, config.context, height, width), "road")
        if int(config.context * largest) > height - int(height * _HIGHEST):
            raise GenValError(
                f"{source} has no road or sidewalk for a box of {smallest} pixels or more, and is too small for the "
                "published placement. Give a smaller --max_box, or leave out such frames."
            )
    side = int(rng.integers(smallest, largest + 1))
    crop = int(config.context * side)
    top = int(rng.integers(int(height * _HIGHEST), height - crop + 1))
    left = int(rng.integers(0, width - crop + 1))
    margin = (crop - side) // 2
    return Placement(Box.square(top + margin, left + margin, side), Box.square(top, left, crop), "published")


def crop_around(box: Box, context: float, height: int, width: int) -> Box:
    """The square of `context` times a box's side around it, moved, and if necessary made smaller, to fit the frame."""
    side = max(box.side, min(int(context * box.side), height, width))
    margin = (side - box.side) // 2
    top = min(max(0, box.top - margin), height - side)
    left = min(max(0, box.left - margin), width - side)
    return Box.square(top, left, side)


def _on_ground(label_ids: np.ndarray, smallest: int, largest: int, rng: np.random.Generator) -> Box | None:
    """A square on the ground, as large as an object of 0.6 to 2.4 m at that distance; None if there is no room.

    Under a camera at a height c above flat ground, an object of height m that stands on row r covers m (r - h) / c
    rows, where h is the row of the horizon.
    """
    height, width = label_ids.shape
    horizon = _HORIZON * height
    ground = np.isin(label_ids, GROUND_IDS)
    rows, columns = np.nonzero(ground)
    is_near = (rows - horizon) * _METRES[1] / _CAMERA_HEIGHT >= smallest
    rows, columns = rows[is_near], columns[is_near]
    if not len(rows):
        return None
    covered = cv2.integral(ground.astype(np.uint8))
    for _ in range(_TRIES):
        chosen = int(rng.integers(len(rows)))
        metres = float(rng.uniform(*_METRES))
        foot, middle = int(rows[chosen]), int(columns[chosen])
        side = round(metres * (foot - horizon) / _CAMERA_HEIGHT)
        top, left = foot + 1 - side, middle - side // 2
        if not smallest <= side <= largest or top < 0 or left < 0 or left + side > width:
            continue
        above, below, right = foot + 1 - max(1, side // 4), foot + 1, left + side
        standing = covered[below, right] - covered[above, right] - covered[below, left] + covered[above, left]
        if standing >= _ON_GROUND * (below - above) * side:
            return Box.square(top, left, side)
    return None
