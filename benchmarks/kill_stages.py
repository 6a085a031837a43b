"""Kill stages with SIGKILL at random moments, resume them, and compare every file with an uninterrupted run.

Reads:  checkpoints/mini
Writes: a table: runs, how many were killed before their end, and how many ended with the same bytes. --output writes it
        to a file after every run, so that an interrupted benchmark keeps its rows. The stages' files go to a
        temporary folder (--folder keeps them). Exits with 1 if a file differs, is missing or is left over.

    python benchmarks/kill_stages.py --stages generate=50,evaluate=50,train=50,all --runs 10 --jobs 16 --output kills.md

With --jobs, several runs are made at the same time, each in a folder of its own. Files hold paths of these folders. The
number of a folder in such a path does not count as a difference.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from genval.runtime import cli
from genval.runtime.commands import Command
from genval.runtime.errors import GenValError
from genval.runtime.files import write_bytes
from genval.runtime.flags import flag
from genval.runtime.fork_server import LIBRARIES, ForkedScript, ForkServer, can_fork
from genval.runtime.paths import REPO_ROOT, resolve
from genval.runtime.progress import progress_bar
from genval.runtime.settings import comma_list, positive_int, seed_flag
from genval.runtime.tables import markdown_table

SEGMENTER = "mini-fast-scnn"
# How often the first file of a run is looked for, seconds.
_LOOK = 0.02
# How long to wait at most for the children of a killed run, seconds.
_END = 2


@dataclass(frozen=True, kw_only=True)
class KillSettings:
    """Settings of benchmarks/kill_stages.py."""

    SCRIPT: ClassVar[str] = "benchmarks/kill_stages"

    stages: tuple[str, ...] = flag(("all",), "stages to kill, as NAME or NAME=RUNS", type=comma_list)
    runs: int = flag(10, "killed runs per stage", type=positive_int)
    jobs: int = flag(1, "runs at a time", type=positive_int)
    output: str | None = flag(None, "Markdown file of the table")
    images: int = flag(8, "images per set", type=positive_int)
    folder: str | None = flag(None, "folder of the stages' files (default: a temporary one)")
    accelerator: str = flag("cpu", "auto, cpu or gpu")
    seed: int = seed_flag()
    preset: str | None = None


@dataclass(frozen=True)
class Killable:
    """A stage.

    Attributes:
        command: writes below `Workplace.output`.
        needs: stages whose files it reads.
        starts_from: the stage whose files its folder holds before it starts.
        compared: the folder below its output that is compared; "" for all of it.
    """

    command: Command
    needs: tuple[str, ...] = ()
    starts_from: str | None = None
    compared: tuple[str, ...] = ("",)


@dataclass
class Outcome:
    """What became of the runs of a stage so far."""

    runs: int = 0
    killed: int = 0
    same: int = 0
    differing: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Workplace:
    """The folders of the stages, and the stages.

    Attributes:
        root: of all folders.
        images: per set.
        accelerator: Lightning's.
        number: of the folder that runs write; runs at the same time have different ones.
        server: starts the stages; None starts a new interpreter for each.
    """

    root: Path
    images: int
    accelerator: str = "cpu"
    number: int = 0
    server: ForkServer | None = None

    def whole(self, stage: str) -> Path:
        """Return the folder of an uninterrupted run."""
        return self.root / "whole" / stage

    def output(self, stage: str) -> Path:
        """Return the folder that a run of a stage writes; some files hold its path."""
        return self.root / "run" / f"{self.number:03d}" / stage

    def contents(self, folder: Path) -> dict[str, bytes]:
        """Return the files below a folder with their content, in which the number of a run's folder is 000."""
        numbered = re.compile(re.escape(os.fsencode(self.root / "run")) + rb"/[0-9]{3}/")
        first = os.fsencode(self.root / "run" / "000") + b"/"
        return {name: numbered.sub(lambda _: first, data) for name, data in contents(folder).items()}

    def stages(self) -> dict[str, Killable]:
        """Return the resumable stages by name, each after those that it needs."""
        images, data, out = self.images, self.whole("render"), self.output
        device = {"accelerator": self.accelerator, "devices": 1}
        mini = {"preset": "mini"}
        street = {"data_dir": data, **mini}
        generated, inpainted = self.whole("generate"), self.whole("inpaint")
        refined = self.whole("refine")
        sets = {"segmenters": SEGMENTER, "datasets_dir": data, **mini, **device}
        models = {"base": "checkpoints/mini/stable-diffusion", "controlnet": "checkpoints/mini/controlnet"}
        steps = {"max_steps": images, "checkpoint_every": 1, "batch_size": 2, "accumulate": 1}
        latents = {"images_every": 0, "height": 64, "width": 128, **steps}

        def training(name: str) -> dict[str, Any]:
            run = {"logs_dir": out(name) / "logs", "run": "run", "resume": "auto"}
            return {"output": out(name) / "trained", **run, **mini, **device}

        rendered = {"num_train": images, "num_val": images, "domains": ("clear", "fog", "objects")}
        objects = {"objects": ("chair", "sofa"), "num_images": max(1, images // 2)}
        logits = {"save": ("predictions", "logits"), "logit_pixels": -1}
        local = {"segmenters": SEGMENTER, "calib_dataset": "Cityscapes", "epochs": images, "crop_size": 64}
        return {
            "render": Killable(Command("mini/render", {"output_dir": out("render"), **rendered})),
            "caption": Killable(
                Command(
                    "ControlNet/clip_int",
                    {"dataset": "cityscapes", "datasets_dir": data, "output_dir": out("caption"), **mini, **device},
                ),
                ("render",),
            ),
            "corrupt": Killable(
                Command(
                    "relis/corrupt",
                    {"domains": "night", "datasets_dir": data, "output_dir": out("corrupt"), **mini},
                ),
                ("render",),
            ),
            "generate": Killable(
                Command(
                    "ControlNet/style_transfer",
                    {"domain": "fog", "num_samples": images, "output_dir": out("generate"), **street, **device},
                ),
                ("render",),
            ),
            "check": Killable(
                Command(
                    "ControlNet/check_generated",
                    {"domain": "fog", "generated_dir": out("check"), **mini, **device},
                ),
                ("generate",),
                starts_from="generate",
            ),
            "inpaint": Killable(
                Command("ood_objects/sd_inpaint", {"output_dir": out("inpaint"), **objects, **street, **device}),
                ("render",),
            ),
            "refine": Killable(
                Command(
                    "ood_objects/refine_gen_images",
                    {"images_dir": inpainted, "output_dir": out("refine"), **mini, **device},
                ),
                ("inpaint",),
            ),
            "outline": Killable(
                Command(
                    "ood_objects/get_masks",
                    {
                        "images_dir": refined,
                        "positions_dir": inpainted,
                        "output_dir": out("outline"),
                        **mini,
                        **device,
                    },
                ),
                ("refine",),
            ),
            "evaluate": Killable(
                Command(
                    "relis/eval",
                    {
                        "trg_dataset": ("Cityscapes", "Cityscapes_fog"),
                        "generated_dir": generated,
                        "eval_dir": out("evaluate"),
                        **logits,
                        **sets,
                    },
                ),
                ("generate",),
            ),
            "features": Killable(
                Command(
                    "relis/extract_features",
                    {"trg_dataset": "Cityscapes", "eval_dir": out("features"), **sets},
                ),
                ("render",),
            ),
            "detect": Killable(
                Command(
                    "ood_detection/main_gen_ood",
                    {"trg_dataset": "RoadAnomaly21", "output_dir": out("detect"), **sets},
                ),
                ("render",),
            ),
            "temperatures": Killable(
                Command(
                    "relis/train_lts_network",
                    {
                        "eval_dir": self.whole("evaluate"),
                        "calibration_dir": out("temperatures"),
                        **local,
                        **mini,
                        **device,
                    },
                ),
                ("evaluate",),
            ),
            "train": Killable(
                Command(
                    "ControlNet/train",
                    {
                        "data_dir": data,
                        "precompute": out("train") / "encoded",
                        **models,
                        **latents,
                        **training("train"),
                    },
                ),
                ("render",),
                compared=("trained", "encoded"),
            ),
            "lora": Killable(
                Command(
                    "ControlNet/train_lora",
                    {
                        "base": models["base"],
                        "images": data / "acdc/rgb_anon/fog/train",
                        "domain": "fog",
                        **latents,
                        **training("lora"),
                    },
                ),
                ("render",),
                compared=("trained",),
            ),
            "finetune": Killable(
                Command(
                    "relis/finetune",
                    {
                        "segmenter": SEGMENTER,
                        "outliers": "noise",
                        "datasets_dir": data,
                        "crop_size": "64x128",
                        "val_every": 0,
                        **steps,
                        **training("finetune"),
                    },
                ),
                ("render",),
                compared=("trained",),
            ),
        }

    def prepare(self, name: str) -> None:
        """Empty a stage's folder, or fill it with what it starts from."""
        stage, output = self.stages()[name], self.output(name)
        shutil.rmtree(output, ignore_errors=True)
        if stage.starts_from:
            shutil.copytree(self.whole(stage.starts_from), output)

    def run_whole(self, name: str) -> tuple[float, float]:
        """Run a stage without interruption; the stages that it needs are done.

        Returns:
            When it wrote its first file and when it ended, in seconds from its start.

        Raises:
            GenValError: it failed.
        """
        shutil.rmtree(self.whole(name), ignore_errors=True)
        self.prepare(name)
        known = states(self.output(name))
        process, start = self.start(name), time.monotonic()
        first = self.wait_for_file(process, name, known)
        is_seen = process.poll() is None
        self.check(process, name)
        end = time.monotonic() - start
        self.whole(name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(self.output(name), self.whole(name))
        return first if is_seen else end / 2, end

    def wait_for_file(
        self,
        process: subprocess.Popen[bytes] | ForkedScript,
        name: str,
        known: set[tuple[str, int]],
        seconds: float = float("inf"),
    ) -> float:
        """Wait until a run has written a file whose state is not known, has ended, or has run so long.

        Returns:
            The seconds that passed.
        """
        start = time.monotonic()
        while process.poll() is None and time.monotonic() - start < seconds and states(self.output(name)) <= known:
            time.sleep(_LOOK)
        return time.monotonic() - start

    def kill(self, name: str, times: tuple[float, float], moment: float) -> tuple[bool, list[str]]:
        """Kill a stage in a fresh folder and once, resume it, and compare its files.

        Args:
            name: of the stage.
            times: from `run_whole`.
            moment: when to kill it: 0 is its first file, 1 its end, -1 its start.

        Returns:
            Whether it was killed before its end, and the files that differ from those of the uninterrupted run.
        """
        first, end = times
        self.prepare(name)
        known = states(self.output(name))
        process = self.start(name)
        start = time.monotonic()
        self.wait_for_file(process, name, known, end if moment > 0 else (1 + moment) * first)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, moment) * (end - first))
        seconds, killed = time.monotonic() - start, process.poll() is None
        _end_group(process)
        which = f"{name}, killed after {seconds:.2f} s"
        try:
            self.check(self.start(name), name)
        except GenValError as error:
            return killed, [f"{which}: {error}"]
        differing: list[str] = []
        for part in self.stages()[name].compared:
            files, found = self.contents(self.whole(name) / part), self.contents(self.output(name) / part)
            names = sorted(key for key in files.keys() | found.keys() if files.get(key) != found.get(key))
            differing += [f"{which}: {part}/{key}" for key in names[:3]]
        return killed, differing

    def start(self, name: str) -> subprocess.Popen[bytes] | ForkedScript:
        """Start a stage, in a process group of its own."""
        command = self.stages()[name].command.argv
        with open(self._log(name), "w") as log, open(os.devnull) as nothing:
            if self.server is not None:
                streams = (nothing.fileno(), log.fileno(), log.fileno())
                return self.server.start(command, environment=environment(), cwd=REPO_ROOT, streams=streams)
            return subprocess.Popen(
                [sys.executable, *command],
                cwd=REPO_ROOT,
                env=environment(),
                stdin=nothing,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def check(self, process: subprocess.Popen[bytes] | ForkedScript, name: str) -> None:
        """Wait for a stage to end.

        Raises:
            GenValError: it failed.
        """
        if process.wait() != 0:
            log = self._log(name).read_text(errors="replace").strip().splitlines()
            raise GenValError(f"{self.stages()[name].command} failed: {log[-1] if log else 'it wrote nothing'}")

    def _log(self, name: str) -> Path:
        return self.root / f"{name}-{self.number:03d}.log"


def environment() -> dict[str, str]:
    """Return the variables of the stages."""
    return {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": str(REPO_ROOT)}


def kill_runs(
    work: Workplace, runs: Mapping[str, int], jobs: int, seed: int, report: Callable[[Mapping[str, Outcome]], None]
) -> dict[str, Outcome]:
    """Kill stages, `jobs` runs at a time; uninterrupted runs, which others wait for, come first.

    Args:
        work: the folders.
        runs: number of killed runs by stage.
        jobs: number of runs at a time.
        seed: of the moments.
        report: is called with the outcomes so far after each killed run.

    Returns:
        The outcomes by stage.

    Raises:
        GenValError: an uninterrupted run failed.
    """
    stages = work.stages()
    wholes = _with_needed(runs, stages)
    times: dict[str, tuple[float, float]] = {}
    kills: list[tuple[str, float]] = []
    outcomes = {name: Outcome() for name in runs}
    free = list(range(jobs))
    running: dict[concurrent.futures.Future[Any], tuple[str, int]] = {}
    with (
        concurrent.futures.ThreadPoolExecutor(jobs) as pool,
        progress_bar(sum(runs.values()), "killing", unit="run") as bar,
    ):
        while wholes or kills or running:
            while free and (ready := [name for name in wholes if times.keys() >= set(stages[name].needs)] or kills):
                here = replace(work, number=free.pop())
                if ready is kills:
                    name, moment = kills.pop(0)
                    future: concurrent.futures.Future[Any] = pool.submit(here.kill, name, times[name], moment)
                else:
                    name = ready[0]
                    wholes.remove(name)
                    future = pool.submit(here.run_whole, name)
                running[future] = name, here.number
            for future in concurrent.futures.wait(running, return_when="FIRST_COMPLETED").done:
                name, number = running.pop(future)
                free.append(number)
                if name not in times:
                    times[name] = future.result()
                    moments = random.Random(f"{seed} {name}")
                    kills += [(name, moments.uniform(-0.1, 1)) for _ in range(runs.get(name, 0))]
                    continue
                killed, differing = future.result()
                one = outcomes[name]
                one.runs, one.killed, one.same = one.runs + 1, one.killed + killed, one.same + (not differing)
                one.differing += differing
                report(outcomes)
                bar.update()
    return outcomes


def _end_group(process: subprocess.Popen[bytes] | ForkedScript) -> None:
    """Kill a process and its children, which may still be writing to the disk, and wait until all have ended."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        end = time.monotonic() + _END
        while time.monotonic() < end:  # what ended stays in the group until its new parent notices
            os.killpg(process.pid, 0)
            time.sleep(_LOOK)
    process.wait()


def _with_needed(names: Iterable[str], stages: Mapping[str, Killable]) -> list[str]:
    """Return stages and all that they need, in the order of `stages`."""
    wanted = set(names)
    for name in reversed(stages):
        wanted |= set(stages[name].needs) if name in wanted else set()
    return [name for name in stages if name in wanted]


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files below a folder, hidden ones too, with their content."""
    paths = [Path(root, name) for root, _, names in os.walk(folder) for name in names]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def states(folder: Path) -> set[tuple[str, int]]:
    """Return the files below a folder, hidden ones too, each with the time of its last change."""
    found: set[tuple[str, int]] = set()
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # renamed meanwhile
                found.add((f"{root}/{name}", os.stat(f"{root}/{name}").st_mtime_ns))
    return found


def choose(stages: Sequence[str], known: Sequence[str], runs: int) -> dict[str, int]:
    """Return how often each stage that `--stages` names is killed.

    Raises:
        GenValError: there is no such stage, or its number is none.
    """
    chosen: dict[str, int] = {}
    for text in stages:
        name, equals, number = text.partition("=")
        if name not in (*known, "all"):
            raise GenValError(f"--stages: {name} is none of {', '.join(known)}.")
        if equals and not (number.isdecimal() and int(number)):
            raise GenValError(f"--stages: expected NAME=RUNS with a whole number above 0, found {text}.")
        chosen[name] = int(number) if equals else runs
    rest = chosen.pop("all", 0)
    return {name: chosen.get(name, rest) for name in known if name in chosen or rest}


def table(outcomes: Mapping[str, Outcome]) -> str:
    """Return the outcomes of stages with finished runs as a Markdown table, and the files that differ."""
    rows = [[name, one.runs, one.killed, one.same] for name, one in outcomes.items() if one.runs]
    lines = [markdown_table(["stage", "runs", "killed before the end", "same bytes"], rows)]
    differing = [text for one in outcomes.values() for text in one.differing]
    return "\n".join([*lines, *([""] if differing else []), *(f"- {text}" for text in differing)]) + "\n"


def main(settings: KillSettings) -> None:
    def report(outcomes: Mapping[str, Outcome]) -> None:
        if settings.output:
            write_bytes(resolve(settings.output), table(outcomes).encode())

    with contextlib.ExitStack() as stack:
        folder = (
            resolve(settings.folder) if settings.folder else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        )
        work = Workplace(folder, settings.images, settings.accelerator)
        if can_fork():
            work = replace(work, server=stack.enter_context(ForkServer(environment(), LIBRARIES)))
        folder.mkdir(parents=True, exist_ok=True)
        runs = choose(settings.stages, list(work.stages()), settings.runs)
        outcomes = kill_runs(work, runs, settings.jobs, settings.seed, report)
    print(table(outcomes), end="")
    if any(one.differing for one in outcomes.values()):
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main, KillSettings, __doc__)
