"""Settings of sampling and of the stages that generate images. Importing this module does not import torch."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from genval.runtime.errors import GenValError
from genval.runtime.flags import flag, group
from genval.runtime.paths import inside, resolve
from genval.runtime.settings import (
    Compile,
    DeviceSettings,
    RunSettings,
    comma_list,
    num_workers_flag,
    positive_int,
    seed_flag,
    seed_number,
    skip_bad_flag,
    trust_code_flag,
)

INPAINTING_MODEL = "stable-diffusion-v1-5/stable-diffusion-inpainting"
INPAINTING_MODEL_XL = "diffusers/stable-diffusion-xl-1.0-inpainting-0.1"


SAMPLERS = ("ddim", "dpm++", "unipc", "lcm")
INPAINTING_SAMPLERS = ("ddim", "dpm++", "unipc")
LARGE = ("direct", "tiled", "upscaled")
IMG2IMG_STRENGTH = 0.8


def _widths(text: str) -> list[int]:
    """Parse `16,32,96,256`."""
    return [positive_int(part) for part in comma_list(text)]


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise GenValError(f"--{name}: expected one of {', '.join(known)}, found {value}.")


def _check_finite(name: str, value: float) -> None:
    if not math.isfinite(value):
        raise GenValError(f"--{name}: expected a finite number, found {value}.")


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise GenValError(f"--steps: expected a number above 0, found {steps}.")


def _check_fraction(name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise GenValError(f"--{name}: expected a number above 0, up to 1, found {value}.")


def steps_taken(steps: int, denoising_strength: float) -> int:
    """Return the steps that are taken from an image under noise, as diffusers counts them: 32 for 50 steps and 0.65.

    Raises:
        GenValError: the strength is not above 0 and up to 1, or leaves no step.
    """
    _check_fraction("denoising_strength", denoising_strength)
    taken = int(steps * denoising_strength)
    if taken < 1:
        raise GenValError(
            f"--denoising_strength {denoising_strength} of --steps {steps} leaves no step. Increase one of them."
        )
    return taken


@dataclass(frozen=True)
class SamplingConfig:
    """How images are sampled with a ControlNet; the defaults are the published ones."""

    steps: int = flag(25, "sampling steps, of any sampler", type=positive_int)
    guidance_scale: float = flag(8.0, "classifier-free guidance scale (1 disables it)")
    control_scale: float = flag(1.0, "factor on all residuals of the ControlNet")
    # eta of DDIM is 0; dpm++ is DPM-Solver++ 2M
    sampler: str = flag(
        "ddim", "dpm++ and unipc need 10 to 15 steps, lcm 4 to 8 with a LoRA that was trained for it", choices=SAMPLERS
    )
    large: str = flag(
        "direct",
        "images larger than the model was trained for: direct, the whole image at once; tiled, of overlapping windows; "
        "upscaled, generated small, then enlarged and denoised again in windows",
        choices=LARGE,
    )
    tile: int = flag(512, "side of a window, or shorter side of the small image, in pixels", type=positive_int)
    upscale_denoising_strength: float = flag(0.4, "fraction of the noise that is added to the enlarged image, 0 to 1")

    def __post_init__(self) -> None:
        _check_choice("sampler", self.sampler, SAMPLERS)
        _check_choice("large", self.large, LARGE)
        _check_finite("guidance_scale", self.guidance_scale)
        _check_finite("control_scale", self.control_scale)
        _check_steps(self.steps)
        _check_fraction("upscale_denoising_strength", self.upscale_denoising_strength)


@dataclass(frozen=True)
class InpaintingConfig:
    """How a masked part is inpainted; the defaults are those of the published `sd_inpaint.py`."""

    steps: int = flag(50, "steps of a whole denoising; --denoising_strength times as many are taken", type=positive_int)
    guidance_scale: float = flag(15.0, "classifier-free guidance scale (1 disables it)")
    denoising_strength: float = flag(
        1.0, "1 starts from noise alone; less starts from the image under as much noise, above 0, up to 1"
    )
    sampler: str = flag("ddim", "dpm++ and unipc need 10 to 15 steps", choices=INPAINTING_SAMPLERS)

    def __post_init__(self) -> None:
        _check_choice("sampler", self.sampler, INPAINTING_SAMPLERS)
        _check_finite("guidance_scale", self.guidance_scale)
        _check_steps(self.steps)
        steps_taken(self.steps, self.denoising_strength)

    @property
    def taken(self) -> int:
        """The steps that are taken."""
        return steps_taken(self.steps, self.denoising_strength)


@dataclass(frozen=True, kw_only=True)
class StyleTransferSettings:
    """Settings of ControlNet/style_transfer.py."""

    SCRIPT: ClassVar[str] = "ControlNet/style_transfer"

    domain: str | None = flag(
        None,
        "fog, night, rain, snow, india (path_dicts.DOMAINS), or a text such as 'thick smoke'",
        title="what to generate",
        exclusive="domain",
    )
    prompt: str | None = flag(None, "a text used verbatim, even if it resembles a known domain", exclusive="domain")
    prompt_file: str | None = flag(
        None, "a file with one phrasing of the domain per line, such as 'in dense fog'; each image takes one"
    )
    generator: Literal["controlnet", "img2img", "translate"] = flag(
        "controlnet",
        "controlnet: from the mask alone; img2img: from the mask and the photo under noise; translate: the photo, by "
        "the network of train_translation.py",
    )
    denoising_strength: float | None = flag(
        None,
        f"with img2img: fraction of the steps that are taken, above 0, up to 1 (default: {IMG2IMG_STRENGTH}); 1 starts "
        "from noise alone",
    )
    num_samples: int = flag(512, "number of images", type=positive_int)
    without_replacement: bool = flag(False, "choose each frame at most once")
    data_dir: str | None = flag(None, "folder of Cityscapes (default: its place in path_dicts.py)")
    from_train: bool = flag(False, "choose frames of the training set")
    captions: str | None = flag(
        None, ".jsonl of pairs or .json of clip_int.py (default: the published places)", exclusive="captions"
    )
    caption: str | None = flag(None, "one caption for every frame", exclusive="captions")
    no_captions: bool = flag(False, "prompts without captions: the domain alone", exclusive="captions")
    prompt_template: str = flag("{caption}, {domain}", "how a prompt is composed")
    negative_prompt: str = flag("", "the prompt that guidance leads away from")

    base: str | None = flag(
        None, "Stable Diffusion model (default: the one in the ControlNet's file, else 1.5)", title="models"
    )
    controlnet: str = flag("checkpoints/controlnet_cs", "folder of train.py, or .ckpt file")
    lora: str | None = flag(
        None, "a LoRA of the base's UNet, file or folder; --sampler lcm needs one that was trained for it"
    )
    translator: str = flag("checkpoints/translation", "folder of train_translation.py, for --generator translate")

    sampling: SamplingConfig = group(SamplingConfig, "sampling")

    frame: Literal["crop", "whole", "full"] = flag(
        "crop", "whole: the whole frame, whose width follows from the height; full: at its own size", title="size"
    )
    height: int = flag(512, "height of the images in pixels", type=positive_int)
    width: int = flag(512, "width of the images in pixels", type=positive_int)

    output_dir: str = flag(
        "images/style_transfer", "folder in which the domain's folder is made", title="input and output"
    )
    skip_bad: bool = skip_bad_flag()
    seed: int = seed_flag()
    num_workers: int = num_workers_flag()

    run: RunSettings = group(RunSettings, "run")
    device: DeviceSettings = group(DeviceSettings, "device")

    batch_size: int | None = flag(
        None, "images or windows per batch (default: 32 on a GPU, 4 on a CPU)", title="speed", type=positive_int
    )
    compile: Compile = flag("auto", "compile the denoiser; auto: where that saves time", bare="on")
    preset: str | None = None

    def __post_init__(self) -> None:
        if (self.domain is None) == (self.prompt is None):
            raise GenValError("Expected one of --domain and --prompt. Give --domain fog, for example.")
        if self.generator == "img2img":
            steps_taken(self.sampling.steps, self.strength)
            if self.sampling.large == "upscaled":
                raise GenValError(
                    "--large upscaled generates a small image first, but --generator img2img starts from a photo of "
                    "full size. Give --large tiled."
                )
        elif self.denoising_strength is not None:
            raise GenValError(
                f"--denoising_strength: --generator {self.generator} does not start from the photo. Give --generator "
                "img2img, or leave it out."
            )

    @property
    def strength(self) -> float:
        """The denoising strength: 1 starts from noise alone."""
        if self.generator != "img2img":
            return 1.0
        return IMG2IMG_STRENGTH if self.denoising_strength is None else self.denoising_strength

    @property
    def steps(self) -> int:
        """The sampling steps that are taken."""
        return self.sampling.steps if self.strength == 1 else steps_taken(self.sampling.steps, self.strength)

    @property
    def fixed_caption(self) -> str | None:
        """The caption of every frame, "" for none, or None where captions come from a file."""
        return "" if self.no_captions else self.caption

    @property
    def base_model(self) -> str:
        """The base model: as given, or the default of the ControlNet."""
        from genval.diffusion.models.controlnet import default_base

        return self.base or str(default_base(self.controlnet))


@dataclass(frozen=True, kw_only=True)
class InpaintingStageSettings:
    """What ood_objects/sd_inpaint.py and ood_objects/refine_gen_images.py have in common."""

    inpainting_model: str | None = flag(
        None, f"hub name, folder or original .ckpt (default: {INPAINTING_MODEL})", title="model"
    )
    sdxl: bool = flag(False, f"use {INPAINTING_MODEL_XL}, which inpaints 1024 pixels")
    size: int | None = flag(
        None,
        "side in pixels of the square that the model inpaints (default: 512; with --sdxl: 1024)",
        type=positive_int,
    )
    negative_prompt: str = flag("", "the prompt that guidance leads away from")
    sampling: InpaintingConfig = group(InpaintingConfig, "sampling")
    output_dir: str = flag("images/ood_objects/with_positions", "folder of the images", title="input and output")
    seed: int = seed_flag()
    num_workers: int = num_workers_flag()
    run: RunSettings = group(RunSettings, "run")
    device: DeviceSettings = group(DeviceSettings, "device")
    batch_size: int | None = flag(
        None, "images per batch (default: 32 on a GPU, 4 on a CPU)", title="speed", type=positive_int
    )
    compile: Compile = flag("auto", "compile the denoiser; auto: where that saves time", bare="on")
    preset: str | None = None

    @property
    def inpainting_model_name(self) -> str:
        """The inpainting model: as given, or the default of its kind."""
        return self.inpainting_model or (INPAINTING_MODEL_XL if self.sdxl else INPAINTING_MODEL)

    @property
    def side(self) -> int:
        """The side of the square that the model inpaints, in pixels."""
        return self.size or (1024 if self.sdxl else 512)


@dataclass(frozen=True, kw_only=True)
class ObjectSettings(InpaintingStageSettings):
    """Settings of ood_objects/sd_inpaint.py. Sizes of boxes are for frames of 1024 rows, and scale with the frame."""

    SCRIPT: ClassVar[str] = "ood_objects/sd_inpaint"

    objects: tuple[str, ...] | None = flag(
        None, "names of objects, instead of the list", type=comma_list, title="objects"
    )
    objects_file: str = flag("ood_objects/objects.txt", "a list with one object per line")
    num_images: int = flag(512, "images per object", type=positive_int)
    prompt_template: str = flag("A photo of {article} {object}", "{article} is 'a' or 'an'")
    data_dir: str | None = flag(None, "folder of Cityscapes (default: its place in path_dicts.py)", title="frames")
    from_train: bool = flag(False, "inpaint into frames of the training set")
    placement: Literal["published", "road"] = flag(
        "published",
        "published: anywhere below the top quarter; road: standing on road or sidewalk, smaller with distance",
    )
    min_box: int | None = flag(None, "smallest side of a box in pixels (default: 256; road: 96)", type=positive_int)
    max_box: int = flag(512, "largest side of a box in pixels", type=positive_int)
    context: float = flag(1.5, "side of the crop that the model sees, as a multiple of the box's side")
    skip_bad: bool = skip_bad_flag()

    @property
    def smallest_box(self) -> int:
        """The smallest side of a box in pixels."""
        return self.min_box or (96 if self.placement == "road" else 256)


@dataclass(frozen=True, kw_only=True)
class RefinementSettings(InpaintingStageSettings):
    """Settings of ood_objects/refine_gen_images.py."""

    SCRIPT: ClassVar[str] = "ood_objects/refine_gen_images"

    sampling: InpaintingConfig = group(InpaintingConfig, "sampling", guidance_scale=7.5, denoising_strength=0.65)
    images_dir: str = flag("images/ood_objects/with_positions", "images and boxes to refine", title="images")
    objects: tuple[str, ...] | None = flag(
        None, "only these objects, by name or folder (default: all in the folder)", type=comma_list
    )
    prompt_template: str = flag("{object}", "may contain {article}, which is 'a' or 'an'")
    whole_frame: bool = flag(False, "inpaint the whole frame at its own size, as published")
    context: float = flag(1.5, "side of the crop that the model sees, as a multiple of the box's side")
    feather: float = flag(0.125, "width of the seam, as a fraction of the box's side")
    output_dir: str = flag("images/ood_objects/refined", "folder of the images")


IMAGE_RESIZES = ("area", "nearest")
OPTIMIZERS = ("adamw", "adamw8bit")
ATTENTIONS = ("auto", "cudnn")


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of a training run; the defaults are the published ones where the published code had such a setting."""

    height: int = 512
    width: int = 512
    batch_size: int = 8  # pairs per device
    accumulate: int = 16  # batches per optimiser step
    max_epochs: int = 150  # passes over the pairs
    max_steps: int | None = None  # optimiser steps, instead of max_epochs
    lr: float = 1e-5
    hint_lr_scale: float = 1.0  # factor on the learning rate of the hint embedding
    weight_decay: float = 0.01  # AdamW's default, as published
    lr_schedule: str = "constant"  # or "cosine", to zero at the last step
    warmup_steps: int = 0  # linear from zero
    gradient_clip: float = 0.0  # maximum norm of the gradient; 0 disables it
    caption_dropout: float = 0.1  # fraction of captions replaced by "", which guidance needs (published: 0)
    flip: bool = True  # mirror half of the pairs
    image_resize: str = "area"  # of the crops: area or bilinear; "nearest", as published, aliases
    crops: int = 1  # crops per frame where pairs are encoded once; otherwise each pass has another crop
    ema: float = 0.0  # decay of the averaged weights; 0 disables it
    optimizer: str = "adamw"  # or "adamw8bit": moments in 8 bits, for a fifth less memory
    gradient_checkpointing: bool = False  # compute activations again in the backward pass instead of keeping them
    compile: bool = False  # of the whole forward and backward pass, for a minute or two at the start
    attention: str = "auto"  # PyTorch's choice of kernel, or "cudnn" before it
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("height", "width", "batch_size", "accumulate", "max_epochs", "max_steps", "crops"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise GenValError(f"--{name}: expected a number above 0, found {getattr(self, name)}.")
        for name in ("caption_dropout", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise GenValError(f"--{name}: expected 0 up to below 1, found {getattr(self, name)}.")
        for name in ("lr", "hint_lr_scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise GenValError(f"--{name}: expected a number above 0, found {getattr(self, name)}.")
        for name in ("warmup_steps", "gradient_clip", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise GenValError(f"--{name}: expected 0 or more, found {getattr(self, name)}.")
        for name, choices in (
            ("lr_schedule", ("constant", "cosine")),
            ("image_resize", IMAGE_RESIZES),
            ("optimizer", OPTIMIZERS),
            ("attention", ATTENTIONS),
        ):
            if getattr(self, name) not in choices:
                raise GenValError(f"--{name}: expected {' or '.join(choices)}, found {getattr(self, name)}.")

    def total_steps(self, pairs: int, world_size: int = 1) -> int:
        """Return the optimiser steps of a run over `pairs` pairs on `world_size` devices."""
        passes = math.ceil(self.max_epochs * pairs / (self.batch_size * self.accumulate * world_size))
        return self.max_steps or passes


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """What ControlNet/train.py and ControlNet/train_lora.py have in common."""

    base: str | None = flag(None, "Stable Diffusion model (default: 1.5)", title="models")
    output: str = flag(help="folder of the trained model")
    save_dtype: Literal["fp32", "fp16"] = flag("fp32", "dtype of the weights in --output")

    resolution: int = flag(512, "side of a square, cropped from the frame, in pixels", type=positive_int, title="data")
    height: int | None = flag(None, "height, instead of --resolution", type=positive_int)
    width: int | None = flag(None, "width, instead of --resolution", type=positive_int)
    no_flip: bool = flag(False, "do not mirror half of the images")
    image_resize: str = flag("area", "nearest is the published one", choices=IMAGE_RESIZES)
    num_workers: int = flag(min(16, os.cpu_count() or 1), "threads that read files", type=positive_int)
    cache_latents: bool = flag(False, "encode all images once and keep them on the device")
    precompute: str | None = flag(None, "encode all images once into this folder, also for other runs")
    crops: int = flag(1, "encoded crops per frame, with --cache_latents or --precompute", type=positive_int)
    skip_bad: bool = skip_bad_flag()

    batch_size: int = flag(8, "images per device", type=positive_int, title="optimisation")
    accumulate: int = flag(16, "batches per optimiser step", type=positive_int)
    max_epochs: int = flag(150, "passes over the images", type=positive_int)
    max_steps: int | None = flag(None, "optimiser steps, instead of --max_epochs", type=positive_int)
    max_minutes: float | None = flag(None, "stop this run of the script after so long; --resume last continues it")
    lr: float = flag(1e-5, "learning rate")
    weight_decay: float = flag(0.01, "weight decay of AdamW")
    lr_schedule: str = flag("constant", "learning rate after the warm-up", choices=("constant", "cosine"))
    warmup_steps: int = flag(0, "steps in which the learning rate rises linearly")
    gradient_clip: float = flag(0.0, "maximum norm of the gradient (0 disables clipping)")
    caption_dropout: float = flag(0.1, "fraction of captions replaced by an empty one, for guidance")
    ema: float = flag(0.0, "decay of averaged weights (0 disables averaging)")
    optimizer: str = flag("adamw", "adamw8bit needs bitsandbytes", choices=OPTIMIZERS)
    gradient_checkpointing: bool = flag(False, "use less memory; a third slower")
    compile: Literal["on", "off"] = flag(
        "off", "compile the training step: 1.5 times as fast after minutes of compiling (GPU)", bare="on"
    )
    attention: str = flag("auto", "attention kernels that are tried first", choices=ATTENTIONS)
    float32_matmul: Literal["highest", "high"] = flag("high", "high allows TF32")

    seed: int = flag(0, "seed of order, crops, dropout, noise and timesteps", type=seed_number, title="run")
    logs_dir: str = flag("logs", "runs are written to LOGS_DIR/RUN")
    run: str | None = flag(None, "name of the run's folder (default: the next free number; when resuming, the last)")
    resume: str | None = flag(None, "a checkpoint, 'last' (the run's newest) or 'auto' (the same, if one exists)")
    overwrite: bool = flag(False, "replace the model in --output")
    dry_run: bool = flag(False, "check the inputs, print what would be done, and stop")
    checkpoint_every: int = flag(500, "optimiser steps between checkpoints", type=positive_int)
    log_every: int = flag(10, "optimiser steps between lines of the loss", type=positive_int)
    images_every: int = flag(500, "optimiser steps between image logs (0 disables them)")
    num_images: int = flag(4, "images in the image log", type=positive_int)
    steps: int = flag(25, "sampling steps of the image log", type=positive_int)
    sampler: str = flag("ddim", "sampler of the image log", choices=("ddim", "dpm++"))
    guidance_scale: float = flag(8.0, "classifier-free guidance scale of the image log (1 disables it)")

    accelerator: str = flag("auto", "auto, cpu or gpu", title="device")
    devices: str = flag("auto", "number of devices per machine, or auto")
    num_nodes: int = flag(1, "number of machines", type=positive_int)
    precision: Literal["32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true"] | None = flag(
        None, "dtype of arithmetic (default: bf16-mixed on a GPU that supports it, else 32-true)"
    )
    preset: str | None = None

    def __post_init__(self) -> None:
        if self.max_minutes is not None and not 0 < self.max_minutes < math.inf:
            raise GenValError(f"--max_minutes: expected a number above 0, found {self.max_minutes}.")

    @property
    def config(self) -> TrainingConfig:
        """The settings of the optimisation."""
        own: dict[str, Any] = {
            "height": self.height or self.resolution,
            "width": self.width or self.resolution,
            "flip": not self.no_flip,
            "compile": self.compile == "on",
        }
        names = [field.name for field in fields(TrainingConfig) if field.name not in own and hasattr(self, field.name)]
        return TrainingConfig(**own, **{name: getattr(self, name) for name in names})


@dataclass(frozen=True, kw_only=True)
class ControlNetTrainingSettings(TrainingSettings):
    """Settings of ControlNet/train.py."""

    SCRIPT: ClassVar[str] = "ControlNet/train"

    base: str | None = flag(
        None, "Stable Diffusion model (default: the one in the ControlNet's file, else 1.5)", title="models"
    )
    output: str = flag("checkpoints/controlnet_cs", "folder of the trained ControlNet")
    controlnet: str = flag("checkpoints/control_seg", "the ControlNet to start from", title="models")
    export_original: bool = flag(False, "also write OUTPUT.ckpt, with base and ControlNet in one file")

    data_dir: str = flag("datasets/cityscapes", "folder from which the paths in the lines start", title="data")
    jsonl: str = flag("training/train.jsonl", "captioned pairs, in DATA_DIR or ControlNet/")
    val_jsonl: str = flag("training/val.jsonl", "captioned pairs for the image log")

    hint_lr_scale: float = flag(1.0, "factor on the learning rate of the hint embedding", title="optimisation")

    val_segmenter: str | None = flag(None, "a segmenter (see relis/eval.py) that scores the image log", title="run")
    trust_code: bool = trust_code_flag()

    @property
    def base_model(self) -> str:
        """The base model: as given, or the default of the ControlNet."""
        from genval.diffusion.models.controlnet import default_base

        return self.base or str(default_base(self.controlnet))


@dataclass(frozen=True, kw_only=True)
class LoraTrainingSettings(TrainingSettings):
    """Settings of ControlNet/train_lora.py."""

    SCRIPT: ClassVar[str] = "ControlNet/train_lora"

    output: str = flag("checkpoints/lora", "folder of the trained LoRA")
    rank: int = flag(16, "rank of the matrices that are added to each layer", type=positive_int, title="models")
    alpha: int | None = flag(
        None, "the product of the matrices is scaled by alpha / rank (default: the rank)", type=positive_int
    )
    target_modules: tuple[str, ...] = flag(
        ("to_q", "to_k", "to_v", "to_out.0"),
        "layers of the UNet, by the ends of their names; conv1 and conv2 are those of the residual blocks",
        type=comma_list,
    )

    images: str = flag(help="folder of the images, or a pattern with *, ? and ** in quotes", title="data")
    domain: str | None = flag(
        None,
        "what the images show: fog, night, ... (path_dicts.DOMAINS), or a text such as 'thick smoke'",
        exclusive="domain",
    )
    prompt: str | None = flag(None, "a text used verbatim, even if it resembles a known domain", exclusive="domain")
    prompt_file: str | None = flag(
        None, "a file with one phrasing of the domain per line, such as 'in dense fog'; each image takes one"
    )
    caption: str = flag("a street", "one caption for every image", exclusive="captions")
    captions: str | None = flag(None, ".json of clip_int.py or .jsonl, one caption per image", exclusive="captions")
    prompt_template: str = flag("{caption}, {domain}", "how a prompt is composed, as in style_transfer.py")

    accumulate: int = flag(1, "batches per optimiser step", type=positive_int)
    max_epochs: int = flag(50, "passes over the images", type=positive_int)
    lr: float = flag(1e-4, "learning rate")

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.domain is None) == (self.prompt is None):
            raise GenValError("Expected one of --domain and --prompt. Give --domain fog, for example.")
        if not self.target_modules:
            raise GenValError("--target_modules: expected at least one name, such as to_q,to_k,to_v,to_out.0.")

    @property
    def base_model(self) -> str:
        """The base model: as given, or Stable Diffusion 1.5."""
        from genval.diffusion.models.controlnet import DEFAULT_BASE

        return self.base or DEFAULT_BASE


@dataclass(frozen=True, kw_only=True)
class BaseTrainingSettings:
    """Settings of ControlNet/train_base.py."""

    SCRIPT: ClassVar[str] = "ControlNet/train_base"

    output: str = flag("checkpoints/base", "folder of the trained base", title="model")
    model_size: Literal["small", "medium", "large"] = flag("medium", "about 12, 25 or 90 million parameters")
    autoencoder: str | None = flag(
        None, "diffusers folder of an AutoencoderKL or AutoencoderTiny, or folder of TAESD's files (default: train one)"
    )
    autoencoder_steps: int = flag(3000, "training steps of the autoencoder, where none is given", type=positive_int)
    start_from: str | None = flag(
        None, "start from the weights of this base; its size, autoencoder and text encoder are taken"
    )

    data_dir: str = flag("datasets/cityscapes", "folder of the labelled images", title="data")
    trg_dataset: str = flag("Cityscapes", "layout of DATA_DIR: a data set's name or folder:IMAGES,MASKS,LABELS")
    condition: str = flag("clear", "condition of the labelled images")
    place: str = flag("", "place of the labelled images, such as Germany")
    unlabelled: tuple[str, ...] = flag(
        (), "folders of unlabelled images: CONDITION=FOLDER or CONDITION=FOLDER@PLACE, comma-separated", type=comma_list
    )
    template: str = flag("a street[ in {place}][, {condition}]", "captions; [parts] without a value are left out")
    condition_weights: tuple[str, ...] = flag((), "draw a condition more often, such as night=2,fog=3", type=comma_list)
    height: int = flag(256, "height of the images in pixels", type=positive_int)
    width: int = flag(512, "width of the images in pixels", type=positive_int)
    num_workers: int = flag(min(16, os.cpu_count() or 1), "threads that read files", type=positive_int)
    skip_bad: bool = skip_bad_flag()

    batch_size: int = flag(128, "images per step", type=positive_int, title="optimisation")
    max_steps: int = flag(20_000, "training steps", type=positive_int)
    max_minutes: float | None = flag(None, "end the training of this run after so long; the next run resumes it")
    lr: float = flag(4e-4, "learning rate")
    lr_schedule: str = flag(
        "constant", "learning rate after the warm-up; cosine falls to 0 at --max_steps", choices=("constant", "cosine")
    )
    warmup_steps: int = flag(200, "steps in which the learning rate rises linearly")
    ema: float = flag(0.999, "decay of the averaged weights")
    caption_dropout: float = flag(0.1, "fraction of captions replaced by an empty one, for guidance")
    place_dropout: float = flag(0.2, "fraction of captions without the place")
    condition_dropout: float = flag(0.1, "fraction of captions without the condition")
    snr_gamma: float = flag(5.0, "limit of the signal-to-noise ratio in the weights of the loss (0: no weights)")
    compile: Compile = flag("auto", "compile the UNet; auto: on a GPU", bare="on")

    seed: int = flag(0, "seed of the weights, order, noise and timesteps", type=seed_number, title="run")
    logs_dir: str = flag("logs", "the run is written to LOGS_DIR/RUN")
    run: str | None = flag(None, "name of the run's folder (default: the name of OUTPUT)")
    overwrite: bool = flag(False, "start again instead of resuming")
    dry_run: bool = flag(False, "check the inputs, print what would be done, and stop")
    checkpoint_every: int = flag(1000, "steps between saved states", type=positive_int)
    images_every: int = flag(1000, "steps between image logs (0 disables them)")
    num_images: int = flag(4, "images per caption in the image log", type=positive_int)
    steps: int = flag(25, "sampling steps of the image log", type=positive_int)
    sampler: str = flag("ddim", "sampler of the image log", choices=("ddim", "dpm++"))
    guidance_scale: float = flag(3.0, "classifier-free guidance scale of the image log (1 disables it)")

    accelerator: str = flag("auto", "auto, cpu or gpu", title="device")
    preset: str | None = None

    def __post_init__(self) -> None:
        for name in ("caption_dropout", "place_dropout", "condition_dropout", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise GenValError(f"--{name}: expected 0 up to below 1, found {getattr(self, name)}.")
        if self.caption_dropout + self.place_dropout + self.condition_dropout > 1:
            raise GenValError("--caption_dropout, --place_dropout and --condition_dropout: expected a sum of up to 1.")
        for name in ("lr", "max_minutes"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < math.inf:
                raise GenValError(f"--{name}: expected a number above 0, found {getattr(self, name)}.")
        for name in ("snr_gamma", "warmup_steps", "images_every"):
            if not 0 <= getattr(self, name) < math.inf:
                raise GenValError(f"--{name}: expected 0 or more, found {getattr(self, name)}.")
        _check_choice("lr_schedule", self.lr_schedule, ("constant", "cosine"))

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return inside(resolve(self.logs_dir), self.run or Path(self.output).name, "--run")


@dataclass(frozen=True, kw_only=True)
class AddControlSettings:
    """Settings of ControlNet/tool_add_control.py."""

    SCRIPT: ClassVar[str] = "ControlNet/tool_add_control"

    input: str = flag(help="the Stable Diffusion model to copy from", positional=True)
    output: str = flag(help="folder, or .ckpt or .safetensors file, to write", positional=True)
    hint_encoding: Literal["label_id", "colour", "one_hot"] = flag(
        "label_id", "hint of the ControlNet: one channel of ids as published, three of colours, or one per class"
    )
    hint_labels: str = flag("cityscapes", "ids of the masks: cityscapes, idd, camvid, or a JSON file")
    hint_init: Literal["default", "hinges"] = flag(
        "default", "start of the hint embedding: random as published, or steps between the class ids"
    )
    hint_widths: tuple[int, ...] = flag(
        (), "channels of the hint embedding's levels (default: 16,32,96,256, as published)", type=_widths
    )
    seed: int = flag(0, "seed of the random initialisation", type=seed_number)
    controlnet: str | None = flag(None, "a trained ControlNet of INPUT, to write instead of a new one")
    export_original: bool = flag(
        False, "write the original format; to OUTPUT.ckpt where OUTPUT does not end in its suffix"
    )
    save_dtype: Literal["fp32", "fp16"] = flag("fp32", "dtype of the weights in OUTPUT")
    overwrite: bool = flag(False, "replace OUTPUT")
    preset: str | None = None
