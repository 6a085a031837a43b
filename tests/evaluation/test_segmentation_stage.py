"""`evaluate_all` with a loaded segmenter: the batches that it sees, and bad pairs."""

import threading

import numpy as np
import pytest
import torch

from genval.evaluation import segmentation
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


def test_every_segmenter_is_checked_before_the_first_is_run(tmp_path, monkeypatch):
    """The second has 20 outputs: nothing of the first is written."""
    root = tmp_path / "datasets/cityscapes"
    for number in range(2):
        name = f"a/a_{number:06d}_000000"
        image = np.random.default_rng(number).integers(0, 256, (16, 24, 3)).astype(np.uint8)
        write_png(root / f"leftImg8bit/val/{name}_leftImg8bit.png", image)
        write_png(root / f"gtFine/val/{name}_gtFine_labelIds.png", np.full((16, 24), 7, np.uint8))
    (root / "leftImg8bit/val/a/a_000000_000000_leftImg8bit.png").write_bytes(b"bad: the next one is used")
    (tmp_path / "checked_factories.py").write_text(
        "import torch\n"
        "sizes = []\n"
        "def make(classes):\n"
        "    def segment(images):\n"
        "        sizes.append(tuple(images.shape))\n"
        "        return torch.einsum('bchw,nc->bnhw', images.float() - 99, torch.randn(classes, 3))\n"
        "    return segment\n"
        "def good(device):\n    return make(19)\n"
        "def also_good(device):\n    return make(19)\n"
        "def twenty(device):\n    return make(20)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    flags = {
        "trg_dataset": "Cityscapes", "datasets_dir": str(tmp_path / "datasets"), "eval_dir": str(tmp_path / "results"),
        "accelerator": "cpu", "devices": "1", "skip_bad": True, "trust_code": True,
    }  # fmt: skip
    names = "checked_factories:good,checked_factories:twenty"
    with pytest.raises(GenValError, match="checked_factories:twenty has 20 classes, expected 19"):
        evaluate_all(make_settings(EvalScriptSettings, segmenters=names, **flags))
    assert not (tmp_path / "results").exists()
    names = "checked_factories:good,checked_factories:also_good"
    settings = make_settings(EvalScriptSettings, segmenters=names, input_size="8x12", **flags)
    assert settings.model.input_size == (8, 12)
    as_processor = make_settings(EvalScriptSettings, segmenters=names, input_size="processor", **flags)
    assert as_processor.model.input_size == "processor"
    assert [one.images for one in evaluate_all(settings)] == [{"clean": 1}, {"clean": 1}]
    import checked_factories

    assert checked_factories.sizes == [(1, 3, 16, 24), *[(1, 3, 8, 12)] * 3]


def test_segmenters_share_decoded_images(pixels, monkeypatch):
    """One image is decoded once more, for the check of the second segmenter."""
    read, ids = segmentation.read_pair, []

    def counted(item):
        ids.append(item.id)
        return read(item)

    monkeypatch.setattr(segmentation, "read_pair", counted)
    function = "def {}(device):\n    return lambda images: images[:, :1] + 3.0 * torch.arange(19)[:, None, None]\n"
    functions = function.format("one") + function.format("two")
    (pixels / "shared_factories.py").write_text("import torch\n" + functions)
    monkeypatch.syspath_prepend(pixels)
    settings = make_settings(
        EvalScriptSettings, segmenters="shared_factories:one,shared_factories:two", trg_dataset="Cityscapes",
        datasets_dir=str(pixels / "datasets"), eval_dir=str(pixels / "results"), accelerator="cpu", devices="1",
        trust_code=True,
    )  # fmt: skip
    assert [one.images for one in evaluate_all(settings)] == [{"clean": 7}] * 2
    assert len(set(ids)) == 7 and len(ids) == 8


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


def test_a_compiled_segmenter_sees_one_number_of_images(pixels):
    segmenter = Recorder()
    (compiled,) = evaluate(pixels, segmenter, batch_size=4, compile="on", save=("predictions", "logits"))
    assert [shape[0] for shape, _ in segmenter.batches] == [4] * 5
    assert [values for _, values in segmenter.batches[::2]] == [[0, 1, 1, 1], [3, 3, 3, 3], [5, 6, 6, 6]]
    metrics, folder = str(compiled.metrics()), compiled.scenes["clean", "b"].folder
    files = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*") if path.stem != "settings"}
    (plain,) = evaluate(pixels, Recorder(), batch_size=4, overwrite=True, save=("predictions", "logits"))
    assert str(plain.metrics()) == metrics and plain.images == compiled.images == {"clean": 7}
    # Metadata may hold times; the results of each image do not.
    assert sum(path.suffix in (".png", ".safetensors", ".csv") for path in files) == 5
    for path, content in files.items():
        if path.suffix in (".png", ".safetensors", ".csv"):
            assert (folder / path).read_bytes() == content


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


@pytest.mark.parametrize("fault", [GenValError("bad"), KeyboardInterrupt()])
def test_a_failed_run_leaves_no_thread(pixels, monkeypatch, fault):
    """Another process fails after this one has written its images."""

    def fail(*_):
        raise fault

    monkeypatch.setattr(segmentation.EvaluationStage, "finish", fail)
    with pytest.raises(type(fault)):
        evaluate(pixels, Recorder(), batch_size=2)
    assert "summaries" not in [thread.name for thread in threading.enumerate()]
