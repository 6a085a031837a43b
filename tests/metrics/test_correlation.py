"""Correlations against those of NumPy and SciPy."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from genval.metrics.correlation import agreement, kendall, pearson, pearson_interval, pearson_r, spearman
from genval.metrics.division import safe_divide
from genval.runtime.errors import GenValError

SCORES = st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=3, max_size=20)
CORRELATIONS = {"pearson": pearson, "spearman": spearman, "kendall": kendall}
REFERENCES = {
    "pearson": scipy.stats.pearsonr,
    "spearman": scipy.stats.spearmanr,
    "kendall": scipy.stats.kendalltau,
}


@given(SCORES)
def test_r_equals_that_of_numpy(pairs):
    x, y = np.array(pairs).T
    if min(x.std(), y.std()) < 1e-6:
        return
    assert pearson_r(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-7)


def test_r_is_not_defined_without_variation():
    assert math.isnan(pearson_r([0.1] * 3, [1, 2, 3]))
    assert math.isnan(pearson_r([1], [1]))


def test_bad_scores_are_refused():
    with pytest.raises(GenValError, match="finite"):
        pearson_r([1, math.nan], [1, 2])
    with pytest.raises(GenValError, match="one length"):
        pearson_r([1, 2], [1, 2, 3])


def test_the_interval_covers_the_correlation_at_its_nominal_rate():
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        x = generator.normal(size=20)
        y = 0.8 * x + 0.6 * generator.normal(size=20)  # correlation 0.8
        low, high = pearson_interval(pearson_r(x, y), 20)
        covered += low < 0.8 < high
    assert 0.92 < covered / 400 < 0.98
    assert pearson_interval(1.0, 5) == (1.0, 1.0)
    assert math.isnan(pearson_interval(0.9, 3)[0])


def test_agreement_skips_pairs_with_nan_and_is_ready_for_json():
    values = agreement([1.0, 2.0, 4.0, math.nan], [2.0, 3.0, 5.0, 9.0])
    assert values == {"pairs": 3, "pearson_r": pytest.approx(1.0), "low": None, "high": None, "mean_difference": -1.0}
    assert agreement([], [])["mean_difference"] is None
    two = {"pairs": 2, "pearson_r": None, "low": None, "high": None, "mean_difference": -1.5}
    assert agreement([1.0, 2.0], [2.0, 4.0]) == two


@pytest.mark.parametrize("name", CORRELATIONS)
@pytest.mark.parametrize("ties", [False, True])
def test_coefficients_of_many_lists_equal_those_of_scipy(name, ties):
    generator = np.random.default_rng(0)
    x, y = (generator.integers(0, 5, (30, 9)) if ties else generator.normal(size=(30, 9)) for _ in range(2))
    expected = [REFERENCES[name](a, b)[0] for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(CORRELATIONS[name](x, y), expected, atol=1e-12)


@pytest.mark.parametrize("coefficient", CORRELATIONS.values())
def test_an_undefined_coefficient_is_nan_and_does_not_affect_others(coefficient):
    y = np.array([1.0, 2.0, 3.0])
    x = np.array([[2.0, 2.0, 2.0], [math.nan, 1.0, 2.0], [1.0, 5.0, 6.0]])
    values = coefficient(x, y)
    assert np.isnan(values).tolist() == [True, True, False]
    assert values[2] == pytest.approx(1.0 if coefficient is not pearson else scipy.stats.pearsonr(x[2], y)[0])


def test_one_list_is_compared_with_many():
    many = np.random.default_rng(0).normal(size=(4, 6))
    assert spearman(many, many[0])[0] == pytest.approx(1)
    assert kendall(many, -many[0])[0] == pytest.approx(-1)
    assert pearson(many, many[0]).shape == (4,)


@pytest.mark.parametrize("name", CORRELATIONS)
def test_coefficients_of_one_list_and_of_stacked_lists_equal_those_of_scipy(name):
    x, y = np.random.default_rng(1).integers(0, 6, (2, 2, 3, 7))
    np.testing.assert_allclose(CORRELATIONS[name](x[0, 0], y[0, 0]), REFERENCES[name](x[0, 0], y[0, 0])[0], atol=1e-12)
    expected = [[REFERENCES[name](*lists)[0] for lists in zip(*rows, strict=True)] for rows in zip(x, y, strict=True)]
    np.testing.assert_allclose(CORRELATIONS[name](x, y), expected, atol=1e-12)


@pytest.mark.parametrize("coefficient", CORRELATIONS.values())
def test_two_pairs_are_enough_and_one_is_not(coefficient):
    assert coefficient(np.array([1, 2]), np.array([9, 4])) == -1
    values = coefficient(np.zeros((3, 1)), np.ones((3, 1)))
    assert values.shape == (3,) and values.dtype == np.float64 and np.isnan(values).all()
    assert coefficient(np.zeros((3, 0)), np.zeros((3, 0))).shape == (3,)


def test_a_constant_list_whose_mean_is_rounded_is_undefined_among_others():
    x = np.array([[1.0, 2.0, 4.0]] * 2)
    y = np.array([[0.1] * 3, [1.0, 2.0, 3.0]])
    for lists in ((x, y), (y, x)):
        assert np.isnan(pearson(*lists)).tolist() == [True, False]


def test_rounding_does_not_leave_the_range():
    x = np.random.default_rng(0).normal(size=(3000, 5))
    for factor in (0.3, -0.3):
        exact = math.copysign(1, factor)
        values = [*pearson(x, factor * x), *(pearson_r(row, factor * row) for row in x)]
        assert np.abs(values).max() == 1 and values == pytest.approx([exact] * 6000)


def test_the_error_of_values_that_are_not_finite():
    with pytest.raises(GenValError, match=r"^A correlation needs finite values, found NaN or infinity.$"):
        pearson_r([1, 2], [math.inf, 2])


def test_quotients_broadcast():
    assert safe_divide(np.array(1), np.array([[4], [0]]), default=7).tolist() == [[0.25], [7]]
    assert safe_divide(np.array([1, 2]), np.array(4)).tolist() == [0.25, 0.5]
