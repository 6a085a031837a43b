"""Merged classes: evaluation of a set whose labels merge some of the 19 classes, against plain NumPy."""

import functools
import json
import re

import numpy as np
import pytest
import relis_world
import report_world
import torch

from genval.artifacts.tensors import PackedTensors
from genval.datasets import find_items, label_space_of, read_pair
from genval.metrics.statistics import PixelStatistics
from genval.report.domain_table import compare_domains
from genval.report.settings import DomainTableSettings
from genval.results.scenes import SceneResults, read_statistics
from genval.runtime.files import write_png
from genval.runtime.paths import REPO_ROOT

REAL = REPO_ROOT.parent / "shared/realdata/streets/idd_lite"
# Level 1 of IDD in terms of the 19 classes, in the order of the lowest.
GROUPS = ((0,), (1, 9), (2, 8), (3, 4, 5, 6, 7), (10,), (11, 12), (13, 14, 15, 16, 17, 18))
# The id of each in the masks of IDD-lite.
LABEL_IDS = np.array([0, 1, 5, 4, 6, 2, 3], np.uint8)


class SoftSegmenter(torch.nn.Module):
    """Logits that are a fixed function of the colour, so close that classes merged are often not the largest alone."""

    name = "soft"

    def __init__(self):
        super().__init__()
        weights = torch.randn(19, 3, generator=torch.manual_seed(5)) / 60
        self.register_buffer("weights", weights)

    def forward(self, images, size=None):
        return torch.einsum("kc,bchw->bkhw", self.weights, images.float() - 128)


@pytest.fixture
def merged(relis, monkeypatch):
    """The tiny world with an IDD-lite beside it, and the soft segmenter under every name."""
    generator = np.random.default_rng(3)
    for number in range(4):
        name = f"{number}24541"
        image = generator.integers(0, 256, (24, 40, 3)).astype(np.uint8)
        mask = generator.choice([*range(7), 255], (24, 40)).astype(np.uint8)
        folder = relis.root / "datasets/idd20k_lite"
        write_png(folder / f"leftImg8bit/val/{number % 2}/{name}_image.png", image)
        write_png(folder / f"gtFine/val/{number % 2}/{name}_label.png", mask)
        write_png(folder / f"gtFine/val/{number % 2}/{name}_inst_label.png", mask)
    monkeypatch.setattr(
        relis_world.sys.modules["genval.segmenters"],
        "load_segmenter",
        lambda name, device, *rest, **more: SoftSegmenter(),
    )
    return relis


def reference(image, labels, temperature=1.0):
    """Plain NumPy: merged probabilities, the matrix, and the sums of what is measured, over labelled pixels."""
    weights = SoftSegmenter().weights.double().numpy()
    logits = (image.reshape(-1, 3).astype(np.float64) - 128) @ weights.T / temperature
    odds = np.exp(logits - logits.max(1, keepdims=True))
    probabilities = odds / odds.sum(1, keepdims=True)
    grouped = np.stack([probabilities[:, list(members)].sum(1) for members in GROUPS], 1)
    labels = labels.reshape(-1)
    grouped, labels = grouped[labels != 255], labels[labels != 255]
    prediction = grouped.argmax(1)
    matrix = np.zeros((7, 7), np.int64)
    np.add.at(matrix, (labels, prediction), 1)
    return grouped, labels, prediction, matrix


def metrics_of(pairs):
    """mIoU, ECE, NLL, Brier score, entropy and AUROC of errors of several images, in plain NumPy."""
    grouped, labels, prediction, matrix = (
        np.sum(parts, axis=0) if index == 3 else np.concatenate(parts)
        for index, parts in enumerate(zip(*(reference(*pair) for pair in pairs), strict=True))
    )
    hits = np.diag(matrix)
    union = matrix.sum(0) + matrix.sum(1) - hits
    confidence, right = grouped.max(1), prediction == labels
    bins = np.clip(np.ceil(confidence * 15).astype(int) - 1, 0, 14)
    gaps = [abs(confidence[bins == b].sum() - right[bins == b].sum()) for b in range(15)]
    pairs_above = (confidence[right][:, None] > confidence[~right]).mean()
    return {
        "miou": (hits[union > 0] / union[union > 0]).mean(),
        "ece": sum(gaps) / len(labels),
        "nll": -np.log(grouped[np.arange(len(labels)), labels]).mean(),
        "brier": ((grouped - np.eye(7)[labels]) ** 2).sum(1).mean(),
        "entropy": -(grouped * np.log(grouped)).sum(1).mean(),
        "auroc": pairs_above,
    }


def read_metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_metrics_of_merged_classes_are_those_of_added_probabilities(merged):
    code, _, err = merged.eval("IDD-lite", "soft", "--save", "predictions,logits")
    assert code == 0, err
    items = find_items("IDD-lite", datasets_dir=merged.root / "datasets")
    for scene in ("0", "1"):
        folder = merged.results / f"soft/IDD-lite/india/{scene}"
        pairs = [read_pair(item) for item in items if item.scene == scene]
        metrics = read_metrics(folder)
        for name, value in metrics_of(pairs).items():
            assert metrics[name] == pytest.approx(value, abs=2e-4 if name == "auroc" else 1e-5), name
        assert list(metrics["iou_per_class"]) == list(label_space_of("IDD-lite").names)
        assert "miou_19" not in metrics
        assert (folder / "confusion_matrix.csv").read_text().startswith("label,drivable,non-drivable,far object,")
    item = items[0]
    logits, labels = PackedTensors(merged.results / "soft/IDD-lite/india/0/logits.safetensors").read(
        item.id, "logits", "labels"
    )
    image, train_ids = read_pair(item)
    grouped = reference(image, np.zeros_like(train_ids))[0]
    odds = np.exp(logits.astype(np.float64))
    assert logits.shape == (24 * 40, 7) and (labels == train_ids.reshape(-1)).all()
    assert np.allclose(odds / odds.sum(1, keepdims=True), grouped, atol=1e-6)


def test_some_pixels_have_another_largest_class_after_merging(merged):
    """The rule matters: the group of the largest class is not always the largest group."""
    weights = SoftSegmenter().weights.numpy()
    table = label_space_of("Cityscapes@idd-level1").groups.table
    differs = 0
    for item in find_items("IDD-lite", datasets_dir=merged.root / "datasets"):
        image, _ = read_pair(item)
        alone = table[((image.reshape(-1, 3) - 128.0) @ weights.T).argmax(1)]
        differs += (alone != reference(image, np.zeros(image.shape[:2], np.uint8))[2]).sum()
    assert differs > 100


def test_another_set_is_evaluated_in_the_merged_classes_by_its_name(merged):
    assert merged.eval("Cityscapes,Cityscapes@idd-level1", "soft")[0] == 0
    folders = [merged.results / f"soft/{name}/clean/munster" for name in ("Cityscapes", "Cityscapes@idd-level1")]
    alone, together = map(read_metrics, folders)
    assert len(alone["iou_per_class"]) == 19 and alone["pixels"] == together["pixels"]
    items = find_items("Cityscapes@idd-level1", scene="munster", datasets_dir=merged.root / "datasets")
    for name, value in metrics_of([read_pair(item) for item in items]).items():
        assert together[name] == pytest.approx(value, abs=2e-4 if name == "auroc" else 1e-5), name
    record = json.loads((folders[1] / "manifest.jsonl").read_text().splitlines()[0])
    assert record["class_groups"]["far object"] == ["building", "vegetation"]
    assert "class_groups" not in json.loads((folders[0] / "manifest.jsonl").read_text().splitlines()[0])


def test_results_of_a_changed_file_of_merged_classes_are_computed_again(merged):
    file = merged.root / "level1.json"
    file.write_text(json.dumps({"0": ["road", "sidewalk"]}))
    name = f"Cityscapes@{file}"
    assert merged.eval(name, "soft")[0] == 0
    (path,) = merged.results.glob("soft/Cityscapes_*/clean/munster/metrics.json")
    assert len(json.loads(path.read_text())["iou_per_class"]) == 18
    file.write_text(json.dumps({"0": ["road", "sidewalk", "terrain"]}))
    assert merged.eval(name, "soft")[0] == 0
    assert len(json.loads(path.read_text())["iou_per_class"]) == 17


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the real IDD-lite images in ../shared/realdata/streets/idd_lite")
def test_real_images_of_idd_lite(merged):
    flags = ("--trg_root", REAL, "--limit", "3")
    code, _, err = merged.eval("IDD-lite-flat", "soft", *flags)
    assert code == 0, err
    items = find_items("IDD-lite-flat", root=REAL)
    assert len(items) == 1403
    by_scene = {}
    for item in items[:3]:
        by_scene.setdefault(item.scene, []).append(read_pair(item))
    for scene, pairs in by_scene.items():
        metrics = read_metrics(merged.results / f"soft/IDD-lite-flat/india/{scene}")
        expected = metrics_of(pairs) | {"auroc": metrics["auroc"]}
        for name, value in expected.items():
            assert metrics[name] == pytest.approx(value, abs=1e-4), name


def test_every_script_works_on_merged_classes(merged):
    sets = "IDD-lite,Cityscapes@idd-level1"
    assert merged.eval(sets, "soft", "--save", "logits", "--logit_pixels", "-1")[0] == 0
    common = ("--segmenters", "soft", "--eval_dir", merged.results)
    set_of = (*common, "--trg_dataset", "IDD-lite")
    out_dir = ("--output_dir", merged.root / "out")
    code, _, err = merged("compute_final_metrics", *common, "--trg_dataset", sets, *out_dir)
    assert code == 0, err
    per_class = (merged.root / "out/soft/IDD-lite/all_per_class.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in per_class[1:]] == list(label_space_of("IDD-lite").names)
    merged.refused(
        "IDD-lite has merged classes", "--class_set 19",
        code_out_err=merged("compute_final_metrics", *set_of, "--class_set", "19", *out_dir),
    )  # fmt: skip
    metrics = metrics_of([read_pair(item) for item in find_items("IDD-lite", datasets_dir=merged.root / "datasets")])
    for source in ("logits", "statistics"):
        assert merged("eval_calibration", *set_of, "--source", source, *out_dir)[0] == 0
        values = json.loads((merged.root / "out/soft/IDD-lite_all.json").read_text())
        assert values["ece"] == pytest.approx(metrics["ece"], abs=1e-5)
    assert merged("eval_prr", *set_of, *out_dir)[0] == 0
    assert merged("eval_ood", *set_of, "--in_dataset", "Cityscapes@idd-level1", *out_dir)[0] == 0
    temperatures = (*common, "--calibration_dir", merged.root / "calibration", "--per_class_temperature")
    calibrating = ("--calib_dataset", "Cityscapes@idd-level1")
    code, _, err = merged("compute_clusters_temp_scaling", *temperatures, *calibrating)
    assert code == 0, err
    code, _, err = merged("eval_calibration_clustering", *temperatures, *calibrating, *set_of[-2:], *out_dir)
    assert code == 0, err
    training = (*common, "--calibration_dir", merged.root / "calibration", *calibrating, "--accelerator", "cpu")
    code, _, err = merged("train_lts_network", *training, "--epochs", "1")
    assert code == 0, err
    code, _, err = merged("eval_calibration_lts", *training, *set_of[-2:], *out_dir)
    assert code == 0, err


def test_merged_classes_are_not_compared_with_the_19(merged):
    assert merged.eval("IDD-lite,Cityscapes", "soft", "--save", "logits")[0] == 0
    common = ("--segmenters", "soft", "--eval_dir", merged.results)
    tested = ("--trg_dataset", "IDD-lite", "--output_dir", merged.root / "out")
    said = ("not in the same classes", "7 merged classes", "far object: building, vegetation", "Cityscapes@idd-level1")
    merged.refused(*said, code_out_err=merged("eval_ood", *common, *tested, "--in_dataset", "Cityscapes"))
    temperatures = (*common, "--calibration_dir", merged.root / "calibration", "--calib_dataset", "Cityscapes")
    assert merged("compute_clusters_temp_scaling", *temperatures)[0] == 0
    merged.refused(*said, code_out_err=merged("eval_calibration_clustering", *temperatures, *tested))


LEVEL1 = label_space_of("IDD-lite").groups.to_json()


def write_merged_results(root, monkeypatch):
    """Results of made-up models on the sets of India, in the merged classes of IDD-lite."""
    monkeypatch.setattr(report_world, "CLASSES", len(LEVEL1))
    monkeypatch.setattr(report_world.PixelStatistics, "empty", functools.partial(PixelStatistics.empty, len(LEVEL1)))
    made_by = report_world.made_by
    monkeypatch.setattr(report_world, "made_by", lambda model: {**made_by(model), "class_groups": LEVEL1})
    for model, (clear, other) in report_world.MODELS.items():
        write = functools.partial(report_world.write_set, root, model)
        write("Cityscapes@idd-level1", "clean", report_world.CITY, clear)
        write("Cityscapes_india@idd-level1", "india", [f"india_{name}" for name in report_world.CITY], other - 0.05)
        write("IDD-lite", "india", report_world.TRUE_FOG, other, scene="0")


def test_reports_compare_all_sides_in_the_merged_classes_of_the_reference_set(report):
    with pytest.MonkeyPatch.context() as patched:
        write_merged_results(report.results, patched)
    _, values = report.correlate("--reference_dataset", "IDD-lite", domains="india")
    comparison = values["robustness"]["india"]
    assert {side: one["dataset"] for side, one in comparison["sets"].items() if one} == {
        "true": "IDD-lite",
        "synthetic": "Cityscapes_india@idd-level1",
        "clear": "Cityscapes@idd-level1",
    }
    assert comparison["classes"] == list(LEVEL1) and set(comparison["per_class"]) == set(LEVEL1)
    assert "7 merged classes" in comparison["classes_flag"]
    assert "far object: building, vegetation" in comparison["classes_flag"]
    assert "Cityscapes@idd-level1" in json.dumps(values["missing"])  # temperatures
    assert "fog" not in values["robustness"]
    assert report("tables", "--results_dir", report.root / "report")[0] == 0
    assert "far object" in (report.root / "report/tables/correlation_by_class.md").read_text()
    code, _, err = report("make_report", "--results_dir", report.root / "report", "--root_exp_dir", report.results)
    assert code == 0, err
    assert "7 merged classes" in (report.root / "report/index.html").read_text()


def test_other_merged_classes_under_one_name_are_refused(report):
    with pytest.MonkeyPatch.context() as patched:
        write_merged_results(report.results, patched)
    folder = "*/Cityscapes@idd-level1/clean/*"
    for path in (*report.results.glob(f"{folder}/manifest.jsonl"), *report.results.glob(f"{folder}/statistics/*.json")):
        path.write_text(re.sub(r'"building", ?"vegetation"', '"building"', path.read_text()))
    flags = ("--root_exp_dir", report.results, "--domains", "india", "--reference_dataset", "IDD-lite")
    report.refused("not in the same classes", code_out_err=report("correlate", *flags))


def test_the_table_of_domains_is_in_the_merged_classes_of_the_reference_set(report, monkeypatch):
    with pytest.MonkeyPatch.context() as patched:
        write_merged_results(report.results, patched)
    settings = DomainTableSettings(
        eval_dir=str(report.results), domains=("india",), reference_dataset="IDD-lite", segmenters="alpha,beta"
    )
    monkeypatch.setattr(SceneResults, "read_matrix", read_matrix_of_images)
    table = compare_domains(settings)
    assert table.columns == ["clear", "synthetic india", "true india"] and len(table.classes) == 7
    assert table.to_json()["class_groups"] == LEVEL1
    assert "All sets are evaluated in 7 merged classes (non-drivable: sidewalk, terrain" in table.to_markdown()


def read_matrix_of_images(results):
    return sum(read_statistics(results.statistics(record["id"])) for record in results.records())
