"""Share of pixel values that differ between two folders of PNGs of the same names: how far rounding reaches.

Reads:  A and B, searched through for PNGs
Writes: nothing; prints the share of changed values, of values changed by more than one level, and the largest change

    python benchmarks/changed_pixels.py results/batch_1 results/batch_4
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from genval.runtime.cli import parse, run, script_parser
from genval.runtime.errors import GenValError
from genval.runtime.paths import resolve


def parse_args() -> argparse.Namespace:
    parser = script_parser(__doc__, "benchmarks/changed_pixels")
    parser.add_argument("a", metavar="A", type=Path)
    parser.add_argument("b", metavar="B", type=Path)
    return parse(parser)


def main(args: argparse.Namespace) -> None:
    from PIL import Image

    a, b = resolve(args.a), resolve(args.b)
    names = sorted(path.relative_to(a) for path in a.rglob("*.png"))
    missing = [name for name in names if not (b / name).is_file()]
    if not names or missing:
        raise GenValError(f"Expected the same PNGs in {a} and {b}; found {len(names)}, {len(missing)} missing in {b}.")
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
    run(main, parse_args)
