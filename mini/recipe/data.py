"""Captioned images and masks, read into memory: the training sets of the small models fit on a GPU."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import cv2
import numpy as np

from genval.datasets.reading import read_image, read_mask
from genval.runtime.errors import GenValError
from genval.runtime.files import read_jsonl
from genval.runtime.progress import progress_bar


class ListedImage(TypedDict):
    """A line of a list of images with captions."""

    image: str
    text: str
    conditioning_image: NotRequired[str]


@dataclass(frozen=True)
class CaptionedImages:
    """Captioned images of one size, optionally with masks.

    Attributes:
        images: (N, 3, H, W) uint8 RGB.
        label_ids: (N, H, W) uint8 Cityscapes labelIds, or None.
        texts: N captions.
    """

    images: np.ndarray
    label_ids: np.ndarray | None
    texts: list[str]


def load_captioned_images(
    data_dir: Path, jsonl: str, height: int, width: int, masks: bool = False, limit: int | None = None, workers: int = 8
) -> CaptionedImages:
    """Read the set that `data_dir/jsonl` lists, resized to `height` x `width` (images by area, masks by nearest).

    Each line is `{"image": path, "text": caption}`, with `"conditioning_image"` (the labelIds) where `masks` is set;
    paths start at `data_dir`.

    Raises:
        GenValError: the list is missing or empty, a field is missing in a line, or a file cannot be read.
    """
    records: list[dict[str, Any]] = (
        read_jsonl(data_dir / jsonl, ListedImage)[:limit] if (data_dir / jsonl).is_file() else []
    )
    if not records:
        raise GenValError(
            f"{data_dir / jsonl} is missing or lists no image. "
            f"Render the data first: python mini/render.py --output_dir {data_dir}"
        )
    images = np.empty((len(records), 3, height, width), np.uint8)
    label_ids = np.empty((len(records), height, width), np.uint8) if masks else None
    needed = ("image", "text", "conditioning_image") if masks else ("image", "text")

    def load(index: int) -> None:
        record = records[index]
        missing = [field for field in needed if field not in record]
        if missing:
            raise GenValError(f"{data_dir / jsonl}, line {index + 1} has no field {missing[0]!r}.")
        image = read_image(data_dir / record["image"])
        images[index] = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA).transpose(2, 0, 1)
        if label_ids is not None:
            mask = read_mask(data_dir / record["conditioning_image"])
            label_ids[index] = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)

    with ThreadPoolExecutor(workers) as pool, progress_bar(len(records), f"read {jsonl}") as bar:
        for _ in pool.map(load, range(len(records))):
            bar.update()
    return CaptionedImages(images, label_ids, [record["text"] for record in records])
