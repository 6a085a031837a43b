"""Palettes of label masks: whether a palette image's indices are its ids."""

from __future__ import annotations

import functools

import numpy as np

from genval.datasets.labels import CLASSES, PALETTE

# Colours of ADE20K's classes, with which most published segmentation ControlNets were trained. Rider, train, terrain
# and traffic sign have no class there: they have the colours of person, bus, grass and signboard.
_ADE20K_COLOURS = {
    "road": (140, 140, 140),
    "sidewalk": (235, 255, 7),
    "building": (180, 120, 120),
    "wall": (120, 120, 120),
    "fence": (255, 184, 6),
    "pole": (51, 0, 255),
    "traffic light": (41, 0, 255),
    "traffic sign": (255, 5, 153),
    "vegetation": (4, 200, 3),
    "terrain": (4, 250, 7),
    "sky": (6, 230, 230),
    "person": (150, 5, 61),
    "rider": (150, 5, 61),
    "car": (0, 102, 200),
    "truck": (255, 0, 20),
    "bus": (255, 0, 245),
    "train": (255, 0, 245),
    "motorcycle": (163, 0, 255),
    "bicycle": (255, 245, 0),
}


def holds_ids(palette: bytes, table: np.ndarray | None) -> bool:
    """Whether the indices of a palette image are plainly ids.

    They are in three cases. Index `i` has the grey level `i`. Or the palette is the PASCAL VOC colour map, which
    annotation tools write. Or the palette has colours of Cityscapes' classes, and each of these colours is at an index
    that means this class in the label space. In other palettes, such as those of colour masks that were reduced to 256
    colours, indices are arbitrary.

    Args:
        palette: RGB of each index, at most 768 bytes.
        table: trainId of each id, uint8 (256,); None where the meaning of the ids is unknown.
    """
    colours = np.frombuffer(palette, np.uint8).reshape(-1, 3)
    indices = np.arange(len(colours), dtype=np.uint8)
    if (colours == indices[:, None]).all() or (colours == voc_colours()[: len(colours)]).all():
        return True
    if table is None:
        return False
    found = False
    for train_id in range(len(CLASSES)):
        at = np.flatnonzero((colours == PALETTE[train_id]).all(1))
        if at.size and train_id not in table[at]:
            return False
        found = found or at.size > 0
    return found


@functools.cache
def voc_colours() -> np.ndarray:
    """The PASCAL VOC colour map, uint8 (256, 3): the bits of an index, three at a time, from the highest bit down."""
    indices = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for place in range(8):
        for channel in range(3):
            colours[:, channel] |= ((indices >> (3 * place + channel) & 1) << (7 - place)).astype(np.uint8)
    return colours


@functools.cache
def class_colours(name: str) -> np.ndarray:
    """RGB of each trainId in the colours of a data set, uint8 (256, 3); black for pixels without a class.

    Args:
        name: "cityscapes" or "ade20k".
    """
    if name == "cityscapes":
        return PALETTE
    table = np.zeros((256, 3), np.uint8)
    for train_id, label in enumerate(CLASSES):
        table[train_id] = _ADE20K_COLOURS[label]
    return table
