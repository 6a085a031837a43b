"""Correlations corrected for noise, against the formulas, and the errors of the intervals by simulation."""

import numpy as np
import pytest

from benchmarks.interval_coverage import Cell, run_cell, share
from genval.metrics.correlation import pearson_interval
from genval.metrics.noisy_correlation import Scores, corrected_correlation, corrected_difference

MODELS, DRAWS = 12, 300


@pytest.fixture
def generator():
    return np.random.default_rng(4)


def correlated(generator, r, models=MODELS):
    x = generator.normal(size=models)
    return x, r * x + np.sqrt(1 - r * r) * generator.normal(size=models)


def noisy(generator, value, spread):
    return Scores(value, value + spread * generator.normal(size=(DRAWS, len(value))))


def test_without_noise_the_interval_is_fishers(generator):
    x, y = correlated(generator, 0.8)
    found = corrected_correlation(Scores(x, None), Scores(y, None))
    r = np.corrcoef(x, y)[0, 1]
    assert found.value == pytest.approx(r)
    assert [found.low, found.high] == pytest.approx(pearson_interval(r, MODELS), abs=0.04)


def test_the_correction_is_that_of_a_plain_loop(generator):
    x, y = (noisy(generator, value, 0.4) for value in correlated(generator, 0.8))
    noise = np.mean(
        [[np.var(side.drawn[draw] - side.drawn.mean(0), ddof=1) for side in (x, y)] for draw in range(DRAWS)], axis=0
    )
    noise *= DRAWS / (DRAWS - 1)
    covariance = np.cov(x.value, y.value)
    shared = np.mean(
        [np.cov(x.drawn[draw] - x.drawn.mean(0), y.drawn[draw] - y.drawn.mean(0))[0, 1] for draw in range(DRAWS)]
    )
    expected = (covariance[0, 1] - shared * DRAWS / (DRAWS - 1)) / np.sqrt(np.prod(np.diag(covariance) - noise))
    found = corrected_correlation(x, y)
    assert found.value == pytest.approx(expected)
    assert found.value > np.corrcoef(x.value, y.value)[0, 1]
    assert found.low < found.value < found.high <= 1


def test_few_images_make_the_noise_larger_and_less_certain(generator):
    x, y = (noisy(generator, value, 0.4) for value in correlated(generator, 0.8))
    few_x, few_y = (Scores(side.value, side.drawn, 8) for side in (x, y))
    many, few = corrected_correlation(x, y), corrected_correlation(few_x, few_y)
    assert few.value > many.value and few.low < many.low + 0.02


def test_noise_that_all_models_share_cancels(generator):
    x, y = (noisy(generator, value, 0.3) for value in correlated(generator, 0.8))
    shared = Scores(x.value, x.drawn + 20 * generator.normal(size=(DRAWS, 1)))
    a, b = corrected_correlation(x, y), corrected_correlation(shared, y)
    assert [b.value, b.low, b.high] == pytest.approx([a.value, a.low, a.high])


def test_noise_that_both_sides_share_is_no_agreement(generator):
    """Two sides measured on the same streets agree in their noise; that is not a correlation of the models."""
    noise = 0.7 * generator.normal(size=(DRAWS, MODELS))
    observed = 0.7 * generator.normal(size=MODELS)
    x, y = (Scores(value + observed, value + observed + noise) for value in correlated(generator, 0.0))
    assert corrected_correlation(x, y).value < np.corrcoef(x.value, y.value)[0, 1] - 0.1


def test_noise_that_explains_everything_leaves_everything_open(generator):
    x, y = correlated(generator, 0.9)
    found = corrected_correlation(noisy(generator, x, 3.0), Scores(y, None))
    assert np.isnan(found.value) and (found.low, found.high, found.share_above) == (-1, 1, 0.5)
    difference = corrected_difference(noisy(generator, x, 3.0), Scores(x, None), Scores(y, None))
    assert np.isnan(difference.value) and difference.low < -1.9 and difference.high < 0.5


def test_the_difference_is_that_of_two_correlations(generator):
    x, y = (noisy(generator, value, 0.2) for value in correlated(generator, 0.95))
    poor = noisy(generator, generator.normal(size=MODELS), 0.2)
    found = corrected_difference(x, poor, y)
    assert found.value == pytest.approx(corrected_correlation(x, y).value - corrected_correlation(poor, y).value)
    assert 0 < found.low < found.value < found.high and found.share_above > 0.97
    swapped = corrected_difference(poor, x, y)
    assert [swapped.low, swapped.high] == pytest.approx([-found.high, -found.low], abs=0.02)
    same = corrected_difference(x, x, y)
    assert abs(same.low) < 0.01 and abs(same.high) < 0.01


def test_draws_that_are_not_defined_are_left_out(generator):
    x, y = (noisy(generator, value, 0.3) for value in correlated(generator, 0.8))
    drawn = np.concatenate([x.drawn, np.full((10, MODELS), np.nan)])
    padded = Scores(y.value, np.concatenate([y.drawn, y.drawn[:10]]))
    a, b = corrected_correlation(x, y), corrected_correlation(Scores(x.value, drawn), padded)
    assert b.value == pytest.approx(a.value, abs=0.01)


@pytest.mark.parametrize(("models", "images", "noise", "r"), [(40, 16, 1.0, 0.95), (40, 16, 1.6, 0.85), (12, 16, 0, 0)])
def test_the_interval_covers_the_truth_as_often_as_it_says(models, images, noise, r):
    """The percentile interval over models and images covers it in 11 % of the studies of the first kind."""
    studies = run_cell(Cell(models, images, (noise, noise), (r,)), "normal", 200, 200, (1,))
    covered = np.mean([study["low"] <= r <= study["high"] for study in studies])
    assert 0.90 < covered < 0.99


def test_noisier_scores_in_clear_weather_do_not_make_generated_images_better():
    """With percentiles of the difference, generated images win in 24 % of these studies."""
    noise = tuple(8 * spread for spread in (0.08, 0.1, 0.325))
    studies = run_cell(Cell(40, 64, noise, (0.9, 0.9), 0.9), "normal", 300, 200, (2,))
    assert share(studies, "beats", "yes") < 0.06


@pytest.mark.parametrize("models", [4, 12])
def test_yes_is_rarely_said_of_an_r_of_one_half(models):
    studies = run_cell(Cell(models, 64, (0.5, 0.5, 0.5), (0.5, 0.0), 0.3), "normal", 300, 200, (3,))
    assert share(studies, "trust", "yes") + share(studies, "trust", "better") < 0.06
    assert share(studies, "trust", "few") == (models == 4)
