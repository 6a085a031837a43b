"""Rectangles in an image, in pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Box:
    """A rectangle in an image or in a latent, in pixels.

    >>> Box.square(2, 3, 10).contains(Box(4, 4, 8, 9))
    True
    """

    top: int
    left: int
    height: int
    width: int

    @classmethod
    def square(cls, top: int, left: int, side: int) -> Box:
        """A box of equal height and width."""
        return cls(top, left, side, side)

    @property
    def side(self) -> int:
        """The side of a square box."""
        assert self.height == self.width, self
        return self.height

    @property
    def rows(self) -> slice:
        """The rows that the box covers."""
        return slice(self.top, self.top + self.height)

    @property
    def columns(self) -> slice:
        """The columns that the box covers."""
        return slice(self.left, self.left + self.width)

    def cut(self, array: Any) -> Any:
        """Return the part of an array or tensor (..., H, W) inside the box, as a view."""
        return array[..., self.rows, self.columns]

    def times(self, factor: int) -> Box:
        """Return the same rectangle in an array that is `factor` times as large."""
        return Box(self.top * factor, self.left * factor, self.height * factor, self.width * factor)

    def contains(self, other: Box) -> bool:
        """Whether another box lies inside this one."""
        return (
            self.top <= other.top
            and self.left <= other.left
            and other.rows.stop <= self.rows.stop
            and other.columns.stop <= self.columns.stop
        )
