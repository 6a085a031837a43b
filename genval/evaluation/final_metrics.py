"""Metrics of all evaluated images of a segmenter on a data set, pooled over scenes and conditions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from genval.datasets import label_space_of
from genval.evaluation.settings import FinalMetricsSettings
from genval.metrics.segmentation import miou_standard_error, plain
from genval.metrics.statistics import PixelStatistics
from genval.results.finding import provenance
from genval.results.scenes import SceneResults, folder_name, summarise
from genval.runtime.errors import GenValError
from genval.runtime.files import write_csv, write_json
from genval.runtime.paths import resolve
from genval.runtime.tables import percent


def pool(settings: FinalMetricsSettings, model: str, dataset: str, scenes: Sequence[SceneResults]) -> list[Any]:
    """Pool one segmenter on one data set: write its files, and return its row of the table.

    Args:
        settings: of relis/compute_final_metrics.py.
        model: the segmenter's name, as given.
        dataset: the data set's name, as given.
        scenes: from `genval.results.finding.list_scenes`.

    Returns:
        Segmenter, data set, number of images; mIoU with the ends of its interval, pixel accuracy, mean class accuracy,
        ECE and AUROC of errors, in percent.

    Raises:
        GenValError: the set has merged classes, and a class set of the 19 is asked for.
    """
    space = label_space_of(dataset)
    if settings.class_set != "present" and space.groups:
        raise GenValError(f"{dataset} has merged classes, not --class_set {settings.class_set}. Leave it out.")
    fixed = settings.class_set != "present"
    classes = space.class_sets[settings.class_set] if fixed else space.classes
    places: list[SceneResults] = []
    matrices: list[np.ndarray] = []

    def each_image() -> Iterator[tuple[str, PixelStatistics]]:
        for results in scenes:
            for record, statistics in results.read_pixels():
                places.append(results)
                matrices.append(statistics.confusion)
                yield record["id"], statistics

    number = sum(len(results.ids()) for results in scenes)
    summary = summarise(each_image(), space.names, classes, space.class_sets, fixed, number)
    overall = summary.metrics | {"miou_standard_error": plain(miou_standard_error(matrices, classes))}
    header, rows = summary.table

    stem = resolve(settings.output_dir) / folder_name(model) / folder_name(dataset) / settings.file_name
    write_csv(
        stem.with_name(f"{stem.name}_per_image.csv"),
        ["cond", "scene", *header],
        [[results.cond, results.scene, *row] for results, row in zip(places, rows, strict=True)],
    )
    labelled, iou = summary.total.confusion.sum(1).tolist(), overall["iou_per_class"]
    write_csv(
        stem.with_name(f"{stem.name}_per_class.csv"),
        ["class", "iou", "in_mean", "labelled_pixels"],
        [[name, iou[name], int(index in classes), labelled[index]] for index, name in enumerate(space.names)],
    )
    head: dict[str, Any] = {
        "model": model,
        "src_dataset": settings.src_dataset,
        "dataset": dataset,
        "classes": settings.class_set,
    }
    made = provenance(scenes)
    if made.limit is not None:
        print(f"{model} on {dataset}: results of a part of the images only (--limit {made.limit}).")
    head |= {**made.model_record, "limit": made.limit}
    head |= {"images": len(rows), "scenes": [f"{results.cond}/{results.scene}" for results in scenes]}
    single = {key: value for key, value in (head | overall).items() if not isinstance(value, (dict, list))}
    write_csv(stem.with_name(f"{stem.name}.csv"), list(single), [list(single.values())])
    write_json(stem.with_name(f"{stem.name}.json"), head | overall)
    low, high = map(percent, overall["intervals"]["miou"])
    others = [percent(overall[name]) for name in ("mean_class_accuracy", "ece", "auroc")]
    return [model, dataset, len(rows), percent(overall["miou"]), low, high, overall["pixel_accuracy_percent"], *others]
