"""Calibration on the hardest images of a set: their choice, and the temperatures found on them."""

from pathlib import Path

import numpy as np
import pytest

from genval.evaluation import calibration as calibrating
from genval.evaluation.calibration import ImageSet, SavedImage, calibrate, hardest_images
from genval.evaluation.settings import CalibrationMethod
from genval.metrics.clusters import fit_clusters
from genval.metrics.temperature import Pixels, search
from genval.results.scenes import SceneResults
from genval.runtime.errors import GenValError
from genval.runtime.seeds import item_seed

PIXELS = 200
VANILLA = CalibrationMethod()


def saved(name, accuracy, margin=3.0, scene="a", pixels=PIXELS):
    """An image predicted right on a fraction of its pixels; the largest logit is about `margin` above the others."""
    generator = np.random.default_rng(item_seed(0, name))
    labels = generator.integers(0, 19, pixels).astype(np.uint8)
    predictions = np.where(np.arange(pixels) < round(accuracy * pixels), labels, (labels + 1) % 19)
    logits = 0.1 * generator.normal(size=(pixels, 19)).astype(np.float32)
    logits[np.arange(pixels), predictions] += margin
    return SavedImage(SceneResults(Path("results"), "model", "Cityscapes_fog", "fog", scene), name, logits, labels)


def unlabelled(name):
    image = saved(name, 0.0)
    image.labels[:] = 255
    return image


def test_the_hardest_images_have_the_lowest_accuracy_and_stay_in_order():
    images = [saved(str(place), accuracy) for place, accuracy in enumerate((0.9, 0.2, 0.6, 0.1, 0.8, 0.7))]
    assert hardest_images(images, 0.5).tolist() == [1, 2, 3]
    assert hardest_images(images, 1.0).tolist() == [0, 1, 2, 3, 4, 5]
    assert hardest_images(images, 0.51).tolist() == [1, 2, 3, 5]  # rounded up
    assert hardest_images(images, 1e-9).tolist() == [3]


def test_of_equally_hard_images_the_first_are_chosen():
    images = [saved(str(place), 0.5) for place in range(5)]
    assert hardest_images(images, 0.5).tolist() == [0, 1, 2]


@pytest.mark.parametrize("number", [10, 30, 70, 110])
@pytest.mark.parametrize("tenths", range(1, 11))
def test_a_fraction_is_read_as_decimal(number, tenths):
    """In binary, 0.1 of 30 images are more than 3."""
    images = [saved(str(place), 0.5, pixels=1) for place in range(number)]
    assert len(hardest_images(images, tenths / 10)) == tenths * number // 10


def test_images_without_a_labelled_pixel_are_never_chosen():
    images = [unlabelled("a"), saved("b", 0.9), unlabelled("c"), saved("d", 0.2), saved("e", 0.4), saved("f", 0.6)]
    assert hardest_images(images, 0.5).tolist() == [3, 4]
    assert hardest_images(images, 0.99).tolist() == [1, 3, 4, 5]
    images[3].labels[: PIXELS // 2] = 255  # only wrong pixels remain labelled
    assert images[3].accuracy() == 0.0
    with pytest.raises(GenValError, match="No pixel has a label"):
        hardest_images([unlabelled("a")], 0.5)


def test_logits_that_are_not_finite_are_refused_even_in_images_that_are_not_chosen():
    images = [saved("hard", 0.1), saved("easy", 0.9)]
    images[1].logits[0, 3] = np.inf
    with pytest.raises(GenValError, match="found NaN or infinity in easy"):
        calibrate(images, VANILLA, hardest=0.5)


def mixed():
    """Images of equal confidence; half of them have a far lower accuracy and need another temperature."""
    return [saved(f"{place}", 0.85 if place % 2 else 0.4) for place in range(8)]


@pytest.mark.parametrize("metric", ["ece", "nll"])
@pytest.mark.parametrize("per_class", [False, True])
def test_the_hardest_half_has_the_temperature_of_its_own_images(metric, per_class):
    images = mixed()
    method = CalibrationMethod(calib_metric=metric, per_class_temperature=per_class)
    all_images, all_metadata = calibrate(images, method)
    half, metadata = calibrate(images, method, hardest=0.5)
    alone, alone_metadata = calibrate(images[::2], method)
    assert (half.temperatures == alone.temperatures).all()
    assert half.temperatures.mean() > 1.2 * all_images.temperatures.mean()
    assert all_metadata == {"images": 8, "clusters": [{"images": 8, "pixels": 8 * PIXELS}]}
    assert metadata == alone_metadata | {"hardest": {"share": 0.5, "of_images": 8, "highest_accuracy": 0.4}}


def test_one_image_is_its_own_hardest():
    images = [saved("alone", 0.5)]
    calibration, metadata = calibrate(images, VANILLA, hardest=0.01)
    assert metadata["images"] == metadata["hardest"]["of_images"] == 1
    assert calibration.temperatures == calibrate(images, VANILLA)[0].temperatures


def test_the_hardest_of_a_random_choice_are_chosen():
    images = mixed()
    sampled = np.sort(np.random.default_rng(item_seed(3, "subsamples")).choice(8, 5, replace=False))
    hardest = sorted(sampled, key=lambda place: images[place].accuracy())[:3]
    calibration, metadata = calibrate(images, VANILLA, subsamples=5, seed=3, hardest=0.5)
    pixels = Pixels.from_logits(
        *(np.concatenate([getattr(images[i], name) for i in hardest]) for name in ("logits", "labels"))
    )
    assert metadata["images"] == 3 and metadata["hardest"]["of_images"] == 5
    assert calibration.temperatures == [search(pixels, "ece").temperature]


@pytest.mark.parametrize("method", ["kmeans", "gmm"])
def test_clusters_are_those_of_the_hardest_images(method, monkeypatch):
    images = mixed()
    features = np.random.default_rng(0).random((8, 3))
    keys = [(image.scene, image.id) for image in images]
    monkeypatch.setattr(calibrating, "read_features", lambda scenes: (keys, features))
    calibration, metadata = calibrate(images, CalibrationMethod(n_clusters=2, cluster_method=method), hardest=0.5)
    expected = fit_clusters(features[::2], 2, method)
    assert (calibration.clusters.centres == expected.centres).all()
    assert sum(part["images"] for part in metadata["clusters"]) == 4
    for index, temperature in enumerate(calibration.temperatures):
        members = [images[2 * row] for row in np.flatnonzero(expected.assign(features[::2]) == index)]
        pixels = Pixels.from_logits(
            *(np.concatenate([getattr(m, name) for m in members]) for name in ("logits", "labels"))
        )
        assert temperature == search(pixels, "ece").temperature
    with pytest.raises(GenValError, match="2 clusters need as many images, found 1"):
        calibrate(images, CalibrationMethod(n_clusters=2, cluster_method=method), hardest=0.1)


def test_each_fraction_of_a_set_has_its_own_name():
    names = {ImageSet("Cityscapes_fog", hardest=share).name for share in (1.0, 0.5, 0.25, 0.125, 1e-9)}
    assert len(names) == 5 and "Cityscapes_fog_all" in names and "Cityscapes_fog_all_hardest12.5" in names
