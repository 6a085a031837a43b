"""How well confidence tells wrong pixels from right ones: PRR, AUROC, AUPR and FPR at 95 % TPR, with 95 % intervals.

Reads:  the counts that relis/eval.py wrote below --root_exp_dir (all pixels; ignored ones count as nothing)
Writes: {results_dir}/{model_arch}/{trg_dataset}_{conditions}.json

    python relis/eval_prr.py --trg_dataset ACDC --cond fog,night --model_arch SegFormer-B0

PRR is 100 for a ranking with every wrong pixel below every right one and 0 for chance.
"""

from __future__ import annotations

import argparse
from typing import Any

from genval.evaluation.arguments import add_saved_set_arguments
from genval.runtime import cli

FIGURES = ("prr_percent", "auroc", "aupr_right", "aupr_wrong", "fpr95")


def parse_args() -> argparse.Namespace:
    parser = cli.script_parser(__doc__, "relis/eval_prr")
    add_saved_set_arguments(parser)
    parser.add_argument("--results_dir", default="results/misclassification", help="where the figures are saved")
    return cli.parse(parser)


def main(args: argparse.Namespace) -> None:
    from genval.results.scenes import model_list
    from genval.runtime.tables import markdown_table

    rows = [measure_model(args, model) for model in model_list(args.model_arch, args.preset)]
    header = ["model", "images", "PRR %", "from", "to", "AUROC %", "AUPR right %", "AUPR wrong %", "FPR95 %"]
    print(markdown_table(header, rows, digits=2))
    print(f"wrote {args.results_dir}/{{model}}/{args.trg_dataset}_... .json")


def measure_model(args: argparse.Namespace, model: str) -> list[Any]:
    """One model: write its file, return its row of the table."""
    from genval.evaluation.calibration import ImageSet
    from genval.metrics.reliability import pool, reliability_bounds, reliability_metrics
    from genval.metrics.segmentation import plain
    from genval.results.scenes import folder_name
    from genval.runtime.files import write_json
    from genval.runtime.paths import resolve
    from genval.runtime.tables import percent

    images = ImageSet(args.trg_dataset, tuple(args.cond), tuple(args.scene))
    scenes = images.find(args, model)
    saved = [(results, item_id) for results in scenes for item_id in results.ids()]
    total, ends = pool(results.read_image(item_id) for results, item_id in saved)
    figures = {name: plain(value) for name, value in reliability_metrics(total).items() if name in FIGURES}
    intervals = {name: [plain(end) for end in ends[name]] for name in FIGURES}
    off_by = {name: plain(value) for name, value in reliability_bounds(total).items() if name in FIGURES}
    about = {"model": model, "src_dataset": args.src_dataset, "set": images.name, "images": len(saved)}
    values = about | figures | {"intervals": intervals, "bounds_of_levels": off_by}
    write_json(resolve(args.results_dir) / folder_name(model) / f"{images.name}.json", values)
    low, high = intervals["prr_percent"]
    return [model, len(saved), figures["prr_percent"], low, high, *(percent(figures[name]) for name in FIGURES[1:])]


if __name__ == "__main__":
    cli.run(main, parse_args)
