"""Evaluate segmenters on labelled images: predictions, and the counts from which every metric is computed.

Reads:  datasets/ or images/style_transfer/, and the segmenters' checkpoints
Writes: {eval_dir}/{segmenter}/{trg_dataset}/{cond}/{scene}/: predictions/{id}.png (trainIds), statistics/{id}.json
        and .npz (counts and sums of the image), metrics.json (metrics with intervals), confusion_matrix.csv,
        per_image.csv, manifest.jsonl, settings.json, and by --save logits.safetensors and features.safetensors

    python relis/eval.py --trg_dataset ACDC --cond fog --segmenters SegFormer-B0,DLV3+ResNet50

Run the same command again to resume. relis/compute_final_metrics.py pools scenes and conditions.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

try:
    from genval.evaluation.settings import LIST_MODELS, EvalScriptSettings
    from genval.runtime import cli
    from genval.runtime.imports import without_garbage_collection
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed in this environment. Run: make install")

if TYPE_CHECKING:
    from genval.evaluation.segmentation import Evaluated


def main(settings: EvalScriptSettings) -> None:
    with without_garbage_collection():
        from genval.evaluation.segmentation import evaluate_all
    from genval.runtime.tables import markdown_table

    evaluated = evaluate_all(settings)
    if evaluated:
        header = ["segmenter", "data set", "condition", "images", "skipped", "mIoU %", "pixel accuracy %"]
        rows = [row for one in evaluated for row in table_rows(one)]
        print(markdown_table([*header, "ECE %", "AUROC of errors %"], rows, digits=2))
        print(f"wrote {settings.eval_dir}/{{segmenter}}/{{data set}}/{{condition}}/{{scene}}/metrics.json")


def table_rows(evaluated: Evaluated) -> list[list[Any]]:
    """Return one segmenter's rows on one data set, one per condition."""
    rows: list[list[Any]] = []
    for cond in evaluated.totals:
        head = [evaluated.model, evaluated.dataset, cond, evaluated.images[cond], evaluated.skipped[cond]]
        metrics = evaluated.metrics(cond)
        values = [100 * metrics["miou"], metrics["pixel_accuracy"], 100 * metrics["ece"], 100 * metrics["auroc"]]
        rows.append([*head, *values])
    return rows


if __name__ == "__main__":
    cli.run(main, EvalScriptSettings, __doc__, LIST_MODELS)
