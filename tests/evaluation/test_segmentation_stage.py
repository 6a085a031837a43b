"""`evaluate_all` with a loaded segmenter: the batches that it sees, and bad pairs."""

import numpy as np
import pytest
import torch

from genval.evaluation.segmentation import evaluate_all
from genval.evaluation.settings import EvalScriptSettings
from genval.runtime.errors import GenValError
from genval.runtime.files import read_jsonl, write_png
from genval.runtime.flags import make_settings


class Recorder(torch.nn.Module):
    """Predicts road everywhere, and records the batches that it sees."""

    def __init__(self):
        super().__init__()
        self.name = "recorder"
        self.register_buffer("weights", torch.zeros(1))  # a model without weights is evaluated again in every run
        self.batches = []

    def forward(self, images, size=None):
        self.batches.append((tuple(images.shape), images.amax((1, 2, 3)).tolist()))
        logits = torch.zeros(len(images), 19, *size)
        logits[:, 0] = 1
        return logits


@pytest.fixture
def pixels(tmp_path):
    """Seven images of two cities, whose values are their numbers; the third one is higher than the others."""
    names = [f"a_{number:06d}_000000" for number in range(5)] + [f"b_{number:06d}_000000" for number in range(2)]
    for number, name in enumerate(names):
        city, height = name[0], 12 if number == 2 else 8
        root = tmp_path / "datasets/cityscapes"
        write_png(root / f"leftImg8bit/val/{city}/{name}_leftImg8bit.png", np.full((height, 6, 3), number, np.uint8))
        write_png(root / f"gtFine/val/{city}/{name}_gtFine_labelIds.png", np.full((height, 6), 7, np.uint8))
    return tmp_path


def evaluate(root, segmenter, **flags):
    settings = make_settings(
        EvalScriptSettings, segmenters="mine", trg_dataset="Cityscapes", datasets_dir=str(root / "datasets"),
        eval_dir=str(root / "results"), accelerator="cpu", devices="1", num_workers=3, **flags,
    )  # fmt: skip
    return evaluate_all(settings, segmenter)


def test_batches_hold_one_size_and_one_scene_in_order(pixels):
    segmenter = Recorder()
    (evaluated,) = evaluate(pixels, segmenter, batch_size=4)
    assert [shape[0] for shape, _ in segmenter.batches] == [2, 1, 1, 1, 2]
    assert segmenter.batches[1][0] == (1, 3, 12, 6)
    assert [value for _, values in segmenter.batches for value in values] == list(range(7))
    assert (evaluated.model, evaluated.dataset, evaluated.images) == ("mine", "Cityscapes", {"clean": 7})
    assert evaluated.metrics()["miou"] == 1.0 and evaluated.metrics("clean")["pixel_accuracy"] == 100.0
    again = Recorder()
    resumed = evaluate(pixels, again, batch_size=4)[0].metrics()
    assert str(resumed) == str(evaluated.metrics()) and not again.batches  # as text: some are NaN


def test_the_precision_of_a_loaded_segmenter_is_recorded(pixels):
    segmenter = Recorder()
    segmenter.precision = "bf16-true"
    (evaluated,) = evaluate(pixels, segmenter)
    records = list(read_jsonl(evaluated.scenes["clean", "b"].folder / "manifest.jsonl"))
    assert [record["precision"] for record in records] == ["bf16-true"] * 2


def test_a_bad_pair_stops_the_run_or_is_skipped(pixels):
    bad = pixels / "datasets/cityscapes/leftImg8bit/val/a/a_000001_000000_leftImg8bit.png"
    bad.write_bytes(bad.read_bytes()[:-30])
    mask = pixels / "datasets/cityscapes/gtFine/val/a/a_000003_000000_gtFine_labelIds.png"
    write_png(mask, np.zeros((9, 6), np.uint8))
    with pytest.raises(GenValError, match=r"a_000001_000000_leftImg8bit\.png cannot be decoded"):
        evaluate(pixels, Recorder(), batch_size=2)
    (evaluated,) = evaluate(pixels, Recorder(), batch_size=2, skip_bad=True)
    assert (evaluated.images, evaluated.skipped) == ({"clean": 5}, {"clean": 2})
    metrics = evaluated.scenes["clean", "a"].metrics.read_text()
    assert "a_000001_000000" in metrics and "found 6x8 and 6x9 pixels" in metrics
