"""Test temperatures on another set: calibration errors before and after, with the standard deviation over seeds.

Reads:  what relis/compute_clusters_temp_scaling.py wrote with the same flags in --calibration_dir, and the logits (with
        several clusters also the features) of the tested set in --eval_dir
Writes: {output_dir}/{segmenter}/{tested set}/from_{calibrating set}/{method}.json and _reliability.png

    python relis/eval_calibration_clustering.py --protocol synthetic --domains fog,night --segmenters SegFormer-B0

An image is scaled by its cluster's temperature; with --soft by the mean of all temperatures, weighted by inverse
distance (k-means) or posterior (gmm). With --hardest 0.5 the temperatures of {calibrating set}_hardest50 are tested.
"""

from __future__ import annotations

import functools
import itertools
import sys

try:
    from genval.evaluation.settings import TemperatureTestSettings
    from genval.runtime import cli
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed in this environment. Run: make install")


def main(settings: TemperatureTestSettings) -> None:
    from genval.evaluation.calibration import MEMORY, score_temperatures
    from genval.results.scenes import model_list
    from genval.runtime.background import in_processes
    from genval.runtime.tables import markdown_table

    fractions = settings.method.hardest
    models = model_list(settings.segmenters, settings.preset)
    rows = list(
        itertools.chain(*in_processes(functools.partial(score_temperatures, settings), models, settings.jobs, MEMORY))
    )
    header = ["segmenter", "tested on", "calibrated on", "ECE % before", "after", "± over seeds"]
    header += ["adaptive before", "after", "KS before", "after"]
    print(markdown_table(header, [row for _, row in rows], digits=2))
    for fraction in fractions:
        better = [row[4] < row[3] for of, row in rows if of == fraction]
        images = f" with the hardest {100 * fraction:g} % of the images" if fraction < 1 else ""
        print(f"ECE is lower after scaling in {sum(better)} of {len(better)}{images}; wrote {settings.output_dir}")


if __name__ == "__main__":
    cli.run(main, TemperatureTestSettings, __doc__)
