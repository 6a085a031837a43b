"""Decoding of items, and their partition into batches."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from genval.datasets.items import BadFile, Item
from genval.datasets.labels import find_label_space
from genval.runtime.errors import GenValError
from genval.runtime.files import read_image, read_mask


def read_pair(item: Item) -> tuple[np.ndarray, np.ndarray]:
    """Decode an item.

    Returns:
        The image, RGB uint8 (H, W, 3), and its trainIds, uint8 (H, W).

    Raises:
        GenValError: a file is missing, truncated or of the wrong kind, the two differ in size, or the mask holds an
            unknown id.
    """
    image = read_image(item.image)
    label_ids = read_mask(item.mask)
    if image.shape[:2] != label_ids.shape:
        raise GenValError(
            f"{item.image} and {item.mask} differ in size: expected one size, found {_size(image)} and "
            f"{_size(label_ids)} pixels. Resize the mask by nearest neighbour, or use --skip_bad."
        )
    return image, find_label_space(item.label_space).to_train_ids(label_ids, str(item.mask))


def readable(items: Sequence[Item], skipped: list[BadFile], workers: int = 4) -> list[Item]:
    """Return the items whose two files can be decoded and have one size; the others are added to `skipped`."""

    def fault(item: Item) -> str | None:
        try:
            read_pair(item)
        except GenValError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        faults = dict(zip(items, pool.map(fault, items), strict=True))
    skipped += [
        BadFile(item.id, item.cond, item.scene, str(item.image), reason) for item, reason in faults.items() if reason
    ]
    return [item for item in items if faults[item] is None]


def partition(items: Sequence[Item], batch_size: int) -> list[tuple[Item, ...]]:
    """Divide items into chunks of at most `batch_size`; no chunk spans two scenes.

    Chunks depend only on the items of a scene. An interrupted run, a run on other scenes and a run on more processes
    therefore compute each image in the same batch, and give bitwise equal results.
    """
    chunks: list[tuple[Item, ...]] = []
    for _, group in itertools.groupby(items, key=lambda item: (item.cond, item.scene)):
        members = tuple(group)
        chunks += [members[start : start + batch_size] for start in range(0, len(members), batch_size)]
    return chunks


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"
