"""Scoring of generated sets, on the engine for resumable work; `image_scores` defines the scores."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import path_dicts
from genval.artifacts.fingerprint import file_mark, files_hash
from genval.artifacts.manifest import Manifest, manifest_parts
from genval.artifacts.stage import Stage, StageReport, run_stage
from genval.datasets import CLASSES, BadFile, Item, find_items, read_pair
from genval.datasets.gate import GATE, write_gate
from genval.datasets.items import find_original, openable
from genval.datasets.layouts import generator_folder
from genval.datasets.reading import check_ids
from genval.datasets.unlabelled import find_unlabelled
from genval.evaluation.image_scores import (
    add_neighbours,
    agreement,
    agreement_floor,
    domain_probability,
    geometry_drift,
    image_hash,
    judge,
    relative_agreement,
    write_histograms,
)
from genval.evaluation.realism import FEWEST_IMAGES, REALISM, Realism, measure_realism
from genval.evaluation.settings import ScoringSettings
from genval.metrics.confusion import confusion_matrix
from genval.results.provenance import is_reusable
from genval.runtime.devices import launch_fabric, same_outcome
from genval.runtime.errors import GenValError
from genval.runtime.files import remove_leftovers, write_json, write_jsonl
from genval.runtime.paths import inside, resolve
from genval.segmenters.identity import model_identity
from genval.segmenters.prediction import predict

if TYPE_CHECKING:
    import torch

    from genval.captions.clip import Clip
    from genval.segmenters import Segmenter


@dataclasses.dataclass(frozen=True)
class Phrases:
    """The texts that CLIP compares an image with: one of its domain, and one of clear weather."""

    domain: str
    clear: str


@dataclasses.dataclass(frozen=True)
class _Loaded:
    """An image with its mask and, where the generator saved it, the original."""

    image: np.ndarray
    train_ids: np.ndarray
    original: np.ndarray | None


_Values = dict[str, Any]


class ScoringStage(Stage[Item, _Loaded, _Values]):
    """Scores the images of a generated set.

    The scores of an image are appended to `scores.jsonl` when they are computed. At the end they are moved into the
    set's manifest, if it has one. Scores made from the same files with the same models are kept.

    Args:
        folder: the folder of the set.
        items: its images, with their masks.
        segmenter: the reference segmenter, on `device`.
        device: where the segmenter runs.
        precision: precision of the segmenter.
        clip: a CLIP model, on its device; without it there are no domain probabilities.
        phrases: the texts that CLIP compares an image with.

    Attributes:
        scores: by id in the order of the items, in the first process, when the stage is finished.

    Raises:
        GenValError: the manifest does not list an image, or a file cannot be read.
    """

    def __init__(
        self,
        folder: Path,
        items: Sequence[Item],
        segmenter: Segmenter,
        device: torch.device,
        precision: str,
        clip: Clip | None = None,
        phrases: Phrases | None = None,
    ) -> None:
        self.title = f"Scoring {folder.name}"
        self.folder = folder
        self.segmenter, self.device = segmenter, device
        self.clip = clip
        self.scores: dict[str, _Values] = {}
        self.manifest = Manifest(folder)
        missing = [item.id for item in items if item.id not in self.manifest] if self.manifest.records else []
        if missing:
            raise GenValError(
                f"{folder} holds {len(missing)} images that are missing in its manifest.jsonl, such as {missing[0]}. "
                "Run ControlNet/style_transfer.py again with the flags that made it, or delete them."
            )
        self.originals = {item.id: find_original(item) for item in items}
        self.record: _Values = {
            "segmenter": segmenter.name,
            "segmenter_hash": model_identity(segmenter),
            "precision": precision,
        }
        if clip is not None and phrases is not None:
            self.record |= {"clip": clip.name, "clip_hash": clip.hash, "phrases": [phrases.domain, phrases.clear]}
            self._phrases = clip.encode_texts([phrases.domain, phrases.clear]).numpy()
        self._marks = {item.id: self._made_from(item) for item in items}
        self._journal = Manifest(folder, name="scores")
        self._known: dict[str, _Values] = {}

    def folders(self) -> list[Path]:
        return [self.folder]

    def begin(self, items: Sequence[Item], overwrite: bool) -> None:
        remove_leftovers(self.folder)
        Manifest(self.folder, name="scores").merge()

    def open(self, rank: int) -> None:
        self._journal = Manifest(self.folder, rank, "scores")
        self._known = self._read(self._journal)

    def is_done(self, item: Item) -> bool:
        reusable = is_reusable({"identity": self.record["segmenter_hash"]})
        return reusable and _has_record(self._known.get(item.id), self._marks[item.id])

    def prepare(self, missing: Sequence[Item]) -> None:
        (self.folder / GATE).unlink(missing_ok=True)  # an existing gate was made from earlier scores

    def load(self, item: Item) -> _Loaded:
        image, train_ids = read_pair(item)
        original = self.originals[item.id]
        if original is None:
            return _Loaded(image, train_ids, None)
        return _Loaded(image, train_ids, read_pair(dataclasses.replace(item, image=original))[0])

    def compute(self, items: Sequence[Item], loaded: Sequence[_Loaded]) -> list[_Values]:
        names = [str(item.image) for item in items]
        values = self._agreements(names, [one.image for one in loaded], loaded)
        with_original = [row for row, one in enumerate(loaded) if one.original is not None]
        originals = [loaded[row] for row in with_original]
        names = [str(self.originals[items[row].id]) for row in with_original]
        original_values = self._agreements(names, [one.original for one in originals], originals)
        if self.clip is not None:
            vectors = self.clip.encode_images([one.image for one in loaded]).numpy()
            probabilities = domain_probability(vectors, self._phrases, self.clip.logit_scale)
            for one, probability in zip(values, probabilities.tolist(), strict=True):
                one["domain_probability"] = probability
        for row, original in zip(with_original, original_values, strict=True):
            photo = loaded[row].original
            assert photo is not None
            values[row] = {**_joined(values[row], original), "drift_percent": geometry_drift(loaded[row].image, photo)}
        return values

    def _agreements(
        self, names: Sequence[str], images: Sequence[np.ndarray | None], loaded: Sequence[_Loaded]
    ) -> list[_Values]:
        """Compare the prediction of each image with its mask, and hash the image."""
        values: list[_Values] = []
        pairs = list(zip(names, images, loaded, strict=True))
        for _, group in itertools.groupby(pairs, key=lambda pair: pair[2].train_ids.shape):
            members = list(group)
            stack = np.stack([image for _, image, _ in members if image is not None])
            predictions = predict(self.segmenter, stack, [name for name, _, _ in members], self.device)
            values += [
                {
                    **agreement(confusion_matrix(one.train_ids, prediction), CLASSES),
                    "hash": image_hash(image).tobytes().hex(),
                }
                for image, (_, _, one), prediction in zip(stack, members, predictions, strict=True)
            ]
        return values

    def write(self, item: Item, loaded: _Loaded, output: _Values) -> _Values:
        return {"id": item.id, "scores": {**self._marks[item.id], **output}}

    def commit(self, lines: Sequence[_Values]) -> None:
        self._journal.append(lines)

    def finish(self, items: Sequence[Item], report: StageReport[Item]) -> None:
        """Add each image's neighbours and write all scores."""
        known = self._read(Manifest(self.folder, name="scores"))
        scores = {key: known[key] for key, marks in self._marks.items() if _has_record(known.get(key), marks)}
        if not scores:
            raise GenValError(f"Every image of {self.folder} was skipped: no image is left to judge.")
        add_neighbours(scores)
        if self.manifest.records:
            records = self.manifest.records.items()
            write_jsonl(
                self.manifest.path, [r | ({"scores": scores[key]} if key in scores else {}) for key, r in records]
            )
        else:
            write_jsonl(self.folder / "scores.jsonl", [{"id": key, "scores": value} for key, value in scores.items()])
        for part in manifest_parts(self.folder, "scores"):
            if self.manifest.records or part.name != "scores.jsonl":
                part.unlink()
        self.scores = scores

    def _read(self, journal: Manifest) -> dict[str, _Values]:
        """Return the scores of earlier runs by id; the journal's are newer than the manifest's."""
        records = {**self.manifest.records, **journal.records}
        return {item_id: record["scores"] for item_id, record in records.items() if "scores" in record}

    def _made_from(self, item: Item) -> _Values:
        """Return the record of an image's scores: the models and the marks of its files."""
        files = {"image_mark": item.image, "mask_mark": item.mask, "original_mark": self.originals[item.id]}
        return self.record | {key: file_mark(path) for key, path in files.items() if path is not None}


def _has_record(scores: Mapping[str, Any] | None, record: Mapping[str, Any]) -> bool:
    """Whether scores were made from these files with these models."""
    return scores is not None and all(scores.get(key) == value for key, value in record.items())


def _joined(values: Mapping[str, Any], original: Mapping[str, Any]) -> _Values:
    """Return the scores of an image together with the scores of its original."""
    return {
        **values,
        "original_miou": original["miou"],
        "original_pixel_accuracy_percent": original["pixel_accuracy_percent"],
        "original_hash": original["hash"],
        "relative_miou": relative_agreement(values["miou"], original["miou"]),
    }


@dataclasses.dataclass(frozen=True)
class Judged:
    """The verdict on a generated set.

    Attributes:
        folder: the folder of the set.
        scores: the scores of each image, by id.
        reasons: why each image is dropped, by id; empty for images that are kept.
        kept, dropped: number of images.
        written: number of images that this run scored.
        realism: the distance to the unlabelled images of --reference.
    """

    folder: Path
    scores: dict[str, _Values]
    reasons: dict[str, list[str]]
    kept: int
    dropped: int
    written: int
    realism: Realism | None = None


def find_set(settings: ScoringSettings, skipped: list[BadFile] | None = None) -> tuple[Path, list[Item]]:
    """Find a generated set.

    Returns:
        Its folder and its images.

    Raises:
        GenValError: the set is missing, or as `genval.datasets.find_items`.
    """
    if settings.folder:
        folder = resolve(settings.folder)
    else:
        above = resolve(settings.generated_dir) / generator_folder(settings.generator)
        folder = inside(above, str(settings.domain), "--domain")
    items = find_items(f"Cityscapes_{folder.name}", split="all", root=folder, skipped=skipped)
    check_ids(items)
    return folder, items[: settings.run.limit]


def judge_set(settings: ScoringSettings) -> Judged | None:
    """Score the images of a generated set, and write `gate.json`, which says which images are kept.

    Returns:
        The verdict in the first process; None in the others.

    Raises:
        GenValError: an input is missing or bad, or no image is left.
    """
    from genval.segmenters import load_segmenter

    bad: list[BadFile] | None = [] if settings.skip_bad else None
    folder, items = find_set(settings, bad)
    phrases = find_phrases(settings, folder) if settings.clip else None
    reference = find_reference(settings.reference) if settings.reference else None
    fabric, precision = launch_fabric(settings.device), settings.device.precision
    with same_outcome(fabric):
        segmenter = load_segmenter(settings.segmenter, fabric.device, precision, trust_code=settings.trust_code)
        clip = None
        if settings.clip:
            from genval.captions.clip import load_clip

            clip = load_clip(settings.clip, precision).to(fabric.device)
        if bad is not None:  # files may have vanished since they were found: loading a segmenter takes seconds
            items = openable(items, bad)
        stage = ScoringStage(folder, items, segmenter, fabric.device, precision, clip, phrases)
    report = run_stage(
        stage,
        items,
        fabric=fabric,
        batch_size=settings.batch_size,
        num_workers=settings.num_workers,
        overwrite=settings.run.overwrite,
        skip_bad=settings.skip_bad,
    )
    if not fabric.is_global_zero:
        return None
    faults = {one.item.id: [one.reason] for one in report.skipped}
    for file in bad or []:
        faults.setdefault(file.id, []).append(file.reason)
    known = {item.id for item in items}
    faults = {item_id: why for item_id, why in faults.items() if item_id in known}
    reasons = judge(stage.scores, settings.thresholds) | faults
    floor = dict([agreement_floor(stage.scores.values(), settings.thresholds)])
    head = {"thresholds": vars(settings.thresholds), "floor": floor, "scored_with": stage.record}
    kept, dropped = write_gate(folder, [item for item in items if item.id in reasons], reasons, head)
    title = f"{folder.name}: {kept} kept, {dropped} dropped"
    write_histograms(folder / "scores.png", stage.scores.values(), settings.thresholds, title)
    realism = None
    if clip is not None and reference is not None:
        scored = [item for item in items if item.id in stage.scores]
        originals = [original for item in scored if (original := stage.originals[item.id]) is not None]
        images = [item.image for item in scored]
        realism = measure_realism(images, originals, reference, str(settings.reference), clip, settings.num_workers)
        made = {"images_hash": files_hash(item.image for item in items), "reference_hash": files_hash(reference)}
        write_json(folder / REALISM, {**realism.to_json(), **made, "clip_hash": clip.hash})
    return Judged(folder, stage.scores, reasons, kept, dropped, report.written, realism)


def find_reference(folder: str) -> list[Path]:
    """Return the unlabelled images of `--reference`.

    Raises:
        GenValError: the folder is missing or has too few images.
    """
    return find_unlabelled(folder, "--reference", FEWEST_IMAGES)


def find_phrases(settings: ScoringSettings, folder: Path) -> Phrases:
    """Return the two texts that CLIP compares an image with.

    Raises:
        GenValError: the domain's phrase is unknown.
    """
    recorded = (record["domain_text"] for record in Manifest(folder).records.values() if "domain_text" in record)
    domain = settings.domain_phrase or next(recorded, path_dicts.DOMAINS.get(folder.name))
    if domain is None:
        raise GenValError(
            f"The phrase of {folder.name} is unknown: its manifest has no domain_text. Give --domain_phrase."
        )
    texts = (settings.clip_template.replace("{phrase}", text) for text in (domain, settings.clear_phrase))
    return Phrases(*texts)
