"""Where the outliers of a fine-tuning come from: generated objects, objects to paste, or noise.

An outlier source gives an image, its trainIds (`IGNORE` where nothing is known) and the pixels of the outlier. Sources
that paste need a labelled street for it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from genval.datasets.items import BadFile
from genval.datasets.labels import CITYSCAPES, IGNORE
from genval.datasets.ood_objects import ObjectImage, read_box
from genval.datasets.ood_sets import GENERATED, GeneratedFolders, OodItem, find_ood_items, read_ood_pair
from genval.datasets.placement import GROUND_IDS, PlacementConfig, place
from genval.datasets.reading import DecodedCache, read_mask, readable
from genval.kernels.layout import OBJECT
from genval.runtime.errors import GenValError
from genval.runtime.paths import resolve

NOISE = "noise"
_PAIR, _PASTE = "pair:", "paste:"
# trainIds of road and sidewalk.
_GROUND = (0, 1)
# Pasted outliers have the sizes of generated ones on the road (`ood_objects/sd_inpaint.py --placement road`).
_PLACEMENT = PlacementConfig(rule="road", smallest=96, largest=512, context=1)
_NOISES = 1 << 16  # patches of noise that differ


class Labelled(NamedTuple):
    """An image with what is known of its pixels.

    Attributes:
        image: RGB uint8 (H, W, 3).
        train_ids: uint8 (H, W), `IGNORE` without a class.
        outliers: bool (H, W), pixels of no known class.
    """

    image: np.ndarray
    train_ids: np.ndarray
    outliers: np.ndarray


class OutlierSource(ABC):
    """A source of images with outliers.

    Attributes:
        name: as the recipe calls it.
        count: number of outliers.
        needs_street: whether an outlier is pasted on a labelled street.
        files: images and masks.
        frames: ids of the labelled frames in whose images the outliers are.
    """

    name: str
    count: int
    needs_street = False
    files: Sequence[Path] = ()
    frames: Sequence[str] = ()

    @abstractmethod
    def load(self, index: int, street: Labelled | None, rng: np.random.Generator) -> Labelled:
        """Return outlier `index`, on the street if the source needs one.

        Raises:
            GenValError: a file is bad.
        """


class GeneratedObjects(OutlierSource):
    """The images and masks that the scripts of ood_objects/ wrote.

    The labels of the frame are known outside the box into which the object was inpainted.

    Args:
        folder: with `refined`, `masks` and `with_positions`.
        objects: only these, or None for all.
        skipped: see `find_ood_items`.
        cache: keeps decoded images.
    """

    def __init__(
        self, folder: str, objects: Sequence[str] | None, skipped: list[BadFile] | None, cache: DecodedCache
    ) -> None:
        root = resolve(folder)
        folders = GeneratedFolders(*(str(root / name) for name in ("refined", "masks", "with_positions")))
        found = find_ood_items(GENERATED, generated=folders, objects=objects, skipped=skipped).items
        self.positions, self.cache = root / "with_positions", cache
        self.name = f"generated objects in {folder}"
        self.items = _usable(found, lambda item: self.cache.read(item, self._read), skipped, self.name)
        self.count = len(self.items)
        self.frames = sorted({item.source for item in self.items if item.source})
        self.files = [path for item in self.items for path in (*item.files, self._labels(item)) if path.exists()]

    def load(self, index: int, street: Labelled | None, rng: np.random.Generator) -> Labelled:
        return self.cache.read(self.items[index], self._read)

    def _read(self, item: OodItem) -> Labelled:
        image, kinds = read_ood_pair(item)
        train_ids = np.full(kinds.shape, IGNORE, np.uint8)
        if self._labels(item).exists():
            labels = read_mask(self._labels(item), CITYSCAPES.table)
            if labels.shape != kinds.shape:
                raise GenValError(f"{self._labels(item)} and {item.mask} differ in size. Generate the object again.")
            train_ids = CITYSCAPES.to_train_ids(labels, str(self._labels(item)))
            box = read_box(self._object(item), *kinds.shape)
            train_ids[box.rows, box.columns] = IGNORE
        outliers = kinds == OBJECT
        train_ids[outliers] = IGNORE
        return Labelled(image, train_ids, outliers)

    def _labels(self, item: OodItem) -> Path:
        return self.positions / f"{item.id}_gt.png"

    def _object(self, item: OodItem) -> ObjectImage:
        folder, _, number = item.id.rpartition("/")
        return ObjectImage(folder, number, item.scene, item.image, self.positions / f"{item.id}_pos.json")


class ImagePairs(OutlierSource):
    """Images with masks of their outliers, and without labels of the street.

    Args:
        source: `pair:IMAGES,MASKS`, as main_gen_ood.py takes it.
        skipped: see `find_ood_items`.
        cache: keeps decoded images.
    """

    def __init__(self, source: str, skipped: list[BadFile] | None, cache: DecodedCache) -> None:
        self.name, self.cache = source, cache
        found = find_ood_items(source, skipped=skipped).items
        self.items = _usable(found, lambda item: self.cache.read(item, self._read), skipped, source)
        self.count = len(self.items)
        self.files = [path for item in self.items for path in item.files]
        # A pasted set has the names of its frames.
        self.frames = sorted({item.id for item in self.items if "_" in item.id})

    def load(self, index: int, street: Labelled | None, rng: np.random.Generator) -> Labelled:
        return self.cache.read(self.items[index], self._read)

    def _read(self, item: OodItem) -> Labelled:
        image, kinds = read_ood_pair(item)
        return Labelled(image, np.full(kinds.shape, IGNORE, np.uint8), kinds == OBJECT)


class PastedObjects(ImagePairs):
    """Objects that are cut out of images by their masks and pasted on the road: the usual baseline.

    Args:
        source: `paste:IMAGES,MASKS`; the masks are 0, 1 on the object, and 255 on pixels that are not cut out.
        skipped: see `find_ood_items`.
        cache: keeps decoded images.
    """

    needs_street = True

    def __init__(self, source: str, skipped: list[BadFile] | None, cache: DecodedCache) -> None:
        super().__init__(f"{_PAIR}{source.removeprefix(_PASTE)}", skipped, cache)
        self.name, self.frames = source, ()

    def load(self, index: int, street: Labelled | None, rng: np.random.Generator) -> Labelled:
        assert street is not None
        cut = super().load(index, None, rng)
        rows, columns = (np.flatnonzero(cut.outliers.any(axis)) for axis in (1, 0))
        shown = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        return paste(street, cut.image[shown], cut.outliers[shown], rng)

    def _read(self, item: OodItem) -> Labelled:
        cut = super()._read(item)
        if not cut.outliers.any():
            raise GenValError(f"{item.mask} has no pixel of an object (1). Remove it, or use --skip_bad.")
        return cut


class NoisePatches(OutlierSource):
    """Ellipses of Gaussian noise of random colour, strength and grain on the road: the simplest outlier."""

    name, count, needs_street = NOISE, _NOISES, True

    def load(self, index: int, street: Labelled | None, rng: np.random.Generator) -> Labelled:
        assert street is not None
        side = 64
        grain = int(rng.choice([4, 8, 16, 32, 64]))
        noise = rng.normal(size=(grain, grain, 3)) * rng.uniform(10, 80) + rng.uniform(0, 255, 3)
        image = cv2.resize(noise.clip(0, 255).astype(np.uint8), (side, side), interpolation=cv2.INTER_LINEAR)
        shape = np.zeros((side, side), np.uint8)
        axes = (side // 2, max(side // 6, int(rng.integers(side // 6, side // 2))))
        cv2.ellipse(shape, (side // 2, side // 2), axes, float(rng.uniform(0, 180)), 0, 360, 1, -1)
        return paste(street, image, shape == 1, rng)


def _usable(
    items: Sequence[OodItem], read: Callable[[OodItem], Labelled], skipped: list[BadFile] | None, name: str
) -> Sequence[OodItem]:
    """Without the items that cannot be read, if bad files are skipped: one in the middle of a training would end it."""
    if skipped is None:
        return items
    kept = readable(items, skipped, read=read)
    if not kept:
        raise GenValError(f"--outliers: none of {len(items)} images of {name} can be used: {skipped[-1].reason}")
    return kept


def paste(street: Labelled, image: np.ndarray, shape: np.ndarray, rng: np.random.Generator) -> Labelled:
    """Paste a cut-out on the road or the sidewalk, as high as something 0.6 to 2.4 m high is there.

    Args:
        street: is not changed. Where it has no room on the ground, a random place below the sky is taken.
        image: RGB uint8 (h, w, 3).
        shape: bool (h, w), the pixels that are pasted.
        rng: chooses place, height and mirroring.
    """
    ground = np.where(np.isin(street.train_ids, _GROUND), GROUND_IDS[0], 0)
    box = place(ground, _PLACEMENT, rng, "the street").box
    scale = box.side / max(shape.shape)
    size = tuple(max(1, round(length * scale)) for length in shape.shape[::-1])
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    small = cv2.resize(image, size, interpolation=method)
    alpha = cv2.resize(shape.astype(np.float32), size, interpolation=method)
    if rng.random() < 0.5:
        small, alpha = small[:, ::-1], alpha[:, ::-1]
    # It stands on the lower edge of the box, in the middle.
    top, left = box.top + box.side - size[1], box.left + (box.side - size[0]) // 2
    at = slice(top, top + size[1]), slice(left, left + size[0])
    result = Labelled(street.image.copy(), street.train_ids.copy(), street.outliers.copy())
    blended = alpha[..., None] * small + (1 - alpha[..., None]) * street.image[at]
    result.image[at] = np.round(blended).astype(np.uint8)
    result.train_ids[at][alpha > 0] = IGNORE
    result.outliers[at][alpha >= 0.5] = True
    return result


def find_outliers(
    source: str, objects: Sequence[str] | None, skipped: list[BadFile] | None, cache: DecodedCache | None = None
) -> OutlierSource:
    """Return the outlier source that `--outliers` names.

    Args:
        source: a folder with the output of the scripts of ood_objects/, `pair:IMAGES,MASKS`, `paste:IMAGES,MASKS` or
            `noise`.
        objects: of the generated objects only these.
        skipped: bad files are added to this list instead of raising an error.
        cache: keeps decoded images; without it, every use decodes them.

    Raises:
        GenValError: there are no such images, or a file is bad.
    """
    cache = cache or DecodedCache(0)
    if source == NOISE:
        return NoisePatches()
    if source.startswith(_PASTE):
        return PastedObjects(source, skipped, cache)
    if source.startswith(_PAIR):
        return ImagePairs(source, skipped, cache)
    if not resolve(source).is_dir():
        raise GenValError(
            f"--outliers: there is no folder {resolve(source)}. Give a folder with refined, masks and with_positions "
            "(run the scripts of ood_objects/), pair:IMAGES,MASKS, paste:IMAGES,MASKS, or noise."
        )
    return GeneratedObjects(source, objects, skipped, cache)
