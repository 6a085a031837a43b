"""Bootstrap intervals from images that come one at a time."""

import itertools
import math

import numpy as np
import pytest

from genval.metrics import ood_pooling
from genval.metrics.bootstrap import percentile_interval
from genval.metrics.ood_pooling import COARSE, PoissonBootstrap, SumBootstrap, coarse_levels, poisson_weights
from genval.metrics.ood_scores import OOD_METRICS, SCORE_LEVELS, ood_metrics

IDS = [f"lion/{number}" for number in range(6)]


def draw_images(number=6, scores=2):
    """Counts (N, S, 2, COARSE) whose object scores higher, by an amount that differs between images, and values."""
    generator = np.random.default_rng(0)
    levels = np.zeros((number, scores, 2, COARSE), np.int64)
    for image, score in itertools.product(range(number), range(scores)):
        for kind, middle in enumerate((1200, 1100 - 40 * image)):
            index = generator.normal(middle, 150, 500).astype(int).clip(0, COARSE - 1)
            levels[image, score, kind] = np.bincount(index, minlength=COARSE)
    values = generator.random((number, 3))
    values[1:2, 2] = np.nan
    return levels, values


@pytest.mark.parametrize("at_a_time", [1, 3, 4, 256])
def test_a_draw_counts_each_image_as_often_as_its_weight(monkeypatch, at_a_time):
    monkeypatch.setattr(ood_pooling, "IMAGES_AT_A_TIME", at_a_time)
    levels, values = draw_images()
    bootstrap = PoissonBootstrap(2, 3, draws=50, seed=7)
    for part in (slice(0, 2), slice(2, 3), slice(3, 6)):
        bootstrap.update(IDS[part], levels[part], values[part])
    intervals, means = bootstrap.intervals()
    weights = np.stack([poisson_weights(name, 50, 7) for name in IDS])
    for score, name in itertools.product(range(2), OOD_METRICS):
        drawn = []
        for draw in weights.T:
            total = sum(count * image for count, image in zip(draw, levels[:, score], strict=True))
            drawn.append(float(ood_metrics(total[None, 0], total[None, 1])[name][0]))
        assert intervals[score][name] == pytest.approx(tuple(np.nanpercentile(drawn, [2.5, 97.5])))
    column = [np.average(values[[0, 2, 3, 4, 5], 2], weights=w) for w in weights[[0, 2, 3, 4, 5]].T if w.any()]
    assert means[2] == pytest.approx(np.percentile(column, [2.5, 97.5]))


def test_the_order_and_grouping_of_images_do_not_matter():
    levels, values = draw_images()
    one, other = PoissonBootstrap(2, 3, 40), PoissonBootstrap(2, 3, 40)
    one.update(IDS, levels, values)
    for index in reversed(range(6)):
        other.update([IDS[index]], levels[index : index + 1], values[index : index + 1])
    assert one.intervals()[0] == other.intervals()[0]
    np.testing.assert_allclose(one.intervals()[1], other.intervals()[1], rtol=1e-12)


def test_weights_are_poisson_numbers_of_mean_one_and_belong_to_the_image():
    weights = poisson_weights("lion/3", 20000, 0)
    assert weights.mean() == pytest.approx(1, abs=0.03) and weights.var() == pytest.approx(1, abs=0.05)
    assert not np.array_equal(weights, poisson_weights("lion/4", 20000, 0))
    assert np.array_equal(weights[:10], poisson_weights("lion/3", 10, 0))


def test_one_image_has_no_interval():
    levels, values = draw_images(1)
    bootstrap = PoissonBootstrap(2, 3, 40)
    bootstrap.update(IDS[:1], levels, values)
    intervals, means = bootstrap.intervals()
    assert all(math.isnan(end) for score in intervals for ends in score.values() for end in ends)
    assert np.isnan(means).all()


def test_coarse_levels_keep_every_pixel_in_order():
    levels = np.random.default_rng(0).integers(0, 5, (2, SCORE_LEVELS))
    coarse = coarse_levels(levels)
    assert coarse.shape == (2, COARSE) and coarse.sum() == levels.sum()
    assert np.array_equal(coarse[:, :2], np.stack([levels[:, :32].sum(1), levels[:, 32:64].sum(1)], 1))


def test_sums_are_drawn_like_counts():
    sums = np.random.default_rng(0).random((6, 2))
    bootstrap = SumBootstrap(60, 1)
    for name, image_sums in zip(IDS, sums, strict=True):
        bootstrap.update(name, image_sums)
    found = bootstrap.intervals(lambda drawn: {"ratio": drawn[..., 0] / drawn[..., 1]})["ratio"]
    drawn = np.stack([poisson_weights(name, 60, 1) for name in IDS], 1) @ sums
    assert found == pytest.approx(tuple(np.percentile(drawn[:, 0] / drawn[:, 1], [2.5, 97.5])))
    assert bootstrap.total == pytest.approx(sums.sum(0))


def test_two_images_have_intervals_and_one_has_none():
    levels, values = draw_images(2)
    bootstrap = PoissonBootstrap(2, 3, draws=6, seed=5)  # in each of these draws is an image
    bootstrap.update(IDS[:1], levels[:1], values[:1])
    assert bootstrap.intervals()[1].shape == (3, 2) and np.isnan(bootstrap.intervals()[1]).all()
    bootstrap.update(IDS[1:2], levels[1:], values[1:])
    intervals, means = bootstrap.intervals(0.5)
    weights = np.stack([poisson_weights(name, 6, 5) for name in IDS[:2]], 1)
    assert means[0] == pytest.approx(np.percentile([np.average(values[:, 0], weights=w) for w in weights], [25, 75]))
    assert all(0 <= ends[0] <= ends[1] <= 1 for score in intervals for ends in score.values())
    assert (PoissonBootstrap(1, 1).draws, SumBootstrap().draws) == (1000, 1000)


def test_the_sum_of_two_images_has_an_interval_and_that_of_one_has_none():
    bootstrap = SumBootstrap(50)
    bootstrap.update("a", np.ones(1))
    assert np.isnan(bootstrap.intervals(lambda drawn: {"sum": drawn[:, 0]})["sum"]).all()
    bootstrap.update("b", np.ones(1))
    low, high = bootstrap.intervals(lambda drawn: {"sum": drawn[:, 0]})["sum"]
    assert bootstrap.images == 2 and low <= 2 <= high


def test_an_interval_needs_a_metric_that_is_defined_in_nine_tenths_of_the_draws():
    values = np.arange(10.0)
    values[9] = np.nan
    assert percentile_interval(values, 0.5) == (2.0, 6.0)
    values[8] = np.nan
    assert np.isnan(percentile_interval(values)).all() and np.isnan(percentile_interval(values[8:])).all()
