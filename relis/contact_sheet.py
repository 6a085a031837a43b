"""Write a contact sheet of generated sets: mask, original, generated image and a segmenter's prediction, by column.

Reads:  {generated_dir}/{domain}/{leftImg8bit,gtFine,original}/, and predictions of relis/eval.py
Writes: {output_dir}/contact_sheet.png

    python relis/contact_sheet.py --domains fog,night --segmenters SegFormer-B0
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

try:
    from genval.report.settings import ContactSheetSettings
    from genval.runtime import cli
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed in this environment. Run: make install")

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from genval.datasets import Item


def main(settings: ContactSheetSettings) -> None:
    from genval.datasets import find_items, read_pair
    from genval.datasets.items import find_original
    from genval.datasets.labels import colourise
    from genval.datasets.reading import read_image, read_mask
    from genval.datasets.sheet import contact_sheet
    from genval.runtime.files import write_png
    from genval.runtime.paths import resolve

    items: list[Item] = []
    groups: list[tuple[str, int]] = []
    for domain in settings.domains:
        chosen = spread(find_items(f"Cityscapes_{domain}", generated_dir=settings.generated_dir), settings.columns)
        items += chosen
        groups.append((domain, len(chosen)))
    model, predictions = find_predictions(resolve(settings.eval_dir), settings.segmenters, items, settings.preset)

    pairs = [read_pair(item) for item in items]
    originals = [find_original(item) for item in items]
    rows: list[tuple[str, list[np.ndarray | None]]] = [
        ("mask", [colourise(train_ids) for _, train_ids in pairs]),
        ("original", [read_image(path) if path else None for path in originals]),
        ("generated", [image for image, _ in pairs]),
        ("predicted", [colourise(read_mask(path)) for path in predictions]),
    ]
    path = resolve(settings.output_dir) / "contact_sheet.png"
    write_png(path, contact_sheet([row for row in rows if row[1]], groups, settings.tile_width), compression=6)
    print(f"wrote {path}: {len(items)} images" + (f", predictions of {model}" if model else ", no predictions found"))


def spread(items: list[Item], count: int) -> list[Item]:
    """Choose at most `count` items, evenly over the set."""
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def find_predictions(
    root: Path, model: str | None, items: list[Item], preset: str | None
) -> tuple[str | None, list[Path]]:
    """Find the predictions of every item by one segmenter: the given one, or the first that has all."""
    from genval.results.finding import list_models
    from genval.results.scenes import SceneResults
    from genval.runtime.errors import GenValError

    for name in [model] if model else list_models(root):
        scenes = [SceneResults(root, name, f"Cityscapes_{item.cond}", item.cond, item.scene) for item in items]
        paths = [scene.prediction(item.id) for scene, item in zip(scenes, items, strict=True)]
        missing = [scene for scene, path in zip(scenes, paths, strict=True) if not path.exists()]
        if not missing:
            return name, paths
        if model:
            raise GenValError(f"No predictions of {model} in {missing[0].folder}. Run: {missing[0].command(preset)}")
    return None, []


if __name__ == "__main__":
    cli.run(main, ContactSheetSettings, __doc__)
