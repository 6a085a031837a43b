"""The folders of pictures with an object in them: `images/ood_objects/{stage}/{object}/{i}...`.

`with_positions` holds the pictures with their labels and boxes, `refined` the pictures gone over again, `masks` the
object's outline, or a text that says why there is none.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from genval.artifacts.fingerprint import file_mark
from genval.artifacts.manifest import Manifest
from genval.runtime.errors import GenValError
from genval.runtime.files import read_json, read_jsonl

CURATED = "curated.json"
# A name that is a folder as it stands: small letters, because some disks take no notice of capitals. What looks like
# the end of a made-up folder's name is not, so that two names never share a folder; nor is what looks like a file that
# a stage keeps beside the folders.
_SAFE = re.compile(r"(?!.*(?:-[0-9a-f]{8}|\.jsonl?)$)[a-z0-9](?:[a-z0-9 _.-]{0,62}[a-z0-9_-])?")


@dataclass(frozen=True)
class Box:
    """A square in a frame, in pixels."""

    top: int
    left: int
    side: int


@dataclass(frozen=True)
class ObjectImage:
    """A picture with an object in it.

    Attributes:
        folder: of the object, its name made safe.
        number: the file's name without the suffix, usually a number.
        object: the name as the user gave it.
        image: the picture.
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
    """The objects of a list, one a line; blank lines and repetitions are left out.

    Raises:
        GenValError: the file is missing, is not text, or names no object.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise GenValError(f"--objects_file: cannot read {path} ({error}).") from error
    names = list(dict.fromkeys(line for line in lines if line))
    if not names:
        raise GenValError(f"--objects_file: {path} is empty: expected an object a line, such as: polar bear")
    return names


def object_folder(name: str) -> str:
    """The folder of an object: its name where that is safe anywhere, else what is safe of it and a hash of the whole.

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
    """The pictures `{images}/{object}/{i}.png`, by object and number, with `{positions}/{object}/{i}_pos.json`.

    An object's name is its folder's unless a line of `{positions}/manifest.jsonl` says otherwise.

    Args:
        images: the folder of a stage.
        positions: the folder with the boxes.
        objects: the objects wanted, by name or folder; None is all.
        maker: the script that makes the pictures, for the error's advice.

    Raises:
        GenValError: there are no pictures, an object is not there, a picture has no box, or it was made of another
            picture than is beside the box now.
    """
    manifest = positions / "manifest.jsonl"
    names = {
        str(line["id"]).rpartition("/")[0]: str(line["object"])
        for line in (read_jsonl(manifest) if manifest.exists() else [])
        if "object" in line and "id" in line
    }
    folders = sorted(entry.name for entry in images.iterdir() if entry.is_dir()) if images.is_dir() else []
    if objects is not None:
        absent = [name for name in objects if name not in folders and name not in names.values()]
        if absent:
            raise GenValError(f"No pictures of {', '.join(absent)} in {images}: found {', '.join(folders) or 'none'}.")
        folders = [folder for folder in folders if folder in objects or names.get(folder) in objects]
    pictures = [
        ObjectImage(folder, path.stem, names.get(folder, folder), path, positions / folder / f"{path.stem}_pos.json")
        for folder in folders
        for path in sorted((images / folder).glob("*.png"), key=lambda path: natural(path.stem))
        if not path.stem.endswith("_gt")
    ]
    if not pictures:
        raise GenValError(f"No pictures in {images}: expected {{object}}/{{i}}.png. Run: python {maker}")
    lost = [picture for picture in pictures if not picture.position.exists()]
    if lost:
        raise GenValError(
            f"{lost[0].position} does not exist ({len(lost)} of {len(pictures)} pictures have no box). Make it again "
            f"with ood_objects/sd_inpaint.py, or remove {lost[0].image}."
        )
    # A line of sd_inpaint.py has a position, and its source is a street.
    refined = {key: line for key, line in Manifest(images).records.items() if "position" not in line}
    for picture in pictures:
        mark, drawn = refined.get(picture.id, {}).get("source"), positions / f"{picture.id}.png"
        if mark is not None and drawn.exists() and mark != file_mark(drawn):
            raise GenValError(f"{picture.image} is made of another {drawn} than is there now. Run: python {maker}")
    return pictures


def frame_size(picture: ObjectImage) -> tuple[int, int]:
    """Height and width of a picture in pixels, from its head.

    Raises:
        GenValError: it is not an image.
    """
    from PIL import Image

    try:
        with Image.open(picture.image) as image:
            return image.height, image.width
    except OSError as error:
        raise GenValError(f"{picture.image} cannot be decoded ({error}). Make it again.") from error


def read_box(picture: ObjectImage, height: int, width: int) -> Box:
    """The box of a picture's object, from `{"{i}.png": {"pos_mask": [row, column], "size_mask": side}}`.

    Raises:
        GenValError: the file is damaged, speaks of another picture, or the box is not inside the frame.
    """
    content = read_json(picture.position)
    try:
        entry = content[f"{picture.number}.png"]
        (top, left), side = entry["pos_mask"], entry["size_mask"]
        box = Box(int(top), int(left), int(side))
    except (KeyError, TypeError, ValueError) as error:
        form = f'{{"{picture.number}.png": {{"pos_mask": [row, column], "size_mask": side}}}}'
        raise GenValError(
            f"{picture.position}: expected {form}, found {str(content)[:200]}. Make it again with "
            "ood_objects/sd_inpaint.py."
        ) from error
    if box.side < 1 or min(box.top, box.left) < 0 or box.top + box.side > height or box.left + box.side > width:
        raise GenValError(
            f"{picture.position}: the box at row {box.top}, column {box.left}, {box.side} pixels wide, is not inside "
            f"{picture.image} of {width}x{height} pixels. The two are not of one run: make them again."
        )
    return box


def mask_path(masks: Path, image_id: str) -> Path:
    """Where the mask of `{object}/{i}` is."""
    return masks / f"{image_id}_mask.png"


def absence_path(masks: Path, image_id: str) -> Path:
    """Where the text is that says why `{object}/{i}` has no mask."""
    return masks / f"{image_id}_mask.txt"


def read_curated(masks: Path) -> dict[str, bool]:
    """Which masks a person wants, by `{object}/{i}`; empty where nobody has chosen.

    Raises:
        GenValError: the file is not `{object: {i: true or false}}`.
    """
    path = masks / CURATED
    if not path.exists():
        return {}
    content = read_json(path)
    chosen = {}
    for folder, numbers in content.items() if isinstance(content, dict) else [("", None)]:
        for number, keep in numbers.items() if isinstance(numbers, dict) else [("", None)]:
            if not isinstance(keep, bool):
                raise GenValError(
                    f'{path}: expected {{"object": {{"0": true, "1": false}}}}, found {keep!r} in {folder!r}.'
                )
            chosen[f"{folder}/{number}"] = keep
    return chosen


def natural(text: str) -> list[tuple[bool, int, str]]:
    """A sort key that counts: "2" before "10", and numbers before words."""
    parts = [part for part in re.split(r"(\d+)", text) if part]
    return [(False, int(part), "") if part.isdecimal() else (True, 0, part) for part in parts]
