"""Small autoencoders: training one whose latents have unit variance, and reading one that exists."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from genval.diffusion.models.pipelines import encode_latents, load_autoencoder
from genval.diffusion.training.loop import Log, Optimisation, fit, weight_count
from genval.runtime.errors import GenValError
from genval.runtime.messages import first_words


@dataclass(frozen=True)
class AutoencoderRecipe:
    """Size and schedule of the autoencoder."""

    block_out_channels: tuple[int, ...] = (32, 64, 96)  # one block per halving: 3 blocks make factor 4
    layers_per_block: int = 1
    latent_channels: int = 4
    steps: int = 2000
    batch_size: int = 48
    learning_rate: float = 1e-3
    gradient_weight: float = 0.5  # difference of neighbouring pixels: keeps edges (poles, lanes) sharp
    chroma_weight: float = 0.5  # difference of colour channels: luminance alone dominates L1
    kl_weight: float = 5e-6  # 3e-4 lets a channel collapse, and a UNet cannot learn such latents
    seed: int = 0


def train_autoencoder(
    images: torch.Tensor,
    recipe: AutoencoderRecipe,
    output: Path,
    device: torch.device,
    log: Log = print,
) -> dict[str, Any]:
    """Train on `images` and save a diffusers `AutoencoderKL` folder (fp16 safetensors).

    The mean and deviation of each latent channel over the set are folded into `quant_conv` and `post_quant_conv`, so
    that latents have zero mean and unit variance and `scaling_factor` is 1.

    Args:
        images: (N, 3, H, W) uint8 RGB on `device`.
        recipe: size and schedule.
        output: folder to write.
        device: where to train.
        log: called with each line of text.

    Returns:
        Scores: PSNR in dB over the last 256 images after saving and reloading in fp16, parameters, seconds, and the
        deviation of each latent channel before normalisation.
    """
    from diffusers import AutoencoderKL

    torch.manual_seed(recipe.seed)
    model = build_autoencoder(recipe, images.shape[-2]).to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, recipe.learning_rate, total_steps=recipe.steps, pct_start=0.05, anneal_strategy="cos"
    )
    generator = torch.Generator(device).manual_seed(recipe.seed)

    def losses(step: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        index = torch.randint(len(images), (recipe.batch_size,), generator=generator, device=device)
        target = to_model_range(images[index])
        if step % 2:
            target = target.flip(-1)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            posterior = model.encode(target).latent_dist
            reconstruction = model.decode(posterior.sample()).sample
        loss = _reconstruction_loss(reconstruction.float(), target, recipe)
        loss = loss + recipe.kl_weight * posterior.kl().mean()
        return loss, [loss]

    optimisation = Optimisation(
        parameters=list(model.parameters()), optimisers=[(optimiser, recipe.learning_rate)], scheduler=schedule
    )
    result = fit("autoencoder", losses, optimisation, labels=["loss"], steps=recipe.steps, log=log)
    deviation = _normalise_latents(model.eval(), images)
    model.half().save_pretrained(output, safe_serialization=True)
    seconds = result.seconds

    reloaded = AutoencoderKL.from_pretrained(output).to(device).eval()
    return {
        "psnr_db": psnr(reloaded, images[-256:]),
        "latent_deviation": [round(value, 3) for value in deviation.tolist()],
        "parameters": weight_count(reloaded),
        "seconds": round(seconds, 1),
    }


def build_autoencoder(recipe: AutoencoderRecipe, height: int) -> Any:
    """Build an `AutoencoderKL` of the recipe's size with random weights, for images of a height."""
    from diffusers import AutoencoderKL

    levels = len(recipe.block_out_channels)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=recipe.block_out_channels,
        layers_per_block=recipe.layers_per_block,
        latent_channels=recipe.latent_channels,
        norm_num_groups=16,
        mid_block_add_attention=False,
        scaling_factor=1.0,
        sample_size=height,
    )


def read_autoencoder(path: Path) -> Any:
    """Read an autoencoder: a diffusers folder, or TAESD's weights as its authors publish them.

    Args:
        path: a folder of `AutoencoderKL` or `AutoencoderTiny`, a Stable Diffusion folder, whose `vae` is read, or a
            folder with `taesd_encoder` and `taesd_decoder` (`.safetensors` or `.pth`), which become an
            `AutoencoderTiny`.

    Raises:
        GenValError: there is no such folder, a file is missing or damaged, or its weights are others.
    """
    for folder in (path, path / "vae"):
        if (folder / "config.json").is_file():
            return load_autoencoder(folder)
    for suffix in (".safetensors", ".pth"):
        halves = [path / f"taesd_{half}{suffix}" for half in ("encoder", "decoder")]
        if all(file.is_file() for file in halves):
            return _read_taesd(*halves)
    raise GenValError(
        f"No autoencoder at {path}: expected a diffusers folder (config.json, diffusion_pytorch_model.safetensors) or "
        "one with taesd_encoder.safetensors and taesd_decoder.safetensors. Without --autoencoder one is trained."
    )


def _read_taesd(encoder: Path, decoder: Path) -> Any:
    """Return an `AutoencoderTiny` of TAESD's two files, float32.

    The files number the layers of two sequences. The decoder's begins with a layer without weights, which diffusers
    does not number.
    """
    from diffusers import AutoencoderTiny
    from safetensors.torch import load_file

    state = {}
    for half, file, first in (("encoder", encoder, 0), ("decoder", decoder, 1)):
        try:
            weights = (
                load_file(file)
                if file.suffix == ".safetensors"
                else torch.load(file, map_location="cpu", weights_only=True)
            )
            for name, weight in weights.items():
                number, _, rest = name.partition(".")
                state[f"{half}.layers.{int(number) - first}.{rest}"] = weight.float()
        except Exception as error:  # safetensors and torch raise OSError, RuntimeError, UnpicklingError and others
            raise GenValError(f"{file} cannot be read ({error}). Fetch it again.") from error
    model: Any = AutoencoderTiny()
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise GenValError(
            f"{encoder.parent} does not hold TAESD's weights for Stable Diffusion 1 ({first_words(error)}). Fetch "
            "taesd_encoder and taesd_decoder of one release."
        ) from error
    return model


def to_model_range(images: torch.Tensor) -> torch.Tensor:
    """Scale uint8 0..255 to float32 -1..1."""
    return images.float().div_(127.5).sub_(1)


@torch.no_grad()
def encode_images(model: Any, images: torch.Tensor, batch_size: int = 256) -> torch.Tensor:
    """Return the latents of uint8 (N, 3, H, W) images, not scaled: (N, C, h, w) float16."""
    chunks = []
    # As many pixels at once as `batch_size` images of 128x256 have.
    rows = max(1, min(batch_size, batch_size * 128 * 256 // (images.shape[-2] * images.shape[-1])))
    for chunk in images.split(rows):
        with torch.autocast(images.device.type, torch.bfloat16, enabled=images.is_cuda):
            chunks.append(encode_latents(model, to_model_range(chunk)).half())
    return torch.cat(chunks)


def _reconstruction_loss(output: torch.Tensor, target: torch.Tensor, recipe: AutoencoderRecipe) -> torch.Tensor:
    difference = output - target
    loss = difference.abs().mean()
    edges = difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
    chroma = (difference - difference.mean(1, keepdim=True)).abs().mean()
    return loss + recipe.gradient_weight * edges + recipe.chroma_weight * chroma


@torch.no_grad()
def _normalise_latents(model: Any, images: torch.Tensor) -> torch.Tensor:
    """Fold each channel's mean and deviation into the 1x1 convolutions around the latents; return the deviations."""
    latents = encode_images(model, images[:4096]).float()
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    channels = len(mean)
    quant, post = model.quant_conv, model.post_quant_conv
    # quant_conv gives the means, then the log variances: x -> (x - mean) / deviation, log variance - 2 log deviation.
    quant.weight[:channels] /= deviation.view(-1, 1, 1, 1)
    quant.bias[:channels] = (quant.bias[:channels] - mean) / deviation
    quant.bias[channels:] -= 2 * deviation.log()
    post.bias += post.weight.flatten(1) @ mean
    post.weight *= deviation.view(1, -1, 1, 1)
    return deviation


@torch.no_grad()
def psnr(model: Any, images: torch.Tensor) -> float:
    """Return the mean PSNR in dB of uint8 (N, 3, H, W) images that were encoded and decoded."""
    errors = []
    for chunk in images.split(32):
        target = to_model_range(chunk)
        output = model.decode(encode_latents(model, target)).sample.clamp(-1, 1)
        errors.append((output - target).div(2).square().mean((1, 2, 3)))
    return round(float((-10 * torch.cat(errors).log10()).mean()), 2)
