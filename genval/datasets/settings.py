"""Settings of the scripts that check and convert data sets."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import ClassVar

import path_dicts
from genval.runtime.flags import flag
from genval.runtime.settings import comma_list, dataset_list, positive_int


@dataclass(frozen=True, kw_only=True)
class CheckSettings:
    """Settings of relis/check_dataset.py."""

    SCRIPT: ClassVar[str] = "relis/check_dataset"

    trg_dataset: tuple[str, ...] = flag(help="data sets as given to relis/eval.py", type=dataset_list)
    cond: tuple[str, ...] = flag(("all",), "conditions, e.g. fog,night", type=comma_list)
    scene: tuple[str, ...] = flag(("all",), "cities, recordings or folders", type=comma_list)
    split: str | None = flag(None, "folder of a split, or all (default: the data set's usual split)")
    datasets_dir: str = flag("datasets", "folder of the data sets")
    generated_dir: str = flag(path_dicts.GENERATED_ROOT, "folder of the generated sets")
    trg_root: str | None = flag(None, "folder of the data set, if it is not in --datasets_dir")
    output_dir: str = flag("results/check", "folder of the reports")
    num_workers: int = flag(min(16, os.cpu_count() or 1), "threads that read files", type=positive_int)
    preset: str | None = None


@dataclass(frozen=True, kw_only=True)
class SmallCityscapesSettings:
    """Settings of relis/prepare_cityscapes.py."""

    SCRIPT: ClassVar[str] = "relis/prepare_cityscapes"

    data_dir: str = flag(help="folder with a folder of images per split")
    output_dir: str = flag("datasets/cityscapes_small", "folder of the data set")
    splits: tuple[str, ...] = flag(("train", "val"), "folders to convert", type=comma_list)
    stretch: bool = flag(False, "double the width, for images of 2:1 that were squeezed to squares")
    num_workers: int = flag(min(16, os.cpu_count() or 1), "threads that read files", type=positive_int)
    preset: str | None = None
