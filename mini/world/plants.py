"""Trees, bushes and hedges from prepared foliage sprites, tinted per plant."""

from __future__ import annotations

from functools import cache

import numpy as np

from .canvas import Canvas
from .layout import Segment, Thing, pick, span
from .textures import foliage, recolor

VEGETATION = 21
GREENS = ((74, 98, 40), (60, 88, 44), (92, 108, 48), (48, 78, 40), (108, 112, 52), (70, 92, 60))
AUTUMN = ((170, 110, 40), (150, 90, 44), (160, 130, 50))
SNOW = (240, 244, 250)


def leaf_palette(canvas: Canvas, rng: np.random.Generator, season: float) -> np.ndarray:
    """Colour and sun share for each brightness of a foliage sprite, (256, 4) uint8; `season` is the share of autumn."""
    base = pick(rng, AUTUMN if rng.random() < season else GREENS)
    return _palette(base, int(rng.random() * 8), canvas.snowy)


@cache
def _palette(base: tuple[int, int, int], tone: int, snowy: bool) -> np.ndarray:
    level = np.linspace(0, 1, 256)[:, None]
    green = np.array(base) * (0.78 + 0.05 * tone)
    rgb = green * (0.25 + 1.25 * level) + level**2 * np.array([26, 26, 0])
    if snowy:
        cover = np.clip((level - 0.36) * 3.2, 0, 0.92)
        rgb = rgb * (1 - cover) + cover * np.array(SNOW)
    return np.clip(np.concatenate([rgb, 40 + 215 * level], 1), 0, 255).astype(np.uint8)


def paint_plant(canvas: Canvas, thing: Thing, season: float, mirrored: bool) -> None:
    """Draw a tree, conifer, palm or bush; mirrored ones are lit from the right."""
    camera = canvas.camera
    depth = camera.depth_of(thing.x, thing.z)
    if depth < 3:
        return
    scale = camera.focal / depth
    base = camera.foot(thing.x, thing.z)
    reach = 4 * thing.size * scale + 3  # pixels, more than half of any crown
    if not -reach < base[0] < camera.width + reach:
        return
    rng = np.random.Generator(np.random.PCG64(thing.seed))
    wide, crown, trunk = {
        "tree": (5.2, 5.0, 2.3),
        "conifer": (3.4, 7.0, 0.5),
        "palm": (4.6, 3.6, 5.2),
        "bush": (2.4, 1.7, -0.25),
    }[thing.kind]
    wide, crown, trunk = (value * thing.size for value in (wide, crown, trunk))
    wide *= span(rng, 0.8, 1.2)
    surface = canvas.surface(VEGETATION, depth)
    if trunk > 0:
        thick = (0.11 + 0.08 * rng.random()) * thing.size * scale
        top = base[1] - (trunk + crown * 0.4) * scale
        bark = pick(rng, ((84, 70, 56), (70, 58, 48), (104, 94, 82)))
        canvas.polygon(
            np.array(
                [
                    [base[0] - thick, base[1]],
                    [base[0] + thick, base[1]],
                    [base[0] + thick * 0.55, top],
                    [base[0] - thick * 0.55, top],
                ]
            ),
            bark,
            0.35,
            surface,
        )
    size = (max(int(wide * scale), 2), max(int(crown * scale), 2))
    if not canvas.shows(base[0] - size[0] / 2, base[1] - (trunk + crown) * scale, *size):
        return
    kind = {"bush": "tree"}.get(thing.kind, thing.kind)
    alpha, light = foliage(kind, int(rng.random() * 8), *size)
    if mirrored:
        alpha, light = alpha[:, ::-1], light[:, ::-1]
    patch = recolor(light, leaf_palette(canvas, rng, season))
    canvas.sprite(base[0] - size[0] / 2, base[1] - (trunk + crown) * scale, patch, alpha, surface)


def paint_hedge(canvas: Canvas, segment: Segment, rng: np.random.Generator) -> None:
    """Draw a hedge as a row of overlapping clumps, far to near."""
    low = segment.kind.startswith("low")
    height = span(rng, 0.8, 1.2) if low else span(rng, 1.4, 2.6)
    camera = canvas.camera
    palette = leaf_palette(canvas, rng, 0.0)
    z0 = max(segment.z0, camera.nearest_z(segment.x) + 2.5)
    z = segment.z1
    while z > z0:
        depth = camera.depth_of(segment.x, z)
        scale = camera.focal / depth
        base = camera.foot(segment.x + segment.side * 0.5, z)
        size = (max(int(height * 1.5 * scale), 2), max(int(height * 1.08 * scale), 2))
        variant = int(rng.random() * 6)
        left, top = base[0] - size[0] / 2, base[1] - size[1] * 0.96
        if canvas.shows(left, top, *size):
            alpha, light = foliage("hedge", variant, *size)
            canvas.sprite(left, top, recolor(light, palette), alpha, canvas.surface(VEGETATION, depth))
        z -= height * (0.75 if depth < 30 else 1.3)
