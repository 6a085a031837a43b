"""Training runs: their folder, the checkpoint to resume from, the Lightning Trainer, and the run itself."""

from __future__ import annotations

import dataclasses
import re
import sys
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from pytorch_lightning import Callback, LightningDataModule, Trainer
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.rank_zero import rank_zero_module

from genval.artifacts.settings import write_settings
from genval.runtime.devices import is_wanted, let_others_go, wait_for_first
from genval.runtime.errors import GenValError, interrupted_code
from genval.runtime.files import check_writable, read_json
from genval.runtime.flags import flatten
from genval.runtime.locks import lock_folders
from genval.runtime.paths import inside
from genval.training.callbacks import StepCheckpoints, StepProgress
from genval.training.module import OptimisedModule
from genval.training.settings import OptimisationConfig

# Folder of the checkpoints in a run, as published; a resumed run writes there too.
_CHECKPOINTS = Path("lightning_logs/version_0/checkpoints")


class RunSettings(Protocol):
    """What a run needs of the settings of a script that trains."""

    @property
    def config(self) -> OptimisationConfig: ...
    @property
    def deciding(self) -> Sequence[str]:
        """Names of the flags that decide about the weights."""

    @property
    def dry_run(self) -> bool: ...
    @property
    def checkpoint_every(self) -> int: ...
    @property
    def max_minutes(self) -> float | None: ...
    @property
    def log_every(self) -> int: ...
    @property
    def accelerator(self) -> str: ...
    @property
    def devices(self) -> str: ...
    @property
    def num_nodes(self) -> int: ...


@dataclasses.dataclass(frozen=True)
class TrainingRun:
    """A run that is ready to start.

    Attributes:
        settings: of the script.
        start: what is trained, in words.
        folder: folder of the run.
        output: folder of the trained network.
        checkpoint: the checkpoint to resume from, or None.
        precision: of the training, one of Lightning's.
        data_size: the number of pairs or images, in words.
        module, data, trainer: Lightning's parts of the run.
        save: writes the trained network and returns the written folders and files.
        why_stopped: says why the training ended before its last step, if the run itself ended it.
    """

    settings: RunSettings
    start: str
    folder: Path
    output: Path
    checkpoint: Path | None
    precision: str
    data_size: str
    module: OptimisedModule
    data: LightningDataModule
    trainer: Trainer
    save: Callable[[], list[Path]]
    why_stopped: Callable[[], str | None] = lambda: None


def run_training(run: TrainingRun) -> str | None:
    """Train and write the network; with `--dry_run` do nothing.

    Processes of `start_others` wait here until the first one has checked its inputs.

    Returns:
        What was done, on the first process; None on the others.

    Raises:
        GenValError: another run writes the same folder, the output cannot be written, or the weights are not finite.
    """
    wait_for_first()
    settings, trainer = run.settings, run.trainer
    if settings.dry_run:
        config = settings.config
        return (
            f"Would train {trainer.max_steps} steps of {config.batch_size} x {config.accumulate} x "
            f"{trainer.world_size} from {run.checkpoint or run.start} on {run.data_size}, "
            f"{run.precision}, into {run.folder}, then write {run.output}"
        )
    if not trainer.is_global_zero:
        _fit(run)
        return None
    with lock_folders([run.folder], later=[run.output]):
        check_writable(run.output)
        if run.checkpoint and (changed := changed_flags(run.folder, settings)):
            print(f"Resuming {run.folder} with other flags than before: {', '.join(changed)}")
        write_settings(run.folder, settings)
        others, launcher = let_others_go(), trainer.strategy.launcher
        if others and launcher is not None:
            # After KeyboardInterrupt, Lightning ends the processes of its launcher.
            launcher.procs = others  # type: ignore[attr-defined]
        _fit(run)
        written = run.save()
    names = " and ".join([str(written[0]), *(file.name for file in written[1:])])
    done = f"Trained {trainer.global_step} steps on {run.data_size}: wrote {names}, logs in {run.folder}"
    if reason := run.why_stopped():
        done += f". {reason}"
    elif trainer.global_step < trainer.max_steps:
        done += f". Stopped after --max_minutes before step {trainer.max_steps}: --resume last continues"
    return done


def _fit(run: TrainingRun) -> None:
    trainer = run.trainer
    try:
        # weights_only: a checkpoint holds only tensors and plain numbers, so pickled objects are refused.
        trainer.fit(run.module, run.data, ckpt_path=run.checkpoint, weights_only=True)
    except SystemExit as error:
        # After KeyboardInterrupt, Lightning ends the process with exit code 1 and does not say how to go on.
        interrupt = error.__context__
        if not isinstance(interrupt, KeyboardInterrupt):
            raise
        if trainer.is_global_zero:
            print(f"interrupted: add --resume auto --run {run.folder.name} to resume.", file=sys.stderr)
        sys.exit(interrupted_code(interrupt))


def choose_run(logs_dir: Path, run: str | None, resume: str | None) -> tuple[Path, Path | None]:
    """Return the folder of a run and the checkpoint to resume from, if any.

    Args:
        logs_dir: folder of all runs.
        run: the run's name. By default a new run takes the next free number, and a resumed one the last number.
        resume: path of a checkpoint, "last", "auto" (the last checkpoint if there is one, else a new run), or None. A
            damaged last checkpoint is named on standard error, and the one before is used.

    Raises:
        GenValError: there is no checkpoint to resume from, a new run would write into the folder of another, or the
            run's folder is outside `logs_dir`.
    """
    if run is not None:
        inside(logs_dir, run, "--run")
    if resume not in (None, "last", "auto"):
        path = Path(str(resume)).expanduser().resolve()
        if not path.is_file():
            raise GenValError(f"--resume: {path} does not exist. Give a checkpoint, 'last' or 'auto'.")
        if reason := _damage(path):
            raise GenValError(f"--resume: {path} is not a checkpoint of a training run ({reason}). Give a step=*.ckpt.")
        if run is None and path.parent.parts[-len(_CHECKPOINTS.parts) :] != _CHECKPOINTS.parts:
            raise GenValError(f"--resume: {path} does not lie in a run's {_CHECKPOINTS}. Give --run NAME with it.")
        return (logs_dir / run if run else path.parents[len(_CHECKPOINTS.parts)]), path
    numbers = sorted(int(entry.name) for entry in logs_dir.glob("*") if entry.name.isdecimal())
    if run is None and resume and numbers:
        run = str(numbers[-1])
    folder = logs_dir / (run or str(numbers[-1] + 1 if numbers else 0))
    if resume is None:
        if latest_checkpoint(folder) is not None:
            raise GenValError(f"{folder} has checkpoints already. Add --resume last, or give another --run.")
        return folder, None
    checkpoint = _latest_readable(folder)
    if resume == "last" and checkpoint is None:
        raise GenValError(f"--resume last: no checkpoint in {folder / _CHECKPOINTS}. Start without --resume.")
    return folder, checkpoint


def changed_flags(folder: Path, settings: RunSettings) -> list[str]:
    """Name the flags that decide about the weights and differ from those of a run so far, e.g. "--lr 0.1 (was 0.01)".

    Args:
        folder: the run's, with its `settings.json`; without one nothing is known to differ.
        settings: of the script.
    """
    path = folder / "settings.json"
    content = read_json(path) if path.exists() else {}
    before = content.get("settings") if isinstance(content, dict) else None
    if not isinstance(before, dict):
        return []
    now = {key: list(value) if isinstance(value, tuple) else value for key, value in flatten(settings).items()}
    return [
        f"--{name} {now[name]} (was {before[name]})"
        for name in settings.deciding
        if name in now and name in before and before[name] != now[name]
    ]


def training_precision(precision: str | None, accelerator: str) -> str:
    """Return `precision`, by default bf16-mixed on GPUs that support it and 32-true elsewhere.

    Raises:
        GenValError: a precision that keeps the trained weights themselves in 16 bits.
    """
    if precision in ("16-true", "bf16-true"):
        raise GenValError(
            f"--precision {precision} keeps the trained weights in 16 bits, in which a step of the learning rate is "
            f"lost to rounding. Use {precision.partition('-')[0]}-mixed, or 32-true."
        )
    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return precision or ("bf16-mixed" if on_gpu and torch.cuda.is_bf16_supported() else "32-true")


def check_output(
    output: Path, resume: str | None, overwrite: bool, kind: str = "ControlNet", file: str = "config.json"
) -> None:
    """Check, before the training starts, that its output does not replace another one by mistake.

    Args:
        output: the folder.
        resume, overwrite: of the settings.
        kind: of what it may hold.
        file: whose presence in the folder means that it holds one.

    Raises:
        GenValError: the folder holds one, and neither `resume` nor `overwrite` is set.
    """
    if (output / file).exists() and not (resume or overwrite):
        raise GenValError(
            f"--output: {output} holds a {kind} already. Give another folder, --overwrite, or --resume last."
        )


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the highest step in a run's folder (`step={n}.ckpt`), or None."""
    return next(iter(_checkpoints(folder)), None)


def _checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a run's folder, the newest first."""
    found = [(re.fullmatch(r"step=(\d+)\.ckpt", path.name), path) for path in (folder / _CHECKPOINTS).glob("*.ckpt")]
    return [path for _, path in sorted(((int(match[1]), path) for match, path in found if match), reverse=True)]


def _latest_readable(folder: Path) -> Path | None:
    for path in _checkpoints(folder):
        reason = _damage(path)
        if reason is None:
            return path
        print(f"warning: {path} is damaged ({reason}): the checkpoint before it is used, if any.", file=sys.stderr)
    return None


def _damage(path: Path) -> str | None:
    """Why a file is not a whole checkpoint, or None."""
    try:
        with zipfile.ZipFile(path) as archive:  # reads the whole file, and compares checksums
            if entry := archive.testzip():
                return f"the checksum of {entry} differs"
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return None if "state_dict" in content else "it has no state_dict"
    except Exception as error:  # torch and zipfile raise RuntimeError, UnpicklingError, EOFError and others
        return str(error).partition("\n")[0] or type(error).__name__


def trainer_of(
    settings: RunSettings, folder: Path, precision: str, images: int, callbacks: Sequence[Callback]
) -> Trainer:
    """Return the Trainer of a script's settings, for a number of training images."""
    return make_trainer(
        folder,
        settings.config,
        images,
        callbacks,
        checkpoint_every=settings.checkpoint_every,
        max_minutes=settings.max_minutes,
        log_every=settings.log_every,
        accelerator=settings.accelerator,
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        precision=precision,
    )


def make_trainer(
    folder: Path,
    config: OptimisationConfig,
    pair_count: int,
    callbacks: Sequence[Callback] = (),
    *,
    checkpoint_every: int = 500,
    max_minutes: float | None = None,
    log_every: int = 10,
    accelerator: str = "auto",
    devices: str | int = "auto",
    num_nodes: int = 1,
    precision: str = "32-true",
) -> Trainer:
    """Return a Trainer that writes logs and checkpoints into `folder` and stops after the config's steps.

    Args:
        folder: folder of the run.
        config: steps or epochs, and accumulation.
        pair_count: number of pairs per epoch.
        callbacks: in addition to the progress bar and the checkpoints.
        checkpoint_every, log_every: in optimiser steps.
        max_minutes: of training, after which it stops earlier.
        accelerator, devices, num_nodes, precision: as Lightning names them.

    Raises:
        GenValError: this machine does not have these devices.
    """
    # CSVLogger takes the next free version, so a resumed run does not overwrite earlier losses.
    losses = CSVLogger(folder, name="lightning_logs")
    checkpoints = StepCheckpoints(folder / _CHECKPOINTS, checkpoint_every, max_minutes)
    rank_zero_module.log.addFilter(is_wanted)
    # Lightning's own code, which also wraps the module in another CUDA stream than it trains in; and weights of one
    # input channel, whose two layouts are the same bytes.
    for message in (
        ".*isinstance.treespec, LeafSpec",
        "The AccumulateGrad node's stream does not match",
        "Grad strides do not match bucket view strides",
    ):
        warnings.filterwarnings("ignore", message=message)
    try:
        trainer = Trainer(
            accelerator=accelerator,
            devices=devices,
            num_nodes=num_nodes,
            precision=precision,  # type: ignore[arg-type]
            max_epochs=-1,
            accumulate_grad_batches=config.accumulate,
            log_every_n_steps=log_every,
            logger=[losses, TensorBoardLogger(folder, name="lightning_logs", version=losses.version)],
            callbacks=[StepProgress(), checkpoints, *callbacks],
            default_root_dir=folder,
            benchmark=True,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
    except (MisconfigurationException, RuntimeError, ValueError, TypeError) as error:
        raise GenValError(
            f"--accelerator {accelerator} --devices {devices} --precision {precision} are not available: "
            f"{' '.join(str(error).split())} Use --accelerator cpu --devices 1, or auto."
        ) from error
    # The number of steps per epoch depends on the number of devices, which only the Trainer knows.
    trainer.fit_loop.epoch_loop.max_steps = config.total_steps(pair_count, trainer.world_size)
    return trainer
