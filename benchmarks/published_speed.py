"""Speed and memory of the published pipelines of ControlNet/style_transfer.py, with random weights of full size.

Reads:  nothing: the weights are made on the device, in bfloat16 on a GPU
Writes: --output, JSON; prints each row when it is measured, and at the end a table in Markdown

    python benchmarks/published_speed.py --output results/published_speed.json

Each row runs `run_pipeline` of `genval.diffusion.published` for one image, as the stage does, with random embeddings in
place of prompts: the text encoders take their memory (with --offload none) but are not run. `weights GiB` counts all
networks. `same bytes`: two runs with one seed give the same image. A row that does not fit into the device's memory
says so.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from genval.runtime import cli
from genval.runtime.errors import GenValError
from genval.runtime.flags import flag
from genval.runtime.paths import resolve
from genval.runtime.settings import comma_list, positive_int

Config = dict[str, Any]

# The dimensions of the published models. Sources: the defaults of diffusers' classes where nothing is given (FLUX.1 and
# Qwen-Image); the config.json files of openai/clip-vit-large-patch14, laion/CLIP-ViT-bigG-14, google/t5-v1_1-xxl,
# Qwen/Qwen3-4B and Qwen/Qwen2.5-VL-7B-Instruct; of stabilityai/stable-diffusion-3.5-large; diffusers'
# scripts/convert_flux2_to_diffusers.py for FLUX.2 Klein 4B. ControlNets have the depth of the published ones of
# InstantX (5 and 10 blocks for FLUX, 5 for Qwen-Image) and Stability (19 blocks for SD 3.5).
_CLIP_L: Config = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
_CLIP_G: Config = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
}
_T5: Config = {
    "vocab_size": 32128,
    "d_model": 4096,
    "d_ff": 10240,
    "d_kv": 64,
    "num_heads": 64,
    "num_layers": 24,
    "feed_forward_proj": "gated-gelu",
}
_QWEN_VL: Config = {
    "text_config": {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    },
    "vision_config": {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 3584,
    },
}
_DOWN, _UP = "DownEncoderBlock2D", "UpDecoderBlock2D"
_VAE: Config = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": (_DOWN,) * 4,
    "up_block_types": (_UP,) * 4,
    "layers_per_block": 2,
}
_FLUX_VAE: Config = {**_VAE, "latent_channels": 16, "scaling_factor": 0.3611, "shift_factor": 0.1159}
_SD3_TRANSFORMER: Config = {
    "num_attention_heads": 38,
    "caption_projection_dim": 2432,
    "pos_embed_max_size": 192,
    "qk_norm": "rms_norm",
}
FULL: dict[str, dict[str, Config]] = {
    "StableDiffusionInstructPix2PixPipeline": {
        "vae": {**_VAE, "scaling_factor": 0.18215},
        "text_encoder": _CLIP_L,
        "unet": {"in_channels": 8, "cross_attention_dim": 768, "attention_head_dim": 8},
    },
    "FluxKontextPipeline": {
        "vae": _FLUX_VAE,
        "text_encoder": _CLIP_L,
        "text_encoder_2": _T5,
        "transformer": {"guidance_embeds": True},
    },
    "Flux2KleinPipeline": {
        "vae": {},
        "text_encoder": {
            "vocab_size": 151936,
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "tie_word_embeddings": True,
        },
        "transformer": {
            "num_layers": 5,
            "num_single_layers": 20,
            "num_attention_heads": 24,
            "joint_attention_dim": 7680,
            "guidance_embeds": False,
        },
    },
    "QwenImageEditPlusPipeline": {"vae": {}, "text_encoder": _QWEN_VL, "transformer": {}},
    "StableDiffusion3ControlNetPipeline": {
        "vae": {**_VAE, "latent_channels": 16, "scaling_factor": 1.5305, "shift_factor": 0.0609},
        "text_encoder": _CLIP_L,
        "text_encoder_2": _CLIP_G,
        "text_encoder_3": _T5,
        "transformer": {**_SD3_TRANSFORMER, "num_layers": 38},
        "controlnet": {**_SD3_TRANSFORMER, "num_layers": 19, "qk_norm": None},
    },
    "FluxControlNetPipeline": {
        "vae": _FLUX_VAE,
        "text_encoder": _CLIP_L,
        "text_encoder_2": _T5,
        "transformer": {"guidance_embeds": True},
        "controlnet": {"num_layers": 5, "num_single_layers": 10, "guidance_embeds": True},
    },
    "QwenImageControlNetPipeline": {
        "vae": {},
        "text_encoder": _QWEN_VL,
        "transformer": {},
        "controlnet": {"num_layers": 5},
    },
}

_TINY_CLIP: Config = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "projection_dim": 32,
}
_TINY_T5: Config = {**_T5, "d_model": 32, "d_ff": 32, "d_kv": 8, "num_heads": 4, "num_layers": 1}
_TINY_VAE: Config = {
    "block_out_channels": (8, 16, 16),
    "down_block_types": (_DOWN,) * 3,
    "up_block_types": (_UP,) * 3,
    "norm_num_groups": 4,
    "shift_factor": 0.1,
    "latent_channels": 4,
}
_TINY_FLUX: Config = {
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 32,
    "guidance_embeds": True,
    "axes_dims_rope": (4, 6, 6),
}
_TINY_SD3: Config = {
    "sample_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "joint_attention_dim": 64,
    "caption_projection_dim": 32,
    "pooled_projection_dim": 64,
}
_TINY_QWEN: Config = {
    "in_channels": 16,
    "out_channels": 4,
    "num_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 16,
    "axes_dims_rope": (4, 6, 6),
}
_TINY_QWEN_VAE: Config = {
    "base_dim": 4,
    "z_dim": 4,
    "num_res_blocks": 1,
    "latents_mean": [0.0] * 4,
    "latents_std": [1.0] * 4,
}
_TINY_TEXT: Config = {
    "vocab_size": 320,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
_TINY_QWEN_VL: Config = {
    "image_token_id": 259,
    "video_token_id": 260,
    "vision_start_token_id": 261,
    "vision_end_token_id": 262,
    "text_config": {
        **_TINY_TEXT,
        "num_hidden_layers": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]},
    },
    "vision_config": {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_heads": 2,
        "out_hidden_size": 16,
        "fullatt_block_indexes": [0],
    },
}
TINY: dict[str, dict[str, Config]] = {
    "StableDiffusionInstructPix2PixPipeline": {
        "vae": _TINY_VAE,
        "text_encoder": _TINY_CLIP,
        "unet": {
            "in_channels": 8,
            "block_out_channels": (16, 32),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "layers_per_block": 1,
            "cross_attention_dim": 32,
            "attention_head_dim": 4,
            "norm_num_groups": 8,
        },
    },
    "FluxKontextPipeline": {
        "vae": _TINY_VAE,
        "text_encoder": _TINY_CLIP,
        "text_encoder_2": _TINY_T5,
        "transformer": _TINY_FLUX,
    },
    "Flux2KleinPipeline": {
        "vae": {
            "block_out_channels": (8, 16, 16),
            "down_block_types": (_DOWN,) * 3,
            "up_block_types": (_UP,) * 3,
            "norm_num_groups": 4,
            "latent_channels": 4,
        },
        # The pipeline reads the hidden states of layer 27.
        "text_encoder": {**_TINY_TEXT, "num_hidden_layers": 27, "head_dim": 8},
        "transformer": {
            "in_channels": 16,
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 48,
            "guidance_embeds": False,
            "axes_dims_rope": (4, 4, 4, 4),
        },
    },
    "QwenImageEditPlusPipeline": {"vae": _TINY_QWEN_VAE, "text_encoder": _TINY_QWEN_VL, "transformer": _TINY_QWEN},
    "StableDiffusion3ControlNetPipeline": {
        "vae": _TINY_VAE,
        "text_encoder": _TINY_CLIP,
        "text_encoder_2": _TINY_CLIP,
        "text_encoder_3": {**_TINY_T5, "d_model": 64},
        "transformer": _TINY_SD3,
        "controlnet": {**_TINY_SD3, "num_layers": 1},
    },
    "FluxControlNetPipeline": {
        "vae": _TINY_VAE,
        "text_encoder": _TINY_CLIP,
        "text_encoder_2": _TINY_T5,
        "transformer": _TINY_FLUX,
        "controlnet": _TINY_FLUX,
    },
    "QwenImageControlNetPipeline": {
        "vae": _TINY_QWEN_VAE,
        "text_encoder": _TINY_QWEN_VL,
        "transformer": _TINY_QWEN,
        "controlnet": _TINY_QWEN,
    },
}
SIZES = {"full": FULL, "tiny": TINY}
# Tokens of a prompt: of an instruction with the photo for Qwen-Image's editor, else of the padded prompt.
TOKENS = {
    "StableDiffusionInstructPix2PixPipeline": 77,
    "FluxKontextPipeline": 512,
    "Flux2KleinPipeline": 512,
    "QwenImageEditPlusPipeline": 256,
    "StableDiffusion3ControlNetPipeline": 77 + 256,
    "FluxControlNetPipeline": 512,
    "QwenImageControlNetPipeline": 64,
}


@dataclass(frozen=True, kw_only=True)
class PublishedSpeedSettings:
    """Settings of benchmarks/published_speed.py."""

    SCRIPT: ClassVar[str] = "benchmarks/published_speed"

    size: str = flag("full", "tiny is a smoke test", choices=tuple(SIZES))
    rows: tuple[str, ...] = flag(tuple(FULL), "pipelines", type=comma_list)
    offload: tuple[str, ...] = flag(("none", "model"), "none, model or sequential; each is a row", type=comma_list)
    vae_tiling: bool = flag(False, "encode and decode images in tiles")
    height: int | None = flag(None, "of the image in pixels (default: 1024; InstructPix2Pix: 512)", type=positive_int)
    width: int | None = flag(None, "of the image in pixels (default: the height)", type=positive_int)
    steps: int | None = flag(None, "sampling steps (default: the pipeline's own)", type=positive_int)
    output: str = flag("results/published_speed.json", "")
    preset: str | None = None


def main(settings: PublishedSpeedSettings) -> None:
    import torch

    from genval.runtime.files import write_json
    from genval.runtime.tables import markdown_table

    unknown = [name for name in settings.rows if name not in FULL]
    if unknown:
        raise GenValError(f"--rows: unknown {', '.join(unknown)}. Known: {', '.join(FULL)}.")
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    machine = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    rows: list[dict[str, Any]] = []
    for name in settings.rows:
        for offload in settings.offload if device.type == "cuda" else ("none",):
            try:
                rows.append(measure(name, offload, settings, device))
            except (torch.OutOfMemoryError, GenValError) as error:
                rows.append({"pipeline": name, "offload": offload, "error": " ".join(str(error).split())[:200]})
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
            print(json.dumps(rows[-1]), flush=True)
            write_json(
                resolve(settings.output),
                {"device": machine, "torch": torch.__version__, "settings": vars(settings), "rows": rows},
            )
    header = list(dict.fromkeys(key for row in rows for key in row))
    print(markdown_table(header, [[row.get(key, "") for key in header] for row in rows], digits=3))
    print(f"wrote {settings.output}")


def measure(name: str, offload: str, settings: PublishedSpeedSettings, device: Any) -> dict[str, Any]:
    """Measure one row: seconds per image and the largest memory."""
    import numpy as np
    import torch
    from PIL import Image

    from genval.diffusion.published.loading import place, run_pipeline
    from genval.diffusion.published.pipelines import CONTROLNETS, EDITORS, Request

    published = next(one for one in (*EDITORS.values(), *CONTROLNETS.values()) if one.name == name)
    networks = make_networks(name, settings.size, device, on_host=offload != "none")
    weights = sum(p.numel() * p.element_size() for network in networks.values() for p in network.parameters())
    pipeline = place(make_pipeline(name, networks), device, offload, settings.vae_tiling)
    pipeline.set_progress_bar_config(disable=True)
    side = 64 if settings.size == "tiny" else 512 if "unet" in networks else 1024
    height = settings.height or side
    width = settings.width or settings.height or side
    noise = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    image = Image.fromarray(noise).resize((width, height))
    default_steps, guidance = published.distilled or (published.steps, published.guidance)
    steps = settings.steps or default_steps
    request = Request(image, "", guidance)
    prompt = embeddings(name, networks, device)
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):  # as in the stage
        first, second = (run_pipeline(pipeline, published, request, prompt, 2, 0) for _ in range(2))
        if device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        pixels = run_pipeline(pipeline, published, request, prompt, steps, 0)
        finite = bool(pixels.isfinite().all())  # waits for the device
        seconds = time.perf_counter() - start
    return {
        "pipeline": name,
        "offload": offload,
        "size": f"{height}x{width}",
        "steps": steps,
        "guidance": guidance,
        "s/image": round(seconds, 3),
        "weights GiB": round(weights / 2**30, 1),
        "peak GiB": round(torch.cuda.max_memory_allocated() / 2**30, 1) if device.type == "cuda" else None,
        "finite": finite,
        "same bytes": torch.equal(first, second),
    }


def make_networks(name: str, size: str, device: Any, on_host: bool = False) -> dict[str, Any]:
    """Return the networks of a pipeline with random weights, made on the device: bfloat16 on a GPU, else float32.

    Args:
        name: the pipeline's class.
        size: "full" or "tiny".
        device: where the weights are made.
        on_host: move each network to host memory when it is made.
    """
    import diffusers
    import torch
    import transformers

    from genval.diffusion.published.pipelines import CONTROLNETS, EDITORS

    published = next(one for one in (*EDITORS.values(), *CONTROLNETS.values()) if one.name == name)
    classes = {**published.networks, **({"controlnet": published.controlnet} if published.controlnet else {})}
    networks = {}
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if device.type == "cuda" else torch.float32)
    try:
        for part, class_name in classes.items():
            config = SIZES[size][name][part]
            with torch.device(device):
                if hasattr(diffusers, class_name):
                    network = getattr(diffusers, class_name)(**config)
                else:
                    model_class = getattr(transformers, class_name)
                    network = model_class(model_class.config_class(**config))
            networks[part] = network.eval().requires_grad_(False).to("cpu" if on_host else device)
    finally:
        torch.set_default_dtype(before)
    return networks


def make_pipeline(name: str, networks: Mapping[str, Any], tokenizers: Mapping[str, Any] | None = None) -> Any:
    """Return a pipeline of these networks; without tokenizers it takes embeddings only."""
    import diffusers

    from genval.diffusion.published.pipelines import CONTROLNETS, EDITORS

    published = next(one for one in (*EDITORS.values(), *CONTROLNETS.values()) if one.name == name)
    scheduler = (
        diffusers.EulerAncestralDiscreteScheduler()
        if "unet" in networks
        else diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting="StableDiffusion3" not in name)
    )
    parts = {**dict.fromkeys(published.tokenizers), **(tokenizers or {})}
    distilled = {"is_distilled": True} if published.distilled else {}
    return getattr(diffusers, name)(**networks, **parts, scheduler=scheduler, **published.options, **distilled)


def embeddings(name: str, networks: Mapping[str, Any], device: Any) -> dict[str, Any]:
    """Return random embeddings in place of a prompt, as the arguments of the pipeline."""
    import torch

    network = networks["unet" if "unet" in networks else "transformer"]
    config = network.config
    width = config.get("joint_attention_dim") or config["cross_attention_dim"]
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Any:
        return torch.randn(shape, generator=generator).to(device, network.dtype)

    tokens = TOKENS[name]
    given = {"prompt_embeds": random(1, tokens, width)}
    if "pooled_projection_dim" in config:
        given["pooled_prompt_embeds"] = random(1, config["pooled_projection_dim"])
    if "Qwen" in name:
        given["prompt_embeds_mask"] = torch.ones(1, tokens, dtype=torch.long, device=device)
    if "Flux" in name:  # these are guided by an input, or not at all
        return given
    return {**given, **{f"negative_{key}": value for key, value in given.items()}, "negative_prompt": None}


if __name__ == "__main__":
    cli.run(main, PublishedSpeedSettings, __doc__)
