"""Small copies of Cityscapes, as repositories of image translation hold them, and their trainIds.

A pair is one JPEG file: the photo on the left, and the mask in the colours of Cityscapes on the right, as in the data
of pix2pix (Isola et al., CVPR 2017). The colours of the classes without a trainId are those of
`cityscapesscripts.helpers.labels`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from genval.datasets.labels import CITYSCAPES, CLASSES, IGNORE, PALETTE, TRAIN_IDS
from genval.datasets.reading import read_image, read_mask
from genval.runtime.errors import GenValError

MASK_SUFFIX = "_labelTrainIds"
# Ground, parking, rail track, guard rail, bridge, tunnel, dynamic, static, caravan and trailer.
_VOID_COLOURS = (
    (81, 0, 81),
    (250, 170, 160),
    (230, 150, 140),
    (180, 165, 180),
    (150, 100, 100),
    (150, 120, 90),
    (111, 74, 0),
    (0, 0, 0),
    (0, 0, 90),
    (0, 0, 110),
)
# Largest distance in RGB of a pixel from the colour of its class. JPEG changes colours inside a class by less; pixels
# at an edge, which mix two colours, are mostly further away.
_FARTHEST = 30


def nearest_train_ids(colours: np.ndarray) -> np.ndarray:
    """Recover the trainIds of a colour mask that was compressed as JPEG.

    Args:
        colours: RGB uint8 (H, W, 3).

    Returns:
        uint8 (H, W): the class of the nearest colour; `IGNORE` where that is the colour of a class without a trainId,
        or too far away.

    >>> nearest_train_ids(np.array([[[130, 60, 125], [0, 0, 0], [0, 255, 255]]], np.uint8)).tolist()
    [[0, 255, 255]]
    """
    palette = np.concatenate([PALETTE[: len(CLASSES)], np.array(_VOID_COLOURS, np.uint8)]).astype(np.int32)
    # One colour at a time: all distances at once would take 29 times the memory.
    nearest = np.full(colours.shape[:2], IGNORE, np.uint8)
    smallest = np.full(colours.shape[:2], _FARTHEST**2, np.int32)
    pixels = colours.astype(np.int32)
    for index, colour in enumerate(palette):
        distance = ((pixels - colour) ** 2).sum(-1)
        nearer = distance < smallest
        nearest[nearer] = index if index < len(CLASSES) else IGNORE
        smallest[nearer] = distance[nearer]
    return nearest


def find_files(folder: Path) -> list[Path]:
    """Return the images of a folder, sorted: pairs, or images with a mask of trainIds, `{id}_labelTrainIds.png`.

    Raises:
        GenValError: there is none, or two have the same name without the suffix.
    """
    found = sorted(
        path
        for path in folder.glob("[!.]*")
        if path.suffix.lower() in (".jpg", ".jpeg", ".png") and not path.stem.endswith(MASK_SUFFIX)
    )
    first = {path.stem: path for path in reversed(found)}
    if doubled := [path for path in found if first[path.stem] != path]:
        raise GenValError(f"Two files for {doubled[0].stem}: {first[doubled[0].stem]} and {doubled[0]}. Remove one.")
    if not found:
        raise GenValError(f"No images in {folder}. Give the folder that holds the splits with --data_dir.")
    return found


def read_small(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read one file of `find_files`.

    Returns:
        The photo, RGB uint8 (H, W, 3), and its labelIds, uint8 (H, W); 0 (unlabelled) for pixels without a class.

    Raises:
        GenValError: a file is damaged; a pair is not two halves, of which the right one has the colours of Cityscapes;
            or the sizes of an image and its mask differ.
    """
    image = read_image(path)
    mask_path = path.with_name(f"{path.stem}{MASK_SUFFIX}.png")
    if mask_path.exists():
        train_ids = TRAIN_IDS.to_train_ids(read_mask(mask_path, TRAIN_IDS.table), str(mask_path))
        if train_ids.shape != image.shape[:2]:
            raise GenValError(f"{path} and {mask_path} differ in size: {image.shape[:2]} and {train_ids.shape}.")
    else:
        half = image.shape[1] // 2
        image, colours = image[:, :half], image[:, half:]
        train_ids = nearest_train_ids(colours)
        if image.shape != colours.shape or np.count_nonzero(train_ids == IGNORE) > 0.9 * train_ids.size:
            raise GenValError(
                f"{path} is not a pair of a photo on the left and a mask in the colours of Cityscapes on the right, "
                f"and there is no {mask_path.name} beside it."
            )
    label_ids = np.zeros(256, np.uint8)
    for label_id, train_id in enumerate(CITYSCAPES.table.tolist()):
        if train_id != IGNORE:
            label_ids[train_id] = label_id
    return image, label_ids[train_ids]
