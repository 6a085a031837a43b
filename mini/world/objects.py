"""Objects without a class in the label space, rendered on streets from a sheet of sprites.

The sprites are glyphs of an emoji font (see sprites/OFL.txt); `mini/draw_sprites.py` writes the sheet. Objects are
lit, cast shadows and are occluded like everything else in the scene.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np

from genval.runtime.files import read_json

from .canvas import Canvas

SPRITES = Path(__file__).parent / "sprites"
DYNAMIC = 5  # Cityscapes' label id of things that no class covers, animals and bags among them; trainId 255
PAINT = 0.85  # reflectance of a glyph's white


@dataclass(frozen=True)
class StreetObject:
    """An object that faces the camera, its foot at (x, z), `lift` above the ground; metres."""

    name: str
    x: float
    z: float
    height: float
    mirrored: bool = False
    lift: float = 0.0


@cache
def object_names() -> tuple[str, ...]:
    """The names that have a sprite."""
    return tuple(read_json(SPRITES / "index.json")["objects"])


@cache
def sprite(name: str) -> np.ndarray:
    """The sprite of an object, (h, w, 4) uint8 RGBA, cut to what is visible.

    Raises:
        KeyError: the sheet has no such object.
    """
    place = read_json(SPRITES / "index.json")["objects"][name]
    rows, columns = (slice(place[at], place[at] + place[size]) for at, size in (("top", "height"), ("left", "width")))
    return _sheet()[rows, columns]


@cache
def _sheet() -> np.ndarray:
    return cv2.cvtColor(cv2.imread(str(SPRITES / "sheet.png"), cv2.IMREAD_UNCHANGED), cv2.COLOR_BGRA2RGBA)


def scaled_sprite(name: str, height: int) -> np.ndarray:
    """A sprite of another height in pixels, (h, w, 4) float32: RGB and alpha 0..255."""
    source = sprite(name).astype(np.float32)
    width = max(1, round(source.shape[1] * height / source.shape[0]))
    source[..., :3] *= source[..., 3:] / 255  # so that transparent pixels lend no colour to their neighbours
    shrinks = height < source.shape[0]
    result = cv2.resize(source, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    result[..., :3] *= 255 / np.maximum(result[..., 3:], 1)
    return np.clip(result, 0, 255)


def paint_object(canvas: Canvas, thing: StreetObject) -> None:
    """Paint an object, lit from the side of the sun and darker towards its foot."""
    camera = canvas.camera
    depth = camera.depth_of(thing.x, thing.z)
    scale = camera.focal / depth  # pixels per metre
    column, row = camera.foot(thing.x, thing.z)
    scaled = scaled_sprite(thing.name, max(1, round(thing.height * scale)))
    if thing.mirrored:
        scaled = scaled[:, ::-1]
    height, width = scaled.shape[:2]
    patch = np.empty((height, width, 4), np.uint8)
    # What is near the ground gets less light from the sky.
    above = np.linspace(1, 0, height, dtype=np.float32)[:, None, None]
    patch[..., :3] = scaled[..., :3] * (PAINT * np.clip(0.72 + 1.6 * above, 0, 1))
    across = np.linspace(-1, 1, width, dtype=np.float32)
    lit = 0.4 + 0.4 * max(0.0, -canvas.sun[2]) + 0.3 * canvas.sun[0] * across
    patch[..., 3] = 255 * np.clip(lit, 0, 1)
    surface = canvas.surface(DYNAMIC, depth)
    top = row - (thing.height + thing.lift) * scale
    canvas.sprite(column - width / 2, top, patch, scaled[..., 3].astype(np.uint8), surface)
