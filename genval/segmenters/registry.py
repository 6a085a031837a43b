"""From a name to a segmenter."""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import path_dicts
from genval.runtime.errors import GenValError
from genval.runtime.paths import find_below
from genval.segmenters.base import Segmenter, check_precision
from genval.segmenters.checkpoints import find_checkpoint

_MODEL_ZOO = "https://github.com/open-mmlab/mmsegmentation/blob/v0.30.0/docs/en/model_zoo.md"


def list_segmenters() -> list[str]:
    """The names `load_segmenter` knows: the model zoo's 42, then the embedded world's."""
    return [*path_dicts.ZOO, *path_dicts.MINI_SEGMENTERS]


def load_segmenter(
    name: str,
    device: torch.device | str,
    precision: str = "32-true",
    checkpoint_root: str | Path = path_dicts.CHECKPOINT_ROOT,
) -> Segmenter:
    """Load a segmenter by its name or its specification.

    Args:
        name: one of `list_segmenters()`, or
            `mmseg:CONFIG,CHECKPOINT`, an mmsegmentation config (a file, or one that ships with it) and its weights;
            `hf:NAME_OR_FOLDER`, a transformers model for semantic segmentation;
            `module:function`, any Python function that takes the device and returns a callable (an `nn.Module`, say)
            from RGB uint8 images (B, 3, H, W) to logits (B, 19, h, w) of any size.
        device: where it runs.
        precision: `32-true`, `16-true`, `bf16-true`, `16-mixed` or `bf16-mixed`; logits are float32 in any case.
            A Python function's result keeps its weights as they are: `true` means `mixed` there.
        checkpoint_root: the folder that the zoo's checkpoints are below (or one folder deeper).

    Returns:
        `segmenter(images, size=None)`: RGB uint8 (B, 3, H, W) to float32 logits (B, 19, *size); see `Segmenter`.

    Raises:
        GenValError: the name is unknown, a file is missing or damaged, or weights and model do not match.
    """
    check_precision(precision)
    device = torch.device(device)
    specification = path_dicts.MINI_SEGMENTERS.get(name, name)
    if name in path_dicts.ZOO:
        from genval.segmenters.openmmlab import load_openmmlab

        entry = path_dicts.ZOO[name]
        checkpoint = find_below(checkpoint_root, entry["checkpoint"])
        if checkpoint is None:
            raise GenValError(_missing_zoo_file(name, entry, checkpoint_root))
        return load_openmmlab(name, entry["config"], checkpoint, device, precision, entry.get("overrides"))
    prefix, colon, rest = specification.partition(":")
    if not colon or not rest:
        raise GenValError(_unknown(name))
    if prefix == "mmseg":
        return _load_mmseg(name, rest, device, precision, checkpoint_root)
    if prefix == "hf":
        from genval.segmenters.transformers_models import load_transformers

        return load_transformers(name, rest, device, precision, checkpoint_root)
    return _load_factory(name, prefix, rest, device, precision)


class FactorySegmenter(Segmenter):
    """What a user's function returned: it gets the uint8 images as they are."""

    def __init__(self, name: str, function: Callable[[Tensor], Tensor], precision: str) -> None:
        mixed = precision if precision == "32-true" else precision.replace("-true", "-mixed")
        super().__init__(name, nn.Identity(), [0.0] * 3, [1.0] * 3, mixed)
        self.function = function.eval() if isinstance(function, nn.Module) else function

    def prepare(self, images: Tensor) -> Tensor:
        return images

    def infer(self, pixels: Tensor) -> Tensor:
        return self.function(pixels)


def _load_mmseg(name: str, rest: str, device: torch.device, precision: str, checkpoint_root: str | Path) -> Segmenter:
    from genval.segmenters.openmmlab import load_openmmlab

    config, comma, file = (part.strip() for part in rest.partition(","))
    if not (config and comma and file):
        raise GenValError(f"Expected mmseg:CONFIG,CHECKPOINT, found mmseg:{rest}.")
    checkpoint = find_checkpoint(file, checkpoint_root)
    if checkpoint is None:
        raise GenValError(f"There is no checkpoint {file}, nor {Path(checkpoint_root) / file} (or one folder deeper).")
    return load_openmmlab(name, config, checkpoint, device, precision)


def _load_factory(name: str, module: str, function: str, device: torch.device, precision: str) -> Segmenter:
    try:
        factory: Any = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise GenValError(
            f"{name}: {error}. Expected module:function with a module that Python finds (add its folder to "
            f"PYTHONPATH). {_unknown(name)}"
        ) from error
    try:
        made = factory(device)
    except Exception as error:  # a user's function: anything may go wrong in it
        raise GenValError(f"{name} failed on its device {device}: {type(error).__name__}: {error}") from error
    if not callable(made):
        raise GenValError(f"{name} returned {type(made).__name__}, expected a callable from images to logits.")
    return FactorySegmenter(name, made, precision).to(device)


def _missing_zoo_file(name: str, entry: dict[str, Any], checkpoint_root: str | Path) -> str:
    file = Path(entry["checkpoint"])
    expected = f"No checkpoint for {name}: expected {Path(checkpoint_root) / file} (or one folder deeper). "
    # The zoo's files end with date, time and eight digits of their hash; the others were trained elsewhere.
    if re.search(r"_\d{8}_\d{6}-[0-9a-f]{8}\.pth$", file.name):
        return f"{expected}Get {file.name} from the model zoo of mmsegmentation 0.x: {_MODEL_ZOO}"
    return (
        f"{expected}It is not in mmsegmentation's model zoo: train {entry['config']} on Cityscapes with "
        f"mmsegmentation, or give your own files as mmseg:CONFIG,CHECKPOINT. (Model zoo: {_MODEL_ZOO})"
    )


def _unknown(name: str) -> str:
    by_lower = {known.lower(): known for known in list_segmenters()}
    close = [by_lower[match] for match in difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)]
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    return (
        f"Unknown segmenter {name!r}.{hint} Names are listed in path_dicts.py (ZOO, MINI_SEGMENTERS) and by "
        'python -c "from genval.segmenters import list_segmenters; print(*list_segmenters())"; '
        "or give mmseg:CONFIG,CHECKPOINT, hf:NAME_OR_FOLDER or module:function."
    )
