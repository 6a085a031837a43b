"""Where steps stand, what runs and in which order, what a failure stops, and how long things take."""

import json
import os
import subprocess
import sys

import pytest

from genval.reproduction.outputs import of_evaluations, of_files
from genval.reproduction.printing import duration, print_end, print_missing
from genval.reproduction.record import START, Record, total_seconds
from genval.reproduction.running import Runner
from genval.reproduction.state import BLOCKED, DONE, TO_DO, check_any_runs, check_stages, survey, up_to_date
from genval.reproduction.steps import Outputs, Step
from genval.results.scenes import SceneResults
from genval.runtime.commands import Missing
from genval.runtime.errors import GenValError
from genval.runtime.paths import REPO_ROOT

STAGES = ("first", "second", "third")


def step(name, made=0, time=0.0, size=1, stage="first", commands=None, oldest=None, **more):
    commands = ((f"{name}.py",),) if commands is None else commands
    return Step(name, stage, commands, size, lambda: Outputs(made, time, oldest), **more)


def kinds(*steps, finished=None, chosen=STAGES, again=False):
    return {name: one.kind for name, one in survey(steps, finished or {}, chosen, again).items()}


def test_a_step_is_done_when_all_its_items_are_there():
    assert kinds(step("a", made=1), step("b", made=1, size=2), step("c", size=None)) == {
        "a": DONE,
        "b": TO_DO,
        "c": TO_DO,
    }
    assert kinds(step("a", made=1), again=True) == {"a": TO_DO}


def test_what_is_older_than_what_it_reads_is_to_do_unless_it_ran_since():
    steps = step("a", made=1, time=20.0), step("b", made=1, time=10.0, needs=("a",))
    assert kinds(*steps)["b"] == TO_DO
    assert kinds(*steps, finished={"b.py": 30.0})["b"] == DONE
    steps = step("a", made=0, time=0.0), step("b", made=1, time=10.0, after=("a",))
    assert kinds(*steps)["b"] == TO_DO, "what it reads is about to change"


def test_one_new_file_does_not_hide_old_ones():
    steps = step("a", made=1, time=20.0), step("b", made=2, size=2, time=30.0, oldest=10.0, needs=("a",))
    assert kinds(*steps)["b"] == TO_DO
    assert kinds(*steps, finished={"b.py": 40.0})["b"] == DONE, "the run left the old file alone: it holds"


def test_a_run_counts_for_its_own_domains_only():
    def evaluation(domains, *flags):
        return step("b", made=1, time=10.0, needs=("a",), commands=(("eval.py", "--domains", domains, *flags),))

    a = step("a", made=1, time=20.0)
    finished = {evaluation("fog", "--devices", "1", "--overwrite").run_name: 30.0}
    assert kinds(a, evaluation("fog,night"), finished=finished)["b"] == TO_DO
    assert kinds(a, evaluation("fog", "--accelerator", "gpu", "--batch_size", "8"), finished=finished)["b"] == DONE


def test_the_oldest_file_is_the_oldest_that_is_there(tmp_path):
    paths = [SceneResults(tmp_path, "model", "set", cond, "all").metrics for cond in ("fog", "night")]
    for path, written in zip(paths, (200, 100), strict=True):
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"images": 3, "skipped": []}))
        (path.parent / "logits.safetensors").touch()
        os.utime(path, (written, written))
    places = [("model", "set", cond) for cond in ("fog", "night", "rain")]
    assert of_evaluations(tmp_path, places) == Outputs(6, 200.0, 100.0)
    assert of_files([*paths, tmp_path / "absent"]) == Outputs(2, 200.0, 100.0)
    assert of_files([tmp_path / "absent"]) == Outputs(0)


def test_weights_that_changed_make_a_step_to_do(tmp_path):
    (tmp_path / "weights.pth").touch()
    os.utime(tmp_path / "weights.pth", (50, 50))
    assert kinds(step("a", made=1, time=40.0, inputs=(tmp_path,)))["a"] == TO_DO
    assert kinds(step("a", made=1, time=60.0, inputs=(tmp_path,)))["a"] == DONE


def test_what_is_missing_blocks_what_needs_it_and_nothing_else():
    lack = Missing("the weights", "hf download them")
    a = step("a", missing=(lack,))
    b, c = step("b", needs=("a",)), step("c", after=("a",))
    d, e = step("d", any_of=("a", "c")), step("e", any_of=("a", "b"))
    assert kinds(a, b, c, d, e) == {"a": BLOCKED, "b": BLOCKED, "c": TO_DO, "d": TO_DO, "e": BLOCKED}
    assert kinds(step("a", made=1, missing=(lack,))) == {"a": DONE}, "what was made elsewhere is as good"


def test_stages_that_are_not_chosen_are_as_good_as_their_files():
    a, b = step("a", made=0), step("b", stage="second", needs=("a",))
    assert kinds(a, b, chosen=["second"]) == {"a": BLOCKED, "b": BLOCKED}
    assert kinds(step("a", made=1), b, chosen=["second"]) == {"a": DONE, "b": TO_DO}
    with pytest.raises(GenValError, match="fourth is none of first"):
        check_stages(["fourth"], STAGES)


def test_what_is_missing_is_listed_once_by_where_it_is_to_be_had(capsys):
    steps = [step(name, missing=(Missing(f"weights {name}", "the zoo"),)) for name in "abcde"]
    print_missing(steps, survey(steps, {}, STAGES))
    assert capsys.readouterr().out.split("\n") == [
        "",
        "missing:",
        "  weights a",
        "  weights b",
        "  weights c",
        "  and 2 more",
        "      get: the zoo",
        "",
    ]


def test_rates_are_of_this_device_and_without_the_start_of_processes(tmp_path):
    record = Record(tmp_path / "steps.json", "mini", "cpu, 2 cores")
    assert record.estimate(step("a"), 10).seconds is None
    record.add(step("a"), 10, START + 50.0, 100.0)
    again = Record(tmp_path / "steps.json", "mini", "cpu, 2 cores")
    assert again.finished == {"a.py": 100.0}
    assert again.estimate(step("b"), 100).seconds == pytest.approx(START + 500.0)
    assert again.estimate(step("b", stage="second"), 100).seconds is None
    assert Record(tmp_path / "steps.json", "mini", "1 x H100").estimate(step("a"), 10).seconds is None
    again.add(step("a"), 0, 3.0, 200.0)
    assert len(again.runs["cpu, 2 cores"]["first"]) == 1, "a run that made nothing is no rate"


def test_a_file_made_from_many_images_takes_as_long_as_they_do(tmp_path):
    record = Record(tmp_path / "steps.json", "mini", "cpu")
    record.add(step("a", size=2, work=100), 2, START + 10.0, 1.0)
    assert record.estimate(step("a", size=2, work=1000), 2).seconds == pytest.approx(START + 100.0)
    record.add(step("b", size=2, stage="second"), 2, 2.0, 1.0)
    assert record.estimate(step("b", size=20, stage="second"), 20).seconds == pytest.approx(1.0 + 10.0)


def test_a_stated_rate_logs_where_it_is_from(tmp_path):
    estimate = Record(tmp_path / "none.json", None, "1 x NVIDIA H100").estimate(step("a", stage="generate"), 512)
    assert estimate.source == "docs/speed.md, one H100"
    assert estimate.seconds == pytest.approx(START + 512 * 0.137)


def test_the_whole_takes_its_longest_chain_or_its_share(tmp_path):
    record = Record(tmp_path / "steps.json", "mini", "cpu")
    record.add(step("a"), 1, START + 4.0, 1.0)
    steps = [step("a"), step("b", needs=("a",)), step("c"), step("d")]
    estimates = {one.name: record.estimate(one, 1) for one in steps}
    assert total_seconds(estimates, steps, 1) == pytest.approx(4 * (START + 4))
    assert total_seconds(estimates, steps, 4) == pytest.approx(2 * (START + 4))
    assert duration(None) == "time unknown"


def run(steps, tmp_path, jobs):
    states = survey(steps, {}, STAGES)
    runner = Runner(steps, states, Record(tmp_path / "steps.json", None, "cpu"), tmp_path / "logs", jobs)
    runner.run()
    return runner


def script(path, *lines):
    path.write_text("\n".join(["import pathlib, sys, time", *lines]) + "\n")
    return (str(path),)


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_failure_stops_only_what_needs_it(tmp_path, jobs, capfd):
    def write(name):
        return script(tmp_path / f"{name}.py", f"pathlib.Path({str(tmp_path / f'{name}.txt')!r}).write_text('made')")

    fails = script(tmp_path / "fails.py", "sys.exit('error: the disk is full')")
    steps = [
        step("bad", commands=(fails,)),
        step("good", commands=(write("one"), write("two"))),
        step("needs bad", commands=(write("never"),), needs=("bad",)),
        step("needs that", commands=(write("never"),), any_of=("needs bad",)),
        step("after bad", commands=(write("three"),), after=("bad", "good")),
    ]
    runner = run(steps, tmp_path, jobs)
    assert sorted(path.stem for path in tmp_path.glob("*.txt")) == ["one", "three", "two"]
    assert list(runner.failed) == ["bad"]
    assert runner.skipped == ["needs bad", "needs that"]
    assert runner.ended == ["good", "after bad"]
    assert set(runner.record.finished) == {one.run_name for one in steps if one.name in runner.ended}
    if jobs > 1:
        assert runner.failed["bad"].endswith("error: the disk is full")
        assert "one.py" in (tmp_path / "logs" / "good.log").read_text()
    assert "the disk is full" in "".join(capfd.readouterr())


def test_independent_steps_run_side_by_side(tmp_path):
    """Each of two waits for the other's file: one after the other they would not end."""

    def waits(own, other):
        lines = [
            f"pathlib.Path({str(tmp_path / own)!r}).touch()",
            "end = time.time() + 10",
            f"while not pathlib.Path({str(tmp_path / other)!r}).exists():",
            "    time.sleep(0.01)",
            "    assert time.time() < end",
        ]
        return script(tmp_path / f"{own}.py", *lines)

    steps = [step("a", commands=(waits("x", "y"),)), step("b", commands=(waits("y", "x"),))]
    assert not run(steps, tmp_path, 2).failed


def test_what_was_stop_requested_ends_its_steps(tmp_path):
    """The step sends the signal to the process that runs it, and would then go on for a while."""
    lines = [
        "import os, signal",
        f"pathlib.Path({str(tmp_path / 'process')!r}).write_text(str(os.getpid()))",
        "os.kill(os.getppid(), signal.SIGTERM)",
        "time.sleep(30)",
    ]
    whole = script(
        tmp_path / "whole.py",
        f"sys.path.insert(0, {str(REPO_ROOT)!r})",
        "from genval.reproduction.record import Record",
        "from genval.reproduction.running import Runner",
        "from genval.reproduction.state import TO_DO, StepState",
        "from genval.reproduction.steps import Outputs, Step",
        f"folder, commands = pathlib.Path({str(tmp_path)!r}), ({script(tmp_path / 'step.py', *lines)!r},)",
        "step = Step('a', 'first', commands, 1, lambda: Outputs(0))",
        "Runner([step], {'a': StepState(TO_DO, 0)}, Record(folder / 'steps.json', None, 'cpu'), folder).run()",
    )
    done = subprocess.run([sys.executable, *whole], capture_output=True, text=True, timeout=20)
    assert done.stderr.strip().endswith("KeyboardInterrupt")
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "process").read_text()), 0)


def report_plan(tmp_path, failing=()):
    """Steps whose files an earlier run left; what they read is new."""
    (tmp_path / "correlation.json").write_text(json.dumps({"verdict": ["the verdict"]}))
    (tmp_path / "index.html").touch()
    fails, ends = script(tmp_path / "fails.py", "sys.exit(1)"), script(tmp_path / "ends.py", "")
    steps, before = [step("evaluate", made=1, time=50.0)], "evaluate"
    for stage in ("correlate", "report"):
        commands = (fails if stage in failing else ends,)
        steps.append(step(stage, made=1, time=10.0, stage=stage, commands=commands, after=(before,)))
        before = stage
    return steps


@pytest.mark.parametrize("failing", [(), ("correlate",), ("report",), ("correlate", "report")])
def test_verdict_and_page_are_printed_only_where_this_run_made_them(tmp_path, capsys, failing):
    steps, stages = report_plan(tmp_path, failing), ["first", "correlate", "report"]
    states = survey(steps, {}, stages)
    runner = Runner(steps, states, Record(tmp_path / "steps.json", None, "cpu"), tmp_path)
    runner.run()
    capsys.readouterr()
    print_end(up_to_date(steps, states, stages, runner.ended), tmp_path, runner.seconds)
    lines = {"correlate": "the verdict", "report": f"report: {tmp_path / 'index.html'}"}
    printed = capsys.readouterr().out.strip().splitlines()[1:]
    assert printed == [line for stage, line in lines.items() if stage not in failing]


def test_verdict_and_page_are_printed_where_all_is_done_and_their_stages_are_chosen(tmp_path, capsys):
    steps = report_plan(tmp_path)
    finished = {one.run_name: 60.0 for one in steps}
    for stages, lines in ((["first"], 1), (["first", "correlate", "report"], 3)):
        states = survey(steps, finished, stages)
        print_end(up_to_date(steps, states, stages, []), tmp_path, 0.0)
        assert capsys.readouterr().out.strip().count("\n") + 1 == lines


def test_a_plan_of_which_nothing_can_run_is_an_error():
    blocked, done = step("a", missing=(Missing("the weights", "hf download them"),)), step("b", made=1, stage="second")
    states = survey([blocked, done], {}, STAGES)
    with pytest.raises(GenValError, match="None of these steps can run"):
        check_any_runs([blocked, done], states, ["first"])
    check_any_runs([blocked, done], states, ["first", "second"])
