"""Settings of the scripts that make data: mini/render.py, mini/prepare_camvid.py and mini/draw_sprites.py."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from typing import ClassVar

from genval.runtime.errors import GenValError
from genval.runtime.flags import flag
from genval.runtime.settings import comma_list, positive_int

from .dataset import CONDITIONS, OBJECTS


def count(text: str) -> int:
    """An argparse type: a whole number, 0 or more."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected a whole number, found {text}")
    return value


@dataclass(frozen=True, kw_only=True)
class RenderSettings:
    """Settings of mini/render.py."""

    SCRIPT: ClassVar[str] = "mini/render"

    output_dir: str = flag("datasets/mini", "folder for the data sets")
    num_train: int = flag(2000, "training images per domain", type=count)
    num_val: int = flag(200, "validation images per domain", type=count)
    height: int = flag(256, "height in pixels", type=positive_int)
    width: int = flag(512, "width in pixels, twice the height", type=positive_int)
    domains: tuple[str, ...] = flag(tuple(CONDITIONS), "domains to render", type=comma_list)
    objects: tuple[str, ...] | None = flag(
        None, "names of the objects in the set of objects (default: all that have a sprite)", type=comma_list
    )
    training_objects: int = flag(0, "training images, with an object or without", type=count)
    num_workers: int = flag(os.cpu_count() or 1, "number of processes", type=positive_int)
    overwrite: bool = flag(False, "render existing images again")
    preset: str | None = None

    def __post_init__(self) -> None:
        unknown = sorted(set(self.domains) - {*CONDITIONS, OBJECTS})
        if unknown:
            raise GenValError(f"--domains: {', '.join(unknown)} is none of {', '.join((*CONDITIONS, OBJECTS))}.")
        if self.objects:
            from .objects import object_names  # imports OpenCV, which --help does not need

            unknown = sorted(set(self.objects) - set(object_names()))
            if unknown:
                raise GenValError(f"--objects: {', '.join(unknown)} has no sprite. Known: {', '.join(object_names())}.")
        if self.width != 2 * self.height:
            raise GenValError(f"--width must be twice --height, found {self.width} and {self.height}.")


@dataclass(frozen=True, kw_only=True)
class PrepareCamvidSettings:
    """Settings of mini/prepare_camvid.py."""

    SCRIPT: ClassVar[str] = "mini/prepare_camvid"

    camvid: str = flag("datasets/camvid", "folder with images/ and labels/")
    output_dir: str = flag("datasets/camvid_streets", "folder for the data sets")
    dusk_repeats: int = flag(3, "entries per dusk frame in the diffusion model's list", type=positive_int)
    preset: str | None = None


@dataclass(frozen=True, kw_only=True)
class DrawSpritesSettings:
    """Settings of mini/draw_sprites.py."""

    SCRIPT: ClassVar[str] = "mini/draw_sprites"

    font: str = flag(help="NotoColorEmoji.ttf")
    objects: str = flag("ood_objects/objects.txt", "a list with one object per line")
    output_dir: str = flag("mini/world/sprites", "folder of the sheet")
    cell: int = flag(96, "longer side of a sprite in pixels", type=positive_int)
    columns: int = flag(7, "sprites per row", type=positive_int)
    preset: str | None = None
