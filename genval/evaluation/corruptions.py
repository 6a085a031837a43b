"""Sets made of clear images, in the layout of the generated ones, on the engine for resumable work."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from genval.artifacts.fingerprint import current_mark, file_mark
from genval.artifacts.manifest import Manifest
from genval.artifacts.stage import ManifestStage, StageReport, run_stage
from genval.datasets import Item, read_pair
from genval.datasets.appearance import match_histogram, swap_amplitude
from genval.datasets.corruptions import corrupt
from genval.datasets.layouts import CORRUPTED_FOLDER
from genval.datasets.reading import read_image
from genval.evaluation.settings import CorruptionSettings
from genval.runtime.errors import GenValError
from genval.runtime.files import read_bytes, write_bytes, write_png
from genval.runtime.paths import resolve
from genval.runtime.seeds import item_seed

# Masks are copied as labelIds, so they must hold these ids.
_LABEL_SPACE = "cityscapes"
_BATCH = 32


_Loaded = tuple[np.ndarray, bytes]


class DerivedSetStage(ManifestStage[Item, _Loaded, np.ndarray]):
    """Changes clear images and copies their masks; items with another record are computed again.

    Args:
        folder: the folder of the new set.
        domain: its domain.
        items: the clear images.
        settings: of the script.

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
        self.records: dict[str, dict[str, Any]] = {}
        for item in items:
            seed = item_seed(settings.seed, f"{domain} {item.id}")
            self.records[item.id] = {
                "id": item.id,
                **self.files(item),
                "source_mark": file_mark(item.image),
                "mask_mark": file_mark(item.mask),
                **self.method_record(seed),
                "seed": seed,
            }

    @abstractmethod
    def method_record(self, seed: int) -> dict[str, Any]:
        """Return what the manifest's line of an image says about how it is changed."""

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

    def load(self, item: Item) -> _Loaded:
        """Return the image and the bytes of its mask's file."""
        return read_pair(item)[0], read_bytes(item.mask)

    def write(self, item: Item, loaded: _Loaded, output: np.ndarray) -> dict[str, Any]:
        record = self.records[item.id]
        write_bytes(self.folder / record["mask"], loaded[1])
        write_png(self.folder / record["image"], output, noisy=self.noisy)
        return record

    @property
    def noisy(self) -> bool:
        """Whether the images hold noise, which cannot be compressed."""
        return False


class CorruptionStage(DerivedSetStage):
    """Corrupts images; `domain` is a name of `genval.datasets.corruptions.CORRUPTIONS`."""

    def __init__(self, folder: Path, domain: str, items: Sequence[Item], settings: CorruptionSettings) -> None:
        self.domain, self.severity = domain, settings.severity
        super().__init__(folder, domain, items, settings)

    def method_record(self, seed: int) -> dict[str, Any]:
        return {"corruption": self.domain, "severity": self.severity}

    @property
    def noisy(self) -> bool:
        return self.domain == "night"

    def compute(self, items: Sequence[Item], loaded: Sequence[_Loaded]) -> list[np.ndarray]:
        # In one thread: the corruptions use PyTorch's global random generator.
        return [
            corrupt(image, self.domain, self.severity, self.records[item.id]["seed"])
            for (image, _), item in zip(loaded, items, strict=True)
        ]


class AppearanceStage(DerivedSetStage):
    """Gives each image the appearance of one of the reference images, chosen by the image's seed.

    Args:
        references: the images of the domain.
        folder, domain, items, settings: as for `DerivedSetStage`; the settings name the method.
    """

    def __init__(
        self,
        folder: Path,
        domain: str,
        items: Sequence[Item],
        settings: CorruptionSettings,
        references: Sequence[Path],
    ) -> None:
        self.method, self.beta, self.references = settings.method, settings.beta, references
        super().__init__(folder, domain, items, settings)

    def method_record(self, seed: int) -> dict[str, Any]:
        reference = self._reference(seed)
        return {
            "method": self.method,
            **({"beta": self.beta} if self.method == "fourier" else {}),
            "reference": reference.name,
            "reference_mark": current_mark(reference),
        }

    def load(self, item: Item) -> _Loaded:
        """Return the changed image and the bytes of its mask's file; the threads that read also compute."""
        image, mask = super().load(item)
        reference = read_image(self._reference(self.records[item.id]["seed"]))
        if self.method == "histogram":
            return match_histogram(image, reference), mask
        return swap_amplitude(image, reference, self.beta), mask

    def compute(self, items: Sequence[Item], loaded: Sequence[_Loaded]) -> list[np.ndarray]:
        return [image for image, _ in loaded]

    def _reference(self, seed: int) -> Path:
        return self.references[seed % len(self.references)]


def sets_folder(settings: CorruptionSettings) -> Path:
    """Return the folder in which the folder of a domain is made: as given, or where `layouts.find_root` searches."""
    if settings.output_dir is not None:
        return resolve(settings.output_dir)
    generated = resolve(settings.generated_dir)
    return generated.parent / CORRUPTED_FOLDER if settings.method == "corruption" else generated / settings.method


def corrupt_set(
    settings: CorruptionSettings,
    items: Sequence[Item],
    domain: str,
    folder: Path,
    references: Sequence[Path] = (),
) -> StageReport[Item]:
    """Change every image that is missing from a set, and copy its mask.

    Args:
        settings: the settings of the script.
        items: the clear images.
        domain: with the method "corruption" one of `corruptions.CORRUPTIONS`.
        folder: the folder of the new set.
        references: images of the domain, for the other methods.

    Returns:
        How many images were changed, and which were skipped.

    Raises:
        GenValError: masks do not hold labelIds, an image or a mask cannot be read, or the folder holds
            images of other frames.
    """
    stage: DerivedSetStage
    if settings.method == "corruption":
        stage = CorruptionStage(folder, domain, items, settings)
    else:
        stage = AppearanceStage(folder, domain, items, settings, references)
    return run_stage(
        stage,
        items,
        batch_size=_BATCH,
        num_workers=settings.num_workers,
        overwrite=settings.run.overwrite,
        skip_bad=settings.skip_bad,
    )
