"""The folders of images with an object in them: `images/ood_objects/{stage}/{object}/{i}...`.

`with_positions` holds the images with their labels and boxes, `refined` the refined images, `masks` the
object's mask, or a text file with the reason why there is none.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict

from genval.artifacts.fingerprint import file_mark
from genval.artifacts.manifest import Manifest
from genval.datasets.boxes import Box
from genval.runtime.errors import GenValError
from genval.runtime.files import read_json, read_jsonl, read_lines
from genval.runtime.paths import subfolders

CURATED = "curated.json"
# Names that are used verbatim as folder names: lower case, because some file systems ignore case. A name that ends like
# a hashed folder name does not match, so that two names never share a folder; nor does a name that ends like the files
# that a stage writes next to the folders.
_SAFE = re.compile(r"(?!.*(?:-[0-9a-f]{8}|\.jsonl?)$)[a-z0-9](?:[a-z0-9 _.-]{0,62}[a-z0-9_-])?")


class _Named(TypedDict):
    """A line of a manifest, of which only these keys are read."""

    id: NotRequired[str]
    object: NotRequired[str]


class _Position(TypedDict):
    pos_mask: tuple[int, int]
    size_mask: int


@dataclass(frozen=True)
class ObjectImage:
    """An image with an object in it.

    Attributes:
        folder: of the object, the safe form of its name.
        number: the file's name without the suffix, usually a number.
        object: the name as the user gave it.
        image: the image.
        position: the file of its box.
    """

    folder: str
    number: str
    object: str
    image: Path
    position: Path

    @property
    def id(self) -> str:
        return f"{self.folder}/{self.number}"


def read_objects(path: Path) -> list[str]:
    """Read a list of objects, one per line. Blank lines and repetitions are skipped.

    Raises:
        GenValError: the file is missing, is not text, or names no object.
    """
    try:
        names = list(dict.fromkeys(read_lines(path)))
    except GenValError as error:
        raise GenValError(f"--objects_file: cannot read {path} ({error})") from error
    if not names:
        raise GenValError(f"--objects_file: {path} is empty: expected one object per line, e.g. polar bear")
    return names


def object_folder(name: str) -> str:
    """The folder of an object: its name if that is a safe folder name, else its safe characters and a hash of the name.

    >>> object_folder("polar bear"), object_folder("../x"), object_folder("")
    ('polar bear', 'x-d42ff05c', 'object-1271cf25')
    """
    if _SAFE.fullmatch(name):
        return name
    letters = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    words = re.sub(r"[^a-z0-9]+", "-", letters).strip("-")[:40].strip("-") or "object"
    return f"{words}-{hashlib.blake2b(name.encode('utf-8', 'surrogatepass'), digest_size=4).hexdigest()}"


def find_object_images(
    images: Path, positions: Path, objects: Sequence[str] | None = None, maker: str = "ood_objects/refine_gen_images.py"
) -> list[ObjectImage]:
    """The images `{images}/{object}/{i}.png`, by object and number, with `{positions}/{object}/{i}_pos.json`.

    An object's name is that of its folder unless a line of `{positions}/manifest.jsonl` gives another.

    Args:
        images: the folder of a stage.
        positions: the folder with the boxes.
        objects: names or folders of the requested objects; None is all.
        maker: the script that generates the images, which errors name.

    Raises:
        GenValError: there are no images, an object is missing, an image has no box, or it was made from another
            image than the one that is now next to the box.
    """
    manifest = positions / "manifest.jsonl"
    names = {
        line["id"].rpartition("/")[0]: line["object"]
        for line in (read_jsonl(manifest, _Named) if manifest.exists() else [])
        if "object" in line and "id" in line
    }
    folders = [entry.name for entry in subfolders(images)]
    if objects is not None:
        absent = [name for name in objects if name not in folders and name not in names.values()]
        if absent:
            raise GenValError(f"No images of {', '.join(absent)} in {images}: found {', '.join(folders) or 'none'}.")
        folders = [folder for folder in folders if folder in objects or names.get(folder) in objects]
    found = [
        ObjectImage(folder, path.stem, names.get(folder, folder), path, positions / folder / f"{path.stem}_pos.json")
        for folder in folders
        for path in sorted((images / folder).glob("*.png"), key=lambda path: natural(path.stem))
        if not path.stem.endswith("_gt") and not path.name.startswith(".")
    ]
    if not found:
        raise GenValError(f"No images in {images}: expected {{object}}/{{i}}.png. Run: python {maker}")
    missing = [image for image in found if not image.position.exists()]
    if missing:
        raise GenValError(
            f"{missing[0].position} does not exist ({len(missing)} of {len(found)} images have no box). Make it again "
            f"with ood_objects/sd_inpaint.py, or move {missing[0].image} elsewhere."
        )
    # Records of sd_inpaint.py have a position; their source is a street.
    refined = {key: line for key, line in Manifest(images).records.items() if "position" not in line}
    for image in found:
        mark, inpainted = refined.get(image.id, {}).get("source"), positions / f"{image.id}.png"
        if mark is not None and inpainted.exists() and mark != file_mark(inpainted):
            raise GenValError(f"{image.image} was made from another {inpainted} than the current. Run: python {maker}")
    return found


def read_box(image: ObjectImage, height: int, width: int) -> Box:
    """The box of an image's object, from `{"{i}.png": {"pos_mask": [row, column], "size_mask": side}}`.

    Raises:
        GenValError: the file is damaged, refers to another image, or the box is not inside the frame.
    """
    name = f"{image.number}.png"
    remedy = (
        f'Expected {{"{name}": {{"pos_mask": [row, column], "size_mask": side}}}}. Make it again with '
        "ood_objects/sd_inpaint.py."
    )
    content = read_json(image.position, dict[str, _Position], remedy)
    if name not in content:
        raise GenValError(f"{image.position} has no {name}. {remedy}")
    top, left = content[name]["pos_mask"]
    box = Box.square(top, left, content[name]["size_mask"])
    if box.side < 1 or not Box(0, 0, height, width).contains(box):
        raise GenValError(
            f"{image.position}: the box at row {box.top}, column {box.left}, {box.side} pixels wide, is not inside "
            f"{image.image} of {width}x{height} pixels. They are from different runs: generate them again."
        )
    return box


def mask_path(masks: Path, image_id: str) -> Path:
    """The path of the mask of `{object}/{i}`."""
    return masks / f"{image_id}_mask.png"


def absence_path(masks: Path, image_id: str) -> Path:
    """The path of the text file with the reason why `{object}/{i}` has no mask."""
    return masks / f"{image_id}_mask.txt"


def read_curated(masks: Path) -> dict[str, bool]:
    """Read which masks a person accepted, by `{object}/{i}`; empty without a `curated.json`.

    Raises:
        GenValError: the file is not `{object: {i: true or false}}`.
    """
    path = masks / CURATED
    if not path.exists():
        return {}
    content = read_json(path, dict[str, dict[str, bool]], 'Expected {"object": {"0": true, "1": false}}.')
    return {f"{folder}/{number}": keep for folder, numbers in content.items() for number, keep in numbers.items()}


def natural(text: str) -> list[tuple[bool, int, str]]:
    """A natural sort key: "2" before "10", and numbers before words."""
    parts = [part for part in re.split(r"(\d+)", text) if part]
    return [(False, int(part), "") if part.isdecimal() else (True, 0, part) for part in parts]
