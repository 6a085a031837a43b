"""The image being painted, far to near: surface colour, direct sun, emitted light and surface ids.

A surface id stands for a label, an instance and a plane of inverse depth, so that one buffer of ids gives the
label map, the depth map and the visible size of each object.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from .camera import Camera

SHIFT = 4
WIDE_LUT = int(cv2.__version__.partition(".")[0]) >= 5  # cv2.LUT takes uint16
FAR = 1e4  # metres, the depth of the sky
SKY = 23


class Canvas:
    """Buffers of one image.

    color: (H, W, 4) uint8, reflectance RGB and the share of direct sun that arrives (255 is full).
    glow: (H, W, 3) uint8, emitted light; only painted when `lights_on`.
    ids: (H, W) uint16, indices of the surfaces given out by `surface`.
    """

    def __init__(self, camera: Camera, sun: np.ndarray, lights_on: bool, snowy: bool) -> None:
        shape = (camera.height, camera.width)
        self.camera = camera
        self.sun = sun  # unit vector towards the sun
        self.snowy = snowy
        self.color = np.zeros((*shape, 4), np.uint8)
        self.glow = np.zeros((*shape, 3), np.uint8) if lights_on else None
        self.ids = np.zeros(shape, np.uint16)
        self._labels = [SKY]
        self._instances = [0]
        self._planes = [(0.0, 0.0, 1 / FAR, 0.0, 1.0)]

    def surface(self, label: int, depth: float, instance: int = 0) -> int:
        """A new surface of constant depth (metres)."""
        inverse = 1 / max(depth, 0.1)
        return self._add(label, instance, (0.0, 0.0, inverse, 0.0, 10.0))

    def plane(self, label: int, plane: tuple[float, float, float], near: float, far: float, instance: int = 0) -> int:
        """A new surface with 1 / depth = a u + b v + c, kept within [near, far] metres."""
        return self._add(label, instance, (*plane, 1 / far, 1 / max(near, 0.1)))

    def _add(self, label: int, instance: int, plane: tuple[float, float, float, float, float]) -> int:
        self._labels.append(label)
        self._instances.append(instance)
        self._planes.append(plane)
        return len(self._labels) - 1

    def polygon(
        self,
        points: np.ndarray,
        rgb: Sequence[float],
        sun: float = 0.0,
        surface: int | None = None,
        glow: Sequence[float] | None = None,
        convex: bool = True,
    ) -> None:
        """Fill a polygon of pixels (N, 2). Without a surface it is a detail of whatever lies below."""
        self.fill(self.fixed(points), rgb, sun, surface, glow, convex)

    @staticmethod
    def fixed(points: np.ndarray) -> np.ndarray:
        """Pixels (N, 2) in OpenCV's fixed-point format, int32."""
        return (points * (1 << SHIFT)).astype(np.int32)

    def fill(
        self,
        fixed: np.ndarray,
        rgb: Sequence[float],
        sun: float = 0.0,
        surface: int | None = None,
        glow: Sequence[float] | None = None,
        convex: bool = True,
    ) -> None:
        """`polygon` for points that are `fixed` already."""
        color = (float(rgb[0]), float(rgb[1]), float(rgb[2]), 255.0 * sun)
        if convex:
            cv2.fillConvexPoly(self.color, fixed, color, cv2.LINE_AA, SHIFT)
            if surface is not None:
                cv2.fillConvexPoly(self.ids, fixed, surface, cv2.LINE_8, SHIFT)
        else:
            cv2.fillPoly(self.color, [fixed], color, cv2.LINE_AA, SHIFT)
            if surface is not None:
                cv2.fillPoly(self.ids, [fixed], surface, cv2.LINE_8, SHIFT)
        if self.glow is not None and (surface is not None or glow is not None):
            cv2.fillConvexPoly(self.glow, fixed, glow or (0, 0, 0), cv2.LINE_8, SHIFT)

    def stroke(
        self,
        points: np.ndarray,
        thickness: float,
        rgb: Sequence[float],
        sun: float = 0.5,
        surface: int | None = None,
        closed: bool = False,
    ) -> None:
        """A line through pixels (N, 2), `thickness` pixels wide, at least one."""
        self.trace(self.fixed(points), thickness, rgb, sun, surface, closed)

    def trace(
        self,
        fixed: np.ndarray,
        thickness: float,
        rgb: Sequence[float],
        sun: float = 0.5,
        surface: int | None = None,
        closed: bool = False,
    ) -> None:
        """`stroke` for points that are `fixed` already."""
        width = max(1, round(thickness))
        color = (float(rgb[0]), float(rgb[1]), float(rgb[2]), 255.0 * sun)
        cv2.polylines(self.color, [fixed], closed, color, width, cv2.LINE_AA, SHIFT)
        if surface is not None:
            cv2.polylines(self.ids, [fixed], closed, surface, width, cv2.LINE_8, SHIFT)
            if self.glow is not None:
                cv2.polylines(self.glow, [fixed], closed, (0, 0, 0), width, cv2.LINE_8, SHIFT)

    def disc(
        self,
        center: Sequence[float],
        radius: float,
        rgb: Sequence[float],
        sun: float = 0.5,
        surface: int | None = None,
        glow: Sequence[float] | None = None,
    ) -> None:
        """A filled circle of `radius` pixels around the pixel `center`."""
        scale = 1 << SHIFT
        point = (int(center[0] * scale), int(center[1] * scale))
        size = max(int(radius * scale), scale // 2)
        color = (float(rgb[0]), float(rgb[1]), float(rgb[2]), 255.0 * sun)
        cv2.circle(self.color, point, size, color, -1, cv2.LINE_AA, SHIFT)
        if surface is not None:
            cv2.circle(self.ids, point, size, surface, -1, cv2.LINE_8, SHIFT)
        if self.glow is not None and (surface is not None or glow is not None):
            cv2.circle(self.glow, point, size, glow or (0, 0, 0), -1, cv2.LINE_AA, SHIFT)

    def warp(
        self,
        quad: np.ndarray,
        texture: np.ndarray,
        surface: int,
        alpha: np.ndarray | None = None,
        glow: np.ndarray | None = None,
    ) -> None:
        """Map a texture (h, w, 4) onto a quad of pixels (4, 2): top left, top right, bottom right, bottom left.

        alpha (h, w) uint8 lets the background through; the surface still covers the whole quad.
        glow (h, w, 3) uint8 is the light the texture emits.
        """
        rows, cols = self.ids.shape
        left, top = np.floor(np.maximum(quad.min(0), 0)).astype(int)
        right, bottom = np.ceil(np.minimum(quad.max(0), (cols - 1, rows - 1))).astype(int) + 1
        if right - left < 1 or bottom - top < 1:
            return
        h, w = texture.shape[:2]
        source = np.array([[0, 0], [w, 0], [w, h], [0, h]], np.float32) - 0.5
        matrix = cv2.getPerspectiveTransform(source, (quad - (left, top)).astype(np.float32))
        size = (int(right - left), int(bottom - top))
        area = np.s_[top:bottom, left:right]
        fixed = ((quad - (left, top)) * (1 << SHIFT)).astype(np.int32)
        mask = np.zeros((size[1], size[0]), np.uint8)
        cv2.fillConvexPoly(mask, fixed, 255, cv2.LINE_8, SHIFT)
        patch = cv2.warpPerspective(texture, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        if alpha is None:
            cv2.copyTo(patch, mask, self.color[area])
        else:
            share = cv2.warpPerspective(alpha, matrix, size, flags=cv2.INTER_LINEAR)
            blend(self.color[area], patch, cv2.min(share, mask))
        cv2.copyTo(np.full_like(self.ids[area], surface), mask, self.ids[area])
        if self.glow is not None:
            if glow is None:
                if alpha is None:
                    _darken(self.glow[area], mask)
            else:
                light = cv2.warpPerspective(glow, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
                cv2.copyTo(light, mask, self.glow[area])

    def shows(self, left: float, top: float, width: int, height: int) -> bool:
        """Whether a sprite of that size at (left, top) is in the image."""
        rows, cols = self.ids.shape
        x, y = round(left), round(top)
        return x < cols and y < rows and x + width > 0 and y + height > 0

    def sprite(self, left: float, top: float, patch: np.ndarray, alpha: np.ndarray, surface: int) -> None:
        """Blend a patch (h, w, 4) uint8 with its alpha (h, w) uint8, its corner at pixel (left, top)."""
        rows, cols = self.ids.shape
        x, y = round(left), round(top)
        h, w = alpha.shape
        x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + w, cols), min(y + h, rows)
        if x1 <= x0 or y1 <= y0:
            return
        inside = np.s_[y0 - y : y1 - y, x0 - x : x1 - x]
        area = np.s_[y0:y1, x0:x1]
        blend(self.color[area], patch[inside], alpha[inside])
        solid = alpha[inside] > 100
        np.copyto(self.ids[area], surface, where=solid)
        if self.glow is not None:
            _darken(self.glow[area], solid.view(np.uint8))

    def labels(self) -> np.ndarray:
        """Cityscapes label ids, (H, W) uint8."""
        return look_up(self.ids, np.array(self._labels, np.uint8))

    def depth(self) -> np.ndarray:
        """Forward distance in metres, (H, W) float32; the sky is `FAR`."""
        table = np.array(self._planes, np.float32)
        rows, cols = self.ids.shape
        u = np.arange(cols, dtype=np.float32)[None]
        v = np.arange(rows, dtype=np.float32)[:, None]
        a, b, c, low, high = (look_up(self.ids, column) for column in table.T)
        a *= u
        b *= v
        a += b
        a += c
        cv2.max(a, low, a)
        cv2.min(a, high, a)
        cv2.max(a, 1 / FAR, a)
        return np.reciprocal(a, out=a)

    def visible(self) -> tuple[np.ndarray, np.ndarray]:
        """Visible pixels of each label (256,) and of each instance (instances + 1,); instance 0 is everything else."""
        pixels = np.bincount(self.ids.ravel(), minlength=len(self._instances))
        return np.bincount(self._labels, pixels, 256), np.bincount(self._instances, pixels)


def _darken(glow: np.ndarray, mask: np.ndarray) -> None:
    """No light where the mask (h, w) uint8 is not 0, in place."""
    cv2.copyTo(np.zeros_like(glow), mask, glow)


def look_up(ids: np.ndarray, table: np.ndarray) -> np.ndarray:
    """table[ids] for uint16 ids; OpenCV 5 does it several times faster than NumPy."""
    if not WIDE_LUT:
        return np.take(table, ids)
    full = np.empty(1 << 16, table.dtype)
    full[: len(table)] = table
    return cv2.LUT(ids, full)


def inverse_depth_plane(pixels: np.ndarray, depth: np.ndarray) -> tuple[float, float, float]:
    """(a, b, c) with 1 / depth = a u + b v + c through the first three of the points (N, 2)."""
    (u0, v0), (u1, v1), (u2, v2) = pixels[:3].tolist()
    d0, d1, d2 = (1 / depth[:3]).tolist()
    area = (u1 - u0) * (v2 - v0) - (u2 - u0) * (v1 - v0)
    if abs(area) < 1e-3:  # seen edge on
        return 0.0, 0.0, (d0 + d1 + d2) / 3
    a = ((d1 - d0) * (v2 - v0) - (d2 - d0) * (v1 - v0)) / area
    b = ((d2 - d0) * (u1 - u0) - (d1 - d0) * (u2 - u0)) / area
    return a, b, d0 - a * u0 - b * v0


def blend(target: np.ndarray, patch: np.ndarray, alpha: np.ndarray) -> None:
    """target (h, w, 4) uint8 becomes patch where alpha (h, w) uint8 is 255, in place."""
    share = cv2.merge([alpha] * 4)
    over = cv2.multiply(patch, share, scale=1 / 255)
    under = cv2.multiply(target, cv2.bitwise_not(share), scale=1 / 255)
    target[...] = cv2.add(over, under)
