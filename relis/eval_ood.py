"""How well an image's mean confidence or entropy tells that it is of another distribution than the training images.

Reads:  the counts that relis/eval.py wrote below --root_exp_dir for both sets (labelled pixels)
Writes: {results_dir}/{model_arch}/{trg_dataset}_{conditions}_against_{in_dataset}_{conditions}.json

    python relis/eval_ood.py --in_dataset Cityscapes --trg_dataset ACDC --cond night --model_arch SegFormer-B0

The images of --trg_dataset are the positives. AUROC 0.5 is chance; FPR95 is the share of --in_dataset's images that a
threshold which 95 % of the others pass lets through.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from genval.evaluation.arguments import add_saved_set_arguments
from genval.runtime import cli

if TYPE_CHECKING:
    from genval.results.scenes import SceneResults

SCORES = {"confidence": -1, "entropy": 1}  # whether more of it speaks for another distribution


def parse_args() -> argparse.Namespace:
    parser = cli.script_parser(__doc__, "relis/eval_ood")
    add_saved_set_arguments(parser)
    known = parser.add_argument_group("what is known")
    known.add_argument("--in_dataset", default="Cityscapes", help="the data set of the training distribution")
    known.add_argument("--in_cond", type=cli.comma_list, default="all", help="its conditions")
    known.add_argument("--in_scene", type=cli.comma_list, default="all", help="its scenes")
    parser.add_argument("--results_dir", default="results/image_ood", help="where the figures are saved")
    return cli.parse(parser)


def main(args: argparse.Namespace) -> None:
    from genval.results.scenes import model_list
    from genval.runtime.tables import markdown_table

    rows = [measure_model(args, model) for model in model_list(args.model_arch, args.preset)]
    header = ["model", "images", "known", "AUROC % by confidence", "FPR95 %", "AUROC % by entropy", "FPR95 %"]
    print(markdown_table(header, rows, digits=2))
    print(f"wrote {args.results_dir}/{{model}}/{args.trg_dataset}_..._against_{args.in_dataset}_... .json")


def measure_model(args: argparse.Namespace, model: str) -> list[Any]:
    """One model: write its file, return its row of the table."""
    import numpy as np

    from genval.evaluation.calibration import ImageSet
    from genval.metrics.ranking import auroc, counts_by_score, fpr_at_tpr
    from genval.results.scenes import folder_name
    from genval.runtime.errors import GenValError
    from genval.runtime.files import write_json
    from genval.runtime.paths import resolve

    other = ImageSet(args.trg_dataset, tuple(args.cond), tuple(args.scene))
    known = ImageSet(args.in_dataset, tuple(args.in_cond), tuple(args.in_scene))
    scenes = [images.find(args, model) for images in (other, known)]
    if set(scenes[0]) & set(scenes[1]):
        raise GenValError(f"{other.name} and {known.name} are in part the same images: give two sets apart.")
    scores = [image_scores(of_set) for of_set in scenes]
    is_other = np.repeat([True, False], [len(rows) for rows in scores])
    values: dict[str, Any] = {"model": model, "images": len(scores[0]), "in_images": len(scores[1])}
    for column, (name, sign) in enumerate(SCORES.items()):
        counts = counts_by_score(sign * np.concatenate(scores)[:, column], is_other)
        values[name] = {"auroc": float(auroc(*counts)), "fpr95": float(fpr_at_tpr(*counts))}
    file = f"{other.name}_against_{known.name}.json"
    write_json(resolve(args.results_dir) / folder_name(model) / file, values)
    figures = [100 * values[name][figure] for name in SCORES for figure in ("auroc", "fpr95")]
    return [model, len(scores[0]), len(scores[1]), *figures]


def image_scores(scenes: list[SceneResults]) -> Any:
    """Mean confidence and mean entropy of each image that has a labelled pixel, float64 (N, 2)."""
    import numpy as np

    from genval.metrics.reliability import reliability_metrics

    figures = [reliability_metrics(results.read_image(item_id)) for results in scenes for item_id in results.ids()]
    rows = np.array([(values["mean_confidence"], values["entropy"]) for values in figures])
    return rows[~np.isnan(rows).any(1)]


if __name__ == "__main__":
    cli.run(main, parse_args)
