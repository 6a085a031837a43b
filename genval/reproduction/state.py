"""Where each step of a plan stands: done, to do, or blocked by what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from genval.reproduction.steps import Lack, Step, newest
from genval.runtime.errors import GenValError

DONE, TO_DO, BLOCKED = "done", "to do", "blocked"


@dataclass(frozen=True)
class Standing:
    """Where a step stands.

    Attributes:
        kind: `DONE`, `TO_DO` or `BLOCKED`.
        made: how many of its items are there.
        reason: what it is blocked by, in words; else "".
    """

    kind: str
    made: int
    reason: str = ""


def check_stages(given: Sequence[str], known: Sequence[str]) -> list[str]:
    """The stages that `--stages` names; "all" is every one.

    Raises:
        GenValError: there is no such stage.
    """
    unknown = [stage for stage in given if stage not in (*known, "all")]
    if unknown:
        raise GenValError(f"--stages: {', '.join(unknown)} is none of {', '.join(known)}.")
    return list(known if "all" in given else given)


def survey(
    steps: Sequence[Step], finished: Mapping[str, float], chosen: Sequence[str], again: bool = False
) -> dict[str, Standing]:
    """Every step's standing, by name.

    A step is done when all its items are there and none of what it reads is newer than they are, or than the end of
    its last run; so it runs again after a step before it has run again.

    Args:
        steps: each after those that it needs.
        finished: when a step last ended well, in seconds since the epoch, by name.
        chosen: stages that may run. A step of another stage is as good as its files.
        again: what is done is to do.
    """
    standings: dict[str, Standing] = {}
    times: dict[str, float] = {}
    for step in steps:
        outputs = step.outputs()
        times[step.name] = outputs.time
        whole = step.size is not None and outputs.made >= step.size and not (again and step.stage in chosen)
        standings[step.name] = _standing(step, outputs.made, whole, standings, times, finished, chosen)
    return standings


def _standing(
    step: Step,
    made: int,
    whole: bool,
    standings: Mapping[str, Standing],
    times: Mapping[str, float],
    finished: Mapping[str, float],
    chosen: Sequence[str],
) -> Standing:
    before = [name for name in step.before if name in standings]
    if step.stage not in chosen:
        return Standing(DONE, made) if whole else Standing(BLOCKED, made, f"{step.stage} is not among --stages")
    waiting = any(standings[name].kind == TO_DO for name in before)
    read = max([newest(*step.inputs), *(times[name] for name in before)], default=0.0)
    if whole and not waiting and read <= max(times[step.name], finished.get(step.name, 0.0)):
        return Standing(DONE, made)
    if step.lacks:
        more = f", and {len(step.lacks) - 1} more" if len(step.lacks) > 1 else ""
        return Standing(BLOCKED, made, f"missing: {step.lacks[0].what}{more}")
    blocked = [name for name in step.needs if standings[name].kind == BLOCKED]
    if step.any_of and all(standings[name].kind == BLOCKED for name in step.any_of):
        blocked += step.any_of[:1]
    if blocked:
        return Standing(BLOCKED, made, f"needs: {', '.join(blocked)}")
    return Standing(TO_DO, made)


def missing(steps: Sequence[Step], standings: Mapping[str, Standing]) -> list[Lack]:
    """What has to be got for the blocked steps, each once."""
    lacks = [lack for step in steps if standings[step.name].kind == BLOCKED for lack in step.lacks]
    return list(dict.fromkeys(lacks))
