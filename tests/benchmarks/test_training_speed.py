import json
from pathlib import Path

import pytest
from diffusion_world import Refusal
from script_runs import run_script

COMMAND = ["benchmarks/training_speed.py", "--size", "tiny", "--accelerator", "cpu"]


@pytest.mark.slow
def test_rows_are_timed_and_one_that_fails_stops_no_other(tmp_path: Path) -> None:
    output = tmp_path / "speed.json"
    done = run_script(*COMMAND, "--rows", "proxy-2,8bit-2,ema-checkpointing-2", "--steps", 1, "--output", output)
    assert done.returncode == 0, done.stderr
    proxy, failed, ours = json.loads(output.read_text())["rows"]
    assert proxy["x_proxy"] == 1 and proxy["x_published"] == pytest.approx(3.5)
    assert "bitsandbytes" in failed["error"] and "x_proxy" not in failed
    assert ours["images_per_second"] > 0 and ours["x_proxy"] > 0 and 0 < ours["share_of_peak"] < 1
    table = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(table) == 5 and table[-1].startswith("| ema-checkpointing-2")


@pytest.mark.slow
def test_two_processes_share_the_images_of_a_step(tmp_path: Path) -> None:
    output = tmp_path / "speed.json"
    done = run_script(*COMMAND, "--rows", "2,lora-1", "--steps", 1, "--devices", 2, "--output", output)
    assert done.returncode == 0, done.stderr
    # Lightning logs the size of the group of processes. Only the first process prints the table.
    assert "2 processes" in done.stderr
    result = json.loads(output.read_text())
    assert result["devices"] == 2
    assert [row["images_per_second"] > 0 for row in result["rows"]] == [True, True]
    assert len([line for line in done.stdout.splitlines() if line.startswith("|")]) == 4


@pytest.mark.slow
def test_a_row_that_fails_ends_both_processes(tmp_path: Path) -> None:
    done = run_script(*COMMAND, "--rows", "8bit-2", "--steps", 1, "--devices", 2)
    assert done.returncode != 0 and "bitsandbytes" in done.stderr


def test_a_proxy_on_two_devices_is_refused(refused: Refusal) -> None:
    refused([*COMMAND, "--rows", "proxy-2", "--devices", 2], "--rows", "proxy")


@pytest.mark.parametrize("row", ["fast-8", "8-compile", "huge:8", "compile-0"])
def test_unknown_rows_are_refused(row: str, refused: Refusal) -> None:
    refused([*COMMAND, "--rows", row], "--rows", row)
