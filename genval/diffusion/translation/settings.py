"""Settings of ControlNet/train_translation.py. Importing this module does not import torch."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from genval.runtime.errors import GenValError
from genval.runtime.flags import flag, group
from genval.runtime.paths import is_inside
from genval.runtime.settings import num_workers_flag, positive_int, seed_flag, skip_bad_flag

_SMALLEST_CROP = 32  # pixels; the discriminator's output of a smaller one is empty


def domain_folders(text: str) -> tuple[tuple[str, str], ...]:
    """Parse `fog=PATH,night=PATH` into pairs of domain and folder; a domain may have several folders.

    >>> domain_folders("fog=a,night=b,fog=c")
    (('fog', 'a'), ('night', 'b'), ('fog', 'c'))
    """
    pairs = [tuple(part.strip() for part in entry.partition("=")[::2]) for entry in text.split(",")]
    if not all(is_inside(name) and folder for name, folder in pairs):
        raise argparse.ArgumentTypeError(f"expected DOMAIN=FOLDER,DOMAIN=FOLDER, found {text!r}")
    return tuple((name, folder) for name, folder in pairs)


@dataclass(frozen=True)
class TranslationConfig:
    """The settings that decide about the weights; a run is resumed only with the same ones."""

    height: int = flag(256, "height of the images in pixels", type=positive_int)
    width: int = flag(512, "width of the images in pixels", type=positive_int)
    crop_width: int | None = flag(
        None, "width of the crops that are trained on, of full height (default: that of a square)", type=positive_int
    )
    zoom: float = flag(0.8, "smallest size of a crop before it is enlarged, as a fraction (1 disables zooming)")
    channels: int = flag(48, "channels of the first layer; the paper has 64", type=positive_int)
    blocks: int = flag(9, "residual blocks", type=positive_int)
    batch_size: int = flag(10, "images per step, shared by the domains", type=positive_int)
    max_steps: int = flag(10000, "training steps", type=positive_int)
    max_minutes: float | None = flag(
        None, "end after this time even if steps remain; the learning rate then falls with the time"
    )
    lr: float = flag(2e-4, "learning rate; it falls linearly to 0 in the second half")
    ema: float = flag(0.999, "decay of averaged weights (0 disables averaging)")
    nce_weight: float = flag(1.0, "weight of the contrastive loss, which keeps the content")
    patches: int = flag(256, "patches per image in the contrastive loss", type=positive_int)
    balance_classes: bool = flag(
        False, "draw more of these patches from classes with few pixels, by the masks of the clear images"
    )
    seed: int = seed_flag()

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            if getattr(self, name) % 4 or getattr(self, name) < _SMALLEST_CROP:
                raise GenValError(
                    f"--{name}: expected a multiple of 4 from {_SMALLEST_CROP} on, found {getattr(self, name)}."
                )
        if self.crop[1] % 4 or not _SMALLEST_CROP <= self.crop[1] <= self.width:
            raise GenValError(
                f"--crop_width: expected a multiple of 4 from {_SMALLEST_CROP} to {self.width}, found {self.crop[1]}."
            )
        if not 0 < self.zoom <= 1:
            raise GenValError(f"--zoom: expected a number above 0, up to 1, found {self.zoom}.")
        if not 0 <= self.ema < 1:
            raise GenValError(f"--ema: expected 0 up to below 1, found {self.ema}.")
        for name in ("lr", "max_minutes", "nce_weight"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < math.inf:
                raise GenValError(f"--{name}: expected a number above 0, found {getattr(self, name)}.")

    @property
    def crop(self) -> tuple[int, int]:
        """Height and width of the crops in pixels."""
        return self.height, self.crop_width or min(self.height, self.width)

    def record(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, kw_only=True)
class TranslationTrainingSettings:
    """Settings of ControlNet/train_translation.py."""

    SCRIPT: ClassVar[str] = "ControlNet/train_translation"

    unlabelled: tuple[tuple[str, str], ...] = flag(
        help="folders of images of each domain, DOMAIN=FOLDER,DOMAIN=FOLDER; all images below a folder are used",
        type=domain_folders,
        title="data",
    )
    data_dir: str | None = flag(
        None, "clear images: a Cityscapes folder, or any folder of images (default: Cityscapes in path_dicts.py)"
    )
    split: Literal["train", "val"] = flag("train", "split of the Cityscapes folder")
    output: str = flag("checkpoints/translation", "folder of the trained network, its log and its samples")
    skip_bad: bool = skip_bad_flag()
    num_workers: int = num_workers_flag()

    config: TranslationConfig = group(TranslationConfig, "training")

    save_dtype: Literal["fp32", "fp16"] = flag("fp16", "dtype of the weights in --output", title="run")
    overwrite: bool = flag(False, "start again instead of resuming")
    dry_run: bool = flag(False, "check the inputs, print what would be done, and stop")
    checkpoint_every: int = flag(1000, "steps between checkpoints", type=positive_int)
    log_every: int = flag(50, "steps between lines of the log", type=positive_int)
    images_every: int = flag(1000, "steps between image logs (0 disables them)")
    num_images: int = flag(4, "clear images in the image log", type=positive_int)

    accelerator: str = flag("auto", "auto, cpu or gpu", title="device")
    precision: Literal["auto", "32-true", "bf16-mixed"] = flag(
        "auto", "dtype of arithmetic; auto: bf16-mixed on a GPU that supports it, else 32-true"
    )
    compile: Literal["on", "off"] = flag("off", "compile the networks (GPU)", bare="on")
    preset: str | None = None

    def __post_init__(self) -> None:
        if self.config.batch_size < len(self.domains):
            raise GenValError(
                f"--batch_size {self.config.batch_size}: expected at least one image per domain, {len(self.domains)}."
            )

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains, in the order of `--unlabelled`."""
        return tuple(dict.fromkeys(name for name, _ in self.unlabelled))

    @property
    def devices(self) -> str:
        """One device."""
        return "1"

    @property
    def num_nodes(self) -> int:
        """One machine."""
        return 1
