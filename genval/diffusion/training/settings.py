"""Settings of the scripts that train models for generation. Importing this module does not import torch."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from genval.diffusion.settings import check_choice
from genval.runtime.errors import GenValError
from genval.runtime.flags import flag
from genval.runtime.paths import inside, resolve
from genval.runtime.settings import (
    Compile,
    comma_list,
    positive_int,
    seed_number,
    skip_bad_flag,
    trust_code_flag,
)
from genval.training.settings import OPTIMIZERS, OptimisationConfig

# Flags that decide about the weights, besides those of the optimisation.
_NAMED = (
    *("base", "controlnet", "data_dir", "jsonl", "devices", "num_nodes", "precision"),
    *("rank", "alpha", "target_modules", "images", "captions", "caption", "domain", "prompt", "prompt_file"),
    "prompt_template",
)
IMAGE_RESIZES = ("area", "nearest")
ATTENTIONS = ("auto", "cudnn")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(OptimisationConfig):
    """Settings of the training of a generator."""

    height: int = 512
    width: int = 512
    hint_lr_scale: float = 1.0  # factor on the learning rate of the hint embedding
    caption_dropout: float = 0.1  # fraction of captions replaced by "", which guidance needs (published: 0)
    flip: bool = True  # mirror half of the pairs
    image_resize: str = "area"  # of the crops: area or bilinear; "nearest", as published, aliases
    crops: int = 1  # crops per frame where pairs are encoded once; otherwise each pass has another crop
    gradient_checkpointing: bool = False  # compute activations again in the backward pass instead of keeping them
    compile: bool = False  # of the whole forward and backward pass, for a minute or two at the start
    attention: str = "auto"  # PyTorch's choice of kernel, or "cudnn" before it

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("height", "width", "crops"):
            if getattr(self, name) < 1:
                raise GenValError(f"--{name}: expected a number above 0, found {getattr(self, name)}.")
        if not 0 <= self.caption_dropout < 1:
            raise GenValError(f"--caption_dropout: expected 0 up to below 1, found {self.caption_dropout}.")
        if not 0 < self.hint_lr_scale < math.inf:
            raise GenValError(f"--hint_lr_scale: expected a number above 0, found {self.hint_lr_scale}.")
        check_choice("image_resize", self.image_resize, IMAGE_RESIZES)
        check_choice("attention", self.attention, ATTENTIONS)


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
    image_resize: str = flag("area", "resize method of the images; nearest is the published one", choices=IMAGE_RESIZES)
    num_workers: int = flag(min(16, os.cpu_count() or 1), "threads that read files", type=positive_int)
    cache_latents: bool = flag(False, "encode all images once and keep them on the device")
    precompute: str | None = flag(None, "encode all images once into this folder, also for other runs")
    crops: int = flag(1, "encoded crops per frame, with --cache_latents or --precompute", type=positive_int)
    skip_bad: bool = skip_bad_flag()

    batch_size: int = flag(8, "images per device", type=positive_int, title="optimisation")
    accumulate: int = flag(16, "batches per optimiser step", type=positive_int)
    max_epochs: int = flag(150, "passes over the images", type=positive_int)
    max_steps: int | None = flag(None, "optimiser steps, instead of --max_epochs", type=positive_int)
    max_minutes: float | None = flag(None, "stop this run after this many minutes; continue it with --resume last")
    lr: float = flag(1e-5, "learning rate")
    weight_decay: float = flag(0.01, "weight decay of AdamW")
    lr_schedule: str = flag("constant", "learning rate after the warm-up", choices=("constant", "cosine"))
    warmup_steps: int = flag(0, "steps in which the learning rate rises linearly")
    gradient_clip: float = flag(0.0, "maximum norm of the gradient (0 disables clipping)")
    caption_dropout: float = flag(0.1, "fraction of captions replaced by an empty one, for guidance")
    ema: float = flag(0.0, "decay of averaged weights (0 disables averaging)")
    optimizer: str = flag("adamw", "adamw8bit needs bitsandbytes", choices=OPTIMIZERS)
    gradient_checkpointing: bool = flag(False, "use less memory; the training is a third slower")
    compile: Literal["on", "off"] = flag(
        "off", "compile the training step for minutes; it is then 1.5 times as fast (GPU)", bare="on"
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
    def deciding(self) -> tuple[str, ...]:
        """Names of the flags that decide about the weights. A resumed run may change them, and says so."""
        config = [field.name for field in fields(TrainingConfig) if field.name not in ("max_epochs", "max_steps")]
        return (*config, *_NAMED)

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
        None, "a file with one phrasing of the domain per line, such as 'in dense fog'; one is chosen for each image"
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
    autoencoder_steps: int = flag(
        3000, "training steps of the autoencoder, if --autoencoder is not given", type=positive_int
    )
    start_from: str | None = flag(
        None, "start from the weights of this base, with its size, autoencoder and text encoder"
    )

    data_dir: str = flag("datasets/cityscapes", "folder of the labelled images", title="data")
    trg_dataset: str = flag("Cityscapes", "layout of DATA_DIR: a data set's name or folder:IMAGES,MASKS,LABELS")
    condition: str = flag("clear", "condition of the labelled images")
    place: str = flag("", "place of the labelled images, such as Germany")
    unlabelled: tuple[str, ...] = flag(
        (), "folders of unlabelled images: CONDITION=FOLDER or CONDITION=FOLDER@PLACE, comma-separated", type=comma_list
    )
    template: str = flag(
        "a street[ in {place}][, {condition}]", "form of the captions; a [part] without a value is left out"
    )
    condition_weights: tuple[str, ...] = flag((), "draw a condition more often, such as night=2,fog=3", type=comma_list)
    height: int = flag(256, "height of the images in pixels", type=positive_int)
    width: int = flag(512, "width of the images in pixels", type=positive_int)
    num_workers: int = flag(min(16, os.cpu_count() or 1), "threads that read files", type=positive_int)
    skip_bad: bool = skip_bad_flag()

    batch_size: int = flag(128, "images per step", type=positive_int, title="optimisation")
    max_steps: int = flag(20_000, "training steps", type=positive_int)
    max_minutes: float | None = flag(None, "stop this run after this many minutes; the next run resumes it")
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
        check_choice("lr_schedule", self.lr_schedule, ("constant", "cosine"))

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return inside(resolve(self.logs_dir), self.run or Path(self.output).name, "--run")
