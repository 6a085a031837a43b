"""The batches of a fine-tuning: clear streets, images with outliers and generated weather, cropped and augmented.

All random numbers depend only on the seed and the number of the batch, so that a resumed run trains on the same batches
as a run that was not interrupted.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from pytorch_lightning import LightningDataModule

from genval.datasets import Item, read_pair
from genval.datasets.labels import IGNORE
from genval.datasets.reading import DecodedCache
from genval.finetuning.outliers import Labelled, OutlierSource
from genval.finetuning.settings import FinetuneSettings
from genval.runtime.seeds import item_seed
from genval.training.batches import Passes, pinned, read_ahead

_ZOOM = (0.5, 1.5)
# Strengths of the colour changes; a change of each kind is made to half of the images.
_BRIGHTNESS, _CONTRAST, _SATURATION = 32.0, 0.5, 0.5
_PADDING = (124, 116, 104)  # ImageNet's mean


@dataclass(frozen=True)
class FinetuneSample:
    """One sample of a batch.

    Attributes:
        kind: "street", "generated" or "outlier".
        index: of the street, the generated image or the outlier.
        street: of the street on which an outlier is pasted.
        seed: of everything random about the sample.
    """

    kind: str
    index: int
    street: int
    seed: int


@dataclass(frozen=True)
class FinetuneSet:
    """What a fine-tuning is trained on.

    Attributes:
        streets: the clear labelled streets.
        generated: labelled images of generated weather.
        outliers: the source of outliers, or None.
        cache: keeps decoded images.
    """

    streets: Sequence[Item]
    generated: Sequence[Item]
    outliers: OutlierSource | None
    cache: DecodedCache

    def load(self, sample: FinetuneSample, rng: np.random.Generator) -> Labelled:
        """Read the image of a sample, without augmentation.

        Raises:
            GenValError: a file is bad.
        """
        if sample.kind != "outlier":
            items = self.streets if sample.kind == "street" else self.generated
            return self.cache.read(items[sample.index], _labelled)
        assert self.outliers is not None
        street = self.cache.read(self.streets[sample.street], _labelled) if self.outliers.needs_street else None
        return self.outliers.load(sample.index, street, rng)


def _labelled(item: Item) -> Labelled:
    image, train_ids = read_pair(item)
    return Labelled(image, train_ids, np.zeros(train_ids.shape, bool))


class FinetuneSampler:
    """The endless sequence of batches of one process. Batch n depends only on n and the seed.

    Args:
        data: what is trained on.
        settings: the composition of a batch, and the seed.
        start: number of the first batch.
        rank, world_size: this process and the number of processes.
    """

    def __init__(
        self, data: FinetuneSet, settings: FinetuneSettings, start: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        self.settings, self.start, self.rank, self.world_size = settings, start, rank, world_size
        # A name of its own gives each set an order of its own.
        self._parts = {
            "street": (settings.streets_per_batch, Passes(len(data.streets), settings.seed, "streets")),
            "generated": (settings.generated_per_batch, Passes(len(data.generated), settings.seed, "generated")),
            "outlier": (
                settings.outliers_per_batch,
                Passes(0 if data.outliers is None else data.outliers.count, settings.seed, "outliers"),
            ),
        }
        self._below = Passes(len(data.streets), settings.seed, "streets below outliers")

    def __iter__(self) -> Iterator[list[FinetuneSample]]:
        return map(self.batch, itertools.count(self.start))

    def batch(self, number: int) -> list[FinetuneSample]:
        """Return batch `number` (0, 1, ...) of this process."""
        samples = []
        for kind, (size, passes) in self._parts.items():
            if not size:
                continue
            first = (number * self.world_size + self.rank) * size
            positions = np.arange(first, first + size)
            streets = self._below(positions)
            for place, (index, street) in enumerate(zip(passes(positions), streets, strict=True)):
                name = f"batch {number} of process {self.rank}, {kind} {place}"
                seed = item_seed(self.settings.seed, name)
                samples.append(FinetuneSample(kind, int(index), int(street), seed))
        return samples


class FinetuneBatches:
    """Batches of augmented crops.

    A batch has `image` uint8 (B, 3, H, W) in the channels-last memory format, `train_ids` uint8 (B, H, W), `outliers`
    bool (B, H, W) and `seed` (an int).

    Args:
        batches: the samples of each batch; may be endless.
        data: what the samples refer to.
        size: height and width of the crops.
        workers: number of threads.
    """

    def __init__(self, batches: FinetuneSampler, data: FinetuneSet, size: tuple[int, int], workers: int) -> None:
        self.batches, self.data, self.size, self.workers = batches, data, size, workers

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for samples, loaded in read_ahead(self.batches, self._load, self.workers):
            yield {
                "image": pinned(torch.from_numpy(np.stack([one.image for one in loaded]))).permute(0, 3, 1, 2),
                "train_ids": pinned(torch.from_numpy(np.stack([one.train_ids for one in loaded]))),
                "outliers": pinned(torch.from_numpy(np.stack([one.outliers for one in loaded]))),
                "seed": samples[0].seed,
            }

    def _load(self, sample: FinetuneSample) -> Labelled:
        rng = np.random.default_rng(sample.seed)
        return augment(self.data.load(sample, rng), self.size, rng)


class FinetuneData(LightningDataModule):
    """The batches of a run, from the step of its checkpoint on.

    Args:
        data: what is trained on.
        settings: of the script.
    """

    def __init__(self, data: FinetuneSet, settings: FinetuneSettings) -> None:
        super().__init__()
        self.data, self.settings = data, settings

    def train_dataloader(self) -> FinetuneBatches:
        """Return endless batches: a run is one epoch for Lightning, so accumulation never stops at an epoch's end."""
        trainer, settings = self.trainer, self.settings
        assert trainer is not None
        # Checkpoints are written between optimiser steps, so this is the number of batches used so far.
        start = trainer.global_step * settings.accumulate
        sampler = FinetuneSampler(self.data, settings, start, trainer.global_rank, trainer.world_size)
        return FinetuneBatches(sampler, self.data, settings.crop_size, settings.num_workers)


def augment(labelled: Labelled, size: tuple[int, int], rng: np.random.Generator) -> Labelled:
    """Zoom, crop, mirror and change the colours of an image.

    Args:
        labelled: the image. A crop of an image with outliers has a pixel of them, chosen at random, inside.
        size: height and width of the result; what lies outside the image has no class.
        rng: the source of random numbers.
    """
    zoom = rng.uniform(*_ZOOM)
    frame = labelled.outliers.shape
    pixels = np.flatnonzero(labelled.outliers)
    inside = divmod(int(rng.choice(pixels)), frame[1]) if len(pixels) else None
    window = []
    for axis in (0, 1):
        length = min(frame[axis], max(1, round(size[axis] / zoom)))
        low, high = 0, frame[axis] - length
        if inside is not None:
            low, high = max(low, inside[axis] - length + 1), min(high, inside[axis])
        start = int(rng.integers(low, high + 1))
        window.append(slice(start, start + length))
    rows, columns = window
    # As high and wide as the zoom makes it, at most the crop.
    target = [min(size[axis], max(1, round((part.stop - part.start) * zoom))) for axis, part in enumerate(window)]
    top, left = (int(rng.integers(size[axis] - target[axis] + 1)) for axis in (0, 1))
    bottom, right = size[0] - target[0] - top, size[1] - target[1] - left
    wide = (target[1], target[0])
    image = cv2.resize(
        labelled.image[rows, columns], wide, interpolation=cv2.INTER_AREA if zoom < 1 else cv2.INTER_LINEAR
    )
    train_ids, outliers = (
        cv2.resize(np.ascontiguousarray(part[rows, columns]).view(np.uint8), wide, interpolation=cv2.INTER_NEAREST)
        for part in (labelled.train_ids, labelled.outliers)
    )
    image = change_colours(image, rng)
    mirrored = rng.random() < 0.5

    def finish(part: np.ndarray, fill: Any) -> np.ndarray:
        padded = cv2.copyMakeBorder(part, top, bottom, left, right, cv2.BORDER_CONSTANT, value=fill)
        return cv2.flip(padded, 1) if mirrored else padded

    return Labelled(finish(image, _PADDING), finish(train_ids, IGNORE), finish(outliers, 0).view(bool))


def change_colours(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change brightness, contrast and saturation at random, each in half of the images; RGB uint8 (H, W, 3)."""
    brightness, contrast, saturation = (
        strength * rng.uniform(-1, 1) * (rng.random() < 0.5) for strength in (_BRIGHTNESS, _CONTRAST, _SATURATION)
    )
    if not (brightness or contrast or saturation):
        return image
    luma = np.array([0.299, 0.587, 0.114], np.float32)
    matrix = (1 + contrast) * ((1 + saturation) * np.eye(3) - saturation * luma)
    offset = brightness - contrast * np.mean(cv2.mean(image)[:3])  # OpenCV is five times as fast as NumPy here
    mapped: np.ndarray = cv2.transform(image, np.concatenate([matrix, np.full((3, 1), offset)], 1))
    return mapped
