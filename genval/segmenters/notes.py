"""What is printed about a model when it is loaded."""

from __future__ import annotations

import functools
import os


@functools.cache
def print_once(text: str) -> None:
    """Print a line, once per run: models may be loaded twice, and by several processes."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(text)
