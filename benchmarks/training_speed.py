"""Speed and memory of ControlNet and LoRA training, compared with a plain diffusers loop in the same run.

A row is `[SIZE:][OPTION-...]BATCH`. Ours (`8`, `compile-32`, `sdxl:checkpointing-4`) run as ControlNet/train.py does:
its module, its Trainer, latents and text states cached. Options: compile, cudnn (attention), checkpointing, 8bit, ema,
lora (as ControlNet/train_lora.py, with its default rank and layers; `lora-convs-8` also trains all convolutions).
`proxy-8` is a plain diffusers loop in bfloat16 that encodes images and captions at every step; the published code's
speed is 1/3.5 of it (measured once on the same device). Weights are random, of full size, and made on the device.
Warm-up (compiling, choosing convolution algorithms, one optimiser step) is reported separately. With --devices N, the
processes share the 128 images of an optimiser step. The first row's warm-up then includes the start of the others, and
a row that fails ends the run. Memory is that of the first device.

Reads:  nothing
Writes: OUTPUT (JSON) after each row, if given; prints a Markdown table

    python benchmarks/training_speed.py --output results/benchmarks/training_speed.json
    python benchmarks/training_speed.py --rows proxy-lora-8,lora-8,lora-compile-8,lora-compile-32
    python benchmarks/training_speed.py --rows compile-32 --devices 2
"""

from __future__ import annotations

import dataclasses
import gc
import os
import string
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from genval.runtime import cli
from genval.runtime.errors import GenValError
from genval.runtime.flags import flag
from genval.runtime.paths import resolve
from genval.runtime.settings import comma_list, positive_int

if TYPE_CHECKING:
    import torch

    from genval.diffusion.models.pipelines import StableDiffusion, TextStates
    from genval.diffusion.training.module import DenoisingModule
    from genval.diffusion.training.settings import TrainingConfig

# Images/s of the published code as a fraction of the proxy's, both measured on one H100 on 2026-11-22.
PUBLISHED_SHARE = 1 / 3.5
OPTIONS = ("proxy", "compile", "cudnn", "checkpointing", "8bit", "ema", "lora", "convs")

# Header of the table, and the measured value in each column.
COLUMNS = {
    "row": "text",
    "images/s": "images_per_second",
    "x proxy": "x_proxy",
    "x published": "x_published",
    "share of peak": "share_of_peak",
    "GiB": "gib",
    "warm-up, s": "warm_up_seconds",
    "failed": "error",
}


@dataclasses.dataclass(frozen=True)
class Size:
    """Configs of a model, and the size of its training images."""

    side: int  # pixels of the square images
    pairs: int  # an optimiser step
    unet: dict[str, Any]
    vae: dict[str, Any]
    text: dict[str, Any]  # CLIPTextConfig
    pooled: int = 0  # channels of the pooled text


_VAE = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4}
_DOWN, _UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
SIZES = {
    "sd15": Size(
        side=512,
        pairs=128,
        unet={
            "block_out_channels": (320, 640, 1280, 1280),
            "down_block_types": (_DOWN, _DOWN, _DOWN, "DownBlock2D"),
            "up_block_types": ("UpBlock2D", _UP, _UP, _UP),
            "cross_attention_dim": 768,
            "attention_head_dim": 8,
        },
        vae=_VAE,
        text={"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    ),
    "sdxl": Size(
        side=1024,
        pairs=16,
        unet={
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", _DOWN, _DOWN),
            "up_block_types": (_UP, _UP, "UpBlock2D"),
            "cross_attention_dim": 2048,
            "attention_head_dim": (5, 10, 20),
            "transformer_layers_per_block": (1, 2, 10),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        vae=_VAE,
        # Text states are cached, so the text encoders are not needed and a small one replaces them.
        text={"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1},
        pooled=1280,
    ),
    "tiny": Size(
        side=64,
        pairs=4,
        unet={
            "block_out_channels": (16, 32),
            "down_block_types": ("DownBlock2D", _DOWN),
            "up_block_types": (_UP, "UpBlock2D"),
            "layers_per_block": 1,
            "cross_attention_dim": 32,
            "attention_head_dim": 4,
            "norm_num_groups": 8,
        },
        vae={"block_out_channels": (8, 16, 16), "norm_num_groups": 4},
        text={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4},
    ),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table."""

    text: str
    size: str
    options: tuple[str, ...]
    batch: int


@dataclasses.dataclass(frozen=True)
class Timing:
    """The measurements of a row."""

    images_per_second: float
    gib: float
    warm_up_seconds: float


@dataclass(frozen=True, kw_only=True)
class TrainingSpeedSettings:
    """Settings of benchmarks/training_speed.py."""

    SCRIPT: ClassVar[str] = "benchmarks/training_speed"

    rows: tuple[str, ...] = flag(("proxy-8", "8", "compile-32", "sdxl:4"), "what to time", type=comma_list)
    size: str = flag("sd15", "of rows that name none; tiny runs on a CPU", choices=tuple(SIZES))
    steps: int = flag(3, "optimiser steps that are timed, of 128 images", type=positive_int)
    output: str | None = flag(None, "JSON file for the results")
    accelerator: str = flag("auto", "auto, cpu or gpu")
    devices: int = flag(1, "processes that share the work", type=positive_int)
    precision: str | None = flag(None, "default: bf16-mixed on a GPU that supports it, else 32-true")
    preset: str | None = None


def main(settings: TrainingSpeedSettings) -> None:
    import torch

    from genval.runtime.files import write_json
    from genval.runtime.tables import markdown_table
    from genval.training.runs import training_precision

    rows = [parse_row(text, settings.size) for text in settings.rows]
    if settings.devices > 1 and any("proxy" in row.options for row in rows):
        raise GenValError("--rows: proxy rows train on one device. Measure them without --devices.")
    precision = training_precision(settings.precision, settings.accelerator)
    settings = dataclasses.replace(settings, precision=precision)
    on_gpu = settings.accelerator != "cpu" and torch.cuda.is_available()
    # Lightning starts the other processes in the first row. They run the script from the start.
    process = int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device("cuda", process) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    torch.set_float32_matmul_precision("high")
    peak = matrix_peak(device)
    records: list[dict[str, Any]] = []
    result = {
        "device": torch.cuda.get_device_name(device) if on_gpu else "CPU",
        "torch": torch.__version__,
        "precision": settings.precision,
        "devices": settings.devices,
        "peak_tflops": peak / 1e12,
        "rows": records,
    }
    for size in dict.fromkeys(row.size for row in rows):
        base = random_base(SIZES[size], device)
        for row in (row for row in rows if row.size == size):
            flops = flops_an_image(row, base, device)
            records.append(
                {**dataclasses.asdict(row), "tflop_an_image": flops / 1e12, **time_row(row, base, settings, device)}
            )
            records[-1]["share_of_peak"] = records[-1].get("images_per_second", 0) * flops / (peak * settings.devices)
            add_ratios(records)
            if process > 0:
                continue
            print(records[-1], flush=True)
            if settings.output:
                write_json(resolve(settings.output), result)
        del base
        empty_memory()
    if process > 0:
        return
    print(f"{result['device']}, {settings.precision}, large matrix products at {peak / 1e12:.0f} TFLOP/s")
    columns = {title: key for title, key in COLUMNS.items() if any(key in record for record in records)}
    print(
        markdown_table(list(columns), [[record.get(key) for key in columns.values()] for record in records], digits=2)
    )
    if settings.output:
        print(f"Wrote {resolve(settings.output)}")


def parse_row(text: str, size: str) -> Row:
    """Parse a row from `[SIZE:][OPTION-...]BATCH`."""
    given, _, rest = text.rpartition(":")
    *options, batch = rest.split("-")
    if (given or size) not in SIZES or not batch.isdecimal() or int(batch) < 1 or set(options) - set(OPTIONS):
        raise GenValError(
            f"--rows: expected [SIZE:][OPTION-...]BATCH with sizes {', '.join(SIZES)} and options "
            f"{', '.join(OPTIONS)}, such as compile-32; found {text!r}."
        )
    return Row(text, given or size, tuple(options), int(batch))


def time_row(row: Row, base: StableDiffusion, settings: TrainingSpeedSettings, device: torch.device) -> dict[str, Any]:
    """Return the measurements of a row, or its "error", so that the next rows are still measured."""
    try:
        timing = (time_proxy if "proxy" in row.options else time_ours)(row, base, settings, device)
        return dataclasses.asdict(timing)
    except Exception as error:  # whatever a library or a device can raise; memory that is full, above all
        if settings.devices > 1:
            raise  # the other processes would wait for this one
        return {"error": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"[:200]}
    finally:
        restore(base)
        empty_memory()


def restore(base: StableDiffusion) -> None:
    """Remove from the base what a row added to it."""
    base.unet.unload_lora()
    base.unet.disable_gradient_checkpointing()


def random_base(size: Size, device: torch.device) -> StableDiffusion:
    """Return a base of full size with random weights, made on the device."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from genval.diffusion.models.pipelines import StableDiffusion, StableDiffusionXL

    letters = [*string.ascii_lowercase, *(letter + "</w>" for letter in string.ascii_lowercase)]
    tokens = [*letters, "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=77)
    levels = len(size.vae["block_out_channels"])
    with device:
        parts = {
            "vae": AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * levels,
                up_block_types=("UpDecoderBlock2D",) * levels,
                **size.vae,
            ),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**size.text)),
            "tokenizer": tokenizer,
            "unet": UNet2DConditionModel(**size.unet),
            "scheduler_config": {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
        }
    if not size.pooled:
        return StableDiffusion(folder=Path("random"), **parts)
    second = torch.nn.Linear(1, 1, device=device)
    return StableDiffusionXL(folder=Path("random"), **parts, text_encoder_2=second, tokenizer_2=tokenizer)


def random_text(base: StableDiffusion, size: Size, count: int, device: torch.device) -> TextStates:
    """Return random text states of `count` prompts, float16."""
    import torch

    from genval.diffusion.models.pipelines import TextStates

    shape = (count, 77, base.unet.config.cross_attention_dim)
    pooled = torch.randn(count, size.pooled, device=device).half() if size.pooled else None
    return TextStates(torch.randn(shape, device=device).half(), pooled)


def time_ours(row: Row, base: StableDiffusion, settings: TrainingSpeedSettings, device: torch.device) -> Timing:
    """Train as ControlNet/train.py or train_lora.py does, on a cache of random latents."""
    import torch

    from genval.diffusion.pairs import Pair
    from genval.diffusion.training.data import ControlNetData, LatentCache
    from genval.training.runs import make_trainer

    size, pairs = SIZES[row.size], 256
    module = make_module(row, base, device, settings.devices)
    config = module.config
    side = size.side // base.downscale
    module.cache = LatentCache(
        torch.randn(1, 2, pairs, base.unet.config.in_channels, side, side, device=device).half(),
        torch.randint(0, 34, (1, pairs, size.side, size.side), dtype=torch.uint8, device=device),
        random_text(base, size, pairs + 1, device),
        torch.arange(pairs, device=device),
    )
    stopwatch = make_stopwatch(device, config, settings)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(
            Path(folder),
            config,
            pairs,
            [stopwatch],
            checkpoint_every=10**9,
            accelerator=settings.accelerator,
            devices=settings.devices,
            precision=settings.precision,
        )
        data = ControlNetData([Pair(Path(), Path(), "")] * pairs, config, cached=True)
        stopwatch.begin()
        trainer.fit(module, data)
    return stopwatch.timing


def make_module(row: Row, base: StableDiffusion, device: torch.device, devices: int = 1) -> DenoisingModule:
    """Return what a row trains."""
    from genval.diffusion.models.controlnet import add_control
    from genval.diffusion.models.lora import add_lora
    from genval.diffusion.training.module import ControlNetModule, LoraModule

    config = training_config(row, SIZES[row.size], devices)
    with device:
        if "lora" not in row.options:
            return ControlNetModule(base, add_control(base), config)
        rank, targets = lora_shape(row)
        return LoraModule(base, add_lora(base.unet, rank, rank, targets), config)


def lora_shape(row: Row) -> tuple[int, tuple[str, ...]]:
    """Return the rank and the target modules of a row: the defaults of train_lora.py, or with all convolutions."""
    from genval.diffusion.training.settings import LoraTrainingSettings

    convolutions = ("conv1", "conv2", "conv_shortcut", "proj_in", "proj_out") if "convs" in row.options else ()
    return LoraTrainingSettings.rank, (*LoraTrainingSettings.target_modules, *convolutions)


def training_config(row: Row, size: Size, devices: int) -> TrainingConfig:
    from genval.diffusion.training.settings import TrainingConfig

    return TrainingConfig(
        height=size.side,
        width=size.side,
        batch_size=row.batch,
        accumulate=max(1, size.pairs // (row.batch * devices)),
        max_steps=10**6,
        gradient_clip=1.0,
        ema=0.999 if "ema" in row.options else 0.0,
        optimizer="adamw8bit" if "8bit" in row.options else "adamw",
        gradient_checkpointing="checkpointing" in row.options,
        compile="compile" in row.options,
        attention="cudnn" if "cudnn" in row.options else "auto",
    )


def make_stopwatch(device: torch.device, config: TrainingConfig, settings: TrainingSpeedSettings) -> Any:
    """A Lightning callback that times `settings.steps` optimiser steps after the first one, then stops the training."""
    from pytorch_lightning import Callback

    class Stopwatch(Callback):
        timing: Timing

        def begin(self) -> None:
            self.started = time.perf_counter()
            self.warm = 0.0

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            done = batch_idx + 1
            if done == config.accumulate:
                self.warm = now(device)
            elif done == config.accumulate * (settings.steps + 1):
                seconds = now(device) - self.warm
                images = config.accumulate * settings.steps * config.batch_size * settings.devices
                self.timing = Timing(images / seconds, peak_memory(device), self.warm - self.started)
                trainer.should_stop = True

    return Stopwatch()


def time_proxy(row: Row, base: StableDiffusion, settings: TrainingSpeedSettings, device: torch.device) -> Timing:
    """Train with a plain loop around diffusers' models: eager, bfloat16 autocast, images encoded at every step."""
    import torch
    import torch.nn.functional as F
    from diffusers import ControlNetModel, DDPMScheduler
    from peft import LoraConfig

    size = SIZES[row.size]
    started = time.perf_counter()
    torch.backends.cudnn.benchmark = False  # PyTorch's default, which our Trainer changes
    for model in (base.vae, base.text_encoder, base.unet):
        torch.nn.Module.to(model, dtype=torch.bfloat16)
    levels = len(size.vae["block_out_channels"])
    controlnet = None
    if "lora" in row.options:
        rank, targets = lora_shape(row)
        with device:
            base.unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(targets)))
        trained = [parameter for parameter in base.unet.parameters() if parameter.requires_grad]
        for parameter in trained:
            parameter.data = parameter.data.float()
    else:
        with device:
            controlnet = ControlNetModel.from_unet(
                base.unet, conditioning_channels=1, conditioning_embedding_out_channels=(16, 32, 96, 256)[:levels]
            )
        trained = list(controlnet.float().train().requires_grad_(True).parameters())
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    scheduler = DDPMScheduler.from_config(base.scheduler_config)
    captions = ["a street with cars and trees"] * row.batch
    images = torch.rand(row.batch, 3, size.side, size.side, device=device) * 2 - 1
    hints = torch.rand(row.batch, 1, size.side, size.side, device=device)

    def step() -> None:
        latents = base.vae.encode(images.bfloat16()).latent_dist.sample() * base.vae.config.scaling_factor
        text = base.encode_text(captions).states
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, 1000, (row.batch,), device=device)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        with torch.autocast(device.type, torch.bfloat16):
            down, middle = None, None
            if controlnet is not None:
                down, middle = controlnet(noisy, timesteps, text, hints, return_dict=False)
            predicted = base.unet(
                noisy,
                timesteps,
                text,
                down_block_additional_residuals=down,
                mid_block_additional_residual=middle,
                return_dict=False,
            )[0]
        F.mse_loss(predicted.float(), noise.float()).backward()
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(3):
        step()
    warm = now(device)
    batches = max(1, settings.steps * size.pairs // row.batch)
    for _ in range(batches):
        step()
    return Timing(batches * row.batch / (now(device) - warm), peak_memory(device), warm - started)


def flops_an_image(row: Row, base: StableDiffusion, device: torch.device) -> float:
    """Return the FLOPs per training image, forward and backward, without the encoders and without checkpointing."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    size = SIZES[row.size]
    kept = tuple(option for option in row.options if option in ("lora", "convs"))
    base.to(device, torch.bfloat16)
    module = make_module(Row("", row.size, kept, 1), base, device)
    side = size.side // base.downscale
    counter = FlopCounterMode(display=False)
    hints = None if "lora" in kept else torch.rand(1, 1, size.side, size.side, device=device)
    with counter, torch.autocast(device.type, torch.bfloat16):
        loss = module.denoising_loss(
            torch.randn(1, base.unet.config.in_channels, side, side, device=device),
            hints,
            random_text(base, size, 1, device).to(torch.bfloat16),
            torch.Generator(device).manual_seed(0),
        )
        loss.backward()
    del module, loss
    restore(base)
    empty_memory()
    return float(counter.get_total_flops())


def matrix_peak(device: torch.device) -> float:
    """Return the FLOP/s of one large matrix product, the peak of the device: bfloat16 on a GPU, float32 on a CPU."""
    import torch

    # Some CPUs compute float32 faster than bfloat16.
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    side, repeats = (8192, 30) if device.type == "cuda" else (512, 3)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        a @ b
    start = now(device)
    for _ in range(repeats):
        a @ b
    return 2 * side**3 * repeats / (now(device) - start)


def add_ratios(records: list[dict[str, Any]]) -> None:
    """Add the speed relative to the proxy of the same size and to the published code, if the proxy was measured."""
    for record in records:
        speeds = [
            one["images_per_second"]
            for one in records
            if "proxy" in one["options"]
            and one["size"] == record["size"]
            and ("lora" in one["options"]) == ("lora" in record["options"])
            and "error" not in one
        ]
        if speeds and "error" not in record:
            record["x_proxy"] = record["images_per_second"] / speeds[0]
            if "lora" not in record["options"]:  # the published code trains no LoRA
                record["x_published"] = record["x_proxy"] / PUBLISHED_SHARE


def now(device: torch.device) -> float:
    """Return the time in seconds after synchronising with the device."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def peak_memory(device: torch.device) -> float:
    """Return PyTorch's peak memory in GiB since the last `empty_memory`; 0 on a CPU."""
    import torch

    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0


def empty_memory() -> None:
    import torch

    gc.collect()
    torch.compiler.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


if __name__ == "__main__":
    cli.run(main, TrainingSpeedSettings, __doc__)
