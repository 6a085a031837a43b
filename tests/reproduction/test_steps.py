"""Where steps stand, what runs and in which order, what a failure stops, and how long things take."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from genval.reproduction import record as record_module
from genval.reproduction.marks import Marker, differing
from genval.reproduction.outputs import of_evaluations, of_files
from genval.reproduction.printing import duration, print_end, print_missing, print_unmarked
from genval.reproduction.record import Record, start_seconds, total_seconds
from genval.reproduction.running import Runner
from genval.reproduction.state import BLOCKED, DONE, TO_DO, check_any_runs, check_stages, survey, up_to_date
from genval.reproduction.steps import Outputs, Step
from genval.results.scenes import SceneResults
from genval.runtime.commands import Missing
from genval.runtime.errors import GenValError
from genval.runtime.paths import REPO_ROOT

STAGES = ("first", "second", "third")
START = start_seconds()


def step(name, made=0, files=(), size=1, stage="first", commands=None, **more):
    commands = ((f"{name}.py",),) if commands is None else commands
    return Step(name, stage, commands, size, lambda: Outputs(made, tuple(files)), **more)


def kinds(*steps, recorded=None, chosen=STAGES, again=False):
    return {name: one.kind for name, one in survey(steps, recorded or {}, chosen, again).items()}


def read_now(*steps):
    """What is recorded when each of these steps runs well now."""
    outputs = {one.name: one.outputs() for one in steps}
    return {one.run_name: Marker().mark(one, outputs, {}) for one in steps}


def test_a_step_is_done_when_all_its_items_are_there():
    assert kinds(step("a", made=1), step("b", made=1, size=2), step("c", size=None)) == {
        "a": DONE,
        "b": TO_DO,
        "c": TO_DO,
    }
    assert kinds(step("a", made=1), again=True) == {"a": TO_DO}


def write(path, text, time=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    if time is not None:
        os.utime(path, (time, time))
    return path


def test_what_reads_changed_outputs_is_to_do_unless_it_ran_since(tmp_path):
    file = write(tmp_path / "manifest.jsonl", "one")
    steps = step("a", made=1, files=[file]), step("b", made=1, needs=("a",))
    assert kinds(*steps) == {"a": DONE, "b": TO_DO}, "nobody knows what b was made from"
    recorded = read_now(*steps)
    assert kinds(*steps, recorded=recorded)["b"] == DONE
    write(file, "two", 50)  # of an older time: a clock was set back
    assert kinds(*steps, recorded=recorded)["b"] == TO_DO
    assert survey(steps, recorded, STAGES)["b"].reason == "changed: step a"
    assert kinds(*steps, recorded=read_now(*steps))["b"] == DONE
    recorded = read_now(*steps)
    write(file, "two", 70)  # a run that found nothing to do wrote it again
    assert kinds(*steps, recorded=recorded)["b"] == DONE
    write(file, "2" * 2_000_000, 70)
    recorded = read_now(*steps)
    write(file, "1" + "2" * 1_999_999, 60)
    assert kinds(*steps, recorded=recorded)["b"] == TO_DO, "of a large file, the time counts too"
    steps = step("a", made=0), step("b", made=1, after=("a",))
    assert kinds(*steps, recorded=read_now(*steps))["b"] == TO_DO, "what it reads is about to change"


def test_a_run_counts_for_its_own_domains_only(tmp_path):
    def evaluation(domains, *flags):
        return step("b", made=1, needs=("a",), commands=(("eval.py", "--domains", domains, *flags),))

    a = step("a", made=1, files=[write(tmp_path / "file", "")])
    recorded = read_now(a, evaluation("fog", "--devices", "1", "--overwrite"))
    assert kinds(a, evaluation("fog,night"), recorded=recorded)["b"] == TO_DO
    assert kinds(a, evaluation("fog", "--accelerator", "gpu", "--batch_size", "8"), recorded=recorded)["b"] == DONE


def test_images_of_finished_scenes_with_logits_are_counted(tmp_path):
    paths = [SceneResults(tmp_path, "model", "set", cond, "all").metrics for cond in ("fog", "night", "snow")]
    for path in paths:
        write(path, json.dumps({"images": 3, "skipped": []}))
    for path in paths[:2]:
        (path.parent / "logits.safetensors").touch()
    places = [("model", "set", cond) for cond in ("fog", "night", "snow", "rain")]
    found = of_evaluations(tmp_path, places)
    assert found.made == 6 and {path.parent for path in found.files} == {path.parent for path in paths[:2]}
    assert of_files([*paths, tmp_path / "absent"]) == Outputs(3, tuple(paths))
    for damaged in ("[]", "null", '{"images": "x", "skipped": []}', '{"images": 3}'):
        write(paths[0], damaged)
        with pytest.raises(GenValError, match=f"{paths[0]}: .*expected"):
            of_evaluations(tmp_path, places)


def test_weights_that_differ_make_a_step_to_do_whatever_their_time(tmp_path):
    weights = write(tmp_path / "folder/weights.pth", "a" * 9000, 100)
    one = step("a", made=1, inputs=(tmp_path / "folder", tmp_path / "absent"))
    assert kinds(one)["a"] == TO_DO
    recorded = read_now(one)
    assert kinds(one, recorded=recorded)["a"] == DONE
    os.utime(weights, (200, 200))
    assert kinds(one, recorded=recorded)["a"] == DONE, "the content is the same"
    for moment in (50, 100, 200):  # copied with an older time, the same time, a newer one
        assert kinds(one, recorded=recorded)["a"] == DONE
        write(weights, "a" * 8999 + "b", moment)
        assert kinds(one, recorded=recorded)["a"] == TO_DO
        write(weights, "a" * 9001, moment)
        assert kinds(one, recorded=recorded)["a"] == TO_DO
        write(weights, "a" * 9000, moment)
    write(weights, "b" + "a" * 8999, 50)
    assert kinds(one, recorded=recorded)["a"] == TO_DO, "the end is the same"
    write(weights, "a" * 9000)
    write(tmp_path / "folder/config.json", "{}")
    assert kinds(one, recorded=recorded)["a"] == TO_DO
    (tmp_path / "folder/config.json").unlink()
    (tmp_path / "folder/.lock").touch()
    assert kinds(one, recorded=recorded)["a"] == DONE
    other = write(tmp_path / "other.pth", "b" * 9000, 10)
    weights.unlink()
    weights.symlink_to(other)
    assert survey([one], recorded, STAGES)["a"].reason == f"changed: {weights}"
    weights.unlink()
    assert kinds(one, recorded=recorded)["a"] == TO_DO


def test_data_sets_are_compared_by_names_sizes_and_times(tmp_path):
    for name in "ab":
        write(tmp_path / f"{name}.png", "image", 100)
    one = step("a", made=1, data={"data set": lambda: sorted(tmp_path.glob("*.png"))})
    recorded = read_now(one)
    assert kinds(one, recorded=recorded)["a"] == DONE
    changes = [
        lambda: write(tmp_path / "a.png", "longer image", 100),
        lambda: write(tmp_path / "a.png", "other", 50),
        lambda: write(tmp_path / "c.png", "image", 100),
        lambda: (tmp_path / "b.png").unlink(),
        lambda: (tmp_path / "b.png").rename(tmp_path / "d.png"),
    ]
    for change in changes:
        change()
        assert kinds(one, recorded=recorded)["a"] == TO_DO
        for path in tmp_path.glob("*.png"):
            path.unlink()
        for name in "ab":
            write(tmp_path / f"{name}.png", "image", 100)
        assert kinds(one, recorded=recorded)["a"] == DONE
    (tmp_path / "b.png").unlink()
    (tmp_path / "b.png").symlink_to("nowhere")
    assert kinds(one, recorded=recorded)["a"] == TO_DO


def test_differences_are_named():
    assert differing({}, {}) == []
    assert differing({"a": "1", "b": "2"}, {"b": "3", "c": "4"}) == ["b", "c", "a"]
    file = {"size": 1, "mtime": 1, "end": "m", "content": "c"}
    assert differing({"a": file}, {"a": {**file, "mtime": 2}}) == []
    assert differing({"a": file}, {"a": {**file, "mtime": 2, "content": "d"}}) == ["a"]
    assert differing({"a": file}, {"a": {**file, "end": "n"}}) == ["a"]
    assert differing({"a": None}, {"a": file}) == ["a"]


def test_a_record_of_an_earlier_version_is_read(tmp_path, capsys):
    path = write(tmp_path / "steps.json", json.dumps({"finished": {"relis/corrupt.py --domain fog": 5.0}, "runs": {}}))
    weights = write(tmp_path / "weights", "")
    one = step("a", made=1, inputs=(weights,), commands=(("relis/corrupt.py", "--domains", "fog"),))
    record = Record(path, None, "cpu")
    assert record.finished == {one.run_name: 5.0}
    states = survey([one, step("b", made=1)], record.marks, STAGES)
    assert [state.kind for state in states.values()] == [TO_DO, DONE]
    assert states["a"].reason == "what it was made from is not recorded"
    print_unmarked(record.without_marks([one, step("b")]), states)
    assert "1 steps were recorded by an earlier version" in capsys.readouterr().out
    record.add(one, 0, 1.0, 6.0, read_now(one)[one.run_name])
    again = Record(path, None, "cpu")
    assert kinds(one, recorded=again.marks) == {"a": DONE} and again.without_marks([one]) == []
    print_unmarked([], states)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "text",
    [
        *("null", "[]", "3", '{"finished": []}', '{"marks": {"a": 3}}', '{"runs": {"cpu": []}}'),
        *('{"runs": {"cpu": {"a": 3}}}', '{"runs": {"cpu": {"a": [{"images": 1}]}}}'),
    ],
)
def test_another_file_is_no_record(tmp_path, text):
    path = write(tmp_path / "steps.json", text)
    with pytest.raises(GenValError, match=rf"{path}: .*expected .*Delete it: every step then runs again"):
        Record(path, None, "cpu")


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
    record.add(step("a"), 10, START + 50.0, 100.0, {})
    again = Record(tmp_path / "steps.json", "mini", "cpu, 2 cores")
    assert again.finished == {"a.py": 100.0}
    assert again.estimate(step("b"), 100).seconds == pytest.approx(START + 500.0)
    assert again.estimate(step("b", stage="second"), 100).seconds is None
    assert Record(tmp_path / "steps.json", "mini", "1 x H100").estimate(step("a"), 10).seconds is None
    again.add(step("a"), 0, 3.0, 200.0, {})
    assert len(again.runs["cpu, 2 cores"]["first"]) == 1, "a run that made nothing is no rate"


@pytest.mark.parametrize("forks", [False, True])
def test_only_a_new_interpreter_needs_seconds_to_start(tmp_path, monkeypatch, forks):
    monkeypatch.setattr(record_module, "can_fork", lambda: forks)
    record = Record(tmp_path / "steps.json", "mini", "cpu")
    record.add(step("a"), 100, 100.0, 1.0, {})
    assert record.estimate(step("a"), 100).seconds == pytest.approx(100.0)
    assert (record.estimate(step("b"), 1).seconds < 2) is forks


def test_a_file_made_from_many_images_takes_as_long_as_they_do(tmp_path):
    record = Record(tmp_path / "steps.json", "mini", "cpu")
    record.add(step("a", size=2, work=100), 2, START + 10.0, 1.0, {})
    assert record.estimate(step("a", size=2, work=1000), 2).seconds == pytest.approx(START + 100.0)
    record.add(step("b", size=2, stage="second"), 2, START, 1.0, {})
    half = START / 2
    assert record.estimate(step("b", size=20, stage="second"), 20).seconds == pytest.approx(half + 10 * half)


def test_a_stated_rate_logs_where_it_is_from(tmp_path):
    estimate = Record(tmp_path / "none.json", None, "1 x NVIDIA H100").estimate(step("a", stage="generate"), 512)
    assert estimate.source == "docs/speed.md, one H100"
    assert estimate.seconds == pytest.approx(START + 512 * 0.136)


def test_the_whole_takes_its_longest_chain_or_its_share(tmp_path):
    record = Record(tmp_path / "steps.json", "mini", "cpu")
    record.add(step("a"), 1, START + 4.0, 1.0, {})
    steps = [step("a"), step("b", needs=("a",)), step("c"), step("d")]
    estimates = {one.name: record.estimate(one, 1) for one in steps}
    assert total_seconds(estimates, steps, 1) == pytest.approx(4 * (START + 4))
    assert total_seconds(estimates, steps, 4) == pytest.approx(2 * (START + 4))
    assert duration(None) == "time unknown"


def run(steps, tmp_path, jobs, libraries=()):
    states = survey(steps, {}, {one.stage for one in steps})
    record = Record(tmp_path / "steps.json", None, "cpu")
    runner = Runner(steps, states, record, tmp_path / "logs", jobs, libraries=libraries)
    runner.run()
    return runner


# Each command in a new interpreter, and as forks of a process that has imported a library.
LIBRARIES, STARTS = [(), ("colorsys",)], ["interpreters", "forks"]


def script(path, *lines):
    path.write_text("\n".join(["import pathlib, sys, time", *lines]) + "\n")
    return (str(path),)


@pytest.mark.parametrize("libraries", LIBRARIES, ids=STARTS)
@pytest.mark.parametrize("jobs", [1, 3])
def test_a_failure_stops_only_what_needs_it(tmp_path, jobs, libraries, capfd):
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
    runner = run(steps, tmp_path, jobs, libraries)
    assert sorted(path.stem for path in tmp_path.glob("*.txt")) == ["one", "three", "two"]
    assert list(runner.failed) == ["bad"]
    assert runner.skipped == ["needs bad", "needs that"]
    assert runner.ended == ["good", "after bad"]
    assert set(runner.record.finished) == {one.run_name for one in steps if one.name in runner.ended}
    if jobs > 1:
        assert runner.failed["bad"].endswith("error: the disk is full")
        assert "one.py" in (tmp_path / "logs" / "good.log").read_text()
    assert "the disk is full" in "".join(capfd.readouterr())


def test_long_chains_start_first_then_networks_with_many_images_then_calibration(tmp_path):
    done = script(tmp_path / "done.py")
    steps = [
        step("calibrate", stage="calibrate", size=9, commands=(done,)),
        step("few", size=2, commands=(done,)),
        step("many", size=3, commands=(done,)),
        step("needed", size=1, commands=(done,)),
        step("last", commands=(done,), needs=("needed",)),
    ]
    assert run(steps, tmp_path, 1).ended == ["needed", "many", "few", "last", "calibrate"]


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


STOP = """
import os, pathlib, signal, subprocess, sys, time
if sys.argv[1] == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
below = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])  # such as a process of another device
pathlib.Path(sys.argv[2]).write_text(f"{os.getpid()} {below.pid}")
time.sleep(60)
"""


@pytest.mark.parametrize("hears, libraries", [("hears", ()), ("deaf", ()), ("hears", ("colorsys",))])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL], ids=str)
def test_a_plan_that_is_ended_leaves_no_process_behind(tmp_path, number, hears, libraries):
    (tmp_path / "step.py").write_text(STOP)
    commands = [(str(tmp_path / "step.py"), hears, str(tmp_path / name)) for name in "ab"]
    whole = script(
        tmp_path / "whole.py",
        f"sys.path.insert(0, {str(REPO_ROOT)!r})",
        "from genval.reproduction import guard, running",
        "from genval.reproduction.record import Record",
        "from genval.reproduction.state import TO_DO, StepState",
        "from genval.reproduction.steps import Outputs, Step",
        "running.PATIENCE = 1.0",
        f"folder, commands = pathlib.Path({str(tmp_path)!r}), {commands!r}",
        "steps = [Step(str(n), 'first', (one,), 1, lambda: Outputs(0)) for n, one in enumerate(commands)]",
        "states = {step.name: StepState(TO_DO, 0) for step in steps}",
        "record = Record(folder / 'steps.json', None, 'cpu')",
        f"running.Runner(steps, states, record, folder / 'logs', 2, libraries={libraries!r}).run()",
    )
    process = subprocess.Popen([sys.executable, *whole], stderr=subprocess.PIPE, text=True, preexec_fn=default_signals)
    wait_until(lambda: all((tmp_path / name).exists() and (tmp_path / name).read_text() for name in "ab"))
    numbers = [int(text) for name in "ab" for text in (tmp_path / name).read_text().split()]
    assert len(numbers) == 4 and all(is_running(one) for one in numbers)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)  # ends when the guard has ended too, which holds the pipe
    wait_until(lambda: not any(is_running(one) for one in numbers))
    assert process.returncode != 0
    assert number == signal.SIGKILL or err.strip().endswith("KeyboardInterrupt")


def default_signals():
    """In a new process: nohup and shells that start jobs in the background have signals ignored."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def wait_until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def is_running(process):
    """Whether a process runs; one that has ended and whose parent has not asked yet does not."""
    try:
        os.kill(process, 0)
        stat = Path(f"/proc/{process}/stat")
        return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_what_is_ignored_stays_ignored(tmp_path):
    """As under nohup."""
    lines = [
        "import os, signal",
        "os.kill(os.getppid(), signal.SIGHUP)",
        "time.sleep(0.3)",
        f"pathlib.Path({str(tmp_path / 'made')!r}).touch()",
    ]
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run([step("a", commands=(script(tmp_path / "a.py", *lines),))], tmp_path, 1).ended == ["a"]
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (tmp_path / "made").exists()


def report_plan(tmp_path, failing=()):
    """Steps whose files an earlier run left; what they read is new."""
    (tmp_path / "correlation.json").write_text(json.dumps({"verdict": ["the verdict"]}))
    (tmp_path / "index.html").touch()
    fails, ends = script(tmp_path / "fails.py", "sys.exit(1)"), script(tmp_path / "ends.py", "")
    steps, before = [step("evaluate", made=1, files=[tmp_path / "correlation.json"])], "evaluate"
    for stage in ("correlate", "report"):
        commands = ((*(fails if stage in failing else ends), stage),)
        steps.append(step(stage, made=1, stage=stage, commands=commands, after=(before,)))
        before = stage
    return steps


@pytest.mark.parametrize("failing", [(), ("correlate",), ("report",), ("correlate", "report")])
def test_verdict_and_page_are_printed_only_where_this_run_made_them(tmp_path, capsys, failing):
    steps, stages = report_plan(tmp_path, failing), ["first", "correlate", "report"]
    states = survey(steps, {}, stages)
    runner = Runner(steps, states, Record(tmp_path / "steps.json", None, "cpu"), tmp_path)
    runner.run()
    capsys.readouterr()
    print_end(up_to_date(steps, states, stages, runner.ended), tmp_path, runner.seconds, list(runner.failed))
    first, *printed = capsys.readouterr().out.strip().splitlines()
    if failing:  # a verdict would be of a part of the plan
        assert printed == [] and first.endswith(f"there is no verdict, since steps failed: {', '.join(runner.failed)}")
    else:
        assert printed == ["the verdict", f"report: {tmp_path / 'index.html'}"]


def test_verdict_and_page_are_printed_where_all_is_done_and_their_stages_are_chosen(tmp_path, capsys):
    steps = report_plan(tmp_path)
    recorded = read_now(*steps)
    for stages, lines in ((["first"], 1), (["first", "correlate", "report"], 3)):
        states = survey(steps, recorded, stages)
        print_end(up_to_date(steps, states, stages, []), tmp_path, 0.0)
        assert capsys.readouterr().out.strip().count("\n") + 1 == lines


def test_a_plan_of_which_nothing_can_run_is_an_error():
    blocked, done = step("a", missing=(Missing("the weights", "hf download them"),)), step("b", made=1, stage="second")
    states = survey([blocked, done], {}, STAGES)
    with pytest.raises(GenValError, match="None of these steps can run"):
        check_any_runs([blocked, done], states, ["first"])
    check_any_runs([blocked, done], states, ["first", "second"])
