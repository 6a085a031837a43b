import math

import numpy as np
import pytest
import scipy.stats

from genval.report.resampling import draw_images, draw_models, interval, wilson_interval


def test_images_of_one_source_come_and_go_together():
    sources = {"clear": ["a", "b", "c"], "generated": ["c", "a", "a"], "true": ["x", "y"]}
    weights = draw_images(sources, draws=50, seed=0)
    assert {name: w.shape for name, w in weights.items()} == {"clear": (50, 3), "generated": (50, 3), "true": (50, 2)}
    np.testing.assert_array_equal(weights["generated"], weights["clear"][:, [2, 0, 0]])
    total = weights["clear"].sum(1) + weights["true"].sum(1)
    assert (total == 5).all()  # as many sources as there are
    assert weights["clear"].std() > 0


def test_draws_repeat_with_their_seed():
    np.testing.assert_array_equal(draw_models(7, 20, seed=3), draw_models(7, 20, seed=3))
    assert draw_models(7, 20, seed=3).max() <= 6
    assert (draw_models(7, 20, seed=3) != draw_models(7, 20, seed=4)).any()


def test_an_interval_needs_nine_tenths_of_its_draws():
    values = np.arange(100.0)
    values[:10] = math.nan
    assert interval(values) is not None
    values[10] = math.nan
    assert interval(values) is None


@pytest.mark.parametrize(("successes", "trials"), [(0, 5), (5, 5), (29, 40)])
def test_the_interval_of_a_share_is_that_of_scipy(successes, trials):
    expected = scipy.stats.binomtest(successes, trials).proportion_ci(method="wilson")
    assert wilson_interval(successes, trials) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_no_trial_has_no_share():
    assert all(math.isnan(end) for end in wilson_interval(0, 0))
