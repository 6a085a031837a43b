"""Measure how well segmenters detect objects that they were never trained on, on generated images and on public sets.

Reads:  images/ood_objects/refined/{object}/{i}.png and images/ood_objects/masks/{object}/{i}_mask.png, except
        images that curated.json rejects and images with an {i}_mask.txt; or a public set
Writes: results/ood_detection/{set}/{segmenter}.json (metrics of each image, and of all pixels under "pooled"),
        {segmenter}.csv (one row per score, with 95 % intervals over images), {segmenter}_objects.csv, and {segmenter}/,
        from which a run resumes

    python ood_detection/main_gen_ood.py --segmenters SegFormer-B0
    python ood_detection/main_gen_ood.py --segmenters DLV3+ResNet50 --trg_dataset RoadAnomaly21,RoadObstacle21

There is one forward pass per image. The object is the positive class, and the negated confidence is the score. In the
JSON, `aupr_in` is the AUPR of the OBJECT and `aupr_out` the AUPR of the background: the published names, which the
literature uses the other way round.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

try:
    from genval.evaluation.settings import LIST_MODELS, OodDetectionSettings
    from genval.runtime import cli
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed in this environment. Run: make install")


def main(settings: OodDetectionSettings) -> None:
    from genval.evaluation.ood_detection import detect_all
    from genval.runtime.tables import markdown_table

    detected = detect_all(settings)
    if detected:
        header = ["set", "segmenter", "score", "images", "AUROC %", "from", "to", "FPR95 %", "AUPR object %"]
        rows = [table_row(row) for one in detected for row in one.rows]
        print(markdown_table([*header, "AUROC % per image"], rows, digits=2))
        for one in detected:
            skipped = ", ".join(f"{number} {reason}" for reason, number in one.left_out.items())
            print(f"wrote {one.results.json}" + (f" (skipped: {skipped})" if skipped else ""))
            for line in lost_order(one.rows):
                print(line)


def table_row(row: dict[str, Any]) -> list[Any]:
    """Return what is printed of a row of the table of scores."""
    metrics = ("auroc", "auroc_low", "auroc_high", "fpr95", "aupr_object", "image_auroc")
    return [row["set"], row["model"], row["score"], row["images"], *(100 * row[name] for name in metrics)]


def lost_order(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return a line for each row of the table of scores in which many pixels have no order."""
    lines = []
    for row in rows:
        head = f"{row['score']} of {row['model']} on {row['set']}:"
        if row["saturated"] >= 0.001:
            share = f"{100 * row['saturated']:.1f} %"
            lines.append(f"{head} {share} of the pixels are at an end of the score's range, where they have no order")
        if row["auroc_bound"] >= 0.005:
            points = f"{100 * row['auroc_bound']:.1f}"
            lines.append(f"{head} the AUROC may be off by {points} points, since levels are wide here. Use --exact")
    return lines


if __name__ == "__main__":
    cli.run(main, OodDetectionSettings, __doc__, LIST_MODELS)
