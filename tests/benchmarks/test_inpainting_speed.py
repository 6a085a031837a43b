import json
from pathlib import Path

import pytest
from diffusion_world import Refusal
from script_runs import run_script

COMMAND = ["benchmarks/inpainting_speed.py", "--size", "tiny", "--eager", "--steps", 2, "--repeats", 1]


@pytest.mark.slow
def test_rows_are_compared_with_the_published_code(tmp_path: Path) -> None:
    output = tmp_path / "speed.json"
    rows = "inpaint_eager_16,inpaint_published,refine_published,refine_512_32,refine_stage"
    done = run_script(*COMMAND, "--rows", rows, "--stage_batches", 1, "--output", output)
    assert done.returncode == 0, done.stderr
    measured = {row["row"]: row for row in json.loads(output.read_text())["rows"]}
    assert list(measured) == [
        "inpaint_published",
        "refine_published",
        "inpaint_eager_16",
        "refine_512_32",
        "refine_stage",
    ]
    assert measured["inpaint_published"]["x published"] == measured["refine_published"]["x published"] == 1
    assert all(row["images/s"] > 0 and row["x published"] > 0 for row in measured.values())
    # The published row's image is ours: same noise, prompt and mask.
    assert measured["inpaint_eager_16"]["psnr_dB"] > 40


def test_unknown_rows_are_refused(refused: Refusal) -> None:
    refused([*COMMAND, "--rows", "inpaint_1000"], "--rows", "unknown inpaint_1000", "inpaint_32")
