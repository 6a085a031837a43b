"""GroundingDINO and Segment Anything from the `.pth` files of their authors, read offline and strictly.

A file has no config. Sizes are read from the shapes; all other entries are those of the published models. They can be
overridden by transformers' `config.json` in a folder next to the file, with the file's name without its suffix.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genval.grounding import groundingdino_keys, sam_keys
from genval.runtime.errors import GenValError
from genval.runtime.files import read_json
from genval.runtime.messages import first_words, listed, silence_loading


def load_groundingdino(path: str | Path) -> Any:
    """Load GroundingDINO from `groundingdino_swint_ogc.pth` or a file with the same keys.

    Returns:
        transformers' GroundingDinoForObjectDetection, float32 on the CPU, in evaluation mode.

    Raises:
        GenValError: the file is damaged, or keys are missing, unexpected or of another shape.
    """
    from transformers import GroundingDinoConfig, GroundingDinoForObjectDetection

    state = _read(Path(path), "model")
    return build(
        Path(path),
        "GroundingDINO",
        {key.removeprefix("module."): tensor for key, tensor in state.items()},
        groundingdino_keys,
        lambda config: GroundingDinoConfig(**config),
        GroundingDinoForObjectDetection,
    )


def load_sam(path: str | Path) -> Any:
    """Load Segment Anything from `sam_vit_h_4b8939.pth` or a file of another size.

    Returns:
        transformers' SamModel, float32 on the CPU, in evaluation mode.

    Raises:
        GenValError: as `load_groundingdino`.
    """
    from transformers import SamConfig, SamModel

    return build(
        Path(path), "Segment Anything", _read(Path(path), ""), sam_keys, lambda config: SamConfig(**config), SamModel
    )


def build(
    path: Path,
    title: str,
    state: Mapping[str, Tensor],
    keys: Any,
    make_config: Callable[[dict[str, Any]], Any],
    model_class: Any,
    device: str = "cpu",
) -> Any:
    """Build a model with the sizes of the given tensors, and load them.

    Args:
        path: path of the file, for errors and for the config next to it.
        title: name of the model, for errors.
        state: the tensors of the file by key.
        keys: the module with the format's `MARK`, `UNUSED`, `config` and `translate`.
        make_config: makes transformers' config from the result of `keys.config`.
        model_class: transformers' class.
        device: device of the weights; with "meta" only names and shapes are checked.

    Raises:
        GenValError: the file is of another model, or keys are missing, unexpected or of another shape.
    """
    if keys.MARK not in state:
        raise GenValError(
            f"{path} is not {title} in its original format: expected a key {keys.MARK}, found "
            f"{listed(list(state))}. Give the published file, or a folder or hub name for transformers."
        )
    try:
        sizes = keys.config({key: tuple(tensor.shape) for key, tensor in state.items()})
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise GenValError(
            f"{path} does not hold a whole {title}: its sizes cannot be read without {error}. Fetch it again."
        ) from error
    override = path.with_suffix("") / "config.json"
    config = make_config(_updated(sizes, read_json(override, dict[str, Any])) if override.is_file() else sizes)
    tensors, origins = {}, {}
    for key, tensor in state.items():
        for name, part in keys.translate(key, tensor).items():
            tensors[name], origins[name] = part.contiguous(), key
    with silence_loading():
        model, report = model_class.from_pretrained(
            None,
            config=config,
            state_dict=tensors,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            device_map=device,
        )
    missing = sorted(name for name in report["missing_keys"] if not keys.UNUSED.search(name))
    unexpected = sorted({origins.get(name, name) for name in report["unexpected_keys"]})
    shapes = [f"{origins.get(name, name)} {tuple(found)}" for name, found, _ in report["mismatched_keys"]]
    if missing or unexpected or shapes:
        raise GenValError(
            f"{path} does not hold a whole {title}: missing (in transformers' names): {listed(missing)}; unexpected: "
            f"{listed(unexpected)}; other shapes: {listed(sorted(shapes))}. Fetch it again; settings that do not "
            f"follow from the shapes can be given in {override}."
        )
    return model.eval().requires_grad_(False)


def _read(path: Path, inner: str) -> dict[str, Tensor]:
    """Read the tensors of a `torch.save` file, which may be in an entry `inner`."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise GenValError(f"{path} does not exist.") from error
    except pickle.UnpicklingError as error:
        raise GenValError(
            f"{path} cannot be read safely: it holds more than tensors, or is no torch.save file. Fetch it again."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise GenValError(f"{path} cannot be read ({first_words(error)}). Fetch it again.") from error
    content = content if isinstance(content, dict) else {}
    state = content.get(inner, content)
    return {key: value for key, value in state.items() if isinstance(value, Tensor)}


def _updated(sizes: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return `sizes` updated by `given`; the configs of parts are updated too, not replaced."""
    updated = dict(sizes)
    for key, value in given.items():
        is_part = isinstance(value, dict) and isinstance(updated.get(key), dict)
        updated[key] = updated[key] | value if is_part else value
    return updated
