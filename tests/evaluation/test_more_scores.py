"""Scores of features and gradients of a real network, with its padding and its resize."""

import numpy as np
import pytest
import torch

from genval.datasets.items import Item
from genval.evaluation.more_scores import MoreScores, fit_known, odin, pixel_features, read_known
from genval.metrics.ood_features import ODIN_STEP, ODIN_TEMPERATURE, odin_score
from genval.runtime.files import write_png
from genval.segmenters import load_segmenter

SIZE = (48, 80)


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    from torchvision import models

    path = tmp_path_factory.mktemp("scores") / "net.pth"
    torch.manual_seed(0)
    network = models.get_model("lraspp_mobilenet_v3_large", weights=None, weights_backbone=None, num_classes=19)
    torch.save(network.state_dict(), path)
    return load_segmenter(f"torchvision:lraspp_mobilenet_v3_large,{path}", "cpu")


@pytest.fixture
def images():
    return torch.randint(0, 256, (2, 3, *SIZE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def known_items(folder):
    items = []
    for index in range(3):
        rng = np.random.default_rng(index)
        image, mask = folder / f"{index}.png", folder / f"{index}_mask.png"
        write_png(image, rng.integers(0, 256, (*SIZE, 3)).astype(np.uint8))
        write_png(mask, np.full(SIZE, 7 if index else 23, np.uint8))
        items.append(Item(str(index), image, mask, "clean", "city"))
    return items


def test_scores_have_the_size_of_the_labels_and_a_finite_value(segmenter, images, tmp_path):
    path, device = tmp_path / "known.safetensors", torch.device("cpu")
    fit_known(segmenter, known_items(tmp_path), device, path, {"name": "a"})
    written = path.stat().st_mtime_ns
    fit_known(segmenter, known_items(tmp_path), device, path, {"name": "a"})
    assert path.stat().st_mtime_ns == written
    known = read_known(path, device)
    assert known["means"].shape[0] == 2  # road and sky
    more = MoreScores(("rba", "mahalanobis", "knn", "odin"), segmenter, known)
    with torch.inference_mode():
        logits = segmenter(images, (96, 160))
        scores = more(images, logits)
    assert scores.shape == (2, 4, 96, 160) and scores.dtype == torch.float32 and scores.isfinite().all()
    assert (scores[:, 1:3] >= 0).all() and (scores[:, 2] <= 2).all()
    assert more.record["scores"] == ["rba", "mahalanobis", "knn", "odin"] and more.record["known"]


def test_features_of_known_images_are_near(segmenter, tmp_path):
    path, device = tmp_path / "known.safetensors", torch.device("cpu")
    items = known_items(tmp_path)
    fit_known(segmenter, items, device, path, {})
    more = MoreScores(("knn",), segmenter, read_known(path, device))
    from genval.datasets import read_pair

    seen = torch.from_numpy(read_pair(items[0])[0]).permute(2, 0, 1)[None]
    grey = torch.full_like(seen, 128)
    distances = [float(more(image, segmenter(image)).mean()) for image in (seen, grey)]
    assert distances[0] < distances[1]


def test_padding_is_cut_from_features(segmenter, images):
    whole = pixel_features(segmenter, images)
    segmenter.size_divisor = 128
    try:
        padded = pixel_features(segmenter, images)
    finally:
        segmenter.size_divisor = 1
    assert padded.shape[1] == whole.shape[1]
    assert padded.shape[-2:] == tuple(round(side * n / m) for side, n, m in zip((8, 8), SIZE, (128, 128), strict=True))


def test_odin_steps_up_the_confidence(segmenter, images):
    pixels = segmenter.prepare(images).requires_grad_(True)
    logits = segmenter.infer(pixels)
    (logits / ODIN_TEMPERATURE).log_softmax(1).amax(1).sum().backward()
    changed = (pixels + ODIN_STEP * pixels.grad.sign()).detach()
    with torch.no_grad():
        expected = odin_score(segmenter.infer(changed))
    with torch.inference_mode():
        found = odin(segmenter, images, SIZE)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)
