"""The small variational autoencoder: downscaling factor 4, four latent channels of unit variance."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mini.recipe.training import Log, Optimisation, fit, weight_count


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
        "psnr_db": _psnr(reloaded, images[-256:]),
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


def to_model_range(images: torch.Tensor) -> torch.Tensor:
    """Scale uint8 0..255 to float32 -1..1."""
    return images.float().div_(127.5).sub_(1)


@torch.no_grad()
def encode_images(model: Any, images: torch.Tensor, batch_size: int = 256) -> torch.Tensor:
    """Return the posterior means of uint8 (N, 3, H, W) images: (N, C, h, w) float16."""
    chunks = []
    for chunk in images.split(batch_size):
        with torch.autocast(images.device.type, torch.bfloat16, enabled=images.is_cuda):
            chunks.append(model.encode(to_model_range(chunk)).latent_dist.mean.half())
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
def _psnr(model: Any, images: torch.Tensor) -> float:
    errors = []
    for chunk in images.split(32):
        target = to_model_range(chunk)
        output = model.decode(model.encode(target).latent_dist.mode()).sample.clamp(-1, 1)
        errors.append((output - target).div(2).square().mean((1, 2, 3)))
    return round(float((-10 * torch.cat(errors).log10()).mean()), 2)
