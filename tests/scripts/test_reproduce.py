"""The paper's protocol as a user starts it: a plan to look at, and the demo."""

import fnmatch
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from genval.runtime.paths import REPO_ROOT


def reproduce(*flags, root=REPO_ROOT):
    command, env = [sys.executable, "reproduce.py", *flags], {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.run(command, cwd=root, env=env, capture_output=True, text=True)


def test_the_plan_shows_every_command_and_what_is_missing(tmp_path):
    done = reproduce("--dry_run", "--models", "SETR-PUP", "--results_dir", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "$ python ControlNet/style_transfer.py --domain fog --num_samples 512" in done.stdout
    assert "missing:" in done.stdout
    assert not list(tmp_path.iterdir())


def test_an_unknown_stage_is_one_line(tmp_path):
    done = reproduce("--stages", "dream", "--results_dir", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.startswith("error: --stages: dream is none of render")
    assert done.stderr.count("\n") == 1


def test_a_plan_of_which_nothing_can_run_is_an_error(tmp_path):
    flags = ("--models", "SETR-PUP", "--stages", "caption", "--preset", "mini", "--results_dir", str(tmp_path))
    done = reproduce(*flags)  # rendering makes the mini world's captions: there is no such step
    assert done.returncode == 2
    assert done.stderr.startswith("error: None of these steps can run")
    assert "finished" not in done.stdout


@pytest.mark.slow
def test_the_demo_runs_twice(tmp_path):
    """One domain and three segmenters: the first run makes what is missing, the second finds it all done.

    In a copy of the project, so that neither uses or replaces what a user made in this one.
    """
    copy = tmp_path / "project"
    made = (".*", "checkpoints", "datasets", "images", "results", "captions")

    def left_out(folder, names):
        at_top = Path(folder) == REPO_ROOT
        return {name for name in names if at_top and any(fnmatch.fnmatch(name, pattern) for pattern in made)}

    shutil.copytree(REPO_ROOT, copy, ignore=left_out)
    (copy / "checkpoints").symlink_to(REPO_ROOT / "checkpoints")
    models = "mini-fast-scnn,mini-fcn-hrnet,mini-pspnet-r18"
    stages = "render,generate,corrupt,evaluate,calibrate,correlate,tables,report"
    flags = ("--preset", "mini", "--num_samples", "4", "--domains", "night", "--models", models, "--stages", stages)
    flags = (*flags, "--logit_pixels", "100")
    first = reproduce(*flags, "--jobs", "2", root=copy)
    assert first.returncode == 0, first.stdout + first.stderr
    assert (copy / "results" / "mini" / "report" / "index.html").is_file()
    assert first.stdout.strip().splitlines()[-1].startswith("report: ")
    second = reproduce(*flags, "--dry_run", root=copy)
    assert "0 to do" in second.stdout or "to do" not in second.stdout
