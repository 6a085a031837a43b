"""Triton kernels for the operations between convolutions, matrix products and attention in a diffusion model's blocks.

PyTorch launches a kernel for each operation, and each kernel reads and writes a whole tensor. The kernels here compute
several operations at once, in channels-last tensors on an NVIDIA GPU: group normalisation of a sum with SiLU; a
residual sum with the bias of the last convolution, or with the layer normalisation that follows; the gated GELU; a skip
connection that is added to and concatenated. Others replace kernels of PyTorch that reach a fraction of the memory's
bandwidth. They compile in seconds. Sums are added in a fixed order, so that results do not depend on the order of the
programs.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

_ROWS, _CHANNELS = 32, 64
# Programs that share the rows of one image in the sums of a normalisation.
_PARTS = 16
# Channels of the largest group of Stable Diffusion, rounded up to a power of two.
_GROUP = 128
# Numbers of channels of its transformers, for each of which a kernel is compiled.
_WIDTHS = (320, 640, 1280)
# Numbers that a program normalises at once: rows of tokens, with their channels rounded up to a power of two.
_ELEMENTS = 4096


@triton.jit
def _rows_of(part, parts, pixels, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the number of rows of a part, to which every `parts`-th tile belongs."""
    rest = pixels % (parts * ROWS) - part * ROWS
    return pixels // (parts * ROWS) * ROWS + tl.minimum(tl.maximum(rest, 0), ROWS)


@triton.jit
def _tile(x, image_start, start, pixels, channels, c, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    row = start + tl.arange(0, ROWS)
    mask = (row < pixels)[:, None] & (c < channels)[None]
    place = (image_start + row)[:, None] * channels + c[None]
    return tl.load(x + place, mask=mask, other=0.0).to(tl.float32), mask


@triton.jit
def _moments(x, moments, pixels, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Compute each channel's mean and sum of squared distances from it over a part of an image's pixels.

    Distances are first taken from the mean of the part's first tile. Whatever the values are, it is at most
    sqrt(n / ROWS * v) away from the mean of the part's n rows, whose variance is v. The sum of these squares is thus at
    most 1 + n / ROWS times the result, so that their difference is precise. With a single value instead of a tile's
    mean, the factor could be 1 + n.
    """
    part, image = tl.program_id(0).to(tl.int64), tl.program_id(2).to(tl.int64)
    parts = tl.num_programs(0)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    image_start = image * pixels
    value, mask = _tile(x, image_start, part * ROWS, pixels, channels, c, ROWS)
    shift = tl.sum(value, 0) / tl.minimum(pixels - part * ROWS, ROWS)
    # Sums over the rows of a tile need an exchange between threads, so there is one here and one at the end.
    total = tl.where(mask, value - shift[None], 0.0)
    squares = total * total
    for start in range((part + parts) * ROWS, pixels, parts * ROWS):
        value, mask = _tile(x, image_start, start, pixels, channels, c, ROWS)
        value = tl.where(mask, value - shift[None], 0.0)
        total += value
        squares += value * value
    rows = _rows_of(part, parts, pixels, ROWS)
    distance = tl.sum(total, 0) / rows
    within = tl.maximum(tl.sum(squares, 0) - rows * distance * distance, 0.0)
    place = (image * parts + part) * 2 * channels + c
    tl.store(moments + place, shift + distance, mask=c < channels)
    tl.store(moments + place + channels, within, mask=c < channels)


# One kernel serves all sizes: a kernel per size of the groups would take seconds to compile.
@triton.jit(do_not_specialize=["pixels", "parts", "size"])
def _scales(  # type: ignore[no-untyped-def]
    moments, added, weight, scales, pixels, channels, parts, size, eps, added_stride, ROWS: tl.constexpr,
    SIZE: tl.constexpr,
):  # fmt: skip
    """Turn the moments of a group's parts into the centre and the factor of each of its channels of x."""
    group, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    inside = tl.arange(0, SIZE) < size
    c = group * size + tl.arange(0, SIZE)
    extra = tl.load(added + image * added_stride + c, mask=inside, other=0.0).to(tl.float32)
    moments += image * parts * 2 * channels + c
    first = tl.load(moments, mask=inside, other=0.0)
    total = tl.zeros((SIZE,), tl.float32)
    squares = tl.zeros((SIZE,), tl.float32)
    for part in range(parts):
        rows = _rows_of(part, parts, pixels, ROWS)
        from_first = tl.load(moments + part * 2 * channels, mask=inside, other=0.0) - first
        total += rows * from_first
        squares += tl.load(moments + part * 2 * channels + channels, mask=inside, other=0.0)
        squares += rows * from_first * from_first
    distance = total / pixels
    mean = first + distance + extra
    centre = tl.sum(mean, 0) / size
    from_centre = tl.where(inside, mean - centre, 0.0)
    within = tl.maximum(squares / pixels - distance * distance, 0.0)
    variance = tl.sum(within + from_centre * from_centre, 0) / size
    scale = tl.load(weight + c, mask=inside, other=0.0).to(tl.float32) / tl.sqrt(variance + eps)
    tl.store(scales + image * 2 * channels + c, centre - extra, mask=inside)
    tl.store(scales + image * 2 * channels + channels + c, scale, mask=inside)


@triton.jit
def _apply(x, scales, bias, y, pixels, channels, SILU: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    image = tl.program_id(2).to(tl.int64)
    inside = c < channels
    mask = (row < pixels)[:, None] & inside[None]
    place = (image * pixels + row)[:, None] * channels + c[None]
    centre = tl.load(scales + image * 2 * channels + c, mask=inside, other=0.0)
    scale = tl.load(scales + image * 2 * channels + channels + c, mask=inside, other=0.0)
    shift = tl.load(bias + c, mask=inside, other=0.0).to(tl.float32)
    value = (tl.load(x + place, mask=mask, other=0.0).to(tl.float32) - centre[None]) * scale[None] + shift[None]
    if SILU:
        value = value * tl.sigmoid(value)
    tl.store(y + place, value.to(y.dtype.element_ty), mask=mask)


# Without `ADDED`, x is not read.
@triton.jit(do_not_specialize=["count"])
def _residual(  # type: ignore[no-untyped-def]
    x, hidden, bias, y, count, channels, ADDED: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    mask = (row < count)[:, None] & (c < channels)[None]
    place = row[:, None] * channels + c[None]
    value = tl.load(hidden + place, mask=mask, other=0.0).to(tl.float32)
    if ADDED:
        value += tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    value += tl.load(bias + c, mask=c < channels, other=0.0).to(tl.float32)[None]
    tl.store(y + place, value.to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["count"])
def _gated_gelu(x, y, count, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = (row < count)[:, None] & (column < width)[None]
    place = row[:, None] * width + column[None]
    source = row[:, None] * (2 * width) + column[None]
    value = tl.load(x + source, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(x + source + width, mask=mask, other=0.0).to(tl.float32)
    gate = 0.5 * gate * (1 + tl.erf(gate * 0.7071067811865476))
    tl.store(y + place, (value * gate).to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["pixels", "width"])
def _upsample(x, y, pixels, width, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    mask = (row < pixels)[:, None] & (c < channels)[None]
    start, width = tl.program_id(2).to(tl.int64) * pixels, width.to(tl.int64)
    value = tl.load(x + (start + row)[:, None] * channels + c[None], mask=mask, other=0.0)
    corner = 4 * start + 2 * (row // width * width + row)
    place = corner[:, None] * channels + c[None]
    for down in tl.static_range(2):
        for right in tl.static_range(2):
            tl.store(y + place + (2 * down * width + right) * channels, value, mask=mask)


# Without `ADDED`, hidden is not read and total is not written.
@triton.jit(do_not_specialize=["count"])
def _add_and_normalise(  # type: ignore[no-untyped-def]
    x,
    hidden,
    weight,
    bias,
    total,
    y,
    count,
    channels,
    eps,
    ADDED: tl.constexpr,
    ROWS: tl.constexpr,
    SIZE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, SIZE)
    inside = (c < channels)[None]
    mask = (row < count)[:, None] & inside
    place = row[:, None] * channels + c[None]
    value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    if ADDED:
        rounded = (value + tl.load(hidden + place, mask=mask, other=0.0).to(tl.float32)).to(total.dtype.element_ty)
        tl.store(total + place, rounded, mask=mask)
        value = rounded.to(tl.float32)
    centred = tl.where(inside, value - (tl.sum(value, 1) / channels)[:, None], 0.0)
    scale = 1 / tl.sqrt(tl.sum(centred * centred, 1) / channels + eps)
    gain = tl.load(weight + c, mask=c < channels, other=0.0).to(tl.float32)
    shift = tl.load(bias + c, mask=c < channels, other=0.0).to(tl.float32)
    value = centred * scale[:, None] * gain[None] + shift[None]
    tl.store(y + place, value.to(y.dtype.element_ty), mask=mask)


# With `added`, the skip connection is the sum of both.
@triton.jit(do_not_specialize=["pixels", "images"])
def _join(  # type: ignore[no-untyped-def]
    x, skip, added, y, pixels, images, first, second, ADDED: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    image = tl.program_id(2).to(tl.int64)
    inside = (row < pixels)[:, None]
    of_skip = inside & (c >= first)[None] & (c < first + second)[None]
    from_x = ((image * pixels + row) * first)[:, None] + c[None]
    from_skip = (((image % images) * pixels + row) * second)[:, None] + (c - first)[None]
    value = tl.load(skip + from_skip, mask=of_skip, other=0.0).to(tl.float32)
    if ADDED:
        value += tl.load(added + from_skip, mask=of_skip, other=0.0).to(tl.float32)
    value += tl.load(x + from_x, mask=inside & (c < first)[None], other=0.0).to(tl.float32)
    place = ((image * pixels + row) * (first + second))[:, None] + c[None]
    tl.store(y + place, value.to(y.dtype.element_ty), mask=inside & (c < first + second)[None])


def normalise(norm: Any, x: torch.Tensor, added: torch.Tensor | None = None, silu: bool = True) -> torch.Tensor:
    """Group normalisation of x + added, then SiLU.

    The variance is computed in float32 from distances from means of a few pixels, so that means far from 0 and outliers
    at any pixel do not make it imprecise. With n = HW / 512, its relative error is at most about 2e-7 (n + 8) (n + 1).
    This bound is reached only if all rounding errors have the same sign.

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
    moments = torch.empty((images, parts, 2, channels), device=x.device, dtype=torch.float32)
    scales = torch.empty((images, 2, channels), device=x.device, dtype=torch.float32)
    y = torch.empty_like(x)
    blocks = triton.cdiv(channels, _CHANNELS)
    _moments[(parts, blocks, images)](x, moments, pixels, channels, ROWS=_ROWS, CHANNELS=_CHANNELS)
    _scales[(norm.num_groups, images)](
        moments, added, norm.weight, scales, pixels, channels, parts, size, norm.eps, stride, ROWS=_ROWS,
        SIZE=max(_GROUP, triton.next_power_of_2(size)),
    )  # fmt: skip
    grid = (triton.cdiv(pixels, _ROWS), blocks, images)
    _apply[grid](x, scales, norm.bias, y, pixels, channels, SILU=silu, ROWS=_ROWS, CHANNELS=_CHANNELS)
    return y


def add_residual(x: torch.Tensor, hidden: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Return x + hidden + bias; x and hidden are (N, C, H, W), channels-last, and bias (C,)."""
    x, hidden = (one.contiguous(memory_format=torch.channels_last) for one in (x, hidden))
    return _add(x, hidden, bias, torch.empty_like(x))


def add_bias(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Return x + bias, channels-last; x is (N, C, H, W) and is overwritten if it is channels-last, and bias is (C,)."""
    x = x.contiguous(memory_format=torch.channels_last)
    return _add(None, x, bias, x)


def _add(x: torch.Tensor | None, hidden: torch.Tensor, bias: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    channels = hidden.shape[1]
    count = hidden.numel() // channels
    grid = (triton.cdiv(count, _ROWS), triton.cdiv(channels, _CHANNELS))
    is_sum = x is not None
    x = hidden if x is None else x
    _residual[grid](x, hidden, bias, y, count, channels, ADDED=is_sum, ROWS=_ROWS, CHANNELS=_CHANNELS)
    return y


def gated_gelu(x: torch.Tensor) -> torch.Tensor:
    """Return the first half of x, (..., 2C), times the GELU of its second half."""
    x, width = x.contiguous(), x.shape[-1] // 2
    y = x.new_empty((*x.shape[:-1], width))
    count = y.numel() // width
    grid = (triton.cdiv(count, _ROWS), triton.cdiv(width, _CHANNELS))
    _gated_gelu[grid](x, y, count, width, ROWS=_ROWS, COLUMNS=_CHANNELS)
    return y


def upsample(x: torch.Tensor) -> torch.Tensor:
    """Repeat each pixel of x, (N, C, H, W), twice in both directions; return (N, C, 2H, 2W), channels-last."""
    x = x.contiguous(memory_format=torch.channels_last)
    images, channels, height, width = x.shape
    shape = (images, channels, 2 * height, 2 * width)
    y = torch.empty(shape, device=x.device, dtype=x.dtype, memory_format=torch.channels_last)
    grid = (triton.cdiv(height * width, _ROWS), triton.cdiv(channels, _CHANNELS), images)
    _upsample[grid](x, y, height * width, width, channels, ROWS=_ROWS, CHANNELS=_CHANNELS)
    return y


def add_and_normalise(x: torch.Tensor, hidden: torch.Tensor | None, norm: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return x + hidden and its layer normalisation.

    Args:
        x: (..., C).
        hidden: of the same shape; None for zeros.
        norm: the LayerNorm, of C.
    """
    return _normalise_sum(x, hidden, norm.weight, norm.bias, norm.eps)


def normalise_tokens(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    """Return the layer normalisation of x, (..., C), with the factors `weight` and the terms `bias`, (C,)."""
    return _normalise_sum(x, None, weight, bias, eps)[1]


def _normalise_sum(
    x: torch.Tensor, hidden: torch.Tensor | None, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.contiguous()
    y, is_sum = torch.empty_like(x), hidden is not None
    hidden, total = (x, x) if hidden is None else (hidden.contiguous(), torch.empty_like(x))
    channels = x.shape[-1]
    count, size = x.numel() // channels, triton.next_power_of_2(channels)
    rows = max(1, _ELEMENTS // size)
    _add_and_normalise[(triton.cdiv(count, rows),)](
        x, hidden, weight, bias, total, y, count, channels, eps, ADDED=is_sum, ROWS=rows, SIZE=size
    )
    return total, y


def join(x: torch.Tensor, skip: torch.Tensor, added: torch.Tensor | None) -> torch.Tensor:
    """Concatenate the channels of x and of skip + added.

    Args:
        x: (N, C, H, W).
        skip: (M, C', H, W), which is repeated to N rows.
        added: of the shape of `skip`; None for zeros.

    Returns:
        (N, C + C', H, W), channels-last.
    """
    x, skip = (one.contiguous(memory_format=torch.channels_last) for one in (x, skip))
    is_sum = added is not None
    added = skip if added is None else added.contiguous(memory_format=torch.channels_last)
    images, first, height, width = x.shape
    second, pixels = skip.shape[1], height * width
    shape = (images, first + second, height, width)
    y = torch.empty(shape, device=x.device, dtype=x.dtype, memory_format=torch.channels_last)
    grid = (triton.cdiv(pixels, _ROWS), triton.cdiv(first + second, _CHANNELS), images)
    _join[grid](
        x, skip, added, y, pixels, len(skip), first, second, ADDED=is_sum, ROWS=_ROWS, CHANNELS=_CHANNELS
    )  # fmt: skip
    return y


def compile_kernels(device: torch.device, dtype: torch.dtype) -> None:
    """Compile all kernels for the networks of Stable Diffusion, so that the first batch does not wait for it."""
    norm = torch.nn.GroupNorm(2, 64, device=device, dtype=dtype).requires_grad_(False)
    x = torch.ones((2, 64, 8, 8), device=device, dtype=dtype)
    normalise(norm, x, x[:, :, 0, 0], silu=True)
    normalise(norm, x, silu=False)
    add_bias(add_residual(x, x, norm.bias), norm.bias)
    upsample(x)
    gated_gelu(x.flatten(2))
    for added in (x, None):
        join(x, x, added)
    for channels in _WIDTHS:
        tokens = torch.ones((1, 16, channels), device=device, dtype=dtype)
        add_and_normalise(
            tokens, tokens, torch.nn.LayerNorm(channels, device=device, dtype=dtype).requires_grad_(False)
        )
