"""relis/eval.py: its outputs, its errors, and that a killed and resumed run writes the same bytes."""

import csv
import hashlib
import json
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from relis_world import CITYSCAPES_NAMES, FAKE_MODELS, make_world, write_pair
from script_runs import Script

from genval.datasets.reading import read_image, read_mask
from genval.metrics.segmentation import mean_iou, pixel_accuracy
from genval.reproduction.guard import signal_group
from genval.results.scenes import SceneResults
from genval.runtime.files import write_png
from genval.runtime.paths import REPO_ROOT


def digest(folder):
    """Every file below a folder by its relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_what_is_written_and_that_it_is_right(relis):
    code, out, _ = relis.eval("Cityscapes", "good,poor")
    assert code == 0
    folder = relis.results / "good/Cityscapes/clean/frankfurt"
    assert sorted(path.name for path in folder.iterdir()) == [
        "confusion_matrix.csv", "manifest.jsonl", "metrics.json", "per_image.csv", "predictions", "settings.json",
        "statistics", "total.npz",
    ]  # fmt: skip
    names = CITYSCAPES_NAMES["frankfurt"]
    assert sorted(path.stem for path in (folder / "predictions").iterdir()) == names
    assert [json.loads(line)["id"] for line in (folder / "manifest.jsonl").read_text().splitlines()] == names

    total = np.zeros((19, 19), np.int64)
    for name in names:
        image = read_image(relis.root / f"datasets/cityscapes/leftImg8bit/val/frankfurt/{name}_leftImg8bit.png")
        prediction = read_mask(folder / f"predictions/{name}.png")
        classes = np.minimum(image[..., 0], 18)
        wrong = image[..., 1] < np.float32(256) * np.float32(FAKE_MODELS["good"])
        assert (prediction == np.where(wrong, (classes + 1) % 19, classes)).all()
        counted = image[..., 0] != 255  # the world's red channel is the label
        np.add.at(total, (image[..., 0][counted], prediction[counted]), 1)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["miou"] == mean_iou(total) and metrics["pixel_accuracy_percent"] == pixel_accuracy(total)
    assert (metrics["images"], metrics["skipped"], metrics["pixels"]) == (3, [], int(total.sum()))
    assert [row["id"] for row in csv.DictReader((folder / "per_image.csv").open())] == names
    assert json.loads((folder / "settings.json").read_text())["settings"]["segmenters"] == "good,poor"
    assert "| poor      | Cityscapes |" in out and out.strip().splitlines()[-1].startswith("wrote ")


def test_conditions_and_scenes_are_paired_and_acdc_is_merged(relis):
    assert relis.eval("ACDC", "good", "--cond", "fog,night", "--scene", "GOPR0475,GOPR0351")[0] == 0
    folder = relis.results / "good/ACDC"
    assert sorted(path.relative_to(folder).as_posix() for path in folder.glob("*/*")) == [
        "fog/GOPR0475",
        "night/GOPR0351",
    ]
    assert len(list((folder / "fog/GOPR0475/predictions").iterdir())) == 4
    relis.refused(
        "no scene 'GOPR0351'", "GOPR0475",
        code_out_err=relis.eval("ACDC", "good", "--cond", "fog,night", "--scene", "GOPR0351,GOPR0475"),
    )  # fmt: skip


def test_generated_sets_and_several_sets_in_one_run(relis):
    code, out, _ = relis.eval("Cityscapes_fog,Cityscapes_night", "good")
    assert code == 0 and "Cityscapes_night | night" in out
    assert (relis.results / "good/Cityscapes_fog/fog/munster/predictions/fog_0_munster_000000_000019.png").exists()


def test_the_batch_size_does_not_change_a_byte_here(relis):
    relis.eval("Cityscapes", "fair", "--batch_size", "1")
    one = digest(relis.results / "fair")
    relis.eval("Cityscapes", "fair", "--batch_size", "4", "--overwrite")
    four = digest(relis.results / "fair")
    different = {name.rpartition("/")[2] for name in one if one[name] != four[name]}
    assert different == {"settings.json"}


def test_images_of_several_sizes_are_evaluated_in_one_run(relis):
    write_pair(relis.root / "datasets/cityscapes", "munster", "munster_000002_000019", 3, size=(16, 24))
    code, _, _ = relis.eval("Cityscapes", "good", "--batch_size", "3", "--scene", "munster")
    assert code == 0
    assert read_mask(relis.results / "good/Cityscapes/clean/munster/predictions/munster_000002_000019.png").shape == (
        16,
        24,
    )


def test_temporary_files_of_a_killed_run_are_removed(relis):
    relis.eval()
    before = digest(relis.results)
    (relis.results / "good/Cityscapes/clean/munster/.metrics.json.123.part").write_text("half")
    relis.eval()
    assert digest(relis.results) == before


def test_a_second_run_computes_only_missing_and_outdated_results(relis):
    relis.eval()
    before, folder = digest(relis.results), relis.results / "good/Cityscapes/clean/frankfurt"
    kept, lost = (folder / f"predictions/{name}.png" for name in CITYSCAPES_NAMES["frankfurt"][:2])
    stamp = kept.stat().st_mtime_ns
    lost.unlink()
    relis.eval("Cityscapes", "good", "--batch_size", "1")
    assert kept.stat().st_mtime_ns == stamp
    assert digest(relis.results) == before

    # An image that changed under the same name is evaluated again.
    name = CITYSCAPES_NAMES["frankfurt"][0]
    write_pair(relis.root / "datasets/cityscapes", "frankfurt", name, 77)
    relis.eval()
    after = digest(relis.results)
    assert {path for path in before if before[path] != after[path]} == {
        f"good/Cityscapes/clean/frankfurt/{path}"
        for path in (f"predictions/{name}.png", f"statistics/{name}.json", f"statistics/{name}.npz",
                     "metrics.json", "per_image.csv",
                     "confusion_matrix.csv", "manifest.jsonl", "total.npz")
    }  # fmt: skip


def settle(results):
    """Make each metrics.json newer than the other files of its scene, as it is where an evaluation takes a second."""
    time.sleep(0.05)
    for path in results.rglob("metrics.json"):
        os.utime(path)


def test_a_finished_scene_is_recognised_without_reading_the_files_of_its_images(relis, monkeypatch):
    relis.eval()
    before = digest(relis.results)
    settle(relis.results)
    with monkeypatch.context() as patch:
        patch.setattr(SceneResults, "read_image", None)
        patch.setattr(SceneResults, "is_done", None)
        patch.setattr(SceneResults, "damaged_file", None)
        code, out, err = relis.eval()
    assert code == 0 and "| good" in out, err
    assert digest(relis.results) == before


@pytest.mark.parametrize("change", ["content", "length", "removed", "summary", "total"])
def test_a_changed_file_of_a_finished_scene_is_found(relis, change):
    relis.eval()
    before, scene = digest(relis.results), relis.results / "good/Cityscapes/clean/frankfurt"
    settle(relis.results)
    path = scene / f"statistics/{CITYSCAPES_NAMES['frankfurt'][0]}.npz"
    content = path.read_bytes()
    if change == "content":
        path.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    elif change == "length":
        path.write_bytes(content[:-1])
    elif change == "removed":
        path.unlink()
    else:
        (scene / {"summary": "metrics.json", "total": "total.npz"}[change]).write_bytes(b"{}")
        if change == "summary":
            (scene / "metrics.json").unlink()
    relis.eval()
    assert digest(relis.results) == before


def test_other_weights_under_the_same_name_are_evaluated_again(relis, monkeypatch):
    relis.eval()
    path = relis.results / "good/Cityscapes/clean/munster/metrics.json"
    before = json.loads(path.read_text())["miou"]
    monkeypatch.setitem(FAKE_MODELS, "good", 0.5)
    relis.eval()
    assert json.loads(path.read_text())["miou"] < before


def test_limit_and_dry_run(relis):
    code, out, _ = relis.eval("Cityscapes", "good", "--dry_run")
    assert code == 0 and "Cityscapes: 5 images, 0 bad files, for each of 1 segmenters" in out
    relis.refused("Unknown segmenter 'none'", code_out_err=relis.eval("Cityscapes", "good,none", "--dry_run"))
    assert not relis.results.exists()
    relis.eval("Cityscapes", "good", "--limit", "2")
    assert len(list(relis.results.rglob("*.png"))) == 2


def image_of(relis, name="frankfurt_000000_000576"):
    return relis.root / f"datasets/cityscapes/leftImg8bit/val/frankfurt/{name}_leftImg8bit.png"


def mask_of(relis, name="frankfurt_000000_000576"):
    return relis.root / f"datasets/cityscapes/gtFine/val/frankfurt/{name}_gtFine_labelIds.png"


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BAD = {
    "image without mask": (lambda relis: mask_of(relis).unlink(), image_of, "image without a mask"),
    "mask without image": (lambda relis: image_of(relis).unlink(), mask_of, "mask without an image"),
    "size mismatch": (
        lambda relis: write_png(mask_of(relis), np.zeros((5, 7), np.uint8)), mask_of, "found 40x24 and 7x5 pixels",
    ),
    "unknown labelId": (
        lambda relis: write_png(mask_of(relis), np.full((24, 40), 99, np.uint8)), mask_of, "found 99",
    ),
    "truncated image": (lambda relis: truncate(image_of(relis)), image_of, "cannot be decoded"),
    "truncated mask": (lambda relis: truncate(mask_of(relis)), mask_of, "cannot be decoded"),
    "no image at all": (lambda relis: image_of(relis).write_text("<html>"), image_of, "cannot be decoded"),
    "colour mask": (
        lambda relis: write_png(mask_of(relis), np.zeros((24, 40, 3), np.uint8)), mask_of, "not a label mask",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", BAD)
def test_bad_files_stop_the_run_or_are_skipped_counted_and_listed(relis, damage):
    do_damage, file_of, said = BAD[damage]
    do_damage(relis)
    relis.refused(file_of(relis).name, said, code_out_err=relis.eval())
    assert not (relis.results / "good/Cityscapes/clean/frankfurt/metrics.json").exists()

    code, out, _ = relis.eval("Cityscapes", "good", "--skip_bad", "--batch_size", "2")
    assert code == 0 and "skipped " in out and said in out
    metrics = json.loads((relis.results / "good/Cityscapes/clean/frankfurt/metrics.json").read_text())
    assert metrics["images"] == 2 and len(metrics["skipped"]) == 1
    assert file_of(relis).name in json.dumps(metrics["skipped"][0])


def test_nothing_left_is_no_result(relis):
    for name in CITYSCAPES_NAMES["frankfurt"]:
        truncate(image_of(relis, name))
    result = relis.eval("Cityscapes", "good", "--skip_bad", "--scene", "frankfurt")
    relis.refused("Every image of Cityscapes was skipped", code_out_err=result)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (("Cityscape",), ["Unknown data set 'Cityscape'", "Did you mean Cityscapes?"]),
        (("Cityscapes", "goood"), ["Unknown segmenter 'goood'"]),
        (("ACDC", "good", "--cond", "fgo"), ["no condition 'fgo'", "Did you mean fog?"]),
        (("Cityscapes", "good", "--scene", "muenster"), ["no scene 'muenster'", "Did you mean munster?"]),
        (("Cityscapes", "good", "--split", "vall"), ["expected", "vall"]),
        (("IDD",), ["No IDD in", "ln -s"]),
        (("Cityscapes_sand",), ["No Cityscapes_sand in", "style_transfer.py --domain sand"]),
        (("Cityscapes", "nan"), ["nan gives NaN", "frankfurt_000000_000294_leftImg8bit.png"]),
        (("Cityscapes", "good", "--devices", "x"), ["--devices x are not available"]),
        (("Cityscapes", "good", "--accelerator", "warp"), ["--accelerator warp"]),
    ],
    ids=lambda value: "-".join(value)[:40] if isinstance(value, tuple) else "",
)
def test_invalid_input_is_refused_and_nothing_is_written(relis, call, said):
    relis.refused(*said, code_out_err=relis.eval(*call))
    assert not list(relis.results.rglob("*.png")) and not list(relis.results.rglob("metrics.json"))


def test_an_empty_data_set_is_refused(relis):
    (relis.root / "empty/leftImg8bit/val/bonn").mkdir(parents=True)
    result = relis.eval("Cityscapes", "good", "--trg_root", relis.root / "empty")
    relis.refused("No files of Cityscapes", "empty/leftImg8bit/val", code_out_err=result)


def test_a_results_folder_that_cannot_be_made_is_refused(relis):
    relis.results.write_text("in the way")
    relis.refused("Cannot write", relis.results, code_out_err=relis.eval())
    assert relis.results.read_text() == "in the way"


def start(root, results, *flags, delay=0.0):
    """Start relis/eval.py in a subprocess."""
    command = [
        "tests/forking.py", "relis/eval.py", "--trg_dataset", "Cityscapes,Cityscapes_fog",
        "--model_arch", "relis_world:slow_segmenter", "--datasets_dir", root / "datasets",
        "--generated_dir", root / "images", "--root_exp_dir", results, "--accelerator", "cpu", "--batch_size", "2",
        *flags,
    ]  # fmt: skip
    paths = f"{REPO_ROOT}{os.pathsep}{REPO_ROOT / 'tests/scripts'}"
    return Script(*command, environment={"PYTHONPATH": paths, "DELAY": str(delay)})


@pytest.mark.slow
def test_killed_at_any_moment_and_started_again_gives_the_same_bytes(tmp_path):
    root, results = make_world(tmp_path), tmp_path / "results"
    process = start(root, results, "--devices", "1")
    _, err = process.communicate()
    assert process.returncode == 0, err
    expected = digest(results)
    results.rename(tmp_path / "undisturbed")

    # The moments differ from run to run: after a number of files, plus a moment inside the writing of the next one.
    killed = 0
    for count in (1, random.randint(4, 9), random.randint(10, 18)):
        process = start(root, results, "--devices", "1", delay=0.05)
        while process.poll() is None and len(list(results.rglob("*.*"))) < count:
            time.sleep(0.002)
        time.sleep(random.uniform(0, 0.02))
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            killed += 1
        process.communicate()
    process = start(root, results, "--devices", "1")
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert killed and digest(results) == expected


@pytest.mark.slow
def test_two_processes_give_the_bytes_of_one(tmp_path):
    root = make_world(tmp_path)
    one = start(root, tmp_path / "one", "--devices", "1")
    two = start(root, tmp_path / "two", "--devices", "2")
    for process in (one, two):
        _, err = process.communicate(timeout=180)
        assert process.returncode == 0, err
    results = [digest(tmp_path / name) for name in ("one", "two")]
    different = {name.rpartition("/")[2] for name in results[0] if results[0][name] != results[1].get(name)}
    assert results[0].keys() == results[1].keys() and different == {"settings.json"}


@pytest.mark.slow
def test_a_bad_file_in_one_of_two_processes_ends_both_with_one_line(tmp_path):
    root = make_world(tmp_path)
    truncate(root / "datasets/cityscapes/leftImg8bit/val/munster/munster_000000_000019_leftImg8bit.png")
    process = start(root, tmp_path / "results", "--devices", "2", "--batch_size", "1")
    _, err = process.communicate(timeout=180)
    assert process.returncode == 2
    assert err.count("error:") == 1 and "munster_000000_000019_leftImg8bit.png cannot be decoded" in err
    assert "Traceback" not in err
    assert not list((tmp_path / "results").rglob("metrics.json"))


@pytest.mark.slow
@pytest.mark.parametrize("flags, code, lines", [(["--dry_run"], 0, (2, 0)), (["--data_dir", "nowhere"], 2, (0, 1))])
def test_waiting_processes_end_silently_with_a_first_one_that_does_not_need_them(tmp_path, flags, code, lines):
    process = start(make_world(tmp_path), tmp_path / "results", "--devices", "2", *flags)
    out, err = process.communicate(timeout=180)  # returns when no process has the streams any more
    assert process.returncode == code
    assert (out.count("5 images, 0 bad files"), err.count("error:")) == lines and "Traceback" not in err


@pytest.mark.slow
def test_a_lost_process_ends_the_first_one(tmp_path):
    process = start(make_world(tmp_path), tmp_path / "results", "--devices", "2", delay=300)
    children, others = Path(f"/proc/{process.pid}/task/{process.pid}/children"), ""
    while not others and process.poll() is None:
        others = children.read_text()
        time.sleep(0.01)
    os.kill(int(others.split()[0]), signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and "error: Another process ended with code -9." in err, err


@pytest.mark.slow
def test_the_other_process_ends_with_the_first_one(tmp_path):
    process = start(make_world(tmp_path), tmp_path / "results", "--devices", "2", delay=300)
    while not list((tmp_path / "results").rglob("settings.json")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM and not signal_group(process.pid, 0), err
    assert "Traceback" not in err


def test_nothing_saved_but_statistics_and_a_sample_of_the_confidences(relis):
    assert relis.eval("Cityscapes", "good", "--save", "none", "--sample", "100", "--seed", "3")[0] == 0
    folder = relis.results / "good/Cityscapes/clean/munster"
    assert not (folder / "predictions").exists() and len(list((folder / "statistics").glob("*.npz"))) == 2
    metrics = json.loads((folder / "metrics.json").read_text())
    assert 100 < metrics["measured_pixels"] <= 200 < metrics["pixels"]  # void ones among the sample are not measured
    before = digest(relis.results)
    assert relis.eval("Cityscapes", "good", "--save", "none", "--sample", "100", "--seed", "3")[0] == 0
    assert digest(relis.results) == before
    assert relis.eval("Cityscapes", "good")[0] == 0  # other statistics, and predictions as well
    again = json.loads((folder / "metrics.json").read_text())
    assert again["measured_pixels"] == again["pixels"] == metrics["pixels"] and again["miou"] == metrics["miou"]
    code, _, err = relis.eval("Cityscapes", "good", "--save", "logit")
    assert code == 2 and "expected none or some of predictions,logits,features, found 'logit'" in err
