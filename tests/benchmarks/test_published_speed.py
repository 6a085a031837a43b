import json
from pathlib import Path

import pytest
from diffusion_world import Refusal
from script_runs import run_script

COMMAND = ["benchmarks/published_speed.py", "--size", "tiny", "--steps", 2]


@pytest.mark.slow
def test_rows_are_measured(tmp_path: Path) -> None:
    rows = "StableDiffusion3ControlNetPipeline"
    done = run_script(*COMMAND, "--rows", rows, "--vae_tiling", "--output", tmp_path / "speed.json")
    assert done.returncode == 0, done.stderr
    measured = json.loads((tmp_path / "speed.json").read_text())["rows"]
    assert [row["pipeline"] for row in measured] == [rows]
    assert all(row["finite"] and row["same bytes"] and row["s/image"] > 0 for row in measured)


def test_unknown_rows_are_refused(refused: Refusal) -> None:
    refused([*COMMAND, "--rows", "FluxPipeline"], "--rows", "unknown FluxPipeline", "FluxKontextPipeline")
