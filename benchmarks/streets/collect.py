"""Collect the results of evaluate.py and boxes.py in a few small files, which study.py reads.

Temperatures are searched on pixels of each set (with the lowest ECE) and tried on the real set of its domain.

Reads:  EVAL_DIR, BOXES_DIR, OOD_DIR
Writes: OUTPUT_DIR/sets/{set}_{condition}.npz: of each image and segmenter, hits, labelled and predicted pixels of each
        class, and right pixels, pixels and confidences by bin; temperatures.json, boxes.json, ood.json, models.json

    python benchmarks/streets/collect.py --jobs 8
"""

from __future__ import annotations

import csv
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

try:
    from genval.runtime import cli
except ModuleNotFoundError:
    sys.exit("error: GenVal is not installed in this environment. Run: make install")

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

    models = list(find_models(settings.published, settings.own))
    root, output = resolve(settings.eval_dir), resolve(settings.output_dir)
    places = find_sets(root, models)
    if not places:
        raise GenValError(f"No results in {settings.eval_dir}. Run benchmarks/streets/evaluate.py.")
    with ProcessPoolExecutor(settings.jobs) as pool:
        lines = pool.map(collect_set, *zip(*((root, models, place, output) for place in places), strict=True))
        found = pool.map(temperatures, *zip(*((root, model, places) for model in models), strict=True))
        print("\n".join(lines))
        write_json(output / "temperatures.json", [row for rows in found for row in rows])
    boxes = {short_name(model): resolve(settings.boxes_dir) / f"{short_name(model)}.json" for model in models}
    write_json(
        output / "boxes.json", {name: read_json(path)["photos"] for name, path in boxes.items() if path.exists()}
    )
    write_json(output / "ood.json", read_ood(resolve(settings.ood_dir), models))
    write_json(output / "models.json", {short_name(model): family_of(model) for model in models})
    print(f"wrote {settings.output_dir}")


def find_sets(root: Path, models: list[str]) -> list[Set]:
    """Return the data sets and conditions on which any segmenter has results."""
    from genval.results.scenes import folder_name

    folders = [root / folder_name(model) for model in models]
    found = {(cond.parent.name, cond.name) for folder in folders for cond in folder.glob("*/*") if cond.is_dir()}
    return sorted(found)


def collect_set(root: Path, models: list[str], place: Set, output: Path) -> str:
    """Write the counts of all segmenters on a set; return a line about it."""
    import numpy as np

    from genval.report.evidence import Place, read_evidence
    from genval.runtime.files import replace_file

    evidence = read_evidence(root, models, Place(*place), None, [])
    if evidence is None or evidence.bins is None:
        return f"{place[0]} ({place[1]}): nothing"
    has = evidence.has() & evidence.has_bins()
    with replace_file(output / "sets" / f"{place[0]}_{place[1]}.npz") as temporary, temporary.open("wb") as stream:
        np.savez_compressed(
            stream,
            images=np.array(evidence.images),
            models=np.array([short_name(model) for model, here in zip(models, has, strict=True) if here]),
            counts=evidence.counts[:, has].astype(np.uint32),
            bins=evidence.bins[:, has].astype(np.float32),
        )
    without = f", {(~has).sum()} without results" if not has.all() else ""
    return f"{place[0]} ({place[1]}): {len(evidence.images)} images, {has.sum()} segmenters{without}"


def temperatures(root: Path, model: str, places: list[Set]) -> list[dict[str, Any]]:
    """Return the temperature of a segmenter from each set, and its ECE on the real set of the domain with it."""
    from genval.metrics.temperature import ece_at, search_ece

    pixels = {place: read_pixels(root, model, place) for place in places}
    rows = []
    for domain, real in REAL.items():
        target = pixels.get(real)
        if target is None:
            continue
        for place, source in pixels.items():
            if source is None or not is_source(place, domain):
                continue
            temperature = 1.0 if place == real else search_ece(source).temperature
            ece = ece_at(target, temperature)[0]
            row = {"model": short_name(model), "domain": domain, "source": place[0], "temperature": temperature}
            rows.append({**row, "ece": ece})
    return rows


def is_source(place: Set, domain: str) -> bool:
    """Whether a set is the real set of a domain, clear Cityscapes, or a generated or changed set of the domain."""
    dataset, cond = place
    if place == REAL[domain]:
        return True
    merged = dataset.endswith(f"@{MERGED}") == (domain == "india")
    return merged and (
        dataset.partition("@")[0] == "Cityscapes" or (dataset.startswith("Cityscapes_") and cond == domain)
    )


def read_pixels(root: Path, model: str, place: Set) -> Pixels | None:
    """Read the saved logits and labels of a set; None without results."""
    import numpy as np

    from genval.metrics.temperature import Pixels
    from genval.results.finding import NoResultsError, list_scenes, open_tensors
    from genval.results.scenes import ALL

    try:
        scenes = list_scenes(root, model, place[0], [(place[1], ALL)])
    except NoResultsError:
        return None
    parts = []
    for scene in scenes:
        tensors = open_tensors(scene, "logits")
        parts += [tensors.read(item_id, "logits", "labels") for item_id in tensors.ids]
    logits, labels = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    return Pixels.from_logits(logits.astype(np.float32), labels)


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
