"""benchmarks/protocol_speed.py runs a sample of each stage of the protocol, and extrapolates it."""

import runpy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from diffusion_world import Refusal
from script_runs import run_script

from genval.reproduction.evaluation_steps import calibration_steps, evaluation_steps
from genval.reproduction.protocol import DOMAINS, Protocol
from genval.runtime.files import read_json
from genval.runtime.flags import parse_settings
from genval.runtime.paths import REPO_ROOT

SCRIPT = "benchmarks/protocol_speed.py"
MODEL = "BiSeNetV2-FCN"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.syspath_prepend(str(REPO_ROOT / "benchmarks"))
    return runpy.run_path(str(REPO_ROOT / SCRIPT))


@pytest.mark.slow
def test_stages_are_measured_once(tmp_path: Path) -> None:
    def run() -> str:
        done = run_script(
            "tests/forking.py", SCRIPT, "--stages", ",".join(stages), "--size", "tiny", "--segmenters", MODEL,
            "--images", 4, "--batch_size", 1, "--precision", "32-true", "--accelerator", "cpu", "--folder", tmp_path,
            "--output", output,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    output, stages = tmp_path / "speed.json", ["corrupt", "evaluate", "find"]
    assert f"| {MODEL}" in run()
    rows = {row["stage"]: row for row in read_json(output)}
    assert list(rows) == stages
    assert rows["evaluate"]["segmenter"] == MODEL and rows["evaluate"]["items"] == 4
    for row in rows.values():
        assert row["seconds"] > row["start_s"] >= 0 and row["item_s"] > 0 and row["error"] >= 0, row
    assert "| sum" in output.with_suffix(".md").read_text(encoding="utf-8")
    before = output.read_bytes()
    run()
    assert output.read_bytes() == before


def test_every_script_has_the_flags(benchmark: dict[str, Any], tmp_path: Path) -> None:
    settings = benchmark["ProtocolSpeedSettings"]()
    for name, stage in benchmark["STAGES"].items():
        values = benchmark["fields"](name, [MODEL], settings, tmp_path)
        command = [word.format(**values) for word in stage.command.split()]
        script = runpy.run_path(str(REPO_ROOT / command[0]))
        (cls,) = (
            value for value in script.values() if getattr(value, "SCRIPT", None) == command[0].removesuffix(".py")
        )
        parse_settings(cls, command[1:], "")


def test_the_commands_are_those_of_reproduce(benchmark: dict[str, Any]) -> None:
    protocol = Protocol(None, DOMAINS, (MODEL,), 512, None, render=False, jobs=1, logit_pixels=2000, device=())
    group = (MODEL,)
    steps = evaluation_steps(protocol, group, [group], (), {}) + calibration_steps(protocol, group, [group], {})
    scripts = Counter(command[0] for step in steps for command in step.commands)
    stages = benchmark["STAGES"]
    measured = {stages[name].command.split()[0]: stages[name].commands for name in ("evaluate", "find", "test")}
    assert measured == scripts


def test_hours_and_errors(benchmark: dict[str, Any]) -> None:
    row = {"start_s": 60.0, "item_s": 0.5, "error": 0.1, "busy": 0.5}
    items = benchmark["STAGES"]["generate"].items
    loop = items * 0.5 / 3600
    assert benchmark["hours"]("generate", [row]) == pytest.approx((loop + 60 / 3600, 0.1 * loop, 0.5 * loop))
    # Half of the zoo: the mean stands for all, and the spread of the segmenters is a part of the error.
    loop = benchmark["STAGES"]["detect"].items * 0.5 / 3600
    rows = [row | {"start_s": 0.0, "item_s": item_s} for item_s in [0.25, 0.75] * 10 + [0.5]]
    whole, error, busy = benchmark["hours"]("detect", rows)
    assert whole == pytest.approx(42 * loop) and busy == pytest.approx(21 * loop)
    # Short loops have no reading of the GPU's use.
    seen = [one | {"busy": None if one["item_s"] == 0.25 else 0.5} for one in rows]
    assert benchmark["hours"]("detect", seen)[2] == pytest.approx(21 * loop)
    spread = loop * 0.5 / 21**0.5 * 0.5**0.5
    assert error == pytest.approx(42 * (0.1 * loop + spread))


def test_segmenters_are_spread_by_size(benchmark: dict[str, Any]) -> None:
    spread = benchmark["spread"]
    assert spread("abcdef", 2) == ["b", "e"] and spread("abcdefg", 1) == ["d"] and spread("ab", 3) == ["a", "b"]


def test_unknown_names_are_refused(benchmark: dict[str, Any], refused: Refusal) -> None:
    refused((SCRIPT, "--segmenters", "SegFormer-B9"), "Not in the zoo: SegFormer-B9")
    refused((SCRIPT, "--stages", "evaluated"), "unknown evaluated", "corrupt")
    refused((SCRIPT, "--images", "8", "--devices", "2"), "at least 4 batches per device, which are 32")
