"""The training run of ControlNet/train_lora.py: its models, its images and their prompts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from genval.captions.sources import match_sources
from genval.datasets.captions import read_captions
from genval.datasets.items import BadFile
from genval.diffusion.models.hints import CITYSCAPES_IDS
from genval.diffusion.models.lora import WEIGHTS, add_lora
from genval.diffusion.models.pipelines import load_base
from genval.diffusion.pairs import Pair, readable_pairs
from genval.diffusion.prompts import check_template, find_domain, fit_prompt
from genval.diffusion.settings import SamplingConfig
from genval.diffusion.training.data import ControlNetData, EncodedFolder
from genval.diffusion.training.log import ImageLog
from genval.diffusion.training.module import LoraModule
from genval.diffusion.training.settings import LoraTrainingSettings
from genval.runtime.errors import GenValError
from genval.runtime.messages import print_once
from genval.runtime.paths import resolve
from genval.runtime.seeds import item_seed
from genval.training.module import check_optimizer
from genval.training.runs import TrainingRun, check_output, choose_run, trainer_of, training_precision


def prepare_lora_training(settings: LoraTrainingSettings) -> TrainingRun:
    """Check the settings, load the base, add the LoRA to it, and find the images.

    Raises:
        GenValError: an input is missing or bad, or the output exists.
    """
    precision, config = training_precision(settings.precision, settings.accelerator), settings.config
    check_optimizer(config.optimizer)
    torch.set_float32_matmul_precision(settings.float32_matmul)
    output = resolve(settings.output)
    check_output(output, settings.resume, settings.overwrite, "LoRA", WEIGHTS)
    folder, checkpoint = choose_run(resolve(settings.logs_dir), settings.run, settings.resume)
    base = load_base(settings.base_model)
    images = captioned_images(settings, base.reads_whole)
    encoded = EncodedFolder(resolve(settings.precompute), base, images, config) if settings.precompute else None
    alpha = settings.rank if settings.alpha is None else settings.alpha
    lora = add_lora(base.unet, settings.rank, alpha, settings.target_modules, settings.seed)
    cached = images if settings.cache_latents else None
    module = LoraModule(base, lora, config, cached, settings.num_workers, encoded)
    data = ControlNetData(images, config, settings.num_workers, settings.cache_latents, encoded)
    logs = []
    if settings.images_every:
        sampling = SamplingConfig(settings.steps, settings.guidance_scale, sampler=settings.sampler)
        logs = [ImageLog(folder, images[: settings.num_images], settings.images_every, sampling)]
    trainer = trainer_of(settings, folder, precision, len(images), logs)

    def save() -> list[Path]:
        module.write(output, settings.save_dtype)
        return [output / WEIGHTS]

    start, size = f"a new LoRA of rank {settings.rank}", f"{len(images)} images"
    return TrainingRun(settings, start, folder, output, checkpoint, precision, size, module, data, trainer, save)


def captioned_images(settings: LoraTrainingSettings, fits: Callable[[str], bool]) -> list[Pair]:
    """Return the training images, sorted by path, and their prompts.

    Args:
        settings: of the script.
        fits: whether the base's text encoder reads a prompt without truncation.

    Raises:
        GenValError: there is no image, an image cannot be read or has no caption, or a prompt does not fit.
    """
    check_template(settings.prompt_template)
    domain = find_domain(settings.domain, settings.prompt, settings.prompt_file)
    images = resolve(settings.images)
    bad: list[BadFile] | None = [] if settings.skip_bad else None
    sources = match_sources(str(images / "**" / "*") if images.is_dir() else settings.images, bad)
    captions = read_captions(resolve(settings.captions)) if settings.captions else None
    pairs, without = [], []
    for source in sources:
        caption = settings.caption if captions is None else captions.get(source.image.name)
        if caption is None:
            without.append(source.image)
            continue
        text = domain.text(item_seed(settings.seed, source.image.name))
        pairs.append(Pair(source.image, None, fit_prompt(settings.prompt_template, caption, text, fits)))
    if without and not (settings.skip_bad and pairs):
        raise GenValError(
            f"--captions: {settings.captions} has no caption for {len(without)} images, such as {without[0]}. Add "
            "them there, skip these images (--skip_bad), or give --caption TEXT."
        )
    for file, reason in [*((one.file, one.reason) for one in bad or ()), *((file, "no caption") for file in without)]:
        print_once(f"skipped {file}: {reason}")
    return readable_pairs(pairs, CITYSCAPES_IDS.labels, settings.num_workers) if settings.skip_bad else pairs
