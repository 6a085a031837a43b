"""The embedded world: procedural street scenes with labels, depth and captions, in six domains."""

from .captions import DOMAIN_PHRASES
from .scene import DOMAINS, Render, render

__all__ = ["DOMAINS", "DOMAIN_PHRASES", "Render", "render"]
