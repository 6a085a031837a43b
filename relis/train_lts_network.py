"""Train a network that gives each pixel a temperature, on the saved logits of a calibration set.

Reads:  what relis/extract_logits.py --logit_pixels -1 (or relis/eval.py --save logits --logit_pixels -1) wrote below
        --root_exp_dir, and the images
Writes: {calibration_dir}/{model_arch}/{set}/local/seed{S}/: local_temperature.safetensors, settings.json

    python relis/train_lts_network.py --protocol cityscapes --model_arch SegFormer-B0

Local temperature scaling of Ding et al. (ICCV 2021), see genval/metrics/local_temperature.py. An interrupted run goes
on after its last whole epoch. With several devices each trains networks of its own. relis/eval_calibration_lts.py tries
the networks on other sets.
"""

from __future__ import annotations

import argparse
from typing import Any

from genval.evaluation.arguments import add_calibrating_set_arguments
from genval.runtime import cli


def parse_args() -> argparse.Namespace:
    parser = cli.script_parser(__doc__, "relis/train_lts_network")
    parser.add_argument("--model_arch", required=True, help="models as given to relis/eval.py, or all")
    parser.add_argument("--root_exp_dir", default="results/eval", help="the results of relis/eval.py")
    add_calibrating_set_arguments(parser)
    training = parser.add_argument_group("training")
    training.add_argument("--epochs", type=cli.positive_int, default=20, help="times that each image is seen")
    training.add_argument("--crop_size", type=cli.positive_int, default=512, help="side of the squares trained on")
    training.add_argument("--batch_size", type=cli.positive_int, default=1, help="squares a step")
    training.add_argument("--lr", type=float, default=3e-3, help="first learning rate; falls to zero along a cosine")
    training.add_argument("--overwrite", action="store_true", help="train anew instead of resuming")
    device = parser.add_argument_group("device")
    device.add_argument("--accelerator", default="auto", help="auto, cpu, gpu")
    device.add_argument("--devices", default="auto", help="number of devices a node, or auto")
    device.add_argument("--num_nodes", type=cli.positive_int, default=1, help="number of machines")
    parser.set_defaults(trg_dataset=None, cond=["all"], scene=["all"])
    return cli.parse(parser)


def main(args: argparse.Namespace) -> None:
    from genval.artifacts.settings import write_settings
    from genval.evaluation.calibration import protocol_sets
    from genval.evaluation.local_temperature import LocalTraining, list_saved, local_folder, train
    from genval.results.scenes import model_list
    from genval.runtime.devices import launch_fabric, same_outcome
    from genval.runtime.tables import markdown_table

    jobs = [
        (model, image_set, seed)
        for model in model_list(args.model_arch, args.preset)
        for image_set, _ in protocol_sets(args)
        for seed in args.seeds
    ]
    how = {seed: LocalTraining(args.epochs, args.crop_size, args.batch_size, args.lr, seed) for seed in args.seeds}
    fabric = launch_fabric(args)
    rows: list[list[Any]] = []
    with same_outcome(fabric):
        for model, image_set, seed in jobs[fabric.global_rank :: fabric.world_size]:
            images = list_saved(image_set.find(args, model), args.subsamples, seed)
            folder = local_folder(args, model, image_set, seed)
            about = train(images, how[seed], folder, fabric.device, args.overwrite)
            write_settings(folder, args)
            rows.append(
                [model, image_set.name, len(images), seed, about["temperatures"]["nll"], *about["nll"].values()]
            )
    parts = [fabric.broadcast(rows, rank) for rank in range(fabric.world_size)]
    rows = [parts[job % fabric.world_size][job // fabric.world_size] for job in range(len(jobs))]
    if fabric.is_global_zero:
        header = ["model", "calibrated on", "images", "seed", "single temperature", "NLL unscaled", "single", "local"]
        print(markdown_table(header, rows, digits=4))
        print(f"wrote {args.calibration_dir}/{{model}}/{{set}}/local/seed{{S}}/local_temperature.safetensors")


if __name__ == "__main__":
    cli.run(main, parse_args)
