"""The simulation of the intervals runs and writes every table."""

from script_runs import run_script


def test_the_benchmark_writes_its_tables(tmp_path):
    command = ["benchmarks/interval_coverage.py", "--reduced", "--repetitions", "2", "--jobs", "1"]
    command += ["--parts", "coverage,level,verdict,power", "--output", str(tmp_path / "table.md")]
    done = run_script(*command)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "table.md").read_text()
    assert text.count("\n## ") == 4 and "With 4 segmenters the share of refusals is 1.000." in text
