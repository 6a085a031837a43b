"""People, bicycles and motorcycles: skeletons of thick limbs in 3-D, so that they turn with their heading."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np

from .canvas import SHIFT, Canvas
from .layout import Thing, pick, span

PERSON, RIDER, MOTORCYCLE, BICYCLE = 24, 25, 32, 33
CLOTHES = ((176, 38, 42), (36, 62, 130), (40, 44, 50), (214, 208, 196), (60, 110, 70), (220, 168, 50), (118, 84, 58),
           (96, 100, 112), (150, 60, 120), (235, 235, 238), (30, 120, 150), (226, 110, 40))  # fmt: skip
SKIN = ((236, 196, 168), (214, 164, 130), (168, 116, 84), (110, 74, 54))
FRAMES = ((190, 30, 36), (30, 60, 150), (30, 32, 36), (226, 226, 230), (40, 130, 80), (240, 190, 30), (80, 190, 200))

# A limb is (x, y, z) to (x, y, z), radius, colour key. x is to the right of the heading, z along it, metres.
Limb = tuple[tuple[float, float, float], tuple[float, float, float], float, str]


def walker(stride: float, bag: bool) -> list[Limb]:
    """A person 1.75 m tall in mid-stride; `stride` is metres from foot to foot."""
    s = stride / 2
    limbs: list[Limb] = [
        ((0.1, 0.92, 0), (0.1, 0.5, s * 0.7), 0.085, "trousers"),
        ((0.1, 0.5, s * 0.7), (0.1, 0.06, s), 0.065, "trousers"),
        ((-0.1, 0.92, 0), (-0.1, 0.5, -s * 0.3), 0.085, "trousers"),
        ((-0.1, 0.5, -s * 0.3), (-0.1, 0.06, -s), 0.065, "trousers"),
        ((0.1, 0.05, s), (0.1, 0.04, s + 0.16), 0.05, "shoes"),
        ((-0.1, 0.05, -s), (-0.1, 0.04, -s + 0.16), 0.05, "shoes"),
        ((0.25, 1.38, 0), (0.28, 0.9, -s * 0.8), 0.055, "coat"),
        ((0, 1.0, 0), (0, 1.3, 0), 0.2, "coat"),
        ((-0.14, 1.36, 0), (0.14, 1.36, 0), 0.1, "coat"),
        ((-0.25, 1.38, 0), (-0.28, 0.9, s * 0.8), 0.055, "coat"),
        ((0, 1.5, 0.01), (0, 1.52, 0.01), 0.06, "skin"),
        ((0, 1.62, 0.02), (0, 1.65, 0.02), 0.105, "skin"),
        ((0, 1.68, -0.02), (0, 1.7, -0.01), 0.105, "hair"),
    ]
    if bag:
        limbs.append(((0, 1.1, -0.2), (0, 1.32, -0.2), 0.14, "bag"))
    return limbs


BIKE: list[Limb] = [
    ((0, 0.34, -0.53), (0, 0.3, 0.02), 0.035, "frame"),
    ((0, 0.3, 0.02), (0, 0.84, -0.2), 0.038, "frame"),
    ((0, 0.34, -0.53), (0, 0.8, -0.18), 0.02, "frame"),
    ((0, 0.78, -0.18), (0, 0.8, 0.36), 0.038, "frame"),
    ((0, 0.3, 0.02), (0, 0.8, 0.36), 0.038, "frame"),
    ((0, 0.34, 0.53), (0, 0.98, 0.34), 0.035, "frame"),
    ((-0.27, 1.02, 0.34), (0.27, 1.02, 0.34), 0.025, "tyre"),
    ((0, 0.9, -0.3), (0, 0.92, -0.08), 0.05, "tyre"),
]
MOTORBIKE: list[Limb] = [
    ((0, 0.42, -0.5), (0, 0.4, 0.3), 0.16, "engine"),
    ((0, 0.62, -0.1), (0, 0.66, 0.28), 0.2, "frame"),
    ((0, 0.78, -0.66), (0, 0.76, -0.1), 0.12, "seat"),
    ((0, 0.66, -0.86), (0, 0.74, -0.6), 0.09, "frame"),
    ((0, 0.32, 0.68), (0, 1.0, 0.42), 0.05, "engine"),
    ((0, 0.86, 0.44), (0, 0.98, 0.42), 0.14, "frame"),
    ((-0.36, 1.06, 0.36), (0.36, 1.06, 0.36), 0.035, "engine"),
    ((0.2, 0.34, -0.2), (0.2, 0.36, -0.85), 0.06, "chrome"),
]


def sitter(seat: float, lean: float, foot: float) -> list[Limb]:
    """A rider above a seat `seat` metres high."""
    return [
        ((0.12, seat + 0.06, -0.2), (0.15, seat - 0.1, 0.22), 0.085, "trousers"),
        ((0.15, seat - 0.1, 0.22), (0.14, foot, 0.0), 0.065, "trousers"),
        ((-0.12, seat + 0.06, -0.2), (-0.15, seat - 0.02, 0.25), 0.085, "trousers"),
        ((-0.15, seat - 0.02, 0.25), (-0.14, foot + 0.12, 0.1), 0.065, "trousers"),
        ((0.14, foot - 0.03, 0.0), (0.14, foot - 0.04, 0.16), 0.05, "shoes"),
        ((0, seat + 0.12, -0.18), (0, seat + 0.5, -0.18 + lean), 0.19, "coat"),
        ((-0.15, seat + 0.52, -0.16 + lean), (0.15, seat + 0.52, -0.16 + lean), 0.09, "coat"),
        ((0.23, seat + 0.5, -0.15 + lean), (0.26, seat + 0.22, 0.32), 0.055, "coat"),
        ((-0.23, seat + 0.5, -0.15 + lean), (-0.26, seat + 0.22, 0.32), 0.055, "coat"),
        ((0, seat + 0.75, -0.1 + lean), (0, seat + 0.79, -0.1 + lean), 0.11, "skin"),
        ((0, seat + 0.82, -0.12 + lean), (0, seat + 0.85, -0.12 + lean), 0.12, "helmet"),
    ]


@cache
def _wheel(radius: float, z: float) -> np.ndarray:
    """A wheel rim as 3-D points (16, 3)."""
    angle = np.arange(16) * np.pi / 8
    return np.stack([np.zeros(16), radius + radius * np.sin(angle), z + radius * np.cos(angle)], 1)


def paint_figure(canvas: Canvas, thing: Thing, instance: int) -> None:
    """Paint a person, a cycle, or a cycle with its rider."""
    camera = canvas.camera
    depth = camera.depth_of(thing.x, thing.z)
    if depth < 2.5:
        return
    reach = 2.0 * camera.focal / (depth - 1.5)  # pixels; no part of it is farther from its foot
    if not -reach < camera.foot(thing.x, thing.z)[0] < camera.width + reach:
        return
    rng = np.random.Generator(np.random.PCG64(thing.seed))
    shirt, skin = pick(rng, CLOTHES), pick(rng, SKIN)
    colors = {
        "coat": shirt,
        "trousers": pick(rng, ((38, 46, 74), (34, 34, 38), (92, 84, 72), (60, 72, 100), (120, 116, 110))),
        "shoes": pick(rng, ((28, 26, 26), (200, 198, 196), (80, 52, 36))), "skin": skin,
        "hair": pick(rng, ((40, 28, 22), (20, 18, 18), (150, 110, 60), (120, 118, 116))), "bag": pick(rng, CLOTHES),
        "frame": pick(rng, FRAMES), "tyre": (24, 24, 26), "seat": (30, 28, 28), "engine": (54, 54, 58),
        "chrome": (176, 178, 182),
        "helmet": pick(rng, ((240, 240, 240), (200, 40, 40), (40, 70, 160), (30, 30, 34), (240, 200, 40))),
    }  # fmt: skip
    if thing.kind == "person":
        surface = canvas.surface(PERSON, depth, instance)
        _limbs(canvas, thing, walker(span(rng, 0.1, 0.75), rng.random() < 0.3), colors, surface, depth)
        return
    motor = thing.kind.endswith("motorcycle")
    surface = canvas.surface(MOTORCYCLE if motor else BICYCLE, depth, instance)
    radius, base, width = (0.31, 0.68, 0.12) if motor else (0.34, 0.53, 0.06)
    for z in (-base, base):
        rim = _place(canvas, thing, _wheel(radius, z))
        thick = max(width * canvas.camera.focal / depth, 1.0)
        if motor:
            canvas.polygon(rim, (36, 36, 40), 0.3, surface)
        else:  # people outline a wheel, spokes and all
            cv2.fillConvexPoly(canvas.ids, canvas.fixed(rim), surface, cv2.LINE_8, SHIFT)
        canvas.stroke(rim, thick, colors["tyre"], 0.4, surface, closed=True)
    _limbs(canvas, thing, MOTORBIKE if motor else BIKE, colors, surface, depth)
    lamp = np.array([[0, 0.92, 0.56] if motor else [0, 0.9, 0.42], [0, 0.72, -0.9] if motor else [0, 0.72, -0.4]])
    front = np.cos(thing.heading) < 0
    ridden = thing.kind.startswith("rider")
    if motor or ridden:
        color = (250, 244, 220) if front else (220, 30, 24)
        size = (0.1 if motor else 0.05) * canvas.camera.focal / depth
        spot = _place(canvas, thing, lamp[:1] if front else lamp[1:])[0]
        canvas.disc(spot, size, color, 0.8, None, color if ridden else None)
    if ridden:
        rider = canvas.surface(RIDER, depth, instance + 1)
        if motor or rng.random() < 0.6:
            colors["hair"] = colors["helmet"]
        else:
            colors["helmet"] = colors["hair"]
        _limbs(canvas, thing, sitter(0.86, 0.2, 0.34) if motor else sitter(0.98, 0.32, 0.3), colors, rider, depth)


def _place(canvas: Canvas, thing: Thing, points: np.ndarray) -> np.ndarray:
    """Local points (N, 3) to pixels (N, 2)."""
    cos, sin = np.cos(thing.heading), np.sin(thing.heading)
    points = points * thing.size
    world = np.stack(
        [
            thing.x + cos * points[:, 0] + sin * points[:, 2],
            points[:, 1],
            thing.z - sin * points[:, 0] + cos * points[:, 2],
        ],
        1,
    )
    return canvas.camera.project(world)[0]


def _limbs(
    canvas: Canvas, thing: Thing, limbs: list[Limb], colors: dict[str, tuple], surface: int, depth: float
) -> None:
    """Draw limbs, the farther ones first."""
    ends = np.array([[limb[0], limb[1]] for limb in limbs])
    pixels = _place(canvas, thing, ends.reshape(-1, 3)).reshape(-1, 2, 2)
    cos, sin = np.cos(thing.heading), np.sin(thing.heading)
    middle = ends.mean(1)
    # Only sideways offsets decide what hides what; limbs keep their order otherwise.
    away = np.round(-sin * middle[:, 0] * 4 + (cos * middle[:, 2] * 2 if thing.kind == "person" else 0), 1)
    scale = thing.size * canvas.camera.focal / depth
    lit = 0.35 + 0.5 * max(0.0, -canvas.sun[2])
    fixed = canvas.fixed(pixels)
    for i in np.argsort(-away, kind="stable").tolist():
        canvas.trace(fixed[i], 2 * limbs[i][2] * scale, colors[limbs[i][3]], lit, surface)
