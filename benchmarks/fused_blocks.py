"""A trial for benchmarks/generation_speed.py: the blocks of a UNet with hand-written Triton kernels, not compiled.

Convolutions, matrix products and attention are PyTorch's. The kernels here do what lies between them in channels-last
tensors: group normalisation with SiLU, which takes in the bias of the convolution before it and the time embedding; the
residual sum with the bias of the last convolution; and the gated GELU. They compile in seconds.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from genval.diffusion.sampling.denoiser import _attend, _heads, _repeat, _self_attention

_ROWS, _CHANNELS = 32, 64
# Programs that share the rows of one image in the sums of a normalisation.
_PARTS = 16


@triton.jit
def _sums(x, added, sums, pixels, channels, added_stride, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
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
def _scales(
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
def _apply(x, scales, y, pixels, channels, SILU: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
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
def _residual(x, hidden, bias, y, count, channels, SIZE: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    mask = place < count
    value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    value += tl.load(hidden + place, mask=mask, other=0.0).to(tl.float32)
    value += tl.load(bias + place % channels, mask=mask, other=0.0).to(tl.float32)
    tl.store(y + place, value.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _gated_gelu(x, y, count, width, SIZE: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    mask = place < count
    source = place // width * 2 * width + place % width
    value = tl.load(x + source, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(x + source + width, mask=mask, other=0.0).to(tl.float32)
    gate = 0.5 * gate * (1 + tl.erf(gate * 0.7071067811865476))
    tl.store(y + place, (value * gate).to(y.dtype.element_ty), mask=mask)


def normalise(norm: Any, x: torch.Tensor, added: torch.Tensor | None = None, silu: bool = True) -> torch.Tensor:
    """Group normalisation of x + added, then SiLU.

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


def resnet(block: Any, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    """Run a residual block, as `genval.diffusion.sampling.denoiser.resnet`."""
    hidden = F.conv2d(normalise(block.norm1, x), block.conv1.weight, None, padding=1)
    hidden = F.conv2d(normalise(block.norm2, hidden, time + block.conv1.bias), block.conv2.weight, None, padding=1)
    if block.conv_shortcut is not None:
        weight, bias = block.conv_shortcut.weight.flatten(1), block.conv_shortcut.bias
        x = F.linear(x.permute(0, 2, 3, 1), weight, bias).permute(0, 3, 1, 2)
    y = add_residual(x, hidden, block.conv2.bias)
    return y if block.output_scale_factor == 1 else y / block.output_scale_factor


def transformer(module: Any, x: torch.Tensor, texts: list[torch.Tensor], qkv: list[torch.Tensor]) -> torch.Tensor:
    """Run a transformer over the pixels of x, as `genval.diffusion.sampling.denoiser.transformer`."""
    height, width = x.shape[2:]
    tokens = normalise(module.norm, x, silu=False).permute(0, 2, 3, 1).flatten(1, 2)
    tokens = F.linear(tokens, module.proj_in.weight.flatten(1), module.proj_in.bias)
    for block, weights, keys, values in zip(module.transformer_blocks, qkv, texts[::2], texts[1::2], strict=True):
        tokens = tokens + _self_attention(block.attn1, block.norm1(tokens), weights)
        tokens, x = _repeat(tokens, len(keys)), _repeat(x, len(keys))
        queries = _heads(block.attn2.to_q(block.norm2(tokens)), block.attn2.heads)
        tokens = tokens + _attend(block.attn2, queries, keys, values)
        first, _, last = block.ff.net[:3]
        tokens = tokens + last(gated_gelu(first.proj(block.norm3(tokens))))
    tokens = F.linear(tokens, module.proj_out.weight.flatten(1), module.proj_out.bias)
    return x + tokens.unflatten(1, (height, width)).permute(0, 3, 1, 2)
