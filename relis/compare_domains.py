"""Does a synthetic condition rank segmenters as the true one does? mIoU of every model on both, and their correlation.

Reads:  what relis/eval.py wrote below --root_exp_dir for Cityscapes, Cityscapes_{domain} and the true data set
Writes: {results_dir}/table.md, table.csv, table.json

    python relis/compare_domains.py --domains fog,night

All columns are over one set of classes, by default those labelled in every set compared. India is compared with IDD.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from genval.runtime import cli

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np


def parse_args() -> argparse.Namespace:
    parser = cli.script_parser(__doc__, "relis/compare_domains")
    parser.add_argument("--models", default="all", help="models as given to relis/eval.py; all is all with results")
    parser.add_argument("--domains", type=cli.comma_list, default="fog,night,rain,snow", help="conditions to compare")
    parser.add_argument("--true_dataset", default="ACDC", help="the real data set with these conditions, or none")
    parser.add_argument(
        "--classes",
        choices=["common", "19", "17"],
        default="common",
        help="classes of the mean: labelled in all, or fixed",
    )
    parser.add_argument("--gate", action="store_true", help="the generated sets as relis/eval.py --gate evaluated them")
    parser.add_argument("--root_exp_dir", default="results/eval", help="the results of relis/eval.py")
    parser.add_argument("--results_dir", default="results/domains", help="where the table is saved")
    return cli.parse(parser)


def main(args: argparse.Namespace) -> None:
    from genval.datasets import CLASS_SETS, CLASSES
    from genval.metrics.correlation import agreement
    from genval.metrics.segmentation import labelled_classes, mean_iou, plain
    from genval.results.scenes import list_models, model_list
    from genval.runtime.errors import GenValError
    from genval.runtime.files import write_bytes, write_csv, write_json
    from genval.runtime.paths import resolve
    from genval.runtime.tables import markdown_table

    root = resolve(args.root_exp_dir)
    models = list_models(root) if args.models == "all" else model_list(args.models, args.preset)
    if not models:
        raise GenValError(
            f"No results in {root}. Run: python relis/eval.py --trg_dataset Cityscapes --model_arch MODEL"
        )
    columns = list_columns(args.domains, args.true_dataset, args.gate)
    matrices = {
        column: [read(root, model, *place, args.preset) for model in models] for column, place in columns.items()
    }
    check_same_images(matrices, models)

    of_first_model = [by_model[0] for by_model in matrices.values()]
    common = args.classes == "common"
    classes = labelled_classes(of_first_model) if common else CLASS_SETS[args.classes]
    miou = {
        column: [100 * mean_iou(matrix, classes, complete=not common) for matrix in by_model]
        for column, by_model in matrices.items()
    }
    pairs = {d: agreement(miou[f"synthetic {d}"], miou[f"true {d}"]) for d in args.domains if f"true {d}" in miou}

    rows = [[model, *(plain(miou[column][index]) for column in columns)] for index, model in enumerate(models)]
    agreements = [[domain, *values.values()] for domain, values in pairs.items()]
    names = [CLASSES[index] for index in classes]
    text = f"mIoU in percent over {len(names)} classes ({', '.join(names)}).\n\n"
    text += markdown_table(["model", *columns], rows)
    if agreements:
        text += (
            "\n\nSynthetic against true across models: Pearson's r, its 95 % interval, mean synthetic minus true.\n\n"
        )
        text += markdown_table(["domain", "models", "r", "from", "to", "difference"], agreements, digits=2)
    print(text)
    folder = resolve(args.results_dir)
    write_csv(folder / "table.csv", ["model", *columns], rows)
    write_json(
        folder / "table.json",
        {
            "classes": names,
            "miou_percent": {row[0]: dict(zip(columns, row[1:], strict=True)) for row in rows},
            "synthetic_against_true": pairs,
        },
    )
    write_bytes(folder / "table.md", (text + "\n").encode())
    print(f"wrote {args.results_dir}/table.md, table.csv, table.json")


def list_columns(domains: list[str], true_dataset: str, gate: bool = False) -> dict[str, tuple[str, str]]:
    """The sets to compare: title to (data set, condition)."""
    from genval.results.scenes import GATED_SUFFIX

    columns = {"clear": ("Cityscapes", "clean")}
    for domain in domains:
        columns[f"synthetic {domain}"] = (f"Cityscapes_{domain}{GATED_SUFFIX if gate else ''}", domain)
        if true_dataset != "none":
            columns[f"true {domain}"] = ("IDD", "india") if domain == "india" else (true_dataset, domain)
    return columns


def read(root: Path, model: str, dataset: str, cond: str, preset: str | None) -> np.ndarray:
    """The confusion matrix of all scenes of a set together."""
    import numpy as np

    from genval.results.scenes import list_scenes

    scenes = list_scenes(root, model, dataset, [(cond, "all")], preset)
    return np.sum([results.read_matrix() for results in scenes], axis=0)


def check_same_images(matrices: dict[str, list[np.ndarray]], models: list[str]) -> None:
    """Models are comparable only on the same images: the labels must agree, class by class."""
    from genval.runtime.errors import GenValError

    for column, by_model in matrices.items():
        for model, matrix in zip(models, by_model, strict=True):
            if (matrix.sum(1) != by_model[0].sum(1)).any():
                raise GenValError(
                    f"{models[0]} and {model} were evaluated on different images of {column!r}: expected the same "
                    "labels. Run relis/eval.py for both with the same --scene, --split and --limit."
                )


if __name__ == "__main__":
    cli.run(main, parse_args)
