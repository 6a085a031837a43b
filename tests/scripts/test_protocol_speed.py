"""benchmarks/protocol_speed.py times relis/eval.py with random weights of the zoo, and resumes."""

import json

import pytest
from script_runs import run_script


@pytest.mark.slow
def test_rows_are_measured_once(tmp_path):
    def run(*flags):
        command = [
            "benchmarks/protocol_speed.py", "--images", "4", "--size", "tiny", "--batch_size", "1",
            "--precision", "32-true", "--accelerator", "cpu", "--output", str(tmp_path), *flags,
        ]  # fmt: skip
        done = run_script(*command)
        return done.returncode, done.stdout + done.stderr

    code, out = run("--segmenters", "BiSeNetV2-FCN")
    assert code == 0, out
    (row,) = json.loads((tmp_path / "protocol_speed.json").read_text())
    assert 0 < row["first_s"] < row["seconds"] and row["images_per_s"] > 0 and row["key"]["model"] == "BiSeNetV2-FCN"
    assert "| BiSeNetV2-FCN" in out and "| BiSeNetV2-FCN" not in run("--segmenters", "BiSeNetV2-FCN")[1]
    code, out = run("--segmenters", "SegFormer-B9")
    assert code == 2 and "error: Not in the zoo: SegFormer-B9" in out
