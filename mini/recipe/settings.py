"""Settings of mini/train.py."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from genval.runtime.flags import flag
from genval.runtime.paths import resolve
from genval.runtime.settings import comma_list, positive_int, seed_flag

STAGES = ("autoencoder", "diffusion", "controlnet", "segmenters", "captioner", "inpainting", "detector", "outliner")


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Settings of mini/train.py."""

    SCRIPT: ClassVar[str] = "mini/train"

    data_dir: str = flag("datasets/mini_train", "folder of the training set")
    output: str = flag("checkpoints/mini", "folder of the checkpoints")
    stages: tuple[str, ...] = flag(STAGES, "stages to run", type=comma_list)
    accelerator: str = flag("auto", "auto, cpu, gpu or cuda:1")
    num_workers: int = flag(os.cpu_count() or 1, "threads that decode images", type=positive_int)
    height: int = flag(128, "height of the generated images", type=positive_int, title="size and length")
    width: int = flag(256, "width of the generated images", type=positive_int)
    autoencoder_steps: int = flag(2400, "training steps of the autoencoder", type=positive_int)
    diffusion_steps: int = flag(5000, "training steps of the diffusion model", type=positive_int)
    controlnet_steps: int = flag(3000, "training steps of the ControlNet", type=positive_int)
    hint_encoding: str = flag("label_id", "hint encoding of the ControlNet: label_id, colour or one_hot")
    segmenter_steps: int = flag(2000, "training steps per segmenter", type=positive_int)
    segmenters: tuple[str, ...] | None = flag(
        None, "recipes of mini/recipe/segmentation.py (default: all)", type=comma_list
    )
    captioner_steps: int = flag(9000, "training steps of the captioner", type=positive_int)
    clip_steps: int = flag(1500, "training steps of the CLIP model", type=positive_int)
    captioner_seconds: int | None = flag(None, "time limit of captioner and CLIP model, seconds", type=positive_int)
    inpainting_steps: int = flag(6000, "training steps of the inpainting model", type=positive_int)
    inpainting_seconds: int | None = flag(None, "time limit, seconds", type=positive_int)
    detector_steps: int = flag(4000, "training steps of the detector", type=positive_int)
    detector_seconds: int | None = flag(None, "time limit, seconds", type=positive_int)
    outliner_steps: int = flag(5000, "training steps of the outliner", type=positive_int)
    outliner_seconds: int | None = flag(None, "time limit, seconds", type=positive_int)
    batch_size: int | None = flag(None, "batch size of every stage, instead of its own", type=positive_int)
    seed: int = seed_flag()
    overwrite: bool = flag(False, "compute existing outputs again instead of resuming", title="run")
    limit: int | None = flag(None, "use only this many items", type=positive_int)
    dry_run: bool = flag(False, "check the inputs, print what would be done, and stop")
    preset: str | None = None

    @property
    def data(self) -> Path:
        """The training set's folder."""
        return resolve(self.data_dir)

    @property
    def folder(self) -> Path:
        """The folder of the checkpoints."""
        return resolve(self.output)
