"""Corrupted sets, in the layout of the generated ones, on the engine for resumable work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from genval.artifacts.fingerprint import file_mark
from genval.artifacts.manifest import Manifest
from genval.artifacts.stage import ManifestStage, StageReport, run_stage
from genval.datasets import Item, read_pair
from genval.datasets.corruptions import corrupt
from genval.evaluation.settings import CorruptionSettings
from genval.runtime.errors import GenValError
from genval.runtime.files import read_bytes, write_bytes, write_png
from genval.runtime.seeds import item_seed

# Masks are copied as labelIds, so they must hold these ids.
_LABEL_SPACE = "cityscapes"
_BATCH = 32


_Loaded = tuple[np.ndarray, bytes]


class CorruptionStage(ManifestStage[Item, _Loaded, np.ndarray]):
    """Corrupts images and copies their masks; items with another record are computed again.

    Args:
        folder: the folder of the corrupted set.
        domain: a name of `genval.datasets.corruptions.CORRUPTIONS`.
        items: the clear images.
        settings: severity and seed.

    Raises:
        GenValError: masks do not hold labelIds, or a file cannot be read.
    """

    def __init__(self, folder: Path, domain: str, items: Sequence[Item], settings: CorruptionSettings) -> None:
        super().__init__(folder, {}, settings, "relis/corrupt.py")
        unsupported = next((item for item in items if item.label_space != _LABEL_SPACE), None)
        if unsupported:
            raise GenValError(
                f"{unsupported.mask} does not hold Cityscapes' labelIds: expected --src_dataset Cityscapes."
            )
        self.title = domain
        self.whole = settings.run.limit is None
        self.records: dict[str, dict[str, Any]] = {
            item.id: {
                "id": item.id,
                **self.files(item),
                "source_mark": file_mark(item.image),
                "mask_mark": file_mark(item.mask),
                "corruption": domain,
                "severity": settings.severity,
                "seed": item_seed(settings.seed, f"{domain} {item.id}"),
            }
            for item in items
        }

    def files(self, item: Item) -> dict[str, str]:
        split = item.image.parents[1].name
        return {
            "image": f"leftImg8bit/{split}/{item.scene}/{item.id}_leftImg8bit.png",
            "mask": f"gtFine/{split}/{item.scene}/{item.id}_gtFine_labelIds.png",
        }

    def item_record(self, item: Item) -> dict[str, Any]:
        return self.records[item.id]

    def begin(self, items: Sequence[Item], overwrite: bool) -> None:
        super().begin(items, overwrite)
        others = sorted(Manifest(self.folder).records.keys() - self.records.keys())
        if others and self.whole:
            raise GenValError(
                f"{self.folder} also holds {len(others)} images of other frames, such as {others[0]}. Delete the "
                "folder, or give another --output_dir."
            )

    def prepare(self, missing: Sequence[Item]) -> None:
        if missing:
            super().prepare(missing)

    def load(self, item: Item) -> _Loaded:
        """Return the image and the bytes of its mask's file."""
        return read_pair(item)[0], read_bytes(item.mask)

    def compute(self, items: Sequence[Item], loaded: Sequence[_Loaded]) -> list[np.ndarray]:
        # In one thread: the corruptions use PyTorch's global random generator.
        return [
            corrupt(image, record["corruption"], record["severity"], record["seed"])
            for (image, _), record in zip(loaded, (self.records[item.id] for item in items), strict=True)
        ]

    def write(self, item: Item, loaded: _Loaded, output: np.ndarray) -> dict[str, Any]:
        record = self.records[item.id]
        write_bytes(self.folder / record["mask"], loaded[1])
        write_png(self.folder / record["image"], output, noisy=record["corruption"] == "night")
        return record


def corrupt_set(settings: CorruptionSettings, items: Sequence[Item], domain: str, folder: Path) -> StageReport[Item]:
    """Corrupt every image that is missing from a set, and copy its mask.

    Args:
        settings: the settings of the script.
        items: the clear images.
        domain: one of `corruptions.CORRUPTIONS`.
        folder: the folder of the corrupted set.

    Returns:
        How many images were corrupted, and which were skipped.

    Raises:
        GenValError: masks do not hold labelIds, an image or a mask cannot be read, or the folder holds
            images of other frames.
    """
    return run_stage(
        CorruptionStage(folder, domain, items, settings),
        items,
        batch_size=_BATCH,
        num_workers=settings.num_workers,
        overwrite=settings.run.overwrite,
        skip_bad=settings.skip_bad,
    )
