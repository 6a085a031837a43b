"""The ground seen in perspective: asphalt, markings, kerbs, sidewalks, lawns, and the shadows that lie on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np

from .canvas import Canvas
from .layout import LENGTHS, Layout, Segment, Thing, pick, span
from .objects import StreetObject, sprite
from .textures import sample_noise

ROAD, SIDEWALK, TERRAIN = 7, 8, 22
BULK_HEIGHTS = {"car": 1.45, "rickshaw": 1.7, "truck": 3.2, "bus": 3.1, "tram": 3.3}
SMALL_BULKS = {"person": (0.3, 0.5, 1.7), "lamp": (0.16, 0.16, 6.6), "sign": (0.1, 0.7, 2.6), "signal": (0.2, 0.3, 3.7),
               "bush": (1.2, 1.2, 1.0), "pylon": (0.3, 0.3, 7.5)}  # fmt: skip


@dataclass(frozen=True)
class GroundGrid:
    """World coordinates of the ground rows: X, Z (R, W), forward distance (R, 1), first row, metres per pixel."""

    first: int
    x: np.ndarray
    z: np.ndarray
    depth: np.ndarray
    across: np.ndarray
    along: np.ndarray


def ground_grid(canvas: Canvas) -> GroundGrid:
    """The grid of a camera."""
    camera = canvas.camera
    first, x, z, depth = camera.ground_rows()
    return GroundGrid(first, x, z, depth, depth / camera.focal, np.minimum(depth**2 / (camera.focal * camera.eye), 20))


def _wrap(value: np.ndarray, period: float) -> np.ndarray:
    """value modulo period; several times faster than np.mod."""
    return value - period * np.floor(value * (1 / period))


def _stripe(distance: np.ndarray, width: float, footprint: np.ndarray) -> np.ndarray:
    """Antialiased coverage of a stripe whose axis lies `distance` metres away, float32 0..1."""
    cover = (width / 2 - np.abs(distance)) * (1 / footprint)
    cover += 0.5
    return np.minimum(np.maximum(cover, 0, out=cover), np.minimum(1, width / footprint), out=cover)


def _lay(color: np.ndarray, share: np.ndarray, rgb: np.ndarray) -> None:
    """Cover planes (3, R, W) with a colour where share (R, W) is 1, in place."""
    for plane, value in zip(color, rgb.tolist(), strict=True):
        plane += share * (value - plane)


def paint_ground(canvas: Canvas, layout: Layout, rng: np.random.Generator) -> None:
    """Fill everything below the horizon."""
    g = ground_grid(canvas)
    x, z = g.x, g.z
    beyond = np.maximum(layout.left - x, x - layout.right)  # metres outside the kerb, negative on the road
    road, verge = beyond < 0, (beyond >= 0) & (beyond < layout.verge)
    walk = (beyond >= layout.verge) & (beyond < layout.verge + layout.walk)
    edge = beyond
    if layout.crossing:
        z0, z1 = layout.crossing
        outside = np.maximum(z0 - z, z - z1)
        road |= outside < 0
        walk |= (outside >= 0) & (outside < 2.4) & (beyond >= 0)
        edge = np.minimum(beyond, np.where(beyond > 0, outside, beyond))
    if layout.garden == 0 and not layout.india:
        walk |= beyond >= layout.verge
    labels = np.full(x.shape, TERRAIN, np.uint8)
    labels[walk & ~road] = SIDEWALK
    labels[verge & ~road & ~walk] = TERRAIN
    labels[road] = ROAD
    color = _materials(canvas, layout, rng, g, labels)
    if not layout.india:
        _markings(layout, rng, g, color, road, canvas.snowy)
        _lay(
            color, 0.8 * _stripe(edge - 0.08, 0.2, g.across), np.array((168, 166, 160)) * (1.25 if canvas.snowy else 1)
        )
    buffer = canvas.color[g.first :]
    sun = np.full(x.shape, 255 * max(canvas.sun[1], 0), np.float32)
    buffer[...] = cv2.merge([cv2.convertScaleAbs(cv2.max(plane, 0)) for plane in (*color, sun)])
    near, far = float(g.depth.min()), float(g.depth.max())
    plane = canvas.camera.ground_plane()
    ids = np.array([canvas.plane(label, plane, near, far) for label in (ROAD, SIDEWALK, TERRAIN)], np.uint16)
    lookup = np.zeros(256, np.uint16)
    lookup[[ROAD, SIDEWALK, TERRAIN]] = ids
    canvas.ids[g.first :] = cv2.LUT(labels, lookup)


def _materials(
    canvas: Canvas, layout: Layout, rng: np.random.Generator, g: GroundGrid, labels: np.ndarray
) -> np.ndarray:
    """Colour of the bare ground, (3, R, W) float32."""
    x, z = g.x, g.z
    asphalt = span(rng, 78, 118) * np.array((1.0, 1.0, span(rng, 0.98, 1.06)))
    paving = span(rng, 128, 178) * np.array((1.02, 0.99, span(rng, 0.88, 0.96)))
    if rng.random() < 0.2:
        paving = np.array((172, 122, 102)) * span(rng, 0.8, 1.0)
    grass = np.array(pick(rng, ((92, 116, 52), (110, 122, 60), (78, 104, 48), (132, 126, 74))), float)
    if layout.india:
        asphalt = asphalt * (1.12, 1.04, 0.92)
        paving = np.array((176, 158, 132)) * span(rng, 0.85, 1.05)
        grass = np.array((182, 146, 102)) * span(rng, 0.85, 1.1)
    fade = np.clip(0.16 / g.along, 0.12, 1)
    fine = sample_noise(1, 0.35, x * 14, z * 14) * fade
    coarse = sample_noise(2, 1.1, x * 5, z * 2.2)
    rough = 0.05 + 0.03 * rng.random()
    table = np.zeros((256, 3), np.float32)
    table[ROAD], table[SIDEWALK], table[TERRAIN] = asphalt, paving, grass
    gain = 1 + rough * fine + 0.035 * coarse
    soft, on_road = labels == TERRAIN, labels == ROAD
    gain += soft * (0.1 * fine + 0.06 * coarse)
    if not layout.india:  # paving slabs
        size = span(rng, 0.6, 1.1)
        joints = np.maximum(
            _stripe(_wrap(x, size) - size / 2, 0.05, g.across), _stripe(_wrap(z, size) - size / 2, 0.05, g.along)
        )
        gain -= 0.22 * joints * (labels == SIDEWALK)
    if layout.tram is not None:
        for offset in (-0.72, 0.72):
            gain -= 0.55 * _stripe(x - layout.tram - offset, 0.17, g.across) * on_road
            gain += 0.8 * _stripe(x - layout.tram - offset, 0.06, g.across) * on_road
    in_lane = np.abs(_wrap(x + layout.lane / 2, layout.lane) - layout.lane / 2)
    gain -= 0.05 * np.maximum(1 - np.abs(in_lane - 0.8) / 0.35, 0) * on_road  # tyre tracks are darker
    color = np.stack([cv2.LUT(labels, column.copy()) for column in table.T])
    color *= gain
    if rng.random() < 0.5:  # a repaired patch of road
        px, pz = span(rng, layout.left, layout.right), span(rng, 6, 18)
        patch = (np.abs(x - px) < span(rng, 0.4, 1.3)) & (np.abs(z - pz) < span(rng, 0.8, 3)) & on_road
        color *= 1 - span(rng, 0.1, 0.25) * patch
    if layout.india:  # dust drifts over worn asphalt
        beyond = np.maximum(layout.left - x, x - layout.right)
        dust = np.clip(0.25 + 0.22 * coarse + 0.9 * cv2.exp(np.minimum(beyond, 0) / 0.9) * 0.6, 0, 0.85) * on_road
        _lay(color, dust, np.array((178, 150, 114)))
    if canvas.snowy:
        _snow_cover(layout, g, labels, color, fine, coarse)
    return color


def _snow_cover(
    layout: Layout, g: GroundGrid, labels: np.ndarray, color: np.ndarray, fine: np.ndarray, coarse: np.ndarray
) -> None:
    """White beside the road, slush between the tracks; in place."""
    cover = np.clip(0.95 + 0.06 * coarse, 0.7, 1)
    road = labels == ROAD
    bare = np.zeros_like(g.x)
    for centre, _ in layout.lanes:
        for offset in (-0.78, 0.78):
            bare = np.maximum(bare, np.clip(1.35 - np.abs(g.x - centre - offset) / 0.42, 0, 1))
    if layout.crossing:
        bare = np.maximum(bare, 0.6 * ((g.z > layout.crossing[0]) & (g.z < layout.crossing[1])))
    slush = np.clip(0.62 + 0.16 * coarse - 0.62 * bare, 0.04, 0.85)
    cover = np.where(road, slush, cover).astype(np.float32)
    gain = 1 + 0.03 * fine - 0.12 * road
    for plane, white in zip(color, (232, 237, 246), strict=True):
        plane += cover * (white * gain - plane)


def _markings(
    layout: Layout, rng: np.random.Generator, g: GroundGrid, color: np.ndarray, road: np.ndarray, snowy: bool
) -> None:
    """Lane lines, edge lines and zebra crossings; in place."""
    x, z = g.x, g.z
    wear = span(rng, 0.65, 1.0) * (0.5 if snowy else 1.0)
    if layout.style == "residential" and rng.random() < 0.4:
        wear *= 0.15
    paint = np.zeros_like(x)
    centres = sorted(c for c, _ in layout.lanes)
    directions = dict(layout.lanes)
    dash, gap = span(rng, 2, 4), span(rng, 3, 6)
    phase = span(rng, 0, 8)
    dashes = np.clip((dash / 2 - np.abs(_wrap(z + phase, dash + gap) - dash / 2)) / g.along + 0.5, 0, 1)
    for a, b in pairwise(centres):
        if b - a > layout.lane * 1.3:  # tram tracks lie between
            continue
        line = _stripe(x - (a + b) / 2, 0.14, g.across)
        paint = np.maximum(paint, line if directions[a] != directions[b] and layout.seed % 3 == 0 else line * dashes)
    for edge, parked, sign in ((layout.left, layout.parking[0], 1), (layout.right, layout.parking[1], -1)):
        if parked:
            paint = np.maximum(paint, _stripe(x - edge - sign * 2.2, 0.11, g.across))
            bays = _stripe(_wrap(z, 5.6) - 2.8, 0.11, g.along)
            paint = np.maximum(paint, bays * (np.abs(x - edge - sign * 1.1) < 1.1))
        elif layout.style in ("avenue", "works", "suburb"):
            paint = np.maximum(paint, _stripe(x - edge - sign * 0.25, 0.13, g.across))
    if layout.crossing:
        paint *= (z < layout.crossing[0] - 1) | (z > layout.crossing[1] + 1)
        own = np.abs(x) < layout.lane / 2
        paint = np.maximum(paint, _stripe(z - layout.crossing[0] + 5.4, 0.45, g.along) * own)
    for zebra in layout.zebras:
        bars = _stripe(_wrap(x, 1.05) - 0.52, 0.52, g.across)
        inside = _stripe(z - zebra - 1.2, 2.9, g.along)
        paint = np.where(np.abs(z - zebra - 1.2) < 1.9, bars * inside, paint)
    worn = np.clip(1.0 + 0.22 * sample_noise(4, 0.7, x * 9, z * 9), 0.3, 1)
    _lay(color, paint * wear * worn * road, np.array((226, 226, 218)))


def paint_shadows(canvas: Canvas, layout: Layout, added: Sequence[StreetObject] = ()) -> None:
    """Sun shadows of everything tall, and the dim ground under vehicles, people and added objects."""
    camera, sun = canvas.camera, canvas.sun
    first = int(np.floor(camera.v0)) + 1
    shade = np.zeros((canvas.ids.shape[0] - first, canvas.ids.shape[1]), np.uint8)
    contact = np.zeros_like(shade)
    boxes = [box for thing in layout.things if 3 < thing.z < 42 and (box := _footprint(thing)) is not None]
    boxes += [_object_footprint(thing) for thing in added]
    for box in boxes:
        if box.wide:
            _fill(canvas, contact, box.base, first)
    if sun[1] > 0.05:
        shift = -sun[[0, 2]] / sun[1]
        for box in [*boxes, *(_segment_footprint(s) for s in layout.segments if s.kind != "fence" and s.z0 < 80)]:
            moved = box.base + shift * box.high
            # A crown floats: its shadow is the moved footprint; everything else casts a prism.
            outline = (
                moved if box.floating else cv2.convexHull(np.concatenate([box.base, moved]).astype(np.float32))[:, 0]
            )
            _fill(canvas, shade, outline, first)
    size = max(3, canvas.ids.shape[0] // 100 * 2 + 1)
    soft = cv2.bitwise_not(cv2.multiply(cv2.blur(contact, (size, max(3, size // 2))), 0.62))
    sunlit = cv2.bitwise_not(cv2.blur(shade, (3, 3)))
    ground = canvas.color[first:]
    ground[...] = cv2.multiply(ground, cv2.merge([soft, soft, soft, sunlit]), scale=1 / 255)


@dataclass(frozen=True)
class _Footprint:
    """What casts a shadow: a ground polygon (N, 2) of X, Z and a height, metres."""

    base: np.ndarray
    high: float
    wide: bool = True
    floating: bool = False


def _segment_footprint(segment: Segment) -> _Footprint:
    if segment.kind == "building":
        high, deep = segment.floors * 3.1 + 1, 10.0
    else:
        high, deep = {"wall": 2.4, "hedge": 1.8}.get(segment.kind, 0.8), 0.4
    x0, x1 = segment.x, segment.x + segment.side * deep
    return _Footprint(np.array([[x0, segment.z0], [x1, segment.z0], [x1, segment.z1], [x0, segment.z1]]), high)


def _object_footprint(thing: StreetObject) -> _Footprint:
    """As wide as the sprite, and most of it behind: a sprite's lower edge is the near one."""
    height, width = sprite(thing.name).shape[:2]
    half = 0.5 * thing.height * width / height
    corners = half * np.array([[-0.9, -0.1], [0.9, -0.1], [0.9, 0.7], [-0.9, 0.7]])
    lifted = thing.lift > 0
    middle = np.array((thing.x, thing.z))
    return _Footprint(corners + middle, thing.height + thing.lift, wide=not lifted, floating=lifted)


def _footprint(thing: Thing) -> _Footprint | None:
    """The footprint of a thing; None for what casts no shadow to speak of."""
    if thing.kind in ("tree", "conifer", "palm"):
        angle = np.arange(9) * (2 * np.pi / 9)
        ring = np.stack([np.cos(angle), np.sin(angle)], 1) * 2.2 * thing.size
        return _Footprint(ring + np.array((thing.x, thing.z)), 4.6 * thing.size, wide=False, floating=True)
    length, width, high = _bulk(thing.kind)
    if length == 0:
        return None
    cos, sin = np.cos(thing.heading), np.sin(thing.heading)
    corners = np.array([[-width, -length], [width, -length], [width, length], [-width, length]]) / 2
    return _Footprint(corners @ np.array([[cos, -sin], [sin, cos]]) + (thing.x, thing.z), high, wide=width > 0.3)


def _bulk(kind: str) -> tuple[float, float, float]:
    """Length, width and height of a thing, metres; length 0 for what casts no shadow to speak of."""
    if kind.endswith(("bicycle", "motorcycle")):
        return 1.8, 0.4, 1.7 if kind.startswith("rider") else 0.9
    if kind in LENGTHS:
        return LENGTHS[kind], {"car": 1.8, "rickshaw": 1.3}.get(kind, 2.5), BULK_HEIGHTS[kind]
    return SMALL_BULKS.get(kind, (0.0, 0.0, 0.0))


def _fill(canvas: Canvas, mask: np.ndarray, points: np.ndarray, first: int) -> None:
    """Fill a convex ground polygon (N, 2) of X, Z in a mask that starts at row `first`."""
    pixels = canvas.camera.ground_pixels(points)
    if pixels is None:
        world = np.zeros((len(points), 3))
        world[:, [0, 2]] = points
        world = canvas.camera.clip_polygon(world)
        if len(world) < 3:
            return
        pixels = canvas.camera.project(world)[0]
    pixels[:, 1] -= first
    cv2.fillConvexPoly(mask, canvas.fixed(pixels), 255, cv2.LINE_AA, 4)
