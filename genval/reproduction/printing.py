"""A plan in words: what is done, what is to do and how long it takes, what is missing and where to get it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from genval.reproduction.record import Record, total_seconds
from genval.reproduction.state import DONE, TO_DO, StepState, list_missing
from genval.reproduction.steps import Step
from genval.runtime.commands import Missing
from genval.runtime.files import read_json

# Lacks of one remedy that are named; the others are counted.
_NAMED = 3


def print_plan(
    steps: Sequence[Step], states: Mapping[str, StepState], record: Record, jobs: int, commands: bool
) -> None:
    """A line a step, with `commands` what it runs, and how long all of it takes.

    Args:
        steps: each after those that it needs.
        states: from `state.survey`.
        record: what estimates are made from.
        jobs: steps at a time.
        commands: whether to print them.
    """
    width = max(len(step.name) for step in steps)
    to_do = [step for step in steps if states[step.name].kind == TO_DO]
    estimates = {step.name: record.estimate(step, left(step, states[step.name])) for step in to_do}
    for step in steps:
        state = states[step.name]
        size = "?" if step.size is None else str(step.size)
        note = state.reason
        if state.kind == TO_DO:
            reason = f"; {state.reason}" if state.reason else ""
            note = f"{duration(estimates[step.name].seconds)} ({estimates[step.name].source}){reason}"
        print(f"  {step.name:{width}}  {state.kind:7}  {f'{state.made}/{size}':>13}  {note}".rstrip())
        for command in step.commands if commands and state.kind != DONE else ():
            print(f"  {'':{width}}    $ python {shlex.join(command)}")
    kinds = [state.kind for state in states.values()]
    unknown = sum(estimate.seconds is None for estimate in estimates.values())
    parts = [f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)]
    time = ""
    if to_do:
        known = unknown < len(to_do)
        time = f"; about {duration(total_seconds(estimates, to_do, jobs))}" if known else f"; {duration(None)}"
        time += f", not counting {unknown} steps of unknown time" if known and unknown else ""
        time += f" ({record.device}; {jobs} at a time)"
    print(f"{len(steps)} steps: {', '.join(parts)}{time}")


def left(step: Step, state: StepState) -> int:
    """The items that a step has left; all of them where what it reads has changed."""
    size = step.size or 0
    return size - state.made if state.made < size else size


def print_missing(steps: Sequence[Step], states: Mapping[str, StepState]) -> None:
    """What has to be got, grouped by where it is to be had."""
    by_remedy: dict[str, list[Missing]] = {}
    for one in list_missing(steps, states):
        by_remedy.setdefault(one.remedy, []).append(one)
    if by_remedy:
        print("\nmissing:")
    for remedy, missing in by_remedy.items():
        named = [one.what for one in missing[:_NAMED]]
        more = [f"and {len(missing) - _NAMED} more"] if len(missing) > _NAMED else []
        print("  " + "\n  ".join(named + more))
        print(f"      get: {remedy}")


def print_unmarked(unmarked: Sequence[str], states: Mapping[str, StepState]) -> None:
    """Say that steps run again of which an earlier version did not record what they read.

    Args:
        unmarked: from `Record.without_marks`.
        states: from `state.survey`.
    """
    names = [name for name in unmarked if states[name].kind == TO_DO]
    if names:
        print(
            f"{len(names)} steps were recorded by an earlier version, without what they read ({names[0]}, ...): they "
            "run again, and skip what they find finished."
        )


class _Verdict(TypedDict):
    verdict: list[str]


def print_end(current: Sequence[Step], report: Path, seconds: float, failed: Sequence[str] = ()) -> None:
    """The verdict and where the page is, each if it is of this plan's results and not left from earlier ones.

    If a step failed, neither is printed: they would be of a part of the plan.

    Args:
        current: from `state.up_to_date`.
        report: the report's folder.
        seconds: that the plan ran.
        failed: names of the steps that failed.
    """
    if failed:
        print(f"\nended after {duration(seconds)}; there is no verdict, since steps failed: {', '.join(failed)}")
        return
    print(f"\nfinished in {duration(seconds)}")
    made = {step.stage for step in current if step.stage in ("correlate", "report") and step.outputs().made}
    if "correlate" in made:
        print("\n".join(read_json(report / "correlation.json", _Verdict)["verdict"]))
    if "report" in made:
        print(f"report: {report / 'index.html'}")


def duration(seconds: float | None) -> str:
    """Seconds in words.

    >>> duration(42.4), duration(750), duration(50000), duration(None)
    ('42 s', '12.5 min', '13.9 h', 'time unknown')
    """
    if seconds is None:
        return "time unknown"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
