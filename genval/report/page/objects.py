"""Images of unknown objects, cropped around the object, with the OOD scores of each model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from genval.datasets.ood_objects import ObjectImage, find_object_images, mask_path, read_curated
from genval.datasets.reading import read_image, read_mask
from genval.report.page.encoding import object_map, photograph
from genval.report.page.gallery import GalleryLimits
from genval.runtime.errors import GenValError
from genval.runtime.files import check_shape, read_json

# Side of the shown square, in sides of the object's bounding box.
_CONTEXT = 1.8


def collect_objects(folder: Path, results: Path, models: Sequence[str], limits: GalleryLimits) -> dict[str, Any]:
    """Choose images of every object in turn and encode them.

    Images without a mask and images that curated.json refuses are skipped, as in the evaluation.

    Args:
        folder: with `refined`, `masks` and `with_positions`.
        results: `{model}.json` of the generated set, as ood_detection/main_gen_ood.py writes them.
        models: whose scores are shown if they have any; otherwise the first models with scores.
        limits: `images` per object; data URIs take at most a third of the characters of the gallery.

    Returns:
        `objects`, how many images each has and shows; `models`; `scores`, their names; `images`, each with its data
        URIs and by model and score the AUROC in percent.

    Raises:
        GenValError: an image or mask is damaged, or the two differ in size.
    """
    masks, curated = folder / "masks", read_curated(folder / "masks")
    by_object: dict[str, list[ObjectImage]] = {}
    for item in find_object_images(folder / "refined", folder / "with_positions"):
        if mask_path(masks, item.id).exists() and curated.get(item.id, True):
            by_object.setdefault(item.object, []).append(item)
    scores_of = dict(read_scores(path) for path in sorted(results.glob("*.json")))
    shown_models = [model for model in models if model in scores_of] or sorted(scores_of)[: limits.models]
    count, characters = limits.images, limits.characters // 3
    spread = {
        name: [images[index * len(images) // count] for index in range(count)] if len(images) > count else images
        for name, images in by_object.items()
    }
    shown: list[dict[str, Any]] = []
    for item in (item for turn in zip_longest(*spread.values()) for item in turn if item):
        scores = {model: scores_of[model].get(item.id) for model in shown_models}
        entry = {**_encode(item, masks, limits.width), "models": {model: by for model, by in scores.items() if by}}
        characters -= len(entry["image"]) + len(entry["mask"])
        if characters < 0:
            break
        shown.append(entry)
    return {
        "objects": [
            {"name": name, "images": len(images), "shown": sum(entry["object"] == name for entry in shown)}
            for name, images in by_object.items()
        ],
        "models": [model for model in shown_models if any(model in entry["models"] for entry in shown)],
        "scores": list(dict.fromkeys(score for entry in shown for by in entry["models"].values() for score in by)),
        "images": shown,
    }


class _Score(TypedDict):
    auroc: float | None


def read_scores(path: Path) -> tuple[str, dict[str, dict[str, float]]]:
    """Read a model's name, and the AUROC in percent by score of each `{object}/{i}`, from its file of scores per image.

    Raises:
        GenValError: it is not a file of ood_detection/main_gen_ood.py.
    """
    remedy = "Delete it and run: python ood_detection/main_gen_ood.py"
    content = read_json(path, dict[str, dict[str, Any]], remedy)
    if "pooled" not in content:
        raise GenValError(f"{path} has no pooled scores. {remedy}")
    scores_of = {}
    for image, entry in content.items():
        by_score = {score: by for score, by in entry.items() if isinstance(by, dict) and "auroc" in by}
        found = {score: by["auroc"] for score, by in check_shape(by_score, dict[str, _Score], path, remedy).items()}
        name = "/".join(Path(image).with_suffix("").parts[-2:])
        scores_of[name] = {score: 100 * value for score, value in found.items() if value is not None}
    return str(content["pooled"].get("model", path.stem)), scores_of


def _encode(item: ObjectImage, masks: Path, width: int) -> dict[str, Any]:
    """The square around the object, and its mask there."""
    path = mask_path(masks, item.id)
    image, mask = read_image(item.image), read_mask(path) > 0
    if image.shape[:2] != mask.shape:
        raise GenValError(
            f"{path} is {mask.shape}, {item.image} is {image.shape[:2]}: expected one size. Delete the mask and "
            "run: python ood_objects/get_masks.py"
        )
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        raise GenValError(f"{path} is empty. Delete it and run: python ood_objects/get_masks.py")
    side = math.ceil(_CONTEXT * max(np.ptp(rows), np.ptp(columns)) + 1)
    side = min(max(side, 32), *mask.shape)
    top, left = (
        int(np.clip((inside[0] + inside[-1] + 1 - side) // 2, 0, full - side))
        for inside, full in zip((rows, columns), mask.shape, strict=True)
    )
    window = np.s_[top : top + side, left : left + side]
    return {
        "id": item.id,
        "object": item.object,
        "share": 100 * float(mask.mean()),
        "image": photograph(image[window], width),
        "mask": object_map(mask[window], width),
    }
