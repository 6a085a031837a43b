"""benchmarks/mini_world.py: its parts, on a generator that reconstructs every image exactly."""

import runpy
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from genval.datasets import Item
from genval.datasets.labels import CITYSCAPES
from genval.runtime.files import write_png
from genval.runtime.paths import REPO_ROOT


@pytest.fixture(scope="module")
def benchmark():
    return SimpleNamespace(**runpy.run_path(str(REPO_ROOT / "benchmarks/mini_world.py")))


@pytest.fixture
def base():
    return SimpleNamespace(encode_images=lambda images: images / 127.5 - 1, decode_latents=lambda latents: latents)


def test_bands_are_what_they_say(benchmark):
    image = np.zeros((64, 128, 3), np.uint8)
    image[:16] = (51, 102, 255)  # the first of four bands, a uniform blue sky
    image[48:, ::8] = 255  # the last: stripes
    features = benchmark.band_statistics(image[None])[0]
    means, deviations, saturation, edges = np.split(features, [12, 24, 28])
    assert features.shape == (32,)
    assert means[:6] == pytest.approx([0.2, 0.4, 1.0, 0, 0, 0], abs=1e-4) and deviations[:9] == pytest.approx(
        0, abs=1e-4
    )
    assert (
        saturation == pytest.approx([0.8, 0, 0, 0], abs=1e-4)
        and edges[:3] == pytest.approx(0, abs=1e-4)
        and edges[3] > 0.1
    )


def test_reconstruction_goes_there_and_back(benchmark, base):
    images = np.random.default_rng(0).integers(256, size=(5, 8, 16, 3), dtype=np.uint8)
    assert (benchmark.reconstruct(base, images, batch_size=2) == images).all()


def test_the_weather_is_learned(benchmark, base):
    rng = np.random.default_rng(0)

    def flat_images(level, count):
        return rng.integers(level, level + 80, size=(count, 32, 64, 3)).astype(np.uint8)

    classifier = benchmark.fit_weather(base, {"clear": flat_images(150, 8), "night": flat_images(0, 8)})
    assert (classifier.predict(benchmark.band_statistics(flat_images(160, 4))) == "clear").all()
    assert (classifier.predict(benchmark.band_statistics(flat_images(5, 4))) == "night").all()


def test_masks_are_pooled_before_the_mean(benchmark, tmp_path):
    masks = np.full((3, 8, 16), 7, np.uint8)  # road
    masks[1:, :, 8:] = 26  # car
    items = []
    for number, mask in enumerate(masks):
        write_png(tmp_path / f"{number}.png", mask)
        write_png(tmp_path / f"{number}_image.png", np.zeros((8, 16, 3), np.uint8))
        items.append(Item(str(number), tmp_path / f"{number}_image.png", tmp_path / f"{number}.png", "clear", "a"))

    class AllRoad:
        name, mean = "all road", torch.zeros(1)

        def __call__(self, images, size):
            return (
                torch.nn.functional.one_hot(torch.zeros(len(images), *size, dtype=torch.long), 19)
                .movedim(-1, 1)
                .float()
            )

    values = benchmark.mask_scores(AllRoad(), np.zeros((3, 8, 16, 3), np.uint8), items, batch_size=2)
    road = np.mean([CITYSCAPES.to_train_ids(mask) == 0 for mask in masks])
    assert values == pytest.approx({"miou": road / 2, "pixel_accuracy_percent": 100 * road})
