"""benchmarks/growth.py measures an evaluation and a second run of it, which computes nothing."""

import pytest
from script_runs import run_script


@pytest.mark.slow
def test_a_row_per_number_of_images():
    command = ["benchmarks/growth.py", "--images", "4", "--scenes", "1", "--temperatures"]
    done = run_script(*command)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(rows) == 3 and rows[-1].split()[1] == "4" and "temperatures s" in rows[0]
