"""Models that are built without memory and given their weights once, on their device and in their dtype."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch

from genval.runtime.files import read_json
from genval.runtime.messages import silence_loading

_THREADS = 4


def build_empty(make: Callable[[], Any]) -> Any:
    """Return the model that `make` builds, with parameters on the meta device and buffers on the CPU.

    Parameters are not initialised: without memory this does nothing, but some PyTorch versions import sympy for it.
    """
    from accelerate import init_empty_weights
    from transformers.initialization import no_init_weights

    with silence_loading(), init_empty_weights(include_buffers=False), no_init_weights():
        return make()


def assign_weights(
    model: Any, read: Mapping[str, Callable[[], torch.Tensor]], device: torch.device | str, dtype: torch.dtype
) -> Any:
    """Give a model of `build_empty` its weights; return it on the device, in evaluation mode.

    Args:
        model: the model.
        read: what reads each tensor of its state dict, such as one of a memory-mapped file. The tensors are copied.
        device, dtype: of the weights.
    """

    def copy(reader: Callable[[], torch.Tensor]) -> torch.Tensor:
        tensor = reader()
        # Whole numbers, such as the counts of batch norm, stay what they are.
        kind = dtype if tensor.is_floating_point() else tensor.dtype
        if torch.device(device).type != "cpu":
            # The device converts faster, and pages of new memory on the CPU cost more than the copy.
            return tensor.to(device).to(kind).contiguous()
        return tensor.to(kind, copy=True).contiguous()

    with ThreadPoolExecutor(_THREADS) as pool:
        weights = dict(zip(read, pool.map(copy, read.values()), strict=True))
    model.load_state_dict(weights, assign=True)
    return model.to(device).eval()


def load_exactly(model_class: Any, folder: Path, file: Path, device: torch.device | str, dtype: torch.dtype) -> Any:
    """Load a model of diffusers or transformers, whose own loaders convert and copy the weights several times.

    Args:
        model_class: the class.
        folder: that of config.json.
        file: its safetensors file.
        device, dtype: of the weights.

    Returns:
        The model; None where keys or shapes of the file differ from the model's, such as in a file of an old version.
        The library's own loader converts such files, or says what is wrong.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = read_json(folder / "config.json", dict[str, Any])
    try:
        if model_class.__module__.startswith("transformers."):
            model = build_empty(lambda: model_class(model_class.config_class(**config)))
        else:
            model = build_empty(lambda: model_class.from_config(config))
        tensors = load_file(file)
    except (OSError, TypeError, ValueError, AttributeError, SafetensorError):
        return None
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if {name: tensor.shape for name, tensor in tensors.items()} != expected:
        return None
    return assign_weights(model, {name: partial(tensors.__getitem__, name) for name in tensors}, device, dtype)
