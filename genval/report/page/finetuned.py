"""Maps of a score of OOD detection before and after fine-tuning, on images with unknown objects."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genval.datasets.ood_sets import OOD_LAYOUTS, OodItem, read_ood_pair
from genval.kernels.layout import OBJECT
from genval.metrics.ood_scores import level_metrics
from genval.report.page.encoding import object_map, photograph, shade_map
from genval.report.page.gallery import GalleryLimits
from genval.report.published import PUBLISHED
from genval.results.ood_blocks import OodResults, read_levels
from genval.results.shapes import BlockLine
from genval.runtime.errors import GenValError
from genval.runtime.files import read_jsonl

# How many images of a set are shown: they are evenly spaced over those with maps.
_IMAGES = 4
# A pixel is darkest where all the background scores as high, and brightest where at most this share does.
_BRIGHTEST = 0.01


@dataclass(frozen=True)
class _Version:
    """The results of one version of a segmenter on a set."""

    results: OodResults
    score: str
    lines: dict[str, dict[str, Any]]  # by id of the image
    levels: np.ndarray  # pixels of the whole set by level of the score, background and object, int64 (2, L)
    objects: str  # what it was fine-tuned on

    @functools.cached_property
    def reached(self) -> np.ndarray:
        """The share of the set's background at or above each level, float64 (L,): levels are in descending order."""
        reached = np.cumsum(self.levels[0])
        return reached / max(1, reached[-1])

    @property
    def row(self) -> dict[str, Any]:
        """The row of the table: names, and metrics of all pixels of the set in percent."""
        metrics = {name: 100 * value for name, value in level_metrics(self.levels).items()}
        return {"name": self.results.model, "objects": self.objects, **metrics}

    def shades(self, item_id: str) -> np.ndarray:
        """How few background pixels score as high as each pixel, 0..1 on a logarithmic scale, float64 (H, W)."""
        share = self.reached[read_levels(self.results.levels(self.score, item_id))]
        return np.log(np.clip(share, _BRIGHTEST, 1)) / np.log(_BRIGHTEST)

    def aupr(self, item_id: str) -> float | None:
        """The AUPR of the object in an image, in percent."""
        value = self.lines[item_id]["figures"][self.score]["aupr_in"]
        return None if value is None else 100 * value


def collect_finetuned(root: Path, limits: GalleryLimits) -> list[dict[str, Any]]:
    """Choose images of each set on which a segmenter was tested before and after fine-tuning, and encode them.

    A pair of versions is shown if ood_detection/main_gen_ood.py wrote the levels of a score that the fine-tuning was
    for (`--components`), and if the fine-tuned weights still exist.

    Args:
        root: the results of ood_detection/main_gen_ood.py.
        limits: of widths; data URIs take at most a sixth of the characters of the gallery.

    Returns:
        For each pair and set: `set`, `score`, `rows`, the metrics before and after, `published`, those of the published
        detectors on this set, and `images`, each with its id, the data URIs of the image, the object and both maps, and
        the AUPR of the object before and after, in percent.

    Raises:
        GenValError: an image, a mask or a result is damaged.
    """
    shown, characters = [], limits.characters // 6
    for before, after in _pairs(root):
        ids = [one for one in after.lines if _has_map(before, one) and _has_map(after, one)]
        images: list[dict[str, Any]] = []
        for index in np.unique(np.linspace(0, len(ids) - 1, min(_IMAGES, len(ids))).round().astype(int)):
            entry = _encode(before, after, ids[index], limits.width)
            characters -= sum(len(entry[part]) for part in ("image", "object"))
            characters -= sum(len(entry[part]["map"]) for part in ("before", "after"))
            if characters < 0:
                break
            images.append(entry)
        if images:
            dataset = after.results.dataset
            panel = {"set": dataset, "score": after.score, "rows": [before.row, after.row], "images": images}
            shown.append({**panel, "published": PUBLISHED.detectors if dataset == "RoadAnomaly21" else []})
    return shown


def _pairs(root: Path) -> Iterator[tuple[_Version, _Version]]:
    """The versions before and after each fine-tuning, by set."""
    for folder in sorted(path.parent for path in root.glob("*/*/levels") if path.parent.parent.name in OOD_LAYOUTS):
        dataset, model, mark = folder.parent.name, *_made_from(folder)
        recipe = _find_recipe(model) if mark else None
        if recipe is None or recipe.mark != mark:
            continue
        origin = recipe.content["from"]["name"]
        both = OodResults(root, dataset, origin), OodResults(root, dataset, model)
        for score in recipe.content["scores"]:
            if all((results.folder / "levels" / score).is_dir() for results in both):
                yield _read(both[0], score, "none"), _read(both[1], score, _objects(recipe.content))
                break


def _made_from(folder: Path) -> tuple[str, str | None]:
    """The name of the segmenter that results are of, and the mark of its recipe if it was fine-tuned."""
    for path in sorted((folder / "blocks").glob("*.jsonl")):
        for line in read_jsonl(path, BlockLine):
            made_from: dict[str, Any] = {**line["made_from"]}
            return str(made_from.get("model", "")), made_from.get("recipe")
    return "", None


def _find_recipe(model: str) -> Any:
    """The recipe of a fine-tuned segmenter; None where its files are gone."""
    from genval.segmenters.recipe import find_recipe
    from genval.segmenters.registry import specify

    try:
        return find_recipe(specify(model).file)
    except GenValError:
        return None


def _objects(recipe: Mapping[str, Any]) -> str:
    """What kind of objects a segmenter was fine-tuned on.

    >>> _objects({"outliers": "paste:images,masks"}), _objects({"outliers": "generated objects in images/ood_objects"})
    ('pasted', 'generated')
    """
    kind = str(recipe.get("outliers") or "none")
    kinds = {"generated objects": "generated", "paste:": "pasted", "pair:": "images with objects"}
    return next((name for start, name in kinds.items() if kind.startswith(start)), kind)


def _read(results: OodResults, score: str, objects: str) -> _Version:
    lines: dict[str, dict[str, Any]] = {}
    total: np.ndarray | int = 0
    for path in sorted((results.folder / "blocks").glob("*.jsonl")):
        found, levels, _ = results.read_block(path.stem)
        lines |= {line["made_from"]["id"]: line for line in found}
        scores = list(found[0].get("figures", {}))
        if score not in scores:
            raise GenValError(f"{path} has no {score}. Delete it and run ood_detection/main_gen_ood.py again.")
        total = total + levels[scores.index(score)]
    return _Version(results, score, lines, np.asarray(total), objects)


def _has_map(version: _Version, item_id: str) -> bool:
    return item_id in version.lines and version.results.levels(version.score, item_id).exists()


def _encode(before: _Version, after: _Version, item_id: str, width: int) -> dict[str, Any]:
    made_from = after.lines[item_id]["made_from"]
    kinds = tuple(OOD_LAYOUTS[after.results.dataset].kinds.items())
    item = OodItem(item_id, Path(made_from["image"]), Path(made_from["mask"]), after.results.dataset, "", kinds=kinds)
    image, pixels = read_ood_pair(item)
    return {
        "id": item_id,
        "image": photograph(image, width),
        "object": object_map(pixels == OBJECT, width),
        **{
            name: {"map": shade_map(version.shades(item_id), width), "aupr": version.aupr(item_id)}
            for name, version in (("before", before), ("after", after))
        },
    }
