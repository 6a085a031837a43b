"""Measure calibration errors of evaluated sets: ECE, adaptive ECE, KS error and more, with 95 % intervals and diagrams.

Reads:  the logits that relis/eval.py --save logits or relis/extract_logits.py wrote in --eval_dir; with --source
        statistics, the counts of all pixels that relis/eval.py always writes
Writes: {output_dir}/{segmenter}/{trg_dataset}_{conditions}.json, .csv and _reliability.png

    python relis/eval_calibration.py --trg_dataset ACDC --cond fog --segmenters SegFormer-B0

ECE: 15 bins of equal width, (lower, upper]. Adaptive ECE: 15 bins of equal population. KS: the largest gap between
cumulated confidence and accuracy. From logits all three are exact. From counts, adaptive ECE and KS are within 1e-4 of
the exact values on full-size images.
"""

from __future__ import annotations

import sys
from typing import Any

try:
    from genval.evaluation.settings import CalibrationErrorSettings
    from genval.runtime import cli
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed in this environment. Run: make install")


def main(settings: CalibrationErrorSettings) -> None:
    from genval.results.scenes import model_list
    from genval.runtime.tables import markdown_table

    rows = [measure_model(settings, model) for model in model_list(settings.segmenters, settings.preset)]
    header = ["segmenter", "images", "accuracy %", "confidence %", "ECE %", "from", "to", "adaptive ECE %", "KS %"]
    print(markdown_table([*header, "NLL", "Brier"], rows, digits=2))
    name = f"{settings.trg_dataset}_{{conditions}}"
    print(f"wrote {settings.output_dir}/{{segmenter}}/{name}.json, .csv and _reliability.png")


def measure_model(settings: CalibrationErrorSettings, model: str) -> list[Any]:
    """Measure one segmenter: write its files, and return its row of the table."""
    from genval.datasets import label_space_of
    from genval.evaluation.calibration import ImageSet, evaluate_calibration
    from genval.evaluation.diagrams import reliability_bins, write_reliability_diagram
    from genval.results.finding import provenance
    from genval.results.scenes import folder_name, summarise
    from genval.runtime.files import write_csv, write_json
    from genval.runtime.paths import resolve
    from genval.runtime.tables import percent

    images = ImageSet(str(settings.trg_dataset), settings.cond, settings.scene)
    saved = {"save": "logits"} if settings.source == "logits" else {}
    scenes = images.find(settings.eval_dir, model, settings.preset, **saved)
    if settings.source == "logits":
        summary, exact = evaluate_calibration(scenes)
    else:
        each = ((record["id"], statistics) for results in scenes for record, statistics in results.read_pixels())
        space = label_space_of(str(settings.trg_dataset))
        summary, exact = summarise(each, space.names, space.classes, space.class_sets), {}
    metrics = summary.metrics | exact
    stem = resolve(settings.output_dir) / folder_name(model) / images.name
    made = provenance(scenes).model_record
    head = {"model": model, **made, "src_dataset": settings.src_dataset, "set": images.name, "source": settings.source}
    bins = {"reliability_bins": {"before": reliability_bins(summary.total)}}
    write_json(stem.with_name(f"{stem.name}.json"), head | {"images": len(summary.table[1])} | metrics | bins)
    single = {key: value for key, value in (head | metrics).items() if not isinstance(value, (dict, list))}
    write_csv(stem.with_name(f"{stem.name}.csv"), list(single), [list(single.values())])
    write_reliability_diagram(stem.with_name(f"{stem.name}_reliability.png"), {model: summary.total})
    ends = map(percent, metrics["intervals"]["ece"])
    errors = [percent(metrics[name]) for name in ("adaptive_ece", "ks")]
    row = [model, len(summary.table[1]), metrics["pixel_accuracy_percent"], percent(metrics["mean_confidence"])]
    return [*row, percent(metrics["ece"]), *ends, *errors, metrics["nll"], metrics["brier"]]


if __name__ == "__main__":
    cli.run(main, CalibrationErrorSettings, __doc__)
