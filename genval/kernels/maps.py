"""Triton kernels for feature maps of segmenters, in channels-last tensors on an NVIDIA GPU.

They replace PyTorch's bilinear resizing and adaptive pooling and cuDNN's depthwise convolution, which reach a fraction
of the memory's bandwidth. cuDNN's kernel does not add the bias, and is many times slower if the convolution is dilated.
"""

from __future__ import annotations

from typing import Literal

import torch
import triton
import triton.language as tl

_ROWS, _COLUMNS, _CHANNELS = 32, 16, 64
# Pixels of a row per program of `_resize_planes`.
_PIXELS = 128


@triton.jit
def _source(place, scale, length, ALIGN: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the two pixels between which an output pixel lies along one side, and the weight of the second."""
    place = place.to(tl.float32)
    position = place * scale if ALIGN else tl.maximum((place + 0.5) * scale - 0.5, 0.0)
    first = tl.minimum(position.to(tl.int32), length - 1)
    return first, tl.minimum(first + 1, length - 1), position - first.to(tl.float32)


@triton.jit
def _pixels(x, row, channels, c, mask):  # type: ignore[no-untyped-def]
    return tl.load(x + row.to(tl.int64)[:, None] * channels + c[None], mask=mask, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["height", "width", "out_height", "out_width"])
def _resize(  # type: ignore[no-untyped-def]
    x, y, height, width, out_height, out_width, channels, scale_y, scale_x, ALIGN: tl.constexpr, ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    image = tl.program_id(2).to(tl.int64)
    mask = (row < out_height * out_width)[:, None] & (c < channels)[None]
    top, bottom, down = _source(row // out_width, scale_y, height, ALIGN)
    left, right, along = _source(row % out_width, scale_x, width, ALIGN)
    x += image * height * width * channels
    upper_left = _pixels(x, top * width + left, channels, c, mask)
    upper_right = _pixels(x, top * width + right, channels, c, mask)
    lower_left = _pixels(x, bottom * width + left, channels, c, mask)
    lower_right = _pixels(x, bottom * width + right, channels, c, mask)
    along, down = along[:, None], down[:, None]
    upper = (1 - along) * upper_left + along * upper_right
    lower = (1 - along) * lower_left + along * lower_right
    value = (1 - down) * upper + down * lower
    place = (image * out_height * out_width + row)[:, None] * channels + c[None]
    tl.store(y + place, value.to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["height", "width", "out_height", "out_width"])
def _resize_planes(  # type: ignore[no-untyped-def]
    x, y, height, width, out_height, out_width, channels, scale_y, scale_x, ALIGN: tl.constexpr, PIXELS: tl.constexpr
):
    """Compute PIXELS pixels of one row of the result, for all channels. The result is contiguous."""
    column = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    row = tl.program_id(1)
    image = tl.program_id(2).to(tl.int64)
    mask = column < out_width
    top, bottom, down = _source(row, scale_y, height, ALIGN)
    left, right, along = _source(column, scale_x, width, ALIGN)
    x += image * height * width * channels
    upper_left, upper_right = x + (top * width + left) * channels, x + (top * width + right) * channels
    lower_left, lower_right = x + (bottom * width + left) * channels, x + (bottom * width + right) * channels
    y += (image * channels * out_height + row) * out_width + column
    for channel in range(channels):
        upper = (1 - along) * tl.load(upper_left + channel, mask=mask, other=0.0).to(tl.float32)
        upper += along * tl.load(upper_right + channel, mask=mask, other=0.0).to(tl.float32)
        lower = (1 - along) * tl.load(lower_left + channel, mask=mask, other=0.0).to(tl.float32)
        lower += along * tl.load(lower_right + channel, mask=mask, other=0.0).to(tl.float32)
        value = (1 - down) * upper + down * lower
        tl.store(y, value.to(y.dtype.element_ty), mask=mask)
        y += out_height * out_width


@triton.jit(do_not_specialize=["height", "width"])
def _mean_rows(x, y, height, width, channels, parts, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Average the rows of one part of a map, for COLUMNS columns."""
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    c = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    image = tl.program_id(0) // parts
    part = tl.program_id(0) % parts
    first, end = part * height // parts, ((part + 1) * height + parts - 1) // parts
    mask = (column < width)[:, None] & (c < channels)[None]
    x += image.to(tl.int64) * height * width * channels
    total = tl.zeros((COLUMNS, CHANNELS), tl.float32)
    for row in range(first, end):
        total += _pixels(x, row * width + column, channels, c, mask)
    place = (tl.program_id(0).to(tl.int64) * width + column)[:, None] * channels + c[None]
    tl.store(y + place, (total / (end - first)).to(y.dtype.element_ty), mask=mask)


@triton.jit
def _factor(weight, mask):  # type: ignore[no-untyped-def]
    return tl.load(weight, mask=mask, other=0.0).to(tl.float32)[None]


@triton.jit
def _finish(  # type: ignore[no-untyped-def]
    total, y, row, column, image, bias, width, height, channels, c, BIAS: tl.constexpr, ACTIVATION: tl.constexpr
):
    inside = c < channels
    if BIAS:
        total += tl.load(bias + c, mask=inside, other=0.0).to(tl.float32)[None]
    if ACTIVATION == "gelu":
        total = 0.5 * total * (1 + tl.erf(total * 0.7071067811865476))
    if ACTIVATION == "relu":
        total = tl.where(total < 0, 0.0, total)  # NaN stays NaN
    place = ((image * height + row) * width + column)[:, None] * channels + c[None]
    mask = ((column < width) & (row < height))[:, None] & inside[None]
    tl.store(y + place, total.to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["height", "width", "out_height", "out_width"])
def _depthwise(  # type: ignore[no-untyped-def]
    x, weight, bias, y, height, width, out_height, out_width, channels, stride_y, stride_x, pad_y, pad_x, step_y,
    step_x, KERNEL_Y: tl.constexpr, KERNEL_X: tl.constexpr, SHARED: tl.constexpr, BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Compute COLUMNS pixels of one row of the result per program, or of four rows if SHARED is set.

    SHARED needs a `stride_y` of 1. The four rows are `step_y` rows apart, where `step_y` is the dilation. They
    therefore need nearly the same rows of x, and each of these rows is loaded once.
    """
    blocks = tl.cdiv(out_width, COLUMNS)
    column = tl.program_id(0) % blocks * COLUMNS + tl.arange(0, COLUMNS)
    line = tl.program_id(0) // blocks
    row = line // step_y * (4 * step_y) + line % step_y if SHARED else line
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    image = tl.program_id(2).to(tl.int64)
    inside = c < channels
    x += image * height * width * channels
    first = tl.zeros((COLUMNS, CHANNELS), tl.float32)
    second, third, fourth = first, first, first
    for tap_x in range(KERNEL_X):
        source_x = column * stride_x - pad_x + tap_x * step_x
        is_column = (source_x >= 0) & (source_x < width)
        factor, taps = weight + tap_x * channels + c, KERNEL_X * channels
        for tap in tl.static_range(KERNEL_Y + 3 if SHARED else KERNEL_Y):
            source_y = row * stride_y - pad_y + tap * step_y
            is_there = is_column & (source_y >= 0) & (source_y < height)
            value = _pixels(x, source_y * width + source_x, channels, c, is_there[:, None] & inside[None])
            if tap < KERNEL_Y:
                first += value * _factor(factor + tap * taps, inside)
            if SHARED:
                if (tap >= 1) and (tap < KERNEL_Y + 1):
                    second += value * _factor(factor + (tap - 1) * taps, inside)
                if (tap >= 2) and (tap < KERNEL_Y + 2):
                    third += value * _factor(factor + (tap - 2) * taps, inside)
                if tap >= 3:
                    fourth += value * _factor(factor + (tap - 3) * taps, inside)
    _finish(first, y, row, column, image, bias, out_width, out_height, channels, c, BIAS, ACTIVATION)
    if SHARED:
        _finish(second, y, row + step_y, column, image, bias, out_width, out_height, channels, c, BIAS, ACTIVATION)
        _finish(third, y, row + 2 * step_y, column, image, bias, out_width, out_height, channels, c, BIAS, ACTIVATION)
        _finish(fourth, y, row + 3 * step_y, column, image, bias, out_width, out_height, channels, c, BIAS, ACTIVATION)


def resize_bilinear(x: torch.Tensor, size: tuple[int, int], align_corners: bool, planes: bool = False) -> torch.Tensor:
    """Resize feature maps bilinearly, as `torch.nn.functional.interpolate` with `size` does.

    Args:
        x: (N, C, H, W), channels-last.
        size: height and width of the result.
        align_corners: whether the centres of the corner pixels keep their places.
        planes: whether the result is contiguous instead of channels-last, which is faster for few channels.

    Returns:
        (N, C, *size).
    """
    channels, height, width = x.shape[1:]
    if align_corners:
        scales = [(of - 1) / (to - 1) if to > 1 else 0.0 for of, to in zip((height, width), size, strict=True)]
    else:
        scales = [of / to for of, to in zip((height, width), size, strict=True)]
    if planes:
        y = x.new_empty((len(x), channels, *size))
        _resize_planes[triton.cdiv(size[1], _PIXELS), size[0], len(x)](
            x, y, height, width, *size, channels, *scales, ALIGN=align_corners, PIXELS=_PIXELS
        )
        return y
    y = _empty(x, channels, size)
    grid = (triton.cdiv(size[0] * size[1], _ROWS), triton.cdiv(channels, _CHANNELS), len(x))
    _resize[grid](x, y, height, width, *size, channels, *scales, ALIGN=align_corners, ROWS=_ROWS, CHANNELS=_CHANNELS)
    return y


def pool(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Average the pixels of each of `size` overlapping parts of a map, as `torch.nn.functional.adaptive_avg_pool2d`.

    Args:
        x: (N, C, H, W), channels-last.
        size: parts along the height and the width.

    Returns:
        (N, C, *size), channels-last, of the dtype of x; means are computed in float32.
    """
    images, channels, height, width = x.shape
    rows = torch.empty((images, size[0], width, channels), device=x.device, dtype=torch.float32)
    y = _empty(x, channels, size)
    blocks = triton.cdiv(channels, _CHANNELS)
    _mean_rows[images * size[0], triton.cdiv(width, _COLUMNS), blocks](
        x, rows, height, width, channels, size[0], COLUMNS=_COLUMNS, CHANNELS=_CHANNELS
    )
    # The columns of `rows` are rows of maps of one column.
    _mean_rows[images * size[0] * size[1], 1, blocks](
        rows, y, width, 1, channels, size[1], COLUMNS=1, CHANNELS=_CHANNELS
    )
    return y


def depthwise(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    activation: Literal["", "relu", "gelu"] = "",
) -> torch.Tensor:
    """Convolve each channel with its own filter. Pixels outside of a map count as zeros.

    Args:
        x: (N, C, H, W), channels-last.
        weight: (C, 1, h, w).
        bias: (C,), or None for zeros.
        stride: rows and columns from one result to the next.
        padding: rows and columns of zeros on each side.
        dilation: rows and columns from one tap of the filter to the next.
        activation: is applied to the convolution.

    Returns:
        (N, C, ...), channels-last.

    Raises:
        ValueError: the filter is larger than the maps and their padding.
    """
    kernel = weight.shape[-2:]
    size = tuple(
        (length + 2 * pad - step * (taps - 1) - 1) // move + 1
        for length, pad, step, taps, move in zip(x.shape[-2:], padding, dilation, kernel, stride, strict=True)
    )
    if min(size) < 1:
        raise ValueError(
            f"A filter of {tuple(kernel)} pixels with dilation {tuple(dilation)} and padding {tuple(padding)} does not "
            f"fit into maps of {tuple(x.shape[-2:])} pixels."
        )
    y = _empty(x, x.shape[1], size)
    taps = weight.flatten(1).T.contiguous()
    # With a stride of one row, rows of the result that are the dilation apart need the same rows of x.
    shared = stride[0] == 1
    lines = triton.cdiv(size[0], 4 * dilation[0]) * dilation[0] if shared else size[0]
    grid = (lines * triton.cdiv(size[1], _COLUMNS), triton.cdiv(x.shape[1], _CHANNELS), len(x))
    _depthwise[grid](
        x, taps, taps if bias is None else bias, y, *x.shape[-2:], *size, x.shape[1], *stride, *padding, *dilation,
        KERNEL_Y=kernel[0], KERNEL_X=kernel[1], SHARED=shared, BIAS=bias is not None, ACTIVATION=activation,
        COLUMNS=_COLUMNS, CHANNELS=_CHANNELS,
    )  # fmt: skip
    return y


def _empty(x: torch.Tensor, channels: int, size: tuple[int, ...]) -> torch.Tensor:
    shape = (len(x), channels, *size)
    return torch.empty(shape, device=x.device, dtype=x.dtype, memory_format=torch.channels_last)
