"""The work of relis/corrupt.py: a corrupted set in the layout of the generated ones, resumable."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from genval.artifacts.fingerprint import file_mark
from genval.artifacts.manifest import Manifest
from genval.artifacts.settings import write_settings
from genval.datasets import Item
from genval.datasets.corruptions import corrupt
from genval.runtime.background import BackgroundWriter
from genval.runtime.errors import GenValError
from genval.runtime.files import read_image, remove_leftovers, write_bytes, write_png
from genval.runtime.progress import progress_bar
from genval.runtime.seeds import item_seed

# Only masks of these ids may be passed on as labelIds.
_LABEL_SPACE = "cityscapes"
# Finished images are noted in the manifest so many at a time.
_AT_ONCE = 32


def corrupt_set(args: argparse.Namespace, items: Sequence[Item], domain: str, folder: Path) -> int:
    """Corrupt every image that is not there yet; masks are copied.

    Args:
        args: the flags of relis/corrupt.py.
        items: the clear images.
        domain: one of `corruptions.CORRUPTIONS`.
        folder: of the corrupted set.

    Returns:
        How many images were made.

    Raises:
        GenValError: masks are not of labelIds, an image cannot be read, or images of other streets are in the folder.
    """
    strange = next((item for item in items if item.label_space != _LABEL_SPACE), None)
    if strange:
        raise GenValError(f"{strange.mask} does not hold Cityscapes' labelIds: expected --src_dataset Cityscapes.")
    remove_leftovers(folder)
    manifest = Manifest(folder)
    others = sorted(set(manifest.records) - {item.id for item in items})
    if others and args.limit is None:
        raise GenValError(
            f"{folder} also holds {len(others)} images of other streets, such as {others[0]}. Delete the folder, or "
            "give another --output_dir."
        )
    records = {item: _record(args, item, domain) for item in items}
    open_items = [
        item
        for item, record in records.items()
        if args.overwrite or manifest.records.get(item.id) != record or not (folder / record["image"]).exists()
    ]
    if open_items:
        write_settings(folder, args)
    with progress_bar(len(items), domain, initial=len(items) - len(open_items)) as bar:
        for start in range(0, len(open_items), _AT_ONCE):
            chunk = open_items[start : start + _AT_ONCE]
            with BackgroundWriter(threads=2) as writer:  # on leaving it the files are on the disk
                for item in chunk:
                    record = records[item]
                    image = corrupt(read_image(item.image), domain, args.severity, record["seed"])
                    writer.submit(_write, folder, record, image, item.mask)
                    bar.update()
            manifest.append([records[item] for item in chunk])
    manifest.finish([item.id for item in items])
    return len(open_items)


def _record(args: argparse.Namespace, item: Item, domain: str) -> dict[str, Any]:
    split = item.image.parents[1].name
    return {
        "id": item.id,
        "image": f"leftImg8bit/{split}/{item.scene}/{item.id}_leftImg8bit.png",
        "mask": f"gtFine/{split}/{item.scene}/{item.id}_gtFine_labelIds.png",
        "source_mark": file_mark(item.image),
        "mask_mark": file_mark(item.mask),
        "corruption": domain,
        "severity": args.severity,
        "seed": item_seed(args.seed, f"{domain} {item.id}"),
    }


def _write(folder: Path, record: dict[str, Any], image: np.ndarray, mask: Path) -> None:
    write_bytes(folder / record["mask"], mask.read_bytes())
    write_png(folder / record["image"], image, noisy=record["corruption"] == "night")
