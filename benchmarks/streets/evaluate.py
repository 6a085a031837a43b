"""Evaluate segmenters on clear, generated, changed and real streets: one process of relis/eval.py per segmenter.

The sets are Cityscapes val, the generated and corrupted sets that exist, and the real sets of DATASETS_DIR: ACDC,
CamVid (dusk) and IDD-lite. Sets of India are evaluated in the 7 merged classes of IDD-lite, and Cityscapes in both.
Published networks get the size that they were trained for, those of the recipe 256x512. Unknown objects are detected on
the real sets and on the pasted one (paste_objects.py), if they exist.

Reads:  PUBLISHED/*-{width}.pt (benchmarks/streets/export_segmenters.py), OWN/list.txt (train_segmenters.py),
        DATASETS_DIR (prepare.py), GENERATED_DIR and `corrupted` beside it
Writes: EVAL_DIR as relis/eval.py, OOD_DIR as ood_detection/main_gen_ood.py, EVAL_DIR/logs/{segmenter}.log. Run the same
        command again to resume.

    python benchmarks/streets/evaluate.py --jobs 8 --accelerator gpu --batch_size 16
"""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar

try:
    from genval.runtime import cli
except ModuleNotFoundError:
    sys.exit("error: GenVal is not installed in this environment. Run: make install")

from models import find_models, short_name

import path_dicts
from genval.datasets.layouts import find_root, generated_set
from genval.runtime.commands import Command
from genval.runtime.errors import GenValError
from genval.runtime.flags import flag
from genval.runtime.paths import REPO_ROOT, resolve
from genval.runtime.settings import comma_list, positive_int

REAL_SETS = ("ACDC", "CamVid", "IDD-lite")
MERGED = "idd-level1"


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """Settings of benchmarks/streets/evaluate.py."""

    SCRIPT: ClassVar[str] = "benchmarks/streets/evaluate"

    published: str = flag("checkpoints/streets/published", "folder of the exported networks")
    own: str = flag("checkpoints/streets/segmenters", "folder of the segmenters of the recipe")
    segmenters: tuple[str, ...] | None = flag(None, "only those of these short names", type=comma_list)
    datasets_dir: str = flag("datasets/streets", "folder of the prepared sets")
    generated_dir: str = flag("images/streets/sets", "folder of the generated sets")
    domains: tuple[str, ...] = flag(
        ("clear", "fog", "night", "rain", "snow", "india", "dusk"), "domains of the generated sets", type=comma_list
    )
    scenes: tuple[str, ...] = flag(
        ("val00", "val04", "val08", "val12", "val16"), "scenes of sets without a seed: corrupted ones", type=comma_list
    )
    real: bool = flag(True, "evaluate on Cityscapes and the real sets too")
    eval_dir: str = flag("results/streets/eval", "folder of the evaluation results")
    ood_dir: str = flag("results/streets/ood_detection", "folder of the results on unknown objects")
    logit_pixels: int = flag(500, "pixels per image whose logits are saved, for temperatures", type=positive_int)
    batch_size: int = flag(8, "images per forward pass", type=positive_int)
    accelerator: str = flag("auto", "auto, cpu or gpu")
    jobs: int = flag(1, "processes at a time", type=positive_int)
    num_workers: int = flag(1, "threads that read images, per process", type=positive_int)
    preset: str | None = None


def main(settings: EvaluateSettings) -> None:
    models = find_models(settings.published, settings.own, settings.segmenters)
    generated, changed = find_sets(settings)
    real = ["Cityscapes", f"Cityscapes@{MERGED}", *REAL_SETS] if settings.real else []
    logs = resolve(settings.eval_dir) / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    pasted = f"{settings.datasets_dir}/pasted"
    objects = [name for name in path_dicts.OOD_ROOTS if has_objects(name, settings)]
    objects += [f"pair:{pasted}/images,{pasted}/masks"] if resolve(pasted).is_dir() else []
    print(f"{len(models)} segmenters on {', '.join([*real, *generated, *changed, *objects])}", flush=True)
    commands = [evaluation([*real, *generated], (), settings)] if real or generated else []
    commands += [evaluation(changed, settings.scenes, settings)] if changed else []
    if objects:
        commands.append(Command("ood_detection/main_gen_ood", {"trg_dataset": objects, "output_dir": settings.ood_dir}))

    def run(model: str) -> bool:
        name = short_name(model)
        with (logs / f"{name}.log").open("ab") as log:
            for command in commands:
                argv = [sys.executable, *command.with_flags(**model_flags(model, models[model], settings)).argv]
                if subprocess.run(argv, cwd=REPO_ROOT, stdout=log, stderr=subprocess.STDOUT).returncode:
                    print(f"{name}: failed, see {settings.eval_dir}/logs/{name}.log", flush=True)
                    return False
        print(f"{name}: done", flush=True)
        return True

    with ThreadPoolExecutor(settings.jobs) as pool:
        done = list(pool.map(run, models))
    if not all(done):
        raise GenValError(f"{done.count(False)} of {len(done)} evaluations failed, see above.")


def find_sets(settings: EvaluateSettings) -> tuple[list[str], list[str]]:
    """Return the generated sets that exist, and those that were made from each frame: corruptions and transfers."""
    generated, changed = [], []
    for domain in settings.domains:
        names = [generated_set(domain, generator) for generator in path_dicts.GENERATORS]
        for name in [*names, f"Cityscapes_corrupt_{domain}"]:
            try:
                find_root(name, generated_dir=settings.generated_dir)
            except GenValError:
                continue
            seedless = name.startswith("Cityscapes_corrupt_") or name in names[-len(path_dicts.TRANSFER_METHODS) :]
            (changed if seedless else generated).append(f"{name}@{MERGED}" if domain == "india" else name)
    return generated, changed


def has_objects(name: str, settings: EvaluateSettings) -> bool:
    """Return whether a set with unknown objects is among the prepared sets."""
    from genval.datasets.ood_sets import find_ood_items

    try:
        find_ood_items(name, datasets_dir=settings.datasets_dir)
    except GenValError:
        return False
    return True


def model_flags(model: str, size: tuple[int, int], settings: EvaluateSettings) -> dict[str, Any]:
    """Return the flags that say how a segmenter is run."""
    return {
        "segmenters": model,
        "input_size": "x".join(map(str, size)),
        "datasets_dir": settings.datasets_dir,
        "batch_size": settings.batch_size,
        "num_workers": settings.num_workers,
        "accelerator": settings.accelerator,
        "devices": 1,
    }


def evaluation(sets: list[str], scenes: tuple[str, ...], settings: EvaluateSettings) -> Command:
    """Return the command that evaluates on sets, without the flags of a segmenter."""
    return Command(
        "relis/eval",
        {
            "trg_dataset": sets,
            "scene": scenes,
            "generated_dir": settings.generated_dir,
            "eval_dir": settings.eval_dir,
            "save": "logits",
            "logit_pixels": settings.logit_pixels,
            "fp16": True,
        },
    )


if __name__ == "__main__":
    cli.run(main, EvaluateSettings, __doc__)
