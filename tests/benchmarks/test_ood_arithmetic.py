"""The benchmark of OOD detection runs, and both procedures agree."""

import pytest
from script_runs import run_script


@pytest.mark.slow
def test_levels_and_single_pixels_agree_with_the_published_procedure():
    command = ["benchmarks/ood_arithmetic.py", "--height", "64", "--width", "128", "--repeats", "2"]
    done = run_script(*command)
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines()[2:5]]
    assert [row[0].partition(",")[0] for row in rows] == [
        "metrics of 3 scores",
        "metrics of 3 scores",
        "the same from logits",
    ]
    levels, exact, from_logits = (float(row[4]) for row in rows)
    assert exact < 1e-12 < levels < 1e-2 and from_logits < 1e-2
    assert all(float(row[3]) > 1 for row in rows)
