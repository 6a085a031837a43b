"""Placement of objects on rendered streets."""

from __future__ import annotations

import numpy as np

from .layout import pick, span
from .objects import StreetObject, scaled_sprite
from .scene import Render

GROUND = (7, 8)  # labelIds that objects stand on: road and sidewalk
MIN_HEIGHT = 24 / 256  # of an object, as a fraction of the image's height
MAX_HEIGHT = 110 / 256
MAX_DEPTH = 45.0  # metres
METRES = (0.4, 3.2)  # height of an object; the same range for all names, because realism is not the aim here


def place_object(scene: Render, name: str, rng: np.random.Generator, floating: bool = False) -> StreetObject | None:
    """Find a place for an object on the road or sidewalk of a street, in full view.

    Its height in the image is sampled first, from 24 to 110 of 256 rows, then where it stands; its height in metres
    follows from the distance, so that an object farther up in the image is smaller.

    Args:
        scene: the street without it.
        name: of a sprite.
        rng: of the random choices.
        floating: lift it anywhere above the ground, as objects that are inpainted at random are.

    Returns:
        The object, or None where no place was found in 100 attempts.
    """
    camera, rows = scene.camera, scene.label_ids.shape[0]
    ground = np.isin(scene.label_ids, GROUND)
    feet = np.flatnonzero(ground & (scene.depth < MAX_DEPTH))
    if not len(feet):
        return None
    for _ in range(100):
        high = rows * float(np.exp(span(rng, np.log(MIN_HEIGHT), np.log(MAX_HEIGHT))))
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
    """Return the fraction of an object that is inside the image and not occluded, 0..1."""
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
