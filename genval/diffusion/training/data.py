"""The batches of a training run: decoded for each batch, or encoded once and kept on the device or on disk."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningDataModule

from genval.artifacts.fingerprint import files_hash
from genval.diffusion.models.hints import CITYSCAPES_IDS, LabelSet
from genval.diffusion.models.pipelines import StableDiffusion, TextStates, checkpoint_hash
from genval.diffusion.pairs import Pair, load_framed
from genval.diffusion.training.pair_sampler import PairSample, PairSampler
from genval.diffusion.training.settings import TrainingConfig
from genval.runtime.errors import GenValError
from genval.runtime.files import read_json, remove_leftovers, replace_file, write_json
from genval.runtime.progress import progress_bar
from genval.runtime.seeds import item_seed
from genval.training.batches import pinned, read_ahead

_ENCODED_AT_ONCE = 64
_SHARD = 256  # pairs per file
_RECORD = "encoded.json"
_TEXTS = "texts.safetensors"


class ImageBatches:
    """Batches of decoded images.

    A batch has `image` uint8 (B, 3, H, W), `mask` uint8 (B, H, W), `caption` (a list of strings) and `seed` (an int).

    Args:
        batches: the samples of each batch; may be endless.
        pairs: the training set, to which the samples' indices refer.
        config: size and resize method.
        workers: number of threads.
        labels: the label set of the masks.
    """

    def __init__(
        self,
        batches: Iterable[list[PairSample]],
        pairs: Sequence[Pair],
        config: TrainingConfig,
        workers: int,
        labels: LabelSet = CITYSCAPES_IDS.labels,
    ) -> None:
        self.batches = batches
        self.pairs = pairs
        self.config = config
        self.workers = workers
        self.labels = labels

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for samples, loaded in read_ahead(self.batches, self._load, self.workers):
            images, masks = zip(*loaded, strict=True)
            yield {
                "image": pinned(torch.stack(images)),
                "mask": pinned(torch.stack(masks)),
                "caption": ["" if sample.drop_caption else self.pairs[sample.index].caption for sample in samples],
                "seed": samples[0].batch_seed,
            }

    def _load(self, sample: PairSample) -> tuple[torch.Tensor, torch.Tensor]:
        config = self.config
        framed = load_framed(
            self.pairs[sample.index], config.height, config.width, sample.place, self.labels, config.image_resize
        )
        image, mask = framed.image.transpose(2, 0, 1), framed.mask
        if sample.flip:
            image, mask = image[..., ::-1], mask[..., ::-1]
        return torch.from_numpy(np.ascontiguousarray(image)), torch.from_numpy(np.ascontiguousarray(mask))


class IndexBatches:
    """Batches of indices into a `LatentCache`: `index`, `crop`, `flip`, `drop_caption` and `seed`."""

    def __init__(self, batches: Iterable[list[PairSample]], crops: int = 1) -> None:
        self.batches = batches
        self.crops = crops

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for samples in self.batches:
            yield {
                "index": torch.tensor([sample.index for sample in samples]),
                "crop": torch.tensor([_crop(sample, self.crops) for sample in samples]),
                "flip": torch.tensor([sample.flip for sample in samples]),
                "drop_caption": torch.tensor([sample.drop_caption for sample in samples]),
                "seed": samples[0].batch_seed,
            }


class LatentBatches:
    """Batches of an `EncodedFolder`: `latents`, `mask`, `states`, `pooled` (SDXL) and `seed`."""

    def __init__(self, batches: Iterable[list[PairSample]], encoded: EncodedFolder, workers: int) -> None:
        self.batches = batches
        self.encoded = encoded
        self.workers = workers

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for samples, loaded in read_ahead(self.batches, self.encoded.load, self.workers):
            latents, masks, texts = zip(*loaded, strict=True)
            text = TextStates.cat(texts)
            batch = {"latents": torch.stack(latents), "mask": torch.stack(masks), "states": text.states}
            if text.pooled is not None:
                batch["pooled"] = text.pooled
            yield {**{key: pinned(tensor) for key, tensor in batch.items()}, "seed": samples[0].batch_seed}


@dataclasses.dataclass
class LatentCache:
    """A whole training set, encoded once and kept on the training device.

    Attributes:
        latents: (crops, V, N, C, h, w) float16. V is 2 with flips, because the latents of a mirrored image are not the
            mirrored latents; otherwise 1.
        masks: (crops, N, H, W) uint8 ids.
        texts: float16 text states of the distinct captions, followed by those of the empty caption.
        text_index: (N,) int64, index of each pair's caption in `texts`.
    """

    latents: torch.Tensor
    masks: torch.Tensor
    texts: TextStates
    text_index: torch.Tensor

    def __call__(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, TextStates]:
        """Return the latents, masks and text states of a batch of `IndexBatches`."""
        index, crop, flip = batch["index"], batch["crop"], batch["flip"]
        mask = self.masks[crop, index]
        mask = torch.where(flip[:, None, None], mask.flip(-1), mask)
        text = torch.where(batch["drop_caption"], len(self.texts) - 1, self.text_index[index])
        return self.latents[crop, flip.long(), index], mask, self.texts[text]


def encode_pairs(
    base: StableDiffusion,
    pairs: Sequence[Pair],
    config: TrainingConfig,
    workers: int,
    rank: int = 0,
    labels: LabelSet = CITYSCAPES_IDS.labels,
) -> LatentCache:
    """Encode a training set with the base's VAE and text encoder, on the base's device.

    If the aspect ratio of a frame differs from the target's, the same `config.crops` crops are used for the whole
    training.
    """
    latents, masks = [], []
    with progress_bar(len(pairs), "Encoding the training set", rank=rank) as bar:
        for chunk in _encode(base, pairs, range(len(pairs)), config, workers, labels):
            latents.append(chunk[0])
            masks.append(chunk[1])
            bar.update(chunk[1].shape[1])
    texts, text_index = _encode_texts(base, pairs)
    return LatentCache(torch.cat(latents, 2), torch.cat(masks, 1), texts, text_index)


class EncodedFolder:
    """A training set encoded once and kept on disk: `encoded.json`, `texts.safetensors`, `shard_{n}.safetensors`.

    The files are memory-mapped, so the training set may be larger than the memory. An unfinished folder is resumed.

    Args:
        folder: folder of the files.
        base: the model that encodes.
        pairs: the training set.
        config: size, crops, flips and seed.
        labels: the label set of the masks.

    Raises:
        GenValError: the folder was encoded from another training set, with another base, or in another size.
    """

    def __init__(
        self,
        folder: Path,
        base: StableDiffusion,
        pairs: Sequence[Pair],
        config: TrainingConfig,
        labels: LabelSet = CITYSCAPES_IDS.labels,
    ) -> None:
        self.folder = folder
        self.base = base
        self.pairs = pairs
        self.config = config
        self.labels = labels
        self._opened: dict[int, dict[str, torch.Tensor]] = {}
        self.record = {
            "base": checkpoint_hash(base.folder),
            "pairs": _pairs_hash(pairs),
            "count": len(pairs),
            "labels": labels.name,
            **{name: getattr(config, name) for name in ("height", "width", "flip", "image_resize", "crops", "seed")},
        }
        if (folder / _RECORD).exists():
            before = read_json(folder / _RECORD, dict[str, Any])
            differing = [
                f"{key} {before.get(key)} (now {now})" for key, now in self.record.items() if before.get(key) != now
            ]
            if differing:
                raise GenValError(
                    f"--precompute: {folder} was encoded with {', '.join(differing)}. Give another folder, or remove "
                    "it."
                )

    def missing(self) -> list[int]:
        """Return the numbers of the missing shards."""
        return [number for number in range(self._shards) if not self._shard_path(number).exists()]

    def finished(self) -> bool:
        """Whether all files exist."""
        return not self.missing() and (self.folder / _TEXTS).exists()

    def prepare(self) -> None:
        """Make the folder and remove the leftovers of a killed run. The first process calls this before any writes."""
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.folder)
        write_json(self.folder / _RECORD, self.record)

    def write(self, workers: int, rank: int = 0, world_size: int = 1) -> None:
        """Encode the missing shards. Process `rank` writes every `world_size`-th shard, process 0 also the texts."""
        from safetensors.torch import save_file

        # By shard number, not by position in the list of missing shards, which differs between processes.
        todo = [number for number in self.missing() if number % world_size == rank]
        with progress_bar(len(todo), f"Encoding the training set into {self.folder}", unit="shard", rank=rank) as bar:
            for number in todo:
                indices = range(number * _SHARD, min((number + 1) * _SHARD, len(self.pairs)))
                chunks = list(_encode(self.base, self.pairs, indices, self.config, workers, self.labels))
                tensors = {
                    "latents": torch.cat([latents for latents, _ in chunks], 2).cpu(),
                    "masks": torch.cat([masks for _, masks in chunks], 1).cpu(),
                }
                with replace_file(self._shard_path(number)) as temporary:
                    save_file(tensors, temporary)
                bar.update()
        if rank == 0 and not (self.folder / _TEXTS).exists():
            texts, text_index = _encode_texts(self.base, self.pairs)
            tensors = {"states": texts.states.cpu(), "index": text_index.cpu()}
            if texts.pooled is not None:
                tensors["pooled"] = texts.pooled.cpu()
            with replace_file(self.folder / _TEXTS) as temporary:
                save_file(tensors, temporary)

    def load(self, sample: PairSample) -> tuple[torch.Tensor, torch.Tensor, TextStates]:
        """Return a pair's latents (C, h, w) float16, its mask (H, W) uint8, and the text states of its caption."""
        shard, row = self._shard(sample.index // _SHARD), sample.index % _SHARD
        crop = _crop(sample, self.config.crops)
        mask = shard["masks"][crop, row]
        texts = self._texts
        text = len(texts["states"]) - 1 if sample.drop_caption else int(texts["index"][sample.index])
        pooled = texts["pooled"][text : text + 1] if "pooled" in texts else None
        return (
            shard["latents"][crop, int(sample.flip), row],
            mask.flip(-1) if sample.flip else mask,
            TextStates(texts["states"][text : text + 1], pooled),
        )

    def to_device(self, device: torch.device) -> LatentCache:
        """Copy the whole training set to a device."""
        shards = [self._shard(number) for number in range(self._shards)]
        texts = self._texts
        pooled = texts["pooled"].to(device) if "pooled" in texts else None
        return LatentCache(
            torch.cat([shard["latents"].to(device) for shard in shards], 2),
            torch.cat([shard["masks"].to(device) for shard in shards], 1),
            TextStates(texts["states"].to(device), pooled),
            texts["index"].to(device),
        )

    @property
    def _shards(self) -> int:
        return -(-len(self.pairs) // _SHARD)

    def _shard_path(self, number: int) -> Path:
        return self.folder / f"shard_{number:05d}.safetensors"

    @functools.cached_property
    def _texts(self) -> dict[str, torch.Tensor]:
        return _map_file(self.folder / _TEXTS)

    def _shard(self, number: int) -> dict[str, torch.Tensor]:
        if number not in self._opened:
            self._opened[number] = _map_file(self._shard_path(number))
        return self._opened[number]


class ControlNetData(LightningDataModule):
    """The batches of a training run, from the step of its checkpoint on.

    Args:
        pairs: the training set.
        config: the run's settings.
        workers: number of threads that decode images.
        cached: yield indices into a `LatentCache` instead of images.
        encoded: yield latents of this folder instead of images.
        labels: the label set of the masks.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        config: TrainingConfig,
        workers: int = 4,
        cached: bool = False,
        encoded: EncodedFolder | None = None,
        labels: LabelSet = CITYSCAPES_IDS.labels,
    ) -> None:
        super().__init__()
        self.pairs = pairs
        self.config = config
        self.workers = workers
        self.cached = cached
        self.encoded = encoded
        self.labels = labels

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds of the training set: its number of pairs, and a hash of their list.

        The hash is over the names of the files, and the captions. The folders of a data set may be elsewhere.
        """
        listed = [[pair.image.name, pair.mask and pair.mask.name, pair.caption] for pair in self.pairs]
        return {"pairs": len(listed), "hash": hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:12]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse a checkpoint of another training set. Lightning does not call this for a checkpoint without a record.

        Raises:
            GenValError: the images, masks or captions, or their order, are not those of the checkpoint.
        """
        now = self.state_dict()
        if state_dict != now:
            same = "other files, captions or another order" if now["pairs"] == state_dict["pairs"] else now["pairs"]
            raise GenValError(
                f"--resume: expected the training data of the run so far, {state_dict['pairs']} images, found {same}. "
                "Restore the data and captions, or start again (--run NAME without --resume)."
            )

    def train_dataloader(self) -> ImageBatches | IndexBatches | LatentBatches:
        """Return endless batches: a run is one epoch for Lightning, so accumulation never stops at an epoch's end."""
        trainer = self.trainer
        assert trainer is not None
        # Checkpoints are written between optimiser steps, so this is the number of batches used so far.
        start = trainer.global_step * self.config.accumulate
        plan = PairSampler(len(self.pairs), self.config, start, trainer.global_rank, trainer.world_size)
        if self.cached:
            return IndexBatches(plan, self.config.crops)
        if self.encoded is not None:
            return LatentBatches(plan, self.encoded, self.workers)
        return ImageBatches(plan, self.pairs, self.config, self.workers, self.labels)


def _encode(
    base: StableDiffusion,
    pairs: Sequence[Pair],
    indices: Sequence[int],
    config: TrainingConfig,
    workers: int,
    labels: LabelSet,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield latents (crops, V, n, C, h, w) float16 and masks (crops, n, H, W) of the chosen pairs, in chunks."""
    samples = [
        PairSample(i, np.random.default_rng(item_seed(config.seed, f"crop {i}")).random(), False, False, 0)
        for i in indices
    ]
    chunks = []
    for first in range(0, len(samples), _ENCODED_AT_ONCE):
        chunk = samples[first : first + _ENCODED_AT_ONCE]
        # The crops of a frame are equally spaced, and wrap around at the end.
        for crop in range(config.crops):
            places = [(sample.place + crop / config.crops) % 1 for sample in chunk]
            chunks.append(
                [dataclasses.replace(sample, place=place) for sample, place in zip(chunk, places, strict=True)]
            )
    latents, masks = [], []
    for batch in ImageBatches(chunks, pairs, config, workers, labels):
        images = batch["image"].to(base.device, non_blocking=True)
        both = torch.cat([images, images.flip(-1)]) if config.flip else images
        encoded = torch.cat([base.encode_images(part).half() for part in both.split(_ENCODED_AT_ONCE)])
        latents.append(encoded.unflatten(0, (-1, len(images))))
        masks.append(batch["mask"].to(base.device, non_blocking=True))
        if len(masks) == config.crops:
            yield torch.stack(latents), torch.stack(masks)
            latents, masks = [], []


def _encode_texts(base: StableDiffusion, pairs: Sequence[Pair]) -> tuple[TextStates, torch.Tensor]:
    """Return `LatentCache.texts` and `LatentCache.text_index`."""
    captions = sorted({pair.caption for pair in pairs})
    numbers = {caption: number for number, caption in enumerate(captions)}
    prompts = [*captions, ""]
    texts = [base.encode_text(prompts[i : i + 256]).to(torch.float16) for i in range(0, len(prompts), 256)]
    return TextStates.cat(texts), torch.tensor([numbers[pair.caption] for pair in pairs], device=base.device)


def _crop(sample: PairSample, crops: int) -> int:
    """Return the index of the encoded crop that is used for a sample."""
    return min(int(sample.place * crops), crops - 1)


def _map_file(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise GenValError(f"{path} cannot be read ({error}). Remove it and run again.") from error


def _pairs_hash(pairs: Sequence[Pair]) -> str:
    """Return 12 hexadecimal digits over the names and marks of the pairs' files, and their captions."""
    files = files_hash(file for pair in pairs for file in (pair.image, pair.mask) if file)
    return hashlib.sha256(json.dumps([files, [pair.caption for pair in pairs]]).encode()).hexdigest()[:12]
