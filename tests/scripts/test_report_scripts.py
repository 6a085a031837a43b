"""report/correlate.py and report/tables.py on made-up results, and once on those of the scripts of relis/."""

import csv
import json
import shutil

import numpy as np
import pytest
from report_world import (
    CITY,
    FOG,
    MODELS,
    MORE_MODELS,
    MORE_TRUE_FOG,
    TRUE_FOG,
    made_by,
    matrix_of,
    write_more_results,
    write_set,
)

from genval.artifacts.fingerprint import files_hash
from genval.datasets import CLASSES
from genval.metrics import segmentation
from genval.metrics.ood_pooling import coarse_levels
from genval.metrics.ood_scores import SCORE_LEVELS
from genval.results.ood_blocks import OodResults
from genval.results.provenance import images_mark
from genval.results.scenes import SceneResults
from genval.runtime.files import write_csv, write_json, write_png

PLACES = {"clear": (CITY, 0, 0.0), "synthetic": (FOG, 1, -0.05), "true": (TRUE_FOG, 1, 0.0)}


def test_scores_are_those_of_the_results(report):
    out, values = report.correlate()
    comparison = values["robustness"]["fog"]
    assert comparison["sets"]["synthetic"] == {"dataset": "Cityscapes_fog", "cond": "fog", "images": 6}
    assert comparison["sets"]["corrupted"] is None and comparison["beats"]["corrupted"] is None
    assert comparison["classes"] == list(CLASSES) and comparison["classes_flag"] is None
    for entry in comparison["models"]:
        for side, (ids, which, less) in PLACES.items():
            matrix = np.sum([matrix_of(item, MODELS[entry["model"]][which] + less) for item in ids], 0)
            assert entry[side]["value"] == pytest.approx(100 * segmentation.mean_iou(matrix)), side
            assert entry[side]["low"] <= entry[side]["value"] <= entry[side]["high"]
    correlation = comparison["correlation"]
    assert correlation["synthetic"]["pearson"]["value"] > 0.9 > 0 > correlation["clear"]["pearson"]["value"]
    assert comparison["ranking"]["synthetic"]["chosen"] == comparison["ranking"]["synthetic"]["best"] == "gamma"
    assert comparison["ranking"]["clear"]["chosen"] == "alpha"
    assert comparison["bias"]["value"] < 0  # generated fog is harder
    assert set(comparison["per_class"]) == set(CLASSES)
    assert out.strip().splitlines()[-3:] == values["verdict"]
    assert correlation["synthetic"]["pearson"]["refused"] == "too few segmenters: 4, at least 8 are needed"
    assert values["answers"] == {"trust": {"fog": "few"}, "model": {}, "images": values["answers"]["images"]}
    assert "too few segmenters: 4" in values["verdict"][0] and "gamma" not in values["verdict"][1]


def test_eight_models_have_intervals_and_a_verdict(report):
    write_more_results(report.results)
    out, values = report.correlate()
    pearson = values["robustness"]["fog"]["correlation"]["synthetic"]["pearson"]
    assert 0.9 < pearson["low"] < pearson["corrected"] <= pearson["high"] <= 1
    assert values["answers"]["trust"]["fog"] == "better" and values["robustness"]["fog"]["beats"]["clear"] == "yes"
    assert "corrected for noise" in values["verdict"][0] and "generated images choose gamma" in values["verdict"][1]
    assert f"{pearson['low']:.2f} to {pearson['high']:.2f}" in out
    with open(report.root / "report/correlation.csv", newline="") as stream:
        row = next(row for row in csv.DictReader(stream) if row["coefficient"] == "pearson")
    assert row["metric"] == "miou"
    assert [float(row[key]) for key in ("value", "corrected", "low", "high")] == [
        pearson[key] for key in ("value", "corrected", "low", "high")
    ]


def test_a_comparison_is_not_replaced_by_one_without_a_domain_that_was_asked_for(report):
    write_set(report.results, "alpha", "IDD", "india", ["a"], 0.5, scene="201")
    _, before = report.correlate(domains="fog,india")
    assert "india could not be compared: results are missing." in before["verdict"][0]
    for model in ("alpha", "beta"):
        shutil.rmtree(report.results / model / "ACDC")
    flags = ("--eval_dir", report.results, "--scaling_dir", report.root / "scaling", "--ood_dir", report.root / "ood")
    flags += ("--output_dir", report.root / "report", "--draws", 50)
    call = report("correlate", *flags, "--domains", "fog,india")
    report.refused("compares fog", "The file is kept", "--trg_dataset ACDC", code_out_err=call)
    assert json.loads((report.root / "report/correlation.json").read_text()) == before
    _, values = report.correlate(domains="india")  # fog was not asked for
    assert values["robustness"] == {}


def test_calibration_is_compared_from_the_counted_confidences(report):
    _, values = report.correlate()
    comparison = values["calibration"]["fog"]["ece"]
    for entry in comparison["models"]:
        matrix = np.sum([matrix_of(item, MODELS[entry["model"]][1]) for item in TRUE_FOG], 0)
        assert entry["true"]["value"] == pytest.approx(100 * abs(0.8 - np.trace(matrix) / matrix.sum()))
    assert comparison["better"] == "lower" and comparison["ranking"]["synthetic"]["best"] == "gamma"
    assert values["calibration"]["fog"]["scaling"] is None


@pytest.mark.parametrize("lost", [TRUE_FOG, TRUE_FOG[2:3]])
def test_results_without_confidences_are_compared_in_miou_alone(report, lost):
    write_set(report.results, "alpha", "ACDC", "fog", TRUE_FOG, 0.5, scene="GOPR0475")
    for item in lost:
        SceneResults(report.results, "alpha", "ACDC", "fog", "GOPR0475").counts(item).unlink()
    _, values = report.correlate()
    assert values["robustness"]["fog"]["correlation"]["synthetic"]["models"] == 4
    assert values["calibration"]["fog"]["ece"]["correlation"]["synthetic"]["models"] == 3
    missing = {part["what"]: part["command"] for part in values["missing"]}
    assert "--segmenters alpha" in missing["no counts of confidences of alpha on ACDC (fog)"]


def test_the_same_seed_gives_the_same_files(report):
    report.correlate()
    first = {path.name: path.read_bytes() for path in (report.root / "report").iterdir()}
    report.correlate()
    assert {path.name: path.read_bytes() for path in (report.root / "report").iterdir()} == first
    assert set(first) == {"correlation.json", "correlation.csv", "correlation.md"}


def test_the_one_class_set_is_what_both_sides_label(report):
    for model, (_, fog) in MODELS.items():
        write_set(report.results, model, "ACDC", "fog", TRUE_FOG, fog, scene="GOPR0475", absent=[9])
        write_set(report.results, model, "IDD", "india", ["a", "b"], fog, scene="201", absent=[9, 16])
        write_set(report.results, model, "Cityscapes_india", "india", ["india_0_c", "india_1_d"], fog)
    _, values = report.correlate(domains="fog,india")
    assert len(values["robustness"]["fog"]["classes"]) == 18
    assert values["robustness"]["fog"]["classes_flag"] == "not labelled in both sets: terrain"
    assert len(values["robustness"]["india"]["classes"]) == 17
    assert not {"terrain", "train"} & set(values["robustness"]["india"]["classes"])


def test_what_is_missing_is_listed_with_its_command_and_the_rest_is_computed(report):
    out, values = report.correlate(domains="fog,night,india")
    assert list(values["robustness"]) == ["fog"]
    missing = {part["what"]: part["command"] for part in values["missing"]}
    night = missing["no results of any segmenter on Cityscapes_night (night)"]
    assert night.startswith("python ControlNet/style_transfer.py --domain night && python relis/eval.py")
    assert "--segmenters alpha,beta,delta,gamma --trg_dataset Cityscapes_night --cond night" in night
    assert "no results of any segmenter on ACDC (night)" in missing
    assert "no results of any segmenter on IDD (india)" in missing
    assert not any("corrupt_india" in what for what in missing)
    assert "relis/corrupt.py --domains fog &&" in missing["no results of any segmenter on Cityscapes_corrupt_fog (fog)"]
    assert night in out


def test_models_without_or_with_other_images_are_named_and_skipped(report):
    shutil.rmtree(report.results / "alpha/Cityscapes_fog")
    write_set(report.results, "beta", "Cityscapes_fog", "fog", FOG[:4], 0.5)
    _, values = report.correlate()
    assert values["robustness"] == {}  # two models are left
    assert "There is no answer yet" in values["verdict"][0]
    missing = [part["what"] for part in values["missing"]]
    assert "no results of alpha on Cityscapes_fog (fog)" in missing
    assert "results on other images of beta on Cityscapes_fog (fog)" in missing


def test_one_model_under_two_names_is_refused(report):
    for path in (report.results / "beta").rglob("*"):
        if path.suffix in (".json", ".jsonl"):
            path.write_text(path.read_text().replace("identity of beta", "identity of alpha"))
    call = report("correlate", "--eval_dir", report.results, "--domains", "fog", "--output_dir", report.root / "report")
    report.refused("alpha and beta are the same model", "--segmenters", code_out_err=call)


@pytest.mark.parametrize("folder", ["beta", "beta/ACDC"])
def test_counts_of_different_versions_are_refused(report, folder):
    for path in (report.results / folder).rglob("*"):
        if path.suffix in (".json", ".jsonl"):
            path.write_text(
                path.read_text()
                .replace('"counts_version": 1', '"counts_version": 2')
                .replace('"counts_version":1', '"counts_version":2')
            )
    call = report("correlate", "--eval_dir", report.results, "--domains", "fog", "--output_dir", report.root / "report")
    report.refused("of beta on", "different versions of the code, 1 and 2", "--segmenters alpha", code_out_err=call)


def test_a_set_generated_again_is_another_set(report):
    """The names are the same; the marks of the files are not."""
    for model in MODELS:
        mark = "new" if model == "delta" else "old"
        write_set(report.results, model, "Cityscapes_fog", "fog", FOG, MODELS[model][1] - 0.05, mark=mark)
    _, values = report.correlate()
    assert [entry["model"] for entry in values["robustness"]["fog"]["models"]] == ["alpha", "beta", "gamma"]
    assert "results on other images of delta on Cityscapes_fog (fog)" in [part["what"] for part in values["missing"]]


def test_corruptions_are_the_second_baseline(report):
    for model in ("alpha", "beta", "gamma"):
        write_set(report.results, model, "Cityscapes_corrupt_fog", "fog", CITY, MODELS[model][1])
    _, values = report.correlate()
    comparison = values["robustness"]["fog"]
    assert comparison["correlation"]["corrupted"]["models"] == 3
    assert comparison["correlation"]["synthetic"]["models"] == 4
    assert comparison["difference"]["corrupted"]["models"] == 3
    assert [entry["corrupted"] is None for entry in comparison["models"]] == [False, False, True, False]


@pytest.mark.parametrize("corrupted", [("gamma",), ("alpha", "beta")])
def test_corruptions_of_too_few_compared_models_are_no_baseline(report, corrupted):
    write_set(report.results, "gamma", "Cityscapes_fog", "fog", FOG[:4], 0.5)  # on other images: not compared
    for model in corrupted:
        write_set(report.results, model, "Cityscapes_corrupt_fog", "fog", CITY, MODELS[model][1])
    _, values = report.correlate()
    for comparison in (values["robustness"]["fog"], values["calibration"]["fog"]["ece"]):
        assert comparison["correlation"]["synthetic"]["models"] == 3
        assert comparison["correlation"]["corrupted"] is None and comparison["sets"]["corrupted"] is None
    assert "corrupt" not in values["verdict"][0]


def test_corruptions_without_confidences_are_a_baseline_of_miou_alone(report):
    for model, (_, fog) in MODELS.items():
        confidence = 0.8 if model in ("alpha", "beta") else None
        write_set(report.results, model, "Cityscapes_corrupt_fog", "fog", CITY, fog, confidence=confidence)
    _, values = report.correlate()
    assert values["robustness"]["fog"]["correlation"]["corrupted"]["models"] == 4
    assert values["calibration"]["fog"]["ece"]["correlation"]["corrupted"] is None


def test_three_models_have_no_interval_in_any_table(report):
    shutil.rmtree(report.results / "delta/ACDC")
    report.correlate()
    assert report("tables", "--results_dir", report.root / "report")[0] == 0
    for table, row in (("correlation_by_domain", "fog"), ("correlation_by_class", "road")):
        text = (report.root / "report/tables" / f"{table}.md").read_text()
        assert f"| {row} " in text and " to " not in text
    summary = (report.root / "report/correlation.md").read_text()
    assert not any(" to " in line for line in summary.splitlines() if line.startswith("| fog"))
    rows = [line for line in summary.splitlines() if line.startswith("| fog    | synthetic")]
    assert "top 5 in common %" in summary and len(rows) == 2  # by mIoU and by ECE
    assert all(row.split("|")[5].strip() == "-" for row in rows)


def scaling_file(root, model, before, after, source="Cityscapes_fog_all", tested="ACDC_fog"):
    values = {"before": {"ece": before}, "after_mean": {"ece": after}, **made_by(model)}
    for key, name in (("tested_images_mark", tested), ("calibrated_images_mark", source)):
        ids = {"ACDC_fog": TRUE_FOG, "Cityscapes_fog": FOG}.get(name.partition("_all")[0], CITY)
        values[key] = images_mark({"id": item} for item in ids)
    write_json(root / "scaling" / model / tested / f"from_{source}" / "vanilla_ece.json", values)


def test_temperatures_enter_where_they_were_tried(report):
    tries = {"alpha": (0.2, 0.1), "beta": (0.3, 0.1), "gamma": (0.1, 0.15), "delta": (0.2, 0.19)}
    for model, (before, after) in tries.items():
        scaling_file(report.root, model, before, after)
        scaling_file(report.root, model, before, before + 0.01, "Cityscapes_clean_lindau+munster")
        scaling_file(report.root, model, before, after / 2, tested="Cityscapes_fog_all")
    _, values = report.correlate()
    scaling = values["calibration"]["fog"]["scaling"]
    assert scaling["improved"]["synthetic"]["share"] == pytest.approx(3 / 4)
    assert scaling["improved"]["clear"]["share"] == 0
    assert scaling["improved"]["corrupted"] == dict.fromkeys(("share", "low", "high", "before")) | {"models": 0}
    assert scaling["mean"]["before"]["value"] == pytest.approx(20)
    assert scaling["less_than_clear"]["value"] == pytest.approx(100 * (0.54 - 0.84) / 4)
    assert scaling["after"]["pearson"]["value"] == pytest.approx(1)
    assert report("tables", "--results_dir", report.root / "report")[0] == 0
    text = (report.root / "report/tables/calibration_improvement.md").read_text()
    assert "secondary source" in text and "over 90" in text and "75.00" in text


def test_temperatures_of_the_hardest_images_are_listed_next_to_those_of_all(report):
    unscaled = {"alpha": 0.2, "beta": 0.3, "gamma": 0.1, "delta": 0.2}
    for model, before in unscaled.items():
        scaling_file(report.root, model, before, before + (0.02 if model == "gamma" else -0.01))
    _, values = report.correlate()
    missing = {part["what"]: part["command"] for part in values["missing"]}
    untried = dict.fromkeys(("share", "low", "high", "before")) | {"models": 0}
    assert values["calibration"]["fog"]["scaling"]["improved"]["synthetic, hardest half"] == untried
    command = missing["temperatures of synthetic, hardest half images tested on ACDC_fog"]
    find, _, tried = command.partition(" && ")
    assert find.startswith("python relis/compute_clusters_temp_scaling.py") and find.endswith("--hardest 0.5")
    assert "--calib_dataset Cityscapes_fog --hardest 0.5 --trg_dataset ACDC --cond fog" in tried

    for model, before in unscaled.items():
        scaling_file(report.root, model, before, before - 0.05, "Cityscapes_fog_all_hardest50")
        scaling_file(report.root, model, before, before - 0.08, "ACDC_fog")  # the upper bound
    scaling_file(report.root, "beta", 0.3, 0.4, "Cityscapes_fog_all_hardest12.5")
    scaling_file(report.root, "beta", 0.3, 0.1, "Cityscapes_fog_all_hardest_old")  # another's folder
    scaling_file(report.root, "beta", 0.3, 0.1, "Cityscapes_foggy_all_hardest30")
    _, values = report.correlate()
    assert not any("hardest" in part["what"] for part in values["missing"])
    scaling = values["calibration"]["fog"]["scaling"]
    sources = ["synthetic", "synthetic, hardest half", "synthetic, hardest 12.5 %", "clear", "corrupted", "reference"]
    assert list(scaling["improved"]) == sources
    assert [scaling["improved"][source]["share"] for source in sources] == [0.75, 1, 0, None, None, 1]
    assert scaling["mean"]["synthetic, hardest half"]["value"] == pytest.approx(15)
    of_beta = next(entry for entry in scaling["models"] if entry["model"] == "beta")
    assert [of_beta[source] for source in sources] == [*map(pytest.approx, (29, 25, 40)), None, None, pytest.approx(22)]
    assert report("tables", "--results_dir", report.root / "report")[0] == 0
    with open(report.root / "report/tables/calibration_improvement.csv", newline="") as stream:
        rows = {row["temperatures of"]: row for row in csv.DictReader(stream)}
    assert list(rows) == [*sources[:3], "reference"]
    assert [rows[source]["published %*"] for source in rows] == ["over 90", "", "", ""]
    assert float(rows["synthetic, hardest half"]["improved %"]) == 100
    summary = (report.root / "report/correlation.md").read_text()
    assert any(line.startswith("| fog    | synthetic, hardest half ") for line in summary.splitlines())


def test_means_before_and_after_are_of_the_same_models(report):
    before = {"alpha": 0.1, "beta": 0.2, "gamma": 0.3, "delta": 0.4}
    for model, value in before.items():
        if model != "alpha":
            scaling_file(report.root, model, value, value / 2, "Cityscapes_clean_lindau+munster")
        if model in ("alpha", "beta"):
            scaling_file(report.root, model, value, value / 4)
    _, values = report.correlate()
    scaling = values["calibration"]["fog"]["scaling"]
    assert [scaling["improved"][source]["models"] for source in ("synthetic", "clear")] == [2, 1]
    assert scaling["improved"]["synthetic"]["before"] == pytest.approx(15)
    assert scaling["improved"]["clear"]["before"] == pytest.approx(20)  # beta's alone
    assert scaling["mean"]["clear"]["value"] == pytest.approx(10)
    assert report("tables", "--results_dir", report.root / "report")[0] == 0
    with open(report.root / "report/tables/calibration_improvement.csv", newline="") as stream:
        rows = {row["temperatures of"]: (row["mean ECE % before"], row["after"]) for row in csv.DictReader(stream)}
    assert {source: tuple(map(float, means)) for source, means in rows.items()} == {
        "synthetic": pytest.approx((15, 3.75)),
        "clear": pytest.approx((20, 10)),
    }
    summary = (report.root / "report/correlation.md").read_text()
    row = next(line for line in summary.splitlines() if line.startswith("| fog    | clear ") and "20.0" in line)
    assert [cell.strip() for cell in row.split("|")][-3:-1] == ["20.0", "10.0"]


def ood_file(root, place, model, auroc, images=5):
    header = ["set", "model", "score", "images", "auroc", "auroc_low", "fpr95", "aupr_object", "aupr_background"]
    of_score = (("msp", auroc), ("energy", auroc - 0.1))
    rows = [[place, model, score, images, value, "", 1 - value, 0.5, value] for score, value in of_score]
    write_csv(root / "ood" / place / f"{model}.csv", header, rows)
    write_json(root / "ood" / place / f"{model}.json", {"pooled": {"limit": None, **made_by(model)}})


def test_objects_enter_where_they_were_detected(report):
    for model, (_, fog) in MODELS.items():
        ood_file(report.root, "generated", model, fog)
        ood_file(report.root, "RoadAnomaly21", model, fog - 0.05)
    _, values = report.correlate()
    of_score = values["ood_detection"]["RoadAnomaly21"]["msp"]
    assert of_score["auroc"]["correlation"]["synthetic"]["pearson"]["value"] == pytest.approx(1)
    assert of_score["auroc"]["bias"]["value"] == pytest.approx(5)
    assert of_score["auroc"]["correlation"]["synthetic"]["kendall"]["over_images"] is None
    assert of_score["fpr95"]["ranking"]["synthetic"]["chosen"] == "gamma"
    # More mIoU should go with fewer false alarms: the baseline's sign is changed, so that its r is comparable.
    clear = [of_score[metric]["correlation"]["clear"]["pearson"]["value"] for metric in ("auroc", "fpr95")]
    assert clear[0] == pytest.approx(clear[1])
    assert "aupr_object" in of_score and of_score["aupr_object"]["correlation"]["synthetic"]["pearson"]["value"] is None
    expected = 100 * (np.mean([fog for _, fog in MODELS.values()]) - 0.1)
    assert values["ood_figures"]["generated"]["energy"]["auroc"] == pytest.approx(expected)


def test_other_sets_of_generated_objects_are_predictors_and_no_references(report):
    for model, (clear, fog) in MODELS.items():
        ood_file(report.root, "generated", model, fog)
        ood_file(report.root, "generated-uncurated", model, clear)
        ood_file(report.root, "generated-fog", model, fog - 0.2)
        ood_file(report.root, "RoadAnomaly21", model, fog - 0.05)
    _, values = report.correlate()
    assert list(values["ood_detection"]) == ["RoadAnomaly21"]
    correlation = values["ood_detection"]["RoadAnomaly21"]["msp"]["auroc"]["correlation"]
    assert correlation["generated-fog"]["pearson"]["value"] == pytest.approx(1)
    assert correlation["generated-uncurated"]["pearson"]["value"] < 0
    assert values["ood_figures"]["generated-fog"]["msp"]["models"] == len(MODELS)
    _, shown, _ = report("tables", "--output_dir", report.root / "report")
    assert "corrected r of generated-uncurated" in shown


def test_models_are_grouped_by_family(report):
    for model, right in (("SegFormer-B0", 0.6), ("UpperNetR50", 0.5)):
        write_set(report.results, model, "Cityscapes", "clean", CITY, 0.8)
        write_set(report.results, model, "Cityscapes_fog", "fog", FOG, right - 0.1)
        write_set(report.results, model, "ACDC", "fog", TRUE_FOG, right, scene="GOPR0475")
    _, values = report.correlate()
    assert values["families"]["SegFormer-B0"] == "transformer" and values["families"]["alpha"] == "other"
    report("tables", "--output_dir", report.root / "report")
    with open(report.root / "report/tables/miou_by_family.csv", newline="") as stream:
        rows = {row["family"]: row for row in csv.DictReader(stream)}
    assert [row["models"] for row in rows.values()] == ["1", "1", "4"]
    assert float(rows["transformer"]["difference"]) < -5
    with open(report.root / "report/tables/miou_by_model.csv", newline="") as stream:
        assert [row["family"] for row in csv.DictReader(stream)] == ["transformer", "convolutional", *["other"] * 4]


def test_detectors_without_a_clear_evaluation_leave_the_baseline_to_the_others(report):
    for model, (_, fog) in MODELS.items():
        ood_file(report.root, "generated", model, fog)
        ood_file(report.root, "RoadAnomaly21", model, fog - 0.05)
    for model, models in (("alpha", 3), ("beta", None)):
        shutil.rmtree(report.results / model / "Cityscapes")
        shutil.rmtree(report.root / "report", ignore_errors=True)
        _, values = report.correlate()
        correlation = values["ood_detection"]["RoadAnomaly21"]["msp"]["auroc"]["correlation"]
        assert correlation["synthetic"]["models"] == 4
        assert (correlation["clear"] and correlation["clear"]["models"]) == models


def ood_counts(root, place, model, images, shift):
    """Counts of single images as main_gen_ood.py keeps them: background spread out, objects `shift` levels above it."""
    results = OodResults(root / "ood", place, model)
    levels = np.zeros((images, 2, 2, SCORE_LEVELS), np.int64)
    generator = np.random.default_rng(images)
    for image in range(images):
        of_background, of_object = generator.integers(20000, 60000, 500), generator.integers(20000, 60000, 100) - shift
        for score in range(2):
            np.add.at(levels[image, score, 0], of_background, 1)
            np.add.at(levels[image, score, 1], np.maximum(of_object, 0), 1)
    lines = [{"made_from": {"id": f"{place}{image}"}} for image in range(images)]
    results.write_block("00000", lines, levels.sum(0), coarse_levels(levels))


def test_images_with_objects_are_drawn_alike_for_all_models(report):
    write_more_results(report.results)
    for place in ("generated", "RoadAnomaly21"):
        for rank, model in enumerate(MODELS | MORE_MODELS):
            ood_file(report.root, place, model, 0.5 + 0.05 * rank, images=8)
            ood_counts(report.root, place, model, 8, 2000 * max(rank, 1))  # the first two are one
    _, values = report.correlate()
    of_models = values["ood_detection"]["RoadAnomaly21"]["msp"]["auroc"]["models"]
    ends = {entry["model"]: (entry["true"]["low"], entry["true"]["high"]) for entry in of_models}
    assert ends["alpha"] == ends["beta"] != ends["gamma"]
    assert ends["gamma"][0] < ends["gamma"][1] < ends["delta"][1]
    correlation = values["ood_detection"]["RoadAnomaly21"]["msp"]["auroc"]["correlation"]["synthetic"]
    assert correlation["kendall"]["over_images"] is not None and correlation["kendall"]["over_both"] is not None
    assert correlation["pearson"]["corrected"] == 1 and correlation["pearson"]["refused"] is None

    ood_counts(report.root, "generated", "gamma", 4, 0)  # not those of the table, which has eight images
    _, values = report.correlate()
    correlation = values["ood_detection"]["RoadAnomaly21"]["msp"]["auroc"]["correlation"]["synthetic"]
    assert correlation["kendall"]["over_images"] is None and correlation["kendall"]["over_models"] is not None


def test_detectors_of_other_images_are_named_and_skipped(report):
    for place in ("generated", "RoadAnomaly21"):
        for rank, model in enumerate(MODELS):
            ood_file(
                report.root, place, model, 0.5 + 0.1 * rank, images=4 if (place, model) == ("generated", "beta") else 5
            )
    _, values = report.correlate()
    models = values["ood_detection"]["RoadAnomaly21"]["msp"]["auroc"]["models"]
    assert [entry["model"] for entry in models] == ["alpha", "delta", "gamma"]
    missing = {part["what"]: part["command"] for part in values["missing"]}
    assert missing["detection by beta on the same images of generated as the others"].endswith(
        "--segmenters beta --trg_dataset generated"
    )


def test_detectors_of_a_set_generated_again_are_named_and_skipped(report):
    """The names are the same; the marks of the files are not."""
    for place in ("generated", "RoadAnomaly21"):
        for rank, model in enumerate(MODELS):
            ood_file(report.root, place, model, 0.5 + 0.1 * rank, images=5)
    path = OodResults(report.root / "ood", "generated", "beta").json
    values = json.loads(path.read_text())
    values["pooled"]["images_mark"] = "of an earlier version"
    write_json(path, values)
    _, values = report.correlate()
    assert "detection by beta on the same images of generated as the others" in [p["what"] for p in values["missing"]]


def test_temperatures_of_other_images_are_refused(report):
    scaling_file(report.root, "alpha", 0.2, 0.1)
    write_set(report.results, "alpha", "Cityscapes_fog", "fog", FOG, MODELS["alpha"][1], mark="new")
    flags = ("--root_exp_dir", report.results, "--domains", "fog", "--scaling_dir", report.root / "scaling")
    report.refused("vanilla_ece.json", "other images of Cityscapes_fog", code_out_err=report("correlate", *flags))


def test_tables_have_the_metrics_and_mark_the_published_ones(report):
    write_more_results(report.results)
    for model in MODELS:
        ood_file(report.root, "generated", model, 0.8)
    _, values = report.correlate()
    code, out, err = report("tables", "--results_dir", report.root / "report")
    assert code == 0, err
    folder = report.root / "report/tables"
    names = {
        "correlation_by_domain",
        "label_free",
        "correlation_by_class",
        "ood_by_score",
        "published_detectors",
        "miou_by_model",
    }
    assert {path.name for path in folder.iterdir()} == {f"{n}.{end}" for n in names for end in ("csv", "md", "tex")}
    with open(folder / "correlation_by_domain.csv", newline="") as stream:
        row = next(csv.DictReader(stream))
    pearson = values["robustness"]["fog"]["correlation"]["synthetic"]["pearson"]
    assert (float(row["observed r"]), float(row["corrected r"])) == (pearson["value"], pearson["corrected"])
    assert [float(row["95 % low"]), float(row["95 % high"])] == [pearson["low"], pearson["high"]]
    assert (row["published SD 1.5*"], row["published SDXL*"]) == ("0.77", "0.89")
    with open(folder / "correlation_by_class.csv", newline="") as stream:
        by_class = {row["class"]: float(row["r (fog)"]) for row in csv.DictReader(stream)}
    of_class = values["robustness"]["fog"]["per_class"]
    assert by_class == {name: entry["synthetic"]["pearson"]["corrected"] for name, entry in of_class.items()}
    assert "* Reported for the published system" in (folder / "correlation_by_domain.md").read_text()
    latex = (folder / "correlation_by_domain.tex").read_text()
    assert latex.count(r" \\") == 2 and r"95 \%" in latex and r"\toprule" in latex
    assert out.count("**") == 12
    assert "| RbA, Swin-B | generated, curated    |" in (folder / "published_detectors.md").read_text()


def test_damaged_and_absent_files_are_refused_by_name(report):
    empty = report("correlate", "--preset", "mini", "--eval_dir", report.root / "none")
    report.refused("No results in", "relis/eval.py --preset mini --trg_dataset", code_out_err=empty)
    report.refused(
        "No results", "relis/eval.py", code_out_err=report("correlate", "--root_exp_dir", report.root / "no")
    )
    absent = report("tables", "--results_dir", report.root / "no")
    report.refused("correlation.json", "report/correlate.py", code_out_err=absent)
    write_json(report.root / "old/correlation.json", {"format": 0})
    report.refused("format 4", code_out_err=report("tables", "--results_dir", report.root / "old"))
    unknown = report("correlate", "--root_exp_dir", report.results, "--domains", "mars")
    report.refused("'mars'", "REAL_SETS", code_out_err=unknown)
    counts = SceneResults(report.results, "alpha", "Cityscapes", "clean", "frankfurt").counts(CITY[0])
    counts.write_bytes(b"")
    damaged = report("correlate", "--root_exp_dir", report.results, "--domains", "fog")
    report.refused(counts.name, "relis/eval.py", code_out_err=damaged)
    write_json(report.root / "scaling/alpha/ACDC_fog/from_Cityscapes_fog_all/vanilla_ece.json", {"before": {}})
    flags = ("--root_exp_dir", report.results, "--domains", "fog", "--scaling_dir", report.root / "scaling")
    counts.unlink()
    report.refused("vanilla_ece.json", "before.ece: expected a value", code_out_err=report("correlate", *flags))


@pytest.mark.slow
def test_what_the_scripts_of_relis_write_is_read(relis):
    """From streets to tables: corruption, evaluation, correlation."""
    models = "good,fair,poor"
    folders = ("--datasets_dir", relis.root / "datasets", "--output_dir", relis.root / "corrupted")
    assert relis("corrupt", "--domain", "fog", *folders)[0] == 0
    for dataset, *flags in (
        ("Cityscapes",),
        ("Cityscapes_fog",),
        ("Cityscapes_corrupt_fog",),
        ("ACDC", "--cond", "fog"),
    ):
        code, _, err = relis.eval(dataset, models, *flags)
        assert code == 0, err
    code, _, err = relis(
        "report/correlate", "--root_exp_dir", relis.results, "--domains", "fog", "--draws", "50",
        "--results_dir", relis.root / "report", "--scaling_dir", relis.root, "--ood_dir", relis.root,
    )  # fmt: skip
    assert code == 0, err
    values = json.loads((relis.root / "report/correlation.json").read_text())
    comparison = values["robustness"]["fog"]
    assert comparison["correlation"]["corrupted"]["models"] == 3
    assert comparison["ranking"]["synthetic"]["chosen"] == "good"
    assert values["calibration"]["fog"]["ece"]["correlation"]["synthetic"]["models"] == 3


def test_generators_are_compared_side_by_side(report):
    for model, (clear, fog) in MODELS.items():
        write_set(report.results, model, "Cityscapes_img2img_fog", "fog", FOG, clear)
        write_set(report.root / "sdxl", model, "Cityscapes_fog", "fog", FOG, fog)
    _, alone = report.correlate()
    out, values = report.correlate("--generators", f"controlnet,img2img,sdxl={report.root / 'sdxl'}")
    assert [one["key"] for one in values["predictors"]] == [
        *("synthetic", "img2img", "sdxl", "clear", "corrupted", "vote", "confidence", "doc")
    ]
    assert [one["name"] for one in values["predictors"]][:3] == ["controlnet", "img2img", "sdxl"]
    comparison, before = values["robustness"]["fog"], alone["robustness"]["fog"]
    assert comparison["sets"]["img2img"]["dataset"] == "Cityscapes_img2img_fog"
    for part in ("correlation", "difference", "beats", "ranking"):  # those of the first generator stay as they are
        assert {side: comparison[part][side] for side in before[part]} == before[part]
    for entry in comparison["models"]:
        matrix = np.sum([matrix_of(item, MODELS[entry["model"]][1]) for item in FOG], 0)
        assert entry["sdxl"]["value"] == pytest.approx(100 * segmentation.mean_iou(matrix))
    assert comparison["correlation"]["img2img"]["pearson"]["value"] < 0
    assert comparison["difference"]["img2img"]["pearson"]["value"] > 0
    assert "controlnet" in values["verdict"][0] and "r of sdxl" in out
    _, shown, _ = report("tables", "--output_dir", report.root / "report", "--generators", "img2img")
    assert "r of img2img" in shown and "sdxl" not in shown
    assert "r difference: synthetic - img2img" in (report.root / "report/tables/correlation_by_domain.csv").read_text()
    call = report("tables", "--output_dir", report.root / "report", "--generators", "fourier")
    report.refused("does not compare fourier, but controlnet, img2img, sdxl", code_out_err=call)


def write_distances(report, values, **changes):
    """Write a small set of each generator, and its distance to unlabelled images."""
    for number, (folder, value) in enumerate(values.items()):
        root = report.root / "images" / folder
        for frame in range(2):
            name = f"fog_{frame}_frankfurt_000000_{frame:06d}"
            write_png(root / f"leftImg8bit/val/frankfurt/{name}_leftImg8bit.png", np.full((4, 8, 3), number, np.uint8))
            write_png(root / f"gtFine/val/frankfurt/{name}_gtFine_labelIds.png", np.full((4, 8), 7, np.uint8))
        images = sorted((root / "leftImg8bit").rglob("*.png"))
        distance = {"value": value, "low": value / 2, "high": 2 * value}
        made = {"images_hash": files_hash(images), "reference_hash": "r", "clip_hash": "c", **changes}
        write_json(root / "realism.json", {"distance": distance, "images": 2, **made})


def test_the_distance_to_unlabelled_images_stands_beside_r(report):
    for model, (clear, _) in MODELS.items():
        write_set(report.results, model, "Cityscapes_img2img_fog", "fog", FOG, clear)
    write_distances(report, {"fog": 0.5, "img2img/fog": 2.0})
    flags = ("--generators", "controlnet,img2img", "--generated_dir", report.root / "images")
    out, values = report.correlate(*flags)
    assert {key: one["value"] for key, one in values["realism"]["fog"].items()} == {"synthetic": 0.5, "img2img": 2.0}
    assert "In 1 of 1 pairs of generators of one domain, the nearer one has the higher r" in out
    _, shown, _ = report("tables", "--output_dir", report.root / "report")
    assert "0.25 to 1.00" in shown
    write_json(report.root / "images/fog/realism.json", {"distance": 1})
    call = report("correlate", "--eval_dir", report.results, "--domains", "fog", *flags)
    report.refused("images/fog/realism.json", "--reference again", code_out_err=call)


@pytest.mark.parametrize("change", ["image", "reference", "clip", "set", "version"])
def test_distances_of_other_images_or_to_another_reference_are_missing(report, change):
    for model, (clear, _) in MODELS.items():
        write_set(report.results, model, "Cityscapes_img2img_fog", "fog", FOG, clear)
    write_distances(report, {"fog": 0.5, "img2img/fog": 2.0})
    other = report.root / "images/img2img/fog"
    if change == "image":
        write_png(next((other / "leftImg8bit").rglob("fog_1_*.png")), np.full((4, 8, 3), 9, np.uint8))
    elif change == "set":
        shutil.rmtree(other / "leftImg8bit")
    elif change == "version":
        write_distances(report, {"img2img/fog": 2.0}, images_hash="")
    else:
        write_distances(report, {"img2img/fog": 2.0}, **{f"{change}_hash": "other"})
    _, values = report.correlate("--generators", "controlnet,img2img", "--generated_dir", report.root / "images")
    assert list(values["realism"]["fog"]) == ["synthetic"]
    commands = [part["command"] for part in values["missing"] if "distance of the images of img2img" in part["what"]]
    assert len(commands) == 1 and "check_generated.py --domain fog --generator img2img" in commands[0]


def test_the_missing_results_of_a_generator_come_with_their_command(report):
    _, values = report.correlate("--generators", "controlnet,img2img")
    assert "img2img" not in values["robustness"]["fog"]["correlation"]
    missing = {part["what"]: part["command"] for part in values["missing"]}
    command = missing["no results of any segmenter on Cityscapes_img2img_fog (fog)"]
    assert command.startswith("python ControlNet/style_transfer.py --domain fog --generator img2img && python relis/")


@pytest.mark.parametrize(
    ("generators", "said"),
    [
        ("controlnet,clear", "expected NAME or NAME=EVAL_DIR"),
        ("controlnet,controlnet", "expected different names"),
        ("controlnet,sdxl=", "found 'sdxl='"),
        ("controlnet,sdxl={root}/nothing", "no results of relis/eval.py"),
        ("controlnet,sdxl={root}/images", "--generated_dir {root}/images --eval_dir results/eval_sdxl"),
    ],
)
def test_generators_that_cannot_be_read_are_refused(report, generators, said):
    (report.root / "images/fog/leftImg8bit").mkdir(parents=True)
    root = report.root
    call = report("correlate", "--eval_dir", report.results, "--generators", generators.format(root=root))
    report.refused(said.format(root=root), code_out_err=call)


def test_generators_are_checked_on_clear_images(report):
    write_more_results(report.results)
    everyone = MODELS | MORE_MODELS
    _, values = report.correlate()
    assert [check["passed"] for check in values["checks"]] == [None]
    missing = {part["what"]: part["command"] for part in values["missing"]}
    command = missing["the check of controlnet on generated clear images"]
    assert "style_transfer.py --domain clear && python relis/eval.py" in command
    for rank, (model, (clear, _)) in enumerate(everyone.items()):
        names = [f"clear_{number}_{name}" for number, name in enumerate(CITY)]
        write_set(report.results, model, "Cityscapes_clear", "clear", names, clear - 0.02)
        write_set(report.results, model, "Cityscapes_img2img_clear", "clear", names, 0.5 + 0.1 * (rank % 3))
    _, values = report.correlate("--generators", "controlnet,img2img")
    assert [check["passed"] for check in values["checks"]] == [True, False]
    assert "Do not trust img2img: r of mIoU" in values["verdict"][0]


def test_label_free_estimates_stand_beside_the_baselines(report):
    write_more_results(report.results)
    out, values = report.correlate("--label_free", "all")
    comparison = values["robustness"]["fog"]
    missing = [part for part in values["missing"] if "vote of the other segmenters" in part["what"]]
    assert len(missing) == 1 and missing[0]["command"].endswith("--save predictions")
    assert comparison["correlation"]["confidence"]["models"] == 8
    needs = {one["key"]: one["needs"] for one in values["predictors"]}
    assert needs["vote"] == needs["doc"] == "unlabelled images" and needs["synthetic"] == needs["clear"] == "nothing"

    labels = np.random.default_rng(0).integers(0, 5, (8, 12)).astype(np.uint8)
    for rank, model in enumerate(MODELS | MORE_MODELS):
        for item in MORE_TRUE_FOG:
            prediction = labels.copy()
            prediction[0, :rank] = 7
            write_png(SceneResults(report.results, model, "ACDC", "fog", "GOPR0475").prediction(item), prediction)
    out, values = report.correlate("--label_free", "vote,doc")
    comparison = values["robustness"]["fog"]
    assert "vote" in comparison["difference"] and "confidence" not in comparison["difference"]
    votes = [entry["vote"]["value"] for entry in comparison["models"]]
    assert len(set(votes)) > 4 and max(votes) <= 100
    assert "Label-free estimates" in out and "the best label-free estimate that was tried" in values["verdict"][0]
    call = report("correlate", "--eval_dir", report.results, "--label_free", "voting")
    report.refused("--label_free: expected some of vote", "found voting", code_out_err=call)


def test_strengths_of_a_condition_have_a_curve(report):
    _, values = report.correlate()
    assert values["severity"] == {}
    for model, (clear, fog) in MODELS.items():
        write_set(report.results, model, "Cityscapes_fog-0.0", "fog-0.0", FOG, clear)
        write_set(report.results, model, "Cityscapes_fog-0.5", "fog-0.5", FOG, (clear + fog) / 2)
    out, values = report.correlate("--min_miou", "60")
    curve = values["severity"]["fog"]
    assert curve["strengths"] == [0.0, 0.5, 1.0] and set(curve["miou"]) == set(MODELS)
    assert curve["falls_at"]["alpha"]["value"] < 1 and "The limit is 60 % mIoU" in out
    _, shown, _ = report("tables", "--output_dir", report.root / "report")
    assert "severity_fog" in shown
