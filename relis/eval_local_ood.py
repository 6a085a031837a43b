"""How well a pixel's confidence tells unknown classes inside an image: IDD's autorickshaws, billboards and others.

Reads:  the logits that relis/extract_logits.py (or relis/eval.py --save logits) wrote below --root_exp_dir, and the
        masks of IDD (level3Ids)
Writes: {results_dir}/{model_arch}/{set}_{unknown}.json and _per_image.csv

    python relis/eval_local_ood.py --model_arch SegFormer-B0 --unknown autorickshaw,billboard

Pixels of IDD's classes without a counterpart among the 19 are the positives, those of its 17 known classes the
negatives; unlabelled pixels are neither. AUROC 0.5 is chance; FPR95 is the share of known pixels below a threshold of
confidence that 95 % of the unknown ones are below.
"""

from __future__ import annotations

import argparse
from typing import Any

from genval.evaluation.arguments import add_saved_set_arguments
from genval.runtime import cli


def parse_args() -> argparse.Namespace:
    parser = cli.script_parser(__doc__, "relis/eval_local_ood")
    add_saved_set_arguments(parser, required=False)
    parser.add_argument("--unknown", type=cli.comma_list, default="all", help="IDD classes that count as unknown")
    parser.add_argument("--results_dir", default="results/local_ood", help="where the figures are saved")
    parser.set_defaults(trg_dataset="IDD")
    return cli.parse(parser)


def main(args: argparse.Namespace) -> None:
    from genval.datasets import find_unknown_ids
    from genval.results.scenes import model_list
    from genval.runtime.tables import markdown_table

    unknown = find_unknown_ids(args.trg_dataset, args.unknown)
    rows = [measure_model(args, model, unknown) for model in model_list(args.model_arch, args.preset)]
    header = ["model", "images", "with unknown", "unknown pixels %", "AUROC %", "from", "to", "AUPR %", "FPR95 %"]
    print(markdown_table([*header, "AUROC % an image", "AUPR %", "FPR95 %"], rows, digits=2))
    print(f"unknown: {', '.join(unknown)}; wrote {args.results_dir}")


def measure_model(args: argparse.Namespace, model: str, unknown: dict[str, int]) -> list[Any]:
    """One model: write its files, return its row of the table."""
    import numpy as np

    from genval.evaluation.calibration import ImageSet
    from genval.evaluation.unknown_classes import FIGURES, measure_unknown
    from genval.metrics.segmentation import plain
    from genval.results.scenes import folder_name
    from genval.runtime.files import write_csv, write_json
    from genval.runtime.paths import resolve

    images = ImageSet(args.trg_dataset, tuple(args.cond), tuple(args.scene))
    found = measure_unknown(images.find(args, model), list(unknown.values()))
    of_images = np.array([[figures[name] for name in FIGURES] for figures in found.of_images.values()])
    with_unknown = ~np.isnan(of_images[:, 0])
    mean = dict(zip(FIGURES, of_images[with_unknown].mean(0), strict=True)) if with_unknown.any() else {}
    values = {
        "model": model,
        "src_dataset": args.src_dataset,
        "set": images.name,
        "unknown": unknown,
        "images": len(of_images),
        "images_with_both": int(with_unknown.sum()),
        "unknown_pixels": found.unknown,
        "known_pixels": found.known,
        "pooled": {name: plain(value) for name, value in found.pooled.items()},
        "intervals": {name: [plain(end) for end in ends] for name, ends in found.intervals.items()},
        "mean_of_images": {name: plain(value) for name, value in mean.items()},
    }
    names = "all" if args.unknown == ["all"] else "+".join(unknown).replace(" ", "_").replace("/", "_")
    place = resolve(args.results_dir) / folder_name(model)
    write_json(place / f"{images.name}_{names}.json", values)
    rows = [[item_id, *(plain(figures[name]) for name in FIGURES)] for item_id, figures in found.of_images.items()]
    write_csv(place / f"{images.name}_{names}_per_image.csv", ["id", *FIGURES], rows)
    share = 100 * found.unknown / (found.unknown + found.known)
    pooled = [100 * value for value in (found.pooled["auroc"], *found.intervals["auroc"])]
    others = [100 * found.pooled[name] for name in FIGURES[1:]]
    means = [100 * mean.get(name, float("nan")) for name in FIGURES]
    return [model, len(of_images), int(with_unknown.sum()), share, *pooled, *others, *means]


if __name__ == "__main__":
    cli.run(main, parse_args)
