"""Labelled street scenes: which files belong together, what their ids mean, and their pixels.

items = find_items("ACDC", cond="fog")            # sorted, paired by name, checked
image, train_ids = read_pair(items[0])            # RGB uint8 (H, W, 3), uint8 (H, W)
"""

from genval.datasets.items import BadFile, Item, find_items
from genval.datasets.labels import CLASS_SETS, CLASSES, IGNORE, find_unknown_ids
from genval.datasets.layouts import label_space_of
from genval.datasets.reading import partition, read_pair

__all__ = [
    "CLASSES",
    "CLASS_SETS",
    "IGNORE",
    "BadFile",
    "Item",
    "find_items",
    "find_unknown_ids",
    "label_space_of",
    "partition",
    "read_pair",
]
