"""Work that overlaps with a computation on a device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def one_behind(begun: Iterable[T]) -> Iterator[T]:
    """Give each item when the next has been made.

    Where making one starts work on a device, and using one waits for it, the device is never without work. Where making
    one fails (but not where Ctrl-C ends it), the one before it is given first.

    >>> list(one_behind("abc"))
    ['a', 'b', 'c']
    """
    items = iter(begun)
    last: list[T] = []
    try:
        for item in items:
            yield from last
            last = [item]
    except Exception:
        yield from last
        raise
    yield from last
