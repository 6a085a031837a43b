"""The kernels of diffusion models against PyTorch: on a GPU if there is one, else in Triton's interpreter."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton", reason="Triton is not available for this system")

from genval.kernels.blocks import (
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


def test_compiling_the_kernels_runs_each_of_them():
    compile_kernels(torch.device(DEVICE), torch.float32)
