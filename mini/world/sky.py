"""The sky and the far end of the street."""

from __future__ import annotations

import cv2
import numpy as np

from .canvas import Canvas
from .layout import Layout, pick, span
from .plants import VEGETATION, leaf_palette
from .textures import foliage, recolor, sample_noise

BUILDING = 11
BACKDROP = 130.0  # metres


def paint_sky(canvas: Canvas, zenith: np.ndarray, horizon: np.ndarray, clouds: float, seed: int) -> None:
    """Gradient and clouds; `zenith` and `horizon` are (3,) reflectances 0..255, `clouds` 0..1 is the cover."""
    height, width = canvas.ids.shape
    camera = canvas.camera
    rows = int(min(max(camera.v0 + 2, 1), height))
    up = np.clip((camera.v0 - np.arange(rows, dtype=np.float32)) / camera.focal, 0.004, 1)[:, None]
    blend = np.clip(up / 0.5, 0, 1) ** 0.6
    cover, ripple = np.zeros((rows, width), np.float32), np.zeros((rows, width), np.float32)
    if clouds > 0:
        side = (np.arange(width, dtype=np.float32)[None] - camera.u0) / camera.focal
        far = 1 / (up + 0.12)
        u = (side * far * 46 + seed % 251).astype(np.float32)
        v = np.broadcast_to((far * 38 + seed % 241).astype(np.float32), u.shape)
        field = sample_noise(9, 1.45, u, v)
        cover = np.clip((field + 3.2 * clouds - 1.7) * 0.8, 0, 1) * np.clip(up / 0.05, 0.25, 1)
        ripple = 1.0 - 0.07 * np.clip(field, -1, 2)
    tones = np.clip(horizon * 1.04 + 14 - 26 * clouds, 0, 255).tolist()
    planes = []
    for low, high, tone in zip(horizon.tolist(), zenith.tolist(), tones, strict=True):
        plane = low + (high - low) * blend
        planes.append(cv2.min(plane + cover * (tone * ripple - plane), 255).astype(np.uint8))
    canvas.color[:rows] = cv2.merge([*planes, np.full((rows, width), 255, np.uint8)])


def paint_backdrop(canvas: Canvas, layout: Layout, rng: np.random.Generator) -> None:
    """A skyline of trees and buildings where the street ends."""
    camera = canvas.camera
    scale = camera.focal / BACKDROP
    base = camera.v0 + camera.eye * scale + 1
    u = -20.0
    tall = {"city": 22, "avenue": 18, "works": 12, "residential": 10, "suburb": 8}[layout.style]
    palette = leaf_palette(canvas, rng, 0.1)
    green = canvas.surface(VEGETATION, BACKDROP)
    stone = canvas.surface(BUILDING, BACKDROP + 5)
    treeness = 0.35 if layout.style in ("city", "works") else 0.65
    while u < canvas.ids.shape[1] + 10:
        wide = span(rng, 9, 26) * scale
        if rng.random() < treeness:
            high = span(rng, 6, 13) * scale
            alpha, light = foliage("hedge", int(rng.random() * 6), max(int(wide * 1.5), 2), max(int(high * 1.15), 2))
            canvas.sprite(u, base - high, recolor(light, palette), alpha, green)
        else:
            high = span(rng, 0.4, 1) * tall * scale
            tone = np.array(pick(rng, ((170, 160, 146), (150, 120, 104), (190, 182, 170), (130, 132, 138)))) * span(
                rng, 0.8, 1
            )
            corners = np.array([[u, base - high], [u + wide, base - high], [u + wide, base], [u, base]])
            canvas.polygon(corners, tone, 0.4, stone)
        u += wide * span(rng, 0.7, 1.05)
