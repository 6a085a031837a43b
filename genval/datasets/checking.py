"""Check a data set before an evaluation: its contents and its faults."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from genval.datasets.items import BadFile, Item
from genval.datasets.labels import IGNORE, find_label_space
from genval.datasets.reading import read_image, read_mask
from genval.runtime.errors import GenValError, without_skip_bad


@dataclass(frozen=True)
class Finding:
    """The contents and faults of one pair of files."""

    item: Item
    size: tuple[int, int] | None  # width and height of the image; None if it cannot be decoded
    pixels: np.ndarray  # int64 (256,), how many pixels of the mask have each id; zeros if it cannot be decoded
    faults: list[BadFile] = field(default_factory=list)


def inspect(item: Item) -> Finding:
    """Decode a pair, compare the sizes and count the mask's ids. Faults are collected, not raised."""
    faults: list[BadFile] = []

    def note(file: object, reason: str) -> None:
        faults.append(BadFile(item.id, item.cond, item.scene, str(file), reason))

    space = find_label_space(item.label_space)
    size, mask_size, pixels = None, None, np.zeros(256, np.int64)
    try:
        height, width = read_image(item.image).shape[:2]
        size = (width, height)
    except GenValError as error:
        note(item.image, without_skip_bad(str(error)))
    try:
        mask = read_mask(item.mask, space.train_id_table)
        mask_size = (mask.shape[1], mask.shape[0])
        pixels = np.bincount(mask.ravel(), minlength=256)
    except GenValError as error:
        note(item.mask, without_skip_bad(str(error)))
    if size and mask_size and size != mask_size:
        note(item.mask, f"{_size(mask_size)} pixels, the image has {_size(size)}")
    if fault := space.fault(pixels):
        note(item.mask, fault)
    return Finding(item, size, pixels, faults)


def check_items(
    items: Sequence[Item],
    unpaired: Sequence[BadFile] = (),
    workers: int = 4,
    on_done: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Inspect every pair in threads and summarise the findings.

    Args:
        items: of one data set, from `find_items`.
        unpaired: files that it skipped.
        workers: threads; Pillow decodes outside Python's lock.
        on_done: called after each pair.

    Returns:
        `pairs`, their number; `scenes`, pairs by `condition/scene`; `sizes`, images by `WIDTHxHEIGHT`; `ids`, pixels by
        id; `classes`, pixels and images by class; `ignored_pixels`; `masks_without_a_class`, masks in which no pixel
        has a class; `faults`, a list of `BadFile` as dictionaries, empty if all is well.
    """
    scenes: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    ids, class_pixels, class_images = np.zeros(256, np.int64), np.zeros(256, np.int64), np.zeros(256, np.int64)
    unlabelled: list[str] = []
    faults = list(unpaired)
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        for finding in pool.map(inspect, items):
            item = finding.item
            table = find_label_space(item.label_space).table
            class_counts = np.bincount(table, finding.pixels, minlength=256).astype(np.int64)
            scenes[f"{item.cond}/{item.scene}"] += 1
            sizes[_size(finding.size) if finding.size else "unreadable"] += 1
            ids += finding.pixels
            class_pixels += class_counts
            class_images += class_counts > 0
            if class_counts.any() and not class_counts[:IGNORE].any():
                unlabelled.append(str(item.mask))
            faults += finding.faults
            on_done()
    for name in dict.fromkeys(item.label_space for item in items):
        if fault := find_label_space(name).set_fault(ids):
            faults.append(BadFile("", "", "", str(items[0].mask.parent), fault))
    return {
        "pairs": len(items),
        "scenes": dict(sorted(scenes.items())),
        "sizes": dict(sizes.most_common()),
        "ids": {str(i): int(ids[i]) for i in np.flatnonzero(ids)},
        "classes": {
            name: {"pixels": int(class_pixels[i]), "images": int(class_images[i])}
            for i, name in enumerate(find_label_space(items[0].label_space).names)
        },
        "ignored_pixels": int(class_pixels[IGNORE]),
        "masks_without_a_class": unlabelled,
        "faults": [asdict(fault) for fault in faults],
    }


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
