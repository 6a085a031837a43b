"""Decode items: one pair at a time, or in batches that threads prefetch."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from genval.datasets.items import BadFile, Item
from genval.datasets.labels import find_label_space
from genval.runtime.errors import GenValError
from genval.runtime.files import read_image, read_mask


@dataclass(frozen=True)
class Batch:
    """Consecutive items of one image size."""

    items: tuple[Item, ...]
    images: np.ndarray  # RGB uint8 (B, H, W, 3)
    train_ids: np.ndarray  # uint8 (B, H, W), 0..18 and IGNORE


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


def load_batches(
    chunks: Sequence[Sequence[Item]],
    workers: int,
    skipped: list[BadFile] | None = None,
    read: Callable[[Any], tuple[np.ndarray, np.ndarray]] = read_pair,
) -> Iterator[Batch]:
    """Decode chunks in order, ahead of use, in `workers` threads.

    A chunk becomes one batch, or several where the image size changes inside it.

    Args:
        chunks: from `partition`.
        workers: threads; Pillow decodes outside Python's lock, so threads suffice.
        skipped: bad items are added to this list instead of raising an error.
        read: decodes an item into an image and its mask, uint8 (H, W).

    Raises:
        GenValError: as `read`.
    """
    ahead = 2 * workers
    waiting: deque[tuple[Item, Future[tuple[np.ndarray, np.ndarray]]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        upcoming = iter([item for chunk in chunks for item in chunk])
        try:
            for chunk in chunks:
                for item in itertools.islice(upcoming, max(0, len(chunk) + ahead - len(waiting))):
                    waiting.append((item, pool.submit(read, item)))
                yield from _stack(list(_results(waiting, len(chunk), skipped)))
        finally:
            for _, future in waiting:
                future.cancel()


def _results(
    waiting: deque[tuple[Item, Future[tuple[np.ndarray, np.ndarray]]]], count: int, skipped: list[BadFile] | None
) -> Iterator[tuple[Item, np.ndarray, np.ndarray]]:
    for _ in range(count):
        item, future = waiting.popleft()
        try:
            yield item, *future.result()
        except GenValError as error:
            if skipped is None:
                raise
            skipped.append(BadFile(item.id, item.cond, item.scene, str(item.image), str(error)))


def _stack(pairs: Sequence[tuple[Item, np.ndarray, np.ndarray]]) -> Iterator[Batch]:
    for _, group in itertools.groupby(pairs, key=lambda pair: pair[2].shape):
        items, images, train_ids = zip(*group, strict=True)
        yield Batch(items, np.stack(images), np.stack(train_ids))


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"
