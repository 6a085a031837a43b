"""A whole run of ControlNet/train_base.py: find and encode the images, train a base, and write it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import path_dicts
from genval.artifacts.settings import write_settings
from genval.datasets.items import Item, find_items
from genval.datasets.layouts import find_layout
from genval.diffusion.models.pipelines import StableDiffusion, load_base, to_uint8
from genval.diffusion.sampling.denoiser import Denoiser
from genval.diffusion.sampling.generation import item_noise, make_scheduler, set_steps
from genval.diffusion.training.autoencoder import AutoencoderRecipe, psnr, read_autoencoder, train_autoencoder
from genval.diffusion.training.base_model import (
    BaseParts,
    DiffusionRecipe,
    base_scores,
    build_base,
    build_scheduler,
    fit_base,
    save_base,
)
from genval.diffusion.training.own_images import (
    CaptionTemplate,
    EncodedImages,
    OwnImage,
    condition_text,
    encode_own_images,
    encoding_mark,
    find_images,
    parse_unlabelled,
    read_framed,
    sampling_weights,
    write_pairs,
)
from genval.diffusion.training.settings import BaseTrainingSettings
from genval.runtime.devices import find_device
from genval.runtime.errors import GenValError
from genval.runtime.files import write_json, write_png
from genval.runtime.locks import lock_folders
from genval.runtime.paths import resolve
from genval.runtime.seeds import item_seed

# Attention is at the two lowest resolutions of small and medium: at the highest it dominates the time of a step.
SIZES: dict[str, dict[str, Any]] = {
    "small": {"block_out_channels": (64, 96, 128, 192), "attention": (False, False, True, True), "text_width": 128},
    "medium": {"block_out_channels": (96, 128, 192, 256), "attention": (False, False, True, True), "text_width": 256},
    "large": {
        "block_out_channels": (128, 256, 384, 384),
        "attention": (False, True, True, False),
        "layers_per_block": 2,
        "attention_heads": 8,
        "text_width": 256,
    },
}
# Images on which a new autoencoder is trained, at most: they are kept on the device.
_AUTOENCODER_IMAGES = 8192
_MEASURED_IMAGES = 64


@dataclasses.dataclass(frozen=True)
class BaseRun:
    """A run that is ready to start.

    Attributes:
        settings: of the script.
        folder: folder of the run: the autoencoder, the latents, the state of the training and its logs.
        output: folder of the base.
        device: where to train.
        items: the labelled images.
        images: all images, the labelled ones first.
        template: of the captions.
        recipe: size and schedule.
    """

    settings: BaseTrainingSettings
    folder: Path
    output: Path
    device: torch.device
    items: list[Item]
    images: list[OwnImage]
    template: CaptionTemplate
    recipe: DiffusionRecipe

    @property
    def transfer_caption(self) -> str:
        """The caption of the labelled images without their condition, which style_transfer.py completes."""
        return self.template.fill(self.settings.place, "")

    @property
    def control_caption(self) -> str:
        """The caption of the labelled images."""
        return self.template.fill(self.settings.place, condition_text(self.settings.condition))

    def groups(self) -> dict[str, int]:
        """Return the number of images by caption."""
        counts: dict[str, int] = {}
        for image in self.images:
            caption = self.template.fill(image.place, image.condition)
            counts[caption] = counts.get(caption, 0) + 1
        return counts


def prepare_base(settings: BaseTrainingSettings) -> BaseRun:
    """Check the settings and find the images.

    Raises:
        GenValError: an input is missing or bad, or the output exists and is finished.
    """
    output, folder = resolve(settings.output), settings.folder
    unfinished = state_file(folder).exists()
    if (output / "model_index.json").exists() and not (unfinished or settings.overwrite):
        raise GenValError(
            f"--output: {output} holds a base already. Give another folder, or --overwrite. To train it further, give "
            f"--start_from {settings.output} and another --output."
        )
    template = CaptionTemplate(settings.template)
    items = _labelled_items(settings, "train")
    images = [OwnImage(item.image, condition_text(settings.condition), settings.place) for item in items]
    for text in settings.unlabelled:
        images += find_images(parse_unlabelled(text))
    if len(images) < 2:
        raise GenValError(f"{settings.data_dir} has {len(images)} images: expected hundreds.")
    _condition_factors(settings, images)
    recipe = DiffusionRecipe(
        **SIZES[settings.model_size],
        steps=settings.max_steps,
        batch_size=settings.batch_size,
        learning_rate=settings.lr,
        lr_schedule=settings.lr_schedule,
        warmup_steps=settings.warmup_steps,
        ema=settings.ema,
        caption_dropout=settings.caption_dropout,
        place_dropout=settings.place_dropout,
        condition_dropout=settings.condition_dropout,
        snr_gamma=settings.snr_gamma or None,
        snapshot_steps=settings.checkpoint_every,
        seed=settings.seed,
    )
    return BaseRun(settings, folder, output, find_device(settings.accelerator), items, images, template, recipe)


def train_base(run: BaseRun) -> dict[str, Any]:
    """Encode the images, train until the steps or the minutes are over, and write the base.

    Returns:
        Scores: loss, parameters, images per second, `steps`, and `finished`, which is false where the time was over.

    Raises:
        GenValError: another run writes the same folder, an image cannot be read, or a saved state has other settings.
    """
    settings = run.settings
    with lock_folders([run.folder], later=[run.output]):
        if settings.overwrite:
            for file in run.folder.glob("training.snapshot*.pt"):
                file.unlink()
        write_settings(run.folder, settings)
        torch.manual_seed(settings.seed)
        torch.set_float32_matmul_precision("high")
        start = load_base(settings.start_from) if settings.start_from else None
        vae = start.vae if start else _autoencoder(run)
        vae.requires_grad_(False).eval().to(run.device)
        _check_size(vae, start, settings)
        mark = encoding_mark(run.images, settings.height, settings.width, vae)
        encoded = _encode(run, vae, mark)
        scale = vae.config.scaling_factor if start else 1 / encoded.deviation
        vae.register_to_config(scaling_factor=scale)
        return _train(run, vae, encoded, _data_mark(run, mark), start)


def state_file(folder: Path) -> Path:
    """The saved state of an unfinished training in a run's folder."""
    return folder / "training.snapshot.pt"


def _train(run: BaseRun, vae: Any, encoded: EncodedImages, mark: str, start: StableDiffusion | None) -> dict[str, Any]:
    from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

    settings, device = run.settings, run.device
    recipe = dataclasses.replace(run.recipe, data=mark)
    latents = (encoded.latents.float() * vae.config.scaling_factor).half()
    images = [run.images[number] for number in encoded.index.tolist()]
    captions = [run.template.variants(image) for image in images]
    torch.manual_seed(settings.seed)
    if start is not None:
        parts = BaseParts(vae, start.tokenizer, start.text_encoder, start.unet)
        print(f"Starting from the weights of {settings.start_from}; the optimiser starts anew, with its warm-up.")
    else:
        # Every domain's words are tokens, also of domains without images.
        texts = [*sorted({text for one in captions for text in one}), *path_dicts.DOMAINS.values()]
        parts = build_base(vae, texts, latents, recipe)
    losses = CSVLogger(run.folder, name="lightning_logs")
    loggers = [losses, TensorBoardLogger(run.folder, name="lightning_logs", version=losses.version)]

    def check(step: int, loss: float) -> None:
        if not math.isfinite(loss):
            raise GenValError(f"The loss is not finite at step {step}. Give a lower --lr, and start with --overwrite.")

    def record(step: int, values: Mapping[str, float]) -> None:
        check(step, values["loss"])
        for logger in loggers:
            logger.log_metrics(dict(values), step)
            logger.save()

    def log_images(step: int, models: Any) -> None:
        if settings.images_every and step % settings.images_every == 0:
            write_image_log(run, parts, models, run.folder / "image_log" / f"step_{step:06d}.png")

    on_gpu = device.type == "cuda"
    trained = fit_base(
        parts,
        latents,
        captions,
        (recipe.place_dropout, recipe.condition_dropout, recipe.caption_dropout),
        recipe,
        run.folder / "training",
        device,
        weights=sampling_weights(images, _condition_factors(settings, images)),
        seconds=60 * settings.max_minutes if settings.max_minutes else None,
        compiled=settings.compile == "on" or (settings.compile == "auto" and on_gpu),
        after_step=log_images,
        record=record,
    )
    for logger in loggers:
        logger.finalize("success")
    check(trained.fit.steps, trained.fit.losses["loss"])
    finished = trained.fit.steps >= recipe.steps
    if not finished:
        trained.snapshot.save(trained.fit.steps)
    scores = base_scores(parts, trained.fit, recipe) | {"steps": trained.fit.steps, "finished": finished}
    save_base(run.output, parts, trained.models)
    _write_lists(run)
    write_json(run.output / "training.json", scores)
    if finished:
        trained.snapshot.remove()
    return scores


@torch.no_grad()
def write_image_log(run: BaseRun, parts: BaseParts, models: Any, file: Path) -> None:
    """Write images sampled from the averaged weights, one row per caption of the set."""
    settings, device = run.settings, run.device
    vae = parts.vae
    base = StableDiffusion(
        run.output, vae, models["text"], parts.tokenizer, models["unet"], dict(build_scheduler().config)
    )
    shape = (base.unet.config.in_channels, settings.height // base.downscale, settings.width // base.downscale)
    rows = []
    for caption in run.groups():
        seeds = [item_seed(settings.seed, f"image log {number}") for number in range(settings.num_images)]
        denoiser = Denoiser(base, None, 1.0, settings.guidance_scale, False, False)
        scheduler = make_scheduler(base.scheduler_config, settings.sampler)
        set_steps(scheduler, settings.steps)
        text = base.encode_text([*([""] * len(seeds) if denoiser.guided else []), *[caption] * len(seeds)])
        conditions = denoiser.condition(text, None, scheduler.timesteps, None)
        latents = item_noise(seeds, shape).to(device) * scheduler.init_noise_sigma
        for step, timestep in enumerate(scheduler.timesteps):
            predicted = denoiser(scheduler.scale_model_input(latents, timestep), step, conditions)
            latents = scheduler.step(predicted, timestep, latents, return_dict=False)[0]
        rows.append(np.concatenate(to_uint8(base.decode_latents(latents)).cpu().numpy(), axis=1))
    write_png(file, np.concatenate(rows))


def _labelled_items(settings: BaseTrainingSettings, split: str) -> list[Item]:
    layout = find_layout(settings.trg_dataset)
    chosen = split if split in layout.splits else None
    return find_items(settings.trg_dataset, split=chosen, root=settings.data_dir)


def _write_lists(run: BaseRun) -> None:
    """Write the captioned pairs for train.py: `captions/train.jsonl`, and `val.jsonl` where that split exists."""
    folder, data_dir = run.output / "captions", resolve(run.settings.data_dir)
    write_pairs(folder / "train.jsonl", run.items, data_dir, run.control_caption)
    try:
        held_out = _labelled_items(run.settings, "val")
    except GenValError:  # there is no such split: the image log of train.py shows training masks
        held_out = run.items[:8]
    write_pairs(folder / "val.jsonl", held_out, data_dir, run.control_caption)


def _autoencoder(run: BaseRun) -> Any:
    """Read the autoencoder, or train one, which stays in the run's folder."""
    settings, own = run.settings, run.folder / "autoencoder"
    if settings.autoencoder:
        return read_autoencoder(resolve(settings.autoencoder))
    if settings.overwrite or not (own / "diffusion_pytorch_model.safetensors").exists():
        recipe = AutoencoderRecipe(
            block_out_channels=(32, 64, 96, 128), steps=settings.autoencoder_steps, seed=settings.seed, batch_size=16
        )
        pixels = _pixels(run, _AUTOENCODER_IMAGES)
        scores = train_autoencoder(pixels, recipe, own, run.device)
        print(f"autoencoder: {scores['psnr_db']} dB PSNR, {scores['seconds']} s")
    return read_autoencoder(own)


def _pixels(run: BaseRun, count: int) -> torch.Tensor:
    """Return evenly chosen images, (n, 3, H, W) uint8 on the device; bad ones are left out with --skip_bad."""
    from concurrent.futures import ThreadPoolExecutor

    chosen = np.unique(np.linspace(0, len(run.images) - 1, min(count, len(run.images))).astype(int))

    def load(number: int) -> np.ndarray | None:
        try:
            return read_framed(run.images[number].path, run.settings.height, run.settings.width)
        except GenValError:
            if not run.settings.skip_bad:
                raise
            return None

    with ThreadPoolExecutor(run.settings.num_workers) as pool:
        loaded = [image for image in pool.map(load, chosen) if image is not None]
    if not loaded:
        raise GenValError(f"All {len(chosen)} images were skipped by --skip_bad. Check --data_dir and --unlabelled.")
    return torch.from_numpy(np.stack(loaded)).permute(0, 3, 1, 2).contiguous().to(run.device)


def _data_mark(run: BaseRun, mark: str) -> str:
    """Return 12 hexadecimal digits over the latents' mark, the captions, their weights and the base to start from."""
    captions = [run.template.variants(image) for image in run.images]
    settings = run.settings
    content = [mark, captions, list(settings.condition_weights), settings.start_from]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


def _encode(run: BaseRun, vae: Any, mark: str) -> EncodedImages:
    settings = run.settings
    encoded = encode_own_images(
        vae,
        run.images,
        settings.height,
        settings.width,
        run.folder / "latents.safetensors",
        mark,
        workers=settings.num_workers,
        device=run.device,
        skip_bad=settings.skip_bad,
    )
    quality = psnr(vae, _pixels(run, _MEASURED_IMAGES))
    print(f"{len(encoded.index)} images encoded; decoded again, they reach {quality} dB PSNR")
    return encoded


def _check_size(vae: Any, start: StableDiffusion | None, settings: BaseTrainingSettings) -> None:
    levels = len(start.unet.config.block_out_channels if start else SIZES[settings.model_size]["block_out_channels"])
    step = 2 ** (len(vae.config.block_out_channels) - 1) * 2 ** (levels - 1)
    if settings.height % step or settings.width % step:
        raise GenValError(
            f"--height {settings.height} --width {settings.width}: expected multiples of {step} for this autoencoder "
            f"and --model_size {settings.model_size}."
        )


def _condition_factors(settings: BaseTrainingSettings, images: Sequence[OwnImage]) -> dict[str, float]:
    """Parse --condition_weights: condition text -> factor."""
    known, factors = {image.condition for image in images}, {}
    for text in settings.condition_weights:
        name, _, number = text.partition("=")
        try:
            factor = float(number)
        except ValueError:
            factor = math.nan
        if not 0 < factor < math.inf:
            raise GenValError(
                f"--condition_weights: expected CONDITION=NUMBER above 0, such as night=2, found {text!r}."
            )
        if condition_text(name.strip()) not in known:
            raise GenValError(
                f"--condition_weights: no image shows {name.strip()!r}: expected one of {', '.join(sorted(known))}."
            )
        factors[condition_text(name.strip())] = factor
    return factors
