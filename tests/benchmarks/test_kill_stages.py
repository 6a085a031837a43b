"""Every resumable stage is killed once with SIGKILL and ends with the bytes of an uninterrupted run.

Other stages are killed in the tests of their scripts: relis/eval.py, ood_detection/main_gen_ood.py,
ControlNet/check_generated.py, clip_int.py, train.py and style_transfer.py, and ood_objects/sd_inpaint.py.
"""

import random
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from genval.runtime.errors import GenValError
from genval.runtime.paths import REPO_ROOT


@pytest.fixture(scope="module")
def benchmark():
    return SimpleNamespace(**runpy.run_path(str(REPO_ROOT / "benchmarks/kill_stages.py")))


@pytest.fixture(scope="module")
def work(benchmark, tmp_path_factory):
    return benchmark.Workplace(tmp_path_factory.mktemp("kill"), images=4)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["render", "corrupt", "refine", "outline", "features", "temperatures"])
def test_a_killed_stage_resumes_to_the_same_bytes(benchmark, work, stage):
    outcome = benchmark.kill_runs(work, stage, 1, random.Random())
    assert outcome.runs == 1 and outcome.differing == ()


def test_every_command_is_one_that_its_script_takes(benchmark, work):
    stages = work.stages()
    before: set[str] = set()
    for name, stage in stages.items():
        assert set(stage.needs) <= before
        before.add(name)
        assert (REPO_ROOT / stage.command.argv[0]).is_file()
        assert str(work.output(name)) in str(stage.command)
    assert benchmark.choose(["train", "render"], list(stages)) == ["render", "train"]
    assert benchmark.choose(["all"], list(stages)) == list(stages)
    with pytest.raises(GenValError, match="dream is none of render"):
        benchmark.choose(["dream"], list(stages))


def test_a_difference_is_named(benchmark, tmp_path, monkeypatch):
    """A stage of two files that writes other bytes when it is run again, and leaves one file more."""
    script = tmp_path / "stage.py"
    script.write_text(
        "import pathlib, sys, time\n"
        f"out = pathlib.Path({str(tmp_path / 'work/run/render')!r})\n"
        "again = (out / 'a').exists()\n"
        "out.mkdir(parents=True, exist_ok=True)\n"
        "(out / 'a').write_text(str(again))\n"
        "(out / 'left').touch()\n"
        "time.sleep(0.5)\n"
        "if not again:\n"
        "    (out / 'left').unlink()\n"
    )
    work = benchmark.Workplace(tmp_path / "work", images=1)
    work.root.mkdir()
    stage = benchmark.Killable(SimpleNamespace(argv=(str(script),)))
    monkeypatch.setattr(benchmark.Workplace, "stages", lambda self: {"render": stage})
    outcome = benchmark.kill_runs(work, "render", 1, SimpleNamespace(uniform=lambda first, end: (first + end) / 2))
    assert outcome.killed == 1
    assert [Path(text).name for text in outcome.differing] == ["a", "left"]
