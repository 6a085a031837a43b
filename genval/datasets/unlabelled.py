"""Folders of images without labels."""

from __future__ import annotations

import re
from pathlib import Path

from genval.datasets.items import IMAGE_EXTENSIONS
from genval.runtime.errors import GenValError
from genval.runtime.paths import paths_below, resolve

# The ends of the names of label images, which some data sets keep in one folder with the images.
_LABELS = re.compile(r"_(label\w*|mask|color|instance\w*|gt\w*)$", re.IGNORECASE)


def find_unlabelled(folder: str | Path, flag: str, fewest: int = 1) -> list[Path]:
    """Return the images in a folder and in the folders below it, sorted by path. Label images are left out.

    Args:
        folder: relative to the repository's root, or absolute.
        flag: the script's flag, for errors.
        fewest: the number of images that are needed.

    Raises:
        GenValError: the folder is missing or has too few images.
    """
    root = resolve(folder)
    if not root.is_dir():
        raise GenValError(f"{flag}: {root} is not a folder. Give a folder of images.")
    below = (path for path in paths_below(root) if path.suffix.lower() in IMAGE_EXTENSIONS)
    files = sorted(path for path in below if not path.is_dir())
    labels = [path for path in files if path.suffix.lower() == ".png" and _LABELS.search(path.stem)]
    if labels:
        print(f"{root}: {len(labels)} files are label images by their names, such as {labels[0].name}: left out.")
    images = sorted(set(files) - set(labels))
    if len(images) < fewest:
        raise GenValError(
            f"{flag}: found {len(images)} images ({', '.join(IMAGE_EXTENSIONS)}) in {root}, expected at least {fewest}."
        )
    return images
