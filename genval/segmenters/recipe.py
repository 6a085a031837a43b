"""How relis/finetune.py made a checkpoint, and the check that nothing it was trained on is tested.

A fine-tuned segmenter must not be tested on the images that it was trained on, nor on images that were generated from
the same masks. The recipe therefore lists the marks of all files and the ids of all frames that the training used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol, TypedDict

from genval.artifacts.fingerprint import current_mark
from genval.runtime.errors import GenValError
from genval.runtime.files import check_shape, read_json

RECIPE = "recipe.json"
MADE_BY = "relis/finetune.py"


class TestedImage(Protocol):
    """An image that a segmenter is tested on. It may also have the `mask` and the `source` of an `Item`."""

    @property
    def id(self) -> str: ...
    @property
    def image(self) -> Path: ...


class _TrainedOn(TypedDict):
    frames: list[str]
    marks: list[str]


@dataclass(frozen=True)
class Recipe:
    """How a segmenter was fine-tuned.

    Attributes:
        path: of the file.
        content: settings, data, steps and validation, as JSON values.
        frames: ids of the frames from whose masks the training used an image, real or generated.
        marks: marks (`genval.artifacts.fingerprint.current_mark`) of the images and masks of the training.
    """

    path: Path
    content: Mapping[str, Any]
    frames: frozenset[str]
    marks: frozenset[str]

    @property
    def mark(self) -> str:
        """16 hexadecimal digits over the content."""
        return blake2b(json.dumps(self.content, sort_keys=True).encode(), digest_size=8).hexdigest()


def find_recipe(file: Path | None) -> Recipe | None:
    """Read the recipe beside a checkpoint, or in the folder of a transformers model; None where there is none.

    Raises:
        GenValError: the file is damaged.
    """
    if file is None:
        return None
    path = (file if file.is_dir() else file.parent) / RECIPE
    if not path.is_file():
        return None
    content = read_json(path, dict[str, Any])
    if content.get("made_by") != MADE_BY:
        return None
    seen = check_shape(content.get("trained_on"), _TrainedOn, f"{path}, trained_on", "Fine-tune the segmenter again.")
    return Recipe(path, content, frozenset(seen["frames"]), frozenset(seen["marks"]))


def refuse_trained_images(segmenter: Any, items: Iterable[TestedImage]) -> None:
    """Refuse to test a fine-tuned segmenter on what it was trained on.

    Args:
        segmenter: any segmenter; without a recipe nothing is refused.
        items: the test images. An image generated from a frame is known by its id, see `frame_ids`.

    Raises:
        GenValError: an image or mask was trained on, or the image was generated from a mask that was trained on.
    """
    recipe: Recipe | None = getattr(segmenter, "recipe", None)
    if recipe is None:
        return
    tested = list(items)
    seen = [item for item in tested if was_trained_on(recipe, item)]
    if seen:
        raise GenValError(
            f"{segmenter.name} was fine-tuned on {len(seen)} of these {len(tested)} images or on images of the same "
            f"masks, such as {seen[0].image} (see {recipe.path}). Test on other images, or fine-tune on other frames."
        )


def was_trained_on(recipe: Recipe, item: TestedImage) -> bool:
    """Whether the training used the item's image, its mask, or an image of the same frame."""
    files = [item.image, mask] if (mask := getattr(item, "mask", None)) is not None else [item.image]
    return not recipe.frames.isdisjoint(frame_ids(getattr(item, "source", "") or item.id)) or any(
        current_mark(file) in recipe.marks for file in files
    )


def frame_ids(item_id: str) -> set[str]:
    """Return the ids of the frames that an image can be of: its own id, and what follows a `{domain}_{number}_`.

    Numbers of generated images have no leading zeros, and those of most real frames do.

    >>> sorted(frame_ids("fog_0_frankfurt_000000_000294"))
    ['fog_0_frankfurt_000000_000294', 'frankfurt_000000_000294']
    """
    return {item_id} | {item_id[found.end() :] for found in re.finditer(r"(?<=._)(0|[1-9]\d*)_", item_id)}
