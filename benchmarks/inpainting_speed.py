"""Speed of inpainting and refinement on one device with random weights of full size, compared with the published code.

Reads:  nothing: the weights and the frames are made here
Writes: --output, JSON; prints each row when it is measured, and at the end a table in Markdown

    python benchmarks/inpainting_speed.py --output results/inpainting_speed.json

The published code is diffusers' StableDiffusionInpaintPipeline in float16, one image at a time: 512x512, 50 steps
for `inpaint`; the whole frame of 1024x2048, 32 of 50 steps for `refine`. The rows named published run exactly that.
All other rows run `genval.diffusion.inpainting.model.start_inpainting` as the scripts do, including text encoding,
decoding and the copy to the CPU; those named stage run a script's whole stage, including PNG files of 1024x2048.
Warm-up (compiling) is reported separately. `psnr_dB` compares a row's first image with the published row's: same noise
and image, other precision.
"""

from __future__ import annotations

import gc
import json
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

from genval.runtime import cli
from genval.runtime.errors import GenValError
from genval.runtime.flags import flag
from genval.runtime.paths import resolve
from genval.runtime.settings import comma_list, positive_int


@dataclass(frozen=True)
class Row:
    """The parameters of a row: `side` is the side of the crop at full size, `batch` the batch size."""

    stage: str
    batch: int
    side: int = 512
    precision: str = "bf16"
    compiled: bool = True
    sampler: str = "ddim"
    steps: int = 50
    kind: str = "ours"


ROWS = {
    "inpaint_published": Row("inpaint", 1, precision="fp16", compiled=False, kind="published"),
    "inpaint_eager_16": Row("inpaint", 16, precision="fp16", compiled=False),
    "inpaint_16": Row("inpaint", 16),
    "inpaint_32": Row("inpaint", 32),
    "inpaint_32_fp16": Row("inpaint", 32, precision="fp16"),
    "inpaint_32_fast": Row("inpaint", 32, sampler="dpm++", steps=15),
    "inpaint_stage": Row("inpaint", 32, kind="stage"),
    "refine_published": Row("refine", 1, precision="fp16", compiled=False, kind="published"),
    "refine_512_eager_16": Row("refine", 16, precision="fp16", compiled=False),
    "refine_512_32": Row("refine", 32),
    "refine_768_16": Row("refine", 16, side=768),
    "refine_stage": Row("refine", 32, kind="stage"),
}
DEFAULT_ROWS = "inpaint_published,inpaint_32,inpaint_stage,refine_published,refine_512_32,refine_stage,refine_768_16"
# Guidance and strength of the published scripts.
SETTINGS = {"inpaint": (15.0, 1.0), "refine": (7.5, 0.65)}
SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
SIZES: dict[str, dict[str, Any]] = {
    "sd15": {
        "scale": 1,
        "unet": {"cross_attention_dim": 768, "attention_head_dim": 8},
        "vae": {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2},
        "text": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    },
    "tiny": {
        "scale": 8,
        "unet": {
            "block_out_channels": (32, 32, 32, 32),
            "layers_per_block": 1,
            "cross_attention_dim": 32,
            "attention_head_dim": 2,
        },
        "vae": {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1},
        "text": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4},
    },
}


@dataclass(frozen=True, kw_only=True)
class InpaintingSpeedSettings:
    """Settings of benchmarks/inpainting_speed.py."""

    SCRIPT: ClassVar[str] = "benchmarks/inpainting_speed"

    size: str = flag("sd15", "tiny is a smoke test, 8 times smaller", choices=tuple(SIZES))
    rows: tuple[str, ...] = flag(tuple(DEFAULT_ROWS), f"known: {', '.join(ROWS)}", type=comma_list)
    repeats: int = flag(2, "timed batches per row; the fastest counts", type=positive_int)
    stage_batches: int = flag(4, "timed batches of the rows named stage", type=positive_int)
    num_workers: int = flag(8, "threads for files, of rows named stage", type=positive_int)
    steps: int | None = flag(None, "of every row, in place of its own: for a smoke test", type=positive_int)
    eager: bool = flag(False, "generate no kernels in any row: for a smoke test")
    output: str = flag("results/inpainting_speed.json", "")
    preset: str | None = None


def main(settings: InpaintingSpeedSettings) -> None:
    import torch

    from genval.runtime.files import write_json
    from genval.runtime.tables import markdown_table

    unknown = [name for name in settings.rows if name not in ROWS]
    if unknown:
        raise GenValError(f"--rows: unknown {', '.join(unknown)}. Known: {', '.join(ROWS)}.")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bench = Benchmark(settings, device)
    machine = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    rows: list[dict[str, Any]] = []
    # The published rows are measured first: the others are compared with them, and a compiled decoder stays compiled.
    for name in sorted(settings.rows, key=lambda name: (ROWS[name].kind != "published", ROWS[name].compiled)):
        try:
            rows.append(bench.measure(name))
        except Exception as error:  # one row's failure leaves the others their time on the device
            traceback.print_exc()
            rows.append({"row": name, "error": f"{type(error).__name__}: {error}"[:500]})
        print(json.dumps(rows[-1]), flush=True)
        write_json(
            resolve(settings.output),
            {"device": machine, "torch": torch.__version__, "settings": vars(settings), "rows": rows},
        )
    measured = [row for row in rows if "error" not in row]
    if measured:
        print(markdown_table(list(measured[0]), [list(row.values()) for row in measured], digits=3))
    print(f"wrote {settings.output}")


class Benchmark:
    """Builds the model once and measures rows on it."""

    def __init__(self, settings: InpaintingSpeedSettings, device: Any) -> None:
        self.args, self.device = settings, device
        self.scale = SIZES[settings.size]["scale"]
        self.model = build(settings.size, device)
        self.published: dict[str, tuple[float, Any]] = {}

    def measure(self, name: str) -> dict[str, Any]:
        """Measure one row: seconds per image and the derived values."""
        import torch

        row = ROWS[name]
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        if row.kind == "stage":
            warm_up, seconds, count = self.stage(row)
            image = None
        else:
            run = self.proxy(row) if row.kind == "published" else self.ours(row)
            warm_up, _ = self.time(run)
            seconds, image = min((self.time(run) for _ in range(self.args.repeats)), key=lambda timed: timed[0])
            count = row.batch
        per_image = seconds / count
        if row.kind == "published":
            self.published[row.stage] = per_image, image
        published, reference = self.published.get(row.stage, (None, None))
        comparable = image is not None and reference is not None and image.shape == reference.shape
        return {
            "row": name,
            "batch": row.batch,
            "precision": row.precision,
            "steps": self.config(row).taken,
            "s/image": round(per_image, 4),
            "images/s": round(1 / per_image, 3),
            "x published": round(published / per_image, 2) if published else None,
            "GiB": round(torch.cuda.max_memory_allocated() / 2**30, 1) if self.device.type == "cuda" else None,
            "warm-up s": round(warm_up, 1),
            "psnr_dB": round(psnr(image, reference), 1) if comparable and row.kind == "ours" else None,
        }

    def config(self, row: Row) -> Any:
        from genval.diffusion.settings import InpaintingConfig

        guidance, strength = SETTINGS[row.stage]
        return InpaintingConfig(self.args.steps or row.steps, guidance, strength, row.sampler)

    def time(self, run: Callable[[], Any]) -> tuple[float, Any]:
        """Return the seconds of a call and the first of its images."""
        import torch

        start = time.perf_counter()
        images = run()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start, images[0]

    def prepare(self, row: Row) -> Any:
        """Return the model in the row's precision and memory format, after freeing the memory of earlier rows."""
        import torch

        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[row.precision]
        # Not all float16 kernels exist on a CPU.
        self.model.to(self.device, dtype if self.device.type == "cuda" else torch.float32)
        for network in (self.model.unet, self.model.vae):
            network.to(memory_format=torch.contiguous_format)
        return self.model

    def ours(self, row: Row) -> Callable[[], Any]:
        """Return a function that inpaints a batch as the scripts do."""
        import torch

        from genval.diffusion.inpainting.model import make_inpainter, start_inpainting

        model, config = self.prepare(row), self.config(row)
        denoiser = make_inpainter(model, config, row.compiled and not self.args.eager, graphed=True)
        side = row.side // self.scale
        batch = inputs(row.batch, side, side)

        def run() -> Any:
            with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
                return start_inpainting(denoiser, batch, config, row.batch)().images

        return run

    def proxy(self, row: Row) -> Callable[[], Any]:
        """Return a function that inpaints one image (or the whole frame) with diffusers' pipeline in float16."""
        import torch
        from diffusers import StableDiffusionInpaintPipeline

        from genval.diffusion.inpainting.model import inpainting_channels
        from genval.diffusion.sampling.generation import item_noise, make_scheduler

        model, config = self.prepare(row), self.config(row)
        pipeline = StableDiffusionInpaintPipeline(
            vae=model.vae,
            text_encoder=model.text_encoder,
            tokenizer=None,
            unet=model.unet,
            scheduler=make_scheduler(SCHEDULE, "ddim"),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        height, width = (512, 512) if row.stage == "inpaint" else (1024, 2048)
        batch = inputs(1, height // self.scale, width // self.scale)
        height, width = batch.masks.shape[1:]
        pixels = torch.from_numpy(batch.images).to(self.device).permute(0, 3, 1, 2) / 127.5 - 1
        masks = torch.from_numpy(batch.masks).to(self.device)
        noise = item_noise(batch.seeds, (4, height // model.downscale, width // model.downscale)).to(self.device)

        def run() -> Any:
            text = model.encode_text(["", *batch.prompts])
            # At full strength the same noise makes the same image as ours; below it the pipeline adds its own.
            given = {"latents": noise.to(model.dtype)} if config.denoising_strength == 1 else {}
            images = pipeline(
                prompt_embeds=text.states[1:],
                negative_prompt_embeds=text.states[:1],
                image=pixels,
                mask_image=masks[:, None].float(),
                masked_image_latents=inpainting_channels(model, pixels, masks)[:, 1:],
                height=height,
                width=width,
                num_inference_steps=config.steps,
                guidance_scale=config.guidance_scale,
                strength=config.denoising_strength,
                output_type="np",
                **given,
            ).images
            return (images * 255).round().astype("uint8")

        return run

    def stage(self, row: Row) -> tuple[float, float, int]:
        """Return the seconds of the first batch, those of all later batches, and their number of images."""
        import torch

        from genval.artifacts.stage import run_stage
        from genval.datasets.items import Item
        from genval.datasets.ood_objects import find_object_images
        from genval.datasets.placement import PlacementConfig
        from genval.diffusion.inpainting.stages import ObjectStage, RefinementStage, plan_objects, plan_refinements

        model, config = self.prepare(row), self.config(row)
        size, count = row.side // self.scale, row.batch * (self.args.stage_batches + 1)
        compiled = row.compiled and not self.args.eager
        with tempfile.TemporaryDirectory() as folder:
            image, mask = write_frame(Path(folder), 1024 // self.scale, 2048 // self.scale)
            frames = [Item("frame", image, mask, "clean", "city")]
            objects = plan_objects(["lion"], count, "A photo of {article} {object}", 0)
            options = {"batch_size": row.batch, "compiled": compiled}
            stage: Any = ObjectStage(
                Path(folder) / "inpainted", {}, model, config, frames, PlacementConfig(), size, **options
            )
            if row.stage == "refine":
                write_inpainted(stage, objects)
                images = find_object_images(stage.folder, stage.folder)
                objects = plan_refinements(images, "{object}", 0)
                stage = RefinementStage(Path(folder) / "refined", {}, model, config, size, **options)
            seconds = []
            for part in (objects[: row.batch], objects):
                start = time.perf_counter()
                run_stage(stage, part, batch_size=row.batch, num_workers=self.args.num_workers)
                if self.device.type == "cuda":
                    torch.cuda.synchronize()
                seconds.append(time.perf_counter() - start)
        return seconds[0], seconds[1], count - row.batch


def write_frame(folder: Path, height: int, width: int) -> tuple[Path, Path]:
    """Write a frame with camera noise, so that the file has a realistic size, and a mask with a road."""
    import cv2
    import numpy as np

    from genval.runtime.files import write_png

    rng = np.random.default_rng(0)
    coarse = cv2.resize(rng.integers(0, 256, (16, 32, 3), dtype=np.uint8), (width, height)).astype(np.int16)
    frame = np.clip(coarse + rng.integers(-6, 7, coarse.shape), 0, 255).astype(np.uint8)
    mask = np.full((height, width), 11, np.uint8)
    mask[height // 2 :] = 7
    write_png(folder / "frame.png", frame)
    write_png(folder / "mask.png", mask)
    return folder / "frame.png", folder / "mask.png"


def write_inpainted(stage: Any, items: Sequence[Any]) -> None:
    """Write the input of refinement (frames and boxes) without inpainting."""
    import shutil

    from genval.runtime.files import write_json

    for item in items:
        loaded = stage.load(item)
        box, number = loaded.box, item.id.rpartition("/")[2]
        write_json(
            stage.folder / f"{item.id}_pos.json",
            {f"{number}.png": {"pos_mask": [box.top, box.left], "size_mask": box.side}},
        )
        shutil.copyfile(stage.frames[0].image, stage.folder / f"{item.id}.png")


def inputs(batch: int, height: int, width: int) -> Any:
    """Return images, boxes, prompts and seeds of a batch."""
    import cv2
    import numpy as np

    from genval.diffusion.inpainting.model import InpaintingBatch

    rng = np.random.default_rng(0)
    images = np.stack(
        [cv2.resize(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), (width, height)) for _ in range(batch)]
    )
    masks = np.zeros((batch, height, width), bool)
    masks[:, height // 6 : 5 * height // 6, width // 6 : 5 * width // 6] = True
    return InpaintingBatch(images, masks, [f"A photo of a lion {i}" for i in range(batch)], [""] * batch, range(batch))


def build(size: str, device: Any) -> Any:
    """Return an inpainting model of full size with random float32 weights, made on the device."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from genval.diffusion.models.pipelines import StableDiffusion

    config = SIZES[size]
    torch.manual_seed(0)
    with torch.device(device):
        return StableDiffusion(
            folder=resolve("."),
            vae=AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                scaling_factor=0.18215,
                **config["vae"],
            ),
            text_encoder=CLIPTextModel(CLIPTextConfig(**config["text"])),
            tokenizer=dummy_tokenizer,
            unet=UNet2DConditionModel(in_channels=9, sample_size=64, **config["unet"]),
            scheduler_config=SCHEDULE,
        )


def dummy_tokenizer(prompts: Sequence[str], **_: Any) -> Any:
    """Return a tokenizer of single letters. Random weights ignore the meaning of prompts, but prompts must differ."""
    import torch

    rows = [[49406, *map(ord, prompt[:75])] for prompt in prompts]
    return SimpleNamespace(input_ids=torch.tensor([row + [49407] * (77 - len(row)) for row in rows]))


dummy_tokenizer.model_max_length = 77  # type: ignore[attr-defined]


def psnr(image: Any, reference: Any) -> float:
    """Return the peak signal-to-noise ratio of two uint8 images in dB."""
    import numpy as np

    error = np.mean((image.astype(np.float64) - reference) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


if __name__ == "__main__":
    cli.run(main, InpaintingSpeedSettings, __doc__)
