"""Functions of PyTorch with faster kernels, for fused passes (`genval.segmenters.fused`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

# `pool` starts a kernel per row and column of the output.
_LARGEST_POOL = 16
# For fewer channels, such as the 19 channels of logits, PyTorch's bilinear resizing is faster.
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
    """Replaces functions of PyTorch by those of `_REPLACEMENTS`, for channels-last tensors on a GPU."""

    def __torch_function__(
        self, function: Forward, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        replacement = _REPLACEMENTS.get(function)
        if replacement is not None and args and fits(args[0]):
            return replacement(*args, **(kwargs or {}))
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
    if not is_simple or x.ndim != 4 or x.shape[1] < _FEW_CHANNELS or len(sides) != 2 or min(sides) < 1:
        return F.interpolate(x, size, scale_factor, mode, align_corners, recompute_scale_factor, antialias)
    height, width = map(int, sides)
    return resize_bilinear(x, (height, width), bool(align_corners))


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

    step = _pair(dilation)
    is_depthwise = x.ndim == 4 and 1 < groups == x.shape[1] and weight.shape[:2] == (groups, 1)
    # Without dilation, cuDNN is faster for few channels and for strides above 1.
    is_slow = max(step) > 1 or (max(_pair(stride)) == 1 and groups >= _MANY_GROUPS)
    if is_depthwise and is_slow and weight.dtype == x.dtype and not isinstance(padding, str):
        return depthwise(x, weight, bias, _pair(stride), _pair(padding), step)
    missing = -len(weight) % _ALIGNED_CHANNELS
    if missing and groups == 1 and x.dtype != torch.float32 and x.ndim == 4 and x.shape[1] % _ALIGNED_CHANNELS == 0:
        # cuDNN is slow if the number of output channels is not a multiple of eight, such as 19 classes.
        weight, added = F.pad(weight, (0,) * 7 + (missing,)), None if bias is None else F.pad(bias, (0, missing))
        y = F.conv2d(x, weight, added, stride, padding, dilation)
        return y[:, : y.shape[1] - missing].contiguous(memory_format=torch.channels_last)
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)


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


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return (value[0], value[0]) if len(value) == 1 else tuple(value)


def _adaptive_avg_pool2d(x: Tensor, output_size: Any) -> Tensor:
    size = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
    if x.ndim != 4 or None in size or max(size) > _LARGEST_POOL or size == (1, 1):
        return F.adaptive_avg_pool2d(x, output_size)
    return pool(x, size)


def pool(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Average the pixels of each of `size` overlapping parts of a map, as `torch.nn.functional.adaptive_avg_pool2d`.

    Args:
        x: (N, C, H, W).
        size: parts along the height and the width.

    Returns:
        (N, C, *size), of the dtype of x; means are computed in float32.
    """
    rows = [x[:, :, part].mean(2, dtype=torch.float32) for part in _parts(x.shape[2], size[0])]
    column = torch.stack(rows, 2)
    parts = [column[..., part].mean(3) for part in _parts(x.shape[3], size[1])]
    return torch.stack(parts, 3).to(x.dtype, memory_format=torch.channels_last)


def _parts(length: int, number: int) -> Iterator[slice]:
    for part in range(number):
        yield slice(part * length // number, -(-(part + 1) * length // number))


_REPLACEMENTS: dict[Forward, Forward] = {
    F.interpolate: _interpolate,
    F.conv2d: _conv2d,
    F.adaptive_avg_pool2d: _adaptive_avg_pool2d,
    F.layer_norm: _layer_norm,
}
