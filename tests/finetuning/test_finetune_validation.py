"""Validation in batches: the same metrics as image by image, for images of several sizes."""

import numpy as np
import pytest
import torch

from genval.datasets import Item, read_pair
from genval.datasets.ood_sets import find_ood_items, read_ood_pair
from genval.datasets.reading import DecodedCache
from genval.finetuning import validation
from genval.finetuning.validation import ValidationSet
from genval.kernels.layout import SCORES
from genval.metrics.confusion import confusion_matrix
from genval.metrics.ood_scores import level_metrics, measure_ood
from genval.metrics.segmentation import labelled_classes, mean_iou
from genval.runtime.files import write_png


class Linear(torch.nn.Module):
    """Logits that are linear in the colours of a pixel."""

    name, of_queries = "linear", False

    def forward(self, images, size):
        weights = torch.randn(19, 3, generator=torch.Generator().manual_seed(0))
        return torch.einsum("cd,bdhw->bchw", weights, images.float() / 255)


@pytest.fixture
def sets(tmp_path):
    """Streets and images with objects; the third has another size."""
    generator = np.random.default_rng(0)
    streets = []
    for index, size in enumerate(((16, 32), (16, 32), (8, 16), (16, 32))):
        street = Item(str(index), tmp_path / f"{index}.png", tmp_path / f"{index}_ids.png", "clean", "")
        write_png(street.image, generator.integers(0, 256, (*size, 3)).astype(np.uint8))
        write_png(street.mask, generator.choice(np.array([7, 11, 26], np.uint8), size))
        write_png(tmp_path / f"images/{index}.png", generator.integers(0, 256, (*size, 3)).astype(np.uint8))
        write_png(tmp_path / f"masks/{index}.png", generator.integers(0, 2, size).astype(np.uint8))
        streets.append(street)
    return streets, find_ood_items(f"pair:{tmp_path}/images,{tmp_path}/masks").items


@pytest.mark.parametrize("pixels", [1, 2 * 16 * 32, 1 << 21])
def test_batches_give_the_metrics_of_single_images(sets, monkeypatch, pixels):
    streets, objects = sets
    segmenter, device = Linear(), torch.device("cpu")
    matrix, levels = np.zeros((19, 19), np.int64), 0
    for street in streets:
        image, train_ids = read_pair(street)
        logits = segmenter(torch.from_numpy(image).permute(2, 0, 1)[None], None)
        matrix += confusion_matrix(train_ids, logits[0].argmax(0).numpy().astype(np.uint8))
    for item in objects:
        image, kinds = read_ood_pair(item)
        logits = segmenter(torch.from_numpy(image).permute(2, 0, 1)[None], None)[0]
        levels = levels + measure_ood(logits, torch.from_numpy(kinds))[0].levels[SCORES.index("energy")]
    monkeypatch.setattr(validation, "_PIXELS", pixels)
    data = ValidationSet(streets, objects, "energy", DecodedCache(1 << 20), 2)
    for step in (0, 1):  # decoded, then from memory
        found = data.measure(segmenter, device, step)
        assert found["miou"] == pytest.approx(mean_iou(matrix, labelled_classes([matrix])))
        assert found["aupr_object"] == pytest.approx(level_metrics(levels)["aupr_object"])
