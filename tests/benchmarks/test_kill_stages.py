"""Every resumable stage is killed once with SIGKILL and ends with the bytes of an uninterrupted run.

Other stages are killed in the tests of their scripts: relis/eval.py, ood_detection/main_gen_ood.py,
ControlNet/check_generated.py, clip_int.py, train.py and style_transfer.py, and ood_objects/sd_inpaint.py.
"""

import contextlib
import random
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from script_runs import fork_server

from genval.runtime.errors import GenValError
from genval.runtime.paths import REPO_ROOT


@pytest.fixture(scope="module")
def benchmark():
    return SimpleNamespace(**runpy.run_path(str(REPO_ROOT / "benchmarks/kill_stages.py")))


@pytest.fixture
def work(benchmark, tmp_path):
    return benchmark.Workplace(tmp_path, images=4)


@pytest.mark.slow
def test_killed_stages_resume_to_the_same_bytes(tmp_path, monkeypatch, capsys):
    stages = ["render", "corrupt", "refine", "outline", "features", "temperatures"]
    flags = ["--stages", ",".join(stages), "--runs=1", "--jobs=2", "--images=4", f"--seed={random.randrange(10**6)}"]
    # In this process, with the server of the other tests: another one would import the libraries again.
    monkeypatch.setattr("genval.runtime.fork_server.ForkServer", lambda *_: contextlib.nullcontext(fork_server()))
    monkeypatch.setattr(sys, "argv", ["benchmarks/kill_stages.py", *flags, "--output", str(tmp_path / "kills.md")])
    runpy.run_path(str(REPO_ROOT / "benchmarks/kill_stages.py"), run_name="__main__")
    written = (tmp_path / "kills.md").read_text()
    assert written == capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in written.splitlines()[2:]]
    assert [(name, runs, same) for name, runs, _, same in rows] == [(name, "1", "1") for name in stages]


def test_every_command_is_one_that_its_script_takes(benchmark, work):
    stages = work.stages()
    before: set[str] = set()
    for name, stage in stages.items():
        assert set(stage.needs) <= before
        before.add(name)
        assert (REPO_ROOT / stage.command.argv[0]).is_file()
        assert str(work.output(name)) in str(stage.command)
    assert list(benchmark.choose(["train", "render"], list(stages), 2).items()) == [("render", 2), ("train", 2)]
    assert benchmark.choose(["train=3", "all"], list(stages), 2) == {**dict.fromkeys(stages, 2), "train": 3}
    with pytest.raises(GenValError, match="dream is none of render"):
        benchmark.choose(["dream"], list(stages), 1)
    with pytest.raises(GenValError, match="NAME=RUNS with a whole number above 0, found train=0"):
        benchmark.choose(["train=0"], list(stages), 1)


def test_a_difference_is_named(benchmark, tmp_path, monkeypatch):
    """A stage of two files that writes other bytes when it is run again, and leaves one file more."""
    script = tmp_path / "stage.py"
    script.write_text(
        "import pathlib, sys, time\n"
        "out = pathlib.Path(sys.argv[1])\n"
        "again = (out / 'a').exists()\n"
        "out.mkdir(parents=True, exist_ok=True)\n"
        "(out / 'a').write_text(str(again))\n"
        "(out / 'left').touch()\n"
        "(out / 'path').write_text(str(out / 'a'))\n"
        "time.sleep(0.5)\n"
        "if not again:\n"
        "    (out / 'left').unlink()\n"
    )
    work = benchmark.Workplace(tmp_path / "work", images=1)
    work.root.mkdir()
    monkeypatch.setattr(
        benchmark.Workplace,
        "stages",
        lambda self: {"render": benchmark.Killable(SimpleNamespace(argv=(str(script), str(self.output("render")))))},
    )
    reports: list[int] = []
    outcome = benchmark.kill_runs(work, {"render": 3}, 2, 1, lambda seen: reports.append(seen["render"].runs))["render"]
    assert (outcome.runs, outcome.killed, outcome.same) == (3, 3, 0) and reports == [1, 2, 3]
    assert [Path(text).name for text in outcome.differing] == ["a", "left"] * 3
    assert benchmark.table({"render": outcome}).count("- render, killed after") == 6
