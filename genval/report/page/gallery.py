"""The images of generated sets that the page shows: mask, original, generated, predictions and errors."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from genval.artifacts.manifest import Manifest
from genval.datasets import Item, find_items, read_pair
from genval.datasets.items import find_original
from genval.datasets.reading import read_image, read_mask
from genval.report.page.encoding import class_map, error_map, photograph
from genval.results.finding import list_models
from genval.results.scenes import SceneResults
from genval.runtime.errors import GenValError


@dataclass(frozen=True)
class GalleryLimits:
    """How much of the generated sets is shown."""

    images: int = 24  # of a domain
    models: int = 8  # whose predictions are shown
    width: int = 360  # of an image, pixels
    # Of the gallery's data URIs together; the objects' take a third as much again. With the plotting library's 4.8 MB
    # and the scores and diagrams of 42 models in five domains the page stays below 20 MB.
    characters: int = 8_000_000


def collect_gallery(
    generated_dir: Path, domains: Sequence[str], results: Path, limits: GalleryLimits
) -> dict[str, Any]:
    """Choose images of each domain and encode them with the predictions that exist.

    Half of a domain's images are those with the lowest mIoU, averaged over the models shown; the others are evenly
    spaced over the set. If the limit of characters is reached, the last images of every domain are skipped.

    Args:
        generated_dir: folder of the generated sets.
        domains: which of them.
        results: folder of the results of relis/eval.py.
        limits: how many images and models.

    Returns:
        `domains`, how many images each has and shows; `models`; `images`, each with its data URIs, and by model the
        prediction, its errors, mIoU and pixel accuracy.

    Raises:
        GenValError: an image or prediction is damaged, or a prediction is of another size than its mask.
    """
    sets = {domain: find_items(f"Cityscapes_{domain}", generated_dir=generated_dir) for domain in domains}
    scores = {
        model: {domain: _scores(results, model, items) for domain, items in sets.items()}
        for model in list_models(results)
    }
    models = _spread_by_score({model: by for model, by in scores.items() if any(by.values())}, limits.models)
    chosen = {
        domain: _choose(items, [scores[model][domain] for model in models], limits.images)
        for domain, items in sets.items()
    }
    manifests = {domain: Manifest(_root_of(items)).records for domain, items in sets.items()}
    images: list[dict[str, Any]] = []
    left = limits.characters
    for domain, item in _in_turn(chosen):
        shown = {model: scores[model][domain].get(item.id) for model in models}
        entry = _encode(item, manifests[domain].get(item.id, {}), results, shown, limits.width)
        left -= sum(map(len, _strings(entry)))
        if left < 0:
            break
        images.append({"domain": domain, **entry})
    return {
        "domains": [
            {"name": domain, "images": len(items), "shown": sum(p["domain"] == domain for p in images)}
            for domain, items in sets.items()
        ],
        "models": models,
        "images": images,
    }


def _root_of(items: Sequence[Item]) -> Path:
    """The folder that holds leftImg8bit/{split}/{city}/."""
    return items[0].image.parents[3]


def _results_of(results: Path, model: str, item: Item) -> SceneResults:
    return SceneResults(results, model, f"Cityscapes_{item.cond}", item.cond, item.scene)


def _scores(results: Path, model: str, items: Sequence[Item]) -> dict[str, dict[str, float]]:
    """A model's mIoU and pixel accuracy in percent, by image; those of finished scenes."""
    scores: dict[str, dict[str, float]] = {}
    for scene in {_results_of(results, model, item) for item in items}:
        if not scene.metrics.exists():
            continue
        with open(scene.folder / "per_image.csv", newline="") as stream:
            for row in csv.DictReader(stream):
                if row["miou"]:  # an image without a labelled pixel has none
                    scores[row["id"]] = {
                        "miou": 100 * float(row["miou"]),
                        "accuracy": float(row["pixel_accuracy_percent"]),
                    }
    return scores


def _spread_by_score(scores: Mapping[str, Mapping[str, Mapping[str, dict[str, float]]]], count: int) -> list[str]:
    """At most `count` models, by their mean mIoU: the best, the worst, and evenly between."""

    def mean(model: str) -> float:
        values = [score["miou"] for by_image in scores[model].values() for score in by_image.values()]
        return sum(values) / len(values)

    ranked = sorted(scores, key=lambda model: (-mean(model), model))
    if len(ranked) <= count:
        return ranked
    return [ranked[round(place)] for place in np.linspace(0, len(ranked) - 1, count)]


def _choose(items: Sequence[Item], scores: Sequence[Mapping[str, dict[str, float]]], count: int) -> list[Item]:
    """At most `count` items: the worst and an even spread, in turn."""

    def mean(item: Item) -> float:
        values = [by_image[item.id]["miou"] for by_image in scores if item.id in by_image]
        return sum(values) / len(values) if values else math.inf

    count = min(count, len(items))
    worst = sorted(items, key=lambda item: (mean(item), item.id))
    even = [items[index * len(items) // count] for index in range(count)]
    both = [item for pair in zip(worst, even, strict=False) for item in pair]
    return list(dict.fromkeys([*both, *items]))[:count]


def _in_turn(chosen: Mapping[str, Sequence[Item]]) -> Iterator[tuple[str, Item]]:
    """The first image of every domain, then the second, ..."""
    for turn in zip_longest(*chosen.values()):
        yield from ((domain, item) for domain, item in zip(chosen, turn, strict=True) if item is not None)


def _encode(
    item: Item,
    record: Mapping[str, Any],
    results: Path,
    scores: Mapping[str, dict[str, float] | None],
    width: int,
) -> dict[str, Any]:
    image, train_ids = read_pair(item)
    original = find_original(item)
    models: dict[str, Any] = {}
    for model, score in scores.items():
        path = _results_of(results, model, item).prediction(item.id)
        if score is None or not path.exists():
            continue
        prediction = read_mask(path)
        if prediction.shape != train_ids.shape:
            raise GenValError(
                f"{path} is {prediction.shape}, its mask {item.mask} is {train_ids.shape}: expected one size. "
                f"Run: {_results_of(results, model, item).command()}"
            )
        models[model] = {
            **score,
            "prediction": class_map(prediction, width),
            "errors": error_map(train_ids, prediction, width),
        }
    return {
        "id": item.id,
        "scene": item.scene,
        "height": image.shape[0],
        "width": image.shape[1],
        "prompt": record.get("prompt"),
        "seed": None if record.get("seed") is None else str(record["seed"]),  # more digits than a browser's numbers
        "mask": class_map(train_ids, width),
        "original": photograph(read_image(original), width) if original else None,
        "generated": photograph(image, width),
        "models": models,
    }


def _strings(value: Any) -> Iterator[str]:
    """All texts in a nested value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for entry in value.values():
            yield from _strings(entry)
