"""Images per second of the zoo's models, of their evaluation and of mmsegmentation's inference, with random weights.

Reads:  the configs that ship with mmsegmentation
Writes: {output}/zoo_speed.json, after every row, and {output}/zoo_speed.md

    python benchmarks/zoo_speed.py --segmenters SegFormer-B0,SegFormer-B5,DLV3+ResNet101 --precisions 32-true,bf16-true

The reference is `EncoderDecoder.predict` in float32 on one image, one window at a time, as mmsegmentation's runner
calls it. The reference and our passes start from uint8 images on the device and end with the logits at the image's
size. "Fed" images start in the host's memory, one batch after another, and end as logits on the device. "Evaluated"
images start and end in the host's memory: they end as predictions and the statistics of all metrics, as relis/eval.py
computes them between reading and writing files. "OOD" images end there as the counts of pixels by score, as
ood_detection/main_gen_ood.py computes them. "Added time" is relative to "fed". "Plain" is the rate of the network's own
code, which is measured before the fused passes if `--channels_last` is given without `--compile`. With `--passes_only`,
neither the reference nor "fed", "evaluated" and "OOD" images are measured. Rows that the JSON has already for the same
settings and device are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

import path_dicts
from genval.runtime import cli
from genval.runtime.errors import GenValError
from genval.runtime.flags import flag
from genval.runtime.settings import comma_list, positive_int

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import Tensor

SIZES = {"full": (1024, 2048), "half": (512, 1024), "tiny": (128, 256)}
KEYS = ("model", "size", "precision", "batch_size", "compile", "channels_last", "device")


@dataclass(frozen=True, kw_only=True)
class ZooSpeedSettings:
    """Settings of benchmarks/zoo_speed.py."""

    SCRIPT: ClassVar[str] = "benchmarks/zoo_speed"

    segmenters: tuple[str, ...] = flag(tuple(path_dicts.ZOO), "names; by default all 42", type=comma_list)
    size: str = flag("full", "1024x2048, 512x1024 or 128x256", choices=tuple(SIZES))
    precisions: tuple[str, ...] = flag(("32-true", "bf16-true"), "", type=comma_list)
    batch_size: int = flag(1, "images per forward pass", type=positive_int)
    compile: Literal["on", "off"] = flag("off", "compile the segmenter", bare="on")
    channels_last: bool = flag(False, "use the channels-last memory format")
    passes_only: bool = flag(False, "measure plain and fused passes only")
    seconds: float = flag(5.0, "seconds of each measurement, of at least three passes")
    accelerator: str = flag("cuda", "")
    output: str = flag("results/zoo_speed", "")
    overwrite: bool = flag(False, "measure rows again")
    preset: str | None = None


def main(settings: ZooSpeedSettings) -> None:
    import torch

    from genval.runtime.files import read_json, write_bytes, write_json
    from genval.runtime.paths import resolve

    unknown = [name for name in settings.segmenters if name not in path_dicts.ZOO]
    if unknown:
        raise GenValError(f"Not in the zoo: {', '.join(unknown)}. See: python relis/eval.py --list_models")
    device = torch.device(settings.accelerator)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    path = resolve(settings.output) / "zoo_speed.json"
    rows: list[dict[str, Any]] = read_json(path) if path.exists() else []
    for model in settings.segmenters:
        shared = {
            "batch_size": settings.batch_size,
            "compile": settings.compile == "on",
            "channels_last": settings.channels_last,
            "device": name,
        }
        wanted = [
            {"model": model, "size": settings.size, "precision": precision, **shared}
            for precision in settings.precisions
        ]
        whole = [row for row in rows if settings.passes_only or row["fed_images_per_s"] is not None]
        present = [{key: row[key] for key in KEYS} for row in whole]
        wanted = [row for row in wanted if settings.overwrite or row not in present]
        if not wanted:
            continue
        for row in measure(model, wanted, device, settings.seconds, settings.passes_only):
            rows = [old for old in rows if any(old[key] != row[key] for key in KEYS)] + [row]
            print(markdown(rows[-1:]).splitlines()[-1], flush=True)
            write_json(path, rows)
            write_bytes(path.with_suffix(".md"), markdown(rows).encode())
    print(f"wrote {path} and zoo_speed.md: {len(rows)} rows")


def measure(
    model: str, wanted: list[dict[str, Any]], device: torch.device, seconds: float, passes_only: bool
) -> list[dict[str, Any]]:
    """Build a model with random weights, time mmsegmentation's inference, then ours in every wanted setting."""
    import copy

    import torch

    from genval.segmenters.openmmlab import OpenMMLabSegmenter, build_network

    torch.manual_seed(0)
    entry = path_dicts.ZOO[model]
    with device:  # drawing random weights on the CPU takes seconds
        network: Any = build_network(entry["config"], entry.get("overrides")).to(device)
    images = smooth_images(wanted[0]["batch_size"], SIZES[wanted[0]["size"]]).to(device)
    reference = None
    try:
        if not passes_only:
            reference = timed(lambda: mmseg_inference(network, images[:1]), device, seconds)
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        print(f"mmsegmentation itself fails at this size: {str(error).partition(chr(10))[0]}")
    rows = []
    for settings in wanted:
        own = copy.deepcopy(network) if settings is not wanted[-1] else network
        segmenter = OpenMMLabSegmenter(model, own, settings["precision"])
        if settings["channels_last"]:
            segmenter.use_channels_last()
        plain = None
        if settings["compile"]:
            segmenter.compile_network()
        elif settings["channels_last"]:
            plain = timed(lambda segmenter=segmenter: segmenter(images), device, seconds)
            segmenter.fuse()
        ours = timed(lambda segmenter=segmenter: segmenter(images), device, seconds)
        rates: tuple[float | None, ...] = (None, None, None)
        if not passes_only:
            rates = evaluate(segmenter, images, ours["logits"], device, seconds)
        forward, evaluated, detected = rates
        alike = reference and (ours["logits"][:1].argmax(1) == reference["logits"].argmax(1)).float().mean().item()
        rows.append(
            {
                **settings,
                "mode": segmenter.test_mode,
                "reference_images_per_s": reference and reference["passes_per_s"],
                "plain_images_per_s": plain and plain["passes_per_s"] * len(images),
                "images_per_s": ours["passes_per_s"] * len(images),
                "fed_images_per_s": forward,
                "evaluated_images_per_s": evaluated,
                "ood_images_per_s": detected,
                "first_pass_s": ours["first_pass_s"],
                "peak_gib": ours["peak_gib"],
                "pixels_alike": alike,
                "finite": bool(ours["logits"].isfinite().all()),
                "torch": torch.__version__,
            }
        )
    return rows


def mmseg_inference(network: Any, images: Tensor) -> Tensor:
    """Logits by mmsegmentation's own preprocessing and inference, from the BGR images that its loader gives."""
    import torch
    from mmseg.structures import SegDataSample

    shape = tuple(images.shape[-2:])
    samples = [SegDataSample(metainfo={"ori_shape": shape, "img_shape": shape, "pad_shape": shape}) for _ in images]
    data = network.data_preprocessor({"inputs": list(images.flip(1)), "data_samples": samples}, training=False)
    with torch.no_grad():
        results = network.predict(data["inputs"], data["data_samples"])
    return torch.stack([result.seg_logits.data for result in results])


def timed(run: Callable[[], Tensor], device: torch.device, seconds: float) -> dict[str, Any]:
    """Call `run` once, then for `seconds`, at least three times: passes per second of the median pass."""
    import statistics
    import time

    import torch

    def once() -> tuple[float, Tensor]:
        start = time.perf_counter()
        logits = run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start, logits

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    first, logits = once()
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        times.append(once()[0])
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
    return {"passes_per_s": 1 / statistics.median(times), "first_pass_s": first, "peak_gib": peak, "logits": logits}


def evaluate(
    segmenter: Any, images: Tensor, logits: Tensor, device: torch.device, seconds: float
) -> tuple[float, float, float]:
    """Measure images per second from the host's memory to logits on the device, and to results in the host's memory.

    Returns:
        The rates to logits, to the statistics of an evaluation, and to the counts of OOD detection.
    """
    import torch

    from genval.evaluation.inference import launch_batch, launch_ood_batch
    from genval.segmenters.prediction import infer

    batch, names = images.permute(0, 2, 3, 1).cpu().numpy(), [str(index) for index in range(len(images))]
    # Labels in patches, which the model predicts in most places; a tenth of the rows is void.
    labels = logits[:, :, ::32, ::32].argmax(1).repeat_interleave(32, 1).repeat_interleave(32, 2)
    labels[:, : labels.shape[1] // 10] = 255
    train_ids = labels.byte().cpu().numpy()
    kinds = (train_ids == 0).astype(np.uint8)  # the first class stands for the object

    def forward() -> Callable[[], Any]:
        with torch.inference_mode():
            infer(segmenter, batch, device)
        return torch.cuda.current_stream(device).record_event().synchronize if device.type == "cuda" else lambda: None

    def everything() -> Callable[[], Any]:
        return launch_batch(segmenter, batch, train_ids, names, device)

    def detection() -> Callable[[], Any]:
        return launch_ood_batch(segmenter, batch, kinds, names, device)

    passes = (forward, everything, detection)
    forward_rate, evaluated_rate, ood_rate = (batches_per_s(launch, seconds) * len(images) for launch in passes)
    return forward_rate, evaluated_rate, ood_rate


def batches_per_s(launch: Callable[[], Callable[[], Any]], seconds: float) -> float:
    """Batches per second, each launched before the previous one is finished; two for warm-up, then at least six."""
    import itertools
    import time

    from genval.runtime.background import one_behind

    finished = (wait() for wait in one_behind(launch() for _ in itertools.count()))
    next(finished), next(finished)
    start, done = time.perf_counter(), 0
    while done < 6 or time.perf_counter() - start < seconds:
        next(finished)
        done += 1
    return done / (time.perf_counter() - start)


def smooth_images(count: int, size: tuple[int, int]) -> Tensor:
    """Random blotches, uint8 (count, 3, *size): noise alone would leave no structure after the first layers."""
    import torch

    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, size[0] // 16, size[1] // 16, generator=generator) * 255
    return torch.nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 255).to(torch.uint8)


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a table, in the zoo's order."""
    from genval.runtime.tables import markdown_table

    order = list(path_dicts.ZOO)
    ordered = sorted(rows, key=lambda row: (row["device"], row["size"], order.index(row["model"]), row["precision"]))
    table = []
    for row in ordered:
        extras = [name for name in ("compile", "channels_last") if row[name]]
        reference, alike, plain = row["reference_images_per_s"], row["pixels_alike"], row.get("plain_images_per_s")
        fed, evaluated, detected = (row[f"{name}_images_per_s"] for name in ("fed", "evaluated", "ood"))
        table.append(
            [row["model"], row["mode"], row["size"], row["precision"], row["batch_size"], " ".join(extras),
             reference, plain, row["images_per_s"], reference and row["images_per_s"] / reference,
             plain and row["images_per_s"] / plain, alike and 100 * alike,
             fed, evaluated, fed and 100 * (fed / evaluated - 1), detected, fed and 100 * (fed / detected - 1),
             row["peak_gib"], "yes" if row["finite"] else "no"]
        )  # fmt: skip
    header = ["segmenter", "test mode", "size", "precision", "batch", "with", "mmseg images/s", "plain images/s",
              "images/s", "ratio to mmseg", "ratio to plain", "alike %", "fed images/s", "evaluated images/s",
              "added time %", "OOD images/s", "added time %", "GiB", "finite"]  # fmt: skip
    return markdown_table(header, table, digits=3) + "\n"


if __name__ == "__main__":
    cli.run(main, ZooSpeedSettings, __doc__)
