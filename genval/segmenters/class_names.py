"""From the names of a network's classes to the 19 of Cityscapes."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from genval.datasets.labels import CLASSES, IGNORE

# Other names of the classes, as `_plain` writes them. Plurals are not listed.
_SYNONYMS: dict[str, str] = {
    "street": "road",
    "footpath": "sidewalk",
    "footway": "sidewalk",
    "pavement": "sidewalk",
    "columnpole": "pole",
    "light": "traffic light",
    "trafficsignal": "traffic light",
    "sign": "traffic sign",
    "signsymbol": "traffic sign",
    "tree": "vegetation",
    "pedestrian": "person",
    "people": "person",
    "human": "person",
    "bicyclist": "rider",
    "cyclist": "rider",
    "automobile": "car",
    "lorry": "truck",
    "onrails": "train",
    "motorbike": "motorcycle",
    "motor": "motorcycle",
    "bike": "bicycle",
}
_PLAIN_CLASSES = {re.sub(r"\s", "", name): name for name in CLASSES} | _SYNONYMS

# What is not evaluated: names for the absence of a class, and the labels of Cityscapes without a trainId.
_VOID = {
    *("background", "bg", "void", "unlabeled", "unlabelled", "unknown", "ignore", "ignored", "none", "other", "others"),
    *("egovehicle", "rectificationborder", "outofroi", "static", "dynamic", "ground", "parking", "railtrack"),
    *("guardrail", "bridge", "tunnel", "polegroup", "caravan", "trailer", "licenseplate"),
}

_PLACEHOLDER = re.compile(r"(label|class|id|category|c)?[\s_\-:]*\d+", re.IGNORECASE)
_KEYS = ("classes", "CLASSES", "class_names", "names", "labels", "id2label")


def train_id_of(name: str) -> int | None:
    """Return the trainId that a class's name stands for, in any case and with the usual synonyms.

    Returns:
        0 to 18, `IGNORE` for what is not evaluated (background, void, ...), or None for an unknown name.

    >>> train_id_of("Traffic_Light"), train_id_of("motorbike"), train_id_of("background"), train_id_of("dog")
    (6, 17, 255, None)
    """
    plain = re.sub(r"[^a-z]", "", name.lower())
    for candidate in (plain, plain.removesuffix("s")):
        if candidate in _PLAIN_CLASSES:
            return CLASSES.index(_PLAIN_CLASSES[candidate])
        if candidate in _VOID:
            return IGNORE
    return None


def is_placeholder(names: Sequence[str]) -> bool:
    """Whether names say nothing about the classes, such as LABEL_0, LABEL_1, ..."""
    return all(_PLACEHOLDER.fullmatch(name.strip()) for name in names)


def find_names(*sources: Any) -> tuple[str, ...] | None:
    """Return the names of the classes, in the order of the outputs, from the first mapping that has them.

    Args:
        sources: mappings that may have a list of names, or names by number, under a usual key (`classes`, `CLASSES`,
            `class_names`, `names`, `labels`, `id2label`), or the JSON text or Python literal of one of them. Other
            values are ignored.
    """
    for source in sources:
        for key in _KEYS if isinstance(source, Mapping) else ():
            names = as_names(source.get(key))
            if names:
                return names
    return None


def as_names(value: Any) -> tuple[str, ...] | None:
    """Return a list of names, names by number or a text of one of them as names in order; None for other values."""
    if isinstance(value, str):
        value = _parse(value)
    if isinstance(value, Mapping):
        try:
            numbered = {int(key): name for key, name in value.items()}
        except (TypeError, ValueError):
            return None
        value = [numbered[key] for key in sorted(numbered)] if set(numbered) == set(range(len(numbered))) else None
    if isinstance(value, (list, tuple)) and value and all(isinstance(name, str) for name in value):
        return tuple(value)
    return None


def _parse(text: str) -> Any:
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return [name.strip() for name in text.split(",")] if "," in text else None
