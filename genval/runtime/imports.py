"""Imports that take seconds and are not needed."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any


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


class _Postponed(types.ModuleType):
    """A package whose own code runs when a name is used that the package does not have yet."""

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("__"):
            self._run()
        module = sys.modules.get(self.__name__, self)
        if module is not self:  # the code of some packages puts another module in their place
            return getattr(module, name)
        return super().__getattribute__(name)

    def _run(self) -> None:
        marked: dict[str, list[Any]] | None = self.__dict__.pop("_marked", None)
        if marked is None:
            return
        for name in marked:
            delattr(self, name)
        assert self.__spec__ is not None and self.__spec__.loader is not None
        self.__spec__.loader.exec_module(self)
        for name, functions in marked.items():
            for function in functions:
                getattr(self, name)(function)


def postpone(package: str, decorators: Sequence[str] = ()) -> None:
    """Run a package's `__init__.py` when one of its names is used, and not when one of its modules is imported.

    For packages whose `__init__.py` imports many modules, of which few are needed. Nothing happens if the package is
    imported already or not installed. It stays postponed for the rest of the process.

    Args:
        package: its full name. The packages that it is in are imported.
        decorators: functions of the package that mark a function or class and return it. They can be used before the
            package's code runs, which then sets the marks.
    """
    if package in sys.modules:
        return
    try:
        spec = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        return
    if spec is None:
        return
    module = importlib.util.module_from_spec(spec)
    module.__class__ = _Postponed
    marked: dict[str, list[Any]] = {name: [] for name in decorators}
    for name, functions in marked.items():
        setattr(module, name, _decorator(functions))
    module.__dict__["_marked"] = marked
    sys.modules[package] = module
    parent, _, child = package.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, module)


def _decorator(functions: list[Any]) -> Callable[..., Any]:
    """A decorator, used with or without arguments, that adds what it decorates to a list."""

    def decorate(function: Any = None, *_: Any, **__: Any) -> Any:
        if function is None:
            return decorate
        functions.append(function)
        return function

    return decorate
