"""Kernels of feature maps against PyTorch's functions, without a GPU in Triton's interpreter."""

import itertools

import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("triton")

from genval.kernels.maps import add_resized, average_windows, depthwise, max_pool, pool, resize_bilinear

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def feature_maps(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator).to(DEVICE, memory_format=torch.channels_last)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(14, 10), (1, 1), (7, 5), (3, 21), (13, 9)])
def test_resizing_is_that_of_pytorch(size: tuple[int, int], align_corners: bool) -> None:
    for channels in (3, 70):
        x = feature_maps(2, channels, 7, 5)
        expected = F.interpolate(x, size, mode="bilinear", align_corners=align_corners)
        resized = resize_bilinear(x, size, align_corners)
        assert resized.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(resized, expected, rtol=1e-5, atol=1e-5)
        planes = resize_bilinear(x, size, align_corners, planes=True)
        assert planes.is_contiguous()
        torch.testing.assert_close(planes, expected, rtol=1e-5, atol=1e-5)


def test_resizing_rounds_once() -> None:
    x = feature_maps(1, 8, 6, 6).bfloat16()
    exact = F.interpolate(x.double(), (11, 17), mode="bilinear", align_corners=False)
    for planes in (False, True):
        resized = resize_bilinear(x, (11, 17), False, planes)
        assert resized.dtype == torch.bfloat16
        # A GPU rounds to the nearest number of 8 bits. The interpreter rounds towards 0.
        error = 2**-8 if DEVICE.type == "cuda" else 2**-7
        assert ((resized.double() - exact).abs() <= exact.abs() * error + 1e-6).all()


@pytest.mark.parametrize("size", [(1, 2), (3, 6), (7, 5), (10, 3)])
def test_pooling_is_that_of_pytorch(size: tuple[int, int]) -> None:
    x = feature_maps(2, 70, 7, 18)
    pooled = pool(x, size)
    assert pooled.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(pooled, F.adaptive_avg_pool2d(x, size), rtol=1e-5, atol=1e-5)
    halves = pool(x.bfloat16(), size)
    assert halves.dtype == torch.bfloat16
    torch.testing.assert_close(halves.float(), F.adaptive_avg_pool2d(x.bfloat16().float(), size), rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("taps, channels", [(1, 70), (3, 24), (5, 3)])
def test_resized_products_are_the_convolution_of_resized_maps(taps: int, channels: int, align_corners: bool) -> None:
    size = (6, 21)
    y, bias = feature_maps(2, channels, *size), feature_maps(channels, 1, 1, 1).flatten()
    maps = [feature_maps(2, 5, 7, 10), feature_maps(2, 6, 1, 1), feature_maps(2, 3, 4, 30)]
    weights = [feature_maps(channels, x.shape[1], taps, taps) for x in maps]
    expected, products = y.double(), []
    for x, weight in zip(maps, weights, strict=True):
        resized = F.interpolate(x.double(), size, mode="bilinear", align_corners=align_corners)
        expected = expected + F.conv2d(resized, weight.double(), padding=taps // 2)
        filters = weight.permute(2, 3, 0, 1).reshape(-1, x.shape[1], 1, 1)
        product = F.conv2d(x.double(), filters.double()).float()
        products.append(product.contiguous(memory_format=torch.channels_last))
    plain = add_resized(y.clone(), products, align_corners, taps)
    assert (plain - expected).norm() < 2e-6 * expected.norm()
    overwritten = y.clone()
    full = add_resized(overwritten, products, align_corners, taps, bias, relu=True)
    assert full is overwritten
    expected = (expected + bias.view(-1, 1, 1)).relu()
    assert (full - expected).norm() < 2e-6 * expected.norm()


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    "size, window, starts, stride, low",
    [
        ((12, 45), (6, 20), ([0, 4, 6], [0, 13, 25]), (4, 13), (3, 5)),
        ((12, 45), (12, 45), ([0], [0]), (12, 45), (7, 14)),
        ((4, 300), (4, 150), ([0], [0, 70, 140, 150]), (9, 70), (4, 150)),  # three windows in some places
        ((9, 9), (9, 9), ([0], [0]), (5, 5), (1, 1)),
    ],
)
def test_windows_are_resized_and_averaged(
    size: tuple[int, int],
    window: tuple[int, int],
    starts: tuple[list[int], list[int]],
    stride: tuple[int, int],
    low: tuple[int, int],
    align_corners: bool,
) -> None:
    corners = list(itertools.product(*starts))
    x = feature_maps(len(corners) * 2, 3, *low)
    total, count = torch.zeros(2, 3, *size, device=DEVICE), torch.zeros(size, device=DEVICE)
    resized = F.interpolate(x, window, mode="bilinear", align_corners=align_corners)
    for (top, left), logits in zip(corners, resized.split(2), strict=True):
        total[..., top : top + window[0], left : left + window[1]] += logits
        count[top : top + window[0], left : left + window[1]] += 1
    averaged = average_windows(x, size, window, starts, stride, align_corners)
    assert averaged.is_contiguous() and averaged.dtype == torch.float32
    torch.testing.assert_close(averaged, total / count, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel, stride, padding", [((3, 3), (2, 2), (1, 1)), ((2, 5), (1, 3), (0, 2))])
def test_max_pooling_is_that_of_pytorch(
    kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> None:
    x = feature_maps(2, 70, 9, 12) - 5  # padding is never the largest
    x[0, 3, 4, 5] = torch.nan
    largest = max_pool(x, kernel, stride, padding)
    assert largest.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(largest.isnan(), F.max_pool2d(x, kernel, stride, padding).isnan())
    torch.testing.assert_close(largest, F.max_pool2d(x, kernel, stride, padding), rtol=0, atol=0, equal_nan=True)
    halves = x.bfloat16()
    expected = F.max_pool2d(halves, kernel, stride, padding)
    torch.testing.assert_close(max_pool(halves, kernel, stride, padding), expected, rtol=0, atol=0, equal_nan=True)


def test_depthwise_convolution_is_that_of_pytorch() -> None:
    cases = [
        (70, (3, 3), (1, 1), (2, 3)),
        (5, (3, 5), (2, 1), (1, 2)),
        (5, (7, 7), (1, 1), (1, 1)),
        (3, (1, 2), (1, 3), (3, 1)),
    ]
    for channels, kernel, stride, dilation in cases:
        x, weight, bias = (
            feature_maps(2, channels, 11, 9),
            feature_maps(channels, 1, *kernel),
            feature_maps(1, channels, 1, 1),
        )
        for padding, added in itertools.product(((0, 4), (4, 6)), (None, bias.flatten())):
            expected = F.conv2d(x, weight, added, stride, padding, dilation, channels)
            y = depthwise(x, weight, added, stride, padding, dilation)
            assert y.is_contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
            y = depthwise(x, weight, added, stride, padding, dilation, "gelu")
            torch.testing.assert_close(y, F.gelu(expected), rtol=1e-5, atol=1e-5)
            y = depthwise(x, weight, added, stride, padding, dilation, "relu")
            torch.testing.assert_close(y, F.relu(expected), rtol=1e-5, atol=1e-5)


def test_a_filter_that_does_not_fit_is_an_error() -> None:
    x, weight = torch.zeros(1, 2, 5, 7), torch.zeros(2, 1, 3, 3)
    with pytest.raises(
        ValueError, match=r"filter of \(3, 3\) pixels with dilation \(4, 6\) .* maps of \(5, 7\) pixels"
    ):
        depthwise(x, weight, None, (1, 1), (0, 0), (4, 6))
