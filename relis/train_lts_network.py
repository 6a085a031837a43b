"""Train a network that gives each pixel a temperature, on the saved logits of a calibration set.

Reads:  what relis/extract_logits.py --logit_pixels -1 (or relis/eval.py --save logits --logit_pixels -1) wrote in
        --eval_dir, and the images
Writes: {calibration_dir}/{segmenter}/{set}/local/seed{S}/: local_temperature.safetensors, settings.json

    python relis/train_lts_network.py --protocol cityscapes --segmenters SegFormer-B0

The method is local temperature scaling of Ding et al. (ICCV 2021), see genval/metrics/local_temperature.py. An
interrupted run resumes after its last whole epoch. With several devices, each trains networks of its own.
relis/eval_calibration_lts.py tests the networks on other sets.
"""

from __future__ import annotations

import sys
from typing import Any

try:
    from genval.evaluation.settings import LocalTrainingSettings
    from genval.runtime import cli
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed in this environment. Run: make install")


def main(settings: LocalTrainingSettings) -> None:
    from genval.artifacts.settings import write_settings
    from genval.evaluation.calibration import protocol_sets
    from genval.evaluation.local_temperature import LocalTraining, list_saved, local_folder, train
    from genval.results.scenes import model_list
    from genval.runtime.devices import launch_fabric, same_outcome
    from genval.runtime.tables import markdown_table

    jobs = [
        (model, image_set, seed)
        for model in model_list(settings.segmenters, settings.preset)
        for image_set, _ in protocol_sets(settings.sets)
        for seed in settings.sets.seeds
    ]
    fabric = launch_fabric(settings)
    rows: list[list[Any]] = []
    with same_outcome(fabric):
        for model, image_set, seed in jobs[fabric.global_rank :: fabric.world_size]:
            scenes = image_set.find(settings.eval_dir, model, settings.preset, save="logits", logit_pixels=-1)
            images = list_saved(scenes, settings.sets.subsamples, seed)
            folder = local_folder(settings.sets, model, image_set, seed)
            training = LocalTraining(settings.epochs, settings.crop_size, settings.batch_size, settings.lr, seed)
            trained = train(images, training, folder, fabric.device, settings.overwrite)
            write_settings(folder, settings)
            rows.append(
                [model, image_set.name, len(images), seed, trained["temperatures"]["nll"], *trained["nll"].values()]
            )
    parts = [fabric.broadcast(rows, rank) for rank in range(fabric.world_size)]
    rows = [parts[job % fabric.world_size][job // fabric.world_size] for job in range(len(jobs))]
    if fabric.is_global_zero:
        header = ["segmenter", "calibrated on", "images", "seed", "single temperature", "NLL unscaled", "single"]
        print(markdown_table([*header, "local"], rows, digits=4))
        folder_name = f"{settings.sets.calibration_dir}/{{segmenter}}/{{set}}/local/seed{{S}}"
        print(f"wrote {folder_name}/local_temperature.safetensors")


if __name__ == "__main__":
    cli.run(main, LocalTrainingSettings, __doc__)
