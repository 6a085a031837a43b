"""Find temperatures: cluster a set's images by their features, and give each cluster the best one.

Reads:  what relis/eval.py --save logits,features (or relis/extract_logits.py and extract_features.py) wrote below
        --root_exp_dir; one cluster (the default) needs no features
Writes: {calibration_dir}/{model_arch}/{set}/{method}/seed{S}/: cluster_model.npz, best_temperatures.json

    python relis/compute_clusters_temp_scaling.py --protocol cityscapes --model_arch SegFormer-B0 --n_clusters 8

--calib_metric ece takes the published grid's best (0.5 to 9.99 in steps of 0.01), nll the exact minimum.
--per_class_temperature gives each predicted class its own. --hardest 0.5 takes only that share of the images, for each
model those with the smallest shares of right pixels; it is named {set}_hardest50 and lies beside that of all images.
relis/eval_calibration_clustering.py tries temperatures on other sets.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from genval.evaluation.arguments import add_calibration_arguments
from genval.runtime import cli

if TYPE_CHECKING:
    from genval.evaluation.calibration import ImageSet


def parse_args() -> argparse.Namespace:
    parser = cli.script_parser(__doc__, "relis/compute_clusters_temp_scaling")
    parser.add_argument("--model_arch", required=True, help="models as given to relis/eval.py, or all")
    parser.add_argument("--root_exp_dir", default="results/eval", help="the results of relis/eval.py")
    add_calibration_arguments(parser)
    parser.set_defaults(trg_dataset=None, cond=["all"], scene=["all"])
    return cli.parse(parser)


def main(args: argparse.Namespace) -> None:
    from genval.evaluation.calibration import protocol_sets
    from genval.results.scenes import model_list
    from genval.runtime.tables import markdown_table

    rows = [
        row
        for model in model_list(args.model_arch, args.preset)
        for image_set, _ in protocol_sets(args)
        for row in calibrate_on(args, model, image_set)
    ]
    header = ["model", "calibrated on", "images", "seed", "lowest temperature", "mean", "highest"]
    print(markdown_table(header, rows, digits=3))
    print(f"wrote {args.calibration_dir}/{{model}}/{{set}}/{{method}}/seed{{S}}/best_temperatures.json")


def calibrate_on(args: argparse.Namespace, model: str, image_set: ImageSet) -> list[list[Any]]:
    """One model and one set: read its logits once, write the files of each share and seed, return their rows."""
    import dataclasses

    from genval.evaluation.calibration import calibrate, calibration_folder, read_images, save_calibration

    images = list(read_images(image_set.find(args, model)))
    how = (args.n_clusters, args.cluster_method, args.calib_metric, args.per_class_temperature, args.subsamples)
    rows: list[list[Any]] = []
    for share in args.hardest:
        chosen = dataclasses.replace(image_set, hardest=share)
        for seed in args.seeds:
            calibration, about = calibrate(images, *how, seed, share)
            about |= {"model": model, "set": chosen.name, "metric": args.calib_metric, "seed": seed}
            save_calibration(calibration_folder(args, model, chosen, seed), calibration, about)
            temperatures = calibration.temperatures
            ends = [float(temperatures.min()), float(temperatures.mean()), float(temperatures.max())]
            rows.append([model, chosen.name, about["images"], seed, *ends])
    return rows


if __name__ == "__main__":
    cli.run(main, parse_args)
