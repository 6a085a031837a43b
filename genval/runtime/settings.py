"""Settings that many stages share: how much to run, on which device, and the types of flags' values."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from typing import Any, Literal

from genval.runtime.flags import flag

Compile = Literal["auto", "on", "off"]
Precision = Literal["auto", "32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true"]


def positive_int(text: str) -> int:
    """Parse a whole number above zero."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, found {text!r}")
    return value


def seed_number(text: str) -> int:
    """Parse a whole number of up to 63 bits, which is what random generators take."""
    try:
        value = int(text)
    except ValueError:
        value = 2**63
    if not -(2**63) <= value < 2**63:
        raise argparse.ArgumentTypeError(f"expected a whole number of at most 63 bits, found {text!r}")
    return value


def comma_list(text: str) -> list[str]:
    """Parse `a,b,c` into `["a", "b", "c"]`; empty entries are refused."""
    values = [part.strip() for part in text.split(",")]
    if not all(values):
        raise argparse.ArgumentTypeError(f"expected names separated by commas, found {text!r}")
    return values


def dataset_list(text: str) -> list[str]:
    """Parse a `comma_list` of data sets, where the commas of `folder:IMAGES,MASKS,LABELS` belong to the data set.

    The comma of `pair:IMAGES,MASKS` belongs to it too.
    """
    commas = {"folder": 2, "pair": 1}
    values: list[str] = []
    for part in comma_list(text):
        if values and values[-1].count(",") < commas.get(values[-1].partition(":")[0], 0):
            values[-1] += f",{part}"
        else:
            values.append(part)
    return values


def height_width(text: str) -> tuple[int, int]:
    """Parse height and width in pixels, e.g. `512x1024`, or `512,1024` as pages write it."""
    parts = text.lower().replace(",", "x").split("x")
    if len(parts) != 2:
        raise argparse.ArgumentTypeError(f"expected height x width in pixels, as 512x1024, found {text!r}")
    return positive_int(parts[0]), positive_int(parts[1])


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How much of a stage to run, and whether to run it again."""

    overwrite: bool = flag(False, "compute existing outputs again instead of resuming")
    limit: int | None = flag(None, "stop after this many items", type=positive_int)
    dry_run: bool = flag(False, "check the inputs, print what would be done, and stop")


@dataclass(frozen=True, kw_only=True)
class DeviceSettings:
    """The devices and processes that share the work, named as in Lightning, and the arithmetic on them."""

    accelerator: str = flag("auto", "auto, cpu or gpu")
    devices: str = flag("auto", "number of devices per machine, or auto")
    num_nodes: int = flag(1, "number of machines", type=positive_int)
    precision: Precision = flag("auto", "dtype of weights and arithmetic; auto: bf16-true on a GPU, else 32-true")


def seed_flag() -> Any:
    """`--seed`: the run's seed."""
    return flag(0, "seed of the run; an item's own seed is a hash of this and the item's id", type=seed_number)


def skip_bad_flag() -> Any:
    """`--skip_bad`: skip bad items instead of stopping."""
    return flag(False, "skip a bad image or mask, count it and list it, instead of stopping at the first one")


def trust_code_flag() -> Any:
    """`--trust_code`: run Python code of a segmenter from anywhere."""
    return flag(
        False, "also run .py configs and modules that are not in the project, an installed package or TRUSTED_FOLDERS"
    )


def num_workers_flag() -> Any:
    """`--num_workers`: threads that read and write files."""
    return flag(min(16, os.cpu_count() or 1), "threads that read and write files", type=positive_int)
