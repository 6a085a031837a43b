"""Finding and loading models: hub names, folders in transformers' layout, and files of the original format."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from genval.runtime.errors import GenValError
from genval.runtime.hub import pretrained, refuse_changed_weights
from genval.runtime.messages import first_words, silence_loading
from genval.runtime.paths import find_below, resolve

SUFFIXES = (".pth", ".pt", ".ckpt")


def is_original(name: str) -> bool:
    """Return whether a model's name has the suffix of a file in the original format."""
    return name.endswith(SUFFIXES)


def find_file(name: str) -> Path:
    """Return a file's path: from the repository's root, or below `checkpoints/` or one folder deeper.

    Raises:
        GenValError: the file does not exist there.
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
    """Return the path of the folder `name` (searched as in `find_file`), or `name` itself as a hub name."""
    if (resolve(name) / "config.json").is_file():
        return str(resolve(name))
    below = find_below("checkpoints", f"{name}/config.json")
    return str(below.parent) if below else name


def check_model(name: str, kinds: Collection[str]) -> None:
    """Check that a model exists, by its file or its config, without loading it.

    Args:
        name: as for `find_file` or `find_place`.
        kinds: model types that are accepted.

    Raises:
        GenValError: there is none, or it is of another type.
    """
    if is_original(name):
        find_file(name)
    else:
        read_type(find_place(name), name, kinds)


def load_pretrained(
    model_class: Any, place: str, name: str, kinds: Collection[str], key_mapping: dict[str, str] | None = None
) -> Any:
    """Load a transformers model in float32, with every key and shape as its config says.

    Args:
        model_class: transformers' class.
        place: of `find_place`.
        name: as the user gave it, for errors.
        kinds: model types of configs that are accepted.
        key_mapping: patterns of keys in the file, and what they are replaced by.

    Raises:
        GenValError: the model cannot be found or read, is of another type, or keys are missing or of another shape.
    """
    folder = Path(place)
    if folder.is_dir() and not any(folder.glob("*.safetensors")) and (pickled := sorted(folder.glob("*.bin"))):
        raise GenValError(
            f"{pickled[0]} is a pickled file, which can run code when it is read. Fetch model.safetensors of the same "
            f"model, or write it where you trust the file: model.save_pretrained({str(folder)!r}) in transformers."
        )
    read_type(place, name, kinds)
    location, options = pretrained(place)
    try:
        with silence_loading():
            model, report = model_class.from_pretrained(
                location, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True,
                use_safetensors=True, key_mapping=key_mapping, **options,
            )  # fmt: skip
    except (OSError, ValueError, RuntimeError) as error:
        raise _unreadable(name, error) from error
    faults = {key: sorted(map(str, keys)) for key, keys in report.items() if keys}
    if faults:
        raise GenValError(
            f"{name} does not hold the weights of a {model_class.__name__}, or not only these: {str(faults)[:500]}. "
            "Fetch it again, or give a folder of this model."
        )
    return model


def read_type(place: str, name: str, kinds: Collection[str]) -> str:
    """Return the model type of a config.

    Args:
        place: of `find_place`.
        name: as the user gave it, for errors.
        kinds: model types that are accepted.

    Raises:
        GenValError: the config cannot be found or read, or is that of another type.
    """
    from transformers import AutoConfig

    location, options = pretrained(place)
    try:
        config = AutoConfig.from_pretrained(location, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise _unreadable(name, error) from error
    found = str(config.model_type)
    if found not in kinds:
        raise GenValError(f"{name} is a model of type {found!r}: expected {' or '.join(map(repr, kinds))}.")
    refuse_changed_weights(location, config)
    return found


def load_tokenizer(place: str, name: str) -> Any:
    """Load the tokenizer of a folder or hub name.

    Raises:
        GenValError: its files are missing or damaged.
    """
    from transformers import AutoTokenizer

    location, options = pretrained(place)
    try:
        return AutoTokenizer.from_pretrained(location, **options)
    except (OSError, ValueError) as error:
        raise GenValError(f"{name} has no tokenizer: {first_words(error)}") from error


def load_processor(processor_class: Any, place: str, name: str) -> Any:
    """Load the processor of a folder or hub name: image processor and tokenizer.

    Raises:
        GenValError: its files are missing or damaged.
    """
    location, options = pretrained(place)
    try:
        return processor_class.from_pretrained(location, **options)
    except (OSError, ValueError, TypeError) as error:
        raise GenValError(f"{name} has no processor: {first_words(error)}") from error


def _unreadable(name: str, error: Exception) -> GenValError:
    return GenValError(
        f"Cannot load {name}: {first_words(error, 400)} Expected the name of a model that can be "
        "downloaded, a folder in transformers' layout, or a file of the original format."
    )


def read_preprocessing(place: str) -> dict[str, Any]:
    """Return the content of `preprocessor_config.json`, or an empty dictionary if there is none.

    Raises:
        GenValError: images are not resized, or pixels 0..255 are not divided by 255 and normalised.
    """
    from transformers.image_processing_utils import BaseImageProcessor

    try:
        location, options = pretrained(place)
        values = dict(BaseImageProcessor.get_image_processor_dict(location, **options)[0])
    except OSError:
        return {}
    other = {key: False for key in ("do_resize", "do_rescale", "do_normalize") if values.get(key) is False}
    factor = values.get("rescale_factor", 1 / 255)
    if abs(255 * factor - 1) > 1e-3:
        other["rescale_factor"] = factor
    if not isinstance(values.get("size", {}), dict):
        other["size"] = values["size"]
    if other:
        raise GenValError(
            f"{place}: preprocessor_config.json has {other}: expected images that are resized to a size such as "
            '{"height": 1008, "width": 1008}, multiplied by 1/255 and normalised. Write image_mean and image_std for '
            "pixels 0..1."
        )
    return values
