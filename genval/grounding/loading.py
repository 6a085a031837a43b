"""Where a model lies and how it is loaded: hub names, folders in transformers' layout, files of the original format."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from genval.runtime.errors import GenValError
from genval.runtime.paths import find_below, resolve

SUFFIXES = (".pth", ".pt", ".ckpt")


def is_original(name: str) -> bool:
    """Whether a model's name is meant as a file of the original format, by its suffix."""
    return name.endswith(SUFFIXES)


def find_file(name: str) -> Path:
    """A file given from the repository's root, or below `checkpoints/` or one folder deeper.

    Raises:
        GenValError: it is in none of these places.
    """
    path = resolve(name) if resolve(name).is_file() else find_below("checkpoints", name)
    if path is None:
        below = "" if Path(name).is_absolute() else f", nor does checkpoints/{name}"
        raise GenValError(
            f"{name} does not exist{below}. Fetch it from its authors' page, or give the hub name or folder of a "
            "transformers model."
        )
    return path


def find_place(name: str) -> str:
    """A folder's path where `name` is one (as `find_file` looks), else `name` as a hub name."""
    if (resolve(name) / "config.json").is_file():
        return str(resolve(name))
    below = find_below("checkpoints", f"{name}/config.json")
    return str(below.parent) if below else name


def load_pretrained(model_class: Any, place: str, name: str, kinds: Collection[str]) -> Any:
    """A transformers model with every key in its place.

    Args:
        model_class: transformers' class.
        place: a folder, or a hub name.
        name: of the model, for errors.
        kinds: model types of configs that are accepted.

    Raises:
        GenValError: it cannot be had, is of another kind, or keys are missing, unexpected or of another shape.
    """
    from transformers import AutoConfig

    try:
        found = AutoConfig.from_pretrained(place).model_type
        if found not in kinds:
            raise GenValError(f"{name} is a model of type {found!r}: expected {' or '.join(map(repr, kinds))}.")
        with quiet():
            model, report = model_class.from_pretrained(
                place, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise GenValError(
            f"Cannot load {name}: {' '.join(str(error).split())[:400]} Expected the name of a model that can be "
            "downloaded, a folder in transformers' layout, or a file of the original format."
        ) from error
    faults = {key: sorted(map(str, keys)) for key, keys in report.items() if keys}
    if faults:
        raise GenValError(
            f"{name} does not hold the weights of a {model_class.__name__}, or not only these: {str(faults)[:500]}. "
            "Fetch it again, or give a folder of this model."
        )
    return model


def read_preprocessing(place: str) -> dict[str, Any]:
    """What `preprocessor_config.json` says; nothing where there is none."""
    from transformers.image_processing_utils import BaseImageProcessor

    try:
        return dict(BaseImageProcessor.get_image_processor_dict(place)[0])
    except OSError:
        return {}


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' words about keys, which the caller turns into an error, and its progress bars."""
    import transformers

    logger = logging.getLogger(transformers.__name__)
    level, bar = logger.level, transformers.utils.logging.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(level)
        if bar:
            transformers.utils.logging.enable_progress_bar()
