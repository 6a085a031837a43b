"""Try local temperatures on another set: calibration without scaling, with a single temperature, and pixel by pixel.

Reads:  what relis/train_lts_network.py wrote with the same flags below --calibration_dir, and the logits of all pixels
        of the set that is tested, below --root_exp_dir, and its images
Writes: {results_dir}/{model_arch}/{tested set}/from_{calibrating set}/local.json and local_reliability.png

    python relis/eval_calibration_lts.py --protocol cityscapes --model_arch SegFormer-B0

The single temperatures are those of least NLL and (of the published grid) of least ECE on the calibrating set. All
pixels are measured, with intervals over images.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from genval.evaluation.arguments import add_calibrating_set_arguments, add_saved_set_arguments
from genval.runtime import cli

if TYPE_CHECKING:
    import torch

    from genval.evaluation.calibration import ImageSet

ERRORS = ("ece", "nll", "brier", "adaptive_ece", "ks", "classwise_ece")


def parse_args() -> argparse.Namespace:
    parser = cli.script_parser(__doc__, "relis/eval_calibration_lts")
    add_saved_set_arguments(parser, required=False)
    add_calibrating_set_arguments(parser)
    parser.add_argument("--device", default="cpu", help="where the networks run: cpu, cuda, cuda:1")
    parser.add_argument("--results_dir", default="results/local_scaling", help="where the figures are saved")
    return cli.parse(parser)


def main(args: argparse.Namespace) -> None:
    import torch

    from genval.evaluation.calibration import protocol_sets
    from genval.results.scenes import model_list
    from genval.runtime.errors import GenValError
    from genval.runtime.tables import markdown_table

    if args.protocol == "none" and not args.trg_dataset:
        raise GenValError("What is tested? Give --trg_dataset (and --cond, --scene), or a --protocol.")
    try:
        device = torch.zeros(0, device=args.device).device
    except (RuntimeError, AssertionError) as error:
        raise GenValError(f"--device {args.device} cannot be had: {error}. Give cpu.") from error
    rows = [
        try_model(args, model, calibrating, tested, device)
        for model in model_list(args.model_arch, args.preset)
        for calibrating, tested in protocol_sets(args)
    ]
    header = [
        "model",
        "tested on",
        "calibrated on",
        "ECE % unscaled",
        "single (ECE)",
        "single (NLL)",
        "local",
        "± seeds",
    ]
    print(markdown_table([*header, "NLL unscaled", "single (NLL)", "local"], rows, digits=4))
    better = sum(row[-1] < row[-2] for row in rows)
    print(f"local temperatures have the lower NLL in {better} of {len(rows)}; wrote {args.results_dir}")


def try_model(
    args: argparse.Namespace, model: str, calibrating: ImageSet, tested: ImageSet, device: torch.device
) -> list[Any]:
    """One model and one pair of sets: write its files, return its row of the table."""
    import numpy as np
    import torch

    from genval.evaluation.diagrams import write_reliability_diagram
    from genval.evaluation.local_temperature import list_saved, load_network, local_folder, measure_scaled
    from genval.results.scenes import folder_name
    from genval.runtime.files import write_json
    from genval.runtime.paths import resolve

    loaded = [load_network(local_folder(args, model, calibrating, seed), device) for seed in args.seeds]
    images = list_saved(tested.find(args, model))
    single = {name: torch.full((1, 1, 1), value, device=device) for name, value in loaded[0][1]["temperatures"].items()}
    one = torch.ones(1, 1, 1, device=device)
    unscaled = measure_scaled(images, lambda _: one, device)
    singles = {name: measure_scaled(images, lambda _, value=value: value, device) for name, value in single.items()}
    local = [measure_scaled(images, lambda at, n=net: n(at.logits, at.image), device) for net, _ in loaded]
    mean = {name: float(np.mean([summary.metrics[name] for summary in local])) for name in ERRORS}
    spread = {name: float(np.std([summary.metrics[name] for summary in local])) for name in ERRORS}
    values = {
        "model": model,
        "tested_on": tested.name,
        "calibrated_on": calibrating.name,
        "images": len(images),
        "seeds": args.seeds,
        "temperatures": loaded[0][1]["temperatures"],
        "unscaled": unscaled.metrics,
        "single": {name: summary.metrics for name, summary in singles.items()},
        "local": [summary.metrics for summary in local],
        "local_mean": mean,
        "local_std_over_seeds": spread,
    }
    place = resolve(args.results_dir) / folder_name(model) / tested.name / f"from_{calibrating.name}"
    stem = local_folder(args, model, calibrating, args.seeds[0]).parent.name
    write_json(place / f"{stem}.json", values)
    panels = {"unscaled": unscaled.total, "single temperature": singles["nll"].total, "local": local[0].total}
    write_reliability_diagram(place / f"{stem}_reliability.png", panels)
    errors = [
        100 * figures["ece"] for figures in (unscaled.metrics, *(singles[n].metrics for n in ("ece", "nll")), mean)
    ]
    likelihoods = [unscaled.metrics["nll"], singles["nll"].metrics["nll"], mean["nll"]]
    return [model, tested.name, calibrating.name, *errors, 100 * spread["ece"], *likelihoods]


if __name__ == "__main__":
    cli.run(main, parse_args)
