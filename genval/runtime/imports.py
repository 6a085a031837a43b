"""Imports that take seconds and are not needed."""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Iterator


@contextlib.contextmanager
def hidden(*names: str) -> Iterator[None]:
    """Import as if these packages were not installed, except for those that are imported already.

    For libraries that import a large optional package only to look at it.

    >>> with hidden("json.tool"):
    ...     import json.tool
    Traceback (most recent call last):
    ModuleNotFoundError: import of json.tool halted; None in sys.modules
    """
    added = [name for name in names if name not in sys.modules]
    for name in added:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        for name in added:
            del sys.modules[name]


class _Placeholder(types.ModuleType):
    """A module in which every name is an empty class."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


@contextlib.contextmanager
def placeholders(*names: str) -> Iterator[None]:
    """Import as if these modules held an empty class for every name, except for those that are imported already.

    For libraries that derive from a class of a large module, or compare with it, in parts that are not used here.

    >>> with placeholders("json.tool"):
    ...     from json.tool import Anything
    >>> isinstance(1, Anything)
    False
    """
    added = [name for name in names if name not in sys.modules]
    for name in added:
        sys.modules[name] = _Placeholder(name)
    try:
        yield
    finally:
        for name in added:
            del sys.modules[name]
