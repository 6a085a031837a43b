"""Run the steps of a plan, several at a time; a step that fails stops only those that need it."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from genval.reproduction.guard import PATIENCE, Guard, signal_group
from genval.reproduction.marks import Marker, Marks
from genval.reproduction.record import Record, count_cores, list_gpus
from genval.reproduction.state import BLOCKED, TO_DO, StepState
from genval.reproduction.steps import Step
from genval.runtime.files import write_bytes
from genval.runtime.fork_server import ForkedScript, ForkServer
from genval.runtime.paths import REPO_ROOT

# How often running steps are looked at, seconds.
_LOOK = 0.1
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class _RunningStep:
    step: Step
    slot: int
    log: Path | None
    process: subprocess.Popen[bytes] | ForkedScript
    command: int
    start: float
    marks: Marks


@dataclass
class Runner:
    """Runs the steps that are to do. Each starts as soon as the steps that it needs have ended.

    Attributes:
        steps: each after those that it needs.
        states: from `state.survey`.
        record: where successful steps are recorded.
        logs: folder of the logs, one per step; with one job the steps write to the terminal.
        jobs: steps at a time.
        uses_gpu: with several jobs, each takes one GPU of this machine in turn.
        libraries: modules that are imported once for all steps, by a `ForkServer`; empty for a new interpreter per
            command. Not for steps that use a GPU.
        ended: names of the steps that succeeded.
        failed: names of steps, with the last line that they wrote.
        skipped: steps that were not run because one that they need failed.
        seconds: that the whole took.
    """

    steps: Sequence[Step]
    states: Mapping[str, StepState]
    record: Record
    logs: Path
    jobs: int = 1
    uses_gpu: bool = False
    libraries: Sequence[str] = ()
    ended: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def run(self) -> None:
        """Run them all; return when none runs and none can.

        Raises:
            KeyboardInterrupt: interrupted, or told to end (SIGTERM or SIGHUP, by a scheduler or a terminal, say); the
                steps are ended too, with all processes that they started. SIGKILL has the same effect on them.
        """
        self._begin = time.perf_counter()
        to_do = [step for step in self.steps if self.states[step.name].kind == TO_DO]
        # First those that the longest chains of others wait for, then those of most images: short ones fill the end.
        # Calibration runs no network on its images.
        self._waiting = sorted(
            to_do,
            key=lambda step: (
                -chain_length(step.name, to_do),
                step.stage == "calibrate",
                -step.images(step.size or 0),
            ),
        )
        self._total = len(self._waiting)
        self._gpus = self._visible_gpus() if self.jobs > 1 and self.uses_gpu else []
        self._running: list[_RunningStep] = []
        self._started = 0
        self._stop_requested = False
        # Noted and acted on in the loop: raised just as a process starts, it would leave that one behind.
        # What is ignored stays ignored: nohup ignores SIGHUP.
        stopping = [number for number in _STOPPING if signal.getsignal(number) != signal.SIG_IGN]
        handlers = {number: signal.signal(number, self._note_signal) for number in stopping}
        try:
            with Guard(PATIENCE) as self._guard, contextlib.ExitStack() as at_end:
                self._server = None
                if self.libraries and self._total > 1:
                    self._server = at_end.enter_context(ForkServer(self._environment(0), self.libraries))
                at_end.callback(self._end_all)
                while self._waiting or self._running:
                    self._start_ready()
                    if not self._running:
                        break
                    time.sleep(_LOOK)
                    if self._stop_requested:
                        raise KeyboardInterrupt
                    for running in list(self._running):
                        if running.process.poll() is not None:
                            self._guard.remove(running.process.pid)
                            self._advance(running)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            self.seconds = time.perf_counter() - self._begin

    def _end_all(self) -> None:
        """End the steps that still run, and the processes that they started."""
        for running in self._running:
            signal_group(running.process.pid, signal.SIGTERM)
        end = time.monotonic() + PATIENCE
        for running in self._running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.process.wait(max(0.0, end - time.monotonic()))
            signal_group(running.process.pid, signal.SIGKILL)
            running.process.wait()

    def _note_signal(self, *_: object) -> None:
        self._stop_requested = True

    def _start_ready(self) -> None:
        pending = {step.name for step in self._waiting} | {running.step.name for running in self._running}
        stopped = {*self.failed, *self.skipped}
        for step in list(self._waiting):
            if len(self._running) == self.jobs:
                return
            if any(name in pending for name in step.before):
                continue
            self._waiting.remove(step)
            without = [name for name in step.needs if name in stopped]
            useless = step.any_of and all(
                name in stopped or (name in self.states and self.states[name].kind == BLOCKED) for name in step.any_of
            )
            if without or useless:
                self.skipped.append(step.name)
                stopped.add(step.name)
                self._log(f"{step.name}: not run, it needs {', '.join(without or step.any_of[:1])}")
                continue
            self._start(step)

    def _start(self, step: Step) -> None:
        taken = {running.slot for running in self._running}
        slot = next(number for number in range(self.jobs) if number not in taken)
        self._started += 1
        log = None
        if self.jobs > 1:
            log = self.logs / f"{re.sub(r'[^A-Za-z0-9.+-]+', '_', step.name)}.log"
            write_bytes(log, b"")
            self._log(f"[{self._started}/{self._total}] {step.name}: started, {os.path.relpath(log)}")
        # Before it runs: what changes meanwhile is read again by the next plan.
        outputs = {one.name: one.outputs() for one in self.steps if one.name in step.before}
        marks = Marker().mark(step, outputs, self.record.marks.get(step.run_name, {}))
        process = self._launch(step, 0, slot, log)
        self._running.append(_RunningStep(step, slot, log, process, 0, time.perf_counter(), marks))

    def _launch(self, step: Step, number: int, slot: int, log: Path | None) -> subprocess.Popen[bytes] | ForkedScript:
        command = step.commands[number]
        shown = f"$ python {shlex.join(command)}"
        if log is None:
            print(f"\n[{self._started}/{self._total}, {self._elapsed()}] {shown}", flush=True)
            return self._open(command, slot, None)
        self._log(f"{step.name}: {shown}")
        with open(log, "ab") as stream:
            stream.write(f"{shown}\n".encode())
            stream.flush()
            return self._open(command, slot, stream)

    def _open(
        self, command: Sequence[str], slot: int, stream: IO[bytes] | None
    ) -> subprocess.Popen[bytes] | ForkedScript:
        environment = self._environment(slot)
        # The first step need not wait for the libraries: in the demo it renders, which needs none of them.
        if self._server is not None and (self._started > 1 or self._server.is_ready()):
            with contextlib.suppress(OSError):
                output, errors = (1, 2) if stream is None else (stream.fileno(), stream.fileno())
                return self._server.start(
                    command,
                    environment=environment,
                    cwd=REPO_ROOT,
                    streams=(0, output, errors),
                    register=self._guard.descriptor,
                )
        return subprocess.Popen(
            [sys.executable, *command],
            cwd=REPO_ROOT,
            env=environment,
            stdout=stream,
            stderr=None if stream is None else subprocess.STDOUT,
            start_new_session=True,  # a group of its own: the processes that it starts are ended with it
            preexec_fn=self._guard.add_this_process,
        )

    def _environment(self, slot: int) -> dict[str, str]:
        # More threads than cores make every step many times slower; a library's own default may be the host's cores.
        environment = {"OMP_NUM_THREADS": str(max(1, count_cores() // self.jobs)), **os.environ}
        if self._gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self._gpus[slot % len(self._gpus)]
        return environment

    def _advance(self, running: _RunningStep) -> None:
        """The step's next command, or its end."""
        step = running.step
        if running.process.returncode == 0 and running.command + 1 < len(step.commands):
            running.command += 1
            running.process = self._launch(step, running.command, running.slot, running.log)
            return
        self._running.remove(running)
        seconds = time.perf_counter() - running.start
        if running.process.returncode == 0:
            new = step.outputs().made - self.states[step.name].made
            self.record.add(step, new, seconds, time.time(), running.marks)
            self.ended.append(step.name)
            if running.log is not None:
                self._log(f"{step.name}: done in {seconds:.0f} s")
            return
        last = _last_line(running.log) if running.log is not None else "see above"
        self.failed[step.name] = f"{shlex.join(step.commands[running.command][:1])}: {last}"
        self._log(f"{step.name}: FAILED after {seconds:.0f} s: {last}")

    def _log(self, text: str) -> None:
        print(f"{self._elapsed():>6}  {text}", flush=True)

    def _elapsed(self) -> str:
        return f"{time.perf_counter() - self._begin:.0f} s"

    def _visible_gpus(self) -> list[str]:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        return visible.split(",") if visible else [str(number) for number in range(len(list_gpus()))]


def chain_length(name: str, steps: Sequence[Step]) -> int:
    """How many steps follow a step one after the other, itself included; `steps` are each after those they need."""
    lengths: dict[str, int] = {}
    for step in reversed(steps):
        following = [lengths[later.name] for later in steps if step.name in later.before and later.name in lengths]
        lengths[step.name] = 1 + max(following, default=0)
    return lengths[name]


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it wrote nothing")
