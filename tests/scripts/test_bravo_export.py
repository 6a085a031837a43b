"""relis/bravo.py on a tiny benchmark, with a segmenter of arithmetic."""

import json

import cv2
import numpy as np
import pytest
from script_runs import run_script

from genval.runtime.files import write_png

pytestmark = pytest.mark.slow
SIZE = (32, 48)
IMAGES = {
    "bravo_ACDC/fog/test/A/A_1_rgb_anon": "bravo_ACDC/fog/test/A/A_1_gt_{}",
    "bravo_synobjs/lion/1": "bravo_synobjs/lion/1_{}",
}


def run(*flags):
    done = run_script("relis/bravo.py", *flags)
    return done.returncode, done.stdout, done.stderr


def test_export_resume_and_metrics(tmp_path):
    rng = np.random.default_rng(0)
    for image, labels in IMAGES.items():
        write_png(tmp_path / f"bravo/{image}.png", rng.integers(0, 256, (*SIZE, 3)).astype(np.uint8))
        ends = ("labelTrainIds.png", "invIds.png") if "gt" in labels else ("gt.png", "mask.png")
        write_png(tmp_path / "labels" / labels.format(ends[0]), rng.integers(0, 19, SIZE).astype(np.uint8))
        write_png(tmp_path / "labels" / labels.format(ends[1]), (rng.random(SIZE) < 0.3).astype(np.uint8))
    flags = ["--segmenters", "mini-fast-scnn", "--bravo_dir", tmp_path / "bravo", "--output_dir", tmp_path / "out"]
    flags += ["--accelerator", "cpu", "--devices", 1]
    code, out, err = run(*flags, "--dry_run", "--segmenters", "mini-fast-scnn,SETR-PUP")
    assert code == 2 and "No checkpoint for SETR-PUP" in err
    code, out, err = run(*flags, "--labels_dir", tmp_path / "labels")
    assert code == 0, err
    folder = tmp_path / "out/mini-fast-scnn"
    for image in IMAGES:
        prediction = cv2.imread(str(folder / f"{image}_pred.png"), cv2.IMREAD_UNCHANGED)
        confidence = cv2.imread(str(folder / f"{image}_conf.png"), cv2.IMREAD_UNCHANGED)
        assert prediction.shape == confidence.shape == SIZE
        assert prediction.dtype == np.uint8 and prediction.max() < 19 and confidence.dtype == np.uint16
    content = json.loads((folder / "bravo.json").read_text())
    assert set(content["semantic"]) == {"ACDCfog", "synobjs"} and set(content["ood"]) == {"synobjs"}
    assert 0 < content["bravo_index"] < 1 and "bravo_index" in out
    assert "| 2 of 9 subsets |" in out  # the index of the benchmark is of all of them
    # A part of the images never replaces all of them.
    code, out, err = run(*flags, "--labels_dir", tmp_path / "labels", "--limit", 1)
    assert code == 2 and "holds the metrics of all images: --limit would replace them" in err
    assert json.loads((folder / "bravo.json").read_text()) == content and content["limit"] is None
    part = [*flags, "--output_dir", tmp_path / "part", "--labels_dir", tmp_path / "labels", "--limit", 1]
    assert run(*part)[0] == 0
    assert json.loads((tmp_path / "part/mini-fast-scnn/bravo.json").read_text())["limit"] == 1
    # LabelIds in place of trainIds are named.
    labels = tmp_path / "labels" / "bravo_synobjs/lion/1_gt.png"
    write_png(labels, np.full(SIZE, 26, np.uint8))
    code, out, err = run(*flags, "--labels_dir", tmp_path / "labels")
    assert code == 2 and "lion/1_gt.png: The labels hold classes that do not exist" in err
    # A label that is missing is named, and finished predictions are kept.
    (tmp_path / "labels/bravo_synobjs/lion/1_gt.png").unlink()
    written = (folder / "bravo_synobjs/lion/1_pred.png").stat().st_mtime_ns
    code, out, err = run(*flags, "--labels_dir", tmp_path / "labels")
    assert code == 2 and "lion/1_gt.png does not exist" in err and "Traceback" not in err
    assert (folder / "bravo_synobjs/lion/1_pred.png").stat().st_mtime_ns == written
    # Metrics of earlier predictions are removed with them.
    write_png(tmp_path / "bravo/bravo_synobjs/lion/1.png", np.full((*SIZE, 3), 9, np.uint8))
    assert run(*flags)[0] == 0 and not (folder / "bravo.json").exists()
    # Two images would have one prediction.
    cv2.imwrite(str(tmp_path / "bravo/bravo_synobjs/lion/1.jpg"), np.zeros((*SIZE, 3), np.uint8))
    code, out, err = run(*flags)
    assert code == 2 and "Two files for bravo_synobjs/lion/1: " in err and "lion/1.png" in err
