"""Files of captions: `{"data set": {"path": "caption"}}` as clip_int.py writes, and lines of `{"image", "text"}`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from genval.runtime.errors import GenValError
from genval.runtime.files import read_json, read_jsonl, write_json

_EXPECTED = 'Expected {"data set": {"path": "caption"}}, or one {"image": ..., "text": ...} per line.'


class _Line(TypedDict):
    image: str
    text: str


def read_captions(path: str | Path) -> dict[str, str]:
    """Captions by their image's file name, without its folder.

    Raises:
        GenValError: as `read_captions_by_path`, or two images of one name have different captions.
    """
    captions: dict[str, str] = {}
    for image, caption in read_captions_by_path(path).items():
        name = Path(image).name
        if captions.setdefault(name, caption) != caption:
            raise GenValError(
                f"{path} has two captions for images named {name}. Give a file of one data set whose names differ."
            )
    return captions


def read_captions_by_path(path: str | Path) -> dict[str, str]:
    """Captions by their image's path as the file spells it; of all data sets in a JSON file.

    Raises:
        GenValError: the file is missing, damaged, empty, of another form, or has two captions for one path.
    """
    path = Path(path)
    captions: dict[str, str] = {}
    for image, caption in _entries(path):
        if captions.setdefault(image, caption) != caption:
            raise GenValError(f"{path} has two captions for {image}. Remove one.")
    if not captions:
        raise GenValError(f"{path} has no captions. {_EXPECTED}")
    return captions


def write_captions(path: str | Path, dataset: str, captions: Mapping[str, str]) -> None:
    """Write `{dataset: {path: caption}}`, in the order given."""
    write_json(path, {dataset: dict(captions)})


def _entries(path: Path) -> list[tuple[str, str]]:
    if path.suffix == ".jsonl":
        return [(line["image"], line["text"]) for line in read_jsonl(path, _Line, _EXPECTED)]
    content = read_json(path, dict[str, dict[str, str]], _EXPECTED)
    return [pair for images in content.values() for pair in images.items()]
