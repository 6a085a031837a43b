"""A small text-to-image diffusion model, with the architecture and folder format of Stable Diffusion."""

from __future__ import annotations

import itertools
import math
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from genval.diffusion.models.pipelines import move
from genval.diffusion.sampling.denoiser import INDUCTOR_OPTIONS
from genval.diffusion.training.autoencoder import encode_images
from genval.diffusion.training.loop import Average, Fit, Log, Optimisation, Snapshot, fit, weight_count
from genval.runtime.messages import silence_loading


@dataclass(frozen=True)
class DiffusionRecipe:
    """Size and schedule of the UNet and the text encoder."""

    block_out_channels: tuple[int, ...] = (64, 96, 160)
    layers_per_block: int = 1
    attention: tuple[bool, ...] | None = None  # whether a level has attention, by level; None: all but the first have
    attention_heads: int = 4
    text_width: int = 128
    text_layers: int = 3
    text_tokens: int = 77  # CLIP's; the longest caption of the mini world has 57, with the weather at the end
    vocabulary: int = 700  # at most
    steps: int = 5000
    batch_size: int = 128
    learning_rate: float = 5e-4
    lr_schedule: str = "one_cycle"  # or "cosine" or "constant", both after a linear warm-up
    warmup_steps: int = 150
    ema: float = 0.9985
    caption_dropout: float = 0.12  # trains the unconditional branch that classifier-free guidance needs
    place_dropout: float = 0.0  # where captions have a place and a condition, without the place
    condition_dropout: float = 0.0  # the same, without the condition
    snr_gamma: float | None = None  # limits the weight of nearly clean images, see `velocity_weights`
    snapshot_steps: int = 1000
    seed: int = 0
    data: str = ""  # identifies images, captions and autoencoder: a saved state of others is refused


@dataclass
class BaseParts:
    """The models of a base that is trained: the VAE is frozen, the UNet and the text encoder are trained together."""

    vae: Any
    tokenizer: Any
    text_encoder: Any
    unet: Any


@dataclass(frozen=True)
class TrainedBase:
    """The result of `fit_base`.

    Attributes:
        models: the averaged weights, `unet` and `text`.
        fit: losses, steps and time.
        snapshot: the saved state, to remove where the training is finished.
    """

    models: Any
    fit: Fit
    snapshot: Snapshot


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
    latents = encode_both_ways(vae, images)
    parts = build_base(vae, texts, latents, recipe)
    captions = [(text, "") for text in texts]
    trained = fit_base(parts, latents, captions, (recipe.caption_dropout,), recipe, output, device, log=log)
    save_base(output, parts, trained.models)
    trained.snapshot.remove()
    return base_scores(parts, trained.fit, recipe)


def base_scores(parts: BaseParts, result: Fit, recipe: DiffusionRecipe) -> dict[str, Any]:
    """Return the last loss, the size of the models and the speed."""
    return {
        "loss": round(result.losses["loss"], 4),
        "unet_parameters": weight_count(parts.unet),
        "text_parameters": weight_count(parts.text_encoder),
        "images_per_second": round(result.new_steps * recipe.batch_size / result.seconds, 1),
        "seconds": round(result.seconds, 1),
    }


def build_base(vae: Any, texts: Sequence[str], latents: torch.Tensor, recipe: DiffusionRecipe) -> BaseParts:
    """Build an untrained base for latents (N, 2, C, h, w), with a tokenizer of the words of `texts`."""
    tokenizer = build_tokenizer(texts, recipe)
    text_encoder = build_text_encoder(tokenizer, recipe)
    return BaseParts(vae, tokenizer, text_encoder, build_unet(latents.shape[2], latents.shape[-2:], recipe))


def fit_base(
    parts: BaseParts,
    latents: torch.Tensor,
    captions: Sequence[Sequence[str]],
    shares: Sequence[float],
    recipe: DiffusionRecipe,
    output: Path,
    device: torch.device,
    *,
    weights: torch.Tensor | None = None,
    seconds: float | None = None,
    compiled: bool = False,
    after_step: Callable[[int, Any], object] | None = None,
    record: Callable[[int, Mapping[str, float]], object] | None = None,
    log: Log = print,
) -> TrainedBase:
    """Train the UNet and the text encoder of a base on latents, and resume from a state that is saved next to `output`.

    The model predicts velocities with zero-terminal-SNR betas (Lin et al., 2024), so that a few sampling steps can
    generate very dark and very bright images, such as night and snow.

    Args:
        parts: the models.
        latents: (N, 2, C, h, w) float16 on `device`, scaled, of each image and its mirror image.
        captions: N times the same number of texts: the caption, then what replaces it.
        shares: how often each of the replacements is taken, 0..1.
        recipe: the schedule.
        output: the state is saved in `{output}.snapshot.pt`.
        device: where to train.
        weights: (N,) how often each image is drawn, relative to the others; equally often without.
        seconds: stop after this time.
        compiled: compile the UNet.
        after_step: called with the number of steps so far and the averaged models.
        record, log: as in `fit`.
    """
    text_encoder = parts.text_encoder.to(device)
    unet = parts.unet.to(device, memory_format=torch.channels_last)
    scheduler = build_scheduler()
    trained = torch.nn.ModuleDict({"unet": unet, "text": text_encoder}).train().requires_grad_(True)
    average = Average(trained, recipe.ema)
    if compiled:
        compile_unet(unet)
    optimisation = _optimisation(trained, recipe, device)
    texts = _CaptionTable(parts.tokenizer, captions, shares, recipe.text_tokens, device)
    batches = _VelocityBatches(latents, texts, scheduler.alphas_cumprod.to(device), recipe, weights)
    state = {"trained": trained, "average": average.model, **optimisation.state()}
    # Without a schedule that depends on the number of steps, a training may be continued for longer.
    free = ("steps", "snapshot_steps") if recipe.lr_schedule == "constant" else ("snapshot_steps",)
    snapshot = Snapshot(output, recipe, state, batches.generator, recipe.snapshot_steps, free)
    result = fit(
        "diffusion", lambda _: batches.losses(unet, text_encoder), optimisation, labels=["loss"], steps=recipe.steps,
        seconds=seconds, average=average, snapshot=snapshot, record=record, log=log,
        after_step=None if after_step is None else lambda step: after_step(step, average.model),
    )  # fmt: skip
    return TrainedBase(average.model, result, snapshot)


def compile_unet(unet: Any) -> None:
    """Generate kernels for a UNet's forward and backward pass, for the shape of the first batch."""
    options = INDUCTOR_OPTIONS if unet.device.type == "cuda" else None
    unet.compile(dynamic=False, options=options)


def _optimisation(trained: torch.nn.Module, recipe: DiffusionRecipe, device: torch.device) -> Optimisation:
    """Return AdamW with a warm-up and the recipe's schedule."""
    rate = recipe.learning_rate
    optimiser = torch.optim.AdamW(trained.parameters(), lr=rate, weight_decay=1e-2, fused=device.type == "cuda")
    scheduler: torch.optim.lr_scheduler.LRScheduler
    if recipe.lr_schedule == "one_cycle":
        warmup = min(0.3, recipe.warmup_steps / recipe.steps)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=recipe.steps, pct_start=warmup)
    else:

        def factor(step: int) -> float:
            warm = min(1.0, (step + 1) / (recipe.warmup_steps + 1))
            cosine = 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / recipe.steps))
            return warm * (cosine if recipe.lr_schedule == "cosine" else 1.0)

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
    return Optimisation(parameters=list(trained.parameters()), optimisers=[(optimiser, rate)], scheduler=scheduler)


def encode_both_ways(vae: Any, images: torch.Tensor) -> torch.Tensor:
    """Return the latents (N, 2, C, h, w) of each image and its mirror image, not scaled."""
    return torch.stack([encode_images(vae, images), encode_images(vae, images.flip(-1))], 1)


def velocity_weights(alphas: torch.Tensor, gamma: float) -> torch.Tensor:
    """Return the weight of each timestep in the mean squared error of the velocity, (T,).

    The error of the velocity is that of the clean image times SNR + 1. Here the factor is limited to gamma + 1, after
    the min-SNR weighting of Hang et al., "Efficient Diffusion Training via Min-SNR Weighting Strategy", ICCV 2023.
    Their weight, min(SNR, gamma) / (SNR + 1) for velocities, is 0 at an SNR of 0; this one is 1 there.

    Args:
        alphas: (T,) cumulative products of the schedule; the SNR is alpha / (1 - alpha).
        gamma: the limit of the SNR.
    """
    snr = alphas / (1 - alphas)
    return (snr.clamp(max=gamma) + 1) / (snr + 1)


class _CaptionTable:
    """The distinct captions of a set as token ids, and which of them each image can have.

    Args:
        tokenizer: of the text encoder.
        captions: N times V texts.
        shares: how often each text but the first is taken.
        length: to which ids are padded.
        device: of the ids.
    """

    def __init__(
        self, tokenizer: Any, captions: Sequence[Sequence[str]], shares: Sequence[float], length: int, device: Any
    ) -> None:
        texts = sorted({text for one in captions for text in one})
        numbers = {text: number for number, text in enumerate(texts)}
        ids = tokenizer(texts, padding="max_length", truncation=True, max_length=length)["input_ids"]
        # Again without truncation: the tokenizer is saved with the settings of its last call.
        tokenizer("", padding="max_length", max_length=length)
        self._ids = torch.tensor(ids, device=device)
        self._rows = torch.tensor([[numbers[text] for text in one] for one in captions], device=device)
        self._edges = torch.tensor(shares, dtype=torch.float64).cumsum(0).float().to(device)

    def states(self, text_encoder: Any, index: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Return the text states (B, tokens, C) of images; `places` (B,), 0..1, choose among their texts."""
        variant = ((places[:, None] >= self._edges).sum(1) + 1) % self._rows.shape[1]
        chosen = self._rows[index, variant]
        # Every text once, where there are fewer texts than images in a batch.
        if len(self._ids) <= len(index):
            states: torch.Tensor = text_encoder(self._ids).last_hidden_state[chosen]
        else:
            states = text_encoder(self._ids[chosen]).last_hidden_state
        return states


class _VelocityBatches:
    """Batches of noisy latents of random images, and the target velocity.

    Args:
        latents: (N, 2, C, h, w) of each image and its mirror image.
        captions: of the images.
        alphas: the schedule's cumulative products.
        recipe: batch size, seed and weight of the timesteps.
        weights: (N,) how often each image is drawn, or None for equally often.
    """

    def __init__(
        self,
        latents: torch.Tensor,
        captions: _CaptionTable,
        alphas: torch.Tensor,
        recipe: DiffusionRecipe,
        weights: torch.Tensor | None,
    ) -> None:
        self._latents, self._captions, self._alphas, self._recipe = latents, captions, alphas, recipe
        self._weights = None if weights is None else weights.to(latents.device)
        self._loss_weights = None if recipe.snr_gamma is None else velocity_weights(alphas, recipe.snr_gamma)
        self.generator = torch.Generator(latents.device).manual_seed(recipe.seed)

    def losses(self, unet: Any, text_encoder: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the (weighted) mean squared error of the velocity of one batch."""
        count, device, generator = self._recipe.batch_size, self._latents.device, self.generator
        if self._weights is None:
            index = torch.randint(len(self._latents), (count,), generator=generator, device=device)
        else:
            index = torch.multinomial(self._weights, count, replacement=True, generator=generator)
        flips = torch.randint(2, (count,), generator=generator, device=device)
        clean = self._latents[index, flips].float()
        noise = torch.randn(clean.shape, generator=generator, device=device)
        timesteps = torch.randint(len(self._alphas), (count,), generator=generator, device=device)
        places = torch.rand(count, generator=generator, device=device)
        alphas = self._alphas[timesteps]
        signal, sigma = alphas.sqrt().view(-1, 1, 1, 1), (1 - alphas).sqrt().view(-1, 1, 1, 1)
        noisy, velocity = signal * clean + sigma * noise, signal * noise - sigma * clean
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            context = self._captions.states(text_encoder, index, places)
            predicted = unet(noisy, timesteps, context).sample
        if self._loss_weights is None:
            loss = F.mse_loss(predicted.float(), velocity)
        else:
            errors = F.mse_loss(predicted.float(), velocity, reduction="none").mean((1, 2, 3))
            loss = (self._loss_weights[timesteps] * errors).mean()
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
    attention = recipe.attention or (False,) + (True,) * (levels - 1)
    return UNet2DConditionModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=recipe.block_out_channels,
        layers_per_block=recipe.layers_per_block,
        down_block_types=tuple("CrossAttnDownBlock2D" if here else "DownBlock2D" for here in attention),
        up_block_types=tuple("CrossAttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attention)),
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


def save_base(output: Path, parts: BaseParts, models: Any) -> None:
    """Save a Stable Diffusion folder in fp16; `model_index.json`, which makes it complete, is written last.

    Args:
        output: the folder.
        parts: VAE and tokenizer.
        models: the averaged `unet` and `text`, which become fp16.
    """
    from diffusers import StableDiffusionPipeline

    (output / "model_index.json").unlink(missing_ok=True)
    for model in (parts.vae, models["text"], models["unet"]):
        move(model, "cpu", torch.float16)
    pipeline: Any = StableDiffusionPipeline(
        vae=parts.vae,
        text_encoder=models["text"].eval(),
        tokenizer=parts.tokenizer,
        unet=models["unet"].eval(),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    with silence_loading():
        pipeline.save_pretrained(output, safe_serialization=True)


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
    merges: list[Any] = []  # pairs of symbols; the tokenizer's annotation names another type
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
