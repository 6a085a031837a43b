"""Small patterns built once from fixed seeds: noise, foliage and facade tiles."""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import cache

import cv2
import numpy as np

# Materials of facade tiles. A cell adds 16 * state, so that windows of one facade differ (see `buildings.py`).
WALL, JOINT, FRAME, GLASS, SHEEN, TRIM, SHUTTER, DOOR, SHOP, AWNING, RAIL, SHADE = range(12)
STATES = 4
TILE_SCALES = (40, 20, 10)  # texels per storey, finest first


@cache
def noise(seed: int, beta: float, size: int = 256) -> np.ndarray:
    """Tileable noise with a 1 / f**beta amplitude, (size, size) float32, mean 0, standard deviation 1."""
    rng = np.random.Generator(np.random.PCG64(seed))
    freq = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    freq[0, 0] = 1
    spectrum = np.fft.rfft2(rng.standard_normal((size, size))) / freq**beta
    spectrum[0, 0] = 0
    field = np.fft.irfft2(spectrum, (size, size))
    return (field / field.std()).astype(np.float32)


def recolor(index: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """palette[index] for uint8 indices (h, w) and a palette (256, 4) uint8, by one lookup of four bytes."""
    words = cv2.LUT(np.ascontiguousarray(index), np.ascontiguousarray(palette).view(np.int32)[:, 0])
    return words.view(np.uint8).reshape(*index.shape, 4)


@cache
def noise_ring(seed: int, beta: float) -> np.ndarray:
    """`noise` whose first row and column come again at the end, for `sample_noise`."""
    return cv2.copyMakeBorder(noise(seed, beta), 0, 1, 0, 1, cv2.BORDER_WRAP)


def _wrapped(value: np.ndarray, period: int) -> np.ndarray:
    turns = np.floor(value * np.float32(1 / period))
    turns *= -period
    turns += value
    return turns


def sample_noise(seed: int, beta: float, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Wrapped bilinear lookup of a noise tile at texel coordinates (h, w) float32; float32."""
    tile = noise_ring(seed, beta)
    # Wrapped here: OpenCV's own border is several times slower.
    return cv2.remap(tile, _wrapped(x, 256), _wrapped(y, 256), cv2.INTER_LINEAR)


def _foliage(kind: str, variant: int, size: int = 160) -> tuple[np.ndarray, np.ndarray]:
    """A crown seen from the side: alpha and brightness, both (size, size) uint8; light falls from the upper left."""
    rng = np.random.Generator(np.random.PCG64([sum(map(ord, kind)), variant]))
    alpha = np.zeros((size, size), np.uint8)
    light = np.full((size, size), 70, np.uint8)
    if kind == "palm":
        _palm(rng, alpha, light, size)
        return alpha, light
    clumps = []
    for _ in range(150 if kind == "hedge" else 110):
        v = rng.random()
        if kind == "conifer":
            x, y, r = 0.5 + (rng.random() - 0.5) * 0.9 * (0.06 + v * 0.84), 0.04 + 0.9 * v, 0.03 + 0.045 * rng.random()
        elif kind == "hedge":
            x, y, r = 0.04 + rng.random() * 0.92, 0.12 + 0.86 * v, 0.05 + 0.05 * rng.random()
        else:
            angle = rng.random() * 2 * np.pi
            reach = np.sqrt(rng.random()) * (0.34 + 0.06 * np.sin(3 * angle + variant))
            x, y, r = 0.5 + reach * np.cos(angle) * 1.05, 0.5 + reach * np.sin(angle), 0.05 + 0.07 * rng.random()
        clumps.append((y + 0.25 * x + 0.25 * rng.random(), x, y, r))
    clumps.sort(reverse=True)  # lower right first, so that lit clumps lie on top
    for _, x, y, r in clumps:
        centre = (int(x * size), int(y * size))
        radius = int(r * size)
        lit = 205 - 125 * (0.7 * y + 0.3 * x) + 35 * rng.standard_normal()
        cv2.circle(alpha, centre, radius, 255, -1, cv2.LINE_AA)
        cv2.circle(light, centre, radius, int(np.clip(lit * 0.62, 12, 255)), -1, cv2.LINE_AA)
        cv2.circle(
            light,
            (centre[0] - radius // 4, centre[1] - radius // 4),
            int(radius * 0.72),
            int(np.clip(lit, 20, 255)),
            -1,
        )
    leaves = noise(5, 0.75)[:size, :size]
    ragged = cv2.blur(alpha, (15, 15)) / 255.0 + 0.17 * leaves
    alpha = np.where(ragged > 0.5, 255, 0).astype(np.uint8)
    light = np.clip(cv2.blur(light, (3, 3)) + 24.0 * leaves, 0, 255).astype(np.uint8)
    return cv2.blur(alpha, (3, 3)), light


@cache
def _foliage_levels(kind: str, variant: int) -> list[np.ndarray]:
    alpha, light = _foliage(kind, variant)
    full = np.dstack([alpha, light])
    return [full, *(cv2.resize(full, (n, n), interpolation=cv2.INTER_AREA) for n in (80, 40, 20))]


def foliage(kind: str, variant: int, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Alpha and brightness of a crown (tree, conifer, hedge or palm), (height, width) uint8 each.

    Light falls from the upper left.
    """
    levels = _foliage_levels(kind, variant)
    level = next((image for image in reversed(levels) if image.shape[0] >= 0.8 * max(width, height)), levels[0])
    both = cv2.resize(level, (width, height), interpolation=cv2.INTER_LINEAR)
    return both[..., 0], both[..., 1]


def _palm(rng: np.random.Generator, alpha: np.ndarray, light: np.ndarray, size: int) -> None:
    """Fronds around the middle of the sprite."""
    for k in range(15):
        angle = 2 * np.pi * (k + rng.random() * 0.6) / 15
        steps = np.linspace(0, 1, 8)
        reach = 0.36 + 0.1 * rng.random()
        x = 0.5 + reach * np.cos(angle) * steps
        y = 0.45 - reach * 0.7 * np.sin(angle) * steps + 0.2 * steps**2
        for i in range(7):
            width = max(1, int(size * 0.075 * (1 - steps[i]) + 2))
            ends = [(int(x[j] * size), int(y[j] * size)) for j in (i, i + 1)]
            cv2.line(alpha, ends[0], ends[1], 255, width, cv2.LINE_AA)
            cv2.line(light, ends[0], ends[1], int(90 + 90 * max(np.sin(angle), -0.4) + 30 * rng.random()), width)


@cache
def stains() -> np.ndarray:
    """Weathering of a wall as a gain, 128 is 1, (512, 1024, 4) uint8; the fourth channel is 128."""
    tile = np.tile(noise(3, 1.1), (2, 4))
    gain = np.clip(128 * (1 + 0.045 * tile), 96, 154).astype(np.uint8)
    return cv2.merge([gain, gain, gain, np.full_like(gain, 128)])


@cache
def facade_tile(style: int, ground: int, texels: int) -> np.ndarray:
    """One bay of one storey as material ids, (texels, 0.8 texels) uint8.

    style 0..9 is the window of an upper storey; ground 0 is an upper storey, 1 a shop, 2 a door, 3 a plain window,
    4 an arcade, 5 a garage.
    """
    tile = np.full((texels, int(texels * 0.8)), WALL, np.uint8)
    if style % 3 == 1:  # masonry courses
        tile[:: max(texels // 10, 2)] = JOINT
    box = functools.partial(_fill_box, tile)
    if ground in (1, 2, 4, 5):
        _paint_entrance(box, ground)
        return tile
    if ground == 3:
        box(0, 0.9, 1, 1, JOINT)
    if style % 5 == 3:
        _paint_ribbon_window(box)
    else:
        _paint_window(box, style)
        if style in (4, 6, 9) and ground == 0:
            _paint_balcony(box)
    return tile


def _fill_box(tile: np.ndarray, x0: float, y0: float, x1: float, y1: float, material: int) -> None:
    """Fill a rectangle of a tile, 0..1 of its width and height, with a material; it is at least one texel thick."""
    h, w = tile.shape
    top, left = round(y0 * h), round(x0 * w)
    tile[top : max(round(y1 * h), top + 1), left : max(round(x1 * w), left + 1)] = material


def _paint_entrance(box: Callable[..., None], ground: int) -> None:
    """Paint a ground floor without a plain window: 1 a shop, 2 a door, 4 an arcade, 5 a garage."""
    if ground == 1:
        box(0, 0.05, 1, 0.2, AWNING)
        box(0, 0.2, 1, 0.25, SHADE)
        box(0.05, 0.25, 0.95, 0.88, SHOP)
        box(0.48, 0.25, 0.52, 0.88, FRAME)
        box(0, 0.88, 1, 1, JOINT)
    elif ground == 2:
        box(0.24, 0.16, 0.76, 1, TRIM)
        box(0.3, 0.3, 0.7, 1, DOOR)
        box(0.3, 0.21, 0.7, 0.29, SHEEN)
        box(0.48, 0.32, 0.52, 1, SHADE)
    elif ground == 4:
        box(0.12, 0.15, 0.88, 1, SHADE)
        box(0.3, 0.08, 0.7, 0.18, SHADE)
        box(0.25, 0.4, 0.75, 0.95, SHOP)
    else:
        box(0.08, 0.25, 0.92, 1, DOOR)
        for y in (0.4, 0.55, 0.7, 0.85):
            box(0.08, y, 0.92, y + 0.03, SHADE)


# Left, right, top and bottom of a window, 0..1 of the tile, by style modulo 5.
_WINDOWS = ((0.24, 0.76, 0.2, 0.78), (0.16, 0.84, 0.18, 0.72), (0.3, 0.7, 0.16, 0.84), (0.0, 1.0, 0.25, 0.72),
            (0.1, 0.9, 0.12, 0.88))  # fmt: skip


def _paint_ribbon_window(box: Callable[..., None]) -> None:
    """Paint one bay of a band of glass that runs along the whole storey."""
    _, _, top, low = _WINDOWS[3]
    box(0, top - 0.04, 1, low + 0.04, TRIM)
    box(0, top, 1, low, GLASS)
    box(0, top, 0.4, low - 0.2, SHEEN)
    box(0, top, 0.06, low, FRAME)


def _paint_window(box: Callable[..., None], style: int) -> None:
    """Paint a window with frame, sill and, in some styles, trim or shutters."""
    left, right, top, low = _WINDOWS[style % 5]
    if style in (0, 2, 5):
        box(left - 0.05, top - 0.07, right + 0.05, low + 0.05, TRIM)
    if style in (5, 7):
        box(left - 0.17, top, left - 0.02, low, SHUTTER)
        box(right + 0.02, top, right + 0.17, low, SHUTTER)
    box(left, top, right, low, FRAME)
    edge = 0.05
    box(left + edge, top + edge, right - edge, low - edge, GLASS)
    box(left + edge, top + edge, left + (right - left) * 0.45, top + (low - top) * 0.5, SHEEN)
    box(left + edge, top + edge, right - edge, top + edge + 0.03, SHADE)
    box((left + right) / 2 - 0.03, top, (left + right) / 2 + 0.03, low, FRAME)
    if style % 2 == 0:
        box(left, top + 0.2, right, top + 0.24, FRAME)
    box(left - 0.04, low, right + 0.04, low + 0.05, TRIM)


def _paint_balcony(box: Callable[..., None]) -> None:
    """Paint a railing in front of a window."""
    box(0.05, 0.62, 0.95, 0.66, RAIL)
    for x in np.linspace(0.06, 0.9, 7):
        box(x, 0.66, x + 0.03, 0.92, RAIL)
    box(0.03, 0.92, 0.97, 1, SHUTTER)
