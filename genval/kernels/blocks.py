"""Triton kernels for the operations between convolutions, matrix products and attention in a diffusion model's blocks.

PyTorch launches a kernel for each operation, and each kernel reads and writes a whole tensor. The kernels here compute
several operations at once, in channels-last tensors on an NVIDIA GPU: group normalisation of a sum with SiLU; a
residual sum with the bias of the last convolution; the gated GELU. They compile in seconds. Sums are added in a fixed
order, so that results do not depend on the order of the programs.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

_ROWS, _CHANNELS = 32, 64
# Programs that share the rows of one image in the sums of a normalisation.
_PARTS = 16


@triton.jit
def _sums(x, added, sums, pixels, channels, added_stride, ROWS: tl.constexpr, CHANNELS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Sum x + added and its square over a part of an image's pixels, by channel."""
    part, image = tl.program_id(0), tl.program_id(2)
    parts = tl.num_programs(0)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = c < channels
    extra = tl.load(added + image * added_stride + c, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros((CHANNELS,), tl.float32)
    squares = tl.zeros((CHANNELS,), tl.float32)
    for start in range(part * ROWS, pixels, parts * ROWS):
        row = start + tl.arange(0, ROWS)
        mask = (row < pixels)[:, None] & inside[None]
        place = (image.to(tl.int64) * pixels + row)[:, None] * channels + c[None]
        value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
        value = tl.where(mask, value + extra[None], 0.0)
        total += tl.sum(value, 0)
        squares += tl.sum(value * value, 0)
    place = (image * parts + part) * 2 * channels + c
    tl.store(sums + place, total, mask=inside)
    tl.store(sums + place + channels, squares, mask=inside)


@triton.jit
def _scales(  # type: ignore[no-untyped-def]
    sums,
    added,
    weight,
    bias,
    scales,
    pixels,
    channels,
    parts,
    eps,
    added_stride,
    size: tl.constexpr,
    SIZE: tl.constexpr,
):
    """Turn the sums of a group into the factor and the shift of each of its channels."""
    group, image = tl.program_id(0), tl.program_id(1)
    inside = tl.arange(0, SIZE) < size
    c = group * size + tl.arange(0, SIZE)
    total = tl.zeros((SIZE,), tl.float32)
    squares = tl.zeros((SIZE,), tl.float32)
    for part in range(parts):
        place = (image * parts + part) * 2 * channels + c
        total += tl.load(sums + place, mask=inside, other=0.0)
        squares += tl.load(sums + place + channels, mask=inside, other=0.0)
    count = pixels * size
    mean = tl.sum(total, 0) / count
    variance = tl.maximum(tl.sum(squares, 0) / count - mean * mean, 0.0)
    scale = tl.load(weight + c, mask=inside, other=0.0).to(tl.float32) / tl.sqrt(variance + eps)
    extra = tl.load(added + image * added_stride + c, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(bias + c, mask=inside, other=0.0).to(tl.float32) + (extra - mean) * scale
    tl.store(scales + image * 2 * channels + c, scale, mask=inside)
    tl.store(scales + image * 2 * channels + channels + c, shift, mask=inside)


@triton.jit
def _apply(x, scales, y, pixels, channels, SILU: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    image = tl.program_id(2)
    inside = c < channels
    mask = (row < pixels)[:, None] & inside[None]
    place = (image.to(tl.int64) * pixels + row)[:, None] * channels + c[None]
    scale = tl.load(scales + image * 2 * channels + c, mask=inside, other=0.0)
    shift = tl.load(scales + image * 2 * channels + channels + c, mask=inside, other=0.0)
    value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32) * scale[None] + shift[None]
    if SILU:
        value = value * tl.sigmoid(value)
    tl.store(y + place, value.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _residual(x, hidden, bias, y, count, channels, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    place = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    mask = place < count
    value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    value += tl.load(hidden + place, mask=mask, other=0.0).to(tl.float32)
    value += tl.load(bias + place % channels, mask=mask, other=0.0).to(tl.float32)
    tl.store(y + place, value.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _gated_gelu(x, y, count, width, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    place = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    mask = place < count
    source = place // width * 2 * width + place % width
    value = tl.load(x + source, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(x + source + width, mask=mask, other=0.0).to(tl.float32)
    gate = 0.5 * gate * (1 + tl.erf(gate * 0.7071067811865476))
    tl.store(y + place, (value * gate).to(y.dtype.element_ty), mask=mask)


def normalise(norm: Any, x: torch.Tensor, added: torch.Tensor | None = None, silu: bool = True) -> torch.Tensor:
    """Group normalisation of x + added, then SiLU.

    The variance is the mean square minus the squared mean, in float32. It is inexact where the mean of a group is
    hundreds of standard deviations away from 0.

    Args:
        norm: the GroupNorm.
        x: (N, C, H, W), channels-last.
        added: (1 or N, C), the same at every pixel; None for zeros.
        silu: whether SiLU follows.

    Returns:
        (N, C, H, W), channels-last.
    """
    images, channels, height, width = x.shape
    x = x.contiguous(memory_format=torch.channels_last)
    added = x.new_zeros((1, channels)) if added is None else added.contiguous()
    stride = channels if len(added) > 1 else 0
    pixels, size = height * width, channels // norm.num_groups
    parts = min(_PARTS, triton.cdiv(pixels, _ROWS))
    sums = torch.empty((images, parts, 2, channels), device=x.device, dtype=torch.float32)
    scales = torch.empty((images, 2, channels), device=x.device, dtype=torch.float32)
    y = torch.empty_like(x)
    blocks = triton.cdiv(channels, _CHANNELS)
    _sums[(parts, blocks, images)](x, added, sums, pixels, channels, stride, ROWS=_ROWS, CHANNELS=_CHANNELS)
    _scales[(norm.num_groups, images)](
        sums,
        added,
        norm.weight,
        norm.bias,
        scales,
        pixels,
        channels,
        parts,
        norm.eps,
        stride,
        size=size,
        SIZE=triton.next_power_of_2(size),
    )
    grid = (triton.cdiv(pixels, _ROWS), blocks, images)
    _apply[grid](x, scales, y, pixels, channels, SILU=silu, ROWS=_ROWS, CHANNELS=_CHANNELS)
    return y


def add_residual(x: torch.Tensor, hidden: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Return x + hidden + bias; x and hidden are (N, C, H, W), channels-last, and bias (C,)."""
    x, hidden = (one.contiguous(memory_format=torch.channels_last) for one in (x, hidden))
    y = torch.empty_like(x)
    _residual[(triton.cdiv(x.numel(), 1024),)](x, hidden, bias, y, x.numel(), x.shape[1], SIZE=1024)
    return y


def gated_gelu(x: torch.Tensor) -> torch.Tensor:
    """Return the first half of x, (..., 2C), times the GELU of its second half."""
    width = x.shape[-1] // 2
    y = x.new_empty((*x.shape[:-1], width))
    _gated_gelu[(triton.cdiv(y.numel(), 1024),)](x.contiguous(), y, y.numel(), width, SIZE=1024)
    return y
