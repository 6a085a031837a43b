"""What a plan ran before on this machine, and how long a step will take by it."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict

from genval.reproduction.steps import Step
from genval.runtime.files import read_json, write_json

# Starting Python and importing torch and the models' libraries, seconds a command on two quiet CPU cores.
START = 6.0
# Runs of a stage that are kept; the estimate is over these.
_KEPT = 20

# Seconds an image where nothing was measured here, by preset, stage and kind of device; and where the figure is from.
STATED: dict[tuple[str | None, str, str], tuple[float, str]] = {
    (None, "generate", "gpu"): (0.137, "docs/speed.md, one H100"),
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
    runs: NotRequired[dict[str, dict[str, list[_Run]]]]


class Record:
    """`steps.json` of a plan's folder: when steps ended well, by `Step.run_name`, and what they took.

    Args:
        path: of the file; it may not exist yet.
        preset: of the plan.
        device: from `describe_device`; another machine's times are kept apart.
    """

    def __init__(self, path: Path, preset: str | None, device: str) -> None:
        self.path, self.preset, self.device = path, preset, device
        content: _Content = read_json(path, _Content) if path.exists() else {}
        self.finished: dict[str, float] = content.get("finished", {})
        self.runs: dict[str, dict[str, list[_Run]]] = content.get("runs", {})

    def add(self, step: Step, items: int, seconds: float, ended: float) -> None:
        """Note that a step ended well, and if it made something, how fast.

        Args:
            step: which.
            items: new ones.
            seconds: it took.
            ended: since the epoch.
        """
        self.finished[step.run_name] = ended
        if items > 0:
            runs = self.runs.setdefault(self.device, {}).setdefault(step.stage, [])
            runs.append({"images": step.images(items), "commands": len(step.commands), "seconds": round(seconds, 2)})
            del runs[:-_KEPT]
        write_json(self.path, {"finished": self.finished, "runs": self.runs})

    def estimate(self, step: Step, items: int) -> Estimate:
        """How long a step takes that has `items` left: its processes' starts, and seconds an image."""
        runs = self.runs.get(self.device, {}).get(step.stage, [])
        if runs:
            # Of the quickest process at most a half was its start.
            start = min([START, *(run["seconds"] / run["commands"] / 2 for run in runs)])
            work = sum(run["seconds"] - start * run["commands"] for run in runs)
            rate = work / sum(run["images"] for run in runs)
            return Estimate(start * len(step.commands) + step.images(items) * rate, "measured here")
        kind = "cpu" if self.device.startswith("cpu") else "gpu"
        if (self.preset, step.stage, kind) in STATED:
            rate, source = STATED[self.preset, step.stage, kind]
            return Estimate(START * len(step.commands) + step.images(items) * rate, source)
        return Estimate(None, "not measured yet")


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
