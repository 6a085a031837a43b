"""A vector that describes an image to its segmenter: the backbone's last feature map, summed over space."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from genval.runtime.errors import GenValError

# Where mmsegmentation, torchvision, transformers and segmentation_models.pytorch keep their backbone.
_BACKBONES = ("backbone", "segformer", "encoder", "model.pixel_level_module.encoder", "model", "base_model")


class ImageFeatures:
    """Collects the features of one image during a segmenter's forward pass, as a context manager.

    The last feature map of the backbone is summed over space and divided by the largest sum, as published. A segmenter
    with a sliding window sums over its windows, pixels in two of them twice.

    Args:
        segmenter: the segmenter.
        layer: the module whose output is meant, by its dotted name inside the network; by default the backbone.

    Raises:
        GenValError: there is no such module, no known place has a backbone, or the segmenter is an exported network or
            a plain function, whose layers cannot be read.
    """

    def __init__(self, segmenter: nn.Module, layer: str | None = None) -> None:
        self._module = find_layer(segmenter, layer)
        self._sum: Tensor | None = None

    def __enter__(self) -> ImageFeatures:
        self._sum = None
        self._handle = self._module.register_forward_hook(self._collect)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.remove()

    def vector(self) -> np.ndarray:
        """The image's features, float32 (channels,), the largest 1.

        Raises:
            GenValError: the module did not run, or its output is no feature map with a positive, finite sum.
        """
        if self._sum is None:
            raise GenValError("The features' module did not run. Give --layer NAME, a module that the model runs.")
        largest = self._sum.max()
        if not bool(torch.isfinite(largest)) or float(largest) <= 0:
            raise GenValError(f"The features' largest sum is {float(largest)}, expected a positive number.")
        vector: np.ndarray = (self._sum / largest).float().cpu().numpy()
        return vector

    def _collect(self, module: nn.Module, inputs: Any, output: Any) -> None:
        feature_map = last_map(output)
        # (B, C, h, w) maps, or (B, tokens, C) of a transformer without them.
        summed = feature_map.double().sum((0, 2, 3) if feature_map.ndim == 4 else (0, 1))
        self._sum = summed if self._sum is None else self._sum + summed


def find_layer(segmenter: nn.Module, layer: str | None = None) -> nn.Module:
    """The module whose output are a segmenter's features."""
    holders = (getattr(segmenter, "network", None), getattr(segmenter, "function", None), segmenter)
    layers = [module for module in segmenter.modules() if all(module is not holder for holder in holders)]
    if not layers or any(isinstance(module, torch.jit.ScriptModule) for module in segmenter.modules()):
        raise GenValError(
            f"{getattr(segmenter, 'name', 'The model')} gives logits only: the layers of an exported network "
            "(torchscript:, onnx:) or of a plain function cannot be read. Give the network itself: mmseg:, hf:, "
            "torchvision:, smp:, or module:function that returns a torch.nn.Module."
        )
    for holder in holders:
        if not isinstance(holder, nn.Module):
            continue
        modules = dict(holder.named_modules())
        names = [layer] if layer else [name for name in _BACKBONES if name in modules]
        if names and names[0] in modules:
            return modules[names[0]]
    name = getattr(segmenter, "name", "the model")
    wanted = f"a module {layer!r}" if layer else f"one of {', '.join(_BACKBONES)}"
    children = [child for child, _ in getattr(segmenter, "network", segmenter).named_children()]
    raise GenValError(
        f"{name} has no backbone to take features from: expected {wanted}, "
        f"found {', '.join(children) or 'no modules'}. Give --layer NAME."
    )


def last_map(output: Any) -> Tensor:
    """The last feature map in what a backbone returns: a tensor, or a sequence, mapping or record of them.

    Raises:
        GenValError: there is none.
    """
    if isinstance(output, Tensor) and output.ndim in (3, 4):
        return output
    for name in ("feature_maps", "last_hidden_state"):
        inside = getattr(output, name, None)
        if inside is not None:
            return last_map(inside)
    if isinstance(output, Mapping) and output:  # torchvision: "out" is the last layer, "aux" one before it
        return last_map(output["out"] if "out" in output else list(output.values())[-1])
    if isinstance(output, (list, tuple)) and output:
        return last_map(output[-1])
    raise GenValError(f"A backbone gives feature maps, found {type(output).__name__}. Give --layer NAME.")
