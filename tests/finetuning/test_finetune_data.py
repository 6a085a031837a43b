"""Batches of a fine-tuning: composition, order, and crops that contain the outlier."""

from dataclasses import replace

import numpy as np
import torch

from genval.datasets.labels import IGNORE
from genval.datasets.reading import DecodedCache
from genval.finetuning.data import FinetuneBatches, FinetuneSampler, augment
from genval.finetuning.outliers import Labelled
from genval.finetuning.run import find_data


def test_a_batch_has_the_given_shares_and_depends_only_on_its_number(settings):
    made = settings(outlier_ratio=0.5)
    data = find_data(made, [])
    first = [FinetuneSampler(data, made).batch(number) for number in range(6)]
    assert [sample.kind for sample in first[0]] == ["street"] * 2 + ["outlier"] * 2
    assert FinetuneSampler(data, made, start=3).__iter__().__next__() == first[3]
    # Each pass has every street once, also over two processes.
    both = [FinetuneSampler(data, made, rank=rank, world_size=2).batch(0) for rank in (0, 1)]
    assert sorted(sample.index for batch in both for sample in batch if sample.kind == "street") == [0, 1, 2, 3]
    assert len({sample.seed for batch in first for sample in batch}) == 24


def test_batches_have_the_size_of_the_crops(settings):
    made = settings()
    data = find_data(made, [])
    batch = next(iter(FinetuneBatches(FinetuneSampler(data, made), data, (48, 96), 1)))
    assert batch["image"].shape == (4, 3, 48, 96) and batch["image"].dtype == torch.uint8
    assert batch["train_ids"].shape == batch["outliers"].shape == (4, 48, 96)
    assert batch["outliers"].dtype == torch.bool and batch["outliers"].flatten(1).any(1).tolist() == [False] * 3 + [
        True
    ]
    assert (batch["train_ids"][batch["outliers"]] == IGNORE).all()


def test_a_crop_shows_image_labels_and_outlier_at_the_same_places():
    train_ids = np.arange(64 * 128).reshape(64, 128) % 19
    outliers = np.zeros((64, 128), bool)
    outliers[60:, 120:] = True
    image = np.stack([train_ids * 10] * 3, 2).astype(np.uint8)
    labelled = Labelled(image, np.where(outliers, 255, 0).astype(np.uint8), outliers)
    shown = 0
    for seed in range(20):
        found = augment(labelled, (32, 48), np.random.default_rng(seed))
        assert found.image.shape == (32, 48, 3)
        shown += found.outliers.any()
        assert (found.train_ids[found.outliers] == IGNORE).all()
    assert shown >= 17  # a single row at the edge may vanish where the image is made smaller
    # An image that is smaller than the crop is surrounded by pixels without a class.
    small = augment(
        Labelled(image[:8, :8], np.zeros((8, 8), np.uint8), np.zeros((8, 8), bool)), (32, 48), np.random.default_rng(0)
    )
    assert 0 < (small.train_ids != IGNORE).sum() <= 12 * 12


def test_images_that_are_kept_in_memory_give_the_same_batches(settings):
    made = settings(outliers="noise", outlier_ratio=0.5, max_steps=8)
    data = find_data(made, [])
    decoded_each_time = replace(data, cache=DecodedCache(0))
    for number in (0, 1, 5, 0):  # the streets are pasted on and read again
        batches = [
            next(iter(FinetuneBatches(FinetuneSampler(one, made, start=number), one, (48, 96), 2)))
            for one in (data, decoded_each_time)
        ]
        for key in ("image", "train_ids", "outliers"):
            torch.testing.assert_close(batches[0][key], batches[1][key], rtol=0, atol=0)
