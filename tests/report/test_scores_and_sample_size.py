import numpy as np
import pytest

from genval.metrics import segmentation
from genval.metrics.calibration import binned_ece
from genval.report.sample_size import sample_size_curve, sizes
from genval.report.scores import class_iou, ece, mean_iou, weigh

CLASSES = (0, 1, 3)


@pytest.fixture
def matrices():
    """Of 12 images and 5 models, (12, 5, 4, 4); all models see the same labels."""
    generator = np.random.default_rng(0)
    labelled = generator.integers(100, 1000, (12, 1, 4))
    right = (labelled * np.linspace(0.3, 0.9, 5)[None, :, None]).astype(int) - generator.integers(0, 30, (12, 5, 4))
    matrix = np.zeros((12, 5, 4, 4), np.int64)
    for index in range(4):
        matrix[..., index, index] = right[..., index]
        matrix[..., index, (index + 1) % 4] = labelled[..., index] - right[..., index]
    return matrix


def counts_of(matrices):
    parts = [np.diagonal(matrices, axis1=-2, axis2=-1), matrices.sum(-1), matrices.sum(-2)]
    return np.stack(parts, -2).astype(np.float64)


def test_a_drawn_set_has_the_scores_of_its_images_together(matrices):
    counts = counts_of(matrices)
    weights = np.random.default_rng(1).multinomial(12, np.full(12, 1 / 12), 7).astype(float)
    drawn = mean_iou(weigh(counts, weights), CLASSES)
    for draw in range(7):
        for model in range(5):
            pooled = np.tensordot(weights[draw].astype(int), matrices[:, model], 1)
            assert drawn[draw, model] == pytest.approx(100 * segmentation.mean_iou(pooled, CLASSES))


def test_a_class_missing_in_a_draw_is_left_out_and_not_zero(matrices):
    matrix = matrices[:, 0].sum(0)
    matrix[0, :] = 0  # no label, but predicted
    assert matrix[:, 0].sum() > 0
    counts = counts_of(matrix)
    assert np.isnan(class_iou(counts)[0])
    expected = 100 * np.mean([segmentation.iou_per_class(matrix)[index] for index in (1, 3)])
    assert mean_iou(counts, CLASSES) == pytest.approx(expected)
    assert np.isnan(mean_iou(np.zeros((3, 4)), CLASSES))


def test_ece_is_that_of_the_bins():
    right, pixels, confidence = np.array([1.0, 3.0]), np.array([2.0, 4.0]), np.array([1.0, 3.8])
    assert ece(np.stack([right, pixels, confidence])) == pytest.approx(100 * binned_ece(right, pixels, confidence))


def test_sizes_double_up_to_all():
    assert sizes(512) == [8, 16, 32, 64, 128, 256, 512]
    assert sizes(3) == [3]


def curve_of(counts, reference, **settings):
    return sample_size_curve(counts, lambda sums: mean_iou(sums, CLASSES), reference, draws=200, seed=0, **settings)


def test_models_far_apart_are_settled_at_once_and_equal_ones_never(matrices):
    counts = counts_of(np.repeat(matrices, 6, 0))
    true = mean_iou(counts.sum(0), CLASSES)
    curve = curve_of(counts, true)
    assert curve.images == [8, 16, 32, 64, 72] and curve.total == 72
    assert curve.settles_ranking == 8 and curve.settles_choice == 8
    noise = np.random.default_rng(3).integers(-30, 30, counts.shape)
    equal = counts[:, [2] * 5] + noise * np.array([1, 0, 0])[None, None, :, None]
    assert curve_of(equal, true).settles_ranking is None
    assert curve_of(equal, true).settles_choice is None
    assert curve_of(equal, true, settled_regret=100.0).settles_choice == 8


def test_more_images_narrow_the_interval(matrices):
    generator = np.random.default_rng(4)
    counts = counts_of(np.repeat(matrices, 20, 0))
    counts[:, :, 0] *= generator.uniform(0.5, 1, counts[:, :, 0].shape)
    true = mean_iou(counts.sum(0), CLASSES)
    widths = [point.width for point in curve_of(counts, true).pearson]
    assert widths[0] > 2 * widths[-1] > 0
