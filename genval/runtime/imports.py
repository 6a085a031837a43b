"""Imports that take seconds and are not needed."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Import while an attribute of a module has another value.

    >>> import math
    >>> with replaced(math, "pi", 3):
    ...     math.pi
    3
    """
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


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


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Import large libraries without Python's search for garbage, which takes a tenth of the time and finds little."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class _Postponed(types.ModuleType):
    """A package whose own code runs when it is used: a name or a module that is not imported yet is asked for."""

    def __getattr__(self, name: str) -> Any:
        # A module is found by its package's __path__. A module that is no package has none.
        is_package = self.__spec__ is not None and self.__spec__.submodule_search_locations is not None
        if (name == "__path__" and is_package) or name == "__version__" or not name.startswith("__"):
            self._run()
        module = sys.modules.get(self.__name__, self)
        if module is not self:  # the code of some packages puts another module in their place
            return getattr(module, name)
        return super().__getattribute__(name)

    def _run(self) -> None:
        parent = sys.modules.get(self.__name__.rpartition(".")[0])
        if isinstance(parent, _Postponed):
            parent._run()
        marked: dict[str, list[Any]] | None = self.__dict__.pop("_marked", None)
        if marked is None:
            return
        for name in marked:
            delattr(self, name)
        assert self.__spec__ is not None and self.__spec__.loader is not None
        if self.__spec__.submodule_search_locations is not None:
            self.__path__ = self.__spec__.submodule_search_locations
        self.__spec__.loader.exec_module(self)
        for name, functions in marked.items():
            for function in functions:
                getattr(self, name)(function)


@contextlib.contextmanager
def postponed(
    *packages: str, decorators: Sequence[str] = (), functions: Sequence[str] = (), whole: bool = True
) -> Iterator[None]:
    """Import modules of these packages without running the packages' `__init__.py`.

    For packages whose `__init__.py` imports many modules, of which few are needed. It runs in the block when a name of
    the package is used. After the block it also runs when a further module of the package is imported, so that the
    package can be used as usual. Packages that are imported already or not installed stay as they are.

    Args:
        packages: their full names, or those of modules. The packages that they are in are imported.
        decorators: functions of the packages that mark a function or class and return it. They can be used without
            running a package, which sets the marks when it runs.
        functions: other functions of the packages, which can be imported without running a package. The first call
            runs it.
        whole: whether a further module needs its package to have run. If not, only names run it after the block too.
    """
    added = [package for name in packages if (package := _find(name, decorators, functions))]
    try:
        yield
    finally:
        for package in added:
            if whole and "_marked" in package.__dict__:
                package.__dict__.pop("__path__", None)


def _find(name: str, decorators: Sequence[str], functions: Sequence[str]) -> _Postponed | None:
    """Put a package that has not run in `sys.modules`; None if it is imported already or not installed."""
    if name in sys.modules:
        return None
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        return None
    if spec is None or spec.loader is None:
        return None
    module = importlib.util.module_from_spec(spec)
    module.__class__ = _Postponed
    assert isinstance(module, _Postponed)
    marked: dict[str, list[Any]] = {stand_in: [] for stand_in in (*decorators, *functions)}
    module.__dict__.update({decorator: _decorator(marked[decorator]) for decorator in decorators})
    module.__dict__.update({function: _late(module, function) for function in functions})
    module.__dict__["_marked"] = marked
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, module)
    return module


def _decorator(functions: list[Any]) -> Callable[..., Any]:
    """A decorator, used with or without arguments, that adds what it decorates to a list."""

    def decorate(function: Any = None, *_: Any, **__: Any) -> Any:
        if function is None:
            return decorate
        functions.append(function)
        return function

    return decorate


def _late(module: _Postponed, name: str) -> Callable[..., Any]:
    """A function that runs a package when it is called, and then the package's function of this name."""

    def call(*args: Any, **kwargs: Any) -> Any:
        module._run()
        return getattr(module, name)(*args, **kwargs)

    return call
