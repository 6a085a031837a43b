"""The user's cache folder: what saves time and may be deleted."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from genval.runtime.errors import GenValError
from genval.runtime.files import write_bytes


def cache_folder() -> Path:
    """Return `$GENVAL_CACHE`, by default `$XDG_CACHE_HOME/genval` or `~/.cache/genval`; it may not exist yet."""
    if given := os.environ.get("GENVAL_CACHE"):
        return Path(given)
    home = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(home) / "genval"


def read_cached(name: str) -> bytes | None:
    """Return what was kept under a name, a relative path; None where there is nothing."""
    try:
        return (cache_folder() / name).read_bytes()
    except OSError:
        return None


def keep_cached(name: str, data: bytes) -> None:
    """Keep data under a name. A folder that cannot be written is no error."""
    with contextlib.suppress(GenValError):
        write_bytes(cache_folder() / name, data)
