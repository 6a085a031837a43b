import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genval.metrics.correlation import agreement, pearson_interval, pearson_r
from genval.runtime.errors import GenValError

SCORES = st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=3, max_size=20)


@given(SCORES)
def test_r_is_that_of_numpy(pairs):
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


def test_the_interval_covers_the_truth_as_often_as_it_says():
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


def test_agreement_leaves_missing_pairs_out_and_is_fit_for_json():
    values = agreement([1.0, 2.0, 4.0, math.nan], [2.0, 3.0, 5.0, 9.0])
    assert values == {"pairs": 3, "pearson_r": pytest.approx(1.0), "low": None, "high": None, "mean_difference": -1.0}
    assert agreement([], [])["mean_difference"] is None
