"""Objects that no class of the label space covers, standing on a street: a sheet of sprites, and where one may stand.

The sprites are glyphs of an emoji font, see sprites/OFL.txt; `mini/draw_sprites.py` draws the sheet. They are lit,
shadowed and hidden by what is nearer as everything else in the street is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from genval.runtime.files import read_json

from .canvas import Canvas
from .layout import pick, span

if TYPE_CHECKING:
    from .scene import Render

SPRITES = Path(__file__).parent / "sprites"
DYNAMIC = 5  # Cityscapes' label id of things that no class covers, animals and bags among them; trainId 255
GROUND = (7, 8)  # label ids of what objects stand on: road and sidewalk
PAINT = 0.85  # reflectance of a glyph's white
LEAST_HEIGHT = 24 / 256  # of the image's height, of an object
MOST_HEIGHT = 110 / 256
FARTHEST = 45.0  # metres
METRES = (0.4, 3.2)  # of an object; all names share them, since what is seen matters here and not what is likely


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
    """Draw an object, lit from the side of the sun and darker towards its foot."""
    camera = canvas.camera
    depth = camera.depth_of(thing.x, thing.z)
    scale = camera.focal / depth  # pixels a metre
    column, row = camera.foot(thing.x, thing.z)
    drawn = scaled_sprite(thing.name, max(1, round(thing.height * scale)))
    if thing.mirrored:
        drawn = drawn[:, ::-1]
    height, width = drawn.shape[:2]
    patch = np.empty((height, width, 4), np.uint8)
    # What is near the ground gets less light from the sky.
    above = np.linspace(1, 0, height, dtype=np.float32)[:, None, None]
    patch[..., :3] = drawn[..., :3] * (PAINT * np.clip(0.72 + 1.6 * above, 0, 1))
    across = np.linspace(-1, 1, width, dtype=np.float32)
    lit = 0.4 + 0.4 * max(0.0, -canvas.sun[2]) + 0.3 * canvas.sun[0] * across
    patch[..., 3] = 255 * np.clip(lit, 0, 1)
    surface = canvas.surface(DYNAMIC, depth)
    top = row - (thing.height + thing.lift) * scale
    canvas.sprite(column - width / 2, top, patch, drawn[..., 3].astype(np.uint8), surface)


def place_object(scene: Render, name: str, rng: np.random.Generator, floating: bool = False) -> StreetObject | None:
    """Find a place for an object on the road or sidewalk of a street, in full view.

    Its height in the image is drawn first, from 24 to 110 of 256 rows, then where it stands; its height in metres
    follows from the distance, so that an object farther up in the image is smaller.

    Args:
        scene: the street without it.
        name: of a sprite.
        rng: of the draw.
        floating: lift it anywhere above the ground, as objects that are inpainted at random are.

    Returns:
        The object, or None where no place was found in 100 draws.
    """
    camera, rows = scene.camera, scene.label_ids.shape[0]
    ground = np.isin(scene.label_ids, GROUND)
    feet = np.flatnonzero(ground & (scene.depth < FARTHEST))
    if not len(feet):
        return None
    for _ in range(100):
        high = rows * float(np.exp(span(rng, np.log(LEAST_HEIGHT), np.log(MOST_HEIGHT))))
        row, column = divmod(int(pick(rng, feet)), scene.label_ids.shape[1])
        depth = float(scene.depth[row, column])
        metres = high * depth / camera.focal
        if not METRES[0] < metres < METRES[1]:
            continue
        lift = 0.0
        if floating:
            # Published boxes start at a quarter of the image's height or below it.
            lift = span(rng, 0, max(row - high - rows / 4, 0)) * depth / camera.focal
        x, z = camera.on_ground(column, depth)
        thing = StreetObject(name, x, z, metres, mirrored=rng.random() < 0.5, lift=lift)
        if _visible_share(scene, thing) > 0.8:
            return thing
    return None


def _visible_share(scene: Render, thing: StreetObject) -> float:
    """How much of an object is inside the image and not behind something, 0..1."""
    camera = scene.camera
    depth = camera.depth_of(thing.x, thing.z)
    scale = camera.focal / depth
    column, row = camera.foot(thing.x, thing.z)
    high = max(1, round(thing.height * scale))
    alpha = scaled_sprite(thing.name, high)[..., 3] > 100
    top, left = round(row - (thing.height + thing.lift) * scale), round(column - alpha.shape[1] / 2)
    y, x = np.nonzero(alpha[:, ::-1] if thing.mirrored else alpha)
    y, x = y + top, x + left
    rows, columns = scene.label_ids.shape
    inside = (y >= 0) & (y < rows) & (x >= 0) & (x < columns)
    y, x = y[inside], x[inside]
    return float((scene.depth[y, x] > 0.97 * depth).sum() / alpha.sum())  # the ground it stands on is no nearer
