"""The mini world: procedural street scenes with labels, depth and captions, in six domains.

`render`, `Render`, `DOMAINS` and `DOMAIN_PHRASES` are loaded at first use, since they need NumPy and OpenCV.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .captions import DOMAIN_PHRASES
    from .scene import DOMAINS, Render, render

__all__ = ["DOMAINS", "DOMAIN_PHRASES", "Render", "render"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import captions, scene

    return getattr(captions if name == "DOMAIN_PHRASES" else scene, name)
