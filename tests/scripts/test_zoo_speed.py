"""benchmarks/zoo_speed.py measures on a CPU too, and resumes."""

import json

import pytest
from script_runs import run_script


@pytest.mark.slow
def test_rows_are_measured_once(tmp_path):
    def run(models, *flags):
        command = [
            "benchmarks/zoo_speed.py", "--models", models, "--size", "tiny", "--device", "cpu",
            "--seconds", "0", "--output", str(tmp_path), *flags,
        ]  # fmt: skip
        done = run_script(*command)
        return done.returncode, done.stdout + done.stderr

    code, out = run("BiSeNetV2-FCN,MobileNetV3", "--precisions", "32-true")
    assert code == 0, out
    code, out = run("BiSeNetV2-FCN")  # both precisions: the row that is there is not measured again
    assert code == 0 and out.count("| BiSeNetV2-FCN") == 1, out
    rows = json.loads((tmp_path / "zoo_speed.json").read_text())
    assert [(row["model"], row["precision"]) for row in rows] == [
        ("BiSeNetV2-FCN", "32-true"), ("MobileNetV3", "32-true"), ("BiSeNetV2-FCN", "bf16-true"),
    ]  # fmt: skip
    assert rows[0]["pixels_alike"] > 0.999 and rows[0]["reference_images_per_s"] > 0
    assert all(row["ood_images_per_s"] > 0 for row in rows)
    # mmsegmentation fails on images below LRASPP's pooling window; here they are padded.
    assert rows[1]["reference_images_per_s"] is None and rows[1]["finite"]
    assert (tmp_path / "zoo_speed.md").read_text().count("\n") == 5
    code, out = run("SegFormer-B9")
    assert code == 2 and "error: Not in the zoo: SegFormer-B9" in out
