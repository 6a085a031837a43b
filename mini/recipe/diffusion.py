"""The small text-to-image diffusion model, with the architecture and folder format of Stable Diffusion."""

from __future__ import annotations

import itertools
import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from mini.recipe.autoencoder import encode_images
from mini.recipe.training import Average, Log, Optimisation, Snapshot, fit, weight_count


@dataclass(frozen=True)
class DiffusionRecipe:
    """Size and schedule of the UNet and the text encoder."""

    block_out_channels: tuple[int, ...] = (64, 96, 160)
    layers_per_block: int = 1
    attention_heads: int = 4
    text_width: int = 128
    text_layers: int = 3
    text_tokens: int = 77  # CLIP's; the longest caption of the mini world has 57, with the weather at the end
    vocabulary: int = 700  # at most
    steps: int = 5000
    batch_size: int = 128
    learning_rate: float = 5e-4
    warmup_steps: int = 150
    ema: float = 0.9985
    caption_dropout: float = 0.12  # trains the unconditional branch that classifier-free guidance needs
    snapshot_steps: int = 1000
    seed: int = 0


def train_diffusion(
    images: torch.Tensor,
    texts: Sequence[str],
    autoencoder: Path,
    recipe: DiffusionRecipe,
    output: Path,
    device: torch.device,
    log: Log = print,
) -> dict[str, Any]:
    """Train a UNet and a CLIP-type text encoder together, and save a diffusers Stable Diffusion folder in fp16.

    Every `snapshot_steps` the whole training state is saved next to `output`; a later run resumes from it.

    The model predicts velocities with zero-terminal-SNR betas (Lin et al., 2024), so that a few sampling steps can
    generate very dark and very bright images, such as night and snow.

    Args:
        images: (N, 3, H, W) uint8 RGB on `device`.
        texts: N captions.
        autoencoder: folder of a trained `AutoencoderKL`.
        recipe: size and schedule.
        output: folder to write.
        device: where to train.
        log: called with each line of text.

    Returns:
        Scores: last smoothed loss, parameters, images per second, seconds.
    """
    from diffusers import AutoencoderKL

    torch.manual_seed(recipe.seed)
    vae = AutoencoderKL.from_pretrained(autoencoder).to(device).eval()
    latents = _encode_both_ways(vae, images)
    tokenizer = build_tokenizer(texts, recipe)
    input_ids = _tokenize(tokenizer, texts, recipe.text_tokens).to(device)
    # Without truncation: the tokenizer is saved with the settings of its last call.
    empty_ids = torch.tensor(tokenizer("", padding="max_length", max_length=recipe.text_tokens)["input_ids"]).to(device)
    text_encoder = build_text_encoder(tokenizer, recipe).to(device)
    unet = build_unet(latents.shape[2], latents.shape[-2:], recipe).to(device, memory_format=torch.channels_last)
    scheduler = build_scheduler()
    trained = torch.nn.ModuleDict({"unet": unet, "text": text_encoder})
    average = Average(trained, recipe.ema)
    optimisation = _optimisation(trained, recipe, device)
    batches = _VelocityBatches(latents, input_ids, empty_ids, scheduler.alphas_cumprod.to(device), recipe)
    parts = {"trained": trained, "average": average.model, **optimisation.state()}
    snapshot = Snapshot(output, recipe, parts, batches.generator, recipe.snapshot_steps)
    result = fit(
        "diffusion", lambda _: batches.losses(unet, text_encoder), optimisation, labels=["loss"], steps=recipe.steps,
        average=average, snapshot=snapshot, log=log,
    )  # fmt: skip
    seconds = result.seconds
    _save_pipeline(output, vae, tokenizer, scheduler, average.model)
    snapshot.remove()
    return {
        "loss": round(result.losses["loss"], 4),
        "unet_parameters": weight_count(unet),
        "text_parameters": weight_count(text_encoder),
        "images_per_second": round(result.new_steps * recipe.batch_size / seconds, 1),
        "seconds": round(seconds, 1),
    }


def _optimisation(trained: torch.nn.Module, recipe: DiffusionRecipe, device: torch.device) -> Optimisation:
    """Return AdamW with a warm-up and a cosine schedule."""
    rate = recipe.learning_rate
    optimiser = torch.optim.AdamW(trained.parameters(), lr=rate, weight_decay=1e-2, fused=device.type == "cuda")
    warmup = min(0.3, recipe.warmup_steps / recipe.steps)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=recipe.steps, pct_start=warmup)
    return Optimisation(parameters=list(trained.parameters()), optimisers=[(optimiser, rate)], scheduler=scheduler)


def _encode_both_ways(vae: Any, images: torch.Tensor) -> torch.Tensor:
    """Return the latents (N, 2, C, h, w) of each image and its mirror image."""
    return torch.stack([encode_images(vae, images), encode_images(vae, images.flip(-1))], 1)


def _tokenize(tokenizer: Any, texts: Sequence[str], length: int) -> torch.Tensor:
    """Return the token ids (N, length) of captions."""
    return torch.tensor(tokenizer(list(texts), padding="max_length", truncation=True, max_length=length)["input_ids"])


class _VelocityBatches:
    """Batches of noisy latents of random images, and the target velocity.

    Args:
        latents: (N, 2, C, h, w) of each image and its mirror image.
        input_ids: (N, tokens) of the captions.
        empty_ids: (tokens,) of the empty caption.
        alphas: the schedule's cumulative products.
        recipe: batch size and fraction of empty captions.
    """

    def __init__(
        self,
        latents: torch.Tensor,
        input_ids: torch.Tensor,
        empty_ids: torch.Tensor,
        alphas: torch.Tensor,
        recipe: DiffusionRecipe,
    ) -> None:
        self._latents, self._input_ids, self._empty_ids = latents, input_ids, empty_ids
        self._alphas, self._recipe = alphas, recipe
        self.generator = torch.Generator(latents.device).manual_seed(recipe.seed)

    def losses(self, unet: Any, text_encoder: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the mean squared error of the velocity of one batch."""
        count, device, generator = self._recipe.batch_size, self._latents.device, self.generator
        index = torch.randint(len(self._latents), (count,), generator=generator, device=device)
        flips = torch.randint(2, (count,), generator=generator, device=device)
        clean = self._latents[index, flips].float()
        noise = torch.randn(clean.shape, generator=generator, device=device)
        timesteps = torch.randint(len(self._alphas), (count,), generator=generator, device=device)
        dropped = torch.rand(count, generator=generator, device=device) < self._recipe.caption_dropout
        ids = torch.where(dropped[:, None], self._empty_ids, self._input_ids[index])
        alphas = self._alphas[timesteps]
        signal, sigma = alphas.sqrt().view(-1, 1, 1, 1), (1 - alphas).sqrt().view(-1, 1, 1, 1)
        noisy, velocity = signal * clean + sigma * noise, signal * noise - sigma * clean
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            context = text_encoder(ids).last_hidden_state
            predicted = unet(noisy, timesteps, context).sample
        loss = F.mse_loss(predicted.float(), velocity)
        return loss, [loss]


def build_text_encoder(tokenizer: Any, recipe: DiffusionRecipe) -> Any:
    """Build a `CLIPTextModel` of the recipe's size with random weights."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=recipe.text_width,
            intermediate_size=recipe.text_width * 4,
            num_hidden_layers=recipe.text_layers,
            num_attention_heads=4,
            max_position_embeddings=recipe.text_tokens,
            projection_dim=recipe.text_width,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_unet(channels: int, size: Sequence[int], recipe: DiffusionRecipe) -> Any:
    """Build a `UNet2DConditionModel` of the recipe's size with random weights; `size` is (h, w) of the latents."""
    from diffusers import UNet2DConditionModel

    levels = len(recipe.block_out_channels)
    return UNet2DConditionModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=recipe.block_out_channels,
        layers_per_block=recipe.layers_per_block,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * (levels - 1),
        up_block_types=("CrossAttnUpBlock2D",) * (levels - 1) + ("UpBlock2D",),
        cross_attention_dim=recipe.text_width,
        attention_head_dim=recipe.attention_heads,  # the number of heads, despite its name, as in SD 1.x configs
    )


def build_scheduler() -> Any:
    """Return the noise schedule: velocity prediction, zero terminal signal-to-noise ratio."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        rescale_betas_zero_snr=True,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


def _save_pipeline(output: Path, vae: Any, tokenizer: Any, scheduler: Any, models: Any) -> None:
    """Save a Stable Diffusion folder in fp16."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=models["text"].eval(),
        tokenizer=tokenizer,
        unet=models["unet"].eval(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(dtype=torch.float16).save_pretrained(output, safe_serialization=True)


def build_tokenizer(texts: Sequence[str], recipe: DiffusionRecipe) -> Any:
    """Build a `CLIPTokenizer` with byte-pair merges learned from `texts`, so that their words are single tokens.

    The merges are not learned by the package `tokenizers`, because its trainer breaks ties differently in every
    process, so token ids and trained weights would not be reproducible.
    """
    from transformers import CLIPTokenizer

    start, end = "<|startoftext|>", "<|endoftext|>"
    counts = Counter(word for text in texts for word in re.findall(r"[a-z]+|\d|[^\sa-z\d]+", text.lower()))
    words = {word: [*word[:-1], f"{word[-1]}</w>"] for word in sorted(counts)}
    # Every letter and digit has a token of its own, so that a prompt with other words still has tokens.
    letters = sorted({*string.ascii_lowercase, *string.digits, *"".join(counts)})
    vocabulary = [start, end, *letters, *(f"{letter}</w>" for letter in letters)]
    merges: list[tuple[str, str]] = []
    while len(vocabulary) < recipe.vocabulary:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, symbols in words.items():
            for pair in itertools.pairwise(symbols):
                pairs[pair] += counts[word]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        vocabulary.append("".join(best))
        words = {word: _merge(symbols, best) for word, symbols in words.items()}
    return CLIPTokenizer(
        vocab={token: number for number, token in enumerate(dict.fromkeys(vocabulary))},
        merges=merges,
        bos_token=start,
        eos_token=end,
        unk_token=end,
        pad_token=end,
        model_max_length=recipe.text_tokens,
    )


def _merge(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for symbol in symbols:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return merged
