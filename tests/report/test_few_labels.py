"""Combined estimates from a few labelled images and generated ones."""

import numpy as np
import pytest

from genval.report.few_labels import combine, noise_covariance
from genval.report.scores import Scores
from genval.runtime.errors import GenValError


def sample(generator, truth, images, noise):
    """Scores of labelled images whose noise is half shared by all models."""
    shared = generator.normal(0, noise, (images, 1))
    own = generator.normal(0, noise, (images, len(truth)))
    scores = truth + (shared + own) / np.sqrt(2)
    weights = generator.multinomial(images, np.full(images, 1 / images), 400) / images
    return Scores(scores.mean(0), weights @ scores)


@pytest.mark.parametrize(("deviation", "images"), [(1.0, 8), (5.0, 8), (1.0, 32)])
def test_intervals_cover_and_are_not_wider_than_those_of_the_labelled_images(deviation, images):
    generator = np.random.default_rng(0)
    covered, errors, direct_errors = [], [], []
    for _ in range(120):
        truth = generator.normal(50, 10, 12)
        generated = Scores(20 + 0.7 * truth + generator.normal(0, deviation, 12), None)
        labelled = sample(generator, truth, images, 16)
        found = combine(labelled, generated, images)
        covered.append((found.low <= truth) & (truth <= found.high))
        errors.append(found.value - truth)
        direct_errors.append(labelled.value - truth)
    # Models share noise, so that 1,440 cases are worth a few hundred: two standard errors are 0.02 to 0.03.
    assert 0.92 < np.mean(covered) < 0.99
    assert np.square(errors).mean() < np.square(direct_errors).mean()


def test_generated_images_that_say_nothing_leave_the_labelled_scores():
    generator = np.random.default_rng(1)
    truth = np.linspace(20, 60, 12)
    labelled = sample(generator, truth, 64, 2)
    found = combine(labelled, Scores(generator.normal(0, 1, 12), None), 64)
    assert found.value == pytest.approx(labelled.value, abs=0.2)
    assert found.worth < 1


def test_a_generated_set_on_the_line_is_worth_many_labelled_images():
    generator = np.random.default_rng(2)
    truth = np.linspace(20, 60, 12)
    assert combine(sample(generator, truth, 16, 16), Scores(truth / 2, None), 16).worth > 2 * 16


def test_noise_of_few_images_has_full_rank():
    drawn = np.random.default_rng(0).multinomial(4, np.full(4, 0.25), 500) @ np.random.default_rng(1).normal(
        size=(4, 12)
    )
    assert np.linalg.matrix_rank(noise_covariance(drawn, 4)) == 12


def test_too_few_labels_are_refused():
    scores = Scores(np.arange(12.0), np.zeros((10, 12)))
    for labelled, images in ((scores, 3), (Scores(np.arange(3.0), np.zeros((10, 3))), 8)):
        with pytest.raises(GenValError, match="needs 4 segmenters and 4 labelled images"):
            combine(labelled, labelled, images)
