"""Measure how well an image's mean confidence or entropy tells that it is not of the training distribution.

Reads:  the counts that relis/eval.py wrote in --eval_dir for both sets (labelled pixels)
Writes: {output_dir}/{segmenter}/{trg_dataset}_{conditions}_against_{in_dataset}_{conditions}.json

    python relis/eval_ood.py --in_dataset Cityscapes --trg_dataset ACDC --cond night --segmenters SegFormer-B0

The images of --trg_dataset are the positives. AUROC 0.5 is chance; FPR95 is the fraction of
--in_dataset's images above the threshold over which 95 % of the positives lie.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

try:
    from genval.evaluation.settings import ImageOodSettings
    from genval.runtime import cli
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed in this environment. Run: make install")

if TYPE_CHECKING:
    from genval.results.scenes import SceneResults

SCORES = {"confidence": -1, "entropy": 1}  # 1 where a higher score means another distribution


def main(settings: ImageOodSettings) -> None:
    from genval.results.scenes import model_list
    from genval.runtime.tables import markdown_table

    rows = [measure_model(settings, model) for model in model_list(settings.segmenters, settings.preset)]
    header = ["segmenter", "images", "known", "AUROC % by confidence", "FPR95 %", "AUROC % by entropy", "FPR95 %"]
    print(markdown_table(header, rows, digits=2))
    name = f"{settings.trg_dataset}_{{conditions}}_against_{settings.in_dataset}_{{conditions}}.json"
    print(f"wrote {settings.output_dir}/{{segmenter}}/{name}")


def measure_model(settings: ImageOodSettings, model: str) -> list[Any]:
    """Measure one segmenter: write its file, and return its row of the table."""
    import numpy as np

    from genval.evaluation.calibration import ImageSet
    from genval.metrics.ranking import auroc, counts_by_score, fpr_at_tpr
    from genval.results.finding import require_one_model
    from genval.results.scenes import folder_name
    from genval.runtime.errors import GenValError
    from genval.runtime.files import write_json
    from genval.runtime.paths import resolve

    other = ImageSet(str(settings.trg_dataset), settings.cond, settings.scene)
    known = ImageSet(settings.in_dataset, settings.in_cond, settings.in_scene)
    scenes = [images.find(settings.eval_dir, model, settings.preset) for images in (other, known)]
    if set(scenes[0]) & set(scenes[1]):
        raise GenValError(f"{other.name} and {known.name} share images: give two disjoint sets.")
    require_one_model(scenes, settings.preset)
    scores = [image_scores(results) for results in scenes]
    is_other = np.repeat([True, False], [len(rows) for rows in scores])
    values: dict[str, Any] = {"model": model, "images": len(scores[0]), "in_images": len(scores[1])}
    for column, (name, sign) in enumerate(SCORES.items()):
        counts = counts_by_score(sign * np.concatenate(scores)[:, column], is_other)
        values[name] = {"auroc": float(auroc(*counts)), "fpr95": float(fpr_at_tpr(*counts))}
    file = f"{other.name}_against_{known.name}.json"
    write_json(resolve(settings.output_dir) / folder_name(model) / file, values)
    metrics = [100 * values[name][metric] for name in SCORES for metric in ("auroc", "fpr95")]
    return [model, len(scores[0]), len(scores[1]), *metrics]


def image_scores(scenes: list[SceneResults]) -> Any:
    """Return mean confidence and mean entropy of each image with a labelled pixel, float64 (N, 2)."""
    import numpy as np

    from genval.metrics.reliability import reliability_metrics

    metrics = [reliability_metrics(results.read_image(record)) for results in scenes for record in results.records()]
    rows = np.array([(values["mean_confidence"], values["entropy"]) for values in metrics])
    return rows[~np.isnan(rows).any(1)]


if __name__ == "__main__":
    cli.run(main, ImageOodSettings, __doc__)
