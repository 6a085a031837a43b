"""The training run of ControlNet/train.py: its models, its data, and what it writes."""

from __future__ import annotations

import functools
from pathlib import Path

import torch

from genval.diffusion.models.controlnet import load_controlnet
from genval.diffusion.models.hints import LabelSet, read_encoding
from genval.diffusion.models.pipelines import load_base
from genval.diffusion.original.writing import save_original
from genval.diffusion.pairs import Pair, check_pair_ids, find_jsonl, read_pairs, readable_pairs
from genval.diffusion.settings import SamplingConfig
from genval.diffusion.training.data import ControlNetData, EncodedFolder
from genval.diffusion.training.log import ImageLog
from genval.diffusion.training.module import ControlNetModule
from genval.diffusion.training.settings import ControlNetTrainingSettings
from genval.runtime.paths import resolve
from genval.segmenters.registry import load_segmenter
from genval.training.module import check_optimizer
from genval.training.runs import TrainingRun, check_output, choose_run, trainer_of, training_precision


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
    trainer = trainer_of(settings, folder, precision, len(pairs), _image_logs(settings, folder, labels))
    save = functools.partial(_save, settings, module, output)
    size = f"{len(pairs)} pairs"
    return TrainingRun(
        settings, settings.controlnet, folder, output, checkpoint, precision, size, module, data, trainer, save
    )


def _save(settings: ControlNetTrainingSettings, module: ControlNetModule, output: Path) -> list[Path]:
    module.write(output, settings.save_dtype)
    if not settings.export_original:
        return [output]
    file = output.with_name(f"{output.name}.ckpt")
    # The base is loaded again, because the training's copy may have been rounded to 16 bits.
    save_original(load_base(settings.base_model), module.trained, file, settings.save_dtype)
    return [output, file]


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
