"""One picture of generated sets: mask, original, generated image and a model's prediction, column by column.

Reads:  {generated_dir}/{domain}/{leftImg8bit,gtFine,original}/, and predictions of relis/eval.py
Writes: {results_dir}/contact_sheet.png

    python relis/contact_sheet.py --domains fog,night --model_arch SegFormer-B0
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import path_dicts
from genval.runtime import cli

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from genval.datasets import Item


def parse_args() -> argparse.Namespace:
    parser = cli.script_parser(__doc__, "relis/contact_sheet")
    parser.add_argument("--domains", type=cli.comma_list, default="fog,night,rain,snow", help="generated sets to show")
    parser.add_argument("--columns", type=cli.positive_int, default=3, help="images a domain, spread over the set")
    parser.add_argument("--tile_width", type=cli.positive_int, default=256, help="pixels an image")
    parser.add_argument(
        "--model_arch", help="whose predictions are shown; by default the first model that has all of them"
    )
    parser.add_argument("--generated_dir", default=path_dicts.GENERATED_ROOT, help="the folder of the generated sets")
    parser.add_argument("--root_exp_dir", default="results/eval", help="the results of relis/eval.py")
    parser.add_argument("--results_dir", default="results/domains", help="where the picture is saved")
    return cli.parse(parser)


def main(args: argparse.Namespace) -> None:
    from genval.datasets import find_items, read_pair
    from genval.datasets.items import find_original
    from genval.datasets.labels import colourise
    from genval.datasets.sheet import contact_sheet
    from genval.runtime.files import read_image, read_mask, write_png
    from genval.runtime.paths import resolve

    items: list[Item] = []
    groups: list[tuple[str, int]] = []
    for domain in args.domains:
        chosen = spread(find_items(f"Cityscapes_{domain}", generated_dir=args.generated_dir), args.columns)
        items += chosen
        groups.append((domain, len(chosen)))
    model, predictions = find_predictions(resolve(args.root_exp_dir), args.model_arch, items, args.preset)

    pairs = [read_pair(item) for item in items]
    originals = [find_original(item) for item in items]
    rows: list[tuple[str, list[np.ndarray | None]]] = [
        ("mask", [colourise(train_ids) for _, train_ids in pairs]),
        ("original", [read_image(path) if path else None for path in originals]),
        ("generated", [image for image, _ in pairs]),
        ("predicted", [colourise(read_mask(path)) for path in predictions]),
    ]
    path = resolve(args.results_dir) / "contact_sheet.png"
    write_png(path, contact_sheet([row for row in rows if row[1]], groups, args.tile_width), compression=6)
    print(f"wrote {path}: {len(items)} images" + (f", predictions of {model}" if model else ", no predictions found"))


def spread(items: list[Item], count: int) -> list[Item]:
    """At most `count` items, evenly over the set."""
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def find_predictions(
    root: Path, model: str | None, items: list[Item], preset: str | None
) -> tuple[str | None, list[Path]]:
    """The predicted trainIds of every item by one model: the one named, or the first that has them all."""
    from genval.results.scenes import SceneResults, list_models
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
    cli.run(main, parse_args)
