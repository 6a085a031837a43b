"""The batched coefficients against SciPy's, one list at a time."""

import math

import numpy as np
import pytest
import scipy.stats

from genval.metrics.correlation import CORRELATIONS, kendall, pearson, spearman

REFERENCES = {
    "pearson": scipy.stats.pearsonr,
    "spearman": scipy.stats.spearmanr,
    "kendall": scipy.stats.kendalltau,
}


@pytest.mark.parametrize("name", CORRELATIONS)
@pytest.mark.parametrize("ties", [False, True])
def test_each_list_is_that_of_scipy(name, ties):
    generator = np.random.default_rng(0)
    x, y = (generator.integers(0, 5, (30, 9)) if ties else generator.normal(size=(30, 9)) for _ in range(2))
    expected = [REFERENCES[name](a, b)[0] for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(CORRELATIONS[name](x, y), expected, atol=1e-12)


@pytest.mark.parametrize("coefficient", CORRELATIONS.values())
def test_what_is_not_defined_is_nan_and_stays_alone(coefficient):
    y = np.array([1.0, 2.0, 3.0])
    x = np.array([[2.0, 2.0, 2.0], [math.nan, 1.0, 2.0], [1.0, 5.0, 6.0]])
    values = coefficient(x, y)
    assert np.isnan(values).tolist() == [True, True, False]
    assert values[2] == pytest.approx(1.0 if coefficient is not pearson else scipy.stats.pearsonr(x[2], y)[0])


def test_a_list_stands_against_many():
    many = np.random.default_rng(0).normal(size=(4, 6))
    assert spearman(many, many[0])[0] == pytest.approx(1)
    assert kendall(many, -many[0])[0] == pytest.approx(-1)
    assert pearson(many, many[0]).shape == (4,)
