"""The kernels of diffusion models against PyTorch: on a GPU if there is one, else in Triton's interpreter."""

import math

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton", reason="Triton is not available for this system")

from genval.kernels.blocks import (
    _upsample,
    add_and_normalise,
    add_bias,
    add_residual,
    compile_kernels,
    gated_gelu,
    join,
    normalise,
    upsample,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HAS_40_GB = torch.cuda.is_available() and torch.cuda.get_device_properties(0).total_memory > 40e9
large = pytest.mark.skipif(not HAS_40_GB, reason="tensors of 2^31 values need a GPU of 40 GB")


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def group_norm(groups, channels, seed=1):
    norm = torch.nn.GroupNorm(groups, channels, eps=1e-5).to(DEVICE)
    norm.weight.data, norm.bias.data = draw(channels, seed=seed), draw(channels, seed=seed + 1)
    return norm


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize(
    "groups, shape, rows",
    [(2, (2, 20, 3, 5), 2), (1, (1, 130, 7, 9), None), (8, (3, 64, 16, 16), 1), (3, (2, 3, 40, 33), 2)],
)
def test_normalisation_equals_that_of_pytorch(groups, shape, rows, silu):
    x, norm = draw(*shape), group_norm(groups, shape[1])
    added = None if rows is None else draw(rows, shape[1], seed=3)
    summed = x if added is None else x + added[:, :, None, None]
    expected = F.group_norm(summed.double(), groups, norm.weight.double(), norm.bias.double(), norm.eps)
    expected = F.silu(expected) if silu else expected
    result = normalise(norm, x, added, silu)
    assert result.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mean", [1e3, -1e5])
def test_normalisation_is_exact_far_from_zero(mean):
    """With the difference of the mean square and the squared mean, nothing of the variance would be left."""
    x, norm = mean + draw(2, 8, 16, 16), group_norm(2, 8)
    expected = F.group_norm(x.double(), 2, norm.weight.double(), norm.bias.double(), norm.eps)
    torch.testing.assert_close(normalise(norm, x, silu=False).double(), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("outliers", [1, 32])
@pytest.mark.parametrize("deviations", [1e2, 1e3, 1e4])
def test_normalisation_is_exact_with_outliers_at_the_first_pixels(deviations, outliers):
    """Distances from the first pixel are nearly equal then, so that little of the variance would be left."""
    x, norm = draw(1, 8, 64, 64), group_norm(2, 8)
    x.view(8, -1)[:, :outliers] += deviations
    expected = F.group_norm(x.double(), 2, norm.weight.double(), norm.bias.double(), norm.eps)
    torch.testing.assert_close(normalise(norm, x, silu=False).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("pixel", [0, 40])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_normalisation_of_values_that_are_not_finite_is_nan(value, pixel):
    x, norm = draw(1, 4, 9, 9), group_norm(2, 4)
    x.view(4, -1)[1, pixel] = value
    result = normalise(norm, x)
    assert result[:, :2].isnan().all() and result[:, 2:].isfinite().all()


def test_normalisation_of_equal_values_is_the_bias():
    norm = group_norm(2, 8)
    result = normalise(norm, torch.full((1, 8, 4, 4), 3.0, device=DEVICE), silu=False)
    torch.testing.assert_close(result, norm.bias[None, :, None, None].expand(1, 8, 4, 4).detach())


def test_a_residual_sum_adds_the_bias_of_each_channel():
    x, hidden, bias = draw(2, 5, 7, 3), draw(2, 5, 7, 3, seed=1), draw(5, seed=2)
    torch.testing.assert_close(add_residual(x, hidden, bias), x + hidden + bias[:, None, None])


def test_the_gated_gelu_takes_its_gate_from_the_second_half():
    x = draw(2, 3, 14)
    values, gates = x.chunk(2, dim=-1)
    torch.testing.assert_close(gated_gelu(x), values * F.gelu(gates))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_bias_is_added_to_each_channel(layout):
    x, bias = draw(2, 5, 7, 3).to(memory_format=layout), draw(5, seed=2)
    expected = x + bias[:, None, None]
    result = add_bias(x, bias)
    assert result.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("shape", [(2, 70, 5, 3), (1, 3, 6, 9)])
def test_each_pixel_is_repeated_in_both_directions(shape):
    x = draw(*shape)
    result = upsample(x)
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(result, F.interpolate(x, scale_factor=2.0, mode="nearest"))


@pytest.mark.parametrize("channels", [24, 320])
@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_a_sum_is_normalised_over_its_channels(channels, mean):
    x, hidden = mean + draw(2, 7, channels), draw(2, 7, channels, seed=1)
    norm = torch.nn.LayerNorm(channels, eps=1e-5).to(DEVICE)
    norm.weight.data, norm.bias.data = draw(channels, seed=2), draw(channels, seed=3)
    total, normalised = add_and_normalise(x, hidden, norm)
    torch.testing.assert_close(total, x + hidden)
    exact = F.layer_norm((x + hidden).double(), (channels,), norm.weight.double(), norm.bias.double(), norm.eps)
    torch.testing.assert_close(normalised.double(), exact, rtol=1e-4, atol=1e-4)
    alone, again = add_and_normalise(total, None, norm)
    assert alone is total and torch.equal(again, normalised)


@pytest.mark.parametrize("rows", [2, 4])
@pytest.mark.parametrize("is_sum", [False, True])
def test_a_skip_connection_is_repeated_and_joined(rows, is_sum):
    x, skip = draw(rows, 70, 5, 7), draw(2, 13, 5, 7, seed=1)
    added = draw(2, 13, 5, 7, seed=2) if is_sum else None
    summed = skip + added if is_sum else skip
    joined = join(x, skip, added)
    assert joined.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(joined, torch.cat([x, torch.cat([summed] * (rows // 2))], dim=1))


def test_offsets_within_an_image_exceed_32_bits(tmp_path):
    """Only the first of 2^27 channels are enlarged. The files of the tensors have holes for the others."""
    pixels, channels = 17, 1 << 27

    def zeros(name, *shape):
        if DEVICE == "cuda":
            return torch.zeros(shape, dtype=torch.int8, device=DEVICE)
        return torch.from_file(str(tmp_path / name), shared=True, size=math.prod(shape), dtype=torch.int8).view(shape)

    x, y = zeros("x", pixels, channels), zeros("y", 2, 2 * pixels, channels)
    x[:, :64] = torch.arange(pixels, device=DEVICE)[:, None]
    _upsample[(1, 1, 1)](x, y, pixels, pixels, channels, ROWS=32, CHANNELS=64)
    assert torch.equal(y[:, :, :64], x[:, :64].repeat_interleave(2, dim=0).expand(2, -1, -1))


@pytest.fixture(
    params=[
        pytest.param((64, 3, 5), id="small"),
        pytest.param((1, 5, 3), id="one channel"),
        pytest.param((64, 5800, 5800), marks=large, id="2^31 values"),
        pytest.param((1, 46400, 46400), marks=large, id="2^31 pixels"),
    ]
)
def equal_lines(request):
    """An image (1, C, H, W) in channels-last bfloat16, whose lines are equal, and its line (1, C, 1, W)."""
    channels, height, width = request.param
    line = draw(1, channels, 1, width, dtype=torch.bfloat16)
    x = line.permute(0, 2, 3, 1).expand(-1, height, -1, -1).contiguous().permute(0, 3, 1, 2)
    yield x, line
    if DEVICE == "cuda":
        torch.cuda.empty_cache()


def assert_lines(result, line):
    """All lines of the result are equal, and close to `line`."""
    assert torch.equal(result, result[:, :, :1].expand_as(result))
    torch.testing.assert_close(result[:, :, :1].double(), line.double(), rtol=2e-2, atol=2e-2)


def test_all_pixels_of_any_image_are_normalised(equal_lines):
    x, line = equal_lines
    norm = group_norm(1, x.shape[1])
    expected = F.group_norm(line.double(), 1, norm.weight.double(), norm.bias.double(), norm.eps)
    assert_lines(normalise(norm, x, silu=False), expected)


def test_all_pixels_of_any_image_are_added(equal_lines):
    x, line = equal_lines
    bias = draw(x.shape[1], seed=1).bfloat16()
    expected = 2 * line + bias[:, None, None]
    assert_lines(add_residual(x, x, bias), expected)
    assert_lines(add_bias(x, bias), line + bias[:, None, None])


def test_all_pixels_of_any_image_are_enlarged(equal_lines):
    x, line = equal_lines
    assert_lines(upsample(x), line.repeat_interleave(2, dim=3))


def test_all_pixels_of_any_image_are_joined(equal_lines):
    x, line = equal_lines
    assert_lines(join(x, x, None), torch.cat([line, line], dim=1))


def test_all_tokens_of_any_number_are_gated_and_normalised(equal_lines):
    x, line = equal_lines
    tokens, of_line = x.permute(0, 2, 3, 1), line.permute(0, 2, 3, 1)
    if x.shape[1] > 1:
        values, gates = of_line.double().chunk(2, dim=-1)
        assert_lines(gated_gelu(tokens).permute(0, 3, 1, 2), (values * F.gelu(gates)).permute(0, 3, 1, 2))
    norm = torch.nn.LayerNorm(x.shape[1]).to(DEVICE)
    norm.weight.data, norm.bias.data = draw(x.shape[1], seed=2), draw(x.shape[1], seed=3)
    total, normalised = (tensor.permute(0, 3, 1, 2) for tensor in add_and_normalise(tokens, tokens, norm))
    assert_lines(total, 2 * line)
    exact = F.layer_norm(2 * of_line.double(), norm.normalized_shape, norm.weight.double(), norm.bias.double())
    assert_lines(normalised, exact.permute(0, 3, 1, 2))


def test_compiling_the_kernels_runs_each_of_them():
    compile_kernels(torch.device(DEVICE), torch.float32)
