"""Captions of rendered scenes from their visible content, without the weather."""

from __future__ import annotations

from collections import Counter

import numpy as np

from .layout import Layout

DOMAIN_PHRASES: dict[str, tuple[str, ...]] = {
    "clear": ("on a clear day", "in clear weather", "on a sunny day"),
    "fog": ("in fog", "on a foggy day", "in thick fog"),
    "night": ("in night", "at night", "in the dark at night"),
    "rain": ("in rain", "on a rainy day", "in the rain"),
    "snow": ("in snow", "on a snowy day", "in the snow"),
    "india": ("in india", "on a street in india", "in an indian city"),
}
CLASS_NAMES = {7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole", 19: "traffic light",
               20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky", 24: "person", 25: "rider", 26: "car",
               27: "truck", 28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle"}  # fmt: skip
# Kind, singular, plural, share of the image that counts as seen.
COUNTED = (
    ("tram", "a tram", "trams", 1.5e-3),
    ("bus", "a bus", "buses", 1.5e-3),
    ("truck", "a truck", "trucks", 1.5e-3),
    ("car", "a car", "cars", 4e-4),
    ("rickshaw", "a rickshaw", "rickshaws", 4e-4),
    ("rider motorcycle", "a motorcyclist", "motorcyclists", 3e-4),
    ("rider bicycle", "a cyclist", "cyclists", 3e-4),
    ("person", "a person", "people", 2.5e-4),
    ("motorcycle", "a parked motorcycle", "parked motorcycles", 3e-4),
    ("bicycle", "a parked bicycle", "parked bicycles", 3e-4),
)
NUMBERS = {2: "two", 3: "three", 4: "several", 5: "several", 6: "several"}
# Label, phrase, share of the image that counts as seen.
STUFF = (
    (11, "houses", 0.03),
    (21, "trees", 0.03),
    (12, "a wall", 0.008),
    (13, "a fence", 0.008),
    (19, "traffic lights", 7e-4),
    (20, "signs", 1e-3),
    (22, "grass", 0.02),
)


def class_names(label_pixels: np.ndarray) -> tuple[str, ...]:
    """Names of the Cityscapes classes with any of the visible pixels (256,) of each label."""
    present = np.flatnonzero(label_pixels)
    return tuple(CLASS_NAMES[i] for i in present.tolist() if i in CLASS_NAMES)


def caption(
    layout: Layout, label_pixels: np.ndarray, visible: np.ndarray, instances: list[tuple[str, int]], zebra: bool
) -> str:
    """One sentence from the things that can be seen.

    label_pixels (256,) and visible (I,) hold the pixels of each label and each instance; `instances` the kind and
    instance number of each thing.
    """
    pixels = label_pixels.sum()
    least = {kind: share for kind, _, _, share in COUNTED}
    counts: Counter[str] = Counter()
    for kind, number in instances:
        seen = visible[number] if number < len(visible) else 0
        if kind.startswith("rider"):
            seen += visible[number + 1] if number + 1 < len(visible) else 0
        if kind in least and seen >= least[kind] * pixels:
            counts[kind] += 1
    things = []
    for kind, one, many, _ in COUNTED:
        if counts[kind] == 1:
            things.append(one)
        elif counts[kind] > 1:
            things.append(f"{NUMBERS.get(counts[kind], 'many')} {many}")
    share = label_pixels / pixels
    stuff = [
        phrase if layout.style != "city" or phrase != "houses" else "buildings"
        for label, phrase, least_share in STUFF
        if share[label] >= least_share
    ]
    if layout.india:
        stuff = ["dusty ground" if phrase == "grass" else phrase for phrase in stuff]
    text = _street(layout)
    if zebra:
        text += " and a crossing"
    if things:
        text += " with " + _join(things)
    if stuff:
        text += ", " + _join(stuff)
    return text


def _street(layout: Layout) -> str:
    """The kind of street."""
    width = layout.right - layout.left
    if layout.tram is not None:
        return "a street with tram tracks"
    if layout.style == "avenue":
        return "a tree-lined avenue"
    if layout.style == "residential":
        return "a residential street"
    if layout.style == "suburb":
        return "a suburban road"
    return "a narrow street" if width < 8.5 else "a wide street" if width > 13 else "a city street"


def _join(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
