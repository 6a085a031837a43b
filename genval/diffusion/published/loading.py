"""Find, load and place a published pipeline, and run it for one image."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from genval.diffusion.models.controlnet import find_controlnet
from genval.diffusion.models.pipelines import find_model, load_strictly
from genval.diffusion.published.pipelines import CONTROLNETS, Published, Request
from genval.diffusion.settings import StyleTransferSettings
from genval.runtime.errors import GenValError
from genval.runtime.files import read_json
from genval.runtime.messages import first_words, silence_loading

# Files of a part of a pipeline that are fetched from the hub.
_FETCHED = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
TOO_LARGE = "Give --offload model (or sequential), --vae_tiling, or a smaller size."
# Entries in which the configs of a ControlNet and of its base must agree, where both have them.
_SHARED = (
    "in_channels",
    "patch_size",
    "num_attention_heads",
    "attention_head_dim",
    "joint_attention_dim",
    "pooled_projection_dim",
)


def find_published(name: str | Path, known: Mapping[str, Published], flag: str) -> tuple[Path, Published]:
    """Find a pipeline's folder, downloaded from Hugging Face if needed, and check that it is one of `known`.

    Args:
        name: a folder in diffusers' layout or a hub name.
        known: the accepted pipelines, by the class in `model_index.json`.
        flag: where the name comes from, for errors.

    Raises:
        GenValError: the folder or a file is missing, or the pipeline or one of its parts is of another class.
    """
    folder = find_model(name, ["model_index.json"])
    index = read_json(folder / "model_index.json", dict[str, Any])
    published = known.get(str(index.get("_class_name")))
    if published is None:
        raise GenValError(
            f"{flag} {name} is a {index.get('_class_name')}: expected {' or '.join(known)}. Give another model."
        )
    for part, expected in {**published.networks, **published.tokenizers}.items():
        found = index.get(part)
        class_name = str(found[1]) if isinstance(found, list) and len(found) == 2 else "missing"
        if class_name.removesuffix("Fast") != expected:
            raise GenValError(
                f"{flag} {name}: the {part} of a {published.index} is a {expected}, but its model_index.json says "
                f"{class_name}. Fetch the model again, or give another one."
            )
    configs = [f"{part}/config.json" for part in published.networks]
    parts = (*published.networks, *published.tokenizers, "scheduler")
    fetched = [f"{part}/{pattern}" for part in parts for pattern in _FETCHED]
    return find_model(name, ["model_index.json", *configs], fetched), published


def published_controlnet(settings: StyleTransferSettings) -> Published | None:
    """Return the pipeline of `--controlnet`; None for a ControlNet of Stable Diffusion 1 or XL.

    Raises:
        GenValError: there is no such ControlNet, or it is of a class that is not run.
    """
    path = find_controlnet(settings.controlnet)
    config = {} if path.is_file() else read_json(path / "config.json", dict[str, Any])
    class_name = str(config.get("_class_name", "ControlNetModel"))
    if class_name == "ControlNetModel":
        return None
    if class_name not in CONTROLNETS:
        raise GenValError(
            f"--controlnet {settings.controlnet} is a {class_name}: expected ControlNetModel or "
            f"{' or '.join(CONTROLNETS)}. Give another ControlNet."
        )
    if config.get("num_mode"):
        raise GenValError(
            f"--controlnet {settings.controlnet} is a union of {config['num_mode']} kinds of hints, none of which is "
            "known to be a segmentation. Give a ControlNet that was trained on segmentations alone."
        )
    return CONTROLNETS[class_name]


def load_pipeline(
    folder: Path, published: Published, dtype: torch.dtype, controlnet: str | Path | None = None
) -> tuple[Any, dict[str, Any]]:
    """Load a pipeline on the CPU, and return it with the entries of its `model_index.json`.

    Args:
        folder: of `find_published`.
        published: its entry in `EDITORS` or `CONTROLNETS`.
        dtype: of the weights.
        controlnet: folder of the ControlNet.

    Raises:
        GenValError: a part is damaged or incomplete, or the ControlNet does not fit the base.
    """
    import diffusers
    import transformers

    index = read_json(folder / "model_index.json", dict[str, Any])
    parts: dict[str, Any] = {}
    for part, class_name in published.networks.items():
        in_diffusers = hasattr(diffusers, class_name)
        model_class = getattr(diffusers if in_diffusers else transformers, class_name)
        weights = "diffusion_pytorch_model.safetensors" if in_diffusers else "model.safetensors"
        parts[part] = load_strictly(model_class, folder / part, weights, dtype=dtype)
    scheduler = getattr(diffusers, str(index.get("scheduler", [None, None])[1]), None)
    try:
        for part, class_name in published.tokenizers.items():
            parts[part] = getattr(transformers, class_name).from_pretrained(str(folder / part), trust_remote_code=False)
        if not (isinstance(scheduler, type) and issubclass(scheduler, diffusers.SchedulerMixin)):
            raise ValueError(f"its scheduler is {index.get('scheduler')}")
        parts["scheduler"] = scheduler.from_pretrained(str(folder / "scheduler"))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise GenValError(f"{folder} cannot be loaded ({first_words(error)}). Fetch it again.") from error
    if controlnet is not None:
        model_class = getattr(diffusers, published.controlnet)
        folder_of_controlnet = find_controlnet(controlnet)
        parts["controlnet"] = load_strictly(
            model_class, folder_of_controlnet, "diffusion_pytorch_model.safetensors", dtype=dtype
        )
        _check_fits(parts["controlnet"], parts["transformer"], folder_of_controlnet, folder)
    if "unet" in parts and parts["unet"].config.in_channels != 2 * parts["vae"].config.latent_channels:
        raise GenValError(
            f"{folder}: its UNet reads {parts['unet'].config.in_channels} channels, but one that edits photos reads "
            f"{2 * parts['vae'].config.latent_channels}. Give another model."
        )
    distilled = {"is_distilled": bool(index.get("is_distilled"))} if published.distilled else {}
    with silence_loading():
        pipeline = getattr(diffusers, published.name)(**parts, **published.options, **distilled)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, index


def _check_fits(controlnet: Any, transformer: Any, source: Path, base: Path) -> None:
    pairs = {key: (controlnet.config.get(key), transformer.config.get(key)) for key in _SHARED}
    differing = [f"{key} {ours} instead of {theirs}" for key, (ours, theirs) in pairs.items() if ours != theirs]
    # A ControlNet that reads no text, or has no pooled text, has no such entry.
    differing = [one for one in differing if " None" not in one]
    if differing:
        raise GenValError(
            f"The ControlNet {source} does not fit the base {base}: {'; '.join(differing)}. "
            "Give the base it was trained with."
        )


def place(pipeline: Any, device: torch.device, offload: str = "none", vae_tiling: bool = False) -> Any:
    """Move a pipeline to a device, or have its networks moved there when they compute; return it.

    Args:
        offload: "none", "model" or "sequential".
        vae_tiling: encode and decode images in tiles.

    Raises:
        GenValError: offloading without a GPU, or the networks do not fit into the device's memory.
    """
    if vae_tiling:
        pipeline.vae.enable_tiling()
    if offload == "none":
        try:
            return pipeline.to(device)
        except torch.OutOfMemoryError as error:
            raise GenValError(f"The networks do not fit into the device's memory. {TOO_LARGE}") from error
    if device.type == "cpu":
        raise GenValError("--offload is for GPUs: on a CPU all networks are in host memory. Leave it out.")
    if offload == "model":
        pipeline.enable_model_cpu_offload(device=device)
    else:
        pipeline.enable_sequential_cpu_offload(device=device)
    return pipeline


def run_pipeline(
    pipeline: Any, published: Published, request: Request, prompt: Mapping[str, Any], steps: int, seed: int
) -> torch.Tensor:
    """Run a pipeline for one image.

    Args:
        prompt: `{"prompt": text}`, or the embeddings in its place; they replace `published.arguments`.
        steps: sampling steps.
        seed: of all noise.

    Returns:
        Pixels (1, 3, H, W), -1..1, of the size of `request.image`.

    Raises:
        GenValError: the pipeline refuses its arguments, such as a size.
    """
    device = pipeline._execution_device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        # Where a pipeline samples without the generator, as the encoding of SD 3's hint does, this seed decides.
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        arguments = {**published.arguments(request), **prompt, "num_inference_steps": steps}
        try:
            images = pipeline(**arguments, generator=generator, output_type="pt").images
        except ValueError as error:
            raise GenValError(f"{published.name} refuses the image or its settings: {first_words(error)}") from error
    pixels: torch.Tensor = images.float() * 2 - 1
    if pixels.shape[-2:] != (request.image.height, request.image.width):
        raise GenValError(
            f"{published.name} made an image of {pixels.shape[-2]}x{pixels.shape[-1]} pixels in place of "
            f"{request.image.height}x{request.image.width}. Give a --height and --width that it can make."
        )
    return pixels
