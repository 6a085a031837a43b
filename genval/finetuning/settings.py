"""Settings of relis/finetune.py. Importing this module does not import torch."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, fields
from typing import ClassVar, Literal

import path_dicts
from genval.runtime.errors import GenValError
from genval.runtime.flags import flag
from genval.runtime.settings import (
    comma_list,
    dataset_list,
    height_width,
    positive_int,
    seed_number,
    skip_bad_flag,
    trust_code_flag,
)
from genval.training.settings import LR_SCHEDULES, OptimisationConfig

# The outlier losses, each with the scores of OOD detection that it is for; the first is the default of the score.
LOSS_SCORES = {
    "uniform": ("entropy", "confidence"),
    "energy": ("energy", "logits"),
    "rba": ("rba",),
}
SCORES = tuple(score for scores in LOSS_SCORES.values() for score in scores)
# Flags that change neither the weights nor what is validated.
_FREE = (
    *("dry_run", "overwrite", "resume", "run", "logs_dir", "output", "num_workers", "log_every", "checkpoint_every"),
    *("max_minutes", "max_steps", "max_epochs", "trust_code", "preset", "accelerator", "save_dtype"),
)


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(OptimisationConfig):
    """Settings of a fine-tuning."""

    crop_size: tuple[int, int] = (512, 1024)  # height and width
    outlier_ratio: float = 0.25  # fraction of a batch
    generated_ratio: float = 0.5  # fraction of a batch
    outlier_weight: float = 0.2  # of the outlier loss
    gap: float = 10.0  # between the margins of energy, nats


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """Settings of relis/finetune.py."""

    SCRIPT: ClassVar[str] = "relis/finetune"

    segmenter: str = flag(help="the segmenter to fine-tune, in a form of --segmenters", title="segmenter")
    output: str = flag(help="folder of the fine-tuned segmenter")
    class_map: str | None = flag(
        None, "classes of the segmenter's outputs, if not the 19: a JSON file of ids, or a name"
    )
    trust_code: bool = trust_code_flag()
    save_dtype: Literal["fp32", "fp16"] = flag("fp32", "dtype of the weights in --output")

    src_dataset: str = flag("Cityscapes", "the labelled clear streets", title="data")
    split: str = flag("train", "folder of a split of --src_dataset")
    outliers: str | None = flag(
        None,
        "objects: a folder with the output of the scripts of ood_objects/; pair:IMAGES,MASKS; paste:IMAGES,MASKS, to "
        "cut objects out of images and paste them on the road; or noise, to paste patches of noise",
    )
    objects: tuple[str, ...] | None = flag(None, "use only these generated objects", type=comma_list)
    outlier_ratio: float = flag(0.25, "fraction of a batch that has outliers")
    generated: tuple[str, ...] = flag(
        (), "generated weather that is mixed in, such as fog,night: sets Cityscapes_fog, ...", type=comma_list
    )
    generated_split: str | None = flag(None, "folder of a split of the generated sets (default: all)")
    generated_ratio: float = flag(0.5, "fraction of a batch that is generated weather")
    datasets_dir: str = flag("datasets", "folder of the data sets")
    generated_dir: str = flag(path_dicts.GENERATED_ROOT, "folder of the generated sets")
    crop_size: tuple[int, int] = flag((512, 1024), "HxW of the training crops", type=height_width)
    limit: int | None = flag(None, "use only this many clear streets", type=positive_int)
    skip_bad: bool = skip_bad_flag()
    num_workers: int = flag(min(16, os.cpu_count() or 1), "threads that read files", type=positive_int)

    score: str = flag(
        "entropy", "the score of OOD detection that will be used; it sets the default of --loss", choices=SCORES,
        title="optimisation",
    )  # fmt: skip
    loss: Literal["uniform", "energy", "rba"] | None = flag(
        None, "loss of the outliers: uniform softmax, margins of the energy, or RbA (default: that of --score)"
    )
    outlier_weight: float = flag(0.2, "weight of the outlier loss; 0 is the control without it")
    gap: float = flag(10.0, "energy loss: distance between the margins of known pixels and outliers, nats")
    batch_size: int = flag(8, "images per device", type=positive_int)
    accumulate: int = flag(1, "batches per optimiser step", type=positive_int)
    max_steps: int = flag(2000, "optimiser steps", type=positive_int)
    max_minutes: float | None = flag(None, "stop this run after this many minutes; continue it with --resume last")
    lr: float = flag(1e-5, "learning rate")
    weight_decay: float = flag(0.01, "weight decay of AdamW")
    lr_schedule: str = flag("cosine", "learning rate after the warm-up", choices=LR_SCHEDULES)
    warmup_steps: int = flag(50, "steps in which the learning rate rises linearly")
    gradient_clip: float = flag(1.0, "maximum norm of the gradient (0 disables clipping)")
    ema: float = flag(0.99, "decay of averaged weights (0 disables averaging)")

    val_every: int = flag(250, "optimiser steps between validations (0 disables them)", title="validation")
    val_split: str = flag("val", "folder of a split of --src_dataset, by which clear mIoU is validated")
    val_images: int = flag(100, "number of images of --val_split, evenly spaced", type=positive_int)
    val_ood: tuple[str, ...] = flag(
        (), "a set of main_gen_ood.py for the validation of OOD detection; do not give the test set",
        type=dataset_list,
    )  # fmt: skip
    max_miou_drop: float = flag(1.0, "stop when clear mIoU is this many points lower than before")

    seed: int = flag(0, "seed of order, crops, colours and places", type=seed_number, title="run")
    logs_dir: str = flag("logs", "runs are written to LOGS_DIR/RUN")
    run: str | None = flag(None, "name of the run's folder (default: the next free number; when resuming, the last)")
    resume: str | None = flag(None, "a checkpoint, 'last' (the run's newest) or 'auto' (the same, if one exists)")
    overwrite: bool = flag(False, "replace the segmenter in --output")
    dry_run: bool = flag(False, "check the inputs, print what would be done, and stop")
    checkpoint_every: int = flag(250, "optimiser steps between checkpoints", type=positive_int)
    log_every: int = flag(10, "optimiser steps between lines of the losses", type=positive_int)

    accelerator: str = flag("auto", "auto, cpu or gpu", title="device")
    devices: str = flag("auto", "number of devices per machine, or auto")
    num_nodes: int = flag(1, "number of machines", type=positive_int)
    precision: Literal["32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true"] | None = flag(
        None, "dtype of arithmetic (default: bf16-mixed on a GPU that supports it, else 32-true)"
    )
    preset: str | None = None

    def __post_init__(self) -> None:
        if self.loss is not None and self.score not in LOSS_SCORES[self.loss]:
            fitting = next(loss for loss, scores in LOSS_SCORES.items() if self.score in scores)
            raise GenValError(
                f"--loss {self.loss} does not improve --score {self.score}: it is for "
                f"{' and '.join(LOSS_SCORES[self.loss])}. Give --loss {fitting}, or another --score."
            )
        if not self.outliers and not self.generated:
            raise GenValError("Nothing to train on. Give --outliers images/ood_objects, --generated fog, or both.")
        if self.objects and (not self.outliers or self.outliers == "noise" or ":" in self.outliers):
            raise GenValError("--objects selects generated objects: give --outliers images/ood_objects.")
        for name in ("outlier_ratio", "generated_ratio"):
            if not 0 < getattr(self, name) < 1:
                raise GenValError(f"--{name}: expected a number between 0 and 1, found {getattr(self, name)}.")
        for name in ("outlier_weight", "val_every", "max_miou_drop"):
            if not 0 <= getattr(self, name) < math.inf:
                raise GenValError(f"--{name}: expected 0 or more, found {getattr(self, name)}.")
        for name in ("gap", "max_minutes"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < math.inf:
                raise GenValError(f"--{name}: expected a number above 0, found {getattr(self, name)}.")
        if self.streets_per_batch < 1:
            raise GenValError(
                f"--batch_size {self.batch_size}, --outlier_ratio and --generated_ratio leave no clear street in a "
                "batch. Give a larger batch or smaller ratios."
            )

    @property
    def outlier_loss(self) -> str:
        """The loss of the outliers: as given, or that of the score."""
        return self.loss or next(loss for loss, scores in LOSS_SCORES.items() if self.score in scores)

    @property
    def outliers_per_batch(self) -> int:
        """How many images of a batch have outliers: at least 1."""
        return max(1, round(self.outlier_ratio * self.batch_size)) if self.outliers else 0

    @property
    def generated_per_batch(self) -> int:
        """How many images of a batch are generated weather: at least 1."""
        return max(1, round(self.generated_ratio * self.batch_size)) if self.generated else 0

    @property
    def streets_per_batch(self) -> int:
        """How many images of a batch are clear streets."""
        return self.batch_size - self.outliers_per_batch - self.generated_per_batch

    @property
    def config(self) -> FinetuneConfig:
        """The settings of the optimisation."""
        names = [field.name for field in fields(FinetuneConfig) if hasattr(self, field.name)]
        return FinetuneConfig(**{name: getattr(self, name) for name in names})

    @property
    def deciding(self) -> tuple[str, ...]:
        """Names of the flags that decide about the weights. A resumed run may change them, and says so."""
        return tuple(field.name for field in fields(self) if field.name not in _FREE)
