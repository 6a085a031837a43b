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

import functools
import itertools
import sys

try:
    from genval.evaluation.settings import TemperatureSettings
    from genval.runtime import cli
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed in this environment. Run: make install")


def main(settings: TemperatureSettings) -> None:
    from genval.evaluation.calibration import MEMORY, find_temperatures
    from genval.results.scenes import model_list
    from genval.runtime.background import in_processes
    from genval.runtime.tables import markdown_table

    models = model_list(settings.segmenters, settings.preset)
    rows = itertools.chain(*in_processes(functools.partial(find_temperatures, settings), models, settings.jobs, MEMORY))
    header = ["segmenter", "calibrated on", "images", "seed", "lowest temperature", "mean", "highest"]
    print(markdown_table(header, rows, digits=3))
    print(f"wrote {settings.sets.calibration_dir}/{{segmenter}}/{{set}}/{{method}}/seed{{S}}/best_temperatures.json")


if __name__ == "__main__":
    cli.run(main, TemperatureSettings, __doc__)
