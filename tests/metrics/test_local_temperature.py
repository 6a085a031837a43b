"""Local temperatures against the definition, pixel by pixel, and what training makes of them."""

import math

import numpy as np
import pytest
import torch

from genval.metrics.local_temperature import LocalTemperature, scaled_nll
from genval.metrics.temperature import Pixels, search_nll
from genval.runtime.errors import GenValError


def inputs(seed=0, height=11, width=13, classes=5, batch=2):
    generator = np.random.default_rng(seed)
    logits = torch.from_numpy(generator.normal(0, 4, (batch, classes, height, width)).astype(np.float32))
    images = torch.from_numpy(generator.integers(0, 256, (batch, 3, height, width)).astype(np.uint8))
    return logits, images


def random_network(classes=5, temperature=1.7):
    network = LocalTemperature(classes, temperature)
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    return network


def plain_convolution(conv, channels, row, column):
    """5x5, dilation 2, the border repeated, from the definition."""
    weight, bias = conv.weight.detach().double(), conv.bias.detach().double()
    values = bias.clone()
    for i in range(5):
        for j in range(5):
            y = min(max(row + 2 * (i - 2), 0), channels.shape[1] - 1)
            x = min(max(column + 2 * (j - 2), 0), channels.shape[2] - 1)
            values += weight[:, :, i, j] @ channels[:, y, x]
    return values


def test_the_tree_is_that_of_the_paper():
    logits, images = inputs()
    network = random_network()
    with torch.no_grad():
        found = network(logits, images)
    below = ((logits[1] - logits[1].amax(0)).clamp(min=-40) / 10).double()
    for row, column in ((0, 0), (5, 6), (10, 12), (3, 0)):
        leaves = plain_convolution(network.leaves, below, row, column)
        a, b, c, d = (1 / (1 + math.exp(-v)) for v in plain_convolution(network.forks, below, row, column).tolist())
        tree = c * (a * leaves[0] + (1 - a) * leaves[1]) + (1 - c) * (b * leaves[2] + (1 - b) * leaves[3])
        image_branch = plain_convolution(network.image, images[1].double() / 127.5 - 1, row, column)[0]
        factor = float(d * tree + (1 - d) * image_branch)
        expected = 1.7 * math.exp(3 * math.tanh(factor / 3))
        assert float(found[1, row, column]) == pytest.approx(expected, rel=1e-4)


def test_training_starts_at_the_single_temperature():
    logits, images = inputs()
    network = LocalTemperature(5, 2.5, torch.Generator().manual_seed(0))
    torch.testing.assert_close(network(logits, images), torch.full((2, 11, 13), 2.5))
    with pytest.raises(GenValError, match="above 0"):
        LocalTemperature(5, 0.0)


def test_temperatures_are_positive_local_and_invariant_to_a_shift_of_the_logits():
    logits, images = inputs(height=24, width=24)
    network = random_network()
    with torch.no_grad():
        found = network(logits, images)
        assert bool((found > 0).all()) and float(found.std()) > 0
        torch.testing.assert_close(network(logits + 7, images), found, rtol=1e-4, atol=1e-5)
        changed = logits.clone()
        changed[:, 2, 12, 12] = -math.inf
        other = network(changed, images)
    assert bool(torch.isfinite(other).all())
    rows, columns = np.nonzero((other != found).any(0).numpy())
    assert len(rows) and abs(rows - 12).max() <= 4 and abs(columns - 12).max() <= 4
    extreme = network(logits * 1e6, images).detach()
    assert bool(torch.isfinite(extreme).all()) and float(extreme.max()) <= 1.7 * math.exp(3) * 1.001


def test_scaled_nll_is_the_sum_over_labelled_pixels():
    logits, _ = inputs(batch=1, height=3, width=4)
    labels = torch.tensor([[[0, 1, 255, 4], [3, 2, 1, 0], [255, 4, 4, 0]]], dtype=torch.uint8)
    temperatures = torch.linspace(0.5, 3, 12).reshape(1, 3, 4)
    expected = 0.0
    for row in range(3):
        for column in range(4):
            if labels[0, row, column] != 255:
                scaled = (logits[0, :, row, column] / temperatures[0, row, column]).double().numpy()
                expected += math.log(np.exp(scaled).sum()) - scaled[int(labels[0, row, column])]
    assert float(scaled_nll(logits, temperatures, labels)) == pytest.approx(expected, rel=1e-5)


def test_it_learns_where_errors_are():
    """Right on the left, a guess on the right, equally confident: no single temperature fits both."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 5, (1, 32, 32))
    predicted = np.where(np.arange(32) < 16, labels, generator.integers(0, 5, labels.shape))
    logits = torch.from_numpy(np.eye(5, dtype=np.float32)[predicted] * 6).permute(0, 3, 1, 2).contiguous()
    images = torch.from_numpy(np.where(np.arange(32) < 16, 20, 230).astype(np.uint8)).expand(1, 3, 32, 32)
    flat = logits[0].flatten(1).T.numpy()
    single = search_nll(Pixels.from_logits(flat, labels.ravel()))
    network = LocalTemperature(5, single.temperature, torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(network.parameters(), 0.03)
    target = torch.from_numpy(labels.astype(np.uint8))
    for _ in range(60):
        optimizer.zero_grad()
        (scaled_nll(logits, network(logits, images), target) / 1024).backward()
        optimizer.step()
    with torch.no_grad():
        temperatures = network(logits, images)
        value = float(scaled_nll(logits, temperatures, target)) / 1024
    assert value < 0.85 * single.value
    assert float(temperatures[..., 16:].mean()) > 2 * float(temperatures[..., :16].mean())
    scaled = logits / temperatures[:, None]
    assert bool((scaled.argmax(1) == logits.argmax(1)).all())


def test_training_may_start_at_a_temperature_below_1():
    logits, images = inputs()
    network = LocalTemperature(5, 0.4)
    torch.testing.assert_close(network(logits, images), torch.full((2, 11, 13), 0.4))
    assert float(LocalTemperature().start) == 1 and LocalTemperature().leaves.in_channels == 19
    for bad in (-1.0, math.nan):
        with pytest.raises(GenValError, match=rf"^A temperature must be above 0, found {bad}\.$"):
            LocalTemperature(5, bad)
