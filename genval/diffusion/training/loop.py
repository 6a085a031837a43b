"""The training loop of small models on one device: time limit, learning rate, averaged weights, snapshots, log."""

from __future__ import annotations

import contextlib
import copy
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genval.runtime.errors import GenValError
from genval.runtime.files import replace_file
from genval.training.interruption import Interruption

LOG_STEPS = 100
Log = Callable[[str], None]


class Average:
    """The exponential moving average of a model's weights.

    Args:
        model: the model that is trained.
        decay: of the average per step; smaller in the first steps.

    Attributes:
        model: a copy of the model with the averaged weights, in evaluation mode.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._trained, self._decay = model, decay
        self.model: Any = copy.deepcopy(model).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average with the weights after `step` (0 is the first)."""
        decay = min(self._decay, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(self.model.parameters()), list(self._trained.parameters()), 1 - decay)


class Snapshot:
    """A checkpoint of the whole training state, one file of tensors next to the run's output, and the state before it.

    Args:
        output: the folder that the run writes.
        recipe: a dataclass of settings; a snapshot of other settings is refused.
        parts: objects with `state_dict` and `load_state_dict`, by name.
        generator: the run's random generator.
        every: steps between two snapshots.
        free: settings of the recipe that may differ when a state is resumed.
    """

    def __init__(
        self,
        output: Path,
        recipe: Any,
        parts: Mapping[str, Any],
        generator: torch.Generator,
        every: int,
        free: Sequence[str] = (),
    ) -> None:
        self.path = output.with_name(f"{output.name}.snapshot.pt")
        self.before = output.with_name(f"{output.name}.snapshot-before.pt")
        self.every = every
        settings = {key: value for key, value in asdict(recipe).items() if key not in free}
        self._recipe = {key: list(v) if isinstance(v, tuple) else v for key, v in settings.items()}
        self._parts, self._generator = parts, generator

    def save(self, step: int) -> None:
        """Save the state after `step` steps."""
        state = {name: part.state_dict() for name, part in self._parts.items()}
        if self.path.exists():
            os.replace(self.path, self.before)
        with replace_file(self.path) as temporary:
            torch.save({"step": step, "recipe": self._recipe, "noise": self._generator.get_state(), **state}, temporary)

    def load(self) -> int:
        """Restore a saved state and return the number of steps it was saved after; 0 if there is none.

        A damaged state is named on standard error, and the one before it is taken.

        Raises:
            GenValError: the state was saved with other settings.
        """
        for path in (self.path, self.before):
            if not path.exists():
                continue
            try:
                state = torch.load(path, map_location="cpu", weights_only=True)
                before = state["recipe"]
            except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError and others
                print(f"warning: {path} is damaged ({error}): the state before it is used, if any.", file=sys.stderr)
                continue
            if before != self._recipe:
                changed = [
                    f"{key} {now} (was {before.get(key)})"
                    for key, now in self._recipe.items()
                    if before.get(key) != now
                ]
                raise GenValError(
                    f"{path} was saved with other settings: {', '.join(changed)}. Use the same ones, or delete it to "
                    "start again."
                )
            return self._restore(state)
        return 0

    def remove(self) -> None:
        """Remove the saved states of a finished training."""
        self.path.unlink(missing_ok=True)
        self.before.unlink(missing_ok=True)

    def _restore(self, state: dict[str, Any]) -> int:
        for name, part in self._parts.items():
            part.load_state_dict(state[name])
        self._generator.set_state(state["noise"])
        return int(state["step"])


@dataclass(frozen=True, kw_only=True)
class Optimisation:
    """The optimisers and schedule of a training.

    Attributes:
        parameters: all trained weights; the norm of their gradient is clipped to 1.
        optimisers: each with its highest learning rate.
        schedule: (highest learning rate, progress 0..1) -> learning rate; None if `scheduler` sets it.
        scheduler: a PyTorch scheduler, stepped after each step.
    """

    parameters: Sequence[Tensor]
    optimisers: Sequence[tuple[torch.optim.Optimizer, float]]
    schedule: Callable[[float, float], float] | None = None
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None

    def set_rates(self, progress: float) -> None:
        """Set the learning rates for the next step."""
        if self.schedule is not None:
            for optimiser, rate in self.optimisers:
                for group in optimiser.param_groups:
                    group["lr"] = self.schedule(rate, progress)

    def state(self) -> dict[str, Any]:
        """Return the state of the optimisers and the scheduler, for a snapshot."""
        ((optimiser, _),) = self.optimisers
        return {"optimiser": optimiser, "schedule": self.scheduler}

    def step(self, loss: Tensor) -> None:
        """Take one step down the gradient of `loss`."""
        for optimiser, _ in self.optimisers:
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimiser, _ in self.optimisers:
            optimiser.step()
        if self.scheduler is not None:
            self.scheduler.step()


def adamw(
    parameters: Iterable[Tensor],
    device: torch.device,
    *,
    learning_rate: float,
    weight_decay: float,
    schedule: Callable[[float, float], float],
    betas: tuple[float, float] = (0.9, 0.98),
) -> Optimisation:
    """Return AdamW for all weights, fused on a GPU."""
    weights = list(parameters)
    optimiser = torch.optim.AdamW(weights, lr=0.0, weight_decay=weight_decay, betas=betas, fused=device.type == "cuda")
    return Optimisation(parameters=weights, optimisers=[(optimiser, learning_rate)], schedule=schedule)


@dataclass(frozen=True)
class Fit:
    """The result of `fit`.

    Attributes:
        losses: the last smoothed losses by name.
        steps: number of steps that the weights have taken, with those before a snapshot.
        new_steps: number of steps that this process has taken.
        start: when the schedule began, `time.perf_counter`.
    """

    losses: dict[str, float]
    steps: int
    new_steps: int
    start: float

    def scores(self, model: nn.Module, file: Path) -> dict[str, Any]:
        """Return the last losses, the size of the model and the time of its training, for `training.json`."""
        return {
            **{f"loss_{label}": round(value, 4) for label, value in self.losses.items()},
            "parameters": weight_count(model),
            "bytes": file.stat().st_size,
            "steps": self.steps,
            "seconds": round(self.seconds, 1),
        }

    @property
    def seconds(self) -> float:
        """Time since the schedule began."""
        return time.perf_counter() - self.start


def fit(
    name: str,
    losses: Callable[[int], tuple[Tensor, Sequence[Tensor]]],
    optimisation: Optimisation,
    *,
    labels: Sequence[str],
    steps: int,
    seconds: float | None = None,
    average: Average | None = None,
    snapshot: Snapshot | None = None,
    after_step: Callable[[int], object] | None = None,
    record: Callable[[int, Mapping[str, float]], object] | None = None,
    untimed_first_step: bool = False,
    log: Log = print,
) -> Fit:
    """Train until the number of steps or the time limit is reached.

    With a snapshot, the state is also saved after the step in which Ctrl-C or SIGTERM comes.

    Args:
        name: of the model, for log lines.
        losses: step -> the loss of a batch, and its parts to report, one scalar per label.
        optimisation: optimisers and learning rates.
        labels: names of the reported parts.
        steps: number of steps.
        seconds: end after this time even if steps remain; the schedule is then shortened accordingly.
        average: averaged weights to update.
        snapshot: where the state is saved; a state found there is resumed.
        after_step: called after each step with the number of steps so far.
        record: called with the step and the smoothed parts of the loss where a line is logged.
        untimed_first_step: start the clock after the first step, which compiles the model.
        log: called with each line of text.

    Raises:
        KeyboardInterrupt: interrupted, with the number of the signal.
    """
    step = first = snapshot.load() if snapshot else 0
    smoothed: Tensor | None = None
    start = time.perf_counter()
    interruption = Interruption()
    with interruption if snapshot else contextlib.nullcontext():
        while not interruption.number and (done := progress(step, steps, start, seconds)) < 1:
            optimisation.set_rates(done)
            loss, parts = losses(step)
            optimisation.step(loss)
            if average is not None:
                average.update(step)
            if after_step is not None:
                after_step(step + 1)
            values = torch.stack([part.detach().float() for part in parts])
            smoothed = torch.zeros_like(values) if smoothed is None else smoothed
            smoothed = smoothed.lerp(values, max(0.02, 1 / (step - first + 1)))
            if snapshot is not None and (step + 1) % snapshot.every == 0:
                snapshot.save(step + 1)
            if step % LOG_STEPS == 0 or step == steps - 1:
                shown = dict(zip(labels, smoothed.tolist(), strict=True))
                words = " ".join(f"{label} {value:.4f}" for label, value in shown.items())
                log(f"{name} step {step} {words} {time.perf_counter() - start:.0f} s")
                if record is not None:
                    record(step, shown)
            if untimed_first_step and step == first:
                start = time.perf_counter()
            step += 1
        if snapshot is not None and interruption.number:
            snapshot.save(step)
            raise KeyboardInterrupt(interruption.number)
    last = [0.0] * len(labels) if smoothed is None else smoothed.tolist()
    return Fit(dict(zip(labels, last, strict=True)), step, step - first, start)


def progress(step: int, steps: int, start: float, seconds: float | None) -> float:
    """Return the completed fraction of a schedule, 0..1: by steps, or by time if it is limited and further advanced."""
    elapsed = (time.perf_counter() - start) / seconds if seconds else 0.0
    return min(1.0, max(step / steps, elapsed))


def warm_cosine(warmup: float, cosine: Callable[[float], float] = math.cos) -> Callable[[float, float], float]:
    """Return a schedule: linear warm-up over a fraction of the steps, times half a cosine that falls to 0.

    Args:
        warmup: share of the schedule, 0..1.
        cosine: `float32_cosine` where released weights were trained with it; their bits depend on it.
    """

    def rate(highest: float, done: float) -> float:
        return highest * min(1.0, done / warmup) * (0.5 + 0.5 * cosine(math.pi * done))

    return rate


def float32_cosine(angle: float) -> float:
    """The cosine in float32."""
    return torch.cos(torch.tensor(angle)).item()


def weight_count(model: nn.Module) -> int:
    """Return the number of a model's weights."""
    return sum(parameter.numel() for parameter in model.parameters())
