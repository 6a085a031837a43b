"""Palettes of label masks: whether a palette image's indices are its ids."""

from __future__ import annotations

import functools

import numpy as np

from genval.datasets.labels import CLASSES, PALETTE


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
