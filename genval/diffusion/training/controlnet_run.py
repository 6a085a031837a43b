"""A whole training run of ControlNet/train.py: load the models and the data, train, and write the ControlNet."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from pytorch_lightning import Trainer

from genval.artifacts.settings import write_settings
from genval.diffusion.models.controlnet import check_writable, load_controlnet, save_controlnet
from genval.diffusion.models.hints import LabelSet, read_encoding
from genval.diffusion.models.pipelines import load_base
from genval.diffusion.original.writing import save_original
from genval.diffusion.pairs import Pair, check_pair_ids, find_jsonl, read_pairs, readable_pairs
from genval.diffusion.settings import ControlNetTrainingSettings, SamplingConfig
from genval.diffusion.training.data import ControlNetData, EncodedFolder
from genval.diffusion.training.log import ImageLog
from genval.diffusion.training.module import ControlNetModule, check_optimizer
from genval.diffusion.training.runs import changed_flags, check_output, choose_run, make_trainer, training_precision
from genval.runtime.locks import lock_folders
from genval.runtime.paths import resolve
from genval.segmenters.registry import load_segmenter


@dataclasses.dataclass(frozen=True)
class TrainingRun:
    """A run that is ready to start.

    Attributes:
        settings: of the script.
        folder: folder of the run.
        output: folder of the trained ControlNet.
        checkpoint: the checkpoint to resume from, or None.
        precision: of the training, one of Lightning's.
        pairs: number of training pairs.
        module, data, trainer: Lightning's parts of the run.
    """

    settings: ControlNetTrainingSettings
    folder: Path
    output: Path
    checkpoint: Path | None
    precision: str
    pairs: int
    module: ControlNetModule
    data: ControlNetData
    trainer: Trainer


def prepare_training(settings: ControlNetTrainingSettings) -> TrainingRun:
    """Check the settings, load the models and find the data.

    Raises:
        GenValError: an input is missing or bad, or the output exists.
    """
    precision, config = training_precision(settings.precision, settings.accelerator), settings.config
    check_optimizer(config.optimizer)
    torch.set_float32_matmul_precision(settings.float32_matmul)
    output = resolve(settings.output)
    check_output(output, settings.resume, settings.overwrite)
    folder, checkpoint = choose_run(resolve(settings.logs_dir), settings.run, settings.resume)
    base = load_base(settings.base_model)
    controlnet = load_controlnet(settings.controlnet, base)
    labels = read_encoding(controlnet, settings.controlnet).labels
    pairs = _read_pairs(settings, settings.jsonl, labels)
    check_pair_ids(pairs, labels)
    encoded = EncodedFolder(resolve(settings.precompute), base, pairs, config, labels) if settings.precompute else None
    cached = pairs if settings.cache_latents else None
    module = ControlNetModule(base, controlnet, config, cached, settings.num_workers, encoded)
    data = ControlNetData(pairs, config, settings.num_workers, settings.cache_latents, encoded, labels)
    trainer = make_trainer(
        folder,
        config,
        len(pairs),
        _image_logs(settings, folder, labels),
        checkpoint_every=settings.checkpoint_every,
        log_every=settings.log_every,
        accelerator=settings.accelerator,
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        precision=precision,
    )
    return TrainingRun(settings, folder, output, checkpoint, precision, len(pairs), module, data, trainer)


def train_controlnet(run: TrainingRun) -> list[Path] | None:
    """Train, and write the ControlNet.

    Returns:
        The folder and the file that were written, on the first process; None on the others.

    Raises:
        GenValError: another run writes the same folder, the output cannot be written, or the weights are not finite.
    """
    settings = run.settings
    if not run.trainer.is_global_zero:
        _fit(run)
        return None
    with lock_folders([run.folder], later=[run.output]):
        check_writable(run.output)
        if run.checkpoint and (changed := changed_flags(run.folder, settings)):
            print(f"Resuming {run.folder} with other flags than before: {', '.join(changed)}")
        write_settings(run.folder, settings)
        _fit(run)
        return _save(run)


def _fit(run: TrainingRun) -> None:
    # weights_only: a checkpoint holds only tensors and plain numbers, so pickled objects are refused.
    run.trainer.fit(run.module, run.data, ckpt_path=run.checkpoint, weights_only=True)


def _save(run: TrainingRun) -> list[Path]:
    settings = run.settings
    save_controlnet(run.module.trained, run.output, settings.save_dtype)
    if not settings.export_original:
        return [run.output]
    file = run.output.with_name(f"{run.output.name}.ckpt")
    # The base is loaded again, because the training's copy may have been rounded to 16 bits.
    save_original(load_base(settings.base_model), run.module.trained, file, settings.save_dtype)
    return [run.output, file]


def _read_pairs(
    settings: ControlNetTrainingSettings, jsonl: str, labels: LabelSet, limit: int | None = None
) -> list[Pair]:
    data_dir = resolve(settings.data_dir)
    pairs = read_pairs(find_jsonl(jsonl, data_dir), data_dir, settings.skip_bad)[:limit]
    return readable_pairs(pairs, labels, settings.num_workers) if settings.skip_bad else pairs


def _image_logs(settings: ControlNetTrainingSettings, folder: Path, labels: LabelSet) -> list[ImageLog]:
    """Return the image log, or an empty list where it is disabled or has no pairs."""
    pairs = _read_pairs(settings, settings.val_jsonl, labels, settings.num_images) if settings.images_every else []
    if not pairs:
        return []
    segmenter = None
    if settings.val_segmenter:
        segmenter = load_segmenter(settings.val_segmenter, "cpu", trust_code=settings.trust_code)
    sampling = SamplingConfig(settings.steps, settings.guidance_scale, sampler=settings.sampler)
    return [ImageLog(folder, pairs, settings.images_every, sampling, segmenter, settings.save_dtype)]
