"""benchmarks/streets: from small sets in the layout of the real ones to the tables, on a CPU."""

import json

import numpy as np
import pytest
from script_runs import run_script

from genval.datasets.reading import read_image
from genval.runtime.files import write_bytes, write_json, write_png
from genval.runtime.paths import REPO_ROOT

STREETS = REPO_ROOT / "benchmarks/streets"
SEGMENTER = "mmseg:mini/segmenters/fast-scnn.py,checkpoints/mini/segmenters/fast-scnn.pth"


def run(script, *flags, expected=0):
    result = run_script(STREETS / f"{script}.py", *flags)
    assert result.returncode == expected, result.stdout + result.stderr
    return result.stdout + result.stderr


def street(rng, height, width):
    """A noisy image of sky above a road with a car, and its trainIds."""
    train_ids = np.full((height, width), 10, np.uint8)
    train_ids[height // 2 :] = 0
    train_ids[height // 2 : -height // 4, width // 3 : width // 2] = 13
    colours = np.array([[128, 64, 128], [150, 180, 220], [20, 20, 90]])
    image = colours[np.searchsorted([0, 10, 13], train_ids)] + rng.normal(0, 12, (height, width, 3))
    return np.clip(image, 0, 255).astype(np.uint8), train_ids


def write_jpeg(path, image):
    import cv2

    write_bytes(path, cv2.imencode(".jpg", image[..., ::-1])[1].tobytes())


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The layout of the real sets, with two frames or a few of each."""
    folder = tmp_path_factory.mktemp("streets")
    rng = np.random.default_rng(0)
    real = folder / "real"
    for split, count in (("train", 2), ("val", 26)):
        for number in range(1, count + 1):
            image, train_ids = street(rng, 64, 64)
            write_jpeg(real / f"cityscapes/{split}/{number:04d}.jpg", image)
            write_png(real / f"cityscapes/{split}/{number:04d}_labelTrainIds.png", train_ids)
    for cond, name in (("fog", "GOPR0476_frame_1"), ("fog", "GP010476_frame_2"), ("night", "GOPR0351_frame_1")):
        image, train_ids = street(rng, 64, 128)
        write_png(real / f"acdc/{cond}/{name}.png", image // 2 + 90)
        write_png(real / f"acdc/{cond}/{name}_labelTrainIds.png", train_ids)
    for name in ("0_1", "1_2", "2_3", "10_4"):
        image, train_ids = street(rng, 60, 80)
        write_jpeg(real / f"idd_lite/train/{name}.jpg", image)
        write_png(real / f"idd_lite/train/{name}_label.png", np.select([train_ids == 10, train_ids == 13], [6, 3], 0))
    write_jpeg(real / "idd_lite/unlabelled/103_1.jpg", street(rng, 60, 80)[0])
    write_jpeg(real / "dashcam/night/train/0000.jpg", street(rng, 64, 128)[0] // 4)
    for number in range(4):
        write_jpeg(real / f"dawn/fog/foggy-{number}.jpg", street(rng, 64, 128)[0] // 2 + 90)
    write_json(real / "dawn/boxes.json", {f"fog/foggy-{number}.jpg": [["car", 42, 32, 64, 48]] for number in range(4)})
    for name in ("RoadAnomaly21", "FishyscapesStatic"):
        image, train_ids = street(rng, 64, 128)
        write_jpeg(real / f"anomaly/{name}/0.jpg", image)
        write_png(real / f"anomaly/{name}/0_mask.png", (train_ids == 13).astype(np.uint8))
    for split, frame in (("train", "0001TP_1"), ("test", "0001TP_2"), ("test", "0001TP_3")):
        image, train_ids = street(rng, 360, 480)
        write_png(folder / f"camvid/images/{split}/{frame}.png", image)
        labels = np.select([train_ids == 10, train_ids == 13], [0, 8], 3).astype(np.uint8)
        write_png(folder / f"camvid/labels/{split}/{frame}.png", labels)
    (folder / "own").mkdir()
    (folder / "own/list.txt").write_text(f"{SEGMENTER}\n")
    run("prepare", "--streets", real, "--camvid", folder / "camvid", "--output_dir", folder / "data")
    return folder


def test_prepared_sets_and_halves(places):
    data = places / "data"
    splits = json.loads((data / "splits.json").read_text())
    parts = splits["idd_drives"]
    assert sorted(drive for part in parts.values() for drive in part) == ["0", "1", "10", "2"]
    assert len(parts["generators"]) == 2
    trained = {path.stem for path in (data / "unlabelled/india").iterdir()}
    assert {name.partition("_")[0] for name in trained} == {*parts["generators"], "103"}
    measured = {path.name for path in (data / "idd20k_lite/leftImg8bit/val").iterdir()}
    assert measured == {*parts["choose"], *parts["confirm"]}
    boxes = json.loads((data / "dawn/boxes.json").read_text())
    assert {f"fog/{name}" for name in splits["dawn_fog"]["choose"] + splits["dawn_fog"]["confirm"]} == set(boxes)
    assert {path.name for path in (data / "unlabelled/fog").iterdir()} == set(splits["dawn_fog"]["generators"])
    # Chapters of one recording are one scene, and so are 25 frames of Cityscapes.
    assert [path.name for path in (data / "acdc/rgb_anon/fog/val").iterdir()] == ["GOPR0476"]
    assert sorted(path.name for path in (data / "cityscapes/leftImg8bit/val").iterdir()) == ["val00", "val01"]
    assert len((data / "training/train.jsonl").read_text().splitlines()) == 2


def test_masks_are_stretched_and_keep_their_meaning(places):
    from genval.datasets import find_items
    from genval.datasets.reading import read_pair

    item = find_items("Cityscapes", root=places / "data/cityscapes")[0]
    image, train_ids = read_pair(item)
    assert image.shape == (256, 512, 3) and train_ids.shape == (256, 512)
    assert [train_ids[10, 10], train_ids[250, 10], train_ids[140, 200]] == [10, 0, 13]


def test_missing_sets_are_named(tmp_path):
    text = run("prepare", "--streets", tmp_path, "--camvid", tmp_path, "--output_dir", tmp_path / "out", expected=2)
    assert "No images in" in text and "--streets" in text
    text = run("evaluate", "--published", tmp_path, "--own", tmp_path, expected=2)
    assert "export_segmenters.py" in text


def test_segmenters_of_other_flags_are_refused(tmp_path):
    (tmp_path / "fast-scnn.pth").touch()
    record = {"data_dir": "datasets/streets", "steps": 20000, "seconds": 300, "batch_size": 32, "limit": None}
    write_json(tmp_path / "mini-fast-scnn.json", {"settings": record, "val_miou": 0.5})
    flags = ["--segmenters", "mini-fast-scnn", "--output", tmp_path]
    assert "wrote 1 segmenters" in run("train_segmenters", *flags, "--seconds", 300)
    text = run("train_segmenters", *flags, "--seconds", 60, expected=2)
    assert "fast-scnn.pth was trained with --seconds 300 (now 60). Delete" in text
    # Without its record it is trained, which needs the images.
    (tmp_path / "mini-fast-scnn.json").unlink()
    text = run("train_segmenters", *flags, "--data_dir", tmp_path, "--accelerator", "cpu", expected=2)
    assert "train.jsonl" in text


@pytest.mark.slow
def test_from_streets_to_counts(places):
    data, sets, results = places / "data", places / "images/sets", places / "results"
    models = ["--published", places / "none", "--own", places / "own"]
    run("paste_objects", "--datasets_dir", data, "--scenes", "val01")
    changed = ["relis/corrupt.py", "--domains", "india", "--method", "histogram"]
    changed += ["--reference", data / "unlabelled/india", "--datasets_dir", data, "--generated_dir", sets]
    assert run_script(*changed).returncode == 0
    flags = ["--datasets_dir", data, "--generated_dir", sets, "--scenes", "val01", "--accelerator", "cpu"]
    flags += ["--eval_dir", results / "eval", "--logit_pixels", 50]
    run("evaluate", *models, *flags, "--ood_dir", results / "ood")
    times = {path: path.stat().st_mtime_ns for path in (results / "eval").rglob("*.npz")}
    assert "fast-scnn: 0 images of Cityscapes to IDD-lite" in run("evaluate", *models, *flags, "--no_objects")
    assert times == {path: path.stat().st_mtime_ns for path in (results / "eval").rglob("*.npz")}
    boxes = ["boxes", *models, "--datasets_dir", data, "--output_dir", results / "boxes"]
    assert "mean share" in run(*boxes) and "mean share" not in run(*boxes)
    photo = next((data / "dawn/fog").iterdir())
    write_jpeg(photo, read_image(photo)[::-1])
    assert "mean share" in run(*boxes)
    collected = ["--eval_dir", results / "eval", "--boxes_dir", results / "boxes", "--ood_dir", results / "ood"]
    run("collect", *models, *collected, "--output_dir", results / "collected", "--jobs", 1)

    with np.load(results / "collected/sets/Cityscapes_histogram_india@idd-level1_india.npz") as arrays:
        assert arrays["counts"].shape == (1, 1, 3, 7) and arrays["models"].tolist() == ["fast-scnn"]
        assert arrays["counts"][0, 0, 1].sum() == 256 * 512 and arrays["bins"][0, 0, 1].sum() == 256 * 512
    read = {name: json.loads((results / f"collected/{name}.json").read_text()) for name in ("boxes", "ood", "models")}
    assert read["models"] == {"fast-scnn": "own"}
    assert set(read["ood"]) == {"RoadAnomaly21", "FishyscapesStatic", "pasted"}
    assert [box[:2] for photo in read["boxes"]["fast-scnn"].values() for box in photo["boxes"]] == [["car", 352]] * 2
    rows = json.loads((results / "collected/temperatures.json").read_text())
    sources = {row["source"] for row in rows if row["domain"] == "india"}
    assert sources == {"Cityscapes@idd-level1", "Cityscapes_histogram_india@idd-level1", "IDD-lite", "best"}
    rows = json.loads((results / "collected/estimates.json").read_text())
    assert {row["estimate"] for row in rows if row["domain"] == "india"} == {"confidence", "doc", "atc"}
    assert all(0 <= row["value"] <= 100 for row in rows if row["estimate"] != "doc")

    # The result of a set that is not as it was is not kept, also where it cannot be measured again.
    next((data / "acdc/rgb_anon/fog").rglob("*.png")).write_bytes(b"none")
    text = run("evaluate", *models, *flags, "--no_objects", expected=2)
    assert "fast-scnn: failed" in text and times.keys() - {*(results / "eval").rglob("*.npz")} == {
        path for path in times if path.name == "ACDC_fog.npz"
    }


def write_set(folder, name, right, models, images):
    """Write the counts of images of two classes, of which each model has these shares right."""
    pixels = 1000
    hits = np.round(np.broadcast_to(np.asarray(right)[None, :, None], (len(images), len(models), 2)) * pixels)
    counts = np.stack([hits, np.full_like(hits, pixels), pixels + hits - hits[..., ::-1]], 2)
    bins = np.zeros((len(images), len(models), 3, 15))
    bins[..., -1] = np.stack([hits.sum(-1), np.full_like(hits.sum(-1), 2 * pixels), hits.sum(-1) + 100], -1)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        folder / f"{name}.npz", images=np.array(images), models=np.array(models), counts=counts, bins=bins
    )


def test_study_of_known_counts(tmp_path):
    """Clear weather ranks six models in reverse of fog; a changed set ranks them as fog does, but for one swap."""
    models = [f"net-{index}-512" for index in range(6)]
    fog = [0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    sets = tmp_path / "collected/sets"
    frames = [f"val00/val00_{index:04d}" for index in range(8)]
    write_set(sets, "Cityscapes_clean", fog[::-1], models, frames)
    write_set(sets, "Cityscapes_histogram_fog_fog", [0.3, 0.4, 0.5, 0.6, 0.8, 0.7], models, frames)
    write_set(sets, "Cityscapes_clear_clear", fog[::-1], models, [f"val00/clear_0_{f.split('/')[1]}" for f in frames])
    write_set(sets, "ACDC_fog", fog, models, [f"GOPR{index}/{index}" for index in range(5)])
    contents = {"models": dict.fromkeys(models, "own"), "boxes": {}, "ood": {}, "temperatures": [], "estimates": []}
    for name, content in contents.items():
        write_json(tmp_path / f"collected/{name}.json", content)
    study = ["--collected", tmp_path / "collected", "--datasets_dir", tmp_path, "--output_dir", tmp_path / "study"]
    text = run("study", *study, "--draws", 5)
    report = json.loads((tmp_path / "study/study.json").read_text())
    rows = report["domains"]["fog"]["predictors"]
    iou = [share / (2 - share) for share in fog]  # each class misses and gains as many pixels
    swapped = [*iou[:4], iou[5], iou[4]]
    assert rows["clear"]["miou"]["r"] == pytest.approx(np.corrcoef(iou[::-1], iou)[0, 1])
    assert rows["clear"]["miou"]["regret"] == pytest.approx(100 * (iou[5] - iou[0]))
    assert rows["histogram"]["miou"]["r"] == pytest.approx(np.corrcoef(swapped, iou)[0, 1])
    assert rows["histogram"]["accuracy"]["regret"] == pytest.approx(10)
    assert rows["histogram"]["ece"]["r"] is None  # it is 5 % for all of them
    assert (
        report["clear_checks"]["controlnet"]["r"] == pytest.approx(1) and report["clear_checks"]["controlnet"]["passed"]
    )
    assert not report["domains"]["fog"]["verdict"] and "(no verdict)" in text


def test_study_of_a_domain_with_enough_images(tmp_path):
    """In India translated images rank eight models as real ones do, and clear weather in reverse."""
    models = [f"net-{index}-512" for index in range(8)]
    share = np.linspace(0.2, 0.9, 8)
    sets = tmp_path / "collected/sets"
    frames = [f"val00/val00_{index:04d}" for index in range(20)]
    drives = [f"{drive}/{drive}_{number}" for drive in range(8) for number in range(3)]
    write_set(sets, "Cityscapes@idd-level1_clean", share[::-1], models, frames)
    made = [f"val00/india_{index}_{frame.partition('/')[2]}" for index, frame in enumerate(frames)]
    write_set(sets, "Cityscapes_translate_india@idd-level1_india", share, models, made)
    write_set(sets, "Cityscapes_histogram_india@idd-level1_india", share, models, frames)
    write_set(sets, "IDD-lite_india", share, models, drives)
    estimates = [
        {"model": model, "domain": "india", "estimate": "atc", "value": -value}
        for model, value in zip(models, share, strict=True)
    ]
    contents = {"models": dict.fromkeys(models, "own"), "boxes": {}, "ood": {}, "temperatures": []}
    for name, content in {**contents, "estimates": estimates}.items():
        write_json(tmp_path / f"collected/{name}.json", content)
    write_json(tmp_path / "splits.json", {"idd_drives": {"choose": list("0123"), "confirm": list("4567")}})
    study = ["--collected", tmp_path / "collected", "--datasets_dir", tmp_path, "--output_dir", tmp_path / "study"]
    run("study", *study, "--draws", 5)
    report = json.loads((tmp_path / "study/study.json").read_text())
    india = report["domains"]["india"]
    assert india["verdict"] and india["recordings"] == 8
    judged = {name: one["judged"]["miou"] for name, one in india["predictors"].items()}
    assert judged["translate"]["r"] == pytest.approx(1) and judged["translate"]["better_than_clear"] == "yes"
    assert judged["clear"]["high"] < 0 < judged["translate"]["less_low"] and "less_low" not in judged["clear"]
    assert report["estimates"]["india"]["atc"]["accuracy"] == {"r": pytest.approx(-1), "regret": pytest.approx(70)}
    assert {"translate", "translate+histogram", "clear+translate"} < report["improvements"].keys()
    pooled = report["improvements"]["translate+histogram"]
    assert pooled["confirm"]["india"]["r"] == pytest.approx(1) and "confirm_mean" not in pooled
