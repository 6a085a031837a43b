"""The table of relis/compare_domains.py: mIoU of segmenters on the clear, generated and reference sets of domains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from genval.datasets import label_space_of
from genval.datasets.layouts import GATED_SUFFIX, merged_as
from genval.metrics.correlation import agreement
from genval.metrics.segmentation import labelled_classes, mean_iou, plain
from genval.report.settings import DomainTableSettings
from genval.results.finding import list_models, list_scenes, mark_of, require_one_model
from genval.results.provenance import describe_classes
from genval.results.scenes import SceneResults, model_list
from genval.runtime.errors import GenValError
from genval.runtime.paths import resolve
from genval.runtime.tables import markdown_table


@dataclass(frozen=True)
class DomainTable:
    """mIoU in percent over one class set, and how well the generated sets agree with the reference sets."""

    classes: list[str]
    columns: list[str]  # clear, synthetic {domain}, true {domain} (the reference set)
    miou: dict[str, list[float | None]]  # by model, one value per column
    agreement: dict[str, dict[str, float | None]]  # by domain, as `correlation.agreement` returns it
    merged: dict[str, list[str]] | None = None  # the merged classes, if they are not the 19

    @property
    def header(self) -> list[str]:
        """The header of `rows` in table.csv."""
        return ["model", *self.columns]

    @property
    def rows(self) -> list[list[Any]]:
        """One row per model."""
        return [[model, *values] for model, values in self.miou.items()]

    def to_json(self) -> dict[str, Any]:
        """Return the content of table.json."""
        miou = {model: dict(zip(self.columns, values, strict=True)) for model, values in self.miou.items()}
        merged = {} if self.merged is None else {"class_groups": self.merged}
        return {"classes": self.classes, **merged, "miou_percent": miou, "synthetic_against_true": self.agreement}

    def to_markdown(self) -> str:
        """Return the content of table.md."""
        text = f"mIoU in percent over {len(self.classes)} classes ({', '.join(self.classes)}).\n\n"
        if self.merged is not None:
            text += f"All sets are evaluated in {describe_classes({'class_groups': self.merged})}.\n\n"
        text += markdown_table(["segmenter", *self.columns], self.rows)
        if self.agreement:
            text += "\n\nSynthetic against reference (true) across segmenters: Pearson's r, its 95 % interval, "
            text += "mean difference: synthetic - reference.\n\n"
            rows = [[domain, *values.values()] for domain, values in self.agreement.items()]
            text += markdown_table(["domain", "segmenters", "r", "from", "to", "difference"], rows, digits=2)
        return text


def compare_domains(settings: DomainTableSettings) -> DomainTable:
    """Compute the table from the results of relis/eval.py.

    Raises:
        GenValError: results are missing, or segmenters were evaluated on different images.
    """
    root = resolve(settings.eval_dir)
    models = list_models(root) if settings.segmenters == "all" else model_list(settings.segmenters, settings.preset)
    if not models:
        preset = f"--preset {settings.preset} " if settings.preset else ""
        raise GenValError(
            f"No results in {root}. Run: python relis/eval.py {preset}--trg_dataset Cityscapes --segmenters NAME"
        )
    columns = list_columns(settings.domains, settings.reference_dataset, settings.gate)
    scenes = {
        column: [list_scenes(root, model, dataset, [(cond, "all")], settings.preset) for model in models]
        for column, (dataset, cond) in columns.items()
    }
    for of_model in zip(*scenes.values(), strict=True):
        require_one_model(of_model, settings.preset)
    _check_same_images(scenes, models)
    matrices = {
        column: [np.asarray(np.sum([results.read_matrix() for results in found], axis=0)) for found in by_model]
        for column, by_model in scenes.items()
    }
    common = settings.class_set == "common"
    first_model = [by_model[0] for by_model in matrices.values()]
    space = label_space_of(columns["clear"][0])
    if space.groups and not common:
        raise GenValError(f"--class_set {settings.class_set} is not for merged classes. Leave it out.")
    classes = labelled_classes(first_model) if common else space.class_sets[settings.class_set]
    miou = {
        column: [100 * mean_iou(matrix, classes, complete=not common) for matrix in by_model]
        for column, by_model in matrices.items()
    }
    return DomainTable(
        classes=[space.names[index] for index in classes],
        columns=list(columns),
        miou={model: [plain(miou[column][index]) for column in columns] for index, model in enumerate(models)},
        agreement={
            domain: agreement(miou[f"synthetic {domain}"], miou[f"true {domain}"])
            for domain in settings.domains
            if f"true {domain}" in miou
        },
        merged=space.groups.to_json() if space.groups else None,
    )


def list_columns(domains: Sequence[str], reference_dataset: str, gate: bool = False) -> dict[str, tuple[str, str]]:
    """Return the sets to compare: title to (data set, condition).

    If a reference set has merged classes, all sets are compared in them.
    """
    columns = {"clear": ("Cityscapes", "clean")}
    for domain in domains:
        columns[f"synthetic {domain}"] = (f"Cityscapes_{domain}{GATED_SUFFIX if gate else ''}", domain)
        if reference_dataset != "none":
            of_india = domain == "india" and not reference_dataset.startswith("IDD")
            columns[f"true {domain}"] = ("IDD", "india") if of_india else (reference_dataset, domain)
    merged = next((dataset for dataset, _ in columns.values() if label_space_of(dataset).groups), None)
    if merged is not None:
        columns = {title: (merged_as(dataset, merged), cond) for title, (dataset, cond) in columns.items()}
    return columns


def _check_same_images(scenes: Mapping[str, Sequence[Sequence[SceneResults]]], models: Sequence[str]) -> None:
    """Refuse segmenters that were evaluated on different images."""
    for column, by_model in scenes.items():
        marks = [mark_of(found) for found in by_model]
        for model, mark in zip(models, marks, strict=True):
            if mark != marks[0]:
                raise GenValError(
                    f"{models[0]} and {model} were evaluated on different images of {column!r}. Run relis/eval.py for "
                    "both with the same --scene, --split and --limit."
                )
