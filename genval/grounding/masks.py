"""The resumable stage that masks inpainted objects: it detects them by name and segments them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from genval.artifacts.fingerprint import file_mark
from genval.artifacts.stage import ManifestStage, StageReport, run_stage
from genval.captions.clip import find_clip, load_clip
from genval.datasets.boxes import Box
from genval.datasets.ood_objects import ObjectImage, absence_path, find_object_images, mask_path, read_box
from genval.datasets.reading import read_image
from genval.grounding.curation import update_choices, write_sheets
from genval.grounding.detections import Detection, ObjectDetector
from genval.grounding.detector import DETECTORS, load_detector
from genval.grounding.loading import check_model
from genval.grounding.outliner import OUTLINERS, Outliner, load_outliner
from genval.grounding.settings import MaskSettings
from genval.grounding.similarity import Similarity
from genval.grounding.text_masks import TEXT_MASKERS, load_text_masker
from genval.runtime.devices import launch_fabric
from genval.runtime.files import write_bytes, write_png
from genval.runtime.flags import flatten
from genval.runtime.paths import resolve
from genval.runtime.settings import DeviceSettings

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_DECIMALS = 6


@dataclass(frozen=True)
class _Loaded:
    """The crop of an image around its box, prepared for the two models."""

    image: ObjectImage
    mark: str
    frame: tuple[int, int]
    box: Box
    top: int
    left: int
    crop: np.ndarray
    for_detector: Any
    for_outliner: Any


_Mask = tuple[dict[str, Any], "np.ndarray | None"]


class MaskStage(ManifestStage[ObjectImage, _Loaded, _Mask]):
    """Detects and segments objects, with one line per image in `{folder}/manifest.jsonl`.

    The mask is that of the highest-scoring detection that names the object: a token of the name is above the text
    threshold. The line holds all detections. An image without such a detection gets a text file with the reason; any
    other failure is an error. A batch holds images of one object. Lines of another record are made again.

    Args:
        folder: of the masks.
        detector: on its device.
        outliner: on its device; None if the detections have masks.
        settings: thresholds and margin.
        record: the settings that define the masks, as JSON values.
        similarity: compares crops with an object's name; its result is the line's `similarity`.
    """

    title = "masks"

    def __init__(
        self,
        folder: Path,
        detector: ObjectDetector,
        outliner: Outliner | None,
        settings: MaskSettings,
        record: Mapping[str, Any],
        similarity: Callable[[Sequence[np.ndarray], str], list[dict[str, Any]]] | None = None,
    ) -> None:
        super().__init__(folder, record, {**flatten(settings), **record}, "ood_objects/get_masks.py")
        self._detector, self._outliner = detector, outliner
        self._settings = settings
        self._similarity = similarity

    def partition(self, items: Sequence[ObjectImage], batch_size: int) -> list[list[Sequence[ObjectImage]]]:
        units: list[list[Sequence[ObjectImage]]] = []
        for _, group in itertools.groupby(items, key=lambda item: item.folder):
            units += super().partition(list(group), batch_size)
        return units

    def files(self, item: ObjectImage) -> dict[str, str]:
        line = self.manifest.records.get(item.id, {})
        path = absence_path if line.get("mask") is None else mask_path
        return {"mask": path(Path(), item.id).as_posix()}

    def is_done(self, item: ObjectImage) -> bool:
        return super().is_done(item) and self.manifest.records[item.id]["source"] == file_mark(item.image)

    def load(self, item: ObjectImage) -> _Loaded:
        frame = read_image(item.image)
        height, width = frame.shape[:2]
        box = read_box(item, height, width)
        around = round(self._settings.margin * box.side)
        top, left = max(0, box.top - around), max(0, box.left - around)
        crop = frame[top : box.top + box.side + around, left : box.left + box.side + around].copy()
        mark = file_mark(item.image)
        inputs = (self._detector.prepare(crop), self._outliner.prepare(crop) if self._outliner else None)
        return _Loaded(item, mark, (height, width), box, top, left, crop, *inputs)

    def compute(self, items: Sequence[ObjectImage], loaded: Sequence[_Loaded]) -> list[_Mask]:
        """Return each image's line and its mask, uint8 (H, W) of the frame; None where nothing was detected."""
        batch, name = loaded, items[0].object
        settings = self._settings
        found = self._detector.detect(
            [one.for_detector for one in batch],
            [one.crop.shape[:2] for one in batch],
            name,
            settings.box_threshold,
            settings.text_threshold,
            settings.nms_threshold,
        )
        chosen = [choose(detections) for detections in found]
        seen = [index for index, choice in enumerate(chosen) if choice is not None]
        outlines: dict[int, tuple[np.ndarray, float]] = {}
        if self._outliner is None:
            for index in seen:
                detection = found[index][chosen[index] or 0]
                assert detection.mask is not None
                outlines[index] = (detection.mask, detection.score)
        elif seen:
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
            "id": one.image.id,
            "object": one.image.object,
            "mask": None,
            "reason": None,
            "source": one.mark,
            "frame": list(one.frame),
            "box": {"top": one.box.top, "left": one.box.left, "side": one.box.side},
            "detections": [_in_frame(detection, one) for detection in detections],
            "chosen": chosen,
        }
        if chosen is None or outline is None or not outline[0].any():
            line["reason"] = _reason(one.image.object, detections, chosen, self._settings)
            return {**line, **self.record}, None
        mask, estimate = outline
        frame = np.zeros(one.frame, dtype=np.uint8)
        frame[one.top : one.top + mask.shape[0], one.left : one.left + mask.shape[1]][mask] = 255
        line["mask"] = mask_path(Path(), one.image.id).as_posix()
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

    def write(self, item: ObjectImage, loaded: _Loaded, output: _Mask) -> dict[str, Any]:
        line, mask = output
        masked, absent = mask_path(self.folder, item.id), absence_path(self.folder, item.id)
        if mask is None:
            write_bytes(absent, f"{line['reason']}\n".encode())
            masked.unlink(missing_ok=True)
        else:
            write_png(masked, mask)
            absent.unlink(missing_ok=True)
        return line


def choose(detections: Sequence[Detection]) -> int | None:
    """Return the index of the highest-scoring detection that names the object; None where none does."""
    named = [index for index, detection in enumerate(detections) if detection.phrase]
    return max(named, key=lambda index: detections[index].score, default=None)


def quality(mask: np.ndarray, box: Box, detection: Sequence[float]) -> dict[str, float]:
    """Measure how a mask lies in its frame.

    Args:
        mask: uint8 (H, W), 255 on the object, not empty.
        box: where the object was inpainted.
        detection: left, top, right, bottom of the detection, in pixels of the frame.

    Returns:
        `mask_area_ratio`: the mask's pixels over the box's; `mask_inside_box` and `mask_inside_detection`: the fraction
        of the mask's pixels that lie there, 0..1.
    """
    area = np.count_nonzero(mask)
    left, top, right, bottom = detection
    inside_box = mask[box.rows, box.columns]
    inside_detection = mask[int(top) : int(np.ceil(bottom)), int(left) : int(np.ceil(right))]
    return {
        "mask_area_ratio": round(area / box.side**2, _DECIMALS),
        "mask_inside_box": round(np.count_nonzero(inside_box) / area, _DECIMALS),
        "mask_inside_detection": round(np.count_nonzero(inside_detection) / area, _DECIMALS),
    }


def _in_frame(detection: Detection, one: _Loaded) -> dict[str, Any]:
    left, top, right, bottom = detection.box
    corners = (left + one.left, top + one.top, right + one.left, bottom + one.top)
    return {
        "box": [round(corner, 2) for corner in corners],
        "score": round(detection.score, _DECIMALS),
        "phrase": detection.phrase,
    }


def _reason(name: str, detections: Sequence[Detection], chosen: int | None, settings: MaskSettings) -> str:
    if not detections:
        return f"No detection of {name!r} is above the box threshold {settings.box_threshold}."
    if chosen is None:
        return (
            f"None of {len(detections)} detections names {name!r} above the text threshold {settings.text_threshold}."
        )
    return f"{name!r} is detected, but Segment Anything segments nothing in its box."


def _extent(mask: np.ndarray) -> tuple[slice, slice]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


@dataclass(frozen=True)
class Masked:
    """What a run of `mask_objects` did.

    Attributes:
        folder: of the masks.
        masks: number of masks.
        absent: images in which the object was not detected.
        written: images that this run processed.
        sheets: contact sheets that were written.
    """

    folder: Path
    masks: int
    absent: int
    written: int
    sheets: list[Path]


def find_images(settings: MaskSettings) -> list[ObjectImage]:
    """Find the images to mask.

    Raises:
        GenValError: an image or its box is missing.
    """
    folders = resolve(settings.images_dir), resolve(settings.positions_dir)
    return find_object_images(*folders, settings.objects)[: settings.run.limit]


def check_models(settings: MaskSettings) -> None:
    """Check that the models exist, without loading them.

    Raises:
        GenValError: one is missing or of another type.
    """
    if settings.text_masks:
        check_model(settings.sam, TEXT_MASKERS)
    else:
        check_model(settings.detector, DETECTORS)
        check_model(settings.sam, OUTLINERS)
    if settings.clip != "none":
        find_clip(settings.clip)


def mask_objects(
    settings: MaskSettings,
    images: Sequence[ObjectImage] | None = None,
    start: Callable[[DeviceSettings], Fabric] = launch_fabric,
) -> Masked | None:
    """Detect and segment inpainted objects; resume where an earlier run stopped.

    Args:
        settings: of the stage.
        images: of `find_images`, if they were already found.
        start: starts the processes once the inputs are checked.

    Returns:
        A summary on the first process; None on the others.

    Raises:
        GenValError: an input is missing or bad.
    """
    images = find_images(settings) if images is None else images
    fabric = start(settings.device)
    precision = settings.device.precision
    detector: ObjectDetector
    if settings.text_masks:
        detector, outliner = load_text_masker(settings.sam, precision), None
    else:
        detector = load_detector(settings.detector, settings.tokenizer, precision)
        outliner = load_outliner(settings.sam, precision).to(fabric.device)
    detector.to(fabric.device)
    similarity = None if settings.clip == "none" else Similarity(load_clip(settings.clip).to(fabric.device))
    record = {
        "detector_hash": detector.hash,
        "sam_hash": outliner.hash if outliner else None,
        "clip_hash": similarity.hash if similarity else None,
        "box_threshold": settings.box_threshold,
        "text_threshold": settings.text_threshold,
        "nms_threshold": settings.nms_threshold,
        "margin": settings.margin,
        "precision": precision,
    }
    stage = MaskStage(resolve(settings.output_dir), detector, outliner, settings, record, similarity)
    report: StageReport[ObjectImage] = run_stage(
        stage,
        images,
        fabric=fabric,
        batch_size=settings.batch_size,
        num_workers=settings.num_workers,
        overwrite=settings.run.overwrite,
    )
    if not fabric.is_global_zero:
        return None
    records = stage.manifest.records
    lines = {image.id: records[image.id] for image in images}
    masks = sum(line["mask"] is not None for line in lines.values())
    sheets = write_sheets(stage.folder, images, lines, update_choices(stage.folder, records)) if settings.curate else []
    return Masked(stage.folder, masks, len(lines) - masks, report.written, sheets)
