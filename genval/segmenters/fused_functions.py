"""Functions of PyTorch with faster kernels, for fused passes (`genval.segmenters.fused`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

# PyTorch's adaptive pooling is slow for few outputs.
_LARGEST_POOL = 16
# Maps of fewer channels, such as logits, are enlarged into a contiguous tensor, which the metrics need anyway. If they
# are not enlarged, PyTorch is faster.
_FEW_CHANNELS = 32
# The kernel for layer normalisation keeps a token in registers, which have no space for more channels.
_MANY_CHANNELS = 2048
# For fewer channels, cuDNN's depthwise convolution is faster.
_MANY_GROUPS = 64
# Tensor cores read this number of channels at once.
_ALIGNED_CHANNELS = 8
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

Forward = Callable[..., Any]


class FusedFunctions(TorchFunctionMode):
    """Replaces functions of PyTorch by those of `_REPLACEMENTS`, for channels-last tensors on a GPU.

    Maps that are concatenated become channels-last if one of them is.
    """

    def __torch_function__(
        self, function: Forward, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        replacement = _REPLACEMENTS.get(function)
        if replacement is not None and args and fits(args[0]):
            return replacement(*args, **(kwargs or {}))
        if function is torch.cat and args and all(x.ndim == 4 for x in args[0]) and any(map(fits, args[0])):
            # Otherwise one contiguous map makes the result contiguous, and convolutions copy all of it.
            args = ([x.contiguous(memory_format=torch.channels_last) for x in args[0]], *args[1:])
        return function(*args, **(kwargs or {}))


def fits(x: Any) -> bool:
    """Whether the kernels accept x: a tensor on a GPU, with the channels of a pixel or token next to each other."""
    if not isinstance(x, Tensor) or not x.is_cuda or x.dtype not in _DTYPES or not x.numel():
        return False
    return x.is_contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x.is_contiguous()


def _interpolate(
    x: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor:
    from genval.kernels.maps import resize_bilinear

    sides = (size, size) if isinstance(size, int) else size
    is_simple = mode == "bilinear" and not antialias and scale_factor is None and isinstance(sides, (tuple, list))
    if is_simple and x.ndim == 4 and len(sides) == 2 and min(sides) > 0:
        height, width = map(int, sides)
        is_enlarged, has_few = height * width > x.shape[2] * x.shape[3], x.shape[1] < _FEW_CHANNELS
        if is_enlarged or not has_few:
            return resize_bilinear(x, (height, width), bool(align_corners), planes=has_few)
    return F.interpolate(x, size, scale_factor, mode, align_corners, recompute_scale_factor, antialias)


def _conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    from genval.kernels.maps import depthwise

    is_depthwise = x.ndim == 4 and 1 < groups == x.shape[1] and weight.shape[:2] == (groups, 1)
    is_slow = is_slow_depthwise(groups, pair(stride), pair(dilation))
    if is_depthwise and is_slow and weight.dtype == x.dtype and not isinstance(padding, str):
        return depthwise(x, weight, bias, pair(stride), pair(padding), pair(dilation))
    if _reads_patches(x, weight, stride, padding, dilation, groups):
        return _of_patches(x, weight, bias)
    missing = -len(weight) % _ALIGNED_CHANNELS
    if missing and groups == 1 and x.dtype != torch.float32 and x.ndim == 4 and x.shape[1] % _ALIGNED_CHANNELS == 0:
        # cuDNN is slow if the number of output channels is not a multiple of eight, such as 19 classes.
        weight, added = F.pad(weight, (0,) * 7 + (missing,)), None if bias is None else F.pad(bias, (0, missing))
        y = F.conv2d(x, weight, added, stride, padding, dilation)
        return y[:, : y.shape[1] - missing].contiguous(memory_format=torch.channels_last)
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)


def _reads_patches(x: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int) -> bool:
    """Whether a convolution reads each pixel once, and too few channels for cuDNN's fast kernels."""
    if x.ndim != 4 or groups != 1 or x.shape[1] >= _ALIGNED_CHANNELS or weight.dtype != x.dtype:
        return False
    sides = weight.shape[2:]
    steps = (pair(stride), pair(dilation)) == (tuple(sides), (1, 1)) and max(sides) > 1
    is_padded = isinstance(padding, str) or max(pair(padding)) > 0
    return steps and not is_padded and all(length % side == 0 for length, side in zip(x.shape[2:], sides, strict=True))


def _of_patches(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution whose stride is the size of its filters, as a matrix product."""
    rows, columns = weight.shape[2:]
    patches = x.unflatten(3, (-1, columns)).unflatten(2, (-1, rows)).permute(0, 2, 4, 3, 5, 1)
    return F.linear(patches.flatten(3), weight.permute(0, 2, 3, 1).flatten(1), bias).permute(0, 3, 1, 2)


def is_slow_depthwise(groups: int, stride: tuple[int, int], dilation: tuple[int, int]) -> bool:
    """Whether cuDNN's depthwise convolution is slower than the kernel of `genval.kernels.maps`."""
    return max(dilation) > 1 or (max(stride) == 1 and groups >= _MANY_GROUPS)


def _layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    from genval.kernels.blocks import normalise_tokens

    channels = x.shape[-1]
    if x.ndim != 3 or tuple(normalized_shape) != (channels,) or channels > _MANY_CHANNELS:
        return F.layer_norm(x, normalized_shape, weight, bias, eps)
    if weight is None or bias is None or not weight.dtype == bias.dtype == x.dtype:
        return F.layer_norm(x, normalized_shape, weight, bias, eps)
    return normalise_tokens(x, weight, bias, eps)


def pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return (value[0], value[0]) if len(value) == 1 else tuple(value)


def _adaptive_avg_pool2d(x: Tensor, output_size: Any) -> Tensor:
    from genval.kernels.maps import pool

    size = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
    if x.ndim != 4 or None in size or max(size) > _LARGEST_POOL or size == (1, 1):
        return F.adaptive_avg_pool2d(x, output_size)
    return pool(x, size)


def _max_pool2d(
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    from genval.kernels.maps import max_pool

    kernel, step, pads = pair(kernel_size), pair(stride or kernel_size), pair(padding)
    is_simple = x.ndim == 4 and pair(dilation) == (1, 1) and not ceil_mode and not return_indices
    # PyTorch refuses other paddings and smaller maps.
    if is_simple and all(
        2 * pad <= taps <= length for pad, taps, length in zip(pads, kernel, x.shape[2:], strict=True)
    ):
        return max_pool(x, kernel, step, pads)
    plain: Any = F.max_pool2d
    return plain(x, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


_REPLACEMENTS: dict[Forward, Forward] = {
    F.interpolate: _interpolate,
    F.conv2d: _conv2d,
    F.adaptive_avg_pool2d: _adaptive_avg_pool2d,
    F.layer_norm: _layer_norm,
    F.max_pool2d: _max_pool2d,
}
