"""Read weights from files without running code, and match them key by key."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genval.runtime.errors import GenValError
from genval.runtime.paths import find_below, resolve

_LISTED_KEYS = 8


def find_checkpoint(checkpoint: str | Path, checkpoint_root: str | Path) -> Path | None:
    """The file as given (relative: from the repository's root), else below `checkpoint_root`, else None."""
    path = resolve(checkpoint)
    return path if path.exists() else find_below(checkpoint_root, checkpoint)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a PyTorch checkpoint's weights: a bare state dict, or one under `state_dict` (OpenMMLab, Lightning), or a
    safetensors file.

    Nothing but tensors and plain values is unpickled (`weights_only=True`). Files of mmengine's runner may hold NumPy
    numbers and the logging history in addition to the weights: the former are allowed, the latter is skipped. A leading
    `module.` (DataParallel) is dropped from the keys.

    Raises:
        GenValError: the file is missing, truncated, not a checkpoint, holds other classes, or has no tensors.
    """
    try:
        with torch.serialization.safe_globals(_harmless_classes()):
            if path.suffix == ".safetensors":
                from safetensors.torch import load_file

                content = load_file(path)
            else:
                content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise GenValError(f"There is no checkpoint {path}.") from error
    except pickle.UnpicklingError as error:
        reason = str(error).partition("\n")[0]
        if "Unsupported global" in str(error):
            reason = next(line.strip() for line in str(error).splitlines() if "Unsupported global" in line)
        raise GenValError(
            f"{path} cannot be read safely: {reason} If you trust the file, save its tensors alone: "
            "torch.save({'state_dict': model.state_dict()}, path)."
        ) from error
    except Exception as error:  # torch raises RuntimeError, EOFError, KeyError and others for damaged files
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise GenValError(
            f"{path} is damaged or not a PyTorch checkpoint ({reason}). Fetch it again and compare its size."
        ) from error
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise GenValError(f"{path} holds no weights: expected tensors by name, at the top or under 'state_dict'.")
    return {str(key).removeprefix("module."): value for key, value in state.items()}


def load_strictly(network: nn.Module, state: Mapping[str, Tensor], path: Path, architecture: str) -> None:
    """Put `state` into `network` if every key and every shape agrees.

    A checkpoint that fits only in part would load without an error and give wrong predictions; so every mismatch is an
    error. Model-zoo files hold their training-only auxiliary heads, and so do the networks built from the configs.

    Raises:
        GenValError: keys are missing, left over or of another shape, or a value is not finite.
    """
    own = network.state_dict()
    problems = [
        *_listing("missing", own.keys() - state.keys()),
        *_listing("not in the model", state.keys() - own.keys()),
        *_listing(
            "of another shape",
            (
                f"{key} (file {tuple(state[key].shape)}, model {tuple(own[key].shape)})"
                for key in own.keys() & state.keys()
                if state[key].shape != own[key].shape
            ),
        ),
        *_listing(
            "not finite",
            (key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()),
        ),
    ]
    if problems:
        raise GenValError(
            f"{path} does not fit {architecture}: {'; '.join(problems)}. "
            "Use the config the checkpoint was trained with, or the checkpoint that belongs to this config."
        )
    network.load_state_dict(dict(state), strict=True)


def _listing(problem: str, keys: Iterable[str]) -> list[str]:
    found = sorted(keys)
    if not found:
        return []
    rest = f" and {len(found) - _LISTED_KEYS} more" if len(found) > _LISTED_KEYS else ""
    return [f"{len(found)} {problem}: {', '.join(found[:_LISTED_KEYS])}{rest}"]


class _Skipped:
    """Takes the place of mmengine's logging history, so that reading a checkpoint runs none of its code."""

    def __setstate__(self, state: Any) -> None:
        pass


def _skipped_attribute(*_: Any) -> None:
    """Takes the place of `getattr`, by which the logging history names its methods."""


def _harmless_classes() -> list[Any]:
    import numpy as np
    from numpy._core import multiarray

    # Files written under NumPy 1 name `numpy.core`, those of NumPy 2 `numpy._core`: both are the same objects here.
    classes: list[Any] = [np.dtype, np.ndarray]
    for function in (multiarray.scalar, multiarray._reconstruct):
        classes += [(function, f"numpy.{core}.multiarray.{function.__name__}") for core in ("core", "_core")]
    classes += sorted({type(np.dtype(code)) for code in "?bBhHiIlLqQefd"}, key=lambda kind: kind.__name__)
    return [
        *classes,
        (_Skipped, "mmengine.logging.history_buffer.HistoryBuffer"),
        (_skipped_attribute, "builtins.getattr"),
    ]
