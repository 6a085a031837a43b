"""Pool evaluated images over scenes and conditions: every metric with its 95 % interval, without inference.

Reads:  the results of relis/eval.py in --eval_dir
Writes: {output_dir}/{segmenter}/{trg_dataset}/{conditions}.json, .csv, _per_class.csv and _per_image.csv

    python relis/compute_final_metrics.py --trg_dataset ACDC --cond fog,night --segmenters SegFormer-B0

Sets are comparable only over the same classes. IDD has neither terrain nor train: give --class_set 17 for IDD and for
the sets that it is compared with (Cityscapes_india, Cityscapes).
"""

from __future__ import annotations

import sys

try:
    from genval.evaluation.settings import FinalMetricsSettings
    from genval.runtime import cli
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed in this environment. Run: make install")


def main(settings: FinalMetricsSettings) -> None:
    from genval.datasets.layouts import find_layout
    from genval.evaluation.final_metrics import pool
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
    header = ["segmenter", "data set", "images", "mIoU %", "from", "to", "pixel accuracy %", "mean class accuracy %"]
    header += ["ECE %", "AUROC of errors %"]
    print(markdown_table(header, rows, digits=2))
    print(f"wrote {settings.output_dir}/{{segmenter}}/{{data set}}/{settings.file_name}.json and .csv tables")


if __name__ == "__main__":
    cli.run(main, FinalMetricsSettings, __doc__)
