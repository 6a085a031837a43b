"""Values of JSON files and their shapes: what each key is expected to hold, as Python's type hints say it.

A shape is `Any`, str, bool, int, float, None, `Literal[...]`, a list, dict, tuple or union of shapes, a `TypedDict`, a
`JsonRecord`, or `Annotated[shape, check]` with a function that returns what was expected where a value is bad.
`genval.runtime.files.read_json` and `read_jsonl` check a file against one.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

# Types of which any value is accepted.
_PLAIN = (str, float, bool)
# Ends of the integers of 64 bits.
_LOWEST, _HIGHEST = -(2**63), 2**63 - 1
_NAMES: dict[Any, str] = {
    list: "a list",
    tuple: "a list",
    dict: "an object",
    str: "text",
    float: "a number",
    int: "an integer",
    bool: "true or false",
    types.NoneType: "null",
}


class ShapeError(ValueError):
    """A JSON value does not have the expected shape; `key` is its place, such as `robustness.fog.models[0]`."""

    def __init__(self, key: str, expected: str, found: Any) -> None:
        super().__init__(f"{key}: expected {expected}, found {found}" if key else f"expected {expected}, found {found}")


@dataclasses.dataclass(frozen=True)
class JsonRecord:
    """The base of a dataclass that is one JSON object; nested values are records, dicts, lists, text or numbers.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Score(JsonRecord):
    ...     JSON_KEYS = {"metric": "figure"}
    ...     metric: str
    ...     value: float | None
    >>> Score.from_json({"figure": "miou", "value": None}, key="scores[0]").to_json()
    {'figure': 'miou', 'value': None}
    """

    JSON_KEYS: ClassVar[Mapping[str, str]] = {}
    """Keys in JSON of the fields that have another name."""

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object, with the keys in the order of the fields."""
        return {
            self.JSON_KEYS.get(field.name, field.name): encode(getattr(self, field.name))
            for field in dataclasses.fields(self)
        }

    @classmethod
    def from_json(cls, value: Any, key: str = "") -> Self:
        """Read a JSON object. A field with a default may be missing, and unknown keys are ignored.

        Args:
            value: the object.
            key: its place in the file, for the error.

        Raises:
            ShapeError: a key is missing, or a value has another type.
        """
        if not isinstance(value, Mapping):
            raise ShapeError(key, "an object", describe(value))
        hints = _hints(cls)  # type: ignore[arg-type]
        given: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            name = cls.JSON_KEYS.get(field.name, field.name)
            place = join(key, name)
            if name in value:
                given[field.name] = decode(hints[field.name], value[name], place)
            elif field.default is dataclasses.MISSING:
                raise ShapeError(place, "a value", "no such key")
        return cls(**given)


def encode(value: Any) -> Any:
    """Return a value as JSON holds it."""
    if isinstance(value, JsonRecord):
        return value.to_json()
    if isinstance(value, Mapping):
        return {name: encode(entry) for name, entry in value.items()}
    return [encode(entry) for entry in value] if isinstance(value, list | tuple) else value


def decode(hint: Any, value: Any, key: str = "") -> Any:
    """Return a JSON value as the type of a shape (see the module's docstring).

    Keys that a `TypedDict` does not name are kept as they are. Integers have 64 bits, since arrays hold them.

    Args:
        hint: the shape.
        value: as read from JSON.
        key: its place in the file, for the error.

    Raises:
        ShapeError: it has another type.

    >>> decode(dict[str, list[float] | None], {"fog": [0.5, 1]}, "ends")
    {'fog': [0.5, 1]}
    """
    if hint is Any or (hint in _PLAIN and type(value) is hint):
        return value
    origin, arguments = _parts(hint)
    if origin is typing.Annotated:
        decoded = decode(arguments[0], value, key)
        for check in arguments[1:]:
            if expected := check(decoded):
                raise ShapeError(key, expected, repr(value)[:100])
        return decoded
    if origin in (types.UnionType, typing.Union):
        return _decode_union(arguments, value, key)
    if origin is typing.Literal:
        if value in arguments and type(value) in map(type, arguments):
            return value
        raise ShapeError(key, " or ".join(map(repr, arguments)), repr(value)[:100])
    if origin is list and isinstance(value, list):
        if _is_plain_list(arguments[0], value):  # most values are in such lists: the places of entries take time
            return list(value)
        return [decode(arguments[0], entry, f"{key}[{index}]") for index, entry in enumerate(value)]
    if origin is tuple and isinstance(value, list):
        if len(value) != len(arguments):
            raise ShapeError(key, f"{len(arguments)} values", len(value))
        pairs = zip(arguments, value, strict=True)
        return tuple(decode(one, entry, f"{key}[{index}]") for index, (one, entry) in enumerate(pairs))
    if origin is dict and isinstance(value, dict):
        return {name: decode(arguments[1], entry, join(key, name)) for name, entry in value.items()}
    if typing.is_typeddict(hint):
        return _decode_typed(hint, value, key)
    if isinstance(hint, type) and issubclass(hint, JsonRecord):
        return hint.from_json(value, key)
    accepted = (int, float) if hint is float else hint
    if origin is None and isinstance(value, accepted) and (hint is bool or not isinstance(value, bool)):
        if type(value) is int and not _LOWEST <= value <= _HIGHEST:
            raise ShapeError(key, "a number of 64 bits", f"{len(str(value))} digits")
        return value
    raise ShapeError(key, _NAMES[origin or hint], describe(value))


def _is_plain_list(hint: Any, values: list[Any]) -> bool:
    """Whether all entries fit `hint` and need no other check. It is much faster than decoding each entry."""
    types = set(map(type, values))
    if hint in (int, float):
        return bool(values) and types <= {int, hint} and min(values) >= _LOWEST and max(values) <= _HIGHEST
    return hint in _PLAIN and types <= {hint}


@functools.cache
def _parts(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    return typing.get_origin(hint), typing.get_args(hint)


@functools.cache
def _hints(cls: type[Any]) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


def _decode_union(hints: Sequence[Any], value: Any, key: str) -> Any:
    """The value as the first of some shapes that it has."""
    if value is None and types.NoneType in hints:
        return None
    others = [hint for hint in hints if hint is not types.NoneType]
    for hint in others[:-1]:
        try:
            return decode(hint, value, key)
        except ShapeError:
            continue
    return decode(others[-1], value, key)


def _decode_typed(hint: Any, value: Any, key: str) -> dict[str, Any]:
    """An object with the keys of a `TypedDict`, and any others."""
    if not isinstance(value, dict):
        raise ShapeError(key, "an object", describe(value))
    decoded = dict(value)
    for name, entry in _hints(hint).items():
        is_required = typing.get_origin(entry) is not typing.NotRequired
        if name in value:
            decoded[name] = decode(entry if is_required else typing.get_args(entry)[0], value[name], join(key, name))
        elif is_required:
            raise ShapeError(join(key, name), "a value", "no such key")
    return decoded


def describe(value: Any) -> str:
    """Return what a JSON value is, in words.

    >>> describe([1, 2]), describe(None)
    ('a list', 'null')
    """
    return _NAMES.get(type(value), type(value).__name__)


def join(key: str, name: str) -> str:
    """Return the place of a key inside the object at `key`."""
    return f"{key}.{name}" if key else name
