"""Triton kernels for feature maps of segmenters, in channels-last tensors on an NVIDIA GPU.

They replace PyTorch's bilinear resizing, adaptive pooling and max pooling, and cuDNN's depthwise convolution, which
reach a fraction of the memory's bandwidth. cuDNN's kernel does not add the bias, and is many times slower if the
convolution is dilated. `add_resized` adds maps that are multiplied with filters before they are resized.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import triton
import triton.language as tl

_ROWS, _COLUMNS, _CHANNELS = 32, 16, 64
# Pixels of a row per program of `_average_windows`.
_PIXELS = 128
# Numbers of a row per program of `_resize_rows`.
_NUMBERS = 1024


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


@triton.jit
def _first_window(start, window, stride, windows):  # type: ignore[no-untyped-def]
    """Return the first of the windows along one side that reaches a pixel."""
    return tl.minimum(tl.maximum(start - window + stride, 0) // stride, windows - 1)


@triton.jit(
    do_not_specialize=["height", "width", "out_height", "out_width", "window_height", "window_width", "rows", "columns"]
)
def _average_windows(  # type: ignore[no-untyped-def]
    x, y, height, width, out_height, out_width, window_height, window_width, stride_y, stride_x, rows, columns,
    channels, scale_y, scale_x, ROWS: tl.constexpr, COLUMNS: tl.constexpr, ALIGN: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """Compute PIXELS pixels of one row of the result, for all channels.

    `x` (rows, columns, N, height, width, channels): the maps of the windows. `y` (N, channels, out_height, out_width).
    At most ROWS * COLUMNS windows reach these pixels.
    """
    start = tl.program_id(0) * PIXELS
    place = start + tl.arange(0, PIXELS)
    row = tl.program_id(1)
    image = tl.program_id(2).to(tl.int64)
    first_row = _first_window(row, window_height, stride_y, rows)
    first_column = _first_window(start, window_width, stride_x, columns)
    y += (image * channels * out_height + row) * out_width + place
    # What does not depend on the channel is computed once, because all loops inside are unrolled.
    for channel in range(channels):
        total = tl.zeros((PIXELS,), tl.float32)
        count = tl.zeros((PIXELS,), tl.float32)
        for i in tl.static_range(ROWS):
            at_row = first_row + i
            inner = row - tl.minimum(at_row * stride_y, out_height - window_height)
            top, bottom, down = _source(inner, scale_y, height, ALIGN)
            for j in tl.static_range(COLUMNS):
                at_column = first_column + j
                along = place - tl.minimum(at_column * stride_x, out_width - window_width)
                inside = (at_row < rows) & (inner >= 0) & (inner < window_height)
                inside = inside & (at_column < columns) & (along >= 0) & (along < window_width)
                left, right, share = _source(along, scale_x, width, ALIGN)
                window = x + ((at_row * columns + at_column) * tl.num_programs(2) + image) * height * width * channels
                upper = window + top.to(tl.int64) * width * channels
                lower = window + bottom.to(tl.int64) * width * channels
                left, right = left * channels + channel, right * channels + channel
                above = (1 - share) * tl.load(upper + left, mask=inside, other=0.0).to(tl.float32)
                above += share * tl.load(upper + right, mask=inside, other=0.0).to(tl.float32)
                below = (1 - share) * tl.load(lower + left, mask=inside, other=0.0).to(tl.float32)
                below += share * tl.load(lower + right, mask=inside, other=0.0).to(tl.float32)
                total += tl.where(inside, (1 - down) * above + down * below, 0.0)
                count += inside.to(tl.float32)
        tl.store(y, (total / count).to(y.dtype.element_ty), mask=place < out_width)
        y += out_height * out_width


@triton.jit(do_not_specialize=["height", "width", "out_height", "start", "total"])
def _resize_rows(  # type: ignore[no-untyped-def]
    x, y, height, width, out_height, start, total, scale, ROW: tl.constexpr, TAPS: tl.constexpr, ALIGN: tl.constexpr,
    NUMBERS: tl.constexpr,
):  # fmt: skip
    """Resize the columns of a map to the height `out_height`, and add the rows of taps.

    `x` (N, height, width, TAPS, ROW), `y` (N, out_height, total, ROW), of which the columns from `start` on are filled.
    """
    number = tl.program_id(0) * NUMBERS + tl.arange(0, NUMBERS)
    row = tl.program_id(1)
    image = tl.program_id(2).to(tl.int64)
    mask = number < width * ROW
    source = x + (number // ROW) * (TAPS * ROW) + number % ROW
    value = tl.zeros((NUMBERS,), tl.float32)
    for tap in tl.static_range(TAPS):
        at = row + tap - TAPS // 2
        if (at >= 0) & (at < out_height):
            top, bottom, down = _source(at, scale, height, ALIGN)
            upper = tl.load(source + (image * height + top) * width * (TAPS * ROW) + tap * ROW, mask=mask, other=0.0)
            lower = tl.load(source + (image * height + bottom) * width * (TAPS * ROW) + tap * ROW, mask=mask, other=0.0)
            value += (1 - down) * upper.to(tl.float32) + down * lower.to(tl.float32)
    y += ((image * out_height + row) * total + start) * ROW
    tl.store(y + number, value.to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["height", "width", "total"])
def _add_columns(  # type: ignore[no-untyped-def]
    y, rows, bias, height, width, total, widths, scales, channels, MAPS: tl.constexpr, TAPS: tl.constexpr,
    ALIGN: tl.constexpr, BIAS: tl.constexpr, RELU: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Resize the rows of the results of `_resize_rows`, and add them to COLUMNS pixels of a row of y.

    `y` (N, height, width, channels), `rows` (N, height, total, TAPS, channels), where `total` is the sum of `widths`.
    """
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    blocks = tl.cdiv(channels, CHANNELS)
    row = tl.program_id(1) // blocks
    c = tl.program_id(1) % blocks * CHANNELS + tl.arange(0, CHANNELS)
    image = tl.program_id(2).to(tl.int64)
    inside = (c < channels)[None]
    place = ((image * height + row) * width + column)[:, None] * channels + c[None]
    mask = (column < width)[:, None] & inside
    value = tl.load(y + place, mask=mask, other=0.0).to(tl.float32)
    if BIAS:
        value += tl.load(bias + c, mask=c < channels, other=0.0).to(tl.float32)[None]
    rows += (image * height + row) * total * (TAPS * channels)
    for index in tl.static_range(MAPS):
        for tap in tl.static_range(TAPS):
            at = column + tap - TAPS // 2
            left, right, along = _source(at, scales[index], widths[index], ALIGN)
            there = ((at >= 0) & (at < width))[:, None] & inside
            value += (1 - along)[:, None] * _pixels(rows + tap * channels, left * TAPS, channels, c, there)
            value += along[:, None] * _pixels(rows + tap * channels, right * TAPS, channels, c, there)
        rows += widths[index] * (TAPS * channels)
    if RELU:
        value = tl.where(value < 0, 0.0, value)  # NaN stays NaN
    tl.store(y + place, value.to(y.dtype.element_ty), mask=mask)


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


@triton.jit(do_not_specialize=["height", "width", "out_height", "out_width"])
def _max_pool(  # type: ignore[no-untyped-def]
    x, y, height, width, out_height, out_width, channels, stride_y, stride_x, pad_y, pad_x, KERNEL_Y: tl.constexpr,
    KERNEL_X: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    image = tl.program_id(2).to(tl.int64)
    mask = (row < out_height * out_width)[:, None] & (c < channels)[None]
    x += image * height * width * channels
    largest = tl.full((ROWS, CHANNELS), float("-inf"), tl.float32)
    for tap in tl.static_range(KERNEL_Y * KERNEL_X):
        at_y = row // out_width * stride_y - pad_y + tap // KERNEL_X
        at_x = row % out_width * stride_x - pad_x + tap % KERNEL_X
        inside = (at_y >= 0) & (at_y < height) & (at_x >= 0) & (at_x < width)
        place = x + (at_y * width + at_x).to(tl.int64)[:, None] * channels + c[None]
        value = tl.load(place, mask=mask & inside[:, None], other=float("-inf")).to(tl.float32)
        largest = tl.maximum(largest, value, propagate_nan=tl.PropagateNan.ALL)
    place = (image * out_height * out_width + row)[:, None] * channels + c[None]
    tl.store(y + place, largest.to(y.dtype.element_ty), mask=mask)


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
    if planes:
        return average_windows(x, size, size, ([0], [0]), size, align_corners, x.dtype)
    scales = [_scale(of, to, align_corners) for of, to in zip((height, width), size, strict=True)]
    y = _empty(x, channels, size)
    grid = (triton.cdiv(size[0] * size[1], _ROWS), triton.cdiv(channels, _CHANNELS), len(x))
    _resize[grid](x, y, height, width, *size, channels, *scales, ALIGN=align_corners, ROWS=_ROWS, CHANNELS=_CHANNELS)
    return y


def average_windows(
    x: torch.Tensor,
    size: tuple[int, int],
    window: tuple[int, int],
    starts: tuple[Sequence[int], Sequence[int]],
    stride: tuple[int, int],
    align_corners: bool,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Resize the maps of windows bilinearly to the size of a window, and average them where windows overlap.

    Args:
        x: the maps of R rows of S windows, (R * S * N, C, H, W), channels-last.
        size: height and width of an image.
        window: height and width of a window.
        starts: the rows and the columns at which windows start, R and S numbers. They are multiples of `stride`, except
            for the last ones, if the last windows are moved back to end with the image.
        stride: rows and columns from one window to the next.
        align_corners: as for `resize_bilinear`.
        dtype: of the result.

    Returns:
        (N, C, *size), contiguous.
    """
    rows, columns = starts
    channels, height, width = x.shape[1:]
    images = len(x) // (len(rows) * len(columns))
    y = torch.empty((images, channels, *size), device=x.device, dtype=dtype)
    _average_windows[triton.cdiv(size[1], _PIXELS), size[0], images](
        x, y, height, width, *size, *window, *stride, len(rows), len(columns), channels,
        *(_scale(of, to, align_corners) for of, to in zip((height, width), window, strict=True)),
        ROWS=_most_windows(rows, window[0], 1), COLUMNS=_most_windows(columns, window[1], _PIXELS),
        ALIGN=align_corners, PIXELS=_PIXELS,
    )  # fmt: skip
    return y


def _most_windows(starts: Sequence[int], window: int, pixels: int) -> int:
    """Return how many windows reach one of the groups of `pixels` pixels along a side: the largest number."""
    groups = {start // pixels * pixels for start in starts}
    return max(sum(start - pixels < first < start + window for start in starts) for first in groups)


def add_resized(
    y: torch.Tensor,
    maps: Sequence[torch.Tensor],
    align_corners: bool,
    taps: int = 1,
    bias: torch.Tensor | None = None,
    relu: bool = False,
) -> torch.Tensor:
    """Add bilinearly resized maps to y in place, each shifted by the places of the taps of a filter.

    A map can be multiplied with a filter before or after it is resized. The convolution of a resized map is thus the
    sum of resized products, and the map has fewer pixels before. Taps outside of y add nothing, as in a convolution
    with padding.

    Args:
        y: (N, C, H, W), channels-last. It is overwritten.
        maps: (N, taps * taps * C, h, w) of any sizes, channels-last: for each row and column of taps, C channels.
        align_corners: as for `resize_bilinear`.
        taps: rows and columns of the filter, an odd number.
        bias: (C,), is added to y, or None for zeros.
        relu: whether negative sums are replaced by 0.

    Returns:
        y.
    """
    images, channels, height, width = y.shape
    widths = tuple(x.shape[3] for x in maps)
    rows = y.new_empty((images, height, sum(widths), taps * channels))
    start = 0
    for x in maps:
        _resize_rows[triton.cdiv(x.shape[3] * taps * channels, _NUMBERS), height, images](
            x, rows, *x.shape[2:], height, start, rows.shape[2], _scale(x.shape[2], height, align_corners),
            ROW=taps * channels, TAPS=taps, ALIGN=align_corners, NUMBERS=_NUMBERS,
        )  # fmt: skip
        start += x.shape[3]
    grid = (triton.cdiv(width, _COLUMNS), height * triton.cdiv(channels, _CHANNELS), images)
    _add_columns[grid](
        y, rows, y if bias is None else bias, height, width, start, widths,
        tuple(_scale(of, width, align_corners) for of in widths), channels, MAPS=len(maps), TAPS=taps,
        ALIGN=align_corners, BIAS=bias is not None, RELU=relu, COLUMNS=_COLUMNS, CHANNELS=_CHANNELS,
    )  # fmt: skip
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


def max_pool(
    x: torch.Tensor, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> torch.Tensor:
    """Return the largest number of each channel in the places of a filter, as `torch.nn.functional.max_pool2d`.

    Args:
        x: (N, C, H, W), channels-last, of at least the size of the filter.
        kernel: rows and columns of the filter.
        stride: rows and columns from one result to the next.
        padding: rows and columns on each side, which are never the largest; at most half of the filter.

    Returns:
        (N, C, ...), channels-last.
    """
    images, channels = x.shape[:2]
    size = tuple(
        (length + 2 * pad - taps) // move + 1
        for length, pad, taps, move in zip(x.shape[2:], padding, kernel, stride, strict=True)
    )
    y = _empty(x, channels, size)
    grid = (triton.cdiv(size[0] * size[1], _ROWS), triton.cdiv(channels, _CHANNELS), images)
    _max_pool[grid](
        x, y, *x.shape[2:], *size, channels, *stride, *padding, KERNEL_Y=kernel[0], KERNEL_X=kernel[1], ROWS=_ROWS,
        CHANNELS=_CHANNELS,
    )  # fmt: skip
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


def _scale(length: int, size: int, align_corners: bool) -> float:
    """Return how many pixels of a side of this length one pixel of the resized side has."""
    if align_corners:
        return (length - 1) / (size - 1) if size > 1 else 0.0
    return length / size


def _empty(x: torch.Tensor, channels: int, size: tuple[int, ...]) -> torch.Tensor:
    shape = (len(x), channels, *size)
    return torch.empty(shape, device=x.device, dtype=x.dtype, memory_format=torch.channels_last)
