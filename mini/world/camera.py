"""A pinhole camera behind a windscreen.

World axes: X to the right, Y up, Z along the street, metres. Pitch is expressed by the row of the horizon,
so vertical edges of the world stay vertical in the image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

NEAR = 0.8  # metres; geometry closer than this is cut away


@dataclass(frozen=True)
class Camera:
    """A camera at (x, eye, 0), turned by `yaw` radians to the right; `focal`, `u0`, `v0` are pixels."""

    height: int
    width: int
    focal: float
    u0: float
    v0: float
    x: float
    eye: float
    yaw: float

    @cached_property
    def position(self) -> np.ndarray:
        """Where the camera is, world (3,)."""
        return np.array([self.x, self.eye, 0.0])

    @cached_property
    def _turn(self) -> np.ndarray:
        cos, sin = math.cos(self.yaw), math.sin(self.yaw)
        return np.array([[cos, 0.0, sin], [0.0, 1.0, 0.0], [-sin, 0.0, cos]])

    @cached_property
    def _screen(self) -> tuple[np.ndarray, np.ndarray]:
        return np.array([self.focal, -self.focal]), np.array([self.u0, self.v0])

    def to_view(self, points: np.ndarray) -> np.ndarray:
        """World points (N, 3) to camera axes (N, 3): right, up, forward, metres."""
        return (points - self.position) @ self._turn

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """World points (N, 3) to pixels (N, 2) and forward distance (N,), both float64."""
        view = self.to_view(points)
        depth = view[:, 2]
        stretch, middle = self._screen
        return view[:, :2] / np.maximum(view[:, 2:], 0.05) * stretch + middle, depth

    def foot(self, x: float, z: float) -> tuple[float, float]:
        """Pixel of the ground point (x, z); the same as `project`, without its arrays."""
        cos, sin = float(self._turn[0, 0]), float(self._turn[0, 2])
        right, ahead = (x - self.x) * cos - z * sin, (x - self.x) * sin + z * cos
        ahead = max(ahead, 0.05)
        return right / ahead * self.focal + self.u0, -self.eye / ahead * -self.focal + self.v0

    def on_ground(self, column: float, depth: float) -> tuple[float, float]:
        """(X, Z) of what is seen in a column at a forward distance; the inverse of `foot` on the ground."""
        cos, sin = float(self._turn[0, 0]), float(self._turn[0, 2])
        right = (column - self.u0) / self.focal * depth
        return self.x + cos * right + sin * depth, cos * depth - sin * right

    def depth_of(self, x: float, z: float) -> float:
        """Forward distance of the ground point (x, z), metres."""
        return math.sin(self.yaw) * (x - self.x) + math.cos(self.yaw) * z

    def nearest_z(self, x: float) -> float:
        """The smallest Z at lateral position x that lies beyond the near plane."""
        return (NEAR - math.sin(self.yaw) * (x - self.x)) / math.cos(self.yaw)

    def ground_rows(self) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
        """First ground row, and X (R, W), Z (R, W), forward distance (R, 1) of the rows below it, float32."""
        first = int(np.floor(self.v0)) + 1
        rows = np.arange(first, self.height, dtype=np.float32)[:, None]
        depth = (self.focal * self.eye / np.maximum(rows - self.v0, 0.08)).astype(np.float32)
        right = (np.arange(self.width, dtype=np.float32)[None] - np.float32(self.u0)) * (depth / np.float32(self.focal))
        cos, sin = np.float32(np.cos(self.yaw)), np.float32(np.sin(self.yaw))
        return first, np.float32(self.x) + cos * right + sin * depth, cos * depth - sin * right, depth

    def ground_plane(self) -> tuple[float, float, float]:
        """(a, b, c) with 1 / depth = a u + b v + c on the ground."""
        return 0.0, 1.0 / (self.focal * self.eye), -self.v0 / (self.focal * self.eye)

    def ground_pixels(self, points: np.ndarray) -> np.ndarray | None:
        """Pixels (N, 2) of ground points (N, 2) of X, Z; None if one lies before the near plane."""
        cos, sin = float(self._turn[0, 0]), float(self._turn[0, 2])
        x, z = points[:, 0] - self.x, points[:, 1]
        ahead = x * sin + z * cos
        if ahead.min() < NEAR:
            return None
        pixels = np.empty((len(points), 2))
        pixels[:, 0] = (x * cos - z * sin) / ahead * self.focal + self.u0
        pixels[:, 1] = self.eye * self.focal / ahead + self.v0
        return pixels

    def clip_polygon(self, points: np.ndarray) -> np.ndarray:
        """The part of a world polygon (N, 3) beyond the near plane, (M, 3); M may be 0."""
        depth = self.to_view(points)[:, 2] - NEAR
        if (depth >= 0).all():
            return points
        kept = []
        for i in range(len(points)):
            j = (i + 1) % len(points)
            if depth[i] >= 0:
                kept.append(points[i])
            if (depth[i] >= 0) != (depth[j] >= 0):
                share = depth[i] / (depth[i] - depth[j])
                kept.append(points[i] + share * (points[j] - points[i]))
        return np.array(kept).reshape(-1, 3)
