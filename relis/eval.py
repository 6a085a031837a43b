"""Run segmenters on labelled images: predictions, and the counts every figure of reliability is computed from.

Reads:  datasets/ or images/style_transfer/, and the segmenters' checkpoints
Writes: {root_exp_dir}/{model_arch}/{trg_dataset}/{cond}/{scene}/: predictions/{id}.png (trainIds), statistics/{id}.json
        and .npz (counts and sums of the image), metrics.json (figures with intervals), confusion_matrix.csv,
        per_image.csv, manifest.jsonl, settings.json, and by --save logits.safetensors and features.safetensors

    python relis/eval.py --trg_dataset ACDC --cond fog --model_arch SegFormer-B0,DLV3+ResNet50

Run again, it goes on where it was. relis/compute_final_metrics.py pools scenes and conditions.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from genval.evaluation.arguments import add_evaluation_arguments, pixel_number, saved_kinds
from genval.runtime import cli

if TYPE_CHECKING:
    from genval.evaluation.segmentation import Evaluated


def parse_args() -> argparse.Namespace:
    parser = cli.script_parser(__doc__, "relis/eval")
    kept = add_evaluation_arguments(parser)
    kept.add_argument("--save", type=saved_kinds, default="predictions", help="predictions,logits,features, or none")
    kept.add_argument(
        "--sample",
        type=pixel_number,
        default=-1,
        help="measure confidences on so many random pixels an image (published: 20000); -1 is all",
    )
    return cli.parse(parser)


def main(args: argparse.Namespace) -> None:
    from genval.evaluation.segmentation import evaluate_all
    from genval.runtime.tables import markdown_table

    evaluated = evaluate_all(args)
    if evaluated:
        header = ["model", "data set", "condition", "images", "skipped", "mIoU %", "pixel accuracy %"]
        rows = [row for one in evaluated for row in table_rows(one)]
        print(markdown_table([*header, "ECE %", "AUROC of errors %"], rows, digits=2))
        print(f"wrote {args.root_exp_dir}/{{model}}/{{data set}}/{{condition}}/{{scene}}/metrics.json")


def table_rows(evaluated: Evaluated) -> list[list[Any]]:
    """One model's rows on one data set, one a condition."""
    from genval.datasets import classes_of
    from genval.metrics.reliability import reliability_metrics
    from genval.metrics.segmentation import mean_iou, pixel_accuracy

    rows: list[list[Any]] = []
    for cond, total in evaluated.totals.items():
        head = [evaluated.model, evaluated.dataset, cond, evaluated.images[cond], evaluated.skipped[cond]]
        miou = 100 * mean_iou(total.confusion, classes_of(evaluated.dataset))
        figures = reliability_metrics(total)
        rows.append([*head, miou, pixel_accuracy(total.confusion), 100 * figures["ece"], 100 * figures["auroc"]])
    return rows


if __name__ == "__main__":
    cli.run(main, parse_args)
