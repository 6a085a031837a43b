"""Compare how a generated and a reference condition rank segmenters: mIoU on both, and their correlation.

Reads:  what relis/eval.py wrote in --eval_dir for Cityscapes, Cityscapes_{domain} and the reference set
Writes: {output_dir}/table.md, table.csv, table.json

    python relis/compare_domains.py --domains fog,night

All columns use the same classes, by default those labelled in every compared set. India is compared with IDD.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

try:
    from genval.report.settings import DomainTableSettings
    from genval.runtime import cli
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed in this environment. Run: make install")

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np


def main(settings: DomainTableSettings) -> None:
    from genval.datasets import CLASS_SETS, CLASSES
    from genval.metrics.correlation import agreement
    from genval.metrics.segmentation import labelled_classes, mean_iou, plain
    from genval.results.scenes import list_models, model_list
    from genval.runtime.errors import GenValError
    from genval.runtime.files import write_bytes, write_csv, write_json
    from genval.runtime.paths import resolve
    from genval.runtime.tables import markdown_table

    root = resolve(settings.eval_dir)
    models = list_models(root) if settings.segmenters == "all" else model_list(settings.segmenters, settings.preset)
    if not models:
        raise GenValError(f"No results in {root}. Run: python relis/eval.py --trg_dataset Cityscapes --segmenters NAME")
    columns = list_columns(settings.domains, settings.reference_dataset, settings.gate)
    matrices = {
        column: [read(root, model, *place, settings.preset) for model in models] for column, place in columns.items()
    }
    check_same_images(matrices, models)

    first_model = [by_model[0] for by_model in matrices.values()]
    common = settings.class_set == "common"
    classes = labelled_classes(first_model) if common else CLASS_SETS[settings.class_set]
    miou = {
        column: [100 * mean_iou(matrix, classes, complete=not common) for matrix in by_model]
        for column, by_model in matrices.items()
    }
    pairs = {d: agreement(miou[f"synthetic {d}"], miou[f"true {d}"]) for d in settings.domains if f"true {d}" in miou}

    rows = [[model, *(plain(miou[column][index]) for column in columns)] for index, model in enumerate(models)]
    agreements = [[domain, *values.values()] for domain, values in pairs.items()]
    names = [CLASSES[index] for index in classes]
    text = f"mIoU in percent over {len(names)} classes ({', '.join(names)}).\n\n"
    text += markdown_table(["model", *columns], rows)
    if agreements:
        text += "\n\nSynthetic against reference (true) across models: Pearson's r, its 95 % interval, "
        text += "mean difference: synthetic - reference.\n\n"
        text += markdown_table(["domain", "models", "r", "from", "to", "difference"], agreements, digits=2)
    print(text)
    folder = resolve(settings.output_dir)
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
    print(f"wrote {settings.output_dir}/table.md, table.csv, table.json")


def list_columns(domains: Sequence[str], reference_dataset: str, gate: bool = False) -> dict[str, tuple[str, str]]:
    """Return the sets to compare: title to (data set, condition)."""
    from genval.results.scenes import GATED_SUFFIX

    columns = {"clear": ("Cityscapes", "clean")}
    for domain in domains:
        columns[f"synthetic {domain}"] = (f"Cityscapes_{domain}{GATED_SUFFIX if gate else ''}", domain)
        if reference_dataset != "none":
            columns[f"true {domain}"] = ("IDD", "india") if domain == "india" else (reference_dataset, domain)
    return columns


def read(root: Path, model: str, dataset: str, cond: str, preset: str | None) -> np.ndarray:
    """Return the confusion matrix of all scenes of a set together."""
    import numpy as np

    from genval.results.scenes import list_scenes

    scenes = list_scenes(root, model, dataset, [(cond, "all")], preset)
    return np.sum([results.read_matrix() for results in scenes], axis=0)


def check_same_images(matrices: dict[str, list[np.ndarray]], models: list[str]) -> None:
    """Refuse segmenters that were evaluated on different images: the labels of each class must agree."""
    from genval.runtime.errors import GenValError

    for column, by_model in matrices.items():
        for model, matrix in zip(models, by_model, strict=True):
            if (matrix.sum(1) != by_model[0].sum(1)).any():
                raise GenValError(
                    f"{models[0]} and {model} were evaluated on different images of {column!r}: expected the same "
                    "labels. Run relis/eval.py for both with the same --scene, --split and --limit."
                )


if __name__ == "__main__":
    cli.run(main, DomainTableSettings, __doc__)
