"""The small text-to-image diffusion model, in Stable Diffusion's own structure and folder format."""

from __future__ import annotations

import copy
import itertools
import re
import string
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from genval.runtime.errors import GenValError
from genval.runtime.files import replace_file
from mini.recipe.autoencoder import encode_images


@dataclass(frozen=True)
class DiffusionRecipe:
    """Size and schedule of the UNet and the text encoder."""

    block_out_channels: tuple[int, ...] = (64, 96, 160)
    layers_per_block: int = 1
    attention_heads: int = 4
    text_width: int = 128
    text_layers: int = 3
    text_tokens: int = 77  # CLIP's; the longest caption of the world has 57, its weather at the end
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
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train a UNet and a CLIP-type text encoder together, and save a diffusers Stable Diffusion folder in fp16.

    Every `snapshot_steps` the whole state is saved beside `output`, and a run that finds one goes on from it.

    Velocity prediction with zero-terminal-SNR betas (Lin et al., 2024): a few sampling steps then reach true black
    and white, which night and snow need.

    Args:
        images: (N, 3, H, W) uint8 RGB on `device`.
        texts: N captions.
        autoencoder: folder of a trained `AutoencoderKL`.
        recipe: size and schedule.
        output: folder to write.
        device: where to train.
        log: takes a line of text.

    Returns:
        Figures: last smoothed loss, parameters, images per second, seconds.
    """
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(recipe.seed)
    vae = AutoencoderKL.from_pretrained(autoencoder).to(device).eval()
    latents = torch.stack([encode_images(vae, images), encode_images(vae, images.flip(-1))], 1)
    tokenizer = build_tokenizer(texts, recipe)
    tokens = tokenizer(list(texts), padding="max_length", truncation=True, max_length=recipe.text_tokens)
    input_ids = torch.tensor(tokens["input_ids"], device=device)
    empty_ids = torch.tensor(tokenizer("", padding="max_length", max_length=recipe.text_tokens)["input_ids"]).to(device)

    text_encoder = CLIPTextModel(
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
    ).to(device)
    levels = len(recipe.block_out_channels)
    unet = UNet2DConditionModel(
        sample_size=latents.shape[-2:],
        in_channels=latents.shape[2],
        out_channels=latents.shape[2],
        block_out_channels=recipe.block_out_channels,
        layers_per_block=recipe.layers_per_block,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * (levels - 1),
        up_block_types=("CrossAttnUpBlock2D",) * (levels - 1) + ("UpBlock2D",),
        cross_attention_dim=recipe.text_width,
        attention_head_dim=recipe.attention_heads,  # the head count, in spite of its name, as in SD 1.x configs
    ).to(device, memory_format=torch.channels_last)
    scheduler = DDIMScheduler(
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
    alphas = scheduler.alphas_cumprod.to(device)
    trained = torch.nn.ModuleDict({"unet": unet, "text": text_encoder})
    average = copy.deepcopy(trained).requires_grad_(False)
    optimiser = torch.optim.AdamW(
        trained.parameters(), lr=recipe.learning_rate, weight_decay=1e-2, fused=device.type == "cuda"
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser,
        recipe.learning_rate,
        total_steps=recipe.steps,
        pct_start=min(0.3, recipe.warmup_steps / recipe.steps),
    )
    generator = torch.Generator(device).manual_seed(recipe.seed)
    snapshot = _Snapshot(output, recipe, trained, average, optimiser, schedule, generator)
    first_step = snapshot.load()
    smoothed = torch.zeros((), device=device)
    start = time.perf_counter()
    for step in range(first_step, recipe.steps):
        index = torch.randint(len(latents), (recipe.batch_size,), generator=generator, device=device)
        flips = torch.randint(2, (recipe.batch_size,), generator=generator, device=device)
        clean = latents[index, flips].float()
        noise = torch.randn(clean.shape, generator=generator, device=device)
        timesteps = torch.randint(len(alphas), (recipe.batch_size,), generator=generator, device=device)
        dropped = torch.rand(recipe.batch_size, generator=generator, device=device) < recipe.caption_dropout
        ids = torch.where(dropped[:, None], empty_ids, input_ids[index])
        signal, sigma = alphas[timesteps].sqrt().view(-1, 1, 1, 1), (1 - alphas[timesteps]).sqrt().view(-1, 1, 1, 1)
        noisy, velocity = signal * clean + sigma * noise, signal * noise - sigma * clean
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            context = text_encoder(ids).last_hidden_state
            predicted = unet(noisy, timesteps, context).sample
        loss = F.mse_loss(predicted.float(), velocity)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0, foreach=True)
        optimiser.step()
        schedule.step()
        update_average(average, trained, min(recipe.ema, (step + 1) / (step + 10)))
        taken = step - first_step
        smoothed = smoothed.lerp(loss.detach(), 0.02 if taken > 50 else 1 / (taken + 1))
        if (step + 1) % recipe.snapshot_steps == 0:
            snapshot.save(step + 1)
        if step % 250 == 0 or step == recipe.steps - 1:
            seconds = time.perf_counter() - start
            log(f"diffusion step {step} loss {smoothed.item():.4f} {seconds:.0f} s")
    seconds = time.perf_counter() - start

    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=average["text"].eval(),
        tokenizer=tokenizer,
        unet=average["unet"].eval(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(dtype=torch.float16).save_pretrained(output, safe_serialization=True)
    snapshot.path.unlink(missing_ok=True)
    return {
        "loss": round(smoothed.item(), 4),
        "unet_parameters": sum(p.numel() for p in unet.parameters()),
        "text_parameters": sum(p.numel() for p in text_encoder.parameters()),
        "images_per_second": round((recipe.steps - first_step) * recipe.batch_size / seconds, 1),
        "seconds": round(seconds, 1),
    }


class _Snapshot:
    """All that a run is made of, in one file of plain tensors beside its output."""

    def __init__(
        self,
        output: Path,
        recipe: DiffusionRecipe,
        trained: torch.nn.Module,
        average: torch.nn.Module,
        optimiser: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
        generator: torch.Generator,
    ) -> None:
        self.path = output.with_name(f"{output.name}.snapshot.pt")
        self.recipe = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(recipe).items()}
        self.parts: dict[str, Any] = {
            "trained": trained,
            "average": average,
            "optimiser": optimiser,
            "schedule": schedule,
        }
        self.generator = generator

    def save(self, step: int) -> None:
        state = {name: part.state_dict() for name, part in self.parts.items()}
        with replace_file(self.path) as temporary:
            torch.save({"step": step, "recipe": self.recipe, "noise": self.generator.get_state(), **state}, temporary)

    def load(self) -> int:
        """Put a saved state in place and return the step it was saved after; 0 where there is none.

        Raises:
            GenValError: the state was saved under another recipe.
        """
        if not self.path.exists():
            return 0
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        if state["recipe"] != self.recipe:
            raise GenValError(
                f"{self.path} was saved with other settings. Use the same ones, or delete it to start anew."
            )
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        self.generator.set_state(state["noise"])
        return int(state["step"])


def build_tokenizer(texts: Sequence[str], recipe: DiffusionRecipe) -> Any:
    """A `CLIPTokenizer` whose byte-pair merges are learned from `texts`, so that the words used are single tokens.

    Learned here and not by `tokenizers`, whose trainer breaks ties differently in every process: token ids, and with
    them the trained weights, would not repeat.
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


@torch.no_grad()
def update_average(average: torch.nn.Module, trained: torch.nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(trained.parameters()), 1 - decay)
