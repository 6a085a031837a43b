"""Measure how well a pixel's confidence detects unknown classes: IDD's autorickshaws, billboards and others.

Reads:  the logits that relis/extract_logits.py (or relis/eval.py --save logits) wrote in --eval_dir, and the
        masks of IDD (level3Ids)
Writes: {output_dir}/{segmenter}/{set}_{unknown}.json and _per_image.csv

    python relis/eval_local_ood.py --segmenters SegFormer-B0 --unknown autorickshaw,billboard

Pixels of IDD's classes without a counterpart among the 19 are the positives. Pixels of its 17 known classes are the
negatives. Unlabelled pixels do not count. AUROC 0.5 is chance. FPR95 is the fraction of known pixels whose
confidence is below the threshold under which 95 % of the unknown pixels lie.
"""

from __future__ import annotations

import sys
from typing import Any

try:
    from genval.evaluation.settings import UnknownClassSettings
    from genval.runtime import cli
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed in this environment. Run: make install")


def main(settings: UnknownClassSettings) -> None:
    from genval.datasets import find_unknown_ids
    from genval.results.scenes import model_list
    from genval.runtime.tables import markdown_table

    unknown = find_unknown_ids(str(settings.trg_dataset), settings.unknown)
    rows = [measure_model(settings, model, unknown) for model in model_list(settings.segmenters, settings.preset)]
    header = ["segmenter", "images", "with unknown", "unknown pixels %", "AUROC %", "from", "to", "AUPR %", "FPR95 %"]
    print(markdown_table([*header, "AUROC % per image", "AUPR %", "FPR95 %"], rows, digits=2))
    print(f"unknown: {', '.join(unknown)}; wrote {settings.output_dir}")


def measure_model(settings: UnknownClassSettings, model: str, unknown: dict[str, int]) -> list[Any]:
    """Measure one segmenter: write its files, and return its row of the table."""
    import numpy as np

    from genval.evaluation.calibration import ImageSet
    from genval.evaluation.unknown_classes import METRICS, measure_unknown
    from genval.metrics.segmentation import plain
    from genval.results.scenes import folder_name
    from genval.runtime.files import write_csv, write_json
    from genval.runtime.paths import resolve

    images = ImageSet(str(settings.trg_dataset), settings.cond, settings.scene)
    scenes = images.find(settings.eval_dir, model, settings.preset, save="logits")
    found = measure_unknown(scenes, list(unknown.values()))
    per_image = np.array([[metrics[name] for name in METRICS] for metrics in found.per_image.values()])
    with_unknown = ~np.isnan(per_image[:, 0])
    mean = dict(zip(METRICS, per_image[with_unknown].mean(0), strict=True)) if with_unknown.any() else {}
    values = {
        "model": model,
        "src_dataset": settings.src_dataset,
        "set": images.name,
        "unknown": unknown,
        "images": len(per_image),
        "images_with_both": int(with_unknown.sum()),
        "unknown_pixels": found.unknown,
        "known_pixels": found.known,
        "pooled": {name: plain(value) for name, value in found.pooled.items()},
        "intervals": {name: [plain(end) for end in ends] for name, ends in found.intervals.items()},
        "mean_of_images": {name: plain(value) for name, value in mean.items()},
    }
    names = "all" if settings.unknown == ("all",) else "+".join(unknown).replace(" ", "_").replace("/", "_")
    place = resolve(settings.output_dir) / folder_name(model)
    write_json(place / f"{images.name}_{names}.json", values)
    rows = [[item_id, *(plain(metrics[name]) for name in METRICS)] for item_id, metrics in found.per_image.items()]
    write_csv(place / f"{images.name}_{names}_per_image.csv", ["id", *METRICS], rows)
    share = 100 * found.unknown / (found.unknown + found.known)
    pooled = [100 * value for value in (found.pooled["auroc"], *found.intervals["auroc"])]
    others = [100 * found.pooled[name] for name in METRICS[1:]]
    means = [100 * mean.get(name, float("nan")) for name in METRICS]
    return [model, len(per_image), int(with_unknown.sum()), share, *pooled, *others, *means]


if __name__ == "__main__":
    cli.run(main, UnknownClassSettings, __doc__)
