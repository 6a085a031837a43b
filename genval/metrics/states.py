"""States of metrics: arrays of counts and sums that are updated image by image and merged by addition."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

if TYPE_CHECKING:
    from typing import Self


class MergeableState:
    """Base of dataclasses whose fields are arrays; `a + b` is the state of the pixels of both."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __add__(self, other: Self) -> Self:
        return type(self)(*(a + b for a, b in zip(self.arrays(), other.arrays(), strict=True)))

    def __iadd__(self, other: Self) -> Self:
        """Add in place: the arrays of this state change."""
        for a, b in zip(self.arrays(), other.arrays(), strict=True):
            a += b
        return self

    def arrays(self) -> list[np.ndarray]:
        """Return the fields, in order."""
        return [getattr(self, field.name) for field in dataclasses.fields(self)]
