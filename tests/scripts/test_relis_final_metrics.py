"""relis/compute_final_metrics.py, compare_domains.py and contact_sheet.py on the results of relis/eval.py."""

import csv
import json
import shutil

import numpy as np
import pytest
from relis_world import use_fewer_draws

from genval.datasets.reading import read_image
from genval.metrics.segmentation import mean_iou


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluated") / "results"


@pytest.fixture
def evaluated(relis, once):
    """The world with its evaluation, which is computed for the first test and copied for the others."""
    if once.exists():
        shutil.copytree(once, relis.results)
    else:
        assert relis.eval("Cityscapes,Cityscapes_fog,Cityscapes_night,ACDC", "good,fair,poor")[0] == 0
        shutil.copytree(relis.results, once)
    return relis


def final(relis, *flags, model="good", dataset="ACDC"):
    return relis(
        "compute_final_metrics", "--trg_dataset", dataset, "--model_arch", model,
        "--root_exp_dir", relis.results, "--results_dir", relis.root / "final", *flags,
    )  # fmt: skip


def pooled(relis, dataset, pattern="*/*"):
    files = sorted((relis.results / "good" / dataset).glob(f"{pattern}/statistics/*.json"))
    return len(files), np.sum([json.loads(path.read_text())["confusion_matrix"] for path in files], axis=0)


def rows_of(path):
    return list(csv.DictReader(path.open()))


def test_all_scenes_and_conditions_are_pooled_from_counts(evaluated, monkeypatch):
    use_fewer_draws(monkeypatch, 1000)  # the published number: an interval's width is compared
    assert final(evaluated)[0] == 0
    folder = evaluated.root / "final/good/ACDC"
    assert sorted(path.name for path in folder.iterdir()) == [
        "all.csv", "all.json", "all_per_class.csv", "all_per_image.csv",
    ]  # fmt: skip
    values = json.loads((folder / "all.json").read_text())
    count, matrix = pooled(evaluated, "ACDC")
    assert values["images"] == count == 8 and values["scenes"] == ["fog/GOPR0475", "night/GOPR0351"]
    assert values["miou"] == mean_iou(matrix) and values["pixels"] == matrix.sum()
    assert 0 < values["miou_standard_error"] < 0.1
    low, high = values["intervals"]["miou"]
    assert low < values["miou"] < high and high - low == pytest.approx(4 * values["miou_standard_error"], rel=0.3)
    assert set(values["intervals"]) >= {"ece", "auroc", "nll", "pixel_accuracy_percent", "iou road"}
    assert float(rows_of(folder / "all.csv")[0]["miou"]) == values["miou"]
    assert len(rows_of(folder / "all_per_image.csv")) == 8
    per_class = rows_of(folder / "all_per_class.csv")
    assert [int(row["labelled_pixels"]) for row in per_class] == matrix.sum(1).tolist()


@pytest.mark.parametrize(
    ("flags", "stem", "pattern"),
    [
        (["--cond", "fog"], "fog", "fog/*"),
        (["--cond", "fog,night"], "fog+night", "*/*"),
        (["--cond", "fog,night", "--scene", "GOPR0475,GOPR0351"], "fog+night_GOPR0475+GOPR0351", "*/*"),
        (["--scene", "GOPR0351"], "all_GOPR0351", "night/*"),
    ],
)
def test_conditions_and_scenes_select_and_name_the_file(evaluated, flags, stem, pattern):
    assert final(evaluated, *flags)[0] == 0
    values = json.loads((evaluated.root / f"final/good/ACDC/{stem}.json").read_text())
    count, matrix = pooled(evaluated, "ACDC", pattern)
    assert (values["images"], values["miou"]) == (count, mean_iou(matrix))


def test_one_class_set_for_india(evaluated):
    assert final(evaluated, "--classes", "17", dataset="Cityscapes")[0] == 0
    values = json.loads((evaluated.root / "final/good/Cityscapes/all_17classes.json").read_text())
    _, matrix = pooled(evaluated, "Cityscapes")
    kept = [index for index in range(19) if index not in (9, 16)]
    assert values["miou"] == pytest.approx(mean_iou(matrix, kept)) and values["miou"] != values["miou_19"]
    rows = rows_of(evaluated.root / "final/good/Cityscapes/all_17classes_per_class.csv")
    assert [row["class"] for row in rows if row["in_mean"] == "0"] == ["terrain", "train"]


def test_missing_or_unfinished_results_are_refused_with_the_command(evaluated):
    evaluated.refused(
        "No results of good on ACDC for condition rain", "found fog/GOPR0475, night/GOPR0351", "--cond rain",
        code_out_err=final(evaluated, "--cond", "rain"),
    )  # fmt: skip
    evaluated.refused("No results of nobody", "python relis/eval.py", code_out_err=final(evaluated, model="nobody"))
    evaluated.refused("Did you mean good?", code_out_err=final(evaluated, model="goood"))
    evaluated.refused("Did you mean ACDC?", code_out_err=final(evaluated, "--trg_dataset", "ACDCC"))
    (evaluated.results / "good/ACDC/fog/GOPR0475/metrics.json").unlink()
    evaluated.refused("No finished results", "--scene GOPR0475", code_out_err=final(evaluated))
    assert not (evaluated.root / "final").exists()


def test_damaged_statistics_are_refused(evaluated):
    folder = evaluated.results / "good/ACDC/fog/GOPR0475/statistics"
    counts = next(folder.glob("*.npz"))
    whole = counts.read_bytes()
    for damage in (b"", b"{}", whole[: len(whole) // 2]):
        counts.write_bytes(damage)
        evaluated.refused(counts.name, "is missing or damaged", code_out_err=final(evaluated))
    path = next(folder.glob("*.json"))
    path.write_text("{}")
    evaluated.refused(path.name, "holds no confusion matrix", code_out_err=final(evaluated))


def compare(relis, *flags):
    return relis(
        "compare_domains", "--root_exp_dir", relis.results, "--results_dir", relis.root / "table", "--domains",
        "fog,night", *flags,
    )  # fmt: skip


def test_the_table_of_synthetic_against_true(evaluated):
    code, out, _ = compare(evaluated)
    assert code == 0 and "| segmenter | clear | synthetic fog | true fog | synthetic night | true night |" in out
    folder = evaluated.root / "table"
    assert (folder / "table.md").read_text().strip() in out
    values = json.loads((folder / "table.json").read_text())
    assert list(values["miou_percent"]) == ["fair", "good", "poor"]
    row = values["miou_percent"]["good"]
    _, synthetic = pooled(evaluated, "Cityscapes_fog")
    common = [index for index in range(19) if index != 6]  # the tiny ACDC has no traffic light
    assert "traffic light" not in values["classes"] and len(values["classes"]) == 18
    assert row["synthetic fog"] == pytest.approx(100 * mean_iou(synthetic, common))
    pairs = [
        (values["miou_percent"][m]["synthetic fog"], values["miou_percent"][m]["true fog"])
        for m in ("fair", "good", "poor")
    ]
    found = values["synthetic_against_true"]["fog"]
    assert found["pearson_r"] == pytest.approx(np.corrcoef(*zip(*pairs, strict=True))[0, 1])
    assert found["mean_difference"] == pytest.approx(np.mean([a - b for a, b in pairs]))
    assert [row["model"] for row in rows_of(folder / "table.csv")] == ["fair", "good", "poor"]


def test_the_table_without_a_true_set_and_for_some_models(evaluated):
    shutil.rmtree(evaluated.results / "good/ACDC")
    evaluated.refused("No results of good on ACDC for condition fog", code_out_err=compare(evaluated))
    assert compare(evaluated, "--models", "fair,poor")[0] == 0
    code, out, _ = compare(evaluated, "--true_dataset", "none")
    assert code == 0 and "true fog" not in out and "Pearson" not in out


def test_models_evaluated_on_different_images_are_not_compared(evaluated):
    shutil.rmtree(evaluated.results / "poor/Cityscapes/clean/munster")
    evaluated.refused("were evaluated on different images of 'clear'", code_out_err=compare(evaluated))


def test_no_results_at_all_are_refused(relis):
    relis.refused("No results in", "relis/eval.py", code_out_err=compare(relis))
    relis.refused("relis/eval.py --preset mini --trg_dataset", code_out_err=compare(relis, "--preset", "mini"))


def sheet(relis, *flags):
    return relis(
        "contact_sheet", "--domains", "fog,night", "--generated_dir", relis.root / "images", "--root_exp_dir",
        relis.results, "--results_dir", relis.root / "sheet", "--tile_width", "80", *flags,
    )  # fmt: skip


def test_the_contact_sheet_grows_with_what_there_is(evaluated):
    code, out, _ = sheet(evaluated, "--columns", "2")
    path = evaluated.root / "sheet/contact_sheet.png"
    assert code == 0 and f"wrote {path}: 4 images, predictions of fair" in out
    full = read_image(path)
    shutil.rmtree(evaluated.results)
    code, out, _ = sheet(evaluated, "--columns", "2")
    assert code == 0 and "no predictions" in out
    assert read_image(path).shape[0] < full.shape[0] and read_image(path).shape[1] == full.shape[1]
    assert sheet(evaluated, "--columns", "9")[1].startswith(f"wrote {path}: 10 images")


def test_the_contact_sheet_refuses_what_is_missing(evaluated):
    evaluated.refused(
        "No predictions of nobody", "python relis/eval.py", code_out_err=sheet(evaluated, "--model_arch", "nobody")
    )
    shutil.rmtree(evaluated.root / "images/night")
    evaluated.refused("No Cityscapes_night in", "--domain night", code_out_err=sheet(evaluated))
