"""Where each step of a plan stands: done, to do, or blocked by what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from genval.reproduction.marks import Marker, Marks, differing
from genval.reproduction.steps import Outputs, Step
from genval.runtime.commands import Missing
from genval.runtime.errors import GenValError

NOT_RECORDED = "what it was made from is not recorded"
DONE, TO_DO, BLOCKED = "done", "to do", "blocked"


@dataclass(frozen=True)
class StepState:
    """Where a step stands.

    Attributes:
        kind: `DONE`, `TO_DO` or `BLOCKED`.
        made: how many of its items are there.
        reason: what it is blocked by, or what has changed since it ran, in words; else "".
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
    steps: Sequence[Step], recorded: Mapping[str, Marks], chosen: Sequence[str], again: bool = False
) -> dict[str, StepState]:
    """Every step's state, by name.

    A step is done when all its items are there and what it reads has the same marks as when its commands last ran well.
    Items that no plan has recorded are not trusted: their commands run, and skip what they find finished. Where they
    cannot run, because something is missing, such items count.

    Args:
        steps: each after those that it needs.
        recorded: marks of what a step read when it last ran, by `Step.run_name`.
        chosen: stages that may run. A step of another stage is as good as its files.
        again: what is done is to do.
    """
    states: dict[str, StepState] = {}
    outputs: dict[str, Outputs] = {}
    marker = Marker()
    for step in steps:
        found = step.outputs()
        whole = step.size is not None and found.made >= step.size and not (again and step.stage in chosen)
        changed: list[str] = []
        if whole and step.stage in chosen and (step.run_name in recorded or not step.missing):
            known = recorded.get(step.run_name, {})
            changed = differing(known, marker.mark(step, outputs, known))
            if changed and step.run_name not in recorded:
                changed = [NOT_RECORDED]
        states[step.name] = _state(step, found.made, whole, states, changed, chosen)
        outputs[step.name] = found
    return states


def _state(
    step: Step, made: int, whole: bool, states: Mapping[str, StepState], changed: Sequence[str], chosen: Sequence[str]
) -> StepState:
    before = [name for name in step.before if name in states]
    if step.stage not in chosen:
        return StepState(DONE, made) if whole else StepState(BLOCKED, made, f"{step.stage} is not among --stages")
    waiting = any(states[name].kind == TO_DO for name in before)
    if whole and not waiting and not changed:
        return StepState(DONE, made)
    if step.missing:
        more = f", and {len(step.missing) - 1} more" if len(step.missing) > 1 else ""
        return StepState(BLOCKED, made, f"missing: {step.missing[0].what}{more}")
    blocked = [name for name in step.needs if states[name].kind == BLOCKED]
    if step.any_of and all(states[name].kind == BLOCKED for name in step.any_of):
        blocked += step.any_of[:1]
    if blocked:
        return StepState(BLOCKED, made, f"needs: {', '.join(blocked)}")
    return StepState(TO_DO, made, _reason(changed))


def _reason(changed: Sequence[str]) -> str:
    if not changed or changed[0] == NOT_RECORDED:
        return "".join(changed)
    return f"changed: {changed[0]}" + (f" and {len(changed) - 1} more" if len(changed) > 1 else "")


def check_any_runs(steps: Sequence[Step], states: Mapping[str, StepState], chosen: Sequence[str]) -> None:
    """Refuse a plan of which nothing is done and nothing can run.

    Raises:
        GenValError: every step of the chosen stages is blocked.
    """
    if all(states[step.name].kind == BLOCKED for step in steps if step.stage in chosen):
        raise GenValError(
            "None of these steps can run. The plan says what each is blocked by: get what is missing, or give other "
            "--stages or --segmenters."
        )


def up_to_date(
    steps: Sequence[Step], states: Mapping[str, StepState], chosen: Sequence[str], ended: Sequence[str]
) -> list[Step]:
    """The steps of the chosen stages whose files are of this plan: done before it, or `ended` well in it."""
    return [step for step in steps if step.name in ended or (step.stage in chosen and states[step.name].kind == DONE)]


def list_missing(steps: Sequence[Step], states: Mapping[str, StepState]) -> list[Missing]:
    """What has to be got for the blocked steps, each once."""
    found = [one for step in steps if states[step.name].kind == BLOCKED for one in step.missing]
    return list(dict.fromkeys(found))
