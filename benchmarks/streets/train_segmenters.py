"""Train the twelve segmenters of mini/recipe on real clear streets, several processes on one GPU.

Architectures, augmentations and optimisation are those of mini/train.py. Each has the same time, because small networks
wait for kernels to start and several processes share a GPU well. A segmenter that exists is skipped; one that was
trained with other flags is refused.

Reads:  DATA_DIR/training/{train,val}.jsonl and the images they name (benchmarks/streets/prepare.py)
Writes: OUTPUT/{name}.pth or OUTPUT/{name}/, OUTPUT/{name}.json (flags, scores on val), OUTPUT/list.txt (specifications)

    python benchmarks/streets/train_segmenters.py --seconds 300 --jobs 6
"""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

try:
    from genval.runtime import cli
except ModuleNotFoundError:
    sys.exit("error: GenVal is not installed in this environment. Run: make install")

from genval.runtime.errors import GenValError
from genval.runtime.flags import flag
from genval.runtime.paths import REPO_ROOT, resolve
from genval.runtime.settings import comma_list, num_workers_flag, positive_int

SIZE = (256, 512)


@dataclass(frozen=True, kw_only=True)
class TrainSegmentersSettings:
    """Settings of benchmarks/streets/train_segmenters.py."""

    SCRIPT: ClassVar[str] = "benchmarks/streets/train_segmenters"

    data_dir: str = flag("datasets/streets", "folder with training/train.jsonl and val.jsonl")
    output: str = flag("checkpoints/streets/segmenters", "folder of the segmenters")
    segmenters: tuple[str, ...] | None = flag(
        None, "recipes of mini/recipe/segmentation.py (default: all)", type=comma_list
    )
    steps: int = flag(20000, "training steps, at most", type=positive_int)
    seconds: int | None = flag(None, "time limit of each training", type=positive_int)
    batch_size: int = flag(32, "images per step", type=positive_int)
    jobs: int = flag(1, "processes at a time", type=positive_int)
    limit: int | None = flag(None, "use only this many images", type=positive_int)
    accelerator: str = flag("cuda", "torch device: cuda, cuda:1 or cpu")
    num_workers: int = num_workers_flag()
    preset: str | None = None


def main(settings: TrainSegmentersSettings) -> None:
    from mini.recipe.segmentation import SEGMENTER_RECIPES, specification, weights_file

    output = resolve(settings.output)
    names = list(settings.segmenters or SEGMENTER_RECIPES)
    unknown = sorted(set(names) - set(SEGMENTER_RECIPES))
    if unknown:
        raise GenValError(f"--segmenters: unknown recipe {unknown[0]!r}. Known: {', '.join(SEGMENTER_RECIPES)}.")
    missing = [name for name in names if not is_trained(output / f"{name}.json", weights_file(name, output), settings)]
    if settings.jobs == 1 or len(missing) == 1:
        for name in missing:
            train(name, settings)
    else:
        train_in_processes(missing, settings)
    # From the repository's root, so that the list is valid in a copy of it.
    specifications = [specification(name, Path(settings.output)).replace(f"{REPO_ROOT}/", "") for name in names]
    (output / "list.txt").write_text(",".join(specifications) + "\n", encoding="utf-8")
    print(f"wrote {len(names)} segmenters to {settings.output}; their specifications are in list.txt")


def deciding_flags(settings: TrainSegmentersSettings) -> dict[str, Any]:
    """The flags that decide about the weights."""
    return {name: getattr(settings, name) for name in ("data_dir", "steps", "seconds", "batch_size", "limit")}


def is_trained(record: Path, weights: Path, settings: TrainSegmentersSettings) -> bool:
    """Whether a segmenter and its scores are there.

    Raises:
        GenValError: it was trained with other flags.
    """
    from genval.runtime.files import read_json

    if not (record.exists() and weights.exists()):
        return False
    now = deciding_flags(settings)
    before = read_json(record, dict[str, Any]).get("settings", now)  # absent in files of earlier versions
    differing = [
        f"--{name} {before.get(name)} (now {value})" for name, value in now.items() if before.get(name) != value
    ]
    if differing:
        raise GenValError(
            f"{weights} was trained with {', '.join(differing)}. Delete {record} to train it again, or give another "
            "--output."
        )
    return True


def train(name: str, settings: TrainSegmentersSettings) -> None:
    """Train one segmenter and write its scores."""
    import torch

    from genval.datasets.labels import CITYSCAPES
    from genval.runtime.files import write_json
    from mini.recipe.data import load_captioned_images
    from mini.recipe.segmentation import train_segmenter

    def labelled(split: str) -> tuple[torch.Tensor, torch.Tensor]:
        data = load_captioned_images(
            resolve(settings.data_dir), f"training/{split}.jsonl", *SIZE, masks=True, limit=settings.limit,
            workers=settings.num_workers,
        )  # fmt: skip
        assert data.label_ids is not None
        train_ids = CITYSCAPES.table[data.label_ids]
        return torch.from_numpy(data.images).to(device), torch.from_numpy(train_ids).to(device)

    device = torch.device(settings.accelerator)
    images, train_ids = labelled("train")
    val_images, val_train_ids = labelled("val")
    output = resolve(settings.output)
    scores = train_segmenter(
        name, images, train_ids, output, val_images=val_images, val_train_ids=val_train_ids, device=device,
        steps=settings.steps, seconds=settings.seconds, batch_size=settings.batch_size,
    )  # fmt: skip
    write_json(output / f"{name}.json", {"settings": deciding_flags(settings), **scores})


def train_in_processes(names: list[str], settings: TrainSegmentersSettings) -> None:
    """Train each segmenter in a process of its own, `jobs` at a time; their output goes to OUTPUT/{name}.log."""
    output = resolve(settings.output)
    output.mkdir(parents=True, exist_ok=True)
    workers = max(1, settings.num_workers // settings.jobs)
    flags = ["--data_dir", settings.data_dir, "--output", settings.output, "--accelerator", settings.accelerator]
    flags += ["--steps", settings.steps, "--batch_size", settings.batch_size, "--num_workers", workers]
    flags += ["--seconds", settings.seconds] if settings.seconds else []
    flags += ["--limit", settings.limit] if settings.limit else []

    def run(name: str) -> bool:
        command = [sys.executable, __file__, "--segmenters", name, *map(str, flags)]
        with (output / f"{name}.log").open("wb") as log:
            done = subprocess.run(command, cwd=REPO_ROOT, stdout=log, stderr=subprocess.STDOUT).returncode == 0
        print(f"{name}: {'done' if done else 'failed'}", flush=True)
        return done

    with ThreadPoolExecutor(settings.jobs) as pool:
        done = dict(zip(names, pool.map(run, names), strict=True))
    failed = [f"{settings.output}/{name}.log" for name in names if not done[name]]
    if failed:
        raise GenValError(f"Training failed: see {', '.join(failed)}.")


if __name__ == "__main__":
    cli.run(main, TrainSegmentersSettings, __doc__)
