"""Markdown tables for the terminal and for documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[Any]], digits: int = 1) -> str:
    """Format a Markdown table with aligned columns; floats have `digits` decimals, None and NaN are dashes.

    >>> print(markdown_table(["segmenter", "mIoU"], [["a", 61.25], ["b", None]]))
    | segmenter | mIoU |
    | --------- | ---: |
    | a         | 61.2 |
    | b         |    - |
    """
    cells = [[_cell(value, digits) for value in row] for row in rows]
    # A column is numeric, and aligned right, if no value in it is a string.
    numeric = [all(not isinstance(row[index], str) for row in rows) and bool(rows) for index in range(len(header))]
    widths = [max(3, *(len(row[index]) for row in [list(header), *cells])) for index in range(len(header))]
    rulers = ["-" * (width - 1) + ":" if right else "-" * width for width, right in zip(widths, numeric, strict=True)]
    lines = [_line(list(header), widths, numeric), "| " + " | ".join(rulers) + " |"]
    return "\n".join(lines + [_line(row, widths, numeric) for row in cells])


def percent(fraction: float | None) -> float | None:
    """Convert a fraction to percent; None stays None."""
    return None if fraction is None else 100 * fraction


def _cell(value: Any, digits: int) -> str:
    if value is None or value != value:
        return "-"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def _line(cells: Sequence[str], widths: Sequence[int], numeric: Sequence[bool]) -> str:
    padded = [
        cell.rjust(width) if right else cell.ljust(width)
        for cell, width, right in zip(cells, widths, numeric, strict=True)
    ]
    return "| " + " | ".join(padded) + " |"
