"""The demo as a newcomer runs it: commands in sight, a restart that keeps what is there."""

import subprocess
import sys

import pytest

from genval.runtime.paths import REPO_ROOT
from mini.demo import steps


def test_every_command_names_a_script_that_is_there():
    for command in steps(4, ["fog", "night"]):
        assert (REPO_ROOT / command[0]).is_file()


def test_each_domain_is_generated_before_it_is_evaluated():
    scripts = [command[0] for command in steps(4, ["fog", "night"])]
    assert scripts == [
        "mini/render.py",
        "ControlNet/style_transfer.py",
        "ControlNet/style_transfer.py",
        "relis/eval.py",
        "relis/compare_domains.py",
        "relis/contact_sheet.py",
    ]


@pytest.mark.slow
def test_the_demo_runs_twice():
    """Four images a domain: the first run makes what is missing, the second finds it all done."""
    command = [sys.executable, "mini/demo.py", "--num_samples", "4", "--domains", "night"]
    for _ in range(2):
        done = subprocess.run(command, cwd=REPO_ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "demo finished in" in done.stdout
        for model in ("mini-fast-scnn", "mini-fcn-hrnet"):
            assert f"| {model}" in done.stdout
    assert (REPO_ROOT / "results" / "mini" / "demo" / "contact_sheet.png").is_file()
