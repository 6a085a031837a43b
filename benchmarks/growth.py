"""Time and memory of an evaluation by the number of images, with small images and a fast fake segmenter.

Reads:  nothing
Writes: images and results in a temporary folder, removed at the end, and a table to the standard output

    python benchmarks/growth.py --images 10,100,1000,10000
    python benchmarks/growth.py --images 100,1000,4000 --temperatures

"Again" is a second run on the finished folder, which has nothing to compute. Every row is measured in a process of its
own; memory is the growth of the process's resident set from its start to its peak, in both runs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from genval.runtime import cli
from genval.runtime.flags import flag
from genval.runtime.paths import REPO_ROOT
from genval.runtime.settings import comma_list

SIZE = (16, 32)


@dataclass(frozen=True, kw_only=True)
class GrowthSettings:
    """Settings of benchmarks/growth.py."""

    SCRIPT: ClassVar[str] = "benchmarks/growth"

    images: tuple[str, ...] = flag(("10", "100", "1000", "10000"), "numbers of images", type=comma_list)
    scenes: int = flag(3, "cities over which the images are spread")
    temperatures: bool = flag(False, "save logits too, and find temperatures from them")
    row: str | None = flag(None, "measure one row in this folder, and print it as JSON")
    preset: str | None = None


def main(settings: GrowthSettings) -> None:
    from genval.runtime.tables import markdown_table

    if settings.row is not None:
        row = measure(Path(settings.row), int(settings.images[0]), settings.scenes, settings.temperatures)
        print(json.dumps(row))
        return
    rows = []
    for number in settings.images:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "benchmarks/growth.py", "--images", number, "--row", folder]
            command += ["--scenes", str(settings.scenes), *(["--temperatures"] if settings.temperatures else [])]
            done = subprocess.run(command, cwd=REPO_ROOT, stdout=subprocess.PIPE, text=True, check=True)
        rows.append([int(number), *json.loads(done.stdout.splitlines()[-1])])
        header = ["images", "first run s", "ms per image", "again s", "memory MiB"]
        header += ["temperatures s"] if settings.temperatures else []
    print(markdown_table(header, rows, digits=2))


def measure(folder: Path, number: int, scenes: int, temperatures: bool) -> list[float]:
    """Evaluate `number` images twice; return seconds, milliseconds per image, seconds again and MiB.

    With `temperatures` also the seconds of finding them.
    """
    import resource
    import time

    import torch

    from genval.evaluation.segmentation import evaluate_all
    from genval.evaluation.settings import EvalScriptSettings
    from genval.runtime.flags import make_settings

    write_images(folder, number, scenes)
    flags: dict[str, Any] = {
        "segmenters": "fake", "trg_dataset": "Cityscapes", "trg_root": str(folder / "set"),
        "eval_dir": str(folder / "results"), "accelerator": "cpu", "devices": "1", "batch_size": 4,
        "save": ("predictions", "logits") if temperatures else ("predictions",),
    }  # fmt: skip
    settings = make_settings(EvalScriptSettings, **flags)

    class Fake(torch.nn.Module):
        name = "fake"

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(19, 3, generator=torch.Generator().manual_seed(0)))

        def forward(self, images: torch.Tensor, size: Any = None) -> torch.Tensor:
            return torch.einsum("bchw,nc->bnhw", images.float() / 99, self.weight)

    def megabytes() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    before, times = megabytes(), []
    for _ in range(2):
        start = time.perf_counter()
        evaluate_all(settings, Fake())
        times.append(time.perf_counter() - start)
    row = [times[0], 1000 * times[0] / number, times[1], megabytes() - before]
    return [*row, find_temperatures(folder / "results")] if temperatures else row


def find_temperatures(eval_dir: Path) -> float:
    """Find a temperature of all images and one of their hardest half, from the saved logits; return the seconds."""
    import time

    from genval.evaluation.calibration import ImageSet, calibrate, read_images
    from genval.evaluation.settings import CalibrationMethod

    start = time.perf_counter()
    images = list(read_images(ImageSet("Cityscapes").find(eval_dir, "fake")))
    for share in (1.0, 0.5):
        calibrate(images, CalibrationMethod(), hardest=share)
    return time.perf_counter() - start


def write_images(folder: Path, number: int, scenes: int) -> None:
    """Write a Cityscapes of random small images with masks of blocks."""
    import numpy as np

    from genval.datasets.labels import CITYSCAPES
    from genval.runtime.files import write_png

    generator = np.random.default_rng(0)
    ids = np.flatnonzero(CITYSCAPES.train_id_table[:34] < 19).astype(np.uint8)
    for index in range(number):
        city = f"city{index % scenes}"
        name = f"{city}/{city}_{index:06d}_000000"
        mask = generator.choice(ids, (SIZE[0] // 4, SIZE[1] // 4)).repeat(4, 0).repeat(4, 1)
        image = generator.integers(0, 256, (*SIZE, 3)).astype(np.uint8)
        write_png(folder / f"set/leftImg8bit/val/{name}_leftImg8bit.png", image)
        write_png(folder / f"set/gtFine/val/{name}_gtFine_labelIds.png", mask)


if __name__ == "__main__":
    cli.run(main, GrowthSettings, __doc__)
