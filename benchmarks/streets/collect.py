"""Collect the results of evaluate.py and boxes.py in a few small files, which study.py reads.

Temperatures with the lowest ECE are found with pixels of each set and tested on the real set of its domain. The
label-free estimates of genval/report/label_free.py are computed for the real sets.

Reads:  EVAL_DIR, BOXES_DIR, OOD_DIR
Writes: OUTPUT_DIR/sets/{set}_{condition}.npz: of each image and segmenter, hits, labelled and predicted pixels of each
        class, and right pixels, pixels and confidences by bin; temperatures.json, estimates.json, boxes.json, ood.json,
        models.json

    python benchmarks/streets/collect.py --jobs 8
"""

from __future__ import annotations

import csv
import functools
import os
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

try:
    from genval.runtime import cli
except ModuleNotFoundError:
    sys.exit("error: GenVal is not installed in this environment. Run: make install")

import numpy as np
from models import family_of, find_models, short_name

from genval.runtime.errors import GenValError
from genval.runtime.flags import flag
from genval.runtime.paths import resolve
from genval.runtime.settings import positive_int

if TYPE_CHECKING:
    from genval.metrics.temperature import Pixels

REAL = {
    "fog": ("ACDC", "fog"),
    "night": ("ACDC", "night"),
    "rain": ("ACDC", "rain"),
    "snow": ("ACDC", "snow"),
    "india": ("IDD-lite", "india"),
    "dusk": ("CamVid", "dusk"),
}
"""Data set and condition of the real images of each domain."""
MERGED = "idd-level1"
FEWEST_VOTERS = 3
Set = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class CollectSettings:
    """Settings of benchmarks/streets/collect.py."""

    SCRIPT: ClassVar[str] = "benchmarks/streets/collect"

    published: str = flag("checkpoints/streets/published", "folder of the exported networks")
    own: str = flag("checkpoints/streets/segmenters", "folder of the segmenters of the recipe")
    eval_dir: str = flag("results/streets/eval", "results of evaluate.py")
    boxes_dir: str = flag("results/streets/boxes", "results of boxes.py")
    ood_dir: str = flag("results/streets/ood_detection", "results of ood_detection/main_gen_ood.py")
    output_dir: str = flag("results/streets/collected", "folder of the files")
    jobs: int = flag(os.cpu_count() or 1, "processes", type=positive_int)
    preset: str | None = None


def main(settings: CollectSettings) -> None:
    from genval.runtime.files import read_json, write_json

    models = find_models(settings.published, settings.own)
    names = [short_name(model) for model in models]
    root, output = resolve(settings.eval_dir), resolve(settings.output_dir)
    places = find_sets(root)
    if not places:
        raise GenValError(f"No results in {settings.eval_dir}. Run benchmarks/streets/evaluate.py.")
    votes = [place for place in places if place in REAL.values()]
    with ProcessPoolExecutor(settings.jobs) as pool:
        lines = pool.map(collect_set, *zip(*((root, names, place, output) for place in places), strict=True))
        voted = pool.map(collect_votes, *zip(*((root, names, place) for place in votes), strict=True)) if votes else ()
        found = pool.map(temperatures, *zip(*((root, name, places) for name in names), strict=True))
        guesses = pool.map(estimates, *zip(*((root, name) for name in names), strict=True))
        print("\n".join(lines))
        write_json(output / "temperatures.json", [row for rows in found for row in rows])
        write_json(output / "estimates.json", [row for rows in (*guesses, *voted) for row in rows])
    boxes = {name: resolve(settings.boxes_dir) / f"{name}.json" for name in names}
    write_json(
        output / "boxes.json", {name: read_json(path)["photos"] for name, path in boxes.items() if path.exists()}
    )
    write_json(output / "ood.json", read_ood(resolve(settings.ood_dir), list(models)))
    write_json(output / "models.json", {short_name(model): family_of(model) for model in models})
    print(f"wrote {settings.output_dir}")


def find_sets(root: Path) -> list[Set]:
    """Return the data sets and conditions on which any segmenter has results."""
    found = {tuple(path.stem.rpartition("_")[::2]) for path in root.glob("*/*.npz")}
    return sorted((dataset, cond) for dataset, cond in found)


def read(root: Path, name: str, place: Set, *fields: str) -> dict[str, np.ndarray] | None:
    """Read what evaluate.py measured of a segmenter on a set; None without results."""
    from genval.artifacts.tensors import read_arrays

    path = root / name / f"{place[0]}_{place[1]}.npz"
    remedy = "Delete it and run benchmarks/streets/evaluate.py again."
    return read_arrays(path, fields, remedy) if path.exists() else None


def read_same(root: Path, names: Sequence[str], place: Set, *fields: str) -> dict[str, dict[str, np.ndarray]]:
    """Read what evaluate.py measured of segmenters on a set, without those that were measured on other images."""
    found = {name: arrays for name in names if (arrays := read(root, name, place, "made_from", *fields)) is not None}
    marks = Counter(arrays["made_from"].tobytes() for arrays in found.values())
    usual = marks.most_common(1)[0][0] if marks else b""
    return {name: arrays for name, arrays in found.items() if arrays["made_from"].tobytes() == usual}


def collect_set(root: Path, names: Sequence[str], place: Set, output: Path) -> str:
    """Write the counts of all segmenters on a set; return a line about it."""
    from genval.runtime.files import replace_file

    found = read_same(root, names, place, "images", "counts", "bins")
    images = next(iter(found.values()))["images"].astype(np.uint8).tobytes().decode().split("\n")
    with replace_file(output / "sets" / f"{place[0]}_{place[1]}.npz") as temporary, temporary.open("wb") as stream:
        np.savez_compressed(
            stream,
            images=np.array(images),
            models=np.array(list(found)),
            counts=np.stack([arrays["counts"] for arrays in found.values()], 1).astype(np.uint32),
            bins=np.stack([arrays["bins"] for arrays in found.values()], 1).astype(np.float32),
        )
    absent = [name for name in names if name not in found]
    without = f"; without {', '.join(absent)}" if absent else ""
    return f"{place[0]} ({place[1]}): {len(images)} images, {len(found)} segmenters{without}"


def collect_votes(root: Path, names: Sequence[str], place: Set) -> list[dict[str, Any]]:
    """Return, by segmenter, the mIoU in percent with the majority vote of the others on a real set."""
    from genval.report.label_free import vote_counts
    from genval.report.scores import mean_iou

    found = read_same(root, names, place, "votes", "counts")
    if len(found) < FEWEST_VOTERS:
        return []
    classes = next(iter(found.values()))["counts"].shape[-1]
    counts = vote_counts(np.stack([arrays["votes"].astype(np.uint8) for arrays in found.values()]), classes)
    domain = next(domain for domain, real in REAL.items() if real == place)
    pairs = zip(found, mean_iou(counts, range(classes)).tolist(), strict=True)
    return [{"model": name, "domain": domain, "estimate": "vote", "value": value} for name, value in pairs]


def estimates(root: Path, name: str) -> list[dict[str, Any]]:
    """Return estimates of a segmenter's accuracy in percent on each real set, from its confidences without labels."""
    from genval.report.label_free import pixels_above, threshold_level

    rows = []
    for domain, real in REAL.items():
        clear = ("Cityscapes" if domain != "india" else f"Cityscapes@{MERGED}", "clean")
        known, seen = (read(root, name, place, "bins", "levels") for place in (clear, real))
        if known is None or seen is None:
            continue
        above, pixels = pixels_above(seen["levels"], threshold_level(known["levels"]))
        right, counted, confidence = known["bins"].astype(np.float64).sum((0, 2))
        _, seen_pixels, seen_confidence = seen["bins"].astype(np.float64).sum((0, 2))
        average = 100 * seen_confidence / seen_pixels
        found = {
            "confidence": average,
            "doc": 100 * right / counted - (100 * confidence / counted - average),
            "atc": 100 * above / pixels,
        }
        rows += [
            {"model": name, "domain": domain, "estimate": kind, "value": float(value)} for kind, value in found.items()
        ]
    return rows


def temperatures(root: Path, name: str, places: list[Set]) -> list[dict[str, Any]]:
    """Return the temperature of a segmenter from each set, and its ECE on the real set of the domain with it.

    The source of temperature 1 is the name of the real set; `best` is the temperature that is searched on it.
    """
    from genval.metrics.temperature import ece_at, search_ece

    @functools.cache
    def search(place: Set) -> float | None:
        pixels = read_pixels(root, name, place)
        return None if pixels is None else search_ece(pixels).temperature

    rows = []
    for domain, real in REAL.items():
        target = read_pixels(root, name, real)
        if target is None:
            continue
        sources = {place[0]: search(place) for place in places if is_source(place, domain)}
        for source, temperature in {real[0]: 1.0, **sources, "best": search(real)}.items():
            if temperature is not None:
                row = {"model": name, "domain": domain, "source": source, "temperature": temperature}
                rows.append({**row, "ece": ece_at(target, temperature)[0]})
    return rows


def is_source(place: Set, domain: str) -> bool:
    """Whether a set is clear Cityscapes, or a generated or changed set of a domain."""
    dataset, cond = place
    merged = dataset.endswith(f"@{MERGED}") == (domain == "india")
    return merged and (
        dataset.partition("@")[0] == "Cityscapes" or (dataset.startswith("Cityscapes_") and cond == domain)
    )


def read_pixels(root: Path, name: str, place: Set) -> Pixels | None:
    """Read the saved logits and labels of a set; None without results."""
    from genval.metrics.temperature import Pixels

    found = read(root, name, place, "logits", "labels")
    return None if found is None else Pixels.from_logits(found["logits"].astype(np.float32), found["labels"])


def read_ood(root: Path, models: list[str]) -> dict[str, dict[str, Any]]:
    """Return the metrics of each score, by set and segmenter; the set of two folders is the pasted one."""
    from genval.results.scenes import folder_name

    values: dict[str, dict[str, Any]] = {}
    for folder in sorted(path for path in root.glob("*") if path.is_dir()):
        for model in models:
            path = folder / f"{folder_name(model)}.csv"
            if path.exists():
                name = "pasted" if folder.name.startswith("pair") else folder.name
                with path.open(encoding="utf-8") as file:
                    values.setdefault(name, {})[short_name(model)] = list(csv.DictReader(file))
    return values


if __name__ == "__main__":
    cli.run(main, CollectSettings, __doc__)
