"""The paper's protocol as a user starts it: a plan to look at, and the demo."""

import subprocess
import sys

import pytest

from genval.runtime.paths import REPO_ROOT


def reproduce(*flags):
    command = [sys.executable, "reproduce.py", *flags]
    return subprocess.run(command, cwd=REPO_ROOT, capture_output=True, text=True)


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
def test_the_demo_runs_twice():
    """One domain and two segmenters: the first run makes what is missing, the second finds it all done."""
    models = "mini-fast-scnn,mini-fcn-hrnet,mini-pspnet-r18"
    stages = "render,generate,corrupt,evaluate,calibrate,correlate,tables,report"
    flags = ("--preset", "mini", "--num_samples", "4", "--domains", "night", "--models", models, "--stages", stages)
    flags = (*flags, "--logit_pixels", "100")
    first = reproduce(*flags, "--jobs", "2")
    assert first.returncode == 0, first.stdout + first.stderr
    assert (REPO_ROOT / "results" / "mini" / "report" / "index.html").is_file()
    assert first.stdout.strip().splitlines()[-1].startswith("report: ")
    second = reproduce(*flags, "--dry_run")
    assert "0 to do" in second.stdout or "to do" not in second.stdout
