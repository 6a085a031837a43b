"""GroundingDINO and Segment Anything as their authors saved them: `.pth` files of tensors, read offline and strictly.

A file has no config. Sizes are read off the shapes; what shapes do not tell is the published models', unless a
`config.json` of transformers in a folder beside the file, named like it without the suffix, says otherwise.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genval.grounding import groundingdino_keys, sam_keys
from genval.grounding.loading import quiet
from genval.runtime.errors import GenValError
from genval.runtime.files import read_json

_LISTED = 5


def load_groundingdino(path: str | Path) -> Any:
    """GroundingDINO from `groundingdino_swint_ogc.pth` or a file of the same keys.

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
    """Segment Anything from `sam_vit_h_4b8939.pth` or another of its sizes.

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
    """Build the model that the shapes tell of and fill it, key by key.

    Args:
        path: of the file, for errors and for the config beside it.
        title: of the model, for errors.
        state: the file's tensors by key.
        keys: the module with the format's `MARK`, `UNUSED`, `config` and `translate`.
        make_config: from what `keys.config` gives.
        model_class: transformers' class.
        device: where the weights lie; with "meta" names and shapes are compared, and nothing is read.

    Raises:
        GenValError: it is another model's file, or keys are missing, unexpected or of another shape.
    """
    if keys.MARK not in state:
        raise GenValError(
            f"{path} is not {title} in its original format: expected a key {keys.MARK}, found "
            f"{_listed(list(state))}. Give the published file, or a folder or hub name for transformers."
        )
    try:
        sizes = keys.config({key: tuple(tensor.shape) for key, tensor in state.items()})
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise GenValError(
            f"{path} does not hold a whole {title}: its sizes cannot be read, for want of {error}. Fetch it again."
        ) from error
    beside = path.with_suffix("") / "config.json"
    config = make_config(_merged(sizes, read_json(beside, dict[str, Any])) if beside.is_file() else sizes)
    tensors, origins = {}, {}
    for key, tensor in state.items():
        for name, part in keys.translate(key, tensor).items():
            tensors[name], origins[name] = part.contiguous(), key
    with quiet():
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
            f"{path} does not hold a whole {title}: missing (in transformers' names): {_listed(missing)}; unexpected: "
            f"{_listed(unexpected)}; other shapes: {_listed(sorted(shapes))}. Fetch it again; sizes that shapes do not "
            f"tell can be given in {beside}."
        )
    return model.eval().requires_grad_(False)


def _read(path: Path, inner: str) -> dict[str, Tensor]:
    """The tensors of a `torch.save` file, which may lie below `inner`."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise GenValError(f"{path} does not exist.") from error
    except pickle.UnpicklingError as error:
        raise GenValError(
            f"{path} cannot be read safely: it holds more than tensors, or is no torch.save file. Fetch it again."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise GenValError(f"{path} cannot be read ({reason}). Fetch it again.") from error
    content = content if isinstance(content, dict) else {}
    state = content.get(inner, content)
    return {key: value for key, value in state.items() if isinstance(value, Tensor)}


def _merged(sizes: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`sizes` with `given` over it, one level into the configs of parts."""
    merged = dict(sizes)
    for key, value in given.items():
        is_part = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merged[key] | value if is_part else value
    return merged


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return (", ".join(names[:_LISTED]) or "none") + more
