"""Write checkpoints in the format of the original Stable Diffusion and ControlNet code."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from genval.diffusion.original import keys
from genval.diffusion.original.reading import CARRIED, part_sources
from genval.runtime.files import replace_file

if TYPE_CHECKING:
    from genval.diffusion.models.pipelines import StableDiffusion


def original_state(base: StableDiffusion, controlnet: Any | None = None) -> dict[str, torch.Tensor]:
    """Return the state dict of a base and, optionally, a ControlNet in the original format.

    It contains the noise schedule and the position table too. With a ControlNet it also contains the vector `logvar`,
    without which the published code does not load it.
    """
    is_xl = hasattr(base, "text_encoder_2")
    text_prefix = keys.TEXT_XL if is_xl else keys.TEXT
    state: dict[str, torch.Tensor] = {}
    if not is_xl:
        state |= _schedule_vectors(base.scheduler_config)
        if controlnet is not None:
            state["logvar"] = torch.zeros_like(state["betas"])
    for name, model in _models(base, controlnet).items():
        state |= keys.write(part_sources(name, model, text_prefix), model.state_dict())
    positions = base.text_encoder.config.max_position_embeddings
    state[f"{text_prefix}embeddings.position_ids"] = torch.arange(positions)[None]
    return state


def save_original(base: StableDiffusion, controlnet: Any | None, path: str | Path, dtype: str = "fp32") -> None:
    """Write a base and a ControlNet as one file of the original format; the file is replaced atomically.

    The file has exactly the weights that the published code loads strictly (`controlnet_cs.ckpt`). In an additional
    entry it holds the configs and tokenizers, so that sizes, prediction type and hint encoding are restored here.

    Args:
        base: the Stable Diffusion model.
        controlnet: diffusers' ControlNetModel; None writes only the base.
        path: with the suffix `.safetensors` a safetensors file, otherwise a `torch.save` file.
        dtype: dtype of the weights, "fp32" or "fp16".

    Raises:
        GenValError: the file cannot be written.
    """
    state = {
        key: (
            tensor.to("cpu", keys.SAVE_DTYPES[dtype]) if tensor.is_floating_point() and "." in key else tensor
        ).contiguous()
        for key, tensor in original_state(base, controlnet).items()
    }
    carried = {"configs": _carried_configs(base, controlnet), "tokenizers": _carried_tokenizers(base)}
    if hasattr(base, "zero_empty_prompts"):
        carried["zero_empty_prompts"] = base.zero_empty_prompts
    with replace_file(path) as temporary:
        if Path(path).suffix == ".safetensors":
            from safetensors.torch import save_file

            save_file(state, temporary, metadata={"format": "pt", CARRIED: json.dumps(carried)})
        else:
            # Given a path, torch.save writes its name, which has the number of the process, into the file.
            with open(temporary, "wb") as stream:
                torch.save({"state_dict": state, "global_step": 0, CARRIED: carried}, stream)


def _models(base: StableDiffusion, controlnet: Any | None) -> dict[str, Any]:
    """Return the models of a base and the ControlNet by their folders in diffusers' layout, in the published order."""
    models = {"unet": base.unet, "vae": base.vae, "text_encoder": base.text_encoder}
    if hasattr(base, "text_encoder_2"):
        models["text_encoder_2"] = base.text_encoder_2
    return models if controlnet is None else {**models, "controlnet": controlnet}


def _schedule_vectors(scheduler_config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the schedule vectors of ldm's files: terms of q(x_t | x_0) and the posterior (Ho et al. 2020, eq. 7)."""
    from diffusers import DDPMScheduler

    betas = DDPMScheduler.from_config(dict(scheduler_config)).betas.double()
    alphas = (1 - betas).cumprod(0)
    before = torch.cat([torch.ones(1, dtype=torch.float64), alphas[:-1]])
    variance = betas * (1 - before) / (1 - alphas)
    vectors = {
        "betas": betas,
        "alphas_cumprod": alphas,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": alphas.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - alphas).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - alphas).log(),
        "sqrt_recip_alphas_cumprod": (1 / alphas).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / alphas - 1).sqrt(),
        "posterior_variance": variance,
        # The variance is zero at the first step.
        "posterior_log_variance_clipped": variance.clamp_min(1e-20).log(),
        "posterior_mean_coef1": betas * before.sqrt() / (1 - alphas),
        "posterior_mean_coef2": (1 - before) * (1 - betas).sqrt() / (1 - alphas),
    }
    return {name: vector.float() for name, vector in vectors.items()}


def _carried_configs(base: StableDiffusion, controlnet: Any | None) -> dict[str, Any]:
    configs = {name: _plain_config(model.config) for name, model in _models(base, controlnet).items()}
    return {**configs, "scheduler": dict(base.scheduler_config)}


def _plain_config(config: Any) -> dict[str, Any]:
    """Return a model's config as JSON values."""
    entries = json.loads(config.to_json_string()) if hasattr(config, "to_json_string") else dict(config)
    entries = {key: value for key, value in copy.deepcopy(entries).items() if not key.startswith("_")}
    return json.loads(json.dumps(entries))


def _carried_tokenizers(base: StableDiffusion) -> dict[str, dict[str, str]]:
    tokenizers = {"tokenizer": base.tokenizer}
    if hasattr(base, "tokenizer_2"):
        tokenizers["tokenizer_2"] = base.tokenizer_2
    carried = {}
    for name, tokenizer in tokenizers.items():
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save_pretrained(folder)
            files = sorted(Path(folder).iterdir())
            carried[name] = {file.name: file.read_text(encoding="utf-8") for file in files}
    return carried
