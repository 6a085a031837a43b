"""Scores of features and of gradients against their definitions in NumPy."""

import numpy as np
import pytest
import torch

from genval.metrics.ood_features import FeatureSums, mahalanobis, neighbour_distance, odin_score, spread
from genval.runtime.errors import GenValError


@pytest.fixture
def pixels():
    generator = torch.Generator().manual_seed(0)
    classes = torch.randint(0, 3, (500,), generator=generator)
    return torch.randn(5, 500, generator=generator) + 3 * classes, classes


def test_mahalanobis_distance_is_that_of_the_nearest_mean_under_the_shared_covariance(pixels):
    features, classes = pixels
    halves = [FeatureSums.measure(features[:, part], classes[part], 4) for part in (slice(0, 200), slice(200, None))]
    means, whitening = (halves[0] + halves[1]).gaussians()
    assert means.shape == (3, 5)  # the fourth class has no pixel
    wide, known = features.double().numpy(), classes.numpy()
    centres = np.stack([wide[:, known == c].mean(1) for c in range(3)])
    residuals = wide - centres[known].T
    covariance = residuals @ residuals.T / 500
    covariance = 0.999 * covariance + 0.001 * np.trace(covariance) / 5 * np.eye(5)
    inverse = np.linalg.inv(covariance)
    differences = wide.T[:, None] - centres[None]
    expected = np.sqrt(np.einsum("ncd,de,nce->nc", differences, inverse, differences)).min(1)
    np.testing.assert_allclose(mahalanobis(features, means, whitening).numpy(), expected, rtol=2e-3)


def test_neighbour_distance_is_the_kth_smallest_of_unit_vectors(pixels):
    features, _ = pixels
    bank = torch.nn.functional.normalize(features.T[:50])
    unit = torch.nn.functional.normalize(features.T)
    expected = (unit[:, None] - bank[None]).norm(dim=2).sort(1).values
    torch.testing.assert_close(neighbour_distance(features, bank, 3), expected[:, 2], atol=2e-3, rtol=0)
    torch.testing.assert_close(neighbour_distance(features, bank, 99), expected[:, -1], atol=2e-3, rtol=0)


def test_odin_has_the_order_of_the_negated_probability_at_a_high_temperature():
    logits = 5 * torch.randn(1, 19, 300, generator=torch.Generator().manual_seed(0))
    expected = -(logits.double() / 1000).softmax(1).amax(1)
    order = expected.argsort()
    found = odin_score(logits)
    assert (found.gather(1, order).diff() >= 0).all() and len(found.unique()) > 290


def test_spread_covers_the_ends():
    assert spread(10, 3) == [0, 4, 9] and spread(2, 5) == [0, 1] and spread(0, 5) == []


def test_known_pixels_without_a_label_are_an_error():
    with pytest.raises(GenValError, match="no labelled pixels"):
        FeatureSums.measure(torch.zeros(2, 0), torch.zeros(0, dtype=torch.long), 3).gaussians()
