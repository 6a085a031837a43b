"""Train a ControlNet to draw street scenes from label masks; the Stable Diffusion model stays locked.

Reads:  --base and --controlnet (made by ControlNet/tool_add_control.py), captioned pairs (--jsonl, --data_dir).
Writes: --output, the trained ControlNet (diffusers folder); logs/{run}/ with checkpoints
        (lightning_logs/version_0/checkpoints), image_log/, losses (CSV, TensorBoard), settings.json and, with
        --val_segmenter, best/, the ControlNet whose pictures a segmenter agreed with most.

    python ControlNet/train.py --compile --precompute datasets/cityscapes_encoded
    python ControlNet/train.py --preset published
"""

from __future__ import annotations

import argparse
import os

from genval.runtime.cli import (
    add_bad_input_arguments,
    add_device_arguments,
    parse,
    positive_int,
    run,
    script_parser,
    seed_number,
)
from genval.runtime.paths import resolve


def parse_args() -> argparse.Namespace:
    parser = script_parser(__doc__, "ControlNet/train")
    models = parser.add_argument_group("models")
    models.add_argument("--base", help="Stable Diffusion model (default: in the ControlNet's file, else 1.5)")
    models.add_argument("--controlnet", default="checkpoints/control_seg", help="the ControlNet to start from")
    models.add_argument("--output", default="checkpoints/controlnet_cs", help="folder for the trained ControlNet")
    models.add_argument("--save_dtype", choices=["fp32", "fp16"], default="fp32", help="of the weights in --output")
    models.add_argument(
        "--export_original", action="store_true", help="also write OUTPUT.ckpt: base and ControlNet in one file"
    )
    data = parser.add_argument_group("data")
    data.add_argument("--data_dir", default="datasets/cityscapes", help="folder that the lines' paths start from")
    data.add_argument("--jsonl", default="training/train.jsonl", help="captioned pairs, in DATA_DIR or ControlNet/")
    data.add_argument("--val_jsonl", default="training/val.jsonl", help="the same for the image log")
    data.add_argument("--resolution", type=positive_int, default=512, help="side of a square, cut from the frame")
    data.add_argument("--height", type=positive_int, help="in place of --resolution")
    data.add_argument("--width", type=positive_int, help="in place of --resolution")
    data.add_argument("--no_flip", dest="flip", action="store_false", help="do not mirror half of the pairs")
    data.add_argument(
        "--image_resize", choices=["area", "nearest"], default="area", help="nearest is the published one"
    )
    data.add_argument("--workers", type=positive_int, default=min(16, os.cpu_count() or 1), help="threads that read")
    data.add_argument("--cache_latents", action="store_true", help="encode all pairs once and keep them on the device")
    data.add_argument("--precompute", metavar="DIR", help="encode all pairs once into this folder, for other runs too")
    data.add_argument("--crops", type=positive_int, default=1, help="crops a frame that are encoded by these two")
    add_bad_input_arguments(data)
    optim = parser.add_argument_group("optimisation")
    optim.add_argument("--batch_size", type=positive_int, default=8, help="pairs a device")
    optim.add_argument("--accumulate", type=positive_int, default=16, help="batches an optimiser step")
    optim.add_argument("--max_epochs", type=positive_int, default=150, help="passes over the pairs")
    optim.add_argument("--max_steps", type=positive_int, help="optimiser steps, in place of --max_epochs")
    optim.add_argument("--lr", type=float, default=1e-5, help="learning rate")
    optim.add_argument("--hint_lr_scale", type=float, default=1.0, help="the hint embedding learns this much faster")
    optim.add_argument("--weight_decay", type=float, default=0.01, help="of AdamW")
    optim.add_argument("--lr_schedule", choices=["constant", "cosine"], default="constant", help="after the warm-up")
    optim.add_argument("--warmup_steps", type=int, default=0, help="linear rise of the learning rate")
    optim.add_argument("--gradient_clip", type=float, default=0.0, help="largest norm of the gradient, 0 is off")
    optim.add_argument("--caption_dropout", type=float, default=0.1, help="share of captions left out, for guidance")
    optim.add_argument("--ema", type=float, default=0.0, help="decay of averaged weights, 0 is off")
    optim.add_argument("--optimizer", choices=["adamw", "adamw8bit"], default="adamw", help="8 bits need bitsandbytes")
    optim.add_argument("--gradient_checkpointing", action="store_true", help="less memory, a third slower")
    optim.add_argument("--compile", action="store_true", help="half as fast again, after minutes of compiling (GPU)")
    optim.add_argument("--attention", choices=["auto", "cudnn"], default="auto", help="which kernels are tried first")
    optim.add_argument("--float32_matmul", choices=["highest", "high"], default="high", help="high allows TF32")
    log = parser.add_argument_group("run")
    log.add_argument("--seed", type=seed_number, default=0, help="of order, crops, dropout, noise and timesteps")
    log.add_argument("--logs_dir", default="logs", help="runs go to LOGS_DIR/RUN")
    log.add_argument("--run", help="name of the run's folder; without it the next free number (resuming: the last)")
    log.add_argument("--resume", help="a checkpoint, 'last' (the run's newest) or 'auto' (the same, if there is one)")
    log.add_argument("--overwrite", action="store_true", help="replace the ControlNet in --output")
    log.add_argument("--dry_run", action="store_true", help="check the inputs, say what would be done, and stop")
    log.add_argument("--checkpoint_every", type=positive_int, default=500, help="optimiser steps between checkpoints")
    log.add_argument("--log_every", type=positive_int, default=10, help="optimiser steps between lines of the loss")
    log.add_argument("--images_every", type=int, default=500, help="optimiser steps between image logs, 0 is off")
    log.add_argument("--num_images", type=positive_int, default=4, help="validation masks in the image log")
    log.add_argument(
        "--val_segmenter", help="a segmenter (as relis/eval.py names it) to score the image log's masks by"
    )
    log.add_argument("--ddim_steps", type=positive_int, default=25, help="sampling steps of the image log")
    log.add_argument("--sampler", choices=["ddim", "dpm++"], default="ddim", help="sampler of the image log")
    log.add_argument("--guidance_scale", type=float, default=8.0, help="guidance of the image log")
    add_device_arguments(parser)
    parser.set_defaults(precision=None)  # bf16-mixed on GPUs that have it, else 32-true
    return parse(parser)


def main(args: argparse.Namespace) -> None:
    import dataclasses

    import torch

    from genval.artifacts.settings import write_settings
    from genval.diffusion.models.controlnet import check_writable, default_base, load_controlnet, save_controlnet
    from genval.diffusion.models.hints import read_encoding
    from genval.diffusion.models.pipelines import load_base
    from genval.diffusion.original.checkpoints import save_original
    from genval.diffusion.pairs import find_jsonl, read_pairs, readable_pairs
    from genval.diffusion.settings import SamplingConfig
    from genval.diffusion.training.config import TrainingConfig
    from genval.diffusion.training.data import ControlNetData, EncodedFolder
    from genval.diffusion.training.log import ImageLog
    from genval.diffusion.training.module import ControlNetModule, check_optimizer
    from genval.diffusion.training.runs import check_output, choose_run, make_trainer, training_precision
    from genval.segmenters.registry import load_segmenter

    args.height, args.width = args.height or args.resolution, args.width or args.resolution
    args.precision = training_precision(args.precision, args.accelerator)
    config = TrainingConfig(**{field.name: getattr(args, field.name) for field in dataclasses.fields(TrainingConfig)})
    check_optimizer(config.optimizer)
    torch.set_float32_matmul_precision(args.float32_matmul)
    output, data_dir = resolve(args.output), resolve(args.data_dir)
    check_output(output, args.resume, args.overwrite)
    folder, checkpoint = choose_run(resolve(args.logs_dir), args.run, args.resume)
    args.base = args.base or str(default_base(args.controlnet))
    base = load_base(args.base)
    controlnet = load_controlnet(args.controlnet, base)
    labels = read_encoding(controlnet, args.controlnet).labels
    pairs = read_pairs(find_jsonl(args.jsonl, data_dir), data_dir)
    shown = read_pairs(find_jsonl(args.val_jsonl, data_dir), data_dir)[: args.num_images] if args.images_every else []
    if args.skip_bad:
        pairs, shown = readable_pairs(pairs, labels, args.workers), readable_pairs(shown, labels, args.workers)
    segmenter = load_segmenter(args.val_segmenter, "cpu") if args.val_segmenter and shown else None
    encoded = EncodedFolder(resolve(args.precompute), base, pairs, config, labels) if args.precompute else None
    module = ControlNetModule(base, controlnet, config, pairs if args.cache_latents else None, args.workers, encoded)
    sampling = SamplingConfig(args.ddim_steps, args.guidance_scale, sampler=args.sampler)
    log = ImageLog(folder, shown, args.images_every, sampling, segmenter, args.save_dtype)
    trainer = make_trainer(
        folder,
        config,
        len(pairs),
        [log] if shown else [],
        checkpoint_every=args.checkpoint_every,
        log_every=args.log_every,
        accelerator=args.accelerator,
        devices=args.devices,
        num_nodes=args.num_nodes,
        precision=args.precision,
    )
    if args.dry_run:
        print(
            f"Would train {trainer.max_steps} steps of {config.batch_size} x {config.accumulate} x "
            f"{trainer.world_size} from {checkpoint or args.controlnet} on {len(pairs)} pairs, {args.precision}, "
            f"into {folder}, then write {output}"
        )
        return
    if trainer.is_global_zero:
        check_writable(output)
        write_settings(folder, args)
    data = ControlNetData(pairs, config, args.workers, args.cache_latents, encoded, labels)
    # A checkpoint is tensors and plain numbers: nothing else is unpickled.
    trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    if trainer.is_global_zero:
        save_controlnet(module.trained, output, args.save_dtype)
        written = str(output)
        if args.export_original:
            # Read again: the training's copy may have been rounded to 16 bits.
            save_original(load_base(args.base), module.trained, f"{output}.ckpt", args.save_dtype)
            written += f" and {output.name}.ckpt"
        print(f"Trained {trainer.global_step} steps on {len(pairs)} pairs: wrote {written}, logs in {folder}")


if __name__ == "__main__":
    run(main, parse_args)
