"""Train a ControlNet to generate street scenes from label masks; the Stable Diffusion model is frozen.

Reads:  --base and --controlnet (made by ControlNet/tool_add_control.py), captioned pairs (--jsonl, --data_dir).
Writes: --output, the trained ControlNet (diffusers folder); logs/{run}/ with checkpoints
        (lightning_logs/version_0/checkpoints), image_log/, losses (CSV, TensorBoard), settings.json and, with
        --val_segmenter, best/, the ControlNet whose images a segmenter agreed with most.

    python ControlNet/train.py --compile --precompute datasets/cityscapes_encoded
    python ControlNet/train.py --preset published
"""

from __future__ import annotations

import sys

try:
    from genval.diffusion.settings import ControlNetTrainingSettings
    from genval.runtime import cli
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed in this environment. Run: make install")


def main(settings: ControlNetTrainingSettings) -> None:
    import contextlib

    import torch

    from genval.artifacts.settings import write_settings
    from genval.diffusion.models.controlnet import check_writable, default_base, load_controlnet, save_controlnet
    from genval.diffusion.models.hints import read_encoding
    from genval.diffusion.models.pipelines import load_base
    from genval.diffusion.original.writing import save_original
    from genval.diffusion.pairs import find_jsonl, read_pairs, readable_pairs
    from genval.diffusion.settings import SamplingConfig
    from genval.diffusion.training.data import ControlNetData, EncodedFolder
    from genval.diffusion.training.log import ImageLog
    from genval.diffusion.training.module import ControlNetModule, check_optimizer
    from genval.diffusion.training.runs import (
        changed_flags,
        check_output,
        choose_run,
        make_trainer,
        training_precision,
    )
    from genval.runtime.locks import lock_folders
    from genval.runtime.paths import resolve
    from genval.segmenters.registry import load_segmenter

    precision = training_precision(settings.precision, settings.accelerator)
    config = settings.config
    check_optimizer(config.optimizer)
    torch.set_float32_matmul_precision(settings.float32_matmul)
    output, data_dir = resolve(settings.output), resolve(settings.data_dir)
    check_output(output, settings.resume, settings.overwrite)
    folder, checkpoint = choose_run(resolve(settings.logs_dir), settings.run, settings.resume)
    base_name = settings.base or str(default_base(settings.controlnet))
    base = load_base(base_name)
    controlnet = load_controlnet(settings.controlnet, base)
    labels = read_encoding(controlnet, settings.controlnet).labels
    pairs = read_pairs(find_jsonl(settings.jsonl, data_dir), data_dir)
    shown = (
        read_pairs(find_jsonl(settings.val_jsonl, data_dir), data_dir)[: settings.num_images]
        if settings.images_every
        else []
    )
    if settings.skip_bad:
        pairs, shown = (
            readable_pairs(pairs, labels, settings.num_workers),
            readable_pairs(shown, labels, settings.num_workers),
        )
    segmenter = load_segmenter(settings.val_segmenter, "cpu") if settings.val_segmenter and shown else None
    encoded = EncodedFolder(resolve(settings.precompute), base, pairs, config, labels) if settings.precompute else None
    module = ControlNetModule(
        base, controlnet, config, pairs if settings.cache_latents else None, settings.num_workers, encoded
    )
    sampling = SamplingConfig(settings.steps, settings.guidance_scale, sampler=settings.sampler)
    log = ImageLog(folder, shown, settings.images_every, sampling, segmenter, settings.save_dtype)
    trainer = make_trainer(
        folder,
        config,
        len(pairs),
        [log] if shown else [],
        checkpoint_every=settings.checkpoint_every,
        log_every=settings.log_every,
        accelerator=settings.accelerator,
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        precision=precision,
    )
    if settings.dry_run:
        print(
            f"Would train {trainer.max_steps} steps of {config.batch_size} x {config.accumulate} x "
            f"{trainer.world_size} from {checkpoint or settings.controlnet} on {len(pairs)} pairs, {precision}, "
            f"into {folder}, then write {output}"
        )
        return
    with contextlib.ExitStack() as locks:
        if trainer.is_global_zero:
            locks.enter_context(lock_folders([folder], later=[output]))
            check_writable(output)
            if checkpoint and (changed := changed_flags(folder, settings)):
                print(f"Resuming {folder} with other flags than before: {', '.join(changed)}")
            write_settings(folder, settings)
        data = ControlNetData(pairs, config, settings.num_workers, settings.cache_latents, encoded, labels)
        # A checkpoint is tensors and plain numbers: nothing else is unpickled.
        trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
        if trainer.is_global_zero:
            save_controlnet(module.trained, output, settings.save_dtype)
            written = str(output)
            if settings.export_original:
                # Read again: the training's copy may have been rounded to 16 bits.
                save_original(load_base(base_name), module.trained, f"{output}.ckpt", settings.save_dtype)
                written += f" and {output.name}.ckpt"
            print(f"Trained {trainer.global_step} steps on {len(pairs)} pairs: wrote {written}, logs in {folder}")


if __name__ == "__main__":
    cli.run(main, ControlNetTrainingSettings, __doc__)
