"""relis/finetune.py as a user runs it, on a tiny Cityscapes with a segmenter of the mini world."""

import sys

import pytest
from script_runs import run_script

from genval.runtime.paths import REPO_ROOT

sys.path.insert(0, str(REPO_ROOT / "tests/finetuning"))
from finetuning_world import write_objects, write_streets

pytestmark = pytest.mark.slow


def run(script, *flags):
    done = run_script(script, *flags)
    return done.returncode, done.stdout, done.stderr


def test_fine_tune_then_test_on_the_same_images(tmp_path):
    write_streets(tmp_path)
    write_objects(tmp_path / "objects")
    flags = ["--segmenter", "mini-fast-scnn", "--outliers", tmp_path / "objects", "--datasets_dir", tmp_path]
    flags += ["--output", tmp_path / "new", "--logs_dir", tmp_path / "logs", "--crop_size", "64x128"]
    flags += ["--batch_size", 4, "--max_steps", 2, "--val_every", 1, "--max_miou_drop", 100, "--accelerator", "cpu"]
    code, out, err = run("relis/finetune.py", *flags)
    assert code == 0, err
    specification = f"mmseg:mini/segmenters/fast-scnn.py,{tmp_path}/new/model.pth"
    assert f"--segmenters {specification}" in out and "Trained 2 steps" in out

    evaluate = ["--segmenters", specification, "--trg_dataset", "Cityscapes", "--datasets_dir", tmp_path]
    evaluate += ["--eval_dir", tmp_path / "eval", "--accelerator", "cpu"]
    code, out, err = run("relis/eval.py", *evaluate, "--split", "train")
    assert code == 2 and "was fine-tuned on 4 of these 4 images" in err
    assert "Traceback" not in err
