"""Curation of masks by a person: a contact sheet of each object, and a file that accepts or rejects masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from genval.datasets.ood_objects import CURATED, ObjectImage, mask_path, natural, read_curated
from genval.datasets.reading import read_image, read_mask
from genval.datasets.sheet import contact_sheet
from genval.runtime.errors import GenValError
from genval.runtime.files import write_json, write_png

_TILE = 160
_COLUMNS = 10
# Context around the box, as a fraction of its side.
_AROUND = 0.15
_KEPT, _DROPPED = (40, 170, 70), (210, 50, 40)
_OUTLINE = (255, 60, 200)


def update_choices(masks: Path, lines: Mapping[str, Mapping[str, Any]]) -> dict[str, bool]:
    """Write `curated.json`: `{object: {i: true or false}}` for each image with a mask.

    Existing entries are kept. A new mask is true, unless CLIP was used and finds the image more similar to a name of
    the scene than to the object's name.

    Args:
        masks: folder of the masks.
        lines: lines of the manifest by id.

    Returns:
        The choices by id.
    """
    before = read_curated(masks)
    choices = {
        image_id: before.get(image_id, not _is_doubtful(line))
        for image_id, line in lines.items()
        if line["mask"] is not None
    }
    by_object: dict[str, dict[str, bool]] = {}
    for image_id in sorted(choices, key=natural):
        folder, _, number = image_id.rpartition("/")
        by_object.setdefault(folder, {})[number] = choices[image_id]
    write_json(masks / CURATED, by_object)
    return choices


def write_sheets(
    masks: Path,
    images: Sequence[ObjectImage],
    lines: Mapping[str, Mapping[str, Any]],
    choices: Mapping[str, bool],
) -> list[Path]:
    """Write `{masks}/{object}/sheet.png`: all images of an object with the outlines of their masks.

    A green border means true in `curated.json`, a red one false.

    Returns:
        The paths of the sheets.

    Raises:
        GenValError: an image or a mask is missing or damaged, or the two differ in size.
    """
    sheets = []
    folders = dict.fromkeys(item.folder for item in images if item.id in choices)
    for folder in folders:
        members = [item for item in images if item.folder == folder and item.id in choices]
        tiles = [_tile(masks, item, lines[item.id], choices[item.id]) for item in members]
        columns = min(_COLUMNS, max(4, len(tiles)))
        starts = range(0, len(tiles), columns)
        rows = [(members[start].number, tiles[start : start + columns]) for start in starts]
        title = f"{members[0].object}: {len(members)} masks; green true, red false in {CURATED}"
        path = masks / folder / "sheet.png"
        write_png(path, contact_sheet(rows, [(title, columns)], _TILE))
        sheets.append(path)
    return sheets


def _tile(masks: Path, item: ObjectImage, line: Mapping[str, Any], keep: bool) -> np.ndarray:
    import cv2

    image, mask = read_image(item.image), read_mask(mask_path(masks, item.id))
    if image.shape[:2] != mask.shape:
        raise GenValError(
            f"{item.image} has {image.shape[1]}x{image.shape[0]} pixels and its mask in {masks} "
            f"{mask.shape[1]}x{mask.shape[0]}. Make the masks again: python ood_objects/get_masks.py --overwrite"
        )
    top, left, side = (int(line["box"][name]) for name in ("top", "left", "side"))
    around = round(_AROUND * side)
    rows = slice(max(0, top - around), top + side + around)
    columns = slice(max(0, left - around), left + side + around)
    seen, shape = np.ascontiguousarray(image[rows, columns]), np.ascontiguousarray(mask[rows, columns])
    scale = _TILE / max(seen.shape[:2])
    width, height = (max(1, round(scale * extent)) for extent in (seen.shape[1], seen.shape[0]))
    tile = np.zeros((_TILE, _TILE, 3), dtype=np.uint8)
    tile[:height, :width] = cv2.resize(seen, (width, height), interpolation=cv2.INTER_AREA)
    shape = cv2.resize(shape, (width, height), interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(shape, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(tile, contours, -1, _OUTLINE, 1)
    colour = _KEPT if keep else _DROPPED
    cv2.rectangle(tile, (0, 0), (_TILE - 1, _TILE - 1), colour, 4)
    text = f"{item.number}  {line['detection_score']:.2f}"
    cv2.rectangle(tile, (0, 0), (8 * len(text) + 8, 18), colour, -1)
    cv2.putText(tile, text, (5, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (255, 255, 255), 1, cv2.LINE_AA)
    return tile


def _is_doubtful(line: Mapping[str, Any]) -> bool:
    similarity = line.get("similarity")
    return similarity is not None and similarity["scene"] > similarity["object"]
