"""A plan in words: what is done, what is to do and how long it takes, what is missing and where to get it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from genval.reproduction.record import Record, total_seconds
from genval.reproduction.state import DONE, TO_DO, Standing, missing
from genval.reproduction.steps import Lack, Step
from genval.runtime.files import read_json

# Lacks of one remedy that are named; the others are counted.
_NAMED = 3


def print_plan(
    steps: Sequence[Step], standings: Mapping[str, Standing], record: Record, jobs: int, commands: bool
) -> None:
    """A line a step, with `commands` what it runs, and how long all of it takes.

    Args:
        steps: each after those that it needs.
        standings: from `state.survey`.
        record: what estimates are made from.
        jobs: steps at a time.
        commands: whether to print them.
    """
    width = max(len(step.name) for step in steps)
    to_do = [step for step in steps if standings[step.name].kind == TO_DO]
    estimates = {step.name: record.estimate(step, left(step, standings[step.name])) for step in to_do}
    for step in steps:
        standing = standings[step.name]
        size = "?" if step.size is None else str(step.size)
        note = standing.reason
        if standing.kind == TO_DO:
            note = f"{duration(estimates[step.name].seconds)} ({estimates[step.name].source})"
        print(f"  {step.name:{width}}  {standing.kind:7}  {f'{standing.made}/{size}':>13}  {note}".rstrip())
        for command in step.commands if commands and standing.kind != DONE else ():
            print(f"  {'':{width}}    $ python {shlex.join(command)}")
    kinds = [standing.kind for standing in standings.values()]
    unknown = sum(estimate.seconds is None for estimate in estimates.values())
    time = duration(total_seconds(estimates, to_do, jobs)) if unknown < len(to_do) or not to_do else "time unknown"
    more = f" without the {unknown} steps that have no rate" if 0 < unknown < len(to_do) else ""
    parts = [f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)]
    print(f"{len(steps)} steps: {', '.join(parts)}; about {time}{more} on {record.device}, {jobs} at a time")


def left(step: Step, standing: Standing) -> int:
    """The items that a step has left; all of them where what it reads has changed."""
    size = step.size or 0
    return size - standing.made if standing.made < size else size


def print_missing(steps: Sequence[Step], standings: Mapping[str, Standing]) -> None:
    """What has to be got, grouped by where it is to be had."""
    by_remedy: dict[str, list[Lack]] = {}
    for lack in missing(steps, standings):
        by_remedy.setdefault(lack.remedy, []).append(lack)
    if by_remedy:
        print("\nmissing:")
    for remedy, lacks in by_remedy.items():
        named = [lack.what for lack in lacks[:_NAMED]]
        more = [f"and {len(lacks) - _NAMED} more"] if len(lacks) > _NAMED else []
        print("  " + "\n  ".join(named + more))
        print(f"      get: {remedy}")


def print_end(current: Sequence[Step], report: Path, seconds: float) -> None:
    """The verdict and where the page is, each if it is of this plan's results and not left from earlier ones.

    Args:
        current: from `state.up_to_date`.
        report: the report's folder.
        seconds: that the plan ran.
    """
    print(f"\nfinished in {duration(seconds)}")
    made = {step.stage for step in current if step.stage in ("correlate", "report") and step.outputs().made}
    if "correlate" in made:
        print("\n".join(read_json(report / "correlation.json")["verdict"]))
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
