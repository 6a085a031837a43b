"""Kill stages with SIGKILL at random moments, resume them, and compare every file with an uninterrupted run.

Reads:  checkpoints/mini
Writes: a table: runs, how many were killed before their end, and how many ended with the same bytes; the stages' files
        go to a temporary folder (--folder keeps them). Exits with 1 if a file differs, is missing or is left over.

    python benchmarks/kill_stages.py --stages generate,evaluate,train --runs 50
    python benchmarks/kill_stages.py --runs 10
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from genval.runtime import cli
from genval.runtime.commands import Command
from genval.runtime.errors import GenValError
from genval.runtime.flags import flag
from genval.runtime.paths import REPO_ROOT, resolve
from genval.runtime.progress import progress_bar
from genval.runtime.settings import comma_list, positive_int, seed_flag
from genval.runtime.tables import markdown_table

SEGMENTER = "mini-fast-scnn"
# How often the first file of a run is looked for, seconds.
_LOOK = 0.01


@dataclass(frozen=True, kw_only=True)
class KillSettings:
    """Settings of benchmarks/kill_stages.py."""

    SCRIPT: ClassVar[str] = "benchmarks/kill_stages"

    stages: tuple[str, ...] = flag(("all",), "stages to kill", type=comma_list)
    runs: int = flag(10, "killed runs per stage", type=positive_int)
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


@dataclass(frozen=True)
class Outcome:
    """What became of the runs of a stage."""

    runs: int
    killed: int
    differing: tuple[str, ...]


@dataclass(frozen=True)
class Workplace:
    """The folders of the stages, and the stages."""

    root: Path
    images: int
    accelerator: str = "cpu"

    def whole(self, stage: str) -> Path:
        """Return the folder of an uninterrupted run."""
        return self.root / "whole" / stage

    def output(self, stage: str) -> Path:
        """Return the folder that every run of a stage writes; some files hold its path."""
        return self.root / "run" / stage

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
        steps = {"max_steps": images, "checkpoint_every": 1, "images_every": 0, "batch_size": 2, "accumulate": 1}
        run = {"logs_dir": out("train") / "logs", "run": "run", "resume": "auto", "height": 64, "width": 128}
        trained = {"output": out("train") / "trained", "precompute": out("train") / "encoded", **run}
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
                Command("ControlNet/train", {**models, **steps, **trained, **street, **device}),
                ("render",),
                compared=("trained", "encoded"),
            ),
        }

    def prepare(self, name: str) -> None:
        """Empty a stage's folder, or fill it with what it starts from."""
        stage, output = self.stages()[name], self.output(name)
        shutil.rmtree(output, ignore_errors=True)
        if stage.starts_from:
            shutil.copytree(self.whole(stage.starts_from), output)

    def run_whole(self, name: str) -> tuple[float, float]:
        """Run a stage, and those that it needs, without interruption, unless that is done.

        Returns:
            When it wrote its first file and when it ended, in seconds from its start; zeros if it was done before.
        """
        if self.whole(name).exists():
            return 0.0, 0.0
        stage = self.stages()[name]
        for needed in stage.needs:
            self.run_whole(needed)
        self.prepare(name)
        known = set(contents(self.output(name)))
        process, start, first = self.start(name), time.monotonic(), 0.0
        while process.poll() is None:
            if not first and set(contents(self.output(name), read=False)) - known:
                first = time.monotonic() - start
            time.sleep(_LOOK)
        self.check(process, name)
        end = time.monotonic() - start
        self.whole(name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(self.output(name), self.whole(name))
        return first or end / 2, end

    def start(self, name: str) -> subprocess.Popen[str]:
        """Start a stage, in a process group of its own."""
        command = [sys.executable, *self.stages()[name].command.argv]
        environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": str(REPO_ROOT)}
        log = open(self.root / f"{name}.log", "w")  # noqa: SIM115
        with log:
            return subprocess.Popen(
                command, cwd=REPO_ROOT, env=environment, stdout=log, stderr=log, text=True, start_new_session=True
            )

    def check(self, process: subprocess.Popen[str], name: str) -> None:
        """Wait for a stage to end.

        Raises:
            GenValError: it failed.
        """
        if process.wait() != 0:
            log = (self.root / f"{name}.log").read_text(errors="replace").strip().splitlines()
            raise GenValError(f"{self.stages()[name].command} failed: {log[-1] if log else 'it wrote nothing'}")


def kill_runs(work: Workplace, name: str, runs: int, moments: random.Random) -> Outcome:
    """Kill a stage `runs` times, each in a fresh folder and once, resume it, and compare its files."""
    first, end = work.run_whole(name)
    if not end:  # another stage needed it: its times are measured now
        shutil.rmtree(work.whole(name))
        first, end = work.run_whole(name)
    expected = {part: contents(work.whole(name) / part) for part in work.stages()[name].compared}
    killed, differing = 0, []
    with progress_bar(runs, f"killing {name}", unit="run") as bar:
        for _ in range(runs):
            work.prepare(name)
            process = work.start(name)
            moment = moments.uniform(0.9 * first, end)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(moment)
            if process.poll() is None:
                killed += 1
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            work.check(work.start(name), name)
            for part, files in expected.items():
                found = contents(work.output(name) / part)
                names = sorted(key for key in files.keys() | found.keys() if files.get(key) != found.get(key))
                differing += [f"{name}, killed after {moment:.2f} s: {part}/{key}" for key in names[:3]]
            bar.update()
    return Outcome(runs, killed, tuple(differing))


def contents(folder: Path, read: bool = True) -> dict[str, bytes]:
    """Return the files below a folder, hidden ones too, with their content."""
    found: dict[str, bytes] = {}
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root) / name
            with contextlib.suppress(FileNotFoundError):  # renamed meanwhile
                found[path.relative_to(folder).as_posix()] = path.read_bytes() if read else b""
    return found


def choose(stages: Sequence[str], known: Sequence[str]) -> list[str]:
    """Return the stages that `--stages` names.

    Raises:
        GenValError: there is no such stage.
    """
    unknown = [stage for stage in stages if stage not in (*known, "all")]
    if unknown:
        raise GenValError(f"--stages: {', '.join(unknown)} is none of {', '.join(known)}.")
    return [stage for stage in known if stage in stages or "all" in stages]


def main(settings: KillSettings) -> None:
    with contextlib.ExitStack() as stack:
        folder = (
            resolve(settings.folder) if settings.folder else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        )
        work = Workplace(folder, settings.images, settings.accelerator)
        folder.mkdir(parents=True, exist_ok=True)
        outcomes = {
            name: kill_runs(work, name, settings.runs, random.Random(f"{settings.seed} {name}"))
            for name in choose(settings.stages, list(work.stages()))
        }
    rows = [
        [name, one.runs, one.killed, one.runs - len({text.partition(":")[0] for text in one.differing})]
        for name, one in outcomes.items()
    ]
    print(markdown_table(["stage", "runs", "killed before the end", "same bytes"], rows))
    differing = [text for one in outcomes.values() for text in one.differing]
    if differing:
        print("\n".join(differing))
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main, KillSettings, __doc__)
