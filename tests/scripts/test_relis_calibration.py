"""The calibration scripts of relis/, from logits to temperatures tested on another set."""

import json
import shutil

import numpy as np
import pytest
from relis_world import CITYSCAPES_NAMES, FakeSegmenter, fake_segmenters

from genval.artifacts.tensors import PackedTensors, packed_ids, write_part
from genval.datasets.reading import read_image
from genval.metrics.temperature import GRID, Pixels, ece_at


class FeatureSegmenter(FakeSegmenter):
    """Overconfident, with a backbone whose feature map holds an image's mean colours."""

    def __init__(self, name, wrong):
        import torch

        super().__init__(name, wrong)
        self.backbone = torch.nn.AvgPool2d(4)

    def forward(self, images, size=None):
        self.backbone(images.float())
        noise = images[:, 2:].float() / 256
        return super().forward(images, size) * (3 + 6 * noise)


@pytest.fixture
def relis(relis, monkeypatch):
    module = fake_segmenters()
    module.load_segmenter = lambda name, device, *_, **__: FeatureSegmenter(name, 0.4).to(device)
    monkeypatch.setitem(__import__("sys").modules, "genval.segmenters", module)
    return relis


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    return tmp_path_factory.mktemp("saved") / "results"


@pytest.fixture
def saved(relis, once):
    """The world with its evaluation, which is computed for the first test and copied for the others."""
    if once.exists():
        shutil.copytree(once, relis.results)
    else:
        code, _, err = relis.eval("Cityscapes,Cityscapes_fog,ACDC", "good", "--save", "predictions,logits,features")
        assert code == 0, err
        shutil.copytree(relis.results, once)
    return relis


def extract(relis, script, *flags, dataset="Cityscapes"):
    return relis(
        script, "--trg_dataset", dataset, "--model_arch", "good", "--root_exp_dir", relis.results,
        "--datasets_dir", relis.root / "datasets", "--generated_dir", relis.root / "images",
        "--accelerator", "cpu", "--devices", "1", *flags,
    )  # fmt: skip


def image_of(relis, name):
    return read_image(relis.root / f"datasets/cityscapes/leftImg8bit/val/frankfurt/{name}_leftImg8bit.png")


def test_logits_with_their_labels_and_positions(relis):
    code, out, _ = extract(relis, "extract_logits", "--logit_pixels", "50", "--fp16")
    path = relis.results / "good/Cityscapes/clean/frankfurt/logits.safetensors"
    assert code == 0 and "wrote 2 files" in out
    tensors = PackedTensors(path)
    assert tensors.ids == CITYSCAPES_NAMES["frankfurt"] and tensors.about["pixels"] == 50
    assert not (path.parent / "logits").exists() and not (path.parent / "predictions").exists()
    for name in tensors.ids:
        logits, labels, indices = tensors.read(name, "logits", "labels", "indices")
        image = image_of(relis, name).reshape(-1, 3)
        assert logits.dtype == np.float16 and logits.shape == (50, 19) and len(set(indices.tolist())) == 50
        assert (labels == image[indices, 0]).all()
        wrong = image[indices, 1] < np.float32(256 * 0.4)
        classes = np.minimum(image[indices, 0], 18).astype(int)
        assert (logits.argmax(1) == np.where(wrong, (classes + 1) % 19, classes)).all()
    before = path.read_bytes()
    assert extract(relis, "extract_logits", "--logit_pixels", "50", "--fp16")[0] == 0 and path.read_bytes() == before
    extract(relis, "extract_logits", "--logit_pixels", "-1")
    assert PackedTensors(path).read(name, "logits")[0].shape == (24 * 40, 19)


def test_saved_logits_are_replaced_only_by_more_of_them(relis):
    folder = relis.results / "good/Cityscapes/clean/frankfurt"
    path = folder / "logits.safetensors"

    def save(*flags):
        return relis.eval("Cityscapes", "good", "--save", "predictions,logits", *flags)

    assert save("--logit_pixels", "50")[0] == 0
    before = path.read_bytes()
    for flags in (("--logit_pixels", "20"), ("--logit_pixels", "50", "--fp16")):
        assert save(*flags)[0] == 0 and path.read_bytes() == before
    for flags, said in ((("--seed", "1"), "seed 0 (now 1)"), (("--fp16",), "dtype float32 (now float16)")):
        relis.refused(path, said, "--overwrite", code_out_err=save("--logit_pixels", "60", *flags))
    # The predictions have to be computed again, and with them logits of fewer pixels.
    next((folder / "predictions").iterdir()).unlink()
    relis.refused(path, "pixels 50 (now 20)", "--overwrite", code_out_err=save("--logit_pixels", "20"))
    assert path.read_bytes() == before
    assert relis.eval("Cityscapes", "good", "--sample", "100")[0] == 0 and path.read_bytes() == before
    assert save("--logit_pixels", "60")[0] == 0 and PackedTensors(path).about["pixels"] == 60
    assert save("--logit_pixels", "20", "--overwrite")[0] == 0 and PackedTensors(path).about["pixels"] == 20


def test_logits_of_an_ended_run_with_overwrite_do_not_replace_more_of_them(relis):
    assert relis.eval("Cityscapes", "good", "--save", "logits", "--logit_pixels", "50")[0] == 0
    path = relis.results / "good/Cityscapes/clean/frankfurt/logits.safetensors"
    before, tensors = path.read_bytes(), PackedTensors(path)
    part = path.with_suffix("") / f"{tensors.ids[0]}.safetensors"
    write_part(part, {"logits": np.zeros((20, 19), np.float32)}, tensors.about | {"pixels": 20})
    assert relis.eval("Cityscapes", "good", "--save", "logits", "--logit_pixels", "20")[0] == 0
    assert path.read_bytes() == before and not part.exists()


def test_saved_logits_outlast_a_run_over_more_images(relis):
    path = relis.results / "good/Cityscapes/clean/frankfurt/logits.safetensors"
    assert relis.eval("Cityscapes", "good", "--save", "predictions,logits", "--limit", "2")[0] == 0
    before = path.read_bytes()
    code, said, _ = relis.eval("Cityscapes", "good")
    assert code == 0 and "removed" not in said and path.read_bytes() == before
    relis.refused(path, "of 2 images", "extract_logits", code_out_err=scale(relis, "compute_clusters_temp_scaling"))
    assert extract(relis, "extract_logits")[0] == 0 and len(packed_ids(path)) == 3


def test_logits_of_a_part_leave_the_metrics_of_all_images(relis):
    folder = relis.results / "good/Cityscapes/clean/frankfurt"
    assert relis.eval("Cityscapes", "good")[0] == 0
    before = (folder / "metrics.json").read_bytes()
    for limit in (2, 1):
        assert extract(relis, "extract_logits", "--limit", limit)[0] == 0
        assert (folder / "metrics.json").read_bytes() == before
        assert len(packed_ids(folder / "logits.safetensors")) == 2
    assert extract(relis, "extract_logits")[0] == 0 and len(packed_ids(folder / "logits.safetensors")) == 3
    assert (folder / "metrics.json").read_bytes() == before


def test_logits_of_an_interrupted_run_with_other_flags_are_not_packed(relis):
    assert relis.eval("Cityscapes", "good", "--save", "logits", "--logit_pixels", "50")[0] == 0
    path = relis.results / "good/Cityscapes/clean/frankfurt/logits.safetensors"
    before, tensors = path.read_bytes(), PackedTensors(path)
    name = tensors.ids[0]
    part = path.with_suffix("") / f"{name}.safetensors"
    write_part(part, {"logits": np.zeros((60, 19), np.float32)}, tensors.about | {"pixels": 60})
    assert relis.eval("Cityscapes", "good", "--save", "logits", "--logit_pixels", "50")[0] == 0
    assert path.read_bytes() == before and not part.exists()


def test_features_are_the_backbones_sums_over_space(relis):
    assert extract(relis, "extract_features")[0] == 0
    tensors = PackedTensors(relis.results / "good/Cityscapes/clean/frankfurt/features.safetensors")
    for name in tensors.ids:
        sums = image_of(relis, name).astype(float).sum((0, 1))
        np.testing.assert_allclose(tensors.read(name, "features")[0], sums / sums.max(), rtol=1e-6)
    relis.refused("no backbone", "'neck'", code_out_err=extract(relis, "extract_features", "--layer", "neck"))


def test_one_pass_saves_what_the_single_scripts_save(saved):
    folder = saved.results / "good/Cityscapes/clean/frankfurt"
    files = {name: (folder / f"{name}.safetensors").read_bytes() for name in ("logits", "features")}
    assert (folder / "predictions").exists() and packed_ids(folder / "logits.safetensors")
    metrics = (folder / "metrics.json").read_text()
    assert extract(saved, "extract_logits")[0] == extract(saved, "extract_features")[0] == 0
    assert all((folder / f"{name}.safetensors").read_bytes() == data for name, data in files.items())
    assert (folder / "metrics.json").read_text() == metrics
    (folder / "logits.safetensors").write_bytes(files["logits"][:-9])
    code, out, err = extract(saved, "extract_logits")
    assert code == 0 and "damaged" in out + err
    assert (folder / "logits.safetensors").read_bytes() == files["logits"]


def test_calibration_errors_from_logits_and_from_counts(saved):
    flags = ("--trg_dataset", "ACDC", "--cond", "fog", "--model_arch", "good", "--root_exp_dir", saved.results)
    code, out, _ = saved("eval_calibration", *flags, "--results_dir", saved.root / "a")
    assert code == 0 and "ECE %" in out
    values = json.loads((saved.root / "a/good/ACDC_fog.json").read_text())
    assert (saved.root / "a/good/ACDC_fog_reliability.png").stat().st_size > 5000
    assert saved("eval_calibration", *flags, "--results_dir", saved.root / "b", "--source", "statistics")[0] == 0
    counted = json.loads((saved.root / "b/good/ACDC_fog.json").read_text())
    assert values["images"] == counted["images"] == 4
    for name, tolerance in (("ece", 1e-6), ("nll", 1e-6), ("ks", 1e-3), ("adaptive_ece", 3e-3), ("auroc", 1e-3)):
        assert values[name] == pytest.approx(counted[name], abs=tolerance)
    low, high = values["intervals"]["ece"]
    assert low < high
    assert saved("eval_prr", *flags, "--results_dir", saved.root / "c")[0] == 0
    ranked = json.loads((saved.root / "c/good/ACDC_fog.json").read_text())
    assert ranked["prr_percent"] == pytest.approx(200 * ranked["auroc"] - 100)


def test_images_of_another_set_by_their_mean_confidence(saved):
    flags = ("--in_dataset", "Cityscapes", "--model_arch", "good", "--root_exp_dir", saved.results)
    code, _, err = saved("eval_ood", "--trg_dataset", "ACDC", *flags, "--results_dir", saved.root / "ood")
    assert code == 0, err
    values = json.loads((saved.root / "ood/good/ACDC_all_against_Cityscapes_all.json").read_text())
    means = {}
    for dataset in ("Cityscapes", "ACDC"):
        with_names = [
            PackedTensors(path) for path in sorted(saved.results.glob(f"good/{dataset}/*/*/logits.safetensors"))
        ]
        for tensors in with_names:
            for name in tensors.ids:
                logits, labels = tensors.read(name, "logits", "labels")
                e = np.exp(logits - logits.max(1, keepdims=True))
                means.setdefault(dataset, []).append((1 / e.sum(1))[labels != 255].mean())
    pairs = [(ood < known) + 0.5 * (ood == known) for ood in means["ACDC"] for known in means["Cityscapes"]]
    assert values["confidence"]["auroc"] == pytest.approx(np.mean(pairs), abs=0.03)
    assert values["images"] == 8 and values["in_images"] == 5 and 0 <= values["entropy"]["fpr95"] <= 1
    same = saved("eval_ood", "--trg_dataset", "Cityscapes", *flags, "--results_dir", saved.root / "ood")
    saved.refused("share images", code_out_err=same)


def scale(relis, script, *flags):
    places = ["--root_exp_dir", relis.results, "--calibration_dir", relis.root / "temperatures"]
    if script == "eval_calibration_clustering":
        places += ["--results_dir", relis.root / "scaled"]
    return relis(script, "--model_arch", "good", *places, *flags)


def test_a_vanilla_temperature_is_the_best_of_the_grid_and_helps(saved):
    flags = ("--protocol", "synthetic", "--domains", "fog")
    assert scale(saved, "compute_clusters_temp_scaling", *flags)[0] == 0
    folder = saved.root / "temperatures/good/Cityscapes_fog_all/vanilla_ece/seed0"
    found = json.loads((folder / "best_temperatures.json").read_text())
    tensors = [
        PackedTensors(path) for path in sorted(saved.results.glob("good/Cityscapes_fog/fog/*/logits.safetensors"))
    ]
    pairs = [one.read(name, "logits", "labels") for one in tensors for name in one.ids]
    pixels = Pixels.from_logits(*(np.concatenate(arrays) for arrays in zip(*pairs, strict=True)))
    assert found["temperatures"] == [GRID[np.argmin([ece_at(pixels, float(t))[0] for t in GRID])]]

    code, out, _ = scale(saved, "eval_calibration_clustering", *flags)
    assert code == 0 and "ECE is lower after scaling in 1 of 1" in out
    stem = saved.root / "scaled/good/ACDC_fog/from_Cityscapes_fog_all/vanilla_ece"
    values = json.loads(stem.with_name("vanilla_ece.json").read_text())
    assert values["after_mean"]["ece"] < values["before"]["ece"]
    assert values["after"][0]["miou"] == values["before"]["miou"]
    assert stem.with_name("vanilla_ece_reliability.png").exists()


def test_temperatures_of_the_hardest_images_have_a_folder_of_their_own(saved):
    flags = ("--protocol", "synthetic", "--domains", "fog")
    published = []
    for more in ((), ("--hardest", "1,0.4")):
        assert scale(saved, "compute_clusters_temp_scaling", *flags, *more)[0] == 0
        code, out, err = scale(saved, "eval_calibration_clustering", *flags, *more)
        assert code == 0, err
        files = [path for name in ("temperatures", "scaled") for path in sorted((saved.root / name).rglob("*.*"))]
        published.append({path: path.read_bytes() for path in files if path.is_file() and "_hardest" not in str(path)})
    assert published[0] == published[1] and len(published[0]) == 4
    assert "Cityscapes_fog_all_hardest40" in out and "in 1 of 1 with the hardest 40 % of the images" in out

    folder = saved.root / "temperatures/good/Cityscapes_fog_all_hardest40/vanilla_ece/seed0"
    found = json.loads((folder / "best_temperatures.json").read_text())
    assert (found["images"], found["set"]) == (2, "Cityscapes_fog_all_hardest40")
    tensors = [
        PackedTensors(path) for path in sorted(saved.results.glob("good/Cityscapes_fog/fog/*/logits.safetensors"))
    ]
    pairs = [one.read(name, "logits", "labels") for one in tensors for name in one.ids]
    accuracies = [(logits.argmax(1) == labels)[labels != 255].mean() for logits, labels in pairs]
    hardest = [pairs[place] for place in np.argsort(accuracies)[:2]]
    pixels = Pixels.from_logits(*(np.concatenate(arrays) for arrays in zip(*hardest, strict=True)))
    assert found["temperatures"] == [GRID[np.argmin([ece_at(pixels, float(t))[0] for t in GRID])]]
    assert found["hardest"]["highest_accuracy"] == sorted(accuracies)[1] and found["hardest"]["of_images"] == 5

    tried = saved.root / "scaled/good/ACDC_fog/from_Cityscapes_fog_all_hardest40/vanilla_ece.json"
    values = json.loads(tried.read_text())
    assert (values["calibrated_on"], values["hardest"]) == ("Cityscapes_fog_all_hardest40", 0.4)
    plain = json.loads((saved.root / "scaled/good/ACDC_fog/from_Cityscapes_fog_all/vanilla_ece.json").read_text())
    assert values["before"] == plain["before"] and values["after_mean"] != plain["after_mean"]
    absent = scale(saved, "eval_calibration_clustering", *flags, "--hardest", "0.2")
    saved.refused("No temperatures in", "_hardest20", code_out_err=absent)
    for wrong in ("0", "1.5", "nan", "half", "1,-0.5"):
        refused = scale(saved, "compute_clusters_temp_scaling", *flags, "--hardest", wrong)
        saved.refused("--hardest", "above 0 and at most 1", wrong, code_out_err=refused)


@pytest.mark.slow
@pytest.mark.parametrize("how", [["--n_clusters", "2"], ["--n_clusters", "2", "--cluster_method", "gmm"],
                                 ["--per_class_temperature", "--calib_metric", "nll"],
                                 ["--n_clusters", "2", "--hardest", "0.8"]], ids=" ".join)  # fmt: skip
def test_clusters_classes_seeds_and_soft_assignment(saved, how):
    flags = ("--calib_dataset", "Cityscapes", "--trg_dataset", "ACDC", "--cond", "fog,night", "--seeds", "0,1", *how)
    test = scale(saved, "eval_calibration_clustering", *flags)
    saved.refused("No temperatures in", "compute_clusters_temp_scaling.py", code_out_err=test)
    drawn = () if "2" in how else ("--subsamples", "3")
    calibrate = ("--calib_dataset", "Cityscapes", "--seeds", "0,1", *how)
    assert scale(saved, "compute_clusters_temp_scaling", *calibrate, *drawn)[0] == 0
    for soft in ((), ("--soft",)):
        code, _, err = scale(saved, "eval_calibration_clustering", *flags, *drawn, *soft)
        assert code == 0, err
    source = "Cityscapes_all_hardest80" if "--hardest" in how else "Cityscapes_all"
    files = sorted((saved.root / f"scaled/good/ACDC_fog+night/from_{source}").glob("*.json"))
    assert len(files) == 2
    values = json.loads(files[0].read_text())
    assert len(values["after"]) == 2 and values["after_std_over_seeds"]["ece"] >= 0
    assert values["after_mean"]["ece"] == pytest.approx(np.mean([one["ece"] for one in values["after"]]), abs=1e-6)


def test_missing_inputs_are_named(relis):
    relis.eval()
    flags = ("--protocol", "cityscapes")
    result = scale(relis, "compute_clusters_temp_scaling", *flags)
    relis.refused("scene lindau", "found clean/frankfurt, clean/munster", "--save logits", code_out_err=result)
    result = scale(relis, "compute_clusters_temp_scaling", "--calib_scene", "munster")
    relis.refused("No logits in", "python relis/extract_logits.py", "--scene munster", code_out_err=result)
    relis.refused("No set to test on", code_out_err=scale(relis, "eval_calibration_clustering"))
