"""What a plan ran before on this machine, and how long a step will take by it."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict

from genval.reproduction.marks import Marks
from genval.reproduction.steps import Step
from genval.runtime.files import read_json, write_json
from genval.runtime.flags import canonical
from genval.runtime.fork_server import can_fork

# Starting a command, seconds on two quiet CPU cores (docs/speed.md): a new interpreter imports torch and the models'
# libraries, a fork has them.
_INTERPRETER, _FORK = 6.0, 0.2
# Runs of a stage that are kept; the estimate is over these.
_KEPT = 20

# Seconds per image where nothing was measured here, by preset, stage and kind of device; and where the number is from.
STATED: dict[tuple[str | None, str, str], tuple[float, str]] = {
    (None, "generate", "gpu"): (0.136, "docs/speed.md, one H100"),
}


@dataclass(frozen=True)
class Estimate:
    """How long the rest of a step takes.

    Attributes:
        seconds: None where there is no rate.
        source: "measured here", or where the rate is from.
    """

    seconds: float | None
    source: str


class _Run(TypedDict):
    images: float
    commands: int
    seconds: float


class _Content(TypedDict):
    """`steps.json`."""

    finished: NotRequired[dict[str, float]]
    marks: NotRequired[dict[str, Marks]]
    runs: NotRequired[dict[str, dict[str, list[_Run]]]]


class Record:
    """`steps.json` of a plan's folder: when steps ended well, what they read, by `Step.run_name`, and what they took.

    Attributes:
        finished: when steps last ended well, in seconds since the epoch.
        marks: what they read, from `marks.Marker`; steps that an earlier version recorded have none.
        runs: how fast they were, by device and stage.

    Args:
        path: of the file; it may not exist yet.
        preset: of the plan.
        device: from `describe_device`; another machine's times are kept apart.

    Raises:
        GenValError: the file is not such a record.
    """

    def __init__(self, path: Path, preset: str | None, device: str) -> None:
        self.path, self.preset, self.device = path, preset, device
        remedy = "Delete it: every step then runs again, and skips what it finds finished."
        content: _Content = read_json(path, _Content, remedy) if path.exists() else {}
        finished, marks = content.get("finished", {}), content.get("marks", {})
        named = [(canonical_name(name), name) for name in finished]
        self.finished: dict[str, float] = {now: finished[name] for now, name in named}
        self.marks: dict[str, Marks] = {now: marks[name] for now, name in named if name in marks}
        self.runs: dict[str, dict[str, list[_Run]]] = content.get("runs", {})

    def without_marks(self, steps: Sequence[Step]) -> list[str]:
        """Return the names of finished steps of which an earlier version did not record what they read."""
        return [step.name for step in steps if step.run_name in self.finished.keys() - self.marks.keys()]

    def add(self, step: Step, items: int, seconds: float, ended: float, marks: Marks) -> None:
        """Note that a step ended well, and if it made something, how fast.

        Args:
            step: which.
            items: new ones.
            seconds: it took.
            ended: since the epoch.
            marks: of what it read, taken before it started.
        """
        self.finished[step.run_name] = ended
        self.marks[step.run_name] = marks
        if items > 0:
            runs = self.runs.setdefault(self.device, {}).setdefault(step.stage, [])
            runs.append({"images": step.images(items), "commands": len(step.commands), "seconds": round(seconds, 2)})
            del runs[:-_KEPT]
        write_json(self.path, {"finished": self.finished, "marks": self.marks, "runs": self.runs})

    def estimate(self, step: Step, items: int) -> Estimate:
        """Estimate how long a step with `items` left takes: the starts of its processes, and the seconds per image."""
        runs = self.runs.get(self.device, {}).get(step.stage, [])
        if runs:
            # Of the quickest process at most a half was its start.
            start = min([start_seconds(), *(run["seconds"] / run["commands"] / 2 for run in runs)])
            work = sum(run["seconds"] - start * run["commands"] for run in runs)
            rate = work / sum(run["images"] for run in runs)
            return Estimate(start * len(step.commands) + step.images(items) * rate, "measured here")
        kind = "cpu" if self.device.startswith("cpu") else "gpu"
        if (self.preset, step.stage, kind) in STATED:
            rate, source = STATED[self.preset, step.stage, kind]
            return Estimate(start_seconds() * len(step.commands) + step.images(items) * rate, source)
        return Estimate(None, "not measured yet")


def start_seconds() -> float:
    """Return how long a command of a plan on this machine takes to start."""
    return _FORK if can_fork() else _INTERPRETER


def canonical_name(run_name: str) -> str:
    """A step's `run_name` with the present names of its flags, of a record that an earlier version wrote.

    >>> canonical_name("relis/corrupt.py --domain fog && ControlNet/style_transfer.py --domain fog")
    'relis/corrupt.py --domains fog && ControlNet/style_transfer.py --domain fog'
    >>> canonical_name("ood_detection/main_gen_ood.py --model all && report/correlate.py --models a,b --draws 9")
    'ood_detection/main_gen_ood.py --segmenters all && report/correlate.py --segmenters a,b --bootstrap_draws 9'
    """
    commands = []
    for command in run_name.split(" && "):
        script, *words = shlex.split(command)
        commands.append(shlex.join([script, *(_canonical_word(script, word) for word in words)]))
    return " && ".join(commands)


def _canonical_word(script: str, word: str) -> str:
    if not word.startswith("--"):
        return word
    # Aliases of several flags: which one is meant depends on the script.
    if word == "--domain" and script == "relis/corrupt.py":
        return "--domains"
    if word == "--model" and not script.startswith("ood_objects/"):
        return "--segmenters"
    return f"--{canonical(word[2:])}"


def describe_device(accelerator: str) -> str:
    """The device that rates are measured on: "cpu, 2 cores", or the GPUs' name and number."""
    names = [] if accelerator == "cpu" else list_gpus()
    if names:
        return f"{len(names)} x {names[0]}"
    return f"cpu, {count_cores()} cores"


def count_cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def list_gpus() -> list[str]:
    """The names of the GPUs that CUDA_VISIBLE_DEVICES lets through, by NVIDIA's tool: importing torch takes seconds."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True)
    names = done.stdout.strip().splitlines() if done.returncode == 0 else []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return names
    numbers = [part for part in visible.split(",") if part.strip().isdecimal()]
    return [names[int(number)] for number in numbers if int(number) < len(names)]


def total_seconds(estimates: dict[str, Estimate], steps: list[Step], jobs: int) -> float:
    """How long the steps take together, so many at a time: the longest chain, or the sum shared among the jobs.

    Steps without a rate count as nothing.
    """
    ends: dict[str, float] = {}
    for step in steps:
        start = max((ends[name] for name in step.before if name in ends), default=0.0)
        ends[step.name] = start + (estimates[step.name].seconds or 0.0)
    whole = sum(estimates[step.name].seconds or 0.0 for step in steps)
    return max([*ends.values(), whole / jobs], default=0.0)
