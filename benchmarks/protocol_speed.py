"""Hours that the evaluations of the paper's protocol take on one device: relis/eval.py with random weights.

Reads:  nothing: streets are rendered at Cityscapes' size, and the zoo's networks get random weights
Writes: {output}/: the streets, the weights, the logs of the commands, protocol_speed.json and protocol_speed.md

    python benchmarks/protocol_speed.py --segmenters SegFormer-B0,DLV3+ResNet101 --images 64

Every segmenter is one command of relis/eval.py, as in reproduce.py. "First" is the time from the command to the first
written result, "rate" that between the first and the last result, and "busy" the share of the command's time in which a
kernel ran on the GPU. The time of a segmenter's whole protocol is first + 6,447 images / rate, and its error is that of
the rate: half the difference between both halves of the images. Generation, objects and calibration are not part of it.
Rows of the same settings and device that are already in the JSON are kept.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import path_dicts
from genval.runtime import cli
from genval.runtime.errors import GenValError
from genval.runtime.flags import flag
from genval.runtime.paths import REPO_ROOT, resolve
from genval.runtime.settings import Compile, comma_list, positive_int

SIZES = {"full": (1024, 2048), "tiny": (64, 128)}
# Images that the protocol evaluates with each segmenter: five generated sets of 512, four corrupted ones and the clear
# set of 500, the four conditions of ACDC and IDD.
PROTOCOL_IMAGES = 5 * 512 + 4 * 500 + 500 + 406 + 981
# Runs a script with the zoo's weights in another folder.
RUN = """
import path_dicts, runpy, sys
path_dicts.CHECKPOINT_ROOT = sys.argv.pop(1)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@dataclass(frozen=True, kw_only=True)
class ProtocolSpeedSettings:
    """Settings of benchmarks/protocol_speed.py."""

    SCRIPT: ClassVar[str] = "benchmarks/protocol_speed"

    segmenters: tuple[str, ...] = flag(tuple(path_dicts.ZOO), "names; by default all 42", type=comma_list)
    images: int = flag(32, "images per segmenter, at least 4 batches", type=positive_int)
    size: str = flag("full", "1024x2048 or 64x128", choices=tuple(SIZES))
    save: str = flag("predictions,logits", "as for relis/eval.py")
    batch_size: int = flag(4, "images per forward pass", type=positive_int)
    precision: str = flag("bf16-true", "")
    compile: Compile = flag("off", "compile the segmenter", bare="on")
    accelerator: str = flag("auto", "")
    num_workers: int | None = flag(None, "as for relis/eval.py", type=positive_int)
    output: str = flag("results/protocol_speed", "")
    overwrite: bool = flag(False, "measure rows again")
    preset: str | None = None


def main(settings: ProtocolSpeedSettings) -> None:
    from genval.runtime.files import read_json, write_bytes, write_json

    if settings.images < 4 * settings.batch_size:
        raise GenValError(f"--images: expected at least 4 batches of {settings.batch_size}, found {settings.images}.")
    unknown = [name for name in settings.segmenters if name not in path_dicts.ZOO]
    if unknown:
        raise GenValError(f"Not in the zoo: {', '.join(unknown)}. See: python relis/eval.py --list_models")
    folder = resolve(settings.output)
    render(settings, folder)
    path = folder / "protocol_speed.json"
    rows: list[dict[str, Any]] = read_json(path) if path.exists() else []
    for model in settings.segmenters:
        key = row_key(settings, model)
        if not settings.overwrite and any(row["key"] == key for row in rows):
            continue
        write_weights(model, folder / "weights")
        row = {"key": key, **evaluate(settings, model, folder)}
        rows = [old for old in rows if old["key"] != key] + [row]
        write_json(path, rows)
        write_bytes(path.with_suffix(".md"), markdown(rows).encode())
        print(markdown([row]).splitlines()[2], flush=True)
    print(markdown(rows).splitlines()[-1])
    print(f"wrote {path} and {path.stem}.md: {len(rows)} rows")


def row_key(settings: ProtocolSpeedSettings, model: str) -> dict[str, Any]:
    """Return what decides about a row."""
    names = ("images", "size", "save", "batch_size", "precision", "compile", "num_workers")
    return {"model": model, "device": device_name(), **{name: getattr(settings, name) for name in names}}


def device_name() -> str:
    """Return the name of the first GPU, or "CPU"."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[0]
    return "CPU"


def render(settings: ProtocolSpeedSettings, folder: Path) -> None:
    """Render the streets that are missing."""
    height, width = SIZES[settings.size]
    script(
        folder, "render", "mini/render.py", "--output_dir", streets(settings, folder), "--domains", "clear",
        "--num_train", "0", "--num_val", settings.images, "--height", height, "--width", width,
    )  # fmt: skip


def streets(settings: ProtocolSpeedSettings, folder: Path) -> Path:
    return folder / f"streets-{settings.size}"


def write_weights(model: str, folder: Path) -> None:
    """Write a checkpoint of random weights where the zoo's would be, unless there is one."""
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


def script(folder: Path, name: str, *words: object) -> float:
    """Run a script of the project with a log; return its seconds.

    Raises:
        GenValError: it fails.
    """
    log = folder / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", RUN, str(folder / "weights"), *map(str, words)]
    start = time.time()
    with open(log, "w") as stream:
        code = subprocess.run(command, cwd=REPO_ROOT, stdout=stream, stderr=stream).returncode
    if code:
        raise GenValError(f"{words[0]} failed with exit status {code}: see {log}.")
    return time.time() - start


def evaluate(settings: ProtocolSpeedSettings, model: str, folder: Path) -> dict[str, Any]:
    """Evaluate one segmenter on the streets, and time its command."""
    results = folder / "eval"
    optional = [] if settings.num_workers is None else ["--num_workers", settings.num_workers]
    start = time.time()
    with gpu_use() as busy:
        seconds = script(
            folder, model, "relis/eval.py", "--segmenters", model, "--trg_dataset", "Cityscapes",
            "--trg_root", streets(settings, folder) / "cityscapes", "--eval_dir", results, "--overwrite",
            "--save", settings.save, "--logit_pixels", 2000, "--batch_size", settings.batch_size,
            "--precision", settings.precision, "--compile", settings.compile, "--accelerator", settings.accelerator,
            "--devices", 1, "--limit", settings.images, *optional,
        )  # fmt: skip
    times = sorted(path.stat().st_mtime for path in results.glob(f"{model}/*/*/*/statistics/*.json"))
    middle = len(times) // 2
    rate, *halves = (images_per_s(part, settings.batch_size) for part in (times, times[:middle], times[middle:]))
    return {
        "seconds": seconds,
        "first_s": times[0] - start,
        "images_per_s": rate,
        "error": abs(halves[0] - halves[1]) / 2 / rate,
        "last_s": start + seconds - times[-1],
        "busy": sum(busy) / len(busy) if busy else None,
        "protocol_s": times[0] - start + PROTOCOL_IMAGES / rate,
    }


def images_per_s(times: list[float], batch_size: int) -> float:
    """Return the rate at which results were written, from the sorted times; the first batch is written at once."""
    first = min(batch_size, len(times)) - 1
    return (len(times) - 1 - first) / max(times[-1] - times[first], 1e-9)


@contextlib.contextmanager
def gpu_use() -> Iterator[list[float]]:
    """Give a list that is filled with the share of each half second in which the first GPU was busy."""
    shares: list[float] = []
    command = ["nvidia-smi", "-i", "0", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "500"]
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    except OSError:
        yield shares
        return
    try:
        yield shares
    finally:
        process.terminate()
        shares += [float(line) / 100 for line in process.communicate()[0].split() if line.isdecimal()]


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a table."""
    from genval.runtime.tables import markdown_table

    header = ["segmenter", "images", "batch", "precision", "workers", "first s", "images/s", "after s", "whole s",
              "busy %", "protocol min", "error %"]  # fmt: skip
    table = [
        [(key := row["key"])["model"], key["images"], key["batch_size"],
         key["precision"] + (" compiled" if key["compile"] == "on" else ""), key["num_workers"] or "default",
         row["first_s"], row["images_per_s"], row["last_s"], row["seconds"], row["busy"] and 100 * row["busy"],
         row["protocol_s"] / 60, 100 * row["error"]]
        for row in rows
    ]  # fmt: skip
    hours = sum(row["protocol_s"] for row in rows) / 3600
    error = sum(row["protocol_s"] * row["error"] for row in rows) / 3600
    return f"{markdown_table(header, table, digits=1)}\n\n{len(rows)} rows: {hours:.2f} h, error {error:.2f} h\n"


if __name__ == "__main__":
    cli.run(main, ProtocolSpeedSettings, __doc__)
