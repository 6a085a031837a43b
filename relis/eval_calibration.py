"""Calibration errors of evaluated sets: ECE, adaptive ECE, KS error and more, with 95 % intervals and diagrams.

Reads:  what relis/eval.py --save logits or relis/extract_logits.py wrote below --root_exp_dir; or, with --source
        statistics, the counts of all pixels that relis/eval.py always writes
Writes: {results_dir}/{model_arch}/{trg_dataset}_{conditions}.json, .csv and _reliability.png

    python relis/eval_calibration.py --trg_dataset ACDC --cond fog --model_arch SegFormer-B0

ECE: 15 bins of equal width, (lower, upper]. Adaptive ECE: 15 bins of equal population. KS: the largest gap of cumulated
confidence and accuracy. From logits the three are exact; from counts the last two are within 1e-4 on full-size images.
"""

from __future__ import annotations

import argparse
from typing import Any

from genval.evaluation.arguments import add_saved_set_arguments
from genval.runtime import cli


def parse_args() -> argparse.Namespace:
    parser = cli.script_parser(__doc__, "relis/eval_calibration")
    add_saved_set_arguments(parser)
    parser.add_argument("--source", choices=["logits", "statistics"], default="logits", help="what is read")
    parser.add_argument("--results_dir", default="results/calibration_errors", help="where the figures are saved")
    return cli.parse(parser)


def main(args: argparse.Namespace) -> None:
    from genval.results.scenes import model_list
    from genval.runtime.tables import markdown_table

    rows = [measure_model(args, model) for model in model_list(args.model_arch, args.preset)]
    header = ["model", "images", "accuracy %", "confidence %", "ECE %", "from", "to", "adaptive ECE %", "KS %", "NLL"]
    print(markdown_table([*header, "Brier"], rows, digits=2))
    print(f"wrote {args.results_dir}/{{model}}/{args.trg_dataset}_... .json, .csv and _reliability.png")


def measure_model(args: argparse.Namespace, model: str) -> list[Any]:
    """One model: write its files, return its row of the table."""
    from genval.datasets import CLASS_SETS, CLASSES, classes_of
    from genval.evaluation.calibration import ImageSet, try_on
    from genval.evaluation.diagrams import reliability_bins, write_reliability_diagram
    from genval.results.scenes import folder_name, summarise
    from genval.runtime.files import write_csv, write_json
    from genval.runtime.paths import resolve
    from genval.runtime.tables import percent

    images = ImageSet(args.trg_dataset, tuple(args.cond), tuple(args.scene))
    scenes = images.find(args, model)
    if args.source == "logits":
        summary, exact = try_on(scenes)
    else:
        each = ((record["id"], statistics) for results in scenes for record, statistics in results.read_pixels())
        summary, exact = summarise(each, CLASSES, classes_of(args.trg_dataset), CLASS_SETS), {}
    figures = summary.metrics | exact
    stem = resolve(args.results_dir) / folder_name(model) / images.name
    about = {"model": model, "src_dataset": args.src_dataset, "set": images.name, "source": args.source}
    bins = {"reliability_bins": {"before": reliability_bins(summary.total)}}
    write_json(stem.with_name(f"{stem.name}.json"), about | {"images": len(summary.table[1])} | figures | bins)
    single = {key: value for key, value in (about | figures).items() if not isinstance(value, (dict, list))}
    write_csv(stem.with_name(f"{stem.name}.csv"), list(single), [list(single.values())])
    write_reliability_diagram(stem.with_name(f"{stem.name}_reliability.png"), {model: summary.total})
    ends = map(percent, figures["intervals"]["ece"])
    errors = [percent(figures[name]) for name in ("adaptive_ece", "ks")]
    head = [model, len(summary.table[1]), figures["pixel_accuracy_percent"], percent(figures["mean_confidence"])]
    return [*head, percent(figures["ece"]), *ends, *errors, figures["nll"], figures["brier"]]


if __name__ == "__main__":
    cli.run(main, parse_args)
