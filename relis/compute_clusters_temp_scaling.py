"""Find temperatures: cluster a set's images by their features, and find each cluster's best temperature.

Reads:  the logits and features that relis/eval.py --save logits,features (or relis/extract_logits.py and
        extract_features.py) wrote in --eval_dir; one cluster (the default) needs no features
Writes: {calibration_dir}/{segmenter}/{set}/{method}/seed{S}/: cluster_model.npz, best_temperatures.json

    python relis/compute_clusters_temp_scaling.py --protocol cityscapes --segmenters SegFormer-B0 --n_clusters 8

--calib_metric ece searches the published grid (0.5 to 9.99 in steps of 0.01), nll finds the exact minimum.
--per_class_temperature gives each predicted class its own temperature. --hardest 0.5 calibrates on that fraction of the
images, those with the lowest pixel accuracy of each segmenter; the set is then named {set}_hardest50.
relis/eval_calibration_clustering.py tests temperatures on other sets.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

try:
    from genval.evaluation.settings import TemperatureSettings
    from genval.runtime import cli
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed in this environment. Run: make install")

if TYPE_CHECKING:
    from genval.evaluation.calibration import ImageSet


def main(settings: TemperatureSettings) -> None:
    from genval.evaluation.calibration import protocol_sets
    from genval.results.scenes import model_list
    from genval.runtime.tables import markdown_table

    rows = [
        row
        for model in model_list(settings.segmenters, settings.preset)
        for image_set, _ in protocol_sets(settings.sets)
        for row in calibrate_on(settings, model, image_set)
    ]
    header = ["model", "calibrated on", "images", "seed", "lowest temperature", "mean", "highest"]
    print(markdown_table(header, rows, digits=3))
    print(f"wrote {settings.sets.calibration_dir}/{{model}}/{{set}}/{{method}}/seed{{S}}/best_temperatures.json")


def calibrate_on(settings: TemperatureSettings, model: str, image_set: ImageSet) -> list[list[Any]]:
    """Calibrate one segmenter on one set: write the files of each fraction and seed, and return their rows."""
    import dataclasses

    from genval.evaluation.calibration import calibrate, calibration_folder, read_images, save_calibration
    from genval.metrics.temperature import GRID
    from genval.results.finding import mark_of, provenance

    scenes = image_set.find(settings.eval_dir, model, settings.preset)
    made, images = provenance(scenes), list(read_images(scenes))
    rows: list[list[Any]] = []
    for fraction in settings.method.hardest:
        chosen = dataclasses.replace(image_set, hardest=fraction)
        for seed in settings.sets.seeds:
            calibration, metadata = calibrate(
                images, settings.method, subsamples=settings.sets.subsamples, seed=seed, hardest=fraction
            )
            metadata |= {"model": model, "set": chosen.name, "metric": settings.method.calib_metric, "seed": seed}
            metadata |= {**made.model_record, "images_mark": mark_of(scenes)}
            folder = calibration_folder(settings.sets, settings.method, model, chosen, seed)
            save_calibration(folder, calibration, metadata)
            temperatures = calibration.temperatures
            if "at_grid_end" in metadata:
                print(
                    f"{model} on {chosen.name}, seed {seed}: a temperature is at an end of the searched range, "
                    f"{GRID[0]:g} to {GRID[-1]:.2f}. A better one may lie beyond."
                )
            ends = [float(temperatures.min()), float(temperatures.mean()), float(temperatures.max())]
            rows.append([model, chosen.name, metadata["images"], seed, *ends])
    return rows


if __name__ == "__main__":
    cli.run(main, TemperatureSettings, __doc__)
