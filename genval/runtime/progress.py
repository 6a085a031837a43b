"""One progress bar per stage, on the first process only, and the time that a process took to start."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

_IMPORTED = time.monotonic()


def progress_bar(total: int, description: str, unit: str = "image", initial: int = 0, rank: int = 0) -> Any:
    """A tqdm bar with rate and time left; silent on every process but the first (`rank` 0)."""
    from tqdm import tqdm

    return tqdm(
        total=total, desc=description, unit=unit, initial=initial, disable=rank != 0, dynamic_ncols=True, smoothing=0.1
    )


def seconds_since_start() -> float:
    """Return the seconds since this process was started; since this module's import where Linux does not tell."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return uptime - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return time.monotonic() - _IMPORTED
