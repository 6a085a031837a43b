"""Generation speed on one device with random weights of full size, compared with the published code.

Reads:  nothing: the weights are made on the device
Writes: --output, JSON; prints each row when it is measured, and at the end a table in Markdown

    python benchmarks/generation_speed.py --output results/generation_speed.json

`proxy` is diffusers in float32, one image at a time, 25 DDIM steps. On an H100 the published code took 1.56 times as
long as this row (docs/speed.md). All other rows run `genval.diffusion.sampling.generation.start_generation`, as
ControlNet/style_transfer.py does, including text encoding, decoding and the copy to the CPU. `whole` compiles whole
networks instead of their blocks. `recorded` replays a compiled batch as a CUDA graph. `fp8` is compiled too, and
multiplies by the weights of the transformer blocks in 8 bits. Warm-up (compiling, recording) is reported separately.
`psnr_dB` compares a row's first image with the proxy's, which has the same noise, prompt and mask, and other precision.
"""

from __future__ import annotations

import gc
import json
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

from genval.runtime import cli
from genval.runtime.errors import GenValError
from genval.runtime.flags import flag
from genval.runtime.paths import resolve
from genval.runtime.settings import comma_list, positive_int

PUBLISHED_OVER_PROXY = 1.56
PEAK_TFLOPS = 792.0  # bf16 matrix products measured on an H100 80GB HBM3
# TFLOP per step and for decoding one image, with guidance, counted on the published computation.
ARITHMETIC = {"sd15": (2.174, 2.51)}

# batch size, sampler, steps, compiled, graphed
ROWS: dict[str, tuple[int | None, str, int, bool, bool]] = {
    "proxy": (1, "ddim", 25, False, False),
    "graph": (1, "ddim", 25, False, True),
    "graph_fast": (1, "dpm++", 10, False, True),
    "best": (None, "ddim", 25, False, False),
    "best_fast": (None, "dpm++", 10, False, False),
    "compiled": (None, "ddim", 25, True, False),
    "compiled_fast": (None, "dpm++", 10, True, False),
    "latency": (1, "ddim", 25, True, True),
    "whole": (None, "ddim", 25, True, False),
    "recorded": (None, "ddim", 25, True, True),
    "fp8": (None, "ddim", 25, True, False),
}
# Rows that change the models for the rest of the process.
_TRIALS = ("whole", "fp8")
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
        "side": 512,
        "unet": {"cross_attention_dim": 768, "attention_head_dim": 8},
        "vae": {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "scaling_factor": 0.18215},
        "text": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    },
    "sdxl": {
        "side": 1024,
        "unet": {
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        "vae": {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "scaling_factor": 0.13025},
        "text": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
        "text_2": {
            "hidden_size": 1280,
            "intermediate_size": 5120,
            "num_hidden_layers": 32,
            "num_attention_heads": 20,
            "projection_dim": 1280,
        },
    },
    "tiny": {
        "side": 64,
        "unet": {
            "block_out_channels": (32, 32, 32, 32),
            "layers_per_block": 1,
            "cross_attention_dim": 32,
            "attention_head_dim": 2,
        },
        "vae": {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1, "scaling_factor": 0.18215},
        "text": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4},
    },
}


@dataclass(frozen=True, kw_only=True)
class GenerationSpeedSettings:
    """Settings of benchmarks/generation_speed.py."""

    SCRIPT: ClassVar[str] = "benchmarks/generation_speed"

    size: str = flag("sd15", "tiny is a smoke test", choices=tuple(SIZES))
    rows: tuple[str, ...] = flag(
        ("proxy", "graph", "best", "best_fast", "compiled"),
        f"known: {', '.join(ROWS)}; the proxy goes first",
        type=comma_list,
    )
    batch_size: int = flag(32, "of the rows named best", type=positive_int)
    repeats: int = flag(2, "timed batches per row; the fastest counts", type=positive_int)
    inductor: tuple[str, ...] = flag((), "settings to try: name=value,...", type=comma_list)
    attention: tuple[str, ...] = flag(
        (), "attention kernels to try in this order: cudnn, flash, efficient, math", type=comma_list
    )
    native_norm: bool = flag(False, "PyTorch's own group norm in generated kernels")
    output: str = flag("results/generation_speed.json", "")
    preset: str | None = None


def main(settings: GenerationSpeedSettings) -> None:
    import torch

    from genval.runtime.files import write_json
    from genval.runtime.tables import markdown_table

    unknown = [name for name in settings.rows if name not in ROWS]
    if unknown:
        raise GenValError(f"--rows: unknown {', '.join(unknown)}. Known: {', '.join(ROWS)}.")
    configure(settings)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bench = Benchmark(settings, device)
    machine = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    rows: list[dict[str, Any]] = []
    # The proxy needs the weights before they are rounded to bfloat16. The trials change the rest of the process.
    for name in sorted(settings.rows, key=lambda name: (name.startswith(_TRIALS), name != "proxy")):
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


def configure(settings: GenerationSpeedSettings) -> None:
    """Apply the options that are tried in this run."""
    import torch._inductor.config

    from genval.diffusion.sampling import blocks, denoiser

    for setting in settings.inductor:
        name, _, value = setting.partition("=")
        setattr(torch._inductor.config, name, json.loads(value or "true"))
    if settings.attention:
        from torch.nn.attention import SDPBackend

        names = {
            "cudnn": "CUDNN_ATTENTION",
            "flash": "FLASH_ATTENTION",
            "efficient": "EFFICIENT_ATTENTION",
            "math": "MATH",
        }
        denoiser._ATTENTION[:] = [getattr(SDPBackend, names[name]) for name in settings.attention]
    if settings.native_norm:
        blocks.group_norm = lambda norm, x: norm(x)  # type: ignore[assignment]


def compile_networks() -> None:
    """Compile encoder, ControlNet and decoder as a whole each, for the rest of the process."""
    import torch

    from genval.diffusion.sampling import denoiser

    denoiser.compile_shapes = lambda part: part
    for name in ("encode", "control", "decode"):
        options = denoiser.INDUCTOR_OPTIONS if torch.cuda.is_available() else None
        compiled = torch.compile(getattr(denoiser, name), dynamic=False, fullgraph=True, options=options)
        setattr(denoiser, name, compiled)


def quantise(denoiser: Any) -> None:
    """Multiply by the weights of the transformer blocks' linear layers in float8: one scale per row and per column."""
    import torch

    largest = torch.finfo(torch.float8_e4m3fn).max

    def scaled(x: Any) -> tuple[Any, Any]:
        scale = x.abs().amax(1, keepdim=True).float().clamp_min(1e-12) / largest
        return (x / scale).to(torch.float8_e4m3fn), scale

    class Float8Linear(torch.nn.Linear):
        def forward(self, input: Any) -> Any:
            rows, scale = scaled(input.reshape(-1, self.in_features))
            options = {"scale_a": scale, "scale_b": self.scale.t(), "bias": self.bias, "out_dtype": input.dtype}
            product = torch._scaled_mm(rows, self.quantised.t(), **options, use_fast_accum=True)
            return product.reshape(*input.shape[:-1], -1)

    blocks = [block for network in denoiser._networks for block in network.modules()]
    for block in blocks:
        for layer in block.modules() if type(block).__name__ == "BasicTransformerBlock" else ():
            if isinstance(layer, torch.nn.Linear):
                weight, scale = scaled(layer.weight.detach())
                layer.register_buffer("quantised", weight)
                layer.register_buffer("scale", scale)
                layer.__class__ = Float8Linear


class Benchmark:
    """Builds the models once and measures rows on them."""

    def __init__(self, settings: GenerationSpeedSettings, device: Any) -> None:
        self.args, self.device = settings, device
        self.base, self.controlnet = build(settings.size, device)
        self.denoisers: dict[Any, Any] = {}
        self.published: float | None = None
        self.reference: Any = None

    def measure(self, name: str) -> dict[str, Any]:
        """Measure one row: seconds per image and the derived values."""
        import torch

        batch, sampler, steps, compiled, graphed = ROWS[name]
        batch = batch or self.args.batch_size
        run = self.proxy(steps) if name == "proxy" else self.ours(name, batch, sampler, steps, compiled, graphed)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        warm_up, _ = self.time(run)
        seconds, image = min((self.time(run) for _ in range(self.args.repeats)), key=lambda timed: timed[0])
        per_image = seconds / batch
        if name == "proxy":
            self.published, self.reference = per_image * PUBLISHED_OVER_PROXY, image
        row: dict[str, Any] = {"row": name, "batch": batch, "sampler": sampler, "steps": steps}
        row |= {"s/image": round(per_image, 4), "images/s": round(1 / per_image, 3)}
        row["x published"] = round(self.published / per_image, 2) if self.published else None
        if self.args.size in ARITHMETIC:
            a_step, decoding = ARITHMETIC[self.args.size]
            row["share of peak"] = round((a_step * steps + decoding) / per_image / PEAK_TFLOPS, 3)
        row["GiB"] = round(torch.cuda.max_memory_allocated() / 2**30, 1) if self.device.type == "cuda" else None
        row["warm-up s"] = round(warm_up, 1)
        same = self.reference is not None and steps == 25
        row["psnr_dB"] = round(psnr(image, self.reference), 1) if same and image is not self.reference else None
        return row

    def time(self, run: Callable[[], Any]) -> tuple[float, Any]:
        """Return the seconds of a call and the first of its images."""
        import torch

        start = time.perf_counter()
        images = run()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start, images[0]

    def ours(self, name: str, batch: int, sampler: str, steps: int, compiled: bool, graphed: bool) -> Callable[[], Any]:
        """Return a function that generates a batch as style_transfer.py does."""
        import torch

        from genval.diffusion.models.pipelines import move
        from genval.diffusion.sampling.generation import GenerationBatch, make_denoiser, start_generation
        from genval.diffusion.settings import SamplingConfig

        self.base.to(self.device, torch.bfloat16)
        move(self.controlnet, self.device, torch.bfloat16)
        config = SamplingConfig(steps, 8.0, 1.0, sampler)
        kind = name.partition("_")[0] if name.startswith(_TRIALS) else ""
        key = (kind, batch, compiled, graphed)
        if name == "whole":
            compile_networks()
        if key not in self.denoisers:
            self.denoisers.clear()  # a graph's memory is given back
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self.denoisers[key] = make_denoiser(self.base, self.controlnet, config, compiled, graphed)
        if kind == "fp8":
            quantise(self.denoisers[key])
        masks, prompts, seeds = inputs(batch, SIZES[self.args.size]["side"])
        generated = GenerationBatch(masks, prompts, [""] * batch, seeds)

        def run() -> Any:
            with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
                return start_generation(self.denoisers[key], generated, config, batch)().images

        return run

    def proxy(self, steps: int) -> Callable[[], Any]:
        """Return a function that generates one image with diffusers' pipeline in float32."""
        import torch
        from diffusers import StableDiffusionControlNetPipeline, StableDiffusionXLControlNetPipeline

        from genval.diffusion.models.hints import encode_hint
        from genval.diffusion.sampling.generation import item_noise, make_scheduler

        base, is_xl = self.base, self.args.size == "sdxl"
        parts = {
            "vae": base.vae,
            "text_encoder": base.text_encoder,
            "tokenizer": None,
            "unet": base.unet,
            "controlnet": self.controlnet,
            "scheduler": make_scheduler(SCHEDULE, "ddim"),
            "feature_extractor": None,
        }
        if is_xl:
            parts |= {"text_encoder_2": base.text_encoder_2, "tokenizer_2": None}
            pipeline = StableDiffusionXLControlNetPipeline(**parts, add_watermarker=False)
        else:
            pipeline = StableDiffusionControlNetPipeline(**parts, safety_checker=None, requires_safety_checker=False)
        pipeline.set_progress_bar_config(disable=True)
        side = SIZES[self.args.size]["side"]
        masks, prompts, seeds = inputs(1, side)
        hint = encode_hint(torch.from_numpy(masks).to(self.device))
        latents = item_noise(seeds, (4, side // base.downscale, side // base.downscale)).to(self.device)

        def run() -> Any:
            text = base.encode_text(["", *prompts])
            pooled = (
                {"negative_pooled_prompt_embeds": text.pooled[:1], "pooled_prompt_embeds": text.pooled[1:]}
                if text.pooled is not None
                else {}
            )
            images = pipeline(
                prompt_embeds=text.states[1:],
                negative_prompt_embeds=text.states[:1],
                **pooled,
                image=hint,
                latents=latents,
                height=side,
                width=side,
                num_inference_steps=steps,
                guidance_scale=8.0,
                output_type="np",
            ).images
            return (images * 255).round().astype("uint8")

        return run


def inputs(batch: int, side: int) -> tuple[Any, list[str], list[int]]:
    """Return masks, prompts and seeds of a batch."""
    import numpy as np

    coarse = np.random.default_rng(0).choice(np.array([7, 11, 21, 23, 26], np.uint8), (batch, 8, 8))
    masks = coarse.repeat(side // 8, 1).repeat(side // 8, 2)
    return masks, [f"street {i}, in fog" for i in range(batch)], list(range(batch))


def build(size: str, device: Any) -> tuple[Any, Any]:
    """Return a base and a ControlNet of full size with random float32 weights, made on the device."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from genval.diffusion.models.controlnet import add_control
    from genval.diffusion.models.pipelines import StableDiffusion, StableDiffusionXL

    config = SIZES[size]
    torch.manual_seed(0)
    with torch.device(device):
        unet = UNet2DConditionModel(**config["unet"])
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, **config["vae"]
        )
        parts = {
            "folder": resolve("."),
            "vae": vae,
            "text_encoder": CLIPTextModel(CLIPTextConfig(**config["text"])),
            "tokenizer": dummy_tokenizer,
            "unet": unet,
            "scheduler_config": SCHEDULE,
        }
        if "text_2" in config:
            second = CLIPTextModelWithProjection(CLIPTextConfig(**config["text_2"]))
            base = StableDiffusionXL(**parts, text_encoder_2=second, tokenizer_2=dummy_tokenizer)
        else:
            base = StableDiffusion(**parts)
        controlnet = add_control(base).to(device).requires_grad_(False).eval()
        # With zero convolutions, a ControlNet that is not used would have no effect on the images.
        for name, parameter in controlnet.named_parameters():
            if name.startswith(("controlnet_down", "controlnet_mid", "controlnet_cond_embedding.conv_out")):
                torch.nn.init.normal_(parameter, std=0.02)
    return base, controlnet


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
    cli.run(main, GenerationSpeedSettings, __doc__)
