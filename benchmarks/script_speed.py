"""Seconds of whole commands, from the start of a script to its end, with random weights of full size.

Reads:  nothing: the weights and frames are made at random
Writes: --folder, with the models (14 GB), the frames, the logs and what the scripts write; --output, JSON; prints each
        row when it is measured, and at the end a table in Markdown

    python benchmarks/script_speed.py --rows transfer_folder,transfer_checkpoint --num_images 512

A row is one command of `ROWS`, run as a subprocess. `first batch` is the time from the start of the process until the
first batch is computed; `loop` is the rate from then to the end, with writing and compilation, or, for training, the
rate of the optimiser steps between the first and the last one. A cold row starts with an empty cache of kernels and
hashes; every other row starts with the cache that the rows before it left. --devices 2 measures the same work on two
GPUs.
benchmarks/protocol_speed.py has the whole protocol of the paper, with the models of the same folder.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from genval.runtime import cli
from genval.runtime.errors import GenValError
from genval.runtime.flags import flag
from genval.runtime.fork_server import process_context
from genval.runtime.paths import REPO_ROOT, resolve
from genval.runtime.settings import comma_list, positive_int

DOMAINS = "fog,night,rain,snow,india"
# Sizes of the models, of the frames and of the generated images.
SIDES = {"sd15": (1024, 2048, 512), "tiny": (128, 256, 64)}
FRAMES = 64
# Images with an object, of which --num_images are masked or captioned.
OBJECT_IMAGES = 1024
# Images per forward pass and per optimiser step of training.
TRAINING = {"sd15": (8, 128), "tiny": (2, 4)}
# Folder of the world with the scripts' kernels and hashes.
CACHE = "cache"


@dataclass(frozen=True)
class Row:
    """A command to time.

    Attributes:
        parts: of the world that it reads; keys of `MAKERS`.
        command: the script and its flags, in which {world}, {output}, {count}, {side} and, for training, {batch},
            {accumulate} and {steps} are filled in.
        share: images that it writes, as a multiple of --num_images.
        cold: whether it starts with empty caches.
        after: a row whose output it reads, which is run before it.
    """

    parts: tuple[str, ...]
    command: str
    share: int = 1
    cold: bool = False
    after: str | None = None


_TRANSFER = (
    "ControlNet/style_transfer.py --data_dir {world}/cityscapes --caption street --num_samples {count} --height {side} "
    "--width {side} --output_dir {output} "
)
_FOLDER = _TRANSFER + "--base {world}/base --controlnet {world}/controlnet "
_FAST = "--sampler dpm++ --steps 10 "
_INPAINT = "--inpainting_model {world}/inpainting --size {side} --output_dir {output} --objects lion "
ROWS: dict[str, Row] = {
    "transfer_cold": Row(("frames", "base"), _FOLDER + "--domain fog --compile on", cold=True),
    "transfer_warm": Row(("frames", "base"), _FOLDER + "--domain fog --compile on"),
    "transfer_folder": Row(("frames", "base"), _FOLDER + "--domain fog"),
    "transfer_checkpoint": Row(("frames", "checkpoint"), _TRANSFER + "--controlnet {world}/original.ckpt --domain fog"),
    "transfer_checkpoint_cold": Row(
        ("frames", "checkpoint"), _TRANSFER + "--controlnet {world}/original.ckpt --domain fog", cold=True
    ),
    "transfer_five": Row(("frames", "base"), _FOLDER + f"--domain {DOMAINS}", share=5),
    "transfer_five_fast": Row(("frames", "base"), _FOLDER + _FAST + f"--domain {DOMAINS}", share=5),
    "inpaint": Row(
        ("frames", "inpainting"),
        "ood_objects/sd_inpaint.py --data_dir {world}/cityscapes --num_images {count} --min_box 32 " + _INPAINT,
    ),
    "refine": Row(
        ("frames", "inpainting"),
        "ood_objects/refine_gen_images.py --images_dir {world}/output/inpaint " + _INPAINT,
        after="inpaint",
    ),
    # Random networks detect as many objects as the thresholds allow: one.
    "masks": Row(
        ("objects", "masking", "captioning"),
        "ood_objects/get_masks.py --images_dir {world}/objects --positions_dir {world}/objects --limit {count} "
        "--detector {world}/detector --sam {world}/sam --clip {world}/clip --output_dir {output} "
        "--box_threshold 0 --text_threshold 0 --nms_threshold 0",
    ),
    "captions": Row(
        ("objects", "captioning"),
        "ControlNet/clip_int.py --images {world}/objects/lion/*.png --limit {count} --blip {world}/blip "
        "--clip {world}/clip --output_dir {output}",
    ),
    "train": Row(
        ("frames", "base"),
        "ControlNet/train.py --base {world}/base --controlnet {world}/controlnet --data_dir {world}/cityscapes "
        "--jsonl train.jsonl --resolution {side} --batch_size {batch} --accumulate {accumulate} --max_steps {steps} "
        "--images_every 0 --log_every 1 --output {output}/controlnet --logs_dir {output}/logs",
    ),
}


@dataclass(frozen=True, kw_only=True)
class ScriptSpeedSettings:
    """Settings of benchmarks/script_speed.py."""

    SCRIPT: ClassVar[str] = "benchmarks/script_speed"

    rows: tuple[str, ...] = flag(tuple(ROWS), f"known: {', '.join(ROWS)}", type=comma_list)
    size: str = flag("sd15", "tiny is a smoke test", choices=tuple(SIDES))
    num_images: int = flag(512, "images per domain and per object", type=positive_int)
    devices: int = flag(1, "processes that share the work", type=positive_int)
    flags: str = flag("", "further flags of every script, in one text")
    folder: str = flag("results/script_speed", "models, frames and outputs; models are made once")
    output: str = flag("results/script_speed.json", "")
    preset: str | None = None


def main(settings: ScriptSpeedSettings) -> None:
    from genval.runtime.files import write_json
    from genval.runtime.tables import markdown_table

    unknown = [name for name in settings.rows if name not in ROWS]
    if unknown:
        raise GenValError(f"--rows: unknown {', '.join(unknown)}. Known: {', '.join(ROWS)}.")
    world = resolve(settings.folder) / settings.size
    for part in dict.fromkeys(part for name in settings.rows for part in ROWS[name].parts):
        make_part(part, world, settings.size)
    os.sync()  # what the disk still has to write would be counted
    rows: list[dict[str, Any]] = []
    for name in settings.rows:
        before = ROWS[name].after
        if before and before not in [row["row"] for row in rows]:
            measure(before, world, settings)
        rows.append(measure(name, world, settings))
        print(json.dumps(rows[-1]), flush=True)
        write_json(resolve(settings.output), {"device": device_name(), "settings": vars(settings), "rows": rows})
    print(markdown_table(list(rows[0]), [list(row.values()) for row in rows], digits=3))
    print(f"wrote {settings.output}")


def measure(name: str, world: Path, settings: ScriptSpeedSettings) -> dict[str, Any]:
    """Run a row's command, and return its seconds and rates.

    Raises:
        GenValError: the command failed.
    """
    row = ROWS[name]
    output, log = world / "output" / name, world / "logs" / f"{name}.log"
    shutil.rmtree(output, ignore_errors=True)
    if row.cold:
        shutil.rmtree(world / CACHE, ignore_errors=True)
    values: dict[str, Any] = {
        "world": world,
        "output": output,
        "count": settings.num_images,
        "side": SIDES[settings.size][2],
    }
    batch, per_step = TRAINING[settings.size]
    # An optimiser step has the same number of images with any number of processes.
    values |= {"batch": batch, "accumulate": per_step // (batch * settings.devices)}
    values |= {"steps": max(2, settings.num_images // per_step)}
    command = [part.format(**values) for part in row.command.split()]
    total = run_script([*command, "--devices", settings.devices, *settings.flags.split()], log, world)
    said = log.read_text(encoding="utf-8")
    # Several stages of one process each say it; the first one is the start.
    found = re.search(r"first batch ([\d.]+) s after the start", said)
    first = float(found[1]) if found else None
    images = row.share * settings.num_images
    loop = None if first is None else images / (total - first)
    if name == "train":
        images, loop = values["steps"] * per_step, per_step / seconds_per_step(output / "logs")
    return {
        "row": name,
        "images": images,
        "total, s": round(total, 1),
        "first batch, s": first,
        "loop, images/s": None if loop is None else round(loop, 2),
        "whole, images/s": round(images / total, 2),
        "compiled": "Compiling" in said,
    }


def seconds_per_step(logs: Path) -> float:
    """Return the mean time of a training's optimiser steps, from the end of the first to that of the last but one.

    The last step also writes a checkpoint. A training of two steps has no others.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(next(logs.rglob("events.*")).parent)).Reload().Scalars("loss")
    first, last = events[0], events[-2] if len(events) > 2 else events[-1]
    return (last.wall_time - first.wall_time) / (last.step - first.step)


def run_script(command: Sequence[object], log: Path, world: Path) -> float:
    """Run Python on a command, with the cache of the world and no network; return its seconds.

    Raises:
        GenValError: the command failed; the error has the end of its messages.
    """
    environment = {**os.environ, "GENVAL_CACHE": str(world / CACHE), "HF_HUB_OFFLINE": "1"}
    environment.pop("TORCHINDUCTOR_CACHE_DIR", None)
    log.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with open(log, "wb") as stream:
        words = [sys.executable, *map(str, command)]
        code = subprocess.run(
            words, cwd=REPO_ROOT, env=environment, stdout=stream, stderr=stream, check=False
        ).returncode
    if code:
        end = log.read_text(encoding="utf-8", errors="replace")[-2000:]
        raise GenValError(f"The command of {log} failed with exit code {code}. Its last messages:\n{end}")
    return time.perf_counter() - start


def device_name() -> str:
    """Return the name of the GPU, or "CPU"."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def make_part(part: str, world: Path, size: str) -> None:
    """Make a part of the world, if it is not there, in a process of its own, whose memory is freed."""
    mark = world / f"{part}.made"
    if mark.exists():
        return
    with ProcessPoolExecutor(1, mp_context=process_context()) as pool:
        pool.submit(MAKERS[part], world, size).result()
    mark.touch()


def make_frames(world: Path, size: str) -> None:
    """Frames with coarse labels, noisy images, which take as long to read as photographs, and captions."""
    import numpy as np

    from genval.runtime.files import write_jsonl, write_png

    height, width, _ = SIDES[size]
    rng = np.random.default_rng(0)
    for number in range(FRAMES):
        name = f"city_{number:06d}_000000"
        coarse = rng.choice(np.array([7, 8, 11, 21, 23, 26], np.uint8), (8, 16))
        labels = coarse.repeat(height // 8, 0).repeat(width // 16, 1)
        image = (labels[..., None] * 6 + rng.integers(0, 40, (height, width, 3))).astype(np.uint8)
        write_png(world / f"cityscapes/leftImg8bit/val/city/{name}_leftImg8bit.png", image, noisy=True)
        write_png(world / f"cityscapes/gtFine/val/city/{name}_gtFine_labelIds.png", labels)
    places = [f"val/city/city_{number:06d}_000000" for number in range(FRAMES)]
    lines = [
        {"image": f"leftImg8bit/{place}_leftImg8bit.png", "conditioning_image": f"gtFine/{place}_gtFine_labelIds.png"}
        for place in places
    ]
    write_jsonl(world / "cityscapes/train.jsonl", [{**line, "text": "a street"} for line in lines])


def make_objects(world: Path, size: str) -> None:
    """Images with the box of an object: links to the frames."""
    from genval.runtime.files import write_json

    make_part("frames", world, size)
    height, width, side = SIDES[size]
    folder = world / "objects/lion"
    folder.mkdir(parents=True, exist_ok=True)
    frames = sorted((world / "cityscapes/leftImg8bit").rglob("*.png"))
    for number in range(OBJECT_IMAGES):
        (folder / f"{number}.png").unlink(missing_ok=True)
        (folder / f"{number}.png").hardlink_to(frames[number % FRAMES])
        box = {"pos_mask": [(height - side) // 2, (width - side) // 2], "size_mask": side}
        write_json(folder / f"{number}_pos.json", {f"{number}.png": box})


def make_base(world: Path, size: str) -> None:
    """A base and a ControlNet in diffusers' layout."""
    from diffusers import DDIMScheduler

    from genval.diffusion.models.controlnet import save_controlnet
    from genval.runtime.files import write_json

    base, controlnet = _build(size)
    folder = world / "base"
    for name in ("unet", "vae", "text_encoder", "tokenizer"):
        getattr(base, name).save_pretrained(folder / name)
    DDIMScheduler.from_config(base.scheduler_config).save_config(folder / "scheduler")
    write_json(folder / "model_index.json", {"_class_name": "StableDiffusionPipeline"})
    save_controlnet(controlnet, world / "controlnet")


def make_checkpoint(world: Path, size: str) -> None:
    """A base and a ControlNet in one file of the original format."""
    from genval.diffusion.original.writing import save_original

    save_original(*_build(size), world / "original.ckpt")


def make_inpainting(world: Path, size: str) -> None:
    """An inpainting UNet that shares the other parts of the base."""
    import torch
    from diffusers import UNet2DConditionModel
    from generation_speed import SIZES

    from genval.diffusion.inpainting.model import save_inpainting

    make_part("base", world, size)
    torch.manual_seed(1)
    save_inpainting(UNet2DConditionModel(in_channels=9, **SIZES[size]["unet"]), world / "inpainting", "../base")


def make_masking(world: Path, size: str) -> None:
    """GroundingDINO with its tokenizer, and SAM, in transformers' layout."""
    import torch
    from masking_speed import random_models

    from genval.runtime.files import write_json

    torch.manual_seed(2)
    detector, outliner, tokenizer = random_models(size == "tiny")
    detector.save_pretrained(world / "detector")
    tokenizer.save_pretrained(world / "detector")
    outliner.save_pretrained(world / "sam")
    if size == "tiny":
        write_json(world / "detector/preprocessor_config.json", {"size": {"shortest_edge": 64, "longest_edge": 96}})


def make_captioning(world: Path, size: str) -> None:
    """BLIP (large) and CLIP (ViT-L-14), in transformers' and open_clip's layout."""
    import torch
    from masking_speed import random_tokenizer
    from open_clip import CLIP, get_model_config
    from safetensors.torch import save_model
    from transformers import BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

    from genval.runtime.files import write_json

    torch.manual_seed(3)
    tokenizer = random_tokenizer()
    text: dict[str, Any] = {"vocab_size": len(tokenizer), "bos_token_id": 101, "sep_token_id": 102, "eos_token_id": 102}
    vision: dict[str, Any] = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
    vision |= {"num_attention_heads": 16, "image_size": 384}
    clip = get_model_config("ViT-L-14")
    if size == "tiny":
        small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        text, vision = {**text, **small}, {**small, "image_size": 32}
        clip = {
            "embed_dim": 16,
            "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
            "text_cfg": {**clip["text_cfg"], "width": 16, "heads": 2, "layers": 1},
        }
    config = BlipConfig(text_config=text, vision_config=vision)
    BlipForConditionalGeneration(config).save_pretrained(world / "blip")
    image = {"height": vision["image_size"], "width": vision["image_size"]}
    BlipProcessor(BlipImageProcessor(size=image), tokenizer).save_pretrained(world / "blip")
    (world / "clip").mkdir(exist_ok=True)
    save_model(CLIP(**clip), str(world / "clip/open_clip_model.safetensors"))
    write_json(world / "clip/open_clip_config.json", {"model_cfg": clip, "preprocess_cfg": {}})


def _build(size: str) -> tuple[Any, Any]:
    import torch
    from generation_speed import build

    from genval.diffusion.original.reading import clip_tokenizer

    base, controlnet = build(size, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    base.tokenizer = clip_tokenizer()
    return base.to("cpu"), controlnet.to("cpu")


MAKERS: dict[str, Callable[[Path, str], None]] = {
    "frames": make_frames,
    "objects": make_objects,
    "base": make_base,
    "checkpoint": make_checkpoint,
    "inpainting": make_inpainting,
    "masking": make_masking,
    "captioning": make_captioning,
}


if __name__ == "__main__":
    cli.run(main, ScriptSpeedSettings, __doc__)
