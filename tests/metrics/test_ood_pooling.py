"""Intervals from images that come one at a time, and exact figures of sets that do not fit into memory at once."""

import itertools
import math
import os
import resource

import numpy as np
import pytest

from genval.metrics.ood_pooling import COARSE, PoissonBootstrap, SumBootstrap, coarse_levels, poisson_weights
from genval.metrics.ood_scores import FIGURES, LEVELS, figures_of
from genval.results.ood_blocks import PUBLISHED_KEYS, OodResults, has_scores, pool_blocks, pool_scores, write_scores
from genval.runtime.errors import GenValError

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


def test_a_draw_is_a_set_with_each_image_as_often_as_its_weight_says():
    levels, values = draw_images()
    bootstrap = PoissonBootstrap(2, 3, draws=50, seed=7)
    bootstrap.add(IDS[:4], levels[:4], values[:4])
    bootstrap.add(IDS[4:], levels[4:], values[4:])
    intervals, means = bootstrap.intervals()
    weights = np.stack([poisson_weights(name, 50, 7) for name in IDS])
    for score, name in itertools.product(range(2), FIGURES):
        drawn = []
        for draw in weights.T:
            total = sum(count * image for count, image in zip(draw, levels[:, score], strict=True))
            drawn.append(float(figures_of(total[None, 0], total[None, 1])[name][0]))
        assert intervals[score][name] == pytest.approx(tuple(np.nanpercentile(drawn, [2.5, 97.5])))
    column = [np.average(values[[0, 2, 3, 4, 5], 2], weights=w) for w in weights[[0, 2, 3, 4, 5]].T if w.any()]
    assert means[2] == pytest.approx(np.percentile(column, [2.5, 97.5]))


def test_order_and_company_of_images_do_not_matter():
    levels, values = draw_images()
    one, other = PoissonBootstrap(2, 3, 40), PoissonBootstrap(2, 3, 40)
    one.add(IDS, levels, values)
    for index in reversed(range(6)):
        other.add([IDS[index]], levels[index : index + 1], values[index : index + 1])
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
    bootstrap.add(IDS[:1], levels, values)
    intervals, means = bootstrap.intervals()
    assert all(math.isnan(end) for of_score in intervals for ends in of_score.values() for end in ends)
    assert np.isnan(means).all()


def test_coarse_levels_keep_every_pixel_in_order():
    levels = np.random.default_rng(0).integers(0, 5, (2, LEVELS))
    coarse = coarse_levels(levels)
    assert coarse.shape == (2, COARSE) and coarse.sum() == levels.sum()
    assert np.array_equal(coarse[:, :2], np.stack([levels[:, :32].sum(1), levels[:, 32:64].sum(1)], 1))


def test_sums_are_drawn_like_counts():
    sums = np.random.default_rng(0).random((6, 2))
    bootstrap = SumBootstrap(60, 1)
    for name, of_image in zip(IDS, sums, strict=True):
        bootstrap.add(name, of_image)
    found = bootstrap.intervals(lambda drawn: {"ratio": drawn[..., 0] / drawn[..., 1]})["ratio"]
    drawn = np.stack([poisson_weights(name, 60, 1) for name in IDS], 1) @ sums
    assert found == pytest.approx(tuple(np.percentile(drawn[:, 0] / drawn[:, 1], [2.5, 97.5])))
    assert bootstrap.total == pytest.approx(sums.sum(0))


@pytest.mark.parametrize("piece", [16, 500, 1 << 20])
def test_exact_pooled_figures_are_those_of_all_pixels_however_few_are_in_memory(tmp_path, piece):
    from test_ood import sklearn_figures

    generator = np.random.default_rng(0)
    images = []
    for image in range(5):
        # Scores repeat, inside images and across them.
        background, objects = (
            generator.normal(0, 1, 400).round(2),
            generator.normal(0.2 * image, 1, 30 * image).round(2),
        )
        images.append((background.astype(np.float32), objects.astype(np.float32)))
        write_scores(tmp_path / str(image), {"entropy": [np.sort(part) for part in images[-1]]})
        assert has_scores(tmp_path / str(image), ["entropy"])
    scores = np.concatenate([part for image in images for part in image])
    objects = np.concatenate([np.full(len(part), kind, bool) for image in images for kind, part in enumerate(image)])
    found = pool_scores([tmp_path / str(image) for image in range(5)], "entropy", piece)
    assert found == pytest.approx(sklearn_figures(scores, objects), abs=1e-12)


def test_exact_pooled_figures_need_few_open_files(tmp_path):
    folders = [tmp_path / str(image) for image in range(40)]
    for image, folder in enumerate(folders):
        write_scores(folder, {"entropy": [np.arange(4, dtype=np.float32) + kind + image for kind in range(2)]})
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, before[1]))
    try:
        found = pool_scores(folders, "entropy")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert 0.5 < found["auroc"] < 0.6


def test_intervals_of_entropies_are_of_pixels_as_the_entropies_are(tmp_path):
    results = OodResults(tmp_path, "set", "model")
    generator = np.random.default_rng(0)
    sums, pixels = generator.random((6, 2)) * 90, generator.integers(1, 400, (6, 2))
    lines = [
        {
            "made_from": {"id": name},
            "entropy_sums": sums[index].tolist(),
            "pixels": dict(zip(("background", "object", "void"), [*pixels[index].tolist(), 0], strict=True)),
            "figures": {"entropy": dict.fromkeys(PUBLISHED_KEYS.values(), 0.5)},
        }
        for index, name in enumerate(IDS)
    ]
    coarse = draw_images(scores=1)[0]
    results.write_block("0", lines, np.zeros((1, 2, LEVELS), np.int64), coarse)
    found = pool_blocks(results, ["0"], 1, draws=60, seed=1).entropy_intervals
    weights = np.stack([poisson_weights(name, 60, 1) for name in IDS], 1)
    background, of_object = ((weights @ sums) / (weights @ pixels)).T
    assert found["raw_entropy"] == pytest.approx(tuple(np.percentile(of_object, [2.5, 97.5])))
    assert found["rel_entropy"] == pytest.approx(tuple(np.percentile(of_object / background, [2.5, 97.5])))


def test_damaged_scores_are_an_error(tmp_path):
    write_scores(tmp_path, {"entropy": [np.zeros(4, np.float32)] * 2})
    (tmp_path / "entropy_object.npy").write_bytes(b"x")
    with pytest.raises(GenValError, match=r"entropy_object\.npy is missing or damaged"):
        pool_scores([tmp_path], "entropy")
