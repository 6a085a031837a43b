"""Light and air: from surface colours to the image a camera takes in each domain."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

from .canvas import SKY, Canvas
from .furniture import LAMP_HEIGHT
from .layout import Layout, span
from .textures import noise

ROAD, SIDEWALK, TERRAIN = 7, 8, 22


def _by_label(default: float, values: dict[int, float], dtype: type) -> np.ndarray:
    table = np.full(256, default, dtype)
    table[list(values)] = list(values.values())
    return table


# Of wet ground, by label: how much it mirrors, how dark it is, and what is no ground at all.
SHINE = _by_label(0, {ROAD: 1, SIDEWALK: 0.4}, np.float32)
WET = _by_label(1, {ROAD: 0.6, SIDEWALK: 0.6, TERRAIN: 0.8}, np.float32)
UPRIGHT = _by_label(1, {ROAD: 0, SIDEWALK: 0, TERRAIN: 0}, np.int32)


@dataclass(frozen=True)
class Light:
    """Illumination of an image; colours are (3,) float32 with 1 as full daylight.

    zenith and horizon are what the sky looks like, 0..255; visibility is metres of meteorological range.
    """

    sun: np.ndarray
    ambient: np.ndarray
    direct: np.ndarray
    zenith: np.ndarray
    horizon: np.ndarray
    clouds: float
    visibility: float
    airlight: np.ndarray

    def full(self) -> np.ndarray:
        """Light on a surface that faces the sun."""
        return self.ambient + self.direct


def _rgb(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def sample_light(domain: str, azimuth: float, rng: np.random.Generator) -> Light:
    """Draw the illumination of a domain; `azimuth` of the sun is in radians, 0 behind the camera."""
    elevation = span(rng, 0.4, 1.1)
    sun = np.array([np.sin(azimuth) * np.cos(elevation), np.sin(elevation), -np.cos(azimuth) * np.cos(elevation)])
    warm, mood = span(rng, 0, 1), span(rng, 0.9, 1.08)
    overcast = np.array([0.0, 0.0, 0.0])  # no direction: surfaces get no direct sun
    if domain == "clear":
        direct = _rgb(0.74, 0.7 - 0.04 * warm, 0.63 - 0.14 * warm) * mood * span(rng, 0.8, 1.1)
        ambient = _rgb(0.55, 0.58, 0.63) * mood
        zenith = _rgb(86 + 40 * rng.random(), 138 + 30 * rng.random(), 214 + 16 * rng.random())
        clouds = 0.0 if rng.random() < 0.25 else span(rng, 0.15, 0.6)
        return Light(sun, ambient, direct, zenith, _rgb(206, 222, 238), clouds, 2600.0, _rgb(206, 218, 232))
    if domain == "india":
        direct = _rgb(0.78, 0.69, 0.55) * mood
        ambient = _rgb(0.58, 0.55, 0.5) * mood
        haze = _rgb(226, 212, 186) * span(rng, 0.9, 1.03)
        return Light(sun, ambient, direct, _rgb(176, 190, 206), haze, span(rng, 0, 0.3), span(rng, 240, 700), haze)
    if domain == "fog":
        grey = span(rng, 172, 222) * _rgb(1, 1, span(rng, 0.99, 1.04))
        return Light(overcast, _rgb(0.74, 0.75, 0.77) * mood, _rgb(0, 0, 0), grey, grey, 0.0, span(rng, 80, 300), grey)
    if domain == "rain":
        grey = span(rng, 128, 178) * _rgb(0.97, 1, 1.05)
        return Light(
            overcast, _rgb(0.55, 0.575, 0.61) * mood, _rgb(0, 0, 0), grey * 0.86, grey, 0.62, span(rng, 260, 600), grey
        )
    if domain == "snow":
        grey = span(rng, 188, 224) * _rgb(0.98, 1, 1.03)
        return Light(
            overcast, _rgb(0.74, 0.77, 0.82) * mood, _rgb(0, 0, 0), grey * 0.95, grey, 0.5, span(rng, 130, 360), grey
        )
    glow = span(rng, 0.7, 1.3)
    return Light(
        overcast,
        _rgb(0.07, 0.078, 0.112) * glow,
        _rgb(0, 0, 0),
        _rgb(7, 9, 20) * glow,
        _rgb(26, 23, 30) * glow,
        0.2,
        900.0,
        _rgb(20, 18, 24) * glow,
    )


def develop(
    canvas: Canvas, layout: Layout, light: Light, domain: str, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Light the canvas and add air, weather and camera: image (H, W, 3) uint8, labels uint8, depth float32 metres.

    In between, images are planes (3, H, W) float32, 0..255.
    """
    labels, depth = canvas.labels(), canvas.depth()
    planes = cv2.split(canvas.color)
    image = np.empty((3, *labels.shape), np.float32)
    artificial = _artificial_light(canvas, layout, depth) if domain == "night" else None
    for k in range(3):
        incoming = planes[3] * np.float32(light.direct[k] / 255)
        incoming += light.ambient[k]
        if artificial is not None:
            incoming += artificial[k]
        np.multiply(planes[k], incoming, out=image[k])
    if domain == "rain":
        _wet_ground(image, labels, canvas)
    share = cv2.exp(depth * np.float32(-3.912 / light.visibility))  # Koschmieder; 3.912 = -ln 0.02 of contrast left
    share[labels == SKY] = 1.0 if domain in ("clear", "night") else (0.0 if domain == "fog" else 0.35)
    for plane, air in zip(image, light.airlight.tolist(), strict=True):
        plane -= air
        plane *= share
        plane += air
    if canvas.glow is not None:
        _add_halos(image, canvas.glow)
    if domain == "fog":
        image += 0.25 * (image.mean(0) - image)
    elif domain == "rain":
        _rain_streaks(image, rng)
    elif domain == "snow":
        _snowflakes(image, rng)
    return _camera(image, domain, rng), labels, depth


def _artificial_light(canvas: Canvas, layout: Layout, depth: np.ndarray) -> list[np.ndarray]:
    """Street lamps and our own headlights, three planes (H, W) float32; on a coarse grid since light is smooth."""
    camera = canvas.camera
    height, width = depth.shape
    size = (width // 4, height // 4)
    far = cv2.resize(depth, size, interpolation=cv2.INTER_NEAREST)
    u = np.linspace(0, width - 1, size[0], dtype=np.float32)[None]
    v = np.linspace(0, height - 1, size[1], dtype=np.float32)[:, None]
    right, up = (u - camera.u0) * (far / camera.focal), (camera.v0 - v) * (far / camera.focal) + camera.eye
    cos, sin = np.float32(np.cos(camera.yaw)), np.float32(np.sin(camera.yaw))
    x, z = camera.x + cos * right + sin * far, cos * far - sin * right
    warm = np.zeros_like(far)
    below = 0.8 * (LAMP_HEIGHT - np.clip(up, 0, 6)) ** 2 + 6
    for thing in layout.things:
        if thing.kind == "lamp" and 4 < thing.z < 80:
            warm += 11.0 / ((x - (thing.x - 1.5 * thing.heading)) ** 2 + (z - thing.z) ** 2 + below)
    beam = cv2.exp(
        -((right / (1.2 + 0.34 * far)) ** 2) - (np.maximum(up - 0.9, 0) / (0.4 + 0.04 * far)) ** 2 - far / 24
    )
    beam *= 0.75 * np.clip((far - 2) / 5, 0, 1)
    beam[far > 500] = 0
    warm[far > 500] = 0
    warm = 0.7 * warm / (0.7 + warm)  # exposure adapts to what is close to a lamp
    warm, beam = (cv2.resize(plane, (width, height), interpolation=cv2.INTER_LINEAR) for plane in (warm, beam))
    return [cv2.addWeighted(warm, a, beam, b, 0) for a, b in ((1.0, 1.0), (0.76, 0.97), (0.46, 0.88))]


def _add_halos(image: np.ndarray, glow: np.ndarray) -> None:
    """Emitted light (H, W, 3) uint8 and its glow around it; in place."""
    height, width = glow.shape[:2]
    small = cv2.resize(glow, (width // 4, height // 4), interpolation=cv2.INTER_AREA).astype(np.float32)
    near = cv2.GaussianBlur(small, (0, 0), height / 256 * 0.9)
    wide = cv2.GaussianBlur(small, (0, 0), height / 256 * 3.5)
    halo = cv2.split(cv2.addWeighted(near, 0.5, wide, 0.7, 0))
    for plane, source, light in zip(image, cv2.split(glow), halo, strict=True):
        plane += cv2.resize(light, (width, height), interpolation=cv2.INTER_LINEAR)
        plane += source * np.float32(0.85)


def _wet_ground(image: np.ndarray, labels: np.ndarray, canvas: Canvas) -> None:
    """A dark mirror: each wet pixel shows what stands above the contact line of its column; in place."""
    rows, cols = labels.shape
    top = int(canvas.camera.v0)
    below = np.ascontiguousarray(labels[top:])
    index = np.arange(top, rows, dtype=np.int32)[:, None]
    contact = np.maximum.accumulate(np.maximum(index * cv2.LUT(below, UPRIGHT), top), axis=0)
    source = np.clip(2 * contact - index, 0, rows - 1).astype(np.float32)
    columns = np.broadcast_to(np.arange(cols, dtype=np.float32), source.shape)
    near = ((index - canvas.camera.v0).clip(1) / rows).astype(np.float32)
    steps = (600 * (index - top) // (index - top + 20))[:, 0] & 255
    puddles = noise(2, 1.1)[steps].take(np.arange(cols) * 256 // cols & 255, 1)
    share = np.clip(0.52 - 0.62 * near + 0.14 * puddles, 0.06, 0.62) * cv2.LUT(below, SHINE)
    dark = cv2.LUT(below, WET) * (1 - share)
    smear = (max(3, rows // 128), max(3, rows // 40 * 2 + 1))
    for plane in image:
        mirror = cv2.blur(cv2.remap(plane, columns, source, cv2.INTER_NEAREST), smear)
        mirror *= share
        plane[top:] *= dark
        plane[top:] += mirror


def _rain_streaks(image: np.ndarray, rng: np.random.Generator) -> None:
    """Falling streaks and a few drops on the windscreen; in place."""
    height, width = image.shape[1:]
    unit = height / 256
    count = int(span(rng, 140, 420))
    slant = span(rng, -0.25, 0.25)
    start = rng.random((count, 2)) * (width, height * 1.1) - (0, 0.1 * height)
    length = unit * (5 + 16 * rng.random(count))
    ends = start + np.stack([slant * length, length], 1)
    layer = np.zeros((height, width), np.uint8)
    lines = (np.stack([start, ends], 1) * 16).astype(np.int32)
    cv2.polylines(layer, list(lines), False, 45, max(1, round(unit * 0.7)), cv2.LINE_AA, 4)
    image += layer
    for _ in range(int(span(rng, 4, 22))):
        x, y = (rng.random(2) * (width, height)).astype(int).tolist()
        r = int(np.ceil(unit * span(rng, 1.5, 4.5)))
        area = image[:, max(y - r, 0) : y + r + 1, max(x - r, 0) : x + r + 1]
        mask = np.zeros(area.shape[1:], np.float32)
        cv2.circle(mask, (min(x, r), min(y, r)), r, 1.0, -1, cv2.LINE_AA)
        lens = area.mean((1, 2), keepdims=True) + 16 * np.linspace(-1, 1, area.shape[1], dtype=np.float32)[:, None]
        area += 0.75 * mask * (lens - area)


def _snowflakes(image: np.ndarray, rng: np.random.Generator) -> None:
    """Flakes at several distances; in place."""
    height, width = image.shape[1:]
    unit = height / 256
    layer = np.zeros((height, width), np.uint8)
    for count, radius, strength in ((420, 0.55, 150), (120, 1.0, 190), (24, 2.0, 150)):
        flakes = rng.random((int(count * span(rng, 0.5, 1.2)), 2)) * (width * 16, height * 16)
        for point in flakes.astype(np.int32).tolist():
            cv2.circle(layer, point, int(radius * unit * 16), strength, -1, cv2.LINE_AA, 4)
    share = cv2.blur(layer, (3, 3)) * np.float32(1 / 255)
    for plane in image:
        plane += share * (248 - plane)


def _camera(image: np.ndarray, domain: str, rng: np.random.Generator) -> np.ndarray:
    """White balance, contrast, a soft shoulder and sensor noise; planes (3, H, W) to (H, W, 3) uint8."""
    height, width = image.shape[1:]
    balance = 1 + 0.05 * (rng.random(3) - 0.5)
    contrast = span(rng, 0.94, 1.08) * (0.88 if domain == "rain" else 1.0)
    pivot = 40 if domain == "night" else 120
    sigma = {"night": 5.0, "fog": 1.6, "rain": 2.4}.get(domain, 1.8)
    chroma = 3.0 if domain == "night" else 0.0
    grain = _grain(11, height, width, rng)
    tint = _grain(12, height, width, rng) if chroma else grain
    bytes_planes = []
    for plane, gain, sign in zip(image, balance.tolist(), (-0.7, 0.0, 1.0), strict=True):
        plane *= gain * contrast
        plane += pivot * (1 - contrast)
        plane -= 0.55 * cv2.max(plane - 200, 0)  # the shoulder keeps highlights apart
        plane += sigma * grain
        if chroma * sign:
            plane += chroma * sign * tint
        bytes_planes.append(cv2.min(cv2.max(plane, 0), 255).astype(np.uint8))
    return cv2.merge(bytes_planes)


def _grain(seed: int, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """White noise of unit variance, (height, width) float32: a tile at a random offset."""
    top, left = (rng.random(2) * 256).astype(int).tolist()
    return _noise_sheet(seed, height, width)[top : top + height, left : left + width]


@cache
def _noise_sheet(seed: int, height: int, width: int) -> np.ndarray:
    """Repeated noise with room for an offset of up to 256 pixels each way."""
    return np.tile(noise(seed, 0.0), (height // 256 + 2, width // 256 + 2))
