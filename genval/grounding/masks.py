"""Masks of many objects: found and outlined in fixed batches, written one by one with a line each."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genval.artifacts.fingerprint import file_mark
from genval.artifacts.manifest import Manifest
from genval.datasets.ood_objects import Box, ObjectPicture, absence_path, mask_path, read_box
from genval.grounding.detector import Detection, Detector
from genval.grounding.outliner import Outliner
from genval.runtime.background import BackgroundWriter
from genval.runtime.errors import GenValError
from genval.runtime.files import read_image, write_bytes, write_png
from genval.runtime.progress import progress_bar

_DECIMALS = 6


@dataclass(frozen=True)
class Thresholds:
    """What counts as a detection; the defaults are the published ones.

    Attributes:
        box: a detection's score is above it, 0..1.
        text: a token of the name counts as meant where its probability is above it, 0..1.
        nms: of two boxes that overlap by more than this, the surer is kept, 0..1.
    """

    box: float = 0.25
    text: float = 0.25
    nms: float = 0.8

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value <= 1:
                raise GenValError(f"The {name} threshold is a number from 0 to 1, found {value}.")


@dataclass(frozen=True)
class _Loaded:
    """A picture's part around its box, as the two models take it."""

    picture: ObjectPicture
    mark: str
    frame: tuple[int, int]
    box: Box
    top: int
    left: int
    crop: np.ndarray
    for_detector: np.ndarray
    for_outliner: np.ndarray


class MaskRun:
    """Finds and outlines objects, and appends each picture's line to `{folder}/manifest.jsonl`.

    The mask is that of the surest detection which names the object (a token of the name above the text threshold);
    all detections are in the line. A picture without one gets a text that says why, and nothing else does: any other
    failure is an error. Batches are a fixed partition of an object's pictures; a batch of which anything is missing is
    computed as a whole, and only what is missing is kept: a resumed run gives the same masks as one that was not
    stopped.

    Args:
        folder: of the masks.
        detector: on its device.
        outliner: on its device.
        thresholds: what counts as a detection.
        record: what every line says beside its own values; lines that say otherwise are made again.
        margin: context that the models see around a box, as a share of its side; the published code shows none.
        similarity: of crops and an object's name; what it gives is the line's `similarity`.
    """

    def __init__(
        self,
        folder: Path,
        detector: Detector,
        outliner: Outliner,
        thresholds: Thresholds,
        record: Mapping[str, Any],
        margin: float = 0.0,
        similarity: Callable[[Sequence[np.ndarray], str], list[dict[str, Any]]] | None = None,
    ) -> None:
        if margin < 0:
            raise GenValError(f"The margin is a share of the box's side, 0 or more; found {margin}.")
        self.folder = folder
        self.record = dict(record)
        self._detector, self._outliner = detector, outliner
        self._thresholds = thresholds
        self._margin = margin
        self._similarity = similarity

    def make(
        self,
        pictures: Sequence[ObjectPicture],
        batch_size: int,
        workers: int = 4,
        rank: int = 0,
        world_size: int = 1,
        overwrite: bool = False,
    ) -> int:
        """Outline what is missing; process `rank` takes every `world_size`-th batch.

        Returns:
            The number of pictures done by this process.

        Raises:
            GenValError: a picture or its box is damaged, a model fails, or a file cannot be written.
        """
        manifest = Manifest(self.folder, rank)
        batches = _batches(pictures, batch_size)[rank::world_size]
        done = set() if overwrite else {item.id for batch in batches for item in batch if self._is_done(manifest, item)}
        todo = [batch for batch in batches if not all(picture.id in done for picture in batch)]
        total = sum(map(len, batches))
        bar = progress_bar(total, "masks", initial=total - sum(map(len, todo)), rank=rank)
        made = 0
        with bar, ThreadPoolExecutor(workers) as pool, BackgroundWriter(threads=1) as writer:
            ahead: deque[list[Future[_Loaded]]] = deque(
                [pool.submit(self._load, picture) for picture in batch] for batch in todo[:2]
            )
            for index, batch in enumerate(todo):
                loaded = [job.result() for job in ahead.popleft()]
                ahead += [[pool.submit(self._load, one) for one in later] for later in todo[index + 2 : index + 3]]
                results = [result for result in self._compute(loaded) if result[0]["id"] not in done]
                writer.submit(self._write, manifest, results)
                made += len(results)
                bar.update(len(batch))
        return made

    def _is_done(self, manifest: Manifest, picture: ObjectPicture) -> bool:
        line = manifest.records.get(picture.id)
        if line is None or any(line.get(name) != value for name, value in self.record.items()):
            return False
        there = (absence_path if line["mask"] is None else mask_path)(self.folder, picture.id)
        return there.exists() and line["source"] == file_mark(picture.image)

    def _load(self, picture: ObjectPicture) -> _Loaded:
        frame = read_image(picture.image)
        height, width = frame.shape[:2]
        box = read_box(picture, height, width)
        around = round(self._margin * box.side)
        top, left = max(0, box.top - around), max(0, box.left - around)
        crop = frame[top : box.top + box.side + around, left : box.left + box.side + around].copy()
        mark = file_mark(picture.image)
        inputs = (self._detector.prepare(crop), self._outliner.prepare(crop))
        return _Loaded(picture, mark, (height, width), box, top, left, crop, *inputs)

    def _compute(self, batch: Sequence[_Loaded]) -> list[tuple[dict[str, Any], np.ndarray | None]]:
        """Of each picture its line and its mask, uint8 (H, W) of the frame; None where nothing was found."""
        name = batch[0].picture.object
        limits = self._thresholds
        found = self._detector.detect(
            [one.for_detector for one in batch],
            [one.crop.shape[:2] for one in batch],
            name,
            limits.box,
            limits.text,
            limits.nms,
        )
        chosen = [choose(detections) for detections in found]
        seen = [index for index, choice in enumerate(chosen) if choice is not None]
        outlines: dict[int, tuple[np.ndarray, float]] = {}
        if seen:
            outlined = self._outliner.outline(
                [batch[index].for_outliner for index in seen],
                [batch[index].crop.shape[:2] for index in seen],
                [found[index][chosen[index] or 0].box for index in seen],
            )
            outlines = dict(zip(seen, outlined, strict=True))
        similar: dict[int, dict[str, Any]] = {}
        shown = [index for index, (mask, _) in outlines.items() if mask.any()]
        if self._similarity is not None and shown:
            tight = [batch[index].crop[_extent(outlines[index][0])] for index in shown]
            similar = dict(zip(shown, self._similarity(tight, name), strict=True))
        return [
            self._describe(one, found[index], chosen[index], outlines.get(index), similar.get(index))
            for index, one in enumerate(batch)
        ]

    def _describe(
        self,
        one: _Loaded,
        detections: Sequence[Detection],
        chosen: int | None,
        outline: tuple[np.ndarray, float] | None,
        similarity: dict[str, Any] | None,
    ) -> tuple[dict[str, Any], np.ndarray | None]:
        line: dict[str, Any] = {
            "id": one.picture.id,
            "object": one.picture.object,
            "mask": None,
            "reason": None,
            "source": one.mark,
            "frame": list(one.frame),
            "box": {"top": one.box.top, "left": one.box.left, "side": one.box.side},
            "detections": [_in_frame(detection, one) for detection in detections],
            "chosen": chosen,
        }
        if chosen is None or outline is None or not outline[0].any():
            line["reason"] = _reason(one.picture.object, detections, chosen, self._thresholds)
            return {**line, **self.record}, None
        mask, estimate = outline
        frame = np.zeros(one.frame, dtype=np.uint8)
        frame[one.top : one.top + mask.shape[0], one.left : one.left + mask.shape[1]][mask] = 255
        line["mask"] = mask_path(Path(), one.picture.id).as_posix()
        line |= {
            "detection_score": round(detections[chosen].score, _DECIMALS),
            "mask_score": round(estimate, _DECIMALS),
            **quality(frame, one.box, line["detections"][chosen]["box"]),
            "similarity": similarity
            and {
                key: round(value, _DECIMALS) if isinstance(value, float) else value for key, value in similarity.items()
            },
        }
        return {**line, **self.record}, frame

    def _write(self, manifest: Manifest, results: Sequence[tuple[dict[str, Any], np.ndarray | None]]) -> None:
        for line, mask in results:
            here, there = mask_path(self.folder, line["id"]), absence_path(self.folder, line["id"])
            if mask is None:
                here, there = there, here
                write_bytes(here, f"{line['reason']}\n".encode())
            else:
                write_png(here, mask)
            there.unlink(missing_ok=True)
        manifest.append([line for line, _ in results])


def choose(detections: Sequence[Detection]) -> int | None:
    """The detection whose mask is taken: the surest of those that name the object; None where none does."""
    named = [index for index, detection in enumerate(detections) if detection.phrase]
    return max(named, key=lambda index: detections[index].score, default=None)


def quality(mask: np.ndarray, box: Box, detection: Sequence[float]) -> dict[str, float]:
    """How a mask lies in its frame.

    Args:
        mask: uint8 (H, W), 255 on the object, not empty.
        box: where the object was put.
        detection: left, top, right, bottom of the detection, in pixels of the frame.

    Returns:
        `mask_area_ratio`: the mask's pixels over the box's; `mask_inside_box` and `mask_inside_detection`: the share
        of the mask's pixels that lie there, 0..1.
    """
    area = np.count_nonzero(mask)
    left, top, right, bottom = detection
    inside_box = mask[box.top : box.top + box.side, box.left : box.left + box.side]
    inside_detection = mask[int(top) : int(np.ceil(bottom)), int(left) : int(np.ceil(right))]
    return {
        "mask_area_ratio": round(area / box.side**2, _DECIMALS),
        "mask_inside_box": round(np.count_nonzero(inside_box) / area, _DECIMALS),
        "mask_inside_detection": round(np.count_nonzero(inside_detection) / area, _DECIMALS),
    }


def _batches(pictures: Sequence[ObjectPicture], batch_size: int) -> list[list[ObjectPicture]]:
    """At most `batch_size` pictures each, none of two objects: a batch is asked one question."""
    batches = []
    for _, group in itertools.groupby(pictures, key=lambda picture: picture.folder):
        members = list(group)
        batches += [members[start : start + batch_size] for start in range(0, len(members), batch_size)]
    return batches


def _in_frame(detection: Detection, one: _Loaded) -> dict[str, Any]:
    left, top, right, bottom = detection.box
    corners = (left + one.left, top + one.top, right + one.left, bottom + one.top)
    return {
        "box": [round(corner, 2) for corner in corners],
        "score": round(detection.score, _DECIMALS),
        "phrase": detection.phrase,
    }


def _reason(name: str, detections: Sequence[Detection], chosen: int | None, thresholds: Thresholds) -> str:
    if not detections:
        return f"No detection of {name!r} is above the box threshold {thresholds.box}."
    if chosen is None:
        return f"None of {len(detections)} detections names {name!r} above the text threshold {thresholds.text}."
    return f"{name!r} is detected, but Segment Anything outlines nothing in its box."


def _extent(mask: np.ndarray) -> tuple[slice, slice]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
