"""One progress bar a stage, on the first process only."""

from __future__ import annotations

from typing import Any


def progress_bar(total: int, description: str, unit: str = "image", initial: int = 0, rank: int = 0) -> Any:
    """A tqdm bar with rate and time left; silent on every process but the first (`rank` 0)."""
    from tqdm import tqdm

    return tqdm(
        total=total, desc=description, unit=unit, initial=initial, disable=rank != 0, dynamic_ncols=True, smoothing=0.1
    )
