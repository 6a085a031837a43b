"""Buildings, walls, fences and hedges along the street."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from .canvas import Canvas, inverse_depth_plane
from .layout import Segment, pick, span
from .plants import paint_hedge
from .textures import STATES, TILE_SCALES, facade_tile, recolor, stains

BUILDING, WALL_LABEL, FENCE = 11, 12, 13
STOREY = 3.1  # metres
FLAT = 9  # pixels; anything lower is painted in one colour
WALLS = ((206, 190, 160), (190, 150, 120), (150, 84, 66), (214, 208, 196), (178, 176, 170), (196, 160, 96),
         (222, 196, 150), (160, 120, 100), (140, 150, 160), (206, 170, 150), (120, 70, 56), (186, 196, 186),
         (230, 222, 206), (170, 140, 116))  # fmt: skip
INDIA_WALLS = ((236, 190, 110), (110, 180, 190), (230, 150, 150), (150, 190, 130), (240, 220, 170), (170, 150, 200),
               (220, 130, 80), (200, 196, 186), (90, 150, 190), (240, 210, 120))  # fmt: skip
ROOFS = ((140, 66, 48), (112, 56, 44), (84, 78, 80), (100, 92, 88), (150, 84, 58), (70, 70, 76))
SIGNS = (
    (200, 40, 40),
    (40, 90, 170),
    (240, 190, 40),
    (40, 130, 80),
    (230, 120, 40),
    (110, 60, 140),
    (236, 236, 230),
    (40, 42, 48),
)
SNOW = (238, 242, 248)
TINTS = np.array((0.8, 1.0, 1.25, 1.6))[:, None, None]  # of the glass in each state


def paint_segment(canvas: Canvas, segment: Segment, india: bool) -> None:
    """Paint one stretch of a side."""
    if _outside(canvas, segment):
        return
    rng = np.random.Generator(np.random.PCG64(segment.seed))
    kind = segment.kind.removeprefix("low ")
    if kind == "building":
        _paint_building(canvas, segment, rng, india)
    elif kind == "wall":
        _wall(canvas, segment, rng, india)
    elif kind == "fence":
        _fence(canvas, segment, rng)
    else:
        paint_hedge(canvas, segment, rng)


def _outside(canvas: Canvas, segment: Segment) -> bool:
    """Return whether a segment is behind the camera or outside the image; its far end is the closest to the middle."""
    camera, side = canvas.camera, segment.side
    x = segment.x - side * (3.0 if segment.kind.endswith("hedge") else 0.5)  # what overhangs counts
    if min(camera.depth_of(segment.x, segment.z1), camera.depth_of(x, segment.z1)) < 0.5:
        return camera.depth_of(segment.x, segment.z1) < 0.5
    end = camera.foot(x, segment.z1)[0]
    return end < -3 if side < 0 else end > camera.width + 3


def _quad(canvas: Canvas, corners: np.ndarray) -> tuple[np.ndarray, tuple[float, float, float], float, float]:
    """Pixels (4, 2) of a world quad, its plane of inverse depth and its depth range."""
    pixels, depth = canvas.camera.project(corners)
    return pixels, inverse_depth_plane(pixels, depth), float(depth.min()), float(depth.max())


def _upright(x0: float, z0: float, x1: float, z1: float, low: float, high: float) -> np.ndarray:
    """The corners of an upright rectangle over the ground line (x0, z0)..(x1, z1), top left first."""
    return np.array([[x0, high, z0], [x1, high, z1], [x1, low, z1], [x0, low, z0]], float)


def _lit(canvas: Canvas, normal: tuple[float, float, float]) -> float:
    return min(max(sum(s * n for s, n in zip(canvas.sun.tolist(), normal, strict=True)), 0.0), 1.0)


def _visible_stretch(canvas: Canvas, segment: Segment) -> tuple[float, float] | None:
    """z0 and z1 of the part beyond the near plane."""
    z0 = max(segment.z0, canvas.camera.nearest_z(segment.x) + 0.3)
    return (z0, segment.z1) if segment.z1 - z0 > 0.3 else None


def _facade(
    canvas: Canvas,
    rng: np.random.Generator,
    palette: np.ndarray,
    style: int,
    *,
    grounds: list[int],
    floors: int,
    texels: int,
    lit: float,
    light_seed: int,
) -> tuple[np.ndarray, np.ndarray | None]:
    """A facade as a texture (h, w, 4) and the light of its windows (h, w, 3) or None.

    Args:
        canvas: decides whether windows are lit.
        rng: of the windows' states.
        palette: see `_palette`.
        style: see `facade_tile`.
        grounds: kind of the ground floor of each bay.
        floors: number of storeys.
        texels: height of a storey.
        lit: share of the windows that are lit at night.
        light_seed: of the lights.
    """
    bays = len(grounds)
    upper = cv2.repeat(facade_tile(style, 0, texels), max(floors - 1, 1), bays)[: (floors - 1) * texels]
    bottom = np.concatenate([facade_tile(style, g, texels) for g in grounds], 1)
    tiles = np.concatenate([upper, bottom], 0)
    h, w = facade_tile(style, 0, texels).shape
    state = rng.integers(0, STATES, (floors, bays), dtype=np.uint8)
    index = tiles + 16 * cv2.resize(state, (bays * w, floors * h), interpolation=cv2.INTER_NEAREST)
    texture = recolor(index, palette)
    if texels >= 20:
        rows, cols = index.shape
        texture = cv2.multiply(texture, stains()[:rows, :cols], scale=1 / 128)
    if canvas.glow is None:
        return texture, None
    # Lights have a generator of their own: the rest of the building is the same by day.
    rng = np.random.Generator(np.random.PCG64([light_seed, 1]))
    light = np.zeros((256, 4), np.uint8)
    for s in range(STATES):
        if rng.random() < lit:
            tint = np.array(pick(rng, ((255, 200, 110), (255, 222, 150), (240, 180, 90), (220, 226, 240))))
            light[16 * s + 3, :3] = light[16 * s + 4, :3] = 0.75 * tint
        light[16 * s + 8, :3] = (255, 226, 170) if lit > 0.25 else (60, 50, 40)
        light[16 * s + 9, :3] = 0.5 * palette[9, :3]
    return texture, cv2.cvtColor(recolor(index, light), cv2.COLOR_RGBA2RGB)


def _palette(rng: np.random.Generator, wall: tuple, lit: float) -> np.ndarray:
    """Colour and sun share of each facade material in each state, (256, 4) uint8, 64 rows in use."""
    wall_rgb = np.array(wall, float)
    trim = wall_rgb * 0.3 + 165 if rng.random() < 0.6 else wall_rgb * 0.75
    frame = np.array(pick(rng, ((236, 236, 232), (236, 236, 232), (70, 50, 40), (50, 60, 66))), float)
    shutter = np.array(pick(rng, ((70, 96, 80), (110, 60, 46), (90, 100, 110), (200, 196, 186), (60, 80, 120))), float)
    door = np.array(pick(rng, ((90, 56, 38), (50, 70, 60), (120, 30, 30), (60, 62, 70), (160, 150, 130))), float)
    awning = np.array(pick(rng, SIGNS), float)
    glass = np.array(pick(rng, ((52, 62, 74), (62, 76, 84), (40, 46, 54))), float)
    table = np.zeros((STATES, 16, 4))
    table[:, :12, :3] = (wall_rgb, wall_rgb * 0.9, frame, glass, glass, trim, shutter, door, (70, 78, 84),
                         awning, (44, 44, 48), wall_rgb * 0.45)  # fmt: skip
    table[:, 3:5, :3] *= TINTS
    table[:, 4, :3] += 46
    table[::2, 9, :3] = awning * 0.85 + 30
    table[:, :12, 3] = 255 * lit
    table[:, [3, 4, 8, 11], 3] = 255 * lit * 0.6
    palette = np.zeros((256, 4), np.uint8)
    palette[: 16 * STATES] = table.clip(0, 255).reshape(-1, 4)
    return palette


@dataclass(frozen=True)
class _Building:
    """How one building looks: everything that its generator decides before it is painted.

    Attributes:
        wall: RGB, 0..255.
        style: of the windows, see `facade_tile`.
        pitched: whether the roof is pitched; flat otherwise.
        roof: RGB of a pitched roof.
        rise: height of a pitched roof above the walls, metres.
        lit_share: share of the windows that are lit at night.
        height: of the walls, metres.
        back: X of the rear wall.
        sun_front: share of the sunlight on the street front, 0..1.
        palette: see `_palette`.
        grounds: kind of the ground floor of each bay, see `facade_tile`.
    """

    wall: np.ndarray
    style: int
    pitched: bool
    roof: np.ndarray
    rise: float
    lit_share: float
    height: float
    back: float
    sun_front: float
    palette: np.ndarray
    grounds: list[int]

    def ridge(self, segment: Segment) -> float:
        """X of a pitched roof's ridge."""
        return (segment.x + self.back) / 2


def _sample_building(canvas: Canvas, segment: Segment, rng: np.random.Generator, india: bool) -> _Building:
    """Choose the look of a building."""
    wall = np.clip(np.array(pick(rng, INDIA_WALLS if india else WALLS)) * span(rng, 0.8, 1.08), 0, 250)
    style, depth = int(rng.random() * 10), span(rng, 9, 13)
    pitched = segment.floors <= 4 and rng.random() < (0.15 if india else 0.65)
    roof, rise = np.array(pick(rng, ROOFS), float), span(rng, 1.8, 3.8)
    shops, lit_share = rng.random() < (0.75 if india else 0.4), span(rng, 0.15, 0.6)
    sun_front = _lit(canvas, (-segment.side, 0, 0))
    palette = _palette(rng, wall, sun_front)
    bays = max(2, round((segment.z1 - segment.z0) / span(rng, 2.4, 3.3)))
    choices = (1, 1, 1, 2) if shops else (3, 3, 3, 2, 3, 5 if segment.floors < 4 else 4)
    return _Building(
        wall=wall,
        style=style,
        pitched=pitched,
        roof=roof,
        rise=rise,
        lit_share=lit_share,
        height=segment.floors * STOREY + 0.4,
        back=segment.x + segment.side * depth,
        sun_front=sun_front,
        palette=palette,
        grounds=[pick(rng, choices) for _ in range(bays)],
    )


def _paint_building(canvas: Canvas, segment: Segment, rng: np.random.Generator, india: bool) -> None:
    """Paint a building: the end that faces the camera, the roof, the street front and what stands on a flat roof."""
    stretch = _visible_stretch(canvas, segment)
    if stretch is None:
        return
    z0, z1 = stretch
    building = _sample_building(canvas, segment, rng, india)
    if segment.z0 > canvas.camera.nearest_z(building.back) + 0.5 and segment.z0 == z0:
        _paint_end(canvas, segment, building, rng)
    side, x = segment.side, segment.x
    low, high = 0, building.height
    quad = _upright(x, z1, x, z0, low, high) if side < 0 else _upright(x, z0, x, z1, low, high)
    pixels, plane, near, far = _quad(canvas, quad)
    if np.ptp(pixels[:, 0]) < 1.5 or pixels[:, 0].max() < 0 or pixels[:, 0].min() > canvas.camera.width:
        return
    surface = canvas.plane(BUILDING, plane, near, far)
    if building.pitched:
        _paint_roof(canvas, segment, building, rng, z0, z1, surface)
    _paint_front(canvas, segment, building, rng, z0, pixels, canvas.camera.focal / near, surface)
    band = np.array(
        [[x - side * 0.25, high, z0], [x - side * 0.25, high, z1], [x, high - 0.35, z1], [x, high - 0.35, z0]]
    )
    tone = np.array(SNOW, float) if canvas.snowy else building.wall * 0.72
    canvas.polygon(canvas.camera.project(band)[0], tone, building.sun_front, surface)
    if india and not building.pitched and rng.random() < 0.6:
        _tank(canvas, x + side * 1.5, span(rng, z0 + 0.2, max(z1 - 1, z0 + 0.3)), high, surface)


def _paint_end(canvas: Canvas, segment: Segment, building: _Building, rng: np.random.Generator) -> None:
    """Paint the end wall that faces the camera, blank or with windows, and the gable of a pitched roof."""
    x, z, back, height = segment.x, segment.z0, building.back, building.height
    pixels, plane, near, far = _quad(canvas, _upright(min(x, back), z, max(x, back), z, 0, height))
    scale = canvas.camera.focal / near
    surface = canvas.plane(BUILDING, plane, near, far)
    sun = _lit(canvas, (0, 0, -1))
    blank = rng.random() < 0.4
    if blank or scale * STOREY < 7:
        canvas.polygon(pixels, building.wall * 0.9, sun, surface)
    else:
        palette = building.palette.copy()
        palette[:, 3] = (255 * sun * (palette[:, 3] / max(palette[:, 3].max(), 1))).astype(np.uint8)
        texture, light = _facade(
            canvas,
            rng,
            palette,
            building.style,
            grounds=[3, 3, 3],
            floors=segment.floors,
            texels=_texels(scale),
            lit=building.lit_share,
            light_seed=segment.seed,
        )
        canvas.warp(pixels, texture, surface, glow=light)
    if building.pitched:
        gable = np.array([[x, height, z], [building.ridge(segment), height + building.rise, z], [back, height, z]])
        canvas.polygon(canvas.camera.project(gable)[0], building.wall * 0.92, sun, surface)


def _paint_roof(
    canvas: Canvas,
    segment: Segment,
    building: _Building,
    rng: np.random.Generator,
    z0: float,
    z1: float,
    surface: int,
) -> None:
    """Paint the street side of a pitched roof, with or without a chimney."""
    eaves, ridge = segment.x - segment.side * 0.3, building.ridge(segment)
    low, high = building.height - 0.1, building.height + building.rise
    slope = np.array([[eaves, low, z0], [eaves, low, z1], [ridge, high, z1], [ridge, high, z0]])
    tone = np.array(SNOW, float) if canvas.snowy else building.roof
    sun = _lit(canvas, (-0.5 * segment.side, 0.86, 0))
    canvas.polygon(canvas.camera.project(slope)[0], tone, sun, surface)
    if rng.random() < 0.6:
        z = span(rng, max(z0, segment.z0), z1 - 0.5)
        _chimney(canvas, ridge - segment.side * 0.8, z, building.height + building.rise * 0.7, surface)


def _paint_front(
    canvas: Canvas,
    segment: Segment,
    building: _Building,
    rng: np.random.Generator,
    z0: float,
    pixels: np.ndarray,
    scale: float,
    surface: int,
) -> None:
    """Paint the street front, whose visible part starts at `z0`, into `pixels` (4, 2); `scale`: pixels per metre."""
    if STOREY * scale < 5:
        canvas.polygon(pixels, building.wall * 0.8, building.sun_front, surface)
        return
    texture, light = _facade(
        canvas,
        rng,
        building.palette,
        building.style,
        grounds=building.grounds,
        floors=segment.floors,
        texels=_texels(scale),
        lit=building.lit_share,
        light_seed=segment.seed,
    )
    cut = int((z0 - segment.z0) / (segment.z1 - segment.z0) * texture.shape[1])
    # Left facades run from far (left texel) to near; right ones from near to far.
    keep = np.s_[:, cut:] if segment.side > 0 else np.s_[:, : texture.shape[1] - cut]
    canvas.warp(pixels, texture[keep], surface, glow=None if light is None else light[keep])


def _texels(pixels_a_metre: float) -> int:
    """The coarsest facade tile that is not blurred at this scale."""
    for texels in reversed(TILE_SCALES):
        if texels >= 0.55 * pixels_a_metre * STOREY:
            return texels
    return TILE_SCALES[0]


def _chimney(canvas: Canvas, x: float, z: float, y: float, surface: int) -> None:
    box = np.array([[x - 0.4, y + 1.4, z], [x + 0.4, y + 1.4, z], [x + 0.4, y - 0.4, z], [x - 0.4, y - 0.4, z]])
    canvas.polygon(canvas.camera.project(box)[0], (122, 74, 60), 0.4, surface)


def _tank(canvas: Canvas, x: float, z: float, y: float, surface: int) -> None:
    box = np.array([[x - 0.7, y + 1.4, z], [x + 0.7, y + 1.4, z], [x + 0.7, y, z], [x - 0.7, y, z]])
    canvas.polygon(canvas.camera.project(box)[0], (36, 38, 44), 0.5, surface)


def _barrier(canvas: Canvas, segment: Segment, label: int, height: float) -> tuple[np.ndarray, int, float] | None:
    """Pixels, surface and nearest scale of an upright barrier along the segment."""
    stretch = _visible_stretch(canvas, segment)
    if stretch is None:
        return None
    z0, z1 = stretch
    x, side = segment.x, segment.side
    quad = _upright(x, z1, x, z0, 0, height) if side < 0 else _upright(x, z0, x, z1, 0, height)
    pixels, plane, near, far = _quad(canvas, quad)
    return pixels, canvas.plane(label, plane, near, far), canvas.camera.focal / near


def _wall(canvas: Canvas, segment: Segment, rng: np.random.Generator, india: bool) -> None:
    low = segment.kind.startswith("low")
    height = span(rng, 0.9, 1.4) if low else span(rng, 1.9, 3.4)
    tone = np.array(
        pick(
            rng,
            ((166, 160, 150), (150, 96, 76), (190, 182, 166), (140, 136, 130), (176, 130, 100))
            if not india
            else INDIA_WALLS,
        ),
        float,
    ) * span(rng, 0.75, 1.0)
    found = _barrier(canvas, segment, WALL_LABEL, height)
    if found is None:
        return
    pixels, surface, scale = found
    lit = _lit(canvas, (-segment.side, 0, 0))
    if scale * height < FLAT:
        canvas.polygon(pixels, tone, lit, surface)
        return
    length = segment.z1 - segment.z0
    courses = 3 if rng.random() < 0.4 else 8
    rows, cols = 8 * courses, int(np.clip(length * 16, 32, 360))
    block = 8 * courses // 3 if courses > 3 else 48
    texture = np.empty((rows, cols, 4), np.uint8)
    texture[...] = (*tone.tolist(), 255 * lit)
    texture[::8, :, :3] = tone * 0.68
    for row in range(courses):
        texture[8 * row : 8 * row + 8, (row % 2) * block // 2 :: block, :3] = tone * 0.7
    offset = int(rng.random() * 400)
    texture = cv2.multiply(texture, stains()[offset % 256 : offset % 256 + rows, offset : offset + cols], scale=1 / 128)
    if rng.random() < 0.3:  # painted letters
        left = int(rng.random() * max(cols - 110, 1))
        ink = pick(rng, SIGNS)
        for k in range(5):
            cv2.ellipse(
                texture,
                (left + 10 + 18 * k, rows * 5 // 8),
                (7, rows // 5),
                0,
                360 * rng.random(),
                360 * rng.random() + 300,
                (*ink, 255 * lit),
                3,
            )
    texture[: max(rows // 12, 2), :, :3] = SNOW if canvas.snowy else np.clip(tone * 1.2, 0, 255)
    texture[-rows // 6 :, :, :3] = texture[-rows // 6 :, :, :3] * 0.8
    canvas.warp(pixels, texture, surface)


def _fence(canvas: Canvas, segment: Segment, rng: np.random.Generator) -> None:
    low = segment.kind.startswith("low")
    height = span(rng, 0.9, 1.3) if low else span(rng, 1.4, 2.1)
    found = _barrier(canvas, segment, FENCE, height)
    if found is None:
        return
    pixels, surface, scale = found
    style = pick(rng, ("picket", "bars", "mesh", "planks"))
    tone = {"picket": pick(rng, ((232, 232, 226), (150, 110, 70), (120, 90, 66))),
            "bars": pick(rng, ((38, 42, 44), (50, 76, 60), (96, 100, 104))),
            "mesh": pick(rng, ((110, 120, 116), (70, 100, 80))),
            "planks": pick(rng, ((140, 100, 66), (110, 84, 62), (166, 130, 92)))}[style]  # fmt: skip
    if scale * height < FLAT:
        canvas.polygon(pixels, tone, _lit(canvas, (-segment.side, 0, 0)), surface)
        return
    rows, step = 32, 8
    cols = int(np.clip((segment.z1 - segment.z0) * 24, 48, 480)) // step * step
    alpha = np.zeros((rows, cols), np.uint8)
    texture = np.empty((rows, cols, 4), np.uint8)
    texture[..., :3] = tone
    columns = np.arange(cols)
    if style == "picket":
        alpha[3:, columns % step < 5] = 255
        alpha[:3, (columns % step < 4) & (columns % step > 0)] = 255
        alpha[8:11] = alpha[24:27] = 255
    elif style == "planks":
        alpha[2:] = 255
        texture[:, columns % step == 0, :3] = np.array(tone) * 0.6
        texture[..., :3] = texture[..., :3] * (0.85 + 0.3 * rng.random(cols // step).repeat(step))[None, :, None]
    elif style == "bars":
        alpha[:, columns % 4 < 2] = 255
        alpha[2:5] = alpha[26:29] = 255
    else:
        rows_index = np.arange(rows)[:, None]
        alpha[((rows_index + columns) % 4 == 0) | ((rows_index - columns) % 4 == 0)] = 170
        alpha[:2] = 255
    alpha[:, columns % 64 < 4] = 255
    if canvas.snowy:
        texture[:4, :, :3] = SNOW
    texture[..., 3] = int(255 * _lit(canvas, (-segment.side, 0, 0)))
    shrink = min(1.0, 1.2 * scale * height / rows)
    if shrink < 0.7:
        size = (max(int(cols * shrink), 8), max(int(rows * shrink), 6))
        texture, alpha = (cv2.resize(t, size, interpolation=cv2.INTER_AREA) for t in (texture, alpha))
    canvas.warp(pixels, texture, surface, alpha=alpha)
