"""benchmarks/growth.py measures an evaluation and a second run of it, which computes nothing."""

import subprocess
import sys

import pytest

from genval.runtime.paths import REPO_ROOT


@pytest.mark.slow
def test_a_row_per_number_of_images():
    command = [sys.executable, "benchmarks/growth.py", "--images", "4", "--scenes", "1", "--temperatures"]
    done = subprocess.run(command, cwd=REPO_ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(rows) == 3 and rows[-1].split()[1] == "4" and "temperatures s" in rows[0]
