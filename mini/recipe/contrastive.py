"""The small CLIP model, in open_clip's own structure and folder format: a ResNet and a text transformer."""

from __future__ import annotations

import random
import string
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from genval.captions.clip import load_clip
from genval.runtime.files import replace_file, write_json
from mini.recipe.diffusion import DiffusionRecipe, build_tokenizer
from mini.recipe.views import MEAN, STD, Views, caption_parts, progress
from mini.world.captions import DOMAIN_PHRASES

DOMAINS = tuple(DOMAIN_PHRASES)
_TEMPLATES = (
    "{phrase}",
    "a street, {phrase}",
    "a street {phrase}",
    "a photo of a street {phrase}",
    "{caption}, {phrase}",
)


@dataclass(frozen=True)
class ContrastiveRecipe:
    """Size and schedule of the CLIP model."""

    image_size: int = 160
    vision_layers: tuple[int, ...] = (1, 1, 1, 1)
    vision_width: int = 14  # channels of the stem; the last stage has 32 times as many
    text_width: int = 96
    text_layers: int = 3
    text_heads: int = 4
    text_tokens: int = 77
    vocabulary: int = 700  # at most
    embedding: int = 128
    steps: int = 1500
    seconds: float | None = None  # end after this time even if steps remain
    batch_size: int = 256
    learning_rate: float = 1e-3
    warmup: float = 0.06  # share of the schedule
    weight_decay: float = 0.05
    domain_weight: float = 0.5  # of the second loss, see `train_contrastive`
    seed: int = 0


def train_contrastive(
    images: Tensor,
    texts: Sequence[str],
    recipe: ContrastiveRecipe,
    output: Path,
    device: torch.device,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train on captioned images and save a folder that open_clip reads as `local-dir:`, in fp16.

    A text is a caption, or some of its parts. CLIP's loss takes every other pair of a batch for a wrong one; "two cars"
    is true of many images, so here every text whose parts are all in an image's caption is a right one of it
    (supervised contrastive loss: Khosla et al., 2020). A second loss names the domain among six phrases.

    Args:
        images: (N, 3, S, S) uint8 RGB, S the recipe's `image_size`.
        texts: N captions.
        recipe: size and schedule.
        output: folder to write.
        device: where to train.
        log: takes a line of text.

    Returns:
        Figures: last smoothed losses (nats), parameters, steps, seconds.
    """
    from open_clip import CLIP

    torch.manual_seed(recipe.seed)
    # With a token for each sign: the unknown one is also the last one of a text, where its vector is read off.
    tokenizer = build_tokenizer(
        [*texts, " ".join(string.punctuation)],
        DiffusionRecipe(text_tokens=recipe.text_tokens, vocabulary=recipe.vocabulary),
    )
    config = _config(recipe, len(tokenizer), tokenizer.eos_token_id)
    model = CLIP(**config["model_cfg"]).to(device, memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=0.0, weight_decay=recipe.weight_decay, betas=(0.9, 0.98), fused=device.type == "cuda"
    )
    views = Views(images, recipe.batch_size, device, recipe.seed)
    phrases = _Phrases(texts, recipe.seed)
    smoothed = torch.zeros(2, device=device)
    start, step = time.perf_counter(), 0
    model.train()
    while (done := progress(step, recipe.steps, start, recipe.seconds)) < 1:
        warm = min(1.0, done / recipe.warmup)
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate * warm * (0.5 + 0.5 * torch.cos(torch.tensor(torch.pi * done)).item())
        index, pixels, _ = views.draw()
        drawn = index.tolist()
        written, true = phrases.draw(drawn)
        ids = tokenizer(
            [*written, *phrases.domains()], padding="max_length", truncation=True, max_length=recipe.text_tokens,
            return_tensors="pt",
        ).input_ids  # fmt: skip
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            seen = model.encode_image(pixels.contiguous(memory_format=torch.channels_last), normalize=True)
            said = model.encode_text(ids.to(device), normalize=True)
        logits = model.logit_scale.exp() * seen.float() @ said.float().T
        count = len(drawn)
        pair_loss = multi_positive_loss(logits[:, :count], true.to(device))
        domains = torch.tensor([phrases.domain_of[i] for i in drawn]).to(device)
        domain_loss = nn.functional.cross_entropy(logits[:, count:], domains, ignore_index=-1)
        optimiser.zero_grad(set_to_none=True)
        (pair_loss + recipe.domain_weight * domain_loss).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, 4.6052)  # at most 100, as in CLIP
        smoothed = smoothed.lerp(torch.stack([pair_loss, domain_loss]).detach(), max(0.02, 1 / (step + 1)))
        if step % 100 == 0:
            pair, domain = smoothed.tolist()
            log(f"clip step {step} pairs {pair:.4f} domains {domain:.4f} {time.perf_counter() - start:.0f} s")
        step += 1

    save_open_clip(model, config, tokenizer, output)
    return {
        "loss_pairs": round(smoothed[0].item(), 4),
        "loss_domains": round(smoothed[1].item(), 4),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "bytes": (output / "open_clip_model.safetensors").stat().st_size,
        "steps": step,
        "seconds": round(time.perf_counter() - start, 1),
    }


def measure_contrastive(
    folder: Path, images: Sequence[np.ndarray], texts: Sequence[str], device: torch.device
) -> dict[str, Any]:
    """How often the saved model is right on images it was not trained on.

    Args:
        folder: written by `train_contrastive`.
        images: RGB uint8 (H, W, 3).
        texts: their true captions.
        device: where to run.

    Returns:
        Figures 0..1: `domain_accuracy` of the most similar of "a street, {phrase}" (the first phrase of each domain),
        the least of a domain `domain_accuracy_worst`, and `against_clear_worst`: the share of images, of a domain and
        of clear ones alike, that the domain's phrase and the clear one tell apart, for the domain where it is least.
    """
    clip = load_clip(str(folder)).to(device)
    known = [(i, parts[-1]) for i, parts in enumerate(map(caption_parts, texts)) if parts[-1] in DOMAIN_PHRASES]
    truth = np.array([DOMAINS.index(domain) for _, domain in known])
    phrases = clip.encode_texts([f"a street, {wordings[0]}" for wordings in DOMAIN_PHRASES.values()])
    similarity = (clip.encode_images([images[i] for i, _ in known]) @ phrases.T).numpy()
    right = similarity.argmax(1) == truth
    present, clear = sorted(set(truth.tolist())), DOMAINS.index("clear")
    pairs = []
    for domain in (domain for domain in present if domain != clear and clear in present):
        closer = similarity[:, domain] > similarity[:, clear]
        pairs.append((closer[truth == domain].mean() + 1 - closer[truth == clear].mean()) / 2)
    return {
        "held_out": len(known),
        "domain_accuracy": round(float(right.mean()), 4),
        "domain_accuracy_worst": round(float(min(right[truth == domain].mean() for domain in present)), 4),
        "against_clear_worst": round(float(min(pairs)), 4) if pairs else None,
    }


def multi_positive_loss(logits: Tensor, true: Tensor) -> Tensor:
    """CLIP's loss where an image may have several right texts, and a text several right images.

    Args:
        logits: (B, T) similarity of image and text.
        true: (B, T) bool, which pairs are right; at least one a row and a column.

    Returns:
        The mean negative log-probability of the right ones, over rows and over columns, averaged.
    """
    right = true.float()
    rows = -(logits.log_softmax(1) * right).sum(1) / right.sum(1)
    columns = -(logits.log_softmax(0) * right).sum(0) / right.sum(0)
    return (rows.mean() + columns.mean()) / 2


class _Phrases:
    """Texts for images, drawn from the parts of their captions.

    Attributes:
        domain_of: the number of each caption's domain, -1 where it names none.
    """

    def __init__(self, texts: Sequence[str], seed: int) -> None:
        self._texts = texts
        self._random = random.Random(seed)
        self._parts = [caption_parts(text) for text in texts]
        number = {part: i for i, part in enumerate(sorted({part for parts in self._parts for part in parts}))}
        self._numbers = [[number[part] for part in parts] for parts in self._parts]
        self._has = torch.zeros(len(texts), len(number))
        for row, numbers in zip(self._has, self._numbers, strict=True):
            row[numbers] = 1
        self.domain_of = [
            DOMAINS.index(parts[-1]) if parts and parts[-1] in DOMAIN_PHRASES else -1 for parts in self._parts
        ]

    def draw(self, index: Sequence[int]) -> tuple[list[str], Tensor]:
        """A text for each image, and (B, B) bool: of which images (rows) each text (columns) is true."""
        has = self._has[list(index)]
        written, says = [], torch.zeros_like(has)
        for row, i in enumerate(index):
            parts, kept = self._parts[i], range(len(self._parts[i]))
            if self._random.random() < 0.5:
                written.append(self._texts[i])
            else:
                kept = sorted(self._random.sample(kept, self._random.randint(1, min(4, len(parts)))))
                written.append(", ".join(self._worded(parts[k]) for k in kept))
            says[row, [self._numbers[i][k] for k in kept]] = 1
        return written, (1 - has) @ says.T == 0  # nothing is said that the image has not

    def domains(self) -> list[str]:
        """A text for each domain, of one wording."""
        template = self._random.choice(_TEMPLATES)
        body = ", ".join(part for part in self._random.choice(self._parts) if part not in DOMAIN_PHRASES)
        return [template.format(caption=body, phrase=self._worded(domain)) for domain in DOMAINS]

    def _worded(self, part: str) -> str:
        return self._random.choice(DOMAIN_PHRASES[part]) if part in DOMAIN_PHRASES else part


def _config(recipe: ContrastiveRecipe, vocabulary: int, end: int) -> dict[str, Any]:
    """What open_clip_config.json says."""
    return {
        "model_cfg": {
            "embed_dim": recipe.embedding,
            "vision_cfg": {
                "image_size": recipe.image_size,
                "layers": list(recipe.vision_layers),
                "width": recipe.vision_width,
                "head_width": 64,
            },
            "text_cfg": {
                "context_length": recipe.text_tokens,
                "vocab_size": vocabulary,
                "hf_tokenizer_name": "tokenizer.json",  # the folder's own is read, whatever the name
                "width": recipe.text_width,
                "heads": recipe.text_heads,
                "layers": recipe.text_layers,
                "pool_type": "eos",
                "eos_id": end,
            },
        },
        "preprocess_cfg": {
            "mean": list(MEAN), "std": list(STD), "interpolation": "bicubic", "resize_mode": "squash",
        },
    }  # fmt: skip


def save_open_clip(model: nn.Module, config: dict[str, Any], tokenizer: Any, output: Path) -> None:
    """Write a folder that open_clip reads: its config, fp16 weights, and a tokenizer of the transformers library."""
    from safetensors.torch import save_file

    tokenizer.save_pretrained(output)
    weights = {name: tensor.half().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with replace_file(output / "open_clip_model.safetensors") as temporary:
        save_file(weights, temporary, metadata={"format": "pt"})
    write_json(output / "open_clip_config.json", config)
