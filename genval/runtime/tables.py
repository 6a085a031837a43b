"""Tables for a terminal and a README."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[Any]], digits: int = 1) -> str:
    """A Markdown table with aligned columns; floats get `digits` decimals, None becomes a dash.

    >>> print(markdown_table(["model", "mIoU"], [["a", 61.25], ["b", None]]))
    | model | mIoU |
    | ----- | ---: |
    | a     | 61.2 |
    | b     |    - |
    """
    cells = [[_cell(value, digits) for value in row] for row in rows]
    # A column is of numbers when every value in it is a number or missing.
    number = [all(not isinstance(row[index], str) for row in rows) and bool(rows) for index in range(len(header))]
    widths = [max(3, *(len(row[index]) for row in [list(header), *cells])) for index in range(len(header))]
    rules = ["-" * (width - 1) + ":" if right else "-" * width for width, right in zip(widths, number, strict=True)]
    lines = [_line(list(header), widths, number), "| " + " | ".join(rules) + " |"]
    return "\n".join(lines + [_line(row, widths, number) for row in cells])


def percent(fraction: float | None) -> float | None:
    """A fraction in percent; None stays None."""
    return None if fraction is None else 100 * fraction


def _cell(value: Any, digits: int) -> str:
    if value is None or value != value:
        return "-"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def _line(cells: Sequence[str], widths: Sequence[int], number: Sequence[bool]) -> str:
    padded = [
        cell.rjust(width) if right else cell.ljust(width)
        for cell, width, right in zip(cells, widths, number, strict=True)
    ]
    return "| " + " | ".join(padded) + " |"
