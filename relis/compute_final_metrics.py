"""Pool evaluated images over scenes and conditions: every metric with its 95 % interval, without inference.

Reads:  the results of relis/eval.py in --eval_dir
Writes: {output_dir}/{segmenter}/{trg_dataset}/{conditions}.json, .csv, _per_class.csv and _per_image.csv

    python relis/compute_final_metrics.py --trg_dataset ACDC --cond fog,night --segmenters SegFormer-B0

Sets are comparable only over the same classes. IDD has neither terrain nor train: give --class_set 17 for IDD and for
the sets that it is compared with (Cityscapes_india, Cityscapes).
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

try:
    from genval.evaluation.settings import FinalMetricsSettings
    from genval.runtime import cli
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed in this environment. Run: make install")

if TYPE_CHECKING:
    from collections.abc import Iterator


def main(settings: FinalMetricsSettings) -> None:
    from genval.datasets.layouts import find_layout
    from genval.results.finding import list_scenes
    from genval.results.scenes import model_list, pair
    from genval.runtime.paths import resolve
    from genval.runtime.tables import markdown_table

    for dataset in settings.trg_dataset:
        find_layout(dataset)  # refuses an unknown name before its results are looked for
    pairs, root = pair(settings.cond, settings.scene), resolve(settings.eval_dir)
    rows = [
        pool(settings, model, dataset, list_scenes(root, model, dataset, pairs, settings.preset, limited=True))
        for model in model_list(settings.segmenters, settings.preset)
        for dataset in settings.trg_dataset
    ]
    header = ["model", "data set", "images", "mIoU %", "from", "to", "pixel accuracy %", "mean class accuracy %"]
    header += ["ECE %", "AUROC of errors %"]
    print(markdown_table(header, rows, digits=2))
    print(f"wrote {settings.output_dir}/{{model}}/{{data set}}/{settings.file_name}.json and .csv tables")


def pool(settings: FinalMetricsSettings, model: str, dataset: str, scenes: list[Any]) -> list[Any]:
    """Pool one segmenter on one data set: write its files, and return its row of the table."""
    from genval.datasets import CLASS_SETS, CLASSES, classes_of
    from genval.metrics.segmentation import miou_standard_error, plain
    from genval.results.finding import provenance
    from genval.results.scenes import folder_name, summarise
    from genval.runtime.files import write_csv, write_json
    from genval.runtime.paths import resolve
    from genval.runtime.tables import percent

    fixed = settings.class_set != "present"
    classes = CLASS_SETS[settings.class_set] if fixed else classes_of(dataset)
    places: list[Any] = []
    matrices: list[Any] = []

    def each_image() -> Iterator[Any]:
        for results in scenes:
            for record, statistics in results.read_pixels():
                places.append(results)
                matrices.append(statistics.confusion)
                yield record["id"], statistics

    summary = summarise(each_image(), CLASSES, classes, CLASS_SETS, fixed)
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
        [[name, iou[name], int(index in classes), labelled[index]] for index, name in enumerate(CLASSES)],
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


if __name__ == "__main__":
    cli.run(main, FinalMetricsSettings, __doc__)
