"""Speed and memory of fine-tuning large segmenters with random weights, and how exactly a resumed run continues.

A run is made twice, and once from the checkpoint in its middle. On a CPU all losses are equal. On a GPU atomic
additions and the choice of kernels make two identical runs differ; a resumed run should not differ by more.

Reads:  nothing
Writes: --output_dir: streets, checkpoints and runs; prints each row as JSON when it is measured, then a table in
        Markdown

    python benchmarks/finetuning_speed.py --segmenters SegFormer-B5,DLV3+ResNet101 --accelerator gpu
"""

from __future__ import annotations

import csv
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from genval.runtime import cli
from genval.runtime.flags import flag
from genval.runtime.paths import resolve
from genval.runtime.settings import comma_list, height_width, positive_int

WARM_UP = 5
"""Steps that are not timed."""


@dataclass(frozen=True, kw_only=True)
class FinetuningSpeedSettings:
    """Settings of benchmarks/finetuning_speed.py."""

    SCRIPT: ClassVar[str] = "benchmarks/finetuning_speed"

    segmenters: tuple[str, ...] = flag(
        ("SegFormer-B5", "DLV3+ResNet101"), "names of the model zoo or of the mini world", type=comma_list
    )
    image_size: tuple[int, int] = flag((1024, 2048), "HxW of the streets", type=height_width)
    crop_size: tuple[int, int] = flag((512, 1024), "HxW of the training crops", type=height_width)
    batch_size: int = flag(8, "images per step", type=positive_int)
    steps: int = flag(40, "optimiser steps", type=positive_int)
    num_workers: int = flag(16, "threads that read images", type=positive_int)
    precision: str | None = flag(None, "dtype of arithmetic (default: as relis/finetune.py)")
    accelerator: str = flag("auto", "auto, cpu or gpu")
    output_dir: str = flag("results/finetuning_speed", "folder of everything that is written")
    preset: str | None = None


def main(settings: FinetuningSpeedSettings) -> None:
    from genval.runtime.tables import markdown_table

    folder = resolve(settings.output_dir)
    shutil.rmtree(folder / "logs", ignore_errors=True)
    write_streets(folder / "data", settings.image_size)
    header = ["segmenter", "million weights", "images/s", "peak GB", "resumed steps"]
    header += ["loss: two runs differ by", "resumed differs by"]
    rows = []
    for name in settings.segmenters:
        segmenter = random_weights(name, folder)
        whole = train(settings, segmenter, folder, f"{name}-whole")
        again = train(settings, segmenter, folder, f"{name}-again")
        middle = settings.steps // 2
        checkpoints = Path("lightning_logs/version_0/checkpoints")
        target = folder / "logs" / f"{name}-resumed" / checkpoints / f"step={middle}.ckpt"
        target.parent.mkdir(parents=True)
        shutil.copy(folder / "logs" / f"{name}-whole" / checkpoints / target.name, target)
        resumed = train(settings, segmenter, folder, f"{name}-resumed", resume=str(target))
        twice = max(abs(a - b) for a, b in zip(whole["losses"], again["losses"], strict=True))
        later = [step for step in resumed["losses_by_step"] if step >= middle]
        differences = [abs(resumed["losses_by_step"][step] - whole["losses_by_step"][step]) for step in later]
        row = [name, whole["parameters"], whole["images_per_second"], whole["gigabytes"], len(differences)]
        rows.append([*row, f"{twice:.3g}", f"{max(differences):.3g}"])
        print(json.dumps(dict(zip(header, rows[-1], strict=True))), flush=True)
    print(markdown_table(header, rows, digits=2))


def write_streets(folder: Path, size: tuple[int, int], number: int = 16) -> None:
    """Write a Cityscapes of random streets, all in the training set."""
    import cv2
    import numpy as np

    from genval.runtime.files import write_png

    height, width = size
    for index in range(number):
        rng = np.random.default_rng(index)
        label_ids = rng.integers(7, 34, (height // 64, width // 64)).astype(np.uint8)
        label_ids[height // 128 :] = 7
        label_ids = cv2.resize(label_ids, (width, height), interpolation=cv2.INTER_NEAREST)
        image = cv2.resize(rng.integers(0, 256, (height // 8, width // 8, 3)).astype(np.uint8), (width, height))
        stem = f"aachen_{index:06d}_000019"
        write_png(folder / f"cityscapes/leftImg8bit/train/aachen/{stem}_leftImg8bit.png", image)
        write_png(folder / f"cityscapes/gtFine/train/aachen/{stem}_gtFine_labelIds.png", label_ids)


def random_weights(name: str, folder: Path) -> str:
    """Write a checkpoint of random weights for a name of the model zoo, and return the specification."""
    import torch

    import path_dicts
    from genval.runtime.files import replace_file
    from genval.segmenters.openmmlab import build_network

    if name in path_dicts.MINI_SEGMENTERS:
        return name
    entry = path_dicts.ZOO[name]
    torch.manual_seed(0)
    network: Any = build_network(entry["config"], entry.get("overrides"))
    network.init_weights()
    with replace_file(folder / f"{name}.pth") as temporary:
        torch.save({"state_dict": network.state_dict()}, temporary)
    return f"mmseg:{entry['config']},{folder / f'{name}.pth'}"


def train(
    settings: FinetuningSpeedSettings, segmenter: str, folder: Path, run: str, resume: str | None = None
) -> dict[str, Any]:
    """Fine-tune with noise as outliers; return speed, memory and the loss of each step."""
    import torch

    from genval.finetuning.run import prepare_finetuning
    from genval.finetuning.settings import FinetuneSettings
    from genval.runtime.flags import make_settings
    from genval.training.runs import run_training

    made = make_settings(
        FinetuneSettings, segmenter=segmenter, output=str(folder / "output" / run), outliers="noise", val_every=0,
        datasets_dir=str(folder / "data"), logs_dir=str(folder / "logs"), run=run, resume=resume, overwrite=True,
        crop_size=settings.crop_size, batch_size=settings.batch_size, max_steps=settings.steps, log_every=1,
        checkpoint_every=settings.steps // 2, num_workers=settings.num_workers, accelerator=settings.accelerator,
        devices="1", precision=settings.precision,
    )  # fmt: skip
    on_gpu = settings.accelerator != "cpu" and torch.cuda.is_available()
    prepared = prepare_finetuning(made)
    times = []
    step = prepared.module.training_step

    def timed(batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        if on_gpu:
            torch.cuda.synchronize()
        times.append(time.perf_counter())
        return step(batch, batch_idx)

    prepared.module.training_step = timed  # type: ignore[method-assign]
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    run_training(prepared)
    timed_steps = len(times) - 1 - WARM_UP
    speed = timed_steps * settings.batch_size / (times[-1] - times[WARM_UP]) if timed_steps > 0 else float("nan")
    losses = read_losses(folder / "logs" / run)
    return {
        "parameters": sum(weight.numel() for weight in prepared.module.network.parameters()) / 1e6,
        "images_per_second": speed,
        "gigabytes": torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None,
        "losses": list(losses.values()),
        "losses_by_step": losses,
    }


def read_losses(run: Path) -> dict[int, float]:
    """Read the loss of each step from the newest log of a run."""
    paths = sorted((run / "lightning_logs").glob("version_*/metrics.csv"), key=lambda path: path.stat().st_mtime)
    with paths[-1].open(newline="") as stream:
        return {int(row["step"]): float(row["loss"]) for row in csv.DictReader(stream) if row.get("loss")}


if __name__ == "__main__":
    cli.run(main, FinetuningSpeedSettings, __doc__)
