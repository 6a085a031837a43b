"""Frozen dataclasses that are written to JSON and read back with a check of every key and type."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, ClassVar, Self

_NAMES = {
    list: "a list",
    dict: "an object",
    str: "text",
    float: "a number",
    int: "an integer",
    bool: "true or false",
}


class ShapeError(ValueError):
    """A JSON value does not have the expected shape; `key` is its place, such as `robustness.fog.models[0]`."""

    def __init__(self, key: str, expected: str, found: Any) -> None:
        super().__init__(f"{key}: expected {expected}, found {found}")


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
            raise ShapeError(key, "an object", type(value).__name__)
        hints = typing.get_type_hints(cls)
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


def decode(hint: Any, value: Any, key: str) -> Any:
    """Return a JSON value as the type of a field.

    Args:
        hint: a `JsonRecord`, str, bool, int, float, Any, a list or dict of these, or one of these or None.
        value: as read from JSON.
        key: its place in the file, for the error.

    Raises:
        ShapeError: it has another type.

    >>> decode(dict[str, list[float] | None], {"fog": [0.5, 1]}, "ends")
    {'fog': [0.5, 1]}
    """
    if hint is Any:
        return value
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        return None if value is None else decode(arguments[0], value, key)
    if origin is list and isinstance(value, list):
        return [decode(arguments[0], entry, f"{key}[{index}]") for index, entry in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {name: decode(arguments[1], entry, join(key, name)) for name, entry in value.items()}
    if isinstance(hint, type) and issubclass(hint, JsonRecord):
        return hint.from_json(value, key)
    accepted = (int, float) if hint is float else hint
    if origin is None and isinstance(value, accepted) and (hint is bool or not isinstance(value, bool)):
        return value
    raise ShapeError(key, _NAMES[origin or hint], "null" if value is None else type(value).__name__)


def join(key: str, name: str) -> str:
    """Return the place of a key inside the object at `key`."""
    return f"{key}.{name}" if key else name
