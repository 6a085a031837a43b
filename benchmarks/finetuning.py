"""Does fine-tuning on generated objects help to detect unknown ones? Before, after, and three controls.

Each segmenter is fine-tuned by relis/finetune.py on the same clear streets with each kind of outliers: generated
objects, pasted objects, noise, and the first kind without the outlier loss (the control). The variant `weather` is
trained on generated fog and night instead. All are then tested on images with other objects
(ood_detection/main_gen_ood.py) and on clear and shifted streets (relis/eval.py). Intervals are over images, with the
same draws for all segmenters, so that differences are paired.

With --render, the data of the mini world are made first. Generated, pasted and validation objects have one half of the
names that have a sprite, test objects the other half.

Reads:  --datasets_dir, --outliers and the segmenters' checkpoints; with --render nothing
Writes: OUTPUT_DIR: world/ (with --render), segmenters/, logs/, ood/, eval/, study.json; prints tables in Markdown. Run
        the same command again to resume.

    python benchmarks/finetuning.py --render --jobs 6 --accelerator gpu
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import runpy
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from genval.runtime import cli
from genval.runtime.errors import GenValError
from genval.runtime.flags import flag
from genval.runtime.paths import REPO_ROOT, resolve
from genval.runtime.settings import comma_list, dataset_list, positive_int, seed_flag

if TYPE_CHECKING:
    import numpy as np

MINI = (
    *("mini-fast-scnn", "mini-bisenetv2-fcn", "mini-pspnet-r18", "mini-deeplabv3plus", "mini-semfpn-r18"),
    *("mini-fcn-hrnet", "mini-upernet-swin", "mini-segformer-mit", "mini-segformer-hf", "mini-upernet-convnext-hf"),
)
CONTROL, WEATHER = "control", "weather"
DRAWS = 1000
VALIDATED = 40
"""Rendered streets with objects by which weights are kept; the test set has other streets and other objects."""
RUN_FLAGS = {"output", "logs_dir", "run", "resume", "num_workers", "accelerator", "devices"}
"""Flags of relis/finetune.py that do not change what is trained."""
METRICS = {"aupr_object": "AUPR of the object", "fpr95": "FPR95", "auroc": "AUROC"}


@dataclass(frozen=True, kw_only=True)
class FinetuningStudySettings:
    """Settings of benchmarks/finetuning.py."""

    SCRIPT: ClassVar[str] = "benchmarks/finetuning"

    segmenters: str = flag(",".join(MINI), "the segmenters, as given to relis/eval.py")
    variants: tuple[str, ...] = flag(
        ("generated", "pasted", "noise", CONTROL, WEATHER),
        "kinds of outliers; control is the first without the outlier loss; weather is generated fog and night instead",
        type=comma_list,
    )  # fmt: skip
    score: str = flag("entropy", "the score of OOD detection, which decides about the loss")
    render: bool = flag(False, "make the data of the mini world", title="data")
    num_train: int = flag(1000, "rendered clear streets", type=positive_int)
    num_val: int = flag(100, "rendered streets per test set", type=positive_int)
    num_images: int = flag(16, "generated images per object", type=positive_int)
    num_weather: int = flag(300, "generated images of fog and of night", type=positive_int)
    input_size: str | None = flag(None, "HxW to which test images are resized for the segmenters")
    datasets_dir: str | None = flag(None, "folder of the data sets (default: that of --render)")
    split: str = flag("train", "split of the clear streets that are trained on")
    generated: str | None = flag(None, "--outliers of the generated objects (default: those of --render)")
    generated_dir: str | None = flag(None, "folder of the generated weather (default: that of --render)")
    weather: tuple[str, ...] = flag(("fog", "night"), "--generated of the variant weather", type=comma_list)
    pasted: str | None = flag(None, "--outliers of the pasted objects (default: those of --render)")
    val_ood: str | None = flag(None, "set by which weights are kept (default: that of --render)")
    test_ood: tuple[str, ...] = flag(("RoadAnomaly21",), "sets with unknown objects to test on", type=dataset_list)
    test_sets: tuple[str, ...] = flag(("Cityscapes", "ACDC"), "labelled sets to test on", type=dataset_list)
    output_dir: str = flag("results/mini/finetuning", "folder of everything that is written")
    max_steps: int = flag(300, "optimiser steps", type=positive_int, title="training")
    val_every: int = flag(100, "optimiser steps between validations", type=positive_int)
    batch_size: int = flag(16, "images per step", type=positive_int)
    crop_size: str = flag("192x384", "HxW of the training crops")
    lr: float = flag(2e-4, "learning rate")
    outlier_weight: float = flag(0.2, "weight of the outlier loss")
    max_miou_drop: float = flag(1.0, "points of clear mIoU that may be lost")
    seed: int = seed_flag()
    jobs: int = flag(1, "segmenters at a time", type=positive_int, title="run")
    num_workers: int = flag(2, "threads that read images, per process", type=positive_int)
    accelerator: str = flag("auto", "auto, cpu or gpu")
    preset: str | None = None

    @property
    def folder(self) -> Path:
        """The folder of everything that is written."""
        return resolve(self.output_dir)

    @property
    def world(self) -> Path:
        """The folder of the rendered data."""
        return self.folder / "world"

    @property
    def data(self) -> str:
        """The folder of the data sets."""
        return self.datasets_dir or str(self.world)

    def source(self, variant: str) -> str:
        """`--outliers` of a variant."""
        if variant == CONTROL:
            return self.source(self.variants[0])
        if variant == "noise":
            return "noise"
        if variant == "pasted":
            return self.pasted or f"paste:{self.world}/pasted/images,{self.world}/pasted/masks"
        return self.generated or str(self.world / "objects")


def main(settings: FinetuningStudySettings) -> None:
    from genval.results.scenes import model_list
    from genval.runtime.background import end_with_parent
    from genval.runtime.files import write_json

    if not settings.render and settings.datasets_dir is None:
        raise GenValError("Give --render for the mini world, or --datasets_dir.")
    if settings.variants[0] in (CONTROL, WEATHER):
        raise GenValError("--variants: the first is the one that the control is compared with, such as generated.")
    if settings.render:
        render(settings)
    if settings.val_ood is None:
        check_validation_streets(settings)
    names, study, failed = model_list(settings.segmenters), {}, []
    # A process runs all scripts of a segmenter: starting one takes as long as a short fine-tuning.
    with ProcessPoolExecutor(settings.jobs, multiprocessing.get_context("spawn"), end_with_parent) as pool:
        started = {pool.submit(study_segmenter, settings, name): name for name in names}
        for future in as_completed(started):
            try:
                study[started[future]] = future.result()
            except GenValError as error:
                failed.append(str(error))
                continue
            except BrokenProcessPool:  # also of the segmenters that wait
                failed.append(f"{started[future]}: a process was killed, such as by full memory. Give fewer --jobs.")
                continue
            except Exception as error:  # a defect with one segmenter must not end the study of the others
                traceback.print_exception(error)
                failed.append(f"{started[future]}: {type(error).__name__}: {error}.")
                continue
            write_json(settings.folder / "study.json", {name: study[name] for name in names if name in study})
            print(f"{started[future]}: done, {sum(study[started[future]]['seconds'].values()):.0f} s", flush=True)
    if study:
        report(settings, {name: study[name] for name in names if name in study})
    if failed:
        raise GenValError(" ".join(failed))


def required(path: str, *flags: object, log: Path) -> None:
    """Run a script that must succeed in a process of its own; its output goes to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as stream:
        command = [sys.executable, path, *map(str, flags)]
        if subprocess.run(command, cwd=REPO_ROOT, stdout=stream, stderr=subprocess.STDOUT).returncode:
            raise GenValError(f"{path} failed: see {log}.")


def run_here(path: str, *flags: object, log: Path) -> bool:
    """Run a script in this process, whose output goes to `log` from now on; return whether it succeeded."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as stream:
        for descriptor in (1, 2):
            os.dup2(stream.fileno(), descriptor)
    os.chdir(REPO_ROOT)
    sys.argv = [path, *map(str, flags)]
    try:
        runpy.run_path(path, run_name="__main__")
    except SystemExit as ended:
        return not ended.code
    except Exception:
        traceback.print_exc()
        return False
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return True


def render(settings: FinetuningStudySettings) -> None:
    """Make the streets, the objects of both halves, and the cut-outs of the pasted ones."""
    from mini.world.objects import object_names

    if (settings.world / "validation/pairs").exists():  # before more streets are rendered
        check_validation_streets(settings)
    world, names, logs = settings.world, object_names(), settings.folder / "logs"
    trained, tested = ",".join(names[::2]), ",".join(names[1::2])
    objects, device = world / "objects", ["--preset", "mini", "--accelerator", settings.accelerator]
    inpainted, refined = objects / "with_positions", objects / "refined"

    def render_set(name: str, folder: Path, *flags: object) -> None:
        required("mini/render.py", "--output_dir", folder, *flags, log=logs / f"render-{name}.log")

    def generate_objects() -> None:
        required(
            "ood_objects/sd_inpaint.py", *device, "--objects", trained, "--num_images", settings.num_images,
            "--from_train", "--placement", "road", "--data_dir", world / "cityscapes", "--output_dir", inpainted,
            "--batch_size", settings.batch_size, log=logs / "sd_inpaint.log",
        )  # fmt: skip
        required(
            "ood_objects/refine_gen_images.py", *device, "--images_dir", inpainted, "--output_dir", refined,
            "--batch_size", settings.batch_size, log=logs / "refine_gen_images.log",
        )  # fmt: skip
        required(
            "ood_objects/get_masks.py", *device, "--images_dir", refined, "--positions_dir", inpainted,
            "--output_dir", objects / "masks", log=logs / "get_masks.log",
        )  # fmt: skip

    def generate_weather(domain: str) -> None:
        required(
            "ControlNet/style_transfer.py", *device, "--domain", domain, "--from_train", "--without_replacement",
            "--num_samples", min(settings.num_weather, settings.num_train), "--data_dir", world / "cityscapes",
            "--output_dir", world / "generated", "--batch_size", settings.batch_size, log=logs / f"{domain}.log",
        )  # fmt: skip

    render_set("train", world, "--num_train", settings.num_train, "--num_val", settings.num_val, "--domains", "clear")
    domains = settings.weather if WEATHER in settings.variants else ()
    needs_objects = "generated" in settings.variants and settings.generated is None
    with ThreadPoolExecutor() as pool:
        running = [
            pool.submit(
                render_set, "test", world, "--num_train", 0, "--num_val", settings.num_val,
                "--domains", "fog,night,rain,snow,objects", "--objects", tested,
            ),
            pool.submit(
                render_set, "validation", world / "validation", "--num_train", 0,
                "--num_val", settings.num_val + VALIDATED, "--domains", "objects", "--objects", trained,
            ),
            *([pool.submit(generate_objects)] if needs_objects else []),
            *(pool.submit(generate_weather, domain) for domain in domains),
        ]  # fmt: skip
        for one in running:
            one.result()
    write_cut_outs(names[::2], world / "pasted")
    validation_pairs(settings)


def write_cut_outs(names: Sequence[str], folder: Path) -> None:
    """Write sprites as images with masks, from which `paste:` cuts them out."""
    import numpy as np

    from genval.runtime.files import write_png
    from mini.world.objects import sprite

    for name in names:
        pixels = sprite(name)
        write_png(folder / "images" / f"{name}.png", np.ascontiguousarray(pixels[..., :3]))
        write_png(folder / "masks" / f"{name}.png", (pixels[..., 3] >= 128).astype(np.uint8))


def study_segmenter(settings: FinetuningStudySettings, name: str) -> dict[str, Any]:
    """Fine-tune a segmenter in each variant, test all versions, and compare them.

    Returns:
        `variants`, the specifications (None where no weights are kept); `ood` and `miou`, what `compare` gives for each
        set; `seconds`, by what they were spent on.
    """
    from genval.kernels.layout import SCORES
    from genval.results.scenes import folder_name
    from genval.runtime.files import read_json

    short, logs, seconds = folder_name(name), settings.folder / "logs", {}
    found: dict[str, str | None] = {"before": name}
    for variant in settings.variants:
        output, log = settings.folder / "segmenters" / short / variant, logs / f"{short}-{variant}.log"
        recipe, start = output / "recipe.json", time.perf_counter()
        flags = [*map(str, finetune_flags(settings, name, variant, output, f"{short}-{variant}"))]
        if recipe.exists():
            require_same_flags(recipe, flags)
        else:
            earlier = log.stat().st_size if log.exists() else 0
            run_here("relis/finetune.py", *flags, log=log)
            said = log.read_bytes()[earlier:].decode(errors="replace")
            if not recipe.exists() and "No validation kept clear mIoU" not in said:
                raise GenValError(f"Fine-tuning {name} on {variant} failed: see {log}.")
        found[variant] = read_json(recipe)["segmenter"] if recipe.exists() else None
        seconds[variant] = time.perf_counter() - start
    models = {variant: model for variant, model in found.items() if model is not None}
    every = ["--segmenters", ",".join(models.values()), "--datasets_dir", settings.data, "--num_workers"]
    every += [settings.num_workers, "--accelerator", settings.accelerator, "--devices", 1, "--precision", "32-true"]
    every += ["--batch_size", 8, *(["--input_size", settings.input_size] if settings.input_size else [])]
    tests = {
        "ood_detection/main_gen_ood.py": [
            "--trg_dataset", ",".join(settings.test_ood), "--output_dir", settings.folder / "ood",
            "--bootstrap_draws", 100, *([] if settings.score in SCORES else ["--scores", settings.score]),
        ],
        "relis/eval.py": [
            "--trg_dataset", ",".join(settings.test_sets), "--save", "none", "--eval_dir", settings.folder / "eval",
        ],
    }  # fmt: skip
    for path, own in tests.items():
        start, log = time.perf_counter(), logs / f"{short}-{Path(path).stem}.log"
        if not run_here(path, *every, *own, log=log):
            raise GenValError(f"{path} failed: see {log}.")
        seconds[Path(path).stem] = time.perf_counter() - start
    start = time.perf_counter()
    ood = {
        dataset: compare({key: ood_draws(settings, dataset, model) for key, model in models.items()}, tuple(METRICS))
        for dataset in settings.test_ood
    }
    miou = {
        f"{dataset}/{cond}": compare(
            {key: {"miou": miou_draws(settings, model, dataset, cond)} for key, model in models.items()}, ("miou",)
        )
        for dataset in settings.test_sets
        for cond in conditions(settings, name, dataset)
    }
    seconds["intervals"] = time.perf_counter() - start
    return {"variants": found, "ood": ood, "miou": miou, "seconds": seconds}


def require_same_flags(recipe: Path, flags: Sequence[str]) -> None:
    """Check that a segmenter was fine-tuned with these flags of relis/finetune.py.

    Raises:
        GenValError: another flag decided about its weights.
    """
    from genval.finetuning.settings import FinetuneSettings
    from genval.runtime.files import read_json
    from genval.runtime.flags import flatten, parse_settings

    used = read_json(recipe, dict[str, Any])["settings"]
    values = flatten(parse_settings(FinetuneSettings, flags)).items()
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in values if key not in RUN_FLAGS}
    if changed := [key for key, value in plain.items() if used.get(key, value) != value]:
        first = changed[0]
        raise GenValError(
            f"{recipe} was made with --{first} {used[first]}, not {plain[first]}. Give the same flags, or another "
            "--output_dir."
        )


def finetune_flags(settings: FinetuningStudySettings, name: str, variant: str, output: Path, run: str) -> list[object]:
    """The flags of relis/finetune.py for a variant."""
    weight = 0 if variant == CONTROL else settings.outlier_weight
    validation = settings.val_ood or validation_pairs(settings)
    if variant == WEATHER:
        generated = settings.generated_dir or settings.world / "generated"
        own: list[object] = ["--generated", ",".join(settings.weather), "--generated_dir", generated]
    else:
        own = ["--outliers", settings.source(variant), "--outlier_weight", weight, "--val_ood", validation]
    return [
        *own, "--segmenter", name, "--output", output, "--logs_dir", settings.folder / "runs", "--run", run,
        "--resume", "auto", "--datasets_dir", settings.data, "--split", settings.split, "--score", settings.score,
        "--max_steps", settings.max_steps, "--batch_size", settings.batch_size, "--crop_size", settings.crop_size,
        "--lr", settings.lr, "--val_every", settings.val_every, "--max_miou_drop", settings.max_miou_drop,
        "--num_workers", settings.num_workers, "--accelerator", settings.accelerator, "--devices", 1,
        "--seed", settings.seed,
    ]  # fmt: skip


def validation_pairs(settings: FinetuningStudySettings) -> str:
    """The last `VALIDATED` rendered streets with objects, as `pair:IMAGES,MASKS`; the first are those of the test."""
    import shutil

    track, pairs = settings.world / "validation/dataset_AnomalyTrack", settings.world / "validation/pairs"
    for image in sorted((track / "images").glob("*.png"))[settings.num_val :]:
        mask = track / "labels_masks" / f"{image.stem}_labels_semantic.png"
        for source, target in ((image, pairs / "images" / image.name), (mask, pairs / "masks" / image.name)):
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                shutil.copy(source, target)
    return f"pair:{pairs}/images,{pairs}/masks"


def check_validation_streets(settings: FinetuningStudySettings) -> None:
    """Check that the rendered streets are those of `--num_val`: with another number, validation and test overlap.

    Raises:
        GenValError: there are more or fewer.
    """
    folder = settings.world / "validation/dataset_AnomalyTrack/images"
    found, expected = len(list(folder.glob("*.png"))), settings.num_val + VALIDATED
    if found != expected:
        hint = f"--num_val {found - VALIDATED}" if found > VALIDATED else "--render"
        raise GenValError(
            f"{folder} has {found} streets, expected {expected} (--num_val {settings.num_val}, and {VALIDATED} of the "
            f"validation). Give {hint}, another --output_dir, or --val_ood."
        )


def report(settings: FinetuningStudySettings, study: dict[str, dict[str, Any]]) -> None:
    """Print the tables of what `study_segmenter` gives for each segmenter."""
    from genval.runtime.tables import markdown_table

    lead = settings.variants[0]
    for dataset in settings.test_ood:
        for metric, title in METRICS.items():
            print(f"\n{title} on {dataset}, score {settings.score}, percent (95 % interval of the difference)\n")
            rows = [ood_row(settings, name, of_one["ood"][dataset], metric) for name, of_one in study.items()]
            print(markdown_table(
                ["segmenter", "before", *settings.variants, f"{lead} - {CONTROL}", f"{lead} - before"], rows, digits=1
            ))  # fmt: skip
        differences = [of_one["ood"][dataset]["differences"].get(f"{lead} - {CONTROL}") for of_one in study.values()]
        better = sum(one is not None and one["aupr_object"][1] > 0 for one in differences)
        print(f"\n{lead} - {CONTROL}: interval of AUPR above 0 for {better} of {len(study)} segmenters")
    sets = list(next(iter(study.values()))["miou"])
    for variant in settings.variants:
        print(f"\nmIoU before, and change by {variant}, points (95 % interval)\n")
        rows = [[name, *miou_cells(of_one["miou"], variant)] for name, of_one in study.items()]
        print(markdown_table(["segmenter", *(part for key in sets for part in (key, "change"))], rows, digits=1))
    print(f"\nwrote {settings.folder / 'study.json'}")


def ood_row(settings: FinetuningStudySettings, name: str, found: dict[str, Any], metric: str) -> list[Any]:
    """A row of a table of OOD detection."""
    row: list[Any] = [name]
    for key in ("before", *settings.variants):
        row.append(100 * found["values"][key][metric] if key in found["values"] else "none")
    for pair in (f"{settings.variants[0]} - {CONTROL}", f"{settings.variants[0]} - before"):
        ends = found["differences"].get(pair, {}).get(metric)
        row.append("none" if ends is None else f"{100 * ends[0]:.1f} ({100 * ends[1]:.1f} to {100 * ends[2]:.1f})")
    return row


def miou_cells(found: dict[str, Any], variant: str) -> list[Any]:
    """The mIoU of each set before, and its change by a variant."""
    cells = []
    for of_set in found.values():
        ends = of_set["differences"].get(f"{variant} - before", {}).get("miou")
        change = "none" if ends is None else f"{ends[0]:.1f} ({ends[1]:.1f} to {ends[2]:.1f})"
        cells += [of_set["values"]["before"]["miou"], change]
    return cells


def compare(draws: dict[str, dict[str, np.ndarray]], metrics: Sequence[str]) -> dict[str, Any]:
    """Values by variant, and differences of variants with intervals.

    Args:
        draws: by variant and metric, the value followed by those of the draws, float64 (1 + draws,).
        metrics: the names.
    """
    from genval.metrics.bootstrap import percentile_interval

    values = {key: {name: float(of_one[name][0]) for name in metrics} for key, of_one in draws.items()}
    differences: dict[str, Any] = {}
    for key, other in itertools.permutations(draws, 2):
        if key != "before":
            pairs = {name: draws[key][name] - draws[other][name] for name in metrics}
            differences[f"{key} - {other}"] = {
                name: [float(one[0]), *map(float, percentile_interval(one[1:]))] for name, one in pairs.items()
            }
    return {"values": values, "differences": differences}


def ood_draws(settings: FinetuningStudySettings, dataset: str, model: str) -> dict[str, np.ndarray]:
    """The metrics of a segmenter on a set with objects: of all images, then of each draw, float64 (1 + draws,)."""
    import numpy as np

    from genval.metrics.ood_pooling import PoissonBootstrap
    from genval.metrics.ood_scores import level_metrics
    from genval.results.ood_blocks import OodResults

    results = OodResults(settings.folder / "ood", dataset, model)
    bootstrap, total, index = None, None, 0
    for path in sorted((results.folder / "blocks").glob("*.jsonl")):
        lines, levels, coarse = results.read_block(path.stem)
        index = list(lines[0]["figures"]).index(settings.score)
        bootstrap = bootstrap or PoissonBootstrap(1, 0, DRAWS, settings.seed)
        ids = [line["made_from"]["id"] for line in lines]
        bootstrap.update(ids, coarse[:, index : index + 1], np.zeros((len(ids), 0)))
        total = levels[index] if total is None else total + levels[index]
    assert bootstrap is not None and total is not None
    drawn, whole = bootstrap.drawn_metrics(0), level_metrics(total)
    return {name: np.concatenate([[whole[name]], drawn[name]]) for name in METRICS}


def conditions(settings: FinetuningStudySettings, model: str, dataset: str) -> list[str]:
    """The conditions in which a segmenter was evaluated on a set."""
    from genval.results.scenes import folder_name

    folder = settings.folder / "eval" / folder_name(model) / folder_name(dataset)
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def miou_draws(settings: FinetuningStudySettings, model: str, dataset: str, cond: str) -> np.ndarray:
    """The mIoU of a segmenter in a condition, percent: of all images, then of each draw, float64 (1 + draws,)."""
    import numpy as np

    from genval.metrics.ood_pooling import poisson_weights
    from genval.report.scores import mean_iou
    from genval.results.scenes import SceneResults, folder_name

    root = settings.folder / "eval"
    matrices: dict[str, np.ndarray] = {}
    for scene in sorted((root / folder_name(model) / folder_name(dataset) / cond).iterdir()):
        results = SceneResults(root, model, dataset, cond, scene.name)
        matrices |= {record["id"]: pixels.confusion for record, pixels in results.read_pixels()}
    counts = np.stack([[np.diag(one), one.sum(1), one.sum(0)] for one in matrices.values()]).astype(np.float64)
    weights = np.stack([poisson_weights(item_id, DRAWS, settings.seed) for item_id in matrices], 1)
    weights = np.concatenate([np.ones((1, len(matrices))), weights])
    classes = np.flatnonzero(counts[:, 1].sum(0)).tolist()
    return mean_iou(np.tensordot(weights, counts, 1), classes)


if __name__ == "__main__":
    cli.run(main, FinetuningStudySettings, __doc__)
