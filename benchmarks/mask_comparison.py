"""Compare detectors and segmenters of objects on streets whose true masks are known: those of the mini world.

Reads:  DATA_DIR/training/objects.jsonl and its images, as mini/render.py --training_objects writes them
Writes: --output, JSON; prints a Markdown table

    python mini/render.py --num_train 0 --num_val 0 --domains clear --training_objects 400
    python benchmarks/mask_comparison.py --models checkpoints/mini/grounding-dino+checkpoints/mini/sam

A model is DETECTOR+SAM as in ood_objects/get_masks.py, `text:SAM_3` as with --text_masks, or `box:SAM` with the true
box of each object. `masked` is the fraction of objects that get a mask, `IoU of masked` the mean IoU of these masks
with the true ones, `IoU` the mean with 0 for objects without a mask, and `masked empty` the fraction of the same
streets without the object that get a mask. `images/s` is the speed of detecting and segmenting without reading files,
after one batch to warm up.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from genval.runtime import cli
from genval.runtime.errors import GenValError
from genval.runtime.flags import flag
from genval.runtime.paths import resolve
from genval.runtime.settings import comma_list, positive_int

if TYPE_CHECKING:
    import torch

    from mini.recipe.object_crops import MeasuredCrop


@dataclass(frozen=True, kw_only=True)
class ComparisonSettings:
    """Settings of benchmarks/mask_comparison.py."""

    SCRIPT: ClassVar[str] = "benchmarks/mask_comparison"

    models: tuple[str, ...] = flag(
        ("checkpoints/mini/grounding-dino+checkpoints/mini/sam", "box:checkpoints/mini/sam"),
        "DETECTOR+SAM, text:SAM_3 or box:SAM, separated by commas",
        type=comma_list,
    )
    data_dir: str = flag("datasets/mini", "")
    limit: int = flag(320, "number of objects, the first ones of the list", type=positive_int)
    box_threshold: float = flag(0.35, "minimum score of a detection, 0 to 1")
    text_threshold: float = flag(0.25, "minimum probability of a token of the object's name, 0 to 1")
    nms_threshold: float = flag(0.8, "maximum overlap of two detections of one object, 0 to 1")
    batch_size: int = flag(8, "images per forward pass", type=positive_int)
    precision: str = flag("32-true", "one of Lightning's")
    accelerator: str = flag("cpu", "")
    output: str = flag("results/mask_comparison.json", "")
    preset: str | None = None


def main(settings: ComparisonSettings) -> None:
    import torch

    from genval.runtime.files import write_json
    from genval.runtime.tables import markdown_table
    from mini.recipe.object_crops import load_object_images, measured_crops

    for model in settings.models:
        parse_model(model)
    device = torch.device(settings.accelerator)
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    crops = measured_crops(load_object_images(resolve(settings.data_dir), settings.limit))
    rows: list[dict[str, Any]] = []
    for model in settings.models:
        masker = Masker(model, settings, device)
        masker(crops[: settings.batch_size], empty=False)
        start = time.perf_counter()
        masks = masker(crops, empty=False)
        seconds = time.perf_counter() - start
        rows.append(
            {
                "models": model,
                **summarise(masks, [crop.mask for crop in crops]),
                # With the true boxes a mask is expected everywhere.
                "masked empty": None if model.startswith("box:") else share(masker(crops, empty=True)),
                "images/s": len(crops) / seconds,
            }
        )
        print(rows[-1], flush=True)
        made = {"device": machine, "torch": torch.__version__, "objects": len(crops)}
        write_json(resolve(settings.output), {**made, "rows": rows})
    print(markdown_table(list(rows[0]), [list(row.values()) for row in rows], digits=3))
    print(f"wrote {settings.output}")


def parse_model(text: str) -> tuple[str, str]:
    """Parse a model: `box`, `text` or the detector; and the model that segments."""
    kind, colon, name = text.partition(":")
    if colon and kind in ("box", "text") and name:
        return kind, name
    detector, _, sam = text.partition("+")
    if not detector or not sam:
        raise GenValError(f"--models: expected DETECTOR+SAM, text:SAM_3 or box:SAM; found {text!r}.")
    return detector, sam


class Masker:
    """Segments the object of each crop.

    Args:
        model: as of `parse_model`.
        settings: thresholds, precision and batch size.
        device: where the models go.
    """

    def __init__(self, model: str, settings: ComparisonSettings, device: torch.device) -> None:
        from genval.grounding.detector import load_detector
        from genval.grounding.outliner import load_outliner
        from genval.grounding.text_masks import load_text_masker

        kind, name = parse_model(model)
        self._settings = settings
        self._detector: Any = None
        self._outliner: Any = None
        if kind == "text":
            self._detector = load_text_masker(name, settings.precision).to(device)
            return
        self._outliner = load_outliner(name, settings.precision).to(device)
        if kind != "box":
            self._detector = load_detector(kind, precision=settings.precision).to(device)

    def __call__(self, crops: Sequence[MeasuredCrop], empty: bool) -> list[np.ndarray | None]:
        """Return the mask of each crop's object, bool (s, s), or None; with `empty`, of the crops without it."""
        masks: list[np.ndarray | None] = [None] * len(crops)
        size = self._settings.batch_size
        for name in sorted({crop.name for crop in crops}):
            mine = [index for index, crop in enumerate(crops) if crop.name == name]
            for start in range(0, len(mine), size):
                batch = mine[start : start + size]
                images = [crops[index].empty if empty else crops[index].image for index in batch]
                boxes = [crops[index].box for index in batch]
                for index, mask in zip(batch, self._segment(images, name, boxes), strict=True):
                    masks[index] = mask if mask is not None and mask.any() else None
        return masks

    def _segment(self, images: list[np.ndarray], name: str, true_boxes: list[Any]) -> list[np.ndarray | None]:
        from genval.grounding.masks import choose

        sizes = [image.shape[:2] for image in images]
        masks: list[np.ndarray | None] = [None] * len(images)
        boxes = dict(enumerate(true_boxes))
        if self._detector is not None:
            limits = (self._settings.box_threshold, self._settings.text_threshold, self._settings.nms_threshold)
            found = self._detector.detect([self._detector.prepare(image) for image in images], sizes, name, *limits)
            chosen = {
                index: detections[number]
                for index, detections in enumerate(found)
                if (number := choose(detections)) is not None
            }
            if self._outliner is None:
                return [chosen[index].mask if index in chosen else None for index in range(len(images))]
            boxes = {index: detection.box for index, detection in chosen.items()}
        if boxes:
            outlined = self._outliner.outline(
                [self._outliner.prepare(images[index]) for index in boxes],
                [sizes[index] for index in boxes],
                list(boxes.values()),
            )
            for index, (mask, _) in zip(boxes, outlined, strict=True):
                masks[index] = mask
        return masks


def summarise(masks: Sequence[np.ndarray | None], truths: Sequence[np.ndarray]) -> dict[str, float | None]:
    """Return the table's metrics from masks, bool arrays or None, and the true ones."""
    overlaps = [
        float((mask & truth).sum() / (mask | truth).sum())
        for mask, truth in zip(masks, truths, strict=True)
        if mask is not None
    ]
    return {
        "masked": share(masks),
        "IoU of masked": float(np.mean(overlaps)) if overlaps else None,
        "IoU": float(np.sum(overlaps) / len(masks)),
    }


def share(masks: Sequence[np.ndarray | None]) -> float:
    """Return the fraction of images with a mask."""
    return sum(mask is not None for mask in masks) / len(masks)


if __name__ == "__main__":
    cli.run(main, ComparisonSettings, __doc__)
