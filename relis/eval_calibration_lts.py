"""Test local temperatures on another set: calibration without scaling, with a single temperature, and per pixel.

Reads:  what relis/train_lts_network.py wrote with the same flags in --calibration_dir; the logits of all pixels of the
        tested set in --eval_dir; and its images
Writes: {output_dir}/{segmenter}/{tested set}/from_{calibrating set}/local.json and local_reliability.png

    python relis/eval_calibration_lts.py --protocol cityscapes --segmenters SegFormer-B0

The single temperatures have the lowest NLL and (on the published grid) the lowest ECE on the calibrating set. All
pixels are measured, with intervals over images.
"""

from __future__ import annotations

import sys

try:
    from genval.evaluation.settings import LocalTestSettings
    from genval.runtime import cli
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed in this environment. Run: make install")


def main(settings: LocalTestSettings) -> None:
    from genval.evaluation.calibration import protocol_sets
    from genval.evaluation.local_temperature import evaluate_networks
    from genval.results.scenes import model_list
    from genval.runtime.devices import find_device
    from genval.runtime.tables import markdown_table

    device = find_device(settings.accelerator)
    rows = [
        evaluate_networks(settings, model, calibrating, tested, device)
        for model in model_list(settings.segmenters, settings.preset)
        for calibrating, tested in protocol_sets(settings.sets, settings.trg_dataset, settings.cond, settings.scene)
    ]
    header = ["segmenter", "tested on", "calibrated on", "ECE % unscaled", "single (ECE)", "single (NLL)", "local"]
    print(markdown_table([*header, "± seeds", "NLL unscaled", "single (NLL)", "local"], rows, digits=4))
    better = sum(row[-1] < row[-2] for row in rows)
    print(f"local temperatures have the lower NLL in {better} of {len(rows)}; wrote {settings.output_dir}")


if __name__ == "__main__":
    cli.run(main, LocalTestSettings, __doc__)
