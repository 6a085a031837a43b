"""CamVid in Cityscapes' layout: what the recipe and the stages read, with real images where they are at hand."""

import numpy as np
import pytest
from script_runs import run_script

from genval.datasets.reading import read_mask
from genval.runtime import files
from genval.runtime.paths import REPO_ROOT

REAL = REPO_ROOT.parent / "shared" / "realdata" / "camvid"


def prepare(camvid, out):
    return run_script("mini/prepare_camvid.py", "--camvid", camvid, "--out", out)


@pytest.fixture
def camvid(tmp_path):
    for split, stem in (("train", "0006R0_f1"), ("test", "Seq05VD_f2"), ("train", "0001TP_3"), ("test", "0001TP_4")):
        files.write_png(tmp_path / "camvid/images" / split / f"{stem}.png", np.full((360, 480, 3), 50, np.uint8))
        files.write_png(tmp_path / "camvid/labels" / split / f"{stem}.png", np.full((360, 480), 3, np.uint8))
    return tmp_path / "camvid"


def test_day_and_dusk_go_where_the_stages_look(camvid, tmp_path):
    done = prepare(camvid, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    mask = read_mask(tmp_path / "out/cityscapes/gtFine/val/Seq05VD/Seq05VD_f2_gtFine_labelIds.png")
    assert mask.shape == (240, 480)
    assert (mask == 7).all()
    diffusion = files.read_jsonl(tmp_path / "out/training/diffusion.jsonl")
    # One day frame, and the dusk frame of the training split three times; no frame that is tested on.
    assert sorted(record["image"].rsplit("/")[-1] for record in diffusion) == [
        *["0001TP_3_rgb_anon.png"] * 3,
        "0006R0_f1_leftImg8bit.png",
    ]
    assert files.read_jsonl(tmp_path / "out/training/val.jsonl")[0]["text"] == "a city street"


def test_an_empty_folder_and_an_unknown_id_are_named(camvid, tmp_path):
    done = prepare(tmp_path / "nothing", tmp_path / "out")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    files.write_png(camvid / "labels/train/0006R0_f1.png", np.full((360, 480), 40, np.uint8))
    done = prepare(camvid, tmp_path / "out")
    assert done.returncode == 2
    assert "0006R0_f1.png has label 40" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="needs the real CamVid images in ../shared/realdata/camvid")
def test_all_real_frames_are_placed(tmp_path):
    done = prepare(REAL, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    counts = {name: len(files.read_jsonl(tmp_path / f"out/training/{name}.jsonl")) for name in ("train", "val")}
    assert counts == {"train": 406, "val": 171}
    assert len(list((tmp_path / "out/acdc/rgb_anon/dusk").rglob("*.png"))) == 124
