"""Captioned pairs of image and mask, from the published `training/{train,val}.jsonl` or files of the same format."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from genval.datasets.boxes import Box
from genval.datasets.labels import LABEL_SPACES
from genval.datasets.reading import check_masks, read_image, read_mask
from genval.diffusion.framing import check_pair, crop_box, fit_image, fit_mask
from genval.diffusion.models.hints import CITYSCAPES_IDS, LabelSet
from genval.runtime.devices import is_first_process
from genval.runtime.errors import GenValError, without_skip_bad
from genval.runtime.files import read_jsonl
from genval.runtime.paths import REPO_ROOT, resolve
from genval.runtime.progress import progress_bar

_KEYS = ("image", "conditioning_image", "text")
# Links of the published training folder in the published lines, and their targets below the data folder.
_PUBLISHED_LINKS = {"training/target/": "leftImg8bit/", "training/seg/": "gtFine/"}


@dataclasses.dataclass(frozen=True)
class Pair:
    """One frame: its image file, its labelIds file (None for an unlabelled image) and a caption."""

    image: Path
    mask: Path | None
    caption: str


@dataclasses.dataclass(frozen=True)
class FramedPair:
    """A pair at its target size: `image` RGB uint8 (H, W, 3), `mask` uint8 ids (H, W), and the `box` of the crop.

    The mask of an unlabelled image is 0 everywhere.
    """

    image: np.ndarray
    mask: np.ndarray
    box: Box


def find_jsonl(name: str, *folders: str | Path) -> Path:
    """Return the path of a file of captioned pairs: in `folders`, in `ControlNet/`, or from the repository's root.

    Raises:
        GenValError: the file is in none of these folders.
    """
    places = [*(Path(folder) / name for folder in folders), REPO_ROOT / "ControlNet" / name, resolve(name)]
    for place in places:
        if place.is_file():
            return place
    raise GenValError(
        f"No captions: expected {' or '.join(map(str, dict.fromkeys(places)))}, with lines of {', '.join(_KEYS)}. Put "
        "the published training/*.jsonl there, or run: python ControlNet/clip_int.py --dataset cityscapes --split "
        "train --jsonl ControlNet/training/train.jsonl (and the same for val)."
    )


def read_pairs(jsonl: str | Path, data_dir: str | Path, skip_bad: bool = False) -> list[Pair]:
    """Read `{"image", "conditioning_image", "text"}` lines and find their files below `data_dir`.

    `conditioning_image` may name the mask itself or, as published, the image's name in the masks' folder:
    `leftImg8bit` in it is replaced by `gtFine_labelIds`.

    Args:
        jsonl: the file of lines.
        data_dir: the folder of the images and masks.
        skip_bad: do not ask whether the files exist; `readable_pairs` leaves out those that do not.

    Raises:
        GenValError: the file is missing or empty, a key is missing in a line, or an image or mask does not exist.
    """
    data_dir = Path(data_dir)
    pairs = []
    for number, record in enumerate(read_jsonl(jsonl), 1):
        missing = [key for key in _KEYS if not isinstance(record.get(key), str)]
        if missing:
            raise GenValError(f"{jsonl}, entry {number} has no text {', '.join(missing)}.")
        mask = record["conditioning_image"].replace("leftImg8bit.png", "gtFine_labelIds.png")
        image, label = _locate(data_dir, record["image"]), _locate(data_dir, mask)
        for file in (image, label):
            if not (skip_bad or file.is_file()):
                raise GenValError(f"{jsonl}, entry {number}: {file} does not exist. Check --data_dir ({data_dir}).")
        pairs.append(Pair(image, label, record["text"]))
    if not pairs:
        raise GenValError(f"{jsonl} has no entries: expected one JSON object a line with {', '.join(_KEYS)}.")
    return pairs


def load_framed(
    pair: Pair,
    height: int,
    width: int,
    place: float,
    labels: LabelSet = CITYSCAPES_IDS.labels,
    image_resize: str = "area",
) -> FramedPair:
    """Read a pair, crop the largest box with the target's aspect ratio and resize it to (height, width).

    Args:
        pair: the files.
        height, width: target size in pixels.
        place: 0..1, where the box lies along the longer side (`genval.diffusion.framing.crop_box`).
        labels: the label set of the mask.
        image_resize: resize method of the image (`genval.diffusion.framing.fit_image`); masks use nearest neighbour.

    Raises:
        GenValError: a file is damaged, the sizes differ, or the mask has ids that are not in the label set.
    """
    image = read_image(pair.image)
    mask: np.ndarray = np.zeros(image.shape[:2], np.uint8)
    if pair.mask is not None:
        mask = read_mask(pair.mask, labels.train_ids)
        check_pair(image, mask, pair.image, pair.mask)
        labels.check(mask, pair.mask)
    box = crop_box(mask.shape[0], mask.shape[1], height, width, place)
    return FramedPair(fit_image(image, box, height, width, image_resize), fit_mask(mask, box, height, width), box)


def check_pair_ids(pairs: Sequence[Pair], labels: LabelSet) -> None:
    """Refuse masks of other ids than the label set's, where it is a known one: see `reading.check_masks`."""
    if labels.name in LABEL_SPACES:
        check_masks([pair.mask for pair in pairs if pair.mask], LABEL_SPACES[labels.name])


def readable_pairs(pairs: Sequence[Pair], labels: LabelSet, workers: int) -> list[Pair]:
    """Return the pairs that can be read; the first process prints one line with the reason for each skipped pair.

    Raises:
        GenValError: no pair can be read.
    """

    def problem(pair: Pair) -> str | None:
        try:
            load_framed(pair, 8, 8, 0.5, labels)
        except GenValError as error:
            return without_skip_bad(str(error))
        return None

    good, is_first = [], is_first_process()
    bar = progress_bar(len(pairs), "Reading the pairs", unit="pair", rank=0 if is_first else 1)
    with ThreadPoolExecutor(workers) as pool, bar:
        for pair, reason in zip(pairs, pool.map(problem, pairs), strict=True):
            bar.update()
            if reason is None:
                good.append(pair)
            elif is_first:
                bar.write(f"skipped {pair.image}: {reason}")
    if pairs and not good:
        raise GenValError(f"All {len(pairs)} pairs were skipped by --skip_bad, the last because: {reason}")
    return good


def _locate(data_dir: Path, relative: str) -> Path:
    if (data_dir / relative).exists():
        return data_dir / relative
    for link, folder in _PUBLISHED_LINKS.items():
        if relative.startswith(link):
            return data_dir / (folder + relative.removeprefix(link))
    return data_dir / relative
