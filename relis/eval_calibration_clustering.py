"""Try temperatures on another set: calibration errors before and after, with the spread over seeds.

Reads:  what relis/compute_clusters_temp_scaling.py wrote with the same flags below --calibration_dir, and the logits
        (and with several clusters the features) of the set that is tested, below --root_exp_dir
Writes: {results_dir}/{model_arch}/{tested set}/from_{calibrating set}/{method}.json and _reliability.png

    python relis/eval_calibration_clustering.py --protocol synthetic --domains fog,night --model_arch SegFormer-B0

An image takes its cluster's temperature, or with --soft the clusters' average weighted by inverse distance (k-means) or
posterior (gmm). Temperatures of --hardest 0.5 are those of {calibrating set}_hardest50.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from genval.evaluation.arguments import add_calibration_arguments, add_saved_set_arguments
from genval.runtime import cli

if TYPE_CHECKING:
    from collections.abc import Sequence

    from genval.evaluation.calibration import ImageSet
    from genval.results.scenes import SceneResults, Summary

ERRORS = ("ece", "adaptive_ece", "ks")


def parse_args() -> argparse.Namespace:
    parser = cli.script_parser(__doc__, "relis/eval_calibration_clustering")
    add_saved_set_arguments(parser, required=False)
    add_calibration_arguments(parser)
    parser.add_argument("--soft", action="store_true", help="share an image among the clusters")
    parser.add_argument("--results_dir", default="results/temperature_scaling", help="where the figures are saved")
    return cli.parse(parser)


def main(args: argparse.Namespace) -> None:
    from genval.evaluation.calibration import protocol_sets
    from genval.results.scenes import model_list
    from genval.runtime.errors import GenValError
    from genval.runtime.tables import markdown_table

    if args.protocol == "none" and not args.trg_dataset:
        raise GenValError("What is tested? Give --trg_dataset (and --cond, --scene), or a --protocol.")
    tries = [
        (share, row)
        for model in model_list(args.model_arch, args.preset)
        for calibrating, tested in protocol_sets(args)
        for share, row in zip(args.hardest, try_model(args, model, calibrating, tested), strict=True)
    ]
    header = ["model", "tested on", "calibrated on", "ECE % before", "after", "± over seeds"]
    header += ["adaptive before", "after", "KS before", "after"]
    print(markdown_table(header, [row for _, row in tries], digits=2))
    for share in args.hardest:
        better = [row[4] < row[3] for of, row in tries if of == share]
        of_share = f" with the hardest {100 * share:g} % of the images" if share < 1 else ""
        print(f"ECE is better after scaling in {sum(better)} of {len(better)}{of_share}; wrote {args.results_dir}")


def try_model(args: argparse.Namespace, model: str, calibrating: ImageSet, tested: ImageSet) -> list[list[Any]]:
    """One model and one pair of sets: a row of the table for each share of the calibrating images."""
    import dataclasses

    from genval.evaluation.calibration import try_on

    scenes = tested.find(args, model)
    before = try_on(scenes)
    sets = [dataclasses.replace(calibrating, hardest=share) for share in args.hardest]
    return [try_temperatures(args, model, chosen, tested, scenes, before) for chosen in sets]


def try_temperatures(
    args: argparse.Namespace,
    model: str,
    calibrating: ImageSet,
    tested: ImageSet,
    scenes: Sequence[SceneResults],
    unscaled: tuple[Summary, dict[str, float]],
) -> list[Any]:
    """Temperatures of one set tried on the scenes of another: write the files, return the row of the table."""
    import numpy as np

    from genval.evaluation.calibration import calibration_folder, load_calibration, try_on
    from genval.evaluation.diagrams import reliability_bins, write_reliability_diagram
    from genval.results.scenes import folder_name
    from genval.runtime.files import write_json
    from genval.runtime.paths import resolve

    before, exact_before = unscaled
    runs = []
    for seed in args.seeds:
        folder = calibration_folder(args, model, calibrating, seed)
        runs.append(try_on(scenes, load_calibration(folder)[0], args.soft))
    exact_after = {name: float(np.mean([exact[name] for _, exact in runs])) for name in ERRORS}
    spread = {name: float(np.std([exact[name] for _, exact in runs])) for name in ERRORS}
    place = resolve(args.results_dir) / folder_name(model) / tested.name / f"from_{calibrating.name}"
    stem = place / f"{calibration_folder(args, model, calibrating, 0).parent.name}{'_soft' if args.soft else ''}"
    values = {
        "model": model,
        "tested_on": tested.name,
        "calibrated_on": calibrating.name,
        **({"hardest": calibrating.hardest} if calibrating.hardest < 1 else {}),
        "seeds": args.seeds,
        "before": before.metrics | exact_before,
        "after": [summary.metrics | exact for summary, exact in runs],
        "after_mean": exact_after,
        "after_std_over_seeds": spread,
    }
    panels = {"before": before.total, "after scaling": runs[0][0].total}
    values["reliability_bins"] = {title: reliability_bins(total) for title, total in panels.items()}
    write_json(stem.with_name(f"{stem.name}.json"), values)
    write_reliability_diagram(stem.with_name(f"{stem.name}_reliability.png"), panels)
    pairs = [100 * value for name in ERRORS for value in (exact_before[name], exact_after[name])]
    return [model, tested.name, calibrating.name, *pairs[:2], 100 * spread["ece"], *pairs[2:]]


if __name__ == "__main__":
    cli.run(main, parse_args)
