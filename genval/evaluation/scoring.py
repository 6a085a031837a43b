"""Scores for every picture of a generated set, in one pass, resumable: see `metrics.generated` for what they mean."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genval.artifacts.fingerprint import file_mark, weights_hash
from genval.artifacts.manifest import Manifest
from genval.datasets import CLASSES, BadFile, Batch, Item, load_batches, partition
from genval.datasets.items import find_original
from genval.evaluation.image_scores import (
    add_neighbours,
    agreement,
    domain_probability,
    picture_hash,
    relative_agreement,
)
from genval.evaluation.inference import predict
from genval.metrics.confusion import confusion_matrix
from genval.runtime.errors import GenValError
from genval.runtime.files import write_jsonl
from genval.runtime.progress import progress_bar

if TYPE_CHECKING:
    import torch

    from genval.captions.clip import Clip
    from genval.segmenters import Segmenter


@dataclasses.dataclass(frozen=True)
class Phrases:
    """What CLIP compares a picture with: a phrase of its domain, and one of clear weather."""

    domain: str
    clear: str


class ScoringRun:
    """Scores the pictures of a generated set, batch by batch.

    A picture's scores are appended to `scores.jsonl` as they are computed and at the end moved into the line of the
    set's manifest, where it has one. Scores made from the same files with the same models are kept.

    Args:
        folder: of the set.
        items: its pictures, with their masks.
        segmenter: the reference, on its device.
        precision: of the segmenter.
        clip: on its device; without one there are no domain probabilities.
        phrases: for CLIP.
        rank, world_size: this process's number, and how many share the work.
        overwrite: score everything again.

    Raises:
        GenValError: the manifest lacks a picture, or a file cannot be read.
    """

    def __init__(
        self,
        folder: Path,
        items: Sequence[Item],
        segmenter: Segmenter,
        precision: str,
        clip: Clip | None = None,
        phrases: Phrases | None = None,
        rank: int = 0,
        world_size: int = 1,
        overwrite: bool = False,
    ) -> None:
        self.folder = folder
        self.rank, self.world_size = rank, world_size
        self.items = list(items)
        self.segmenter = segmenter
        self.clip = clip
        self.manifest = Manifest(folder)
        lacking = [item.id for item in items if item.id not in self.manifest] if self.manifest.records else []
        if lacking:
            raise GenValError(
                f"{folder} holds {len(lacking)} pictures that its manifest.jsonl lacks, such as {lacking[0]}. "
                "Run ControlNet/style_transfer.py again with the flags that made it, or delete them."
            )
        self.originals = {item.id: find_original(item) for item in items}
        self.about: dict[str, Any] = {
            "segmenter": segmenter.name,
            "segmenter_hash": weights_hash(segmenter),
            "precision": precision,
        }
        if clip is not None and phrases is not None:
            self.about |= {"clip": clip.name, "clip_hash": clip.hash, "phrases": [phrases.domain, phrases.clear]}
            self._phrases = clip.encode_texts([phrases.domain, phrases.clear]).numpy()
        # All processes look before one of them writes: each takes its share of the same list.
        self._journal = Manifest(folder, rank, "scores")
        self._marks = {item.id: self._made_from(item) for item in items}
        known = {} if overwrite else self._known(self._journal)
        self._done = {item_id for item_id, marks in self._marks.items() if _made_with(known.get(item_id), marks)}

    def score(self, batch_size: int, workers: int, device: torch.device, set_aside: list[BadFile] | None = None) -> int:
        """Score what is missing; process `rank` takes every `world_size`-th batch.

        Args:
            batch_size: pictures at a time, each with its original.
            workers: threads that decode images.
            device: of the models.
            set_aside: bad files are added to it instead of being an error.

        Returns:
            The number of pictures scored by this process.

        Raises:
            GenValError: a file is damaged, or a model's result is not finite.
        """
        todo = [chunk for chunk in partition(self.items, batch_size) if any(i.id not in self._done for i in chunk)]
        mine = todo[self.rank :: self.world_size]
        pairs = [(*chunk, *(original for item in chunk if (original := self._original(item)))) for chunk in mine]
        waiting: dict[str, dict[str, dict[str, Any]]] = {}
        scored = 0
        with progress_bar(sum(map(len, mine)), f"Scoring {self.folder.name}", rank=self.rank) as bar:
            for batch in load_batches(pairs, workers, set_aside):
                complete = []
                for item, values in zip(batch.items, self._measure(batch, device), strict=True):
                    parts = waiting.setdefault(item.id, {})
                    real = self.originals[item.id]
                    parts["original" if item.image == real else "picture"] = values
                    if len(parts) == 1 + (real is not None):
                        complete.append(
                            {"id": item.id, "scores": {**self._marks[item.id], **_joined(waiting.pop(item.id))}}
                        )
                self._journal.append(complete)
                scored += len(complete)
                bar.update(len(complete))
        return scored

    def finish(self) -> dict[str, dict[str, Any]]:
        """Add each picture's neighbours, write all scores, and return them by id in the items' order.

        For the first process, when the others are done.

        Raises:
            GenValError: nothing was scored.
        """
        known = self._known(Manifest(self.folder, name="scores"))
        scores = {key: known[key] for key, marks in self._marks.items() if _made_with(known.get(key), marks)}
        if not scores:
            raise GenValError(f"Every picture of {self.folder} was set aside: there is nothing to judge.")
        add_neighbours(scores)
        if self.manifest.records:
            records = self.manifest.records.items()
            write_jsonl(
                self.manifest.path, [r | ({"scores": scores[key]} if key in scores else {}) for key, r in records]
            )
        else:
            write_jsonl(self.folder / "scores.jsonl", [{"id": key, "scores": value} for key, value in scores.items()])
        for part in self.folder.glob("scores*.jsonl"):
            if self.manifest.records or part.name != "scores.jsonl":
                part.unlink()
        return scores

    def _known(self, journal: Manifest) -> dict[str, dict[str, Any]]:
        """Scores of earlier runs, by id; the journal's are newer than the manifest's."""
        records = {**self.manifest.records, **journal.records}
        return {item_id: record["scores"] for item_id, record in records.items() if "scores" in record}

    def _made_from(self, item: Item) -> dict[str, Any]:
        """What the scores of a picture are made from."""
        files = {"image_mark": item.image, "mask_mark": item.mask, "original_mark": self.originals[item.id]}
        return self.about | {key: file_mark(path) for key, path in files.items() if path is not None}

    def _original(self, item: Item) -> Item | None:
        original = self.originals[item.id]
        return None if original is None else dataclasses.replace(item, image=original)

    def _measure(self, batch: Batch, device: torch.device) -> list[dict[str, Any]]:
        """Scores of each image of a batch by itself, originals included."""
        names = [str(item.image) for item in batch.items]
        predictions = predict(self.segmenter, batch.images, names, device)
        values = [
            {**agreement(confusion_matrix(labels, prediction), CLASSES), "hash": picture_hash(image).tobytes().hex()}
            for image, labels, prediction in zip(batch.images, batch.train_ids, predictions, strict=True)
        ]
        pictures = [row for row, item in enumerate(batch.items) if item.image != self.originals[item.id]]
        if self.clip is not None and pictures:
            vectors = self.clip.encode_images([batch.images[row] for row in pictures]).numpy()
            found = domain_probability(vectors, self._phrases, self.clip.logit_scale)
            for row, probability in zip(pictures, found.tolist(), strict=True):
                values[row]["domain_probability"] = probability
        return values


def _made_with(scores: Mapping[str, Any] | None, marks: Mapping[str, Any]) -> bool:
    """Whether scores were made from these files with these models, and no more was asked of them then."""
    return scores is not None and all(scores.get(key) == value for key, value in marks.items())


def _joined(parts: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """A picture's scores beside those of its original."""
    values = dict(parts["picture"])
    if "original" in parts:
        original = parts["original"]
        values |= {
            "original_miou": original["miou"],
            "original_pixel_accuracy_percent": original["pixel_accuracy_percent"],
            "original_hash": original["hash"],
            "relative_miou": relative_agreement(values["miou"], original["miou"]),
        }
    return values
