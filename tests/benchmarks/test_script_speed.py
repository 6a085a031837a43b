from pathlib import Path

import pytest
from diffusion_world import Refusal
from script_runs import run_script

from genval.runtime.files import read_json

COMMAND = ("benchmarks/script_speed.py", "--size", "tiny", "--num_images", 2, "--flags", "--accelerator cpu --steps 2")


@pytest.mark.slow
def test_a_row_times_a_script(tmp_path: Path) -> None:
    output = tmp_path / "speed.json"
    done = run_script(
        "tests/forking.py", *COMMAND, "--rows", "transfer_folder", "--folder", tmp_path, "--output", output
    )
    assert done.returncode == 0, done.stderr
    (row,) = read_json(output)["rows"]
    assert row["images"] == 2 and 0 < row["first batch, s"] < row["total, s"]


@pytest.mark.slow
def test_masks_captions_and_training(tmp_path: Path) -> None:
    output = tmp_path / "speed.json"
    words = ("--size", "tiny", "--num_images", 2, "--flags", "--accelerator cpu", "--rows", "masks,captions,train")
    script = ("tests/forking.py", "benchmarks/script_speed.py")
    done = run_script(*script, *words, "--folder", tmp_path, "--output", output)
    assert done.returncode == 0, done.stderr
    rows = read_json(output)["rows"]
    assert [row["images"] for row in rows] == [2, 2, 8]
    assert all(0 < row["first batch, s"] < row["total, s"] and row["loop, images/s"] > 0 for row in rows)


def test_unknown_rows_are_refused(refused: Refusal) -> None:
    refused((*COMMAND, "--rows", "transfer_fold"), "unknown transfer_fold", "transfer_folder")
