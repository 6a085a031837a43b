"""Read weights from files without running code, and match them key by key."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from genval.runtime.errors import GenValError
from genval.runtime.messages import listed
from genval.runtime.paths import find_below, resolve
from genval.segmenters.class_names import find_names

EXPECTED_FILES = (
    "Expected config.json, model.safetensors and preprocessor_config.json in a folder, or a name on the hub."
)
"""The files of a transformers model, for errors."""
# Functions that fill a tensor with random numbers. Some of torch.nn.init can be replaced, others call those of Tensor.
_RANDOM = {
    *(Tensor.uniform_, Tensor.normal_),
    *(nn.init.uniform_, nn.init.normal_, nn.init.trunc_normal_, nn.init.xavier_uniform_, nn.init.xavier_normal_),
    *(nn.init.kaiming_uniform_, nn.init.kaiming_normal_),
}


def find_checkpoint(checkpoint: str | Path, checkpoint_root: str | Path) -> Path | None:
    """The file as given (relative: from the repository's root), else below `checkpoint_root`, else None."""
    path = resolve(checkpoint)
    return path if path.exists() else find_below(checkpoint_root, checkpoint)


def find_folder(source: str, checkpoint_root: str | Path) -> Path | None:
    """The folder of a transformers model as given, else below `checkpoint_root`; None for a name on the hub.

    Raises:
        GenValError: the name can only be a folder's, and there is none.
    """
    folder = resolve(source) if resolve(source).is_dir() else find_below(checkpoint_root, source)
    if folder is None and (source.startswith((".", "/", "~")) or source.count("/") > 1):
        raise GenValError(f"There is no folder {resolve(source)}. {EXPECTED_FILES}")
    return folder


class StateDict(dict[str, Tensor]):
    """Tensors by name.

    Attributes:
        classes: names of the classes that the file states, in the order of the outputs; None where it has none.
    """

    classes: tuple[str, ...] | None = None


def read_state_dict(path: Path, device: torch.device | str = "cpu") -> StateDict:
    """Read a PyTorch checkpoint's weights: a bare state dict, or one under `state_dict` (OpenMMLab, Lightning), or a
    safetensors file.

    Nothing but tensors and plain values is unpickled (`weights_only=True`). Files of mmengine's runner may hold NumPy
    numbers and the logging history in addition to the weights: the former are allowed, the latter is skipped. A leading
    `module.` (DataParallel) is dropped from the keys.

    Args:
        path: the file.
        device: where the weights are put. For a GPU, the file is mapped into memory, which saves a copy.

    Raises:
        GenValError: the file is missing, truncated, not a checkpoint, holds other classes, or has no tensors.
    """
    header: Any = None
    try:
        with torch.serialization.safe_globals(_harmless_classes()):
            if path.suffix == ".safetensors":
                from safetensors import safe_open
                from safetensors.torch import load_file

                content = load_file(path)
                with safe_open(path, "pt") as stream:
                    header = stream.metadata()
            else:
                # Weights on a CPU would change with the mapped file.
                mapped = torch.device(device).type != "cpu" and _can_be_mapped(path)
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
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
    found = StateDict(
        (str(key).removeprefix("module."), value if value.is_meta else value.to(device)) for key, value in state.items()
    )
    # OpenMMLab 0.x and 1.x, others at the top, and a safetensors file's header.
    meta = content.get("meta")
    details = meta.get("dataset_meta") if isinstance(meta, Mapping) else None
    found.classes = find_names(details, meta, content if state is not content else None, header)
    return found


def _can_be_mapped(path: Path) -> bool:
    """Whether a file is a zip archive without compression. PyTorch before 1.6 wrote another format."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())


class WithoutRandomValues(TorchFunctionMode):
    """In this context, parameters of new networks do not get random values, for `load_strictly` replaces all of them.

    Random numbers are drawn by one CPU core: 1 s for 30 million parameters. Buffers and other threads are not affected.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in _RANDOM and isinstance(tensor := args[0] if args else kwargs.get("tensor"), nn.Parameter):
            return tensor
        return function(*args, **kwargs)


def load_strictly(network: nn.Module, state: Mapping[str, Tensor], path: Path, architecture: str) -> None:
    """Put `state` into `network`, on the device of `state`, if every key and every shape agrees.

    A checkpoint that fits only in part would load without an error and give wrong predictions; so every mismatch is an
    error. Model-zoo files hold their training-only auxiliary heads, and so do the networks built from the configs.

    Raises:
        GenValError: keys are missing, left over, of another shape or kind of number, or a value is not finite.
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
            "of another kind of number",
            (
                f"{key} (file {_kind(state[key])}, model {_kind(own[key])})"
                for key in own.keys() & state.keys()
                if not _converts(state[key], own[key])
            ),
        ),
        *_listing("not finite", (key for key, value in state.items() if not _is_finite(value))),
    ]
    if problems:
        raise GenValError(
            f"{path} does not fit {architecture}: {'; '.join(problems)}. "
            "Use the config the checkpoint was trained with, or the checkpoint that belongs to this config."
        )
    device = next(iter(state.values())).device
    for tensor in network.state_dict(keep_vars=True).values():  # their values are replaced: only memory is needed
        tensor.data = torch.empty_like(tensor, device=device)
    network.to(device).load_state_dict(dict(state), strict=True)


def _converts(value: Tensor, own: Tensor) -> bool:
    """Whether a value of the file means the same in the model.

    int8 weights come without their scale, and complex weights would lose their imaginary part.
    """
    if value.layout != torch.strided or value.is_meta or value.is_complex() != own.is_complex():
        return False
    return value.is_floating_point() or value.is_complex() or not own.is_floating_point()


def _kind(value: Tensor) -> str:
    layout = "" if value.layout == torch.strided else f" {value.layout}"
    return f"{value.dtype}{layout}{' without values' if value.is_meta else ''}"


def _is_finite(value: Tensor) -> bool:
    if not value.is_floating_point() or value.layout != torch.strided or value.is_meta:
        return True
    value = value.float() if value.element_size() == 1 else value  # 8-bit floats have no isfinite
    # A finite sum, which is the faster test, has only finite summands.
    return bool(value.sum().isfinite()) or bool(value.isfinite().all())


def _listing(problem: str, keys: Iterable[str]) -> list[str]:
    found = sorted(keys)
    return [f"{len(found)} {problem}: {listed(found)}"] if found else []


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
