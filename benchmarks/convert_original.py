"""Seconds and memory that a full-size file of the original format takes to load: Stable Diffusion 1.5 and a ControlNet.

Reads:  nothing, or --keys, a JSON (or .json.gz) of key -> [shape, dtype], or of several such tables by name (--table)
Writes: a file of random weights, 5.7 GB, and a ControlNet folder in a temporary folder, removed at the end

    python benchmarks/convert_original.py
"""

from __future__ import annotations

import gzip
import json
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import ClassVar

from genval.runtime import cli
from genval.runtime.flags import flag
from genval.runtime.paths import resolve

PUBLISHED = {
    "unet": {"cross_attention_dim": 768},
    "vae": {
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
    },
    "text": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    "scheduler": {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
}


@dataclass(frozen=True, kw_only=True)
class ConvertOriginalSettings:
    """Settings of benchmarks/convert_original.py."""

    SCRIPT: ClassVar[str] = "benchmarks/convert_original"

    keys: str | None = flag(None, "key list to make the file of, in place of the published sizes")
    table: str | None = flag(None, "which of the tables in --keys")
    temporary: str | None = flag(None, "folder with 8 GB of room (default: the system's)")
    suffix: str = flag(".ckpt", "of the file", choices=(".ckpt", ".safetensors"))
    preset: str | None = None


def published_shapes() -> dict[str, list[int]]:
    """Keys and shapes by the project's own names, of models without memory."""
    from accelerate import init_empty_weights
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from genval.diffusion.models.controlnet import add_control
    from genval.diffusion.models.pipelines import StableDiffusion
    from genval.diffusion.original.writing import original_state

    with init_empty_weights():
        vae, unet = AutoencoderKL(**PUBLISHED["vae"]), UNet2DConditionModel(**PUBLISHED["unet"])
        text = CLIPTextModel(CLIPTextConfig(vocab_size=49408, max_position_embeddings=77, **PUBLISHED["text"]))
        base = StableDiffusion(Path(), vae, text, None, unet, PUBLISHED["scheduler"])
        state = original_state(base, add_control(base))
    return {key: list(tensor.shape) for key, tensor in state.items()}


def write_file(path: Path, shapes: dict[str, list[int]]) -> None:
    """A file of random weights; the noise schedule, which loading compares, is the published one."""
    import torch
    from diffusers import DDPMScheduler
    from safetensors.torch import save_file

    state = {key: torch.empty(shape).normal_(std=0.02) for key, shape in shapes.items()}
    state["alphas_cumprod"] = DDPMScheduler(**PUBLISHED["scheduler"]).alphas_cumprod
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state, "epoch": 0}, path)
    # What the disk still has to write would be counted as loading.
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def convert(path: Path) -> str:
    """Load the whole file in this process and write its ControlNet as a folder; seconds and peak memory in words."""
    import resource
    import time

    from genval.diffusion.models.controlnet import load_controlnet, save_controlnet
    from genval.diffusion.models.pipelines import load_base

    begin = time.perf_counter()
    from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel  # noqa: F401
    from transformers import CLIPTextModel  # noqa: F401

    start = time.perf_counter()
    base = load_base(path)
    controlnet = load_controlnet(path, base)
    loaded = time.perf_counter() - start
    loading = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    save_controlnet(controlnet, path.parent / "controlnet")
    written = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    models = [*base.models, controlnet]
    count = sum(parameter.numel() for model in models for parameter in model.parameters()) / 1e6
    return (
        f"{path.stat().st_size / 1e9:.1f} GB, {count:.0f} million parameters: base and ControlNet loaded in "
        f"{loaded:.1f} s with {loading:.1f} GiB at most, the ControlNet's folder written after {written:.1f} s with "
        f"{peak:.1f} GiB (and {start - begin:.1f} s to import the libraries)"
    )


def main(settings: ConvertOriginalSettings) -> None:
    if settings.keys:
        data = resolve(settings.keys).read_bytes()
        tables = json.loads(gzip.decompress(data) if settings.keys.endswith(".gz") else data)
        shapes = {key: entry[0] for key, entry in (tables[settings.table] if settings.table else tables).items()}
    else:
        shapes = published_shapes()
    with tempfile.TemporaryDirectory(dir=settings.temporary) as folder:
        path = Path(folder) / f"original{settings.suffix}"
        for task, arguments in ((write_file, (path, shapes)), (convert, (path,))):
            # A process of its own each: peak memory is that of the loading alone.
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                result = pool.submit(task, *arguments).result()
    print(result)


if __name__ == "__main__":
    cli.run(main, ConvertOriginalSettings, __doc__)
