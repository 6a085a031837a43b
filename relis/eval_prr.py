"""Measure how well confidence separates wrong from right pixels: PRR, AUROC, AUPR and FPR at 95 % TPR, with intervals.

Reads:  the counts that relis/eval.py wrote in --eval_dir (all labelled pixels)
Writes: {output_dir}/{segmenter}/{trg_dataset}_{conditions}.json

    python relis/eval_prr.py --trg_dataset ACDC --cond fog,night --segmenters SegFormer-B0

PRR is 100 where every wrong pixel has a lower confidence than every right pixel, and 0 for chance.
"""

from __future__ import annotations

import sys
from typing import Any

try:
    from genval.evaluation.settings import MisclassificationSettings
    from genval.runtime import cli
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed in this environment. Run: make install")

METRICS = ("prr_percent", "auroc", "aupr_right", "aupr_wrong", "fpr95")


def main(settings: MisclassificationSettings) -> None:
    from genval.results.scenes import model_list
    from genval.runtime.tables import markdown_table

    rows = [measure_model(settings, model) for model in model_list(settings.segmenters, settings.preset)]
    header = ["segmenter", "images", "PRR %", "from", "to", "AUROC %", "AUPR right %", "AUPR wrong %", "FPR95 %"]
    print(markdown_table(header, rows, digits=2))
    print(f"wrote {settings.output_dir}/{{segmenter}}/{settings.trg_dataset}_{{conditions}}.json")


def measure_model(settings: MisclassificationSettings, model: str) -> list[Any]:
    """Measure one segmenter: write its file, and return its row of the table."""
    from genval.evaluation.calibration import ImageSet
    from genval.metrics.reliability import pool, reliability_bounds, reliability_metrics
    from genval.metrics.segmentation import plain
    from genval.results.scenes import folder_name
    from genval.runtime.files import write_json
    from genval.runtime.paths import resolve
    from genval.runtime.tables import percent

    images = ImageSet(str(settings.trg_dataset), settings.cond, settings.scene)
    scenes = images.find(settings.eval_dir, model, settings.preset)
    saved = [(results, record) for results in scenes for record in results.records()]
    total, ends = pool((results.read_image(record) for results, record in saved), number=len(saved))
    metrics = {name: plain(value) for name, value in reliability_metrics(total).items() if name in METRICS}
    intervals = {name: [plain(end) for end in ends[name]] for name in METRICS}
    bounds = {name: plain(value) for name, value in reliability_bounds(total).items() if name in METRICS}
    head = {"model": model, "src_dataset": settings.src_dataset, "set": images.name, "images": len(saved)}
    values = head | metrics | {"intervals": intervals, "bounds_of_levels": bounds}
    write_json(resolve(settings.output_dir) / folder_name(model) / f"{images.name}.json", values)
    low, high = intervals["prr_percent"]
    return [model, len(saved), metrics["prr_percent"], low, high, *(percent(metrics[name]) for name in METRICS[1:])]


if __name__ == "__main__":
    cli.run(main, MisclassificationSettings, __doc__)
