"""Local temperatures from saved logits to metrics, and unknown classes inside an image."""

import json
import sys

import numpy as np
import pytest
import torch
from relis_world import FakeSegmenter, fake_segmenters
from sklearn.metrics import roc_auc_score

from genval.artifacts.tensors import PackedTensors, read_about
from genval.datasets.labels import IDD, IDD_UNKNOWN
from genval.datasets.reading import read_mask
from genval.evaluation import local_temperature as local_scaling
from genval.runtime.files import write_png

LOCAL = ("--model_arch", "good", "--calib_scene", "munster")


class OverconfidentSegmenter(FakeSegmenter):
    """As confident where the image's green says that it is wrong as elsewhere; the blue changes it a little."""

    def forward(self, images, size=None):
        return super().forward(images, size) * (7 + images[:, 2:].float() / 128)


@pytest.fixture
def relis(relis, monkeypatch):
    module = fake_segmenters()
    module.load_segmenter = lambda name, device, *_, **__: OverconfidentSegmenter(name, 0.3).to(device)
    monkeypatch.setitem(sys.modules, "genval.segmenters", module)
    return relis


@pytest.fixture
def saved(relis):
    code, _, err = relis.eval("Cityscapes", "good", "--save", "logits", "--logit_pixels", "-1")
    assert code == 0, err
    return relis


def train(relis, *flags):
    places = ("--root_exp_dir", relis.results, "--calibration_dir", relis.root / "temperatures")
    short = ("--epochs", "12", "--crop_size", "20", "--lr", "0.05", "--batch_size", "1")
    return relis("train_lts_network", *LOCAL, *places, *short, "--accelerator", "cpu", "--devices", "1", *flags)


def network_file(relis, method="local"):
    return relis.root / f"temperatures/good/Cityscapes_all_munster/{method}/seed0/local_temperature.safetensors"


@pytest.mark.slow
def test_a_network_is_trained_and_beats_the_single_temperature_on_other_images(saved):
    code, out, err = train(saved)
    assert code == 0, err
    assert "Cityscapes_all_munster" in out
    about = read_about(network_file(saved))
    assert about["nll"]["local"] < about["nll"]["single"] < about["nll"]["unscaled"]
    assert not network_file(saved).with_name("training_state.safetensors").exists()
    places = ("--root_exp_dir", saved.results, "--calibration_dir", saved.root / "temperatures")
    test = ("--trg_dataset", "Cityscapes", "--scene", "frankfurt", "--results_dir", saved.root / "local")
    code, out, err = saved("eval_calibration_lts", *LOCAL, *places, *test)
    assert code == 0, err
    assert "lower NLL in 1 of 1" in out
    folder = saved.root / "local/good/Cityscapes_all_frankfurt/from_Cityscapes_all_munster"
    values = json.loads((folder / "local.json").read_text())
    assert values["images"] == 3 and (folder / "local_reliability.png").stat().st_size > 5000
    assert values["local_mean"]["nll"] < values["single"]["nll"]["nll"] < values["unscaled"]["nll"]
    assert values["local_mean"]["ece"] < values["unscaled"]["ece"]
    metrics = json.loads((saved.results / "good/Cityscapes/clean/frankfurt/metrics.json").read_text())
    for name in ("miou", "ece", "nll"):
        assert values["unscaled"][name] == pytest.approx(metrics[name], abs=1e-9)
    assert values["local"][0]["miou"] == metrics["miou"]


def test_training_is_repeatable_and_resumes_where_it_was_interrupted(saved, monkeypatch):
    assert train(saved)[0] == 0
    path = network_file(saved)
    whole, time = path.read_bytes(), path.stat().st_mtime_ns
    assert train(saved)[0] == 0 and path.stat().st_mtime_ns == time
    path.unlink()

    step, steps = local_scaling._step, []

    def interrupted(*args):
        if len(steps) == 15:
            raise KeyboardInterrupt
        steps.append(args[4])
        step(*args)

    with monkeypatch.context() as patch:
        patch.setattr(local_scaling, "_step", interrupted)
        assert train(saved)[0] == 130 and not path.exists()
    resumed = []
    monkeypatch.setattr(local_scaling, "_step", lambda *args: (resumed.append(args[4]), step(*args)))
    assert train(saved)[0] == 0 and path.read_bytes() == whole
    assert resumed[0] == 7 and len(resumed) == 2 * (12 - 7)
    assert train(saved, "--overwrite")[0] == 0 and path.read_bytes() == whole
    assert train(saved, "--epochs", "2")[0] == 0 and path.read_bytes() != whole


def test_a_damaged_state_is_named_and_the_one_before_is_taken(saved, monkeypatch):
    assert train(saved)[0] == 0
    path = network_file(saved)
    whole = path.read_bytes()
    step, steps = local_scaling._step, []

    def interrupted(*args):
        if len(steps) == 15:
            raise KeyboardInterrupt
        steps.append(args[4])
        step(*args)

    state = path.with_name("training_state.safetensors")
    for damaged, first in (((), 7), ((state,), 6), ((state, path.with_name("training_state_before.safetensors")), 0)):
        steps.clear()
        path.unlink()
        with monkeypatch.context() as patch:
            patch.setattr(local_scaling, "_step", interrupted)
            assert train(saved)[0] == 130
        for file in damaged:
            file.write_bytes(file.read_bytes()[:-100])
        resumed = []
        with monkeypatch.context() as patch:
            patch.setattr(local_scaling, "_step", lambda *args: (resumed.append(args[4]), step(*args)))  # noqa: B023
            code, _, err = train(saved)
        assert code == 0 and resumed[0] == first and path.read_bytes() == whole
        assert [f"{file} is damaged" in err for file in damaged] == [True] * len(damaged)
        assert not list(path.parent.glob("training_state*"))
    path.write_bytes(whole[:-1])
    code, _, err = train(saved)
    assert code == 0 and f"{path} is damaged" in err and path.read_bytes() == whole
    code, _, err = train(saved, "--lr", "0.04")
    assert code == 0 and "--lr 0.04 (was 0.05)" in err


def test_missing_inputs_of_local_temperatures_are_refused(relis):
    relis.eval("Cityscapes", "good")
    relis.refused("No logits in", "extract_logits.py", "--logit_pixels -1", code_out_err=train(relis))
    assert relis.eval("Cityscapes", "good", "--save", "logits", "--logit_pixels", "50")[0] == 0
    relis.refused("50 of the 960 pixels", "--logit_pixels -1", code_out_err=train(relis))
    relis.refused("--lr", code_out_err=train(relis, "--lr", "0"))
    places = ("--root_exp_dir", relis.results, "--calibration_dir", relis.root / "temperatures")
    result = relis("eval_calibration_lts", *LOCAL, *places, "--trg_dataset", "Cityscapes")
    relis.refused("No network in", "train_lts_network.py", code_out_err=result)
    relis.refused("No set to test on", code_out_err=relis("eval_calibration_lts", *LOCAL, *places))
    result = relis("eval_calibration_lts", *LOCAL, *places, "--trg_dataset", "Cityscapes", "--accelerator", "tpu")
    relis.refused("--accelerator tpu is not available", code_out_err=result)
    write_png(relis.root / "datasets/cityscapes/leftImg8bit/val/munster/munster_000000_000019_leftImg8bit.png",
              np.zeros((24, 40, 3), np.uint8))  # fmt: skip
    relis.refused("changed after these results", code_out_err=train(relis))


@pytest.fixture
def idd(relis):
    """Two images with autorickshaws, billboards and unlabelled pixels, and one without anything unknown."""
    root = relis.root / "datasets/IDD_Segmentation"
    for number in range(3):
        generator = np.random.default_rng(number)
        ids = np.array([0, 2, 4, 9, 22, 25, *([8, 17, 255, 29] if number < 2 else [])], np.uint8)
        mask = generator.choice(ids, (6, 10)).repeat(4, 0).repeat(4, 1)
        image = generator.integers(0, 256, (24, 40, 3)).astype(np.uint8)
        image[..., 0] = IDD.to_train_ids(mask) % 19
        image[..., 2] = np.where(np.isin(mask, (8, 17)), image[..., 2] // 2, image[..., 2])
        write_png(root / f"leftImg8bit/val/{number}/frame{number}_leftImg8bit.png", image)
        write_png(root / f"gtFine/val/{number}/frame{number}_gtFine_labellevel3Ids.png", mask)
    return relis


def local_ood(relis, *flags):
    return relis("eval_local_ood", "--model_arch", "good", "--root_exp_dir", relis.results,
                 "--results_dir", relis.root / "ood", *flags)  # fmt: skip


def test_unknown_classes_by_their_confidence(idd):
    idd.refused("No results of good", "relis/eval.py", "--save logits", code_out_err=local_ood(idd))
    assert idd.eval("IDD", "good", "--save", "logits", "--logit_pixels", "700")[0] == 0
    code, _, err = local_ood(idd)
    assert code == 0, err
    values = json.loads((idd.root / "ood/good/IDD_all_all.json").read_text())
    assert values["unknown"] == IDD_UNKNOWN and values["images"] == 3 and values["images_with_both"] == 2
    confidences, unknown, per_image = [], [], []
    for path in sorted(idd.results.glob("good/IDD/*/*/logits.safetensors")):
        tensors = PackedTensors(path)
        (name,) = tensors.ids
        logits, indices = tensors.read(name, "logits", "indices")
        mask_file = (
            idd.root / f"datasets/IDD_Segmentation/gtFine/val/{path.parent.name}/{name}_gtFine_labellevel3Ids.png"
        )
        mask = read_mask(mask_file).reshape(-1)[indices]
        counted = (mask != 255) & (mask != 29)
        confidences.append(torch.from_numpy(logits).double().softmax(1).amax(1).numpy()[counted])
        unknown.append(np.isin(mask, (8, 17))[counted])
        if unknown[-1].any():
            per_image.append(roc_auc_score(unknown[-1], -confidences[-1]))
    scores, positive = -np.concatenate(confidences), np.concatenate(unknown)
    assert (values["unknown_pixels"], values["known_pixels"]) == (positive.sum(), (~positive).sum())
    assert values["pooled"]["auroc"] == pytest.approx(roc_auc_score(positive, scores), abs=1e-3)
    assert values["mean_of_images"]["auroc"] == pytest.approx(np.mean(per_image), abs=1e-3)
    threshold = np.sort(scores[positive])[::-1][int(np.ceil(0.95 * positive.sum())) - 1]
    assert values["pooled"]["fpr95"] == pytest.approx((scores[~positive] >= threshold).mean(), abs=0.01)
    assert values["pooled"]["auroc"] > 0.6 and values["pooled"]["aupr"] > positive.mean()
    rows = (idd.root / "ood/good/IDD_all_all_per_image.csv").read_text().splitlines()
    assert rows[0] == "id,auroc,aupr,fpr95" and rows[-1] == "2/frame2,,,"


def test_unknown_classes_by_name(idd):
    assert idd.eval("IDD", "good", "--save", "logits", "--logit_pixels", "-1")[0] == 0
    assert local_ood(idd, "--unknown", "billboard")[0] == 0
    values = json.loads((idd.root / "ood/good/IDD_all_billboard.json").read_text())
    masks = sorted((idd.root / "datasets/IDD_Segmentation/gtFine").rglob("*.png"))
    assert values["unknown_pixels"] == sum(int((read_mask(path) == 17).sum()) for path in masks)
    idd.refused("'cow'", "autorickshaw", code_out_err=local_ood(idd, "--unknown", "cow"))
    idd.refused("found 0 and ", code_out_err=local_ood(idd, "--unknown", "bridge"))
    idd.refused("Only IDD", code_out_err=local_ood(idd, "--trg_dataset", "ACDC"))
    mask = masks[0]
    write_png(mask, np.full((24, 40), 8, np.uint8))
    idd.refused("changed after these results", mask.name, code_out_err=local_ood(idd))
