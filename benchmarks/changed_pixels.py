"""Compare two folders of PNG files with the same names: how far rounding changes pixel values.

Reads:  A and B, and all their subfolders
Writes: nothing; prints the share of changed values, of values changed by more than one level, and the largest change

    python benchmarks/changed_pixels.py results/batch_1 results/batch_4
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

try:
    from genval.runtime import cli
    from genval.runtime.errors import GenValError
    from genval.runtime.flags import flag
    from genval.runtime.paths import resolve
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed in this environment. Run: make install")


@dataclass(frozen=True, kw_only=True)
class ChangedPixelsSettings:
    """The two folders to compare."""

    SCRIPT: ClassVar[str] = "benchmarks/changed_pixels"

    a: Path = flag(help="the first folder", positional=True)
    b: Path = flag(help="the second folder", positional=True)


def main(settings: ChangedPixelsSettings) -> None:
    from PIL import Image

    a, b = resolve(settings.a), resolve(settings.b)
    names = sorted(path.relative_to(a) for path in a.rglob("*.png"))
    missing = [name for name in names if not (b / name).is_file()]
    if not names or missing:
        raise GenValError(
            f"Expected the same PNG files in {a} and {b}; found {len(names)} in {a}, of which {len(missing)} are "
            f"missing in {b}."
        )
    total = changed = beyond = largest = 0
    for name in names:
        pixels = [np.asarray(Image.open(folder / name)).astype(np.int16) for folder in (a, b)]
        difference = np.abs(pixels[0] - pixels[1])
        total += difference.size
        changed += int((difference > 0).sum())
        beyond += int((difference > 1).sum())
        largest = max(largest, int(difference.max()))
    shares = f"{changed / total:.2e} changed, {beyond / total:.2e} by more than one level"
    print(f"{len(names)} files, {total} values: {shares}, largest change {largest}")


if __name__ == "__main__":
    cli.run(main, ChangedPixelsSettings, __doc__)
