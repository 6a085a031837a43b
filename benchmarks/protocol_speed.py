"""Estimate the hours of the paper's whole protocol from a sample of each stage, run by its script with random weights.

Reads:  nothing: streets are rendered at Cityscapes' size, and all models get random weights of full size
Writes: {folder}/: models and streets (30 GB; those of script_speed.py too), logs, and what the scripts write;
        {output}: a row per stage, or per segmenter of a stage, after each command; {output}.md: tables

    python benchmarks/protocol_speed.py
    python benchmarks/protocol_speed.py --num_models 8 --output results/protocol_8.json

A row belongs to one command. Its loop lasts from the first written batch to the last. The rest of the command, such as
the start of the process, compilation and summaries, is its start. The protocol takes commands x start + items x seconds
per item of the loop, with the numbers in `STAGES`. In a stage of segmenters, this is the time of each of the 42
segmenters, and those that were not measured take the mean of the others. The error is half the difference between the
rates of both halves of the loop, or 100 % if the loop has fewer than two batches. The standard error of the mean over
segmenters is added. "GPU busy" is the share of the time in which a kernel ran on the GPU. Starts count as idle.
"Published" is the time of the same items at the rates in `PUBLISHED`, without starts. Rows of the same settings and
device that are already in the output are kept. Kernels that earlier commands compiled and kept in {folder} are used.

The protocol is that of reproduce.py with all segmenters in each command. It excludes training, captions, the check of
masks by CLIP, and the report. Clear streets stand for all sets that are evaluated. Objects are detected in rendered
streets with objects.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import shutil
import statistics
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

from script_speed import DOMAINS, SIDES, device_name, make_part, run_script

import path_dicts
from genval.runtime import cli
from genval.runtime.errors import GenValError
from genval.runtime.flags import flag
from genval.runtime.fork_server import process_context
from genval.runtime.paths import REPO_ROOT, resolve
from genval.runtime.settings import Compile, comma_list, positive_int

# Per size: its name in script_speed.py, images per batch of the denoiser, and images in which objects are detected,
# which are written 32 at a time.
SIZES = {"full": ("sd15", 32, 96), "tiny": ("tiny", 2, 4)}
# Images of the sets: generated (five domains), corrupted (four), clear, and real (four conditions of ACDC, and IDD).
GENERATED, CORRUPTED, CLEAR, REAL = 5 * 512, 4 * 500, 500, 406 + 981
OBJECT_IMAGES = 42 * 512
# Each object is a batch or more. With more batches, the error of the rate is smaller.
OBJECTS = "lion,tiger,zebra,bear,camel,cow,giraffe,horse"
ZOO = len(path_dicts.ZOO)
# Seconds per item of the published code, on one H100 and one CPU thread with random weights (2026-11-22, torch 2.11).
# evaluate: mmsegmentation's DeepLabV3+ ResNet-101 in float32 (6.91 images/s, docs/speed.md), which stands for all
# segmenters, labels (45 ms) and metrics (42 ms). find: 950 temperatures on 20,000 pixels. inpaint, refine: pipelines of
# diffusers in fp16, the latter on whole frames. mask: GroundingDINO and SAM ViT-H in float32. detect: five passes of a
# network with ResNet-50, and metrics of scikit-learn.
PUBLISHED = {
    "generate": 3.02, "evaluate": 1 / 6.91 + 0.087, "find": 5.736, "inpaint": 1.60, "refine": 4.01, "mask": 0.333,
    "detect": 5.64,
}  # fmt: skip
# A script that finds the zoo's weights in another folder. Its own path stays in sys.argv, because Lightning starts the
# other processes with it.
ZOO_SCRIPT = """
import sys
sys.path.insert(0, {root!r})
import path_dicts
path_dicts.CHECKPOINT_ROOT = {zoo!r}
with open({script!r}) as file:
    exec(compile(file.read(), {script!r}, "exec"))
"""


@dataclass(frozen=True)
class Stage:
    """A stage of the protocol.

    Attributes:
        command: the script and its flags with fields, see `fields`.
        outputs: pattern of the files that are written per item, in the stage's output; {model} is a segmenter.
        batch: field of `fields` with the number of items that are written together.
        items: of the protocol; of a stage of segmenters, per segmenter.
        commands: of the protocol; of a stage of segmenters, each runs all of them.
        parts: of the world that it reads, from `script_speed.MAKERS`.
        reads: the stage whose output it reads.
        per_file: field of `fields` with the number of items of a file.
    """

    command: str
    outputs: str
    batch: str
    items: int
    commands: int = 1
    parts: tuple[str, ...] = ()
    reads: str | None = None
    per_file: str = "one"

    @property
    def has_segmenters(self) -> bool:
        return "{model}" in self.outputs


_DEVICE = " --accelerator {accelerator} --devices {devices} "
_DENOISER = _DEVICE + "--batch_size {denoised} --compile {compile_denoiser} --output_dir {output} "
_INPAINTING = _DENOISER + "--inpainting_model {world}/inpainting --size {side} --objects {objects} "
_SEGMENTERS = _DEVICE + "--segmenters {models} --precision {precision} --batch_size {batch_size} --compile {compile} "
_CALIBRATION = " --segmenters {models} --calib_dataset Cityscapes --eval_dir {outputs}/evaluate --calibration_dir "
STAGES: dict[str, Stage] = {
    "generate": Stage(
        "ControlNet/style_transfer.py --data_dir {streets}/cityscapes --caption street --num_samples {sample} --base "
        "{world}/base --controlnet {world}/controlnet --height {side} --width {side} --domain " + DOMAINS + _DENOISER,
        "*/leftImg8bit/**/*.png", "denoised", GENERATED, parts=("base",),
    ),
    "corrupt": Stage(
        "relis/corrupt.py --domains fog,rain,snow,night --datasets_dir {streets} --output_dir {output} --limit 16",
        "**/leftImg8bit/**/*.png", "one", CORRUPTED,
    ),
    # The clear set, ACDC, IDD, the generated sets and the corrupted sets are a command each.
    "evaluate": Stage(
        "relis/eval.py --trg_dataset Cityscapes --trg_root {streets}/cityscapes --eval_dir {output} "
        "--save predictions,logits --logit_pixels 2000 --overwrite" + _SEGMENTERS,
        "{model}/*/*/*/statistics/*.json", "batch_size", GENERATED + CORRUPTED + CLEAR + REAL, commands=5,
    ),
    # Temperatures of the generated images (all, and the hardest half), of lindau and munster, and of the corrupted and
    # the real images. They are tested on the real images, and those of generated images on these too. All segmenters
    # are one row, in which a file stands for a segmenter's images.
    "find": Stage(
        "relis/compute_clusters_temp_scaling.py" + _CALIBRATION + "{output}", "**/best_temperatures.json", "one",
        ZOO * (GENERATED * 3 // 2 + 233 + CORRUPTED + REAL), commands=11, reads="evaluate", per_file="images",
    ),
    "test": Stage(
        "relis/eval_calibration_clustering.py --trg_dataset Cityscapes --output_dir {output}" + _CALIBRATION
        + "{outputs}/find", "**/vanilla_ece.json", "one",
        ZOO * (2 * REAL + GENERATED + REAL + 406 + REAL), commands=20, reads="find", per_file="images",
    ),
    "inpaint": Stage(
        "ood_objects/sd_inpaint.py --data_dir {streets}/cityscapes --num_images {sample} --min_box 32" + _INPAINTING,
        "*/*_pos.json", "denoised", OBJECT_IMAGES, parts=("inpainting",),
    ),
    "refine": Stage(
        "ood_objects/refine_gen_images.py --images_dir {outputs}/inpaint" + _INPAINTING,
        "*/*.png", "denoised", OBJECT_IMAGES, parts=("inpainting",), reads="inpaint",
    ),
    # Random networks detect as many objects as the thresholds allow.
    "mask": Stage(
        "ood_objects/get_masks.py --images_dir {outputs}/refine --positions_dir {outputs}/inpaint --curate "
        "--output_dir {output} --detector {world}/detector --sam {world}/sam --clip none "
        "--box_threshold 0 --text_threshold 0 --nms_threshold 0 --batch_size {masked} --precision {precision}"
        + _DEVICE,
        "*/*_mask.*", "masked", OBJECT_IMAGES, parts=("masking",), reads="refine",
    ),
    "detect": Stage(
        "ood_detection/main_gen_ood.py --trg_dataset RoadAnomaly21 --trg_root {world}/objects/dataset_AnomalyTrack "
        "--output_dir {output} --overwrite" + _SEGMENTERS,
        "RoadAnomaly21/{model}/blocks/*.jsonl", "one", OBJECT_IMAGES, per_file="block",
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ProtocolSpeedSettings:
    """Settings of benchmarks/protocol_speed.py."""

    SCRIPT: ClassVar[str] = "benchmarks/protocol_speed"

    stages: tuple[str, ...] = flag(tuple(STAGES), f"some of {', '.join(STAGES)}", type=comma_list)
    segmenters: tuple[str, ...] = flag(tuple(path_dicts.ZOO), "names; by default all 42", type=comma_list)
    num_models: int | None = flag(None, "evaluate this many segmenters, evenly spread by size", type=positive_int)
    num_detect_models: int = flag(6, "detect with this many of them, evenly spread by size", type=positive_int)
    together: int = flag(7, "segmenters per command", type=positive_int)
    images: int = flag(32, "images per segmenter, at least 4 batches per device", type=positive_int)
    size: str = flag("full", "tiny is a smoke test", choices=tuple(SIZES))
    batch_size: int = flag(4, "images per forward pass of a segmenter", type=positive_int)
    precision: str = flag("bf16-true", "of segmenters and mask models")
    compile: Compile = flag("off", "compile the segmenters", bare="on")
    compile_denoiser: Compile = flag("auto", "as --compile of the scripts that generate and inpaint", bare="on")
    accelerator: str = flag("auto", "")
    devices: int = flag(1, "processes that share a command", type=positive_int)
    folder: str = flag("results/script_speed", "models, streets and outputs; models are made once")
    output: str = flag("results/protocol_speed.json", "")
    overwrite: bool = flag(False, "measure rows again")
    preset: str | None = None


def main(settings: ProtocolSpeedSettings) -> None:
    from genval.runtime.files import read_json, write_bytes, write_json

    check(settings)
    world, path = resolve(settings.folder) / SIZES[settings.size][0], resolve(settings.output)
    rows: list[dict[str, Any]] = read_json(path) if path.exists() else []
    key = {name: getattr(settings, name) for name in (
        "size", "images", "batch_size", "precision", "compile", "compile_denoiser", "devices",
    )} | {"device": device_name()}  # fmt: skip
    for part in dict.fromkeys(part for name in settings.stages for part in STAGES[name].parts):
        make_part(part, world, SIZES[settings.size][0])
    render(settings, world)
    models = choose_models(settings, world)
    os.sync()  # what the disk still has to write would be counted
    failed: list[str] = []
    commands = [(name, group) for name in settings.stages for group in groups(name, models, settings)]
    while commands:
        name, group = commands.pop(0)
        known = [row["segmenter"] for row in rows if row["key"] == key and row["stage"] == name]
        missing = [model for model in group if settings.overwrite or model not in known]
        if not missing:
            continue
        evaluated = [row["segmenter"] for row in rows if row["key"] == key and row["stage"] == "evaluate"]
        try:
            new = [{"key": key, **row} for row in measure(name, missing, evaluated, settings, world)]
        except GenValError as error:
            if len(missing) > 1:  # one bad segmenter leaves the others their rows
                commands = [(name, [model]) for model in missing] + commands
            else:
                print(error, flush=True)
                failed.append(f"{name} {missing[0] or ''}".strip())
            continue
        done = [row["segmenter"] for row in new]
        rows = [row for row in rows if row["key"] != key or row["stage"] != name or row["segmenter"] not in done] + new
        write_json(path, rows)
        write_bytes(path.with_suffix(".md"), markdown(rows).encode())
        print("\n".join(row_table(new).splitlines()[2:]), flush=True)
    print(markdown(rows))
    print(f"wrote {path} and {path.stem}.md: {len(rows)} rows")
    if failed:
        raise GenValError(f"Not measured: {', '.join(failed)}. Their messages are above.")


def check(settings: ProtocolSpeedSettings) -> None:
    """Refuse unknown stages and segmenters, and too few images."""
    least = 4 * settings.batch_size * settings.devices
    if settings.images < least:
        raise GenValError(
            f"--images: expected at least 4 batches per device, which are {least}; found {settings.images}."
        )
    if unknown := [name for name in settings.stages if name not in STAGES]:
        raise GenValError(f"--stages: unknown {', '.join(unknown)}. Known: {', '.join(STAGES)}.")
    if unknown := [name for name in settings.segmenters if name not in path_dicts.ZOO]:
        raise GenValError(f"Not in the zoo: {', '.join(unknown)}. See: python relis/eval.py --list_models")


def render(settings: ProtocolSpeedSettings, world: Path) -> None:
    """Render the clear streets and, where they are needed, those with objects that are missing."""
    size, _, detected = SIZES[settings.size]
    height, width, _ = SIDES[size]
    sets = [("clear", streets(settings, world), settings.images)]
    if "detect" in settings.stages:
        sets.append(("objects", world / "objects", detected * settings.devices))
    for domain, folder, number in sets:
        words = ["mini/render.py", "--domains", domain, "--output_dir", folder, "--num_train", 0, "--num_val", number]
        log = world / "logs" / f"render_{domain}.log"
        run_script([*words, "--height", height, "--width", width], log, world)


def streets(settings: ProtocolSpeedSettings, world: Path) -> Path:
    """Return the folder of the clear streets: calibration refuses results of a part of a set."""
    return world / f"streets-{settings.images}"


def choose_models(settings: ProtocolSpeedSettings, world: Path) -> list[str]:
    """Return the segmenters to evaluate, by size, and write their weights; none where no stage runs segmenters."""
    if not any("{models}" in STAGES[name].command for name in settings.stages):
        return []
    with ProcessPoolExecutor(min(8, os.cpu_count() or 1), mp_context=process_context()) as pool:
        sizes = list(pool.map(write_weights, settings.segmenters, [world / "zoo"] * len(settings.segmenters)))
    by_size = [model for _, model in sorted(zip(sizes, settings.segmenters, strict=True))]
    return spread(by_size, settings.num_models or len(by_size))


def spread(values: Sequence[str], number: int) -> list[str]:
    """Return a number of values, evenly spread: the middle value of each of as many equal parts.

    >>> spread("abcdef", 2), spread("ab", 3)
    (['b', 'e'], ['a', 'b'])
    """
    number = min(number, len(values))
    return [values[(2 * index + 1) * len(values) // (2 * number)] for index in range(number)]


def write_weights(model: str, folder: Path) -> int:
    """Write a checkpoint of random weights where the zoo's would be, unless there is one; return its bytes."""
    import torch

    from genval.runtime.files import replace_file
    from genval.segmenters.openmmlab import build_network

    entry = path_dicts.ZOO[model]
    path = folder / entry["checkpoint"]
    if not path.exists():
        torch.manual_seed(0)
        network = build_network(entry["config"], entry.get("overrides"))
        with replace_file(path) as temporary:
            torch.save({"state_dict": network.state_dict(), "meta": {}}, temporary)
    return path.stat().st_size


def groups(name: str, models: Sequence[str], settings: ProtocolSpeedSettings) -> list[list[Any]]:
    """Return the segmenters of each command of a stage; [None] is a command without segmenters."""
    if not STAGES[name].has_segmenters:
        return [[None]]
    if name == "detect":
        models = spread(models, settings.num_detect_models)
    # Each command has small and large segmenters, so that the sums of their weights are similar.
    number = math.ceil(len(models) / settings.together)
    return [list(models[start::number]) for start in range(number)]


def measure(
    name: str, models: list[Any], evaluated: list[str], settings: ProtocolSpeedSettings, world: Path
) -> list[dict[str, Any]]:
    """Run a command of a stage; return a row per segmenter, or one where the stage has none.

    Args:
        name: of the stage.
        models: segmenters of the command, or [None].
        evaluated: segmenters with results, which are calibrated.
        settings: the settings.
        world: folder of the models.

    Raises:
        GenValError: the command failed, or the output that it reads is not there.
    """
    from genval.results.scenes import folder_name

    stage, outputs = STAGES[name], world / "protocol"
    output = outputs / name
    if stage.reads and not (outputs / stage.reads).is_dir():
        raise GenValError(f"{name} reads the output of {stage.reads}, which is not in {outputs}. Give --overwrite.")
    values = fields(name, models if stage.has_segmenters else evaluated, settings, world)
    command = [word.format(**values) for word in stage.command.split()]
    if stage.has_segmenters:
        command[0] = str(zoo_script(command[0], world))
        earlier = [output / stage.outputs.partition("{model}")[0] / folder_name(model) for model in models]
    else:
        earlier = [output]
    for folder in earlier:
        shutil.rmtree(folder, ignore_errors=True)
    with gpu_use(settings.devices) as used:
        seconds = run_script(command, world / "logs" / f"{name}.log", world)
    batch = values[stage.batch] * (settings.devices if "{devices}" in stage.command else 1)
    loops, counts = [], []
    for model in models:
        files = output.glob(stage.outputs.format(model=model and folder_name(model)))
        times = sorted(file.stat().st_mtime for file in files)
        if not times:
            raise GenValError(f"{name} wrote no files like {stage.outputs} in {output}.")
        loops.append(times[batch - 1 :: batch] or times[-1:])
        counts.append(len(times) * values[stage.per_file])
    start = (seconds - sum(ends[-1] - ends[0] for ends in loops)) / len(loops)
    rows = []
    for model, ends, count in zip(models, loops, counts, strict=True):
        row = {"stage": name, "segmenter": model, "items": count, "seconds": start + ends[-1] - ends[0]}
        steps = [after - before for before, after in itertools.pairwise(ends)]
        if len(steps) < 2:  # not even two rates to compare: the whole command counts as the loop
            rows.append(row | {"start_s": 0.0, "item_s": row["seconds"] / count, "error": 1.0, "busy": None})
            continue
        half = len(steps) // 2
        first, second, mean = (statistics.mean(part) for part in (steps[:half], steps[half:], steps))
        shares = [share for moment, share in used if ends[0] <= moment <= ends[-1]]
        row |= {
            "start_s": start,
            "item_s": mean / batch / values[stage.per_file],
            "error": abs(first - second) / 2 / mean,
        }
        rows.append(row | {"busy": statistics.mean(shares) if shares else None})
    return rows


def fields(name: str, models: Sequence[str], settings: ProtocolSpeedSettings, world: Path) -> dict[str, Any]:
    """Return the values of the fields of a stage's command, which runs or reads these segmenters."""
    size, denoised, detected = SIZES[settings.size]
    return vars(settings) | {
        "world": world,
        "streets": streets(settings, world),
        "outputs": world / "protocol",
        "output": world / "protocol" / name,
        "side": SIDES[size][2],
        "sample": denoised * settings.devices,
        "denoised": denoised,
        "masked": 8,
        "block": min(32, detected),
        "one": 1,
        "objects": OBJECTS,
        "models": ",".join(models),
    }


def zoo_script(script: str, world: Path) -> Path:
    """Write a script that runs another one with the zoo's random weights; return its path."""
    from genval.runtime.files import write_bytes

    path = world / "zoo" / Path(script).name
    values = {"root": str(REPO_ROOT), "zoo": str(world / "zoo"), "script": str(REPO_ROOT / script)}
    write_bytes(path, ZOO_SCRIPT.format(**values).encode())
    return path


@contextlib.contextmanager
def gpu_use(devices: int) -> Iterator[list[tuple[float, float]]]:
    """Give a list that is filled with times and the share of time in which a kernel ran, of each of the first GPUs."""
    used: list[tuple[float, float]] = []
    # nvidia-smi does not read the variable.
    named = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(devices)))
    numbers = ",".join(named.split(",")[:devices])
    query = ["--query-gpu=timestamp,utilization.gpu", "--format=csv,noheader,nounits", "-lms", "250"]
    try:
        process = subprocess.Popen(
            ["nvidia-smi", "-i", numbers, *query], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
    except OSError:
        yield used
        return
    try:
        yield used
    finally:
        process.terminate()
        for line in process.communicate()[0].splitlines():
            moment, _, share = line.partition(", ")
            with contextlib.suppress(ValueError):  # the last line may be cut
                used.append((datetime.strptime(moment, "%Y/%m/%d %H:%M:%S.%f").timestamp(), float(share) / 100))


def hours(name: str, rows: Sequence[dict[str, Any]]) -> tuple[float, float, float | None]:
    """Return the hours of a stage's protocol, their error, and the hours in which the GPU is busy, from its rows."""
    stage = STAGES[name]
    loops = [stage.items * row["item_s"] / 3600 for row in rows]
    each = [stage.commands * row["start_s"] / 3600 + loop for row, loop in zip(rows, loops, strict=True)]
    error = statistics.mean(loop * row["error"] for row, loop in zip(rows, loops, strict=True))
    # Loops that are too short for a reading of the GPU's use take the share of the others.
    seen = [(loop * row["busy"], loop) for row, loop in zip(rows, loops, strict=True) if row["busy"] is not None]
    share = sum(part for part, _ in seen) / sum(loop for _, loop in seen) if seen else None
    busy = share and share * statistics.mean(loops)
    if not stage.has_segmenters:
        return each[0], error, busy
    number = len(each)
    if number > 1:  # the standard error of a mean of a finite population
        error += statistics.stdev(each) / math.sqrt(number) * math.sqrt(1 - number / ZOO)
    return ZOO * statistics.mean(each), ZOO * error, busy and ZOO * busy


def markdown(rows: list[dict[str, Any]]) -> str:
    """The hours of each stage, a table per settings and device, and all rows."""
    parts = []
    keys: list[dict[str, Any]] = []
    for row in rows:
        keys += [row["key"]] if row["key"] not in keys else []
    for key in keys:
        parts += [", ".join(f"{name} {value}" for name, value in key.items()), stage_table(key, rows)]
    return "\n\n".join([*parts, row_table(rows)]) + "\n"


def stage_table(key: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """The hours of each stage of some settings, and their sums; the number of object images is a choice of the user."""
    from genval.runtime.tables import markdown_table, percent

    table, sums = [], [0.0] * 5
    for name, stage in STAGES.items():
        measured = [row for row in rows if row["key"] == key and row["stage"] == name]
        if not measured:
            continue
        if name == "inpaint":
            table.append(sum_row("sum without objects", sums))
        whole, error, busy = hours(name, measured)
        items = stage.items * (ZOO if stage.has_segmenters else 1)
        published = items * PUBLISHED[name] / 3600 if name in PUBLISHED else None
        sample = f"{len(measured)} x {measured[0]['items']}" if stage.has_segmenters else f"{measured[0]['items']}"
        seconds = sum(row["seconds"] for row in measured)
        table.append([name, items, sample, seconds, whole, error, percent(busy and busy / whole), published])
        sums = [one + (more or 0) for one, more in zip(sums, (seconds, whole, error, busy, published), strict=True)]
    table.append(sum_row("sum", sums))
    header = ["stage", "items", "sample", "seconds", "hours", "error, hours", "GPU busy, %", "published, hours"]
    return markdown_table(header, table, digits=2)


def sum_row(title: str, sums: list[float]) -> list[Any]:
    """Return the cells of a sum of seconds, hours, their error, hours in which the GPU is busy, and published hours."""
    seconds, whole, error, busy, published = sums
    return [title, None, "", seconds, whole, error, 100 * busy / whole if busy else None, published]


def row_table(rows: list[dict[str, Any]]) -> str:
    """The rows, as measured."""
    from genval.runtime.tables import markdown_table, percent

    header = ["stage", "segmenter", "devices", "items", "seconds", "start, s", "items/s", "error, %", "GPU busy, %"]
    table = [
        [row["stage"], row["segmenter"] or "", row["key"]["devices"], row["items"], row["seconds"], row["start_s"],
         1 / row["item_s"], percent(row["error"]), percent(row["busy"])]
        for row in rows
    ]  # fmt: skip
    return markdown_table(header, table, digits=2)


if __name__ == "__main__":
    cli.run(main, ProtocolSpeedSettings, __doc__)
