"""Street furniture: lamps, traffic lights, signs, boards, bollards and power poles."""

from __future__ import annotations

import numpy as np

from .canvas import Canvas
from .layout import Thing, pick, span

POLE, TRAFFIC_LIGHT, TRAFFIC_SIGN = 17, 19, 20
STEEL = ((96, 100, 104), (70, 74, 76), (130, 132, 134), (52, 62, 58))
LAMP_HEIGHT = 6.6  # metres


class _Pen:
    """Draws upright flat shapes at one ground point in metres: x to the right of the image, y up."""

    def __init__(self, canvas: Canvas, thing: Thing) -> None:
        self.canvas = canvas
        self.depth = canvas.camera.depth_of(thing.x, thing.z)
        self.scale = canvas.camera.focal / max(self.depth, 0.1)
        self.base = np.array(canvas.camera.foot(thing.x, thing.z))
        self.lit = 0.3 + 0.6 * max(0.0, -float(canvas.sun[2]))

    def at(self, *points: tuple[float, float]) -> np.ndarray:
        """Metres to pixels (N, 2)."""
        return self.base + np.array(points) * (self.scale, -self.scale)

    def pole(self, x: float, y0: float, y1: float, radius: float, rgb: tuple, surface: int) -> None:
        """An upright pole, at least a pixel wide."""
        self.canvas.stroke(self.at((x, y0), (x, y1)), max(2 * radius * self.scale, 1), rgb, self.lit, surface)

    def box(
        self,
        x0: float,
        y0: float,
        x1: float,
        y1: float,
        rgb: tuple,
        surface: int | None = None,
        glow: tuple | None = None,
    ) -> None:
        """An axis-aligned rectangle."""
        self.canvas.polygon(self.at((x0, y0), (x1, y0), (x1, y1), (x0, y1)), rgb, self.lit, surface, glow)


def paint_furniture(canvas: Canvas, thing: Thing) -> None:
    """Draw one piece; `thing.heading` is the side (-1, 1) its arm reaches to."""
    pen = _Pen(canvas, thing)
    if pen.depth < 4 or not -5 * pen.scale < pen.base[0] < canvas.camera.width + 5 * pen.scale:
        return
    rng = np.random.Generator(np.random.PCG64(thing.seed))
    steel = pick(rng, STEEL)
    pole = canvas.surface(POLE, pen.depth)
    if thing.kind == "lamp":
        _lamp(pen, thing, rng, steel, pole)
    elif thing.kind == "signal":
        _signal(pen, thing, rng, steel, pole)
    elif thing.kind == "sign":
        pen.pole(0, 0, 2.2 + 0.7 * thing.size, 0.045, (150, 152, 154), pole)
        _sign(pen, rng, thing.size)
    elif thing.kind == "board":
        _board(pen, thing, rng, steel, pole)
    elif thing.kind == "bollard":
        pen.pole(0, 0, 0.95, 0.07, (60, 62, 66), pole)
        pen.box(-0.07, 0.72, 0.07, 0.84, (220, 60, 50))
    else:
        _pylon(pen, pole)


def _lamp(pen: _Pen, thing: Thing, rng: np.random.Generator, steel: tuple, pole: int) -> None:
    reach = thing.heading * 1.5
    pen.pole(0, 0, LAMP_HEIGHT, 0.085, steel, pole)
    pen.pole(0, 0, 1.2, 0.12, steel, pole)
    pen.canvas.stroke(
        pen.at((0, LAMP_HEIGHT), (reach, LAMP_HEIGHT + 0.3)), max(0.1 * pen.scale, 1), steel, pen.lit, pole
    )
    low, high = sorted((reach * 0.75, reach * 1.15))
    glow = pick(rng, ((255, 206, 130), (255, 224, 170), (255, 240, 214)))
    pen.box(low, LAMP_HEIGHT + 0.16, high, LAMP_HEIGHT + 0.38, (214, 214, 206), pole, glow)


def _signal(pen: _Pen, thing: Thing, rng: np.random.Generator, steel: tuple, pole: int) -> None:
    light = pen.canvas.surface(TRAFFIC_LIGHT, pen.depth)
    state = int(rng.random() * 3)
    arm = rng.random() < 0.4
    pen.pole(0, 0, 5.6 if arm else 3.7, 0.08, steel, pole)
    spots = [(0.0, 2.55)]
    if arm:
        pen.canvas.stroke(pen.at((0, 5.5), (thing.heading * 3.6, 5.6)), max(0.12 * pen.scale, 1), steel, pen.lit, pole)
        spots.append((thing.heading * 3.4, 4.9))
    for x, y in spots:
        pen.box(x - 0.27, y, x + 0.27, y + 1.3, (24, 26, 26), light)
        if state == 0 or rng.random() < 0.5:
            pen.canvas.polygon(
                pen.at((x - 0.34, y - 0.08), (x + 0.34, y - 0.08), (x + 0.34, y), (x - 0.34, y)),
                (222, 222, 214),
                0.4,
                light,
            )
        for k, (on, off) in enumerate(
            (((60, 240, 120), (20, 54, 34)), ((255, 190, 40), (64, 50, 20)), ((255, 50, 40), (66, 20, 20)))
        ):
            lit = k == 2 - state
            pen.canvas.disc(
                pen.at((x, y + 0.25 + 0.4 * k))[0],
                0.17 * pen.scale,
                on if lit else off,
                1.0 if lit else 0.3,
                None,
                on if lit else None,
            )


def _sign(pen: _Pen, rng: np.random.Generator, size: float) -> None:
    surface = pen.canvas.surface(TRAFFIC_SIGN, pen.depth)
    radius, y = 0.42 * size, 2.2 + 0.4 * size
    shape = int(rng.random() * 8)
    red, blue, white, yellow = (200, 24, 30), (24, 78, 170), (242, 242, 240), (246, 200, 30)
    if shape <= 2:
        pen.canvas.disc(pen.at((0, y))[0], radius * pen.scale, blue if shape == 2 else red, pen.lit, surface)
        if shape == 0:
            pen.canvas.disc(pen.at((0, y))[0], radius * 0.7 * pen.scale, white, pen.lit)
        elif shape == 1:
            pen.box(-radius * 0.65, y - radius * 0.18, radius * 0.65, y + radius * 0.18, white)
        else:
            pen.box(-radius * 0.14, y - radius * 0.55, radius * 0.14, y + radius * 0.55, white)
    elif shape <= 4:
        for share, rgb in ((1.15, red), (0.7, white)):
            points = [
                (0, y + radius * share),
                (radius * share, y - radius * share * 0.75),
                (-radius * share, y - radius * share * 0.75),
            ]
            if shape == 4:
                points = [(a, 2 * y - b) for a, b in points]
            pen.canvas.polygon(pen.at(*points), rgb, pen.lit, surface)
    elif shape == 5:
        for share, rgb in ((1.1, white), (0.85, yellow)):
            r = radius * share
            pen.canvas.polygon(pen.at((0, y + r), (r, y), (0, y - r), (-r, y)), rgb, pen.lit, surface)
    else:
        rgb = blue if shape == 6 else yellow
        pen.box(-radius, y - radius, radius, y + radius * 1.2, white, surface)
        pen.box(-radius * 0.88, y - radius * 0.88, radius * 0.88, y + radius * 1.08, rgb)
        pen.box(-radius * 0.3, y - radius * 0.6, radius * 0.1, y + radius * 0.8, white if shape == 6 else (30, 30, 30))


def _board(pen: _Pen, thing: Thing, rng: np.random.Generator, steel: tuple, pole: int) -> None:
    """A large direction board on two poles."""
    surface = pen.canvas.surface(TRAFFIC_SIGN, pen.depth)
    low, high = sorted((-thing.heading * 0.4, thing.heading * 2.4))
    for x in (low + 0.3, high - 0.3):
        pen.pole(x, 0, 4.4, 0.07, steel, pole)
    rgb, ink = pick(
        rng, (((30, 80, 170), (244, 244, 244)), ((246, 204, 40), (30, 30, 30)), ((20, 110, 70), (244, 244, 244)))
    )
    pen.box(low, 2.6, high, 4.5, ink, surface)
    pen.box(low + 0.07, 2.67, high - 0.07, 4.43, rgb)
    for k in range(3):
        pen.box(low + 0.3, 2.9 + 0.52 * k, low + 0.3 + span(rng, 0.9, 2.0), 3.12 + 0.52 * k, ink)


def _pylon(pen: _Pen, pole: int) -> None:
    """A concrete power pole with a crossbar."""
    pen.pole(0, 0, 7.5, 0.12, (150, 146, 138), pole)
    pen.canvas.stroke(pen.at((-0.9, 7.0), (0.9, 7.0)), max(0.1 * pen.scale, 1), (110, 104, 96), pen.lit, pole)
