"""benchmarks/component_table.py as a user runs it, on a few small components."""

import json

import pytest
from script_runs import run_script

pytestmark = pytest.mark.slow


def run(*flags):
    return run_script("benchmarks/component_table.py", *flags)


def test_components_run_or_are_refused_by_name(tmp_path):
    names = "mobilenet_v2,SamModel,Sam3Model"
    output = tmp_path / "table.json"
    slots = "segmenters,outliners,text_masks"
    done = run("--slots", slots, "--components", names, "--repeats", 1, "--output", output)
    assert done.returncode == 0, done.stderr
    table = json.loads(output.read_text())
    assert [row["component"] for row in table["rows"]] == names.split(",")
    assert all(row["runs"] and row["s per image"] > 0 for row in table["rows"])
    assert {row["refused"] for row in table["refused"]} >= {"rf_detr", "edgetam", "sam3_tracker"}
    assert run("--slots", "painters").returncode == 2
