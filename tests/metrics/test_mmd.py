"""The maximum mean discrepancy against plain loops, its level and its order."""

import itertools
import math

import numpy as np
import pytest

from genval.metrics.mmd import cmmd_kernel, kid_kernel, squared_mmd
from genval.runtime.errors import GenValError


def plain_kid(a, b):
    return (sum(x * y for x, y in zip(a, b, strict=True)) / len(a) + 1) ** 3


def plain_cmmd(a, b):
    return 1000 * math.exp(-sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / 200)


@pytest.mark.parametrize(("kernel", "plain"), [(kid_kernel, plain_kid), (cmmd_kernel, plain_cmmd)])
def test_against_plain_loops(kernel, plain):
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(5, 4)), generator.normal(0.5, size=(7, 4))
    x, y = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (x, y))
    within = [np.mean([plain(a, b) for a, b in itertools.permutations(z.tolist(), 2)]) for z in (x, y)]
    between = np.mean([plain(a, b) for a in x.tolist() for b in y.tolist()])
    assert squared_mmd(x, y, kernel).value == pytest.approx(sum(within) - 2 * between)


def test_sets_of_one_distribution_have_distance_zero_and_others_are_ordered():
    generator = np.random.default_rng(0)
    equal = [squared_mmd(*generator.normal(size=(2, 60, 8)), kid_kernel, draws=200) for _ in range(40)]
    assert abs(np.mean([one.value for one in equal])) < 0.02
    assert np.mean([one.low <= 0 <= one.high for one in equal]) > 0.85
    x, noise = generator.normal(size=(2, 60, 8))
    distances = [squared_mmd(x, noise + shift, kid_kernel) for shift in (0, 0.5, 1)]
    assert distances[0].value < distances[1].value < distances[2].value
    assert distances[2].low > distances[0].high


def test_bad_embeddings_are_refused():
    with pytest.raises(GenValError, match="2 images in each, found 1 and 3"):
        squared_mmd(np.eye(3)[:1], np.eye(3), kid_kernel)
    with pytest.raises(GenValError, match="finite"):
        squared_mmd(np.full((2, 3), np.nan), np.eye(3), kid_kernel)
