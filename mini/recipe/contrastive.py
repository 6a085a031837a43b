"""The small CLIP model: a ResNet and a text transformer in open_clip's folder format."""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from genval.captions.clip import load_clip
from genval.diffusion.training.base_model import DiffusionRecipe, build_tokenizer
from genval.diffusion.training.loop import Log, adamw, fit, float32_cosine, warm_cosine
from genval.runtime.files import replace_file, write_json
from mini.recipe.views import MEAN, STD, Views, caption_parts
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
    seconds: float | None = None  # time limit
    batch_size: int = 256
    learning_rate: float = 1e-3
    warmup: float = 0.06  # fraction of the schedule
    weight_decay: float = 0.05
    domain_weight: float = 0.5  # weight of the domain loss, see `train_contrastive`
    seed: int = 0


def train_contrastive(
    images: Tensor,
    texts: Sequence[str],
    recipe: ContrastiveRecipe,
    output: Path,
    device: torch.device,
    log: Log = print,
) -> dict[str, Any]:
    """Train on captioned images and save a folder that open_clip reads as `local-dir:`, in fp16.

    A text is a caption or some of its parts. In CLIP's loss, all other pairs of a batch are negatives. Here "two cars"
    may describe many images, so a text is a positive of each image whose caption has all its parts (supervised
    contrastive loss: Khosla et al., 2020). A second loss classifies the domain among six phrases.

    Args:
        images: (N, 3, S, S) uint8 RGB, S the recipe's `image_size`.
        texts: N captions.
        recipe: size and schedule.
        output: folder to write.
        device: where to train.
        log: called with each line of text.

    Returns:
        Scores: last smoothed losses (nats), parameters, steps, seconds.
    """
    from open_clip import CLIP

    torch.manual_seed(recipe.seed)
    # Each punctuation mark has a token, because the unknown token is also the end token, where the embedding is read.
    tokenizer = build_tokenizer(
        [*texts, " ".join(string.punctuation)],
        DiffusionRecipe(text_tokens=recipe.text_tokens, vocabulary=recipe.vocabulary),
    )
    config = _config(recipe, len(tokenizer), tokenizer.eos_token_id)
    model = CLIP(**config["model_cfg"]).to(device, memory_format=torch.channels_last)
    optimisation = adamw(
        model.parameters(), device, learning_rate=recipe.learning_rate, weight_decay=recipe.weight_decay,
        schedule=warm_cosine(recipe.warmup, float32_cosine),
    )  # fmt: skip
    views = Views(images, recipe.batch_size, device, recipe.seed)
    phrases = _Phrases(texts, recipe.seed)
    model.train()

    @torch.no_grad()
    def limit_scale(_: int) -> None:
        model.logit_scale.clamp_(0, 4.6052)  # at most 100, as in CLIP

    result = fit(
        "clip",
        lambda _: _losses(model, tokenizer, views, phrases, recipe),
        optimisation,
        labels=["pairs", "domains"],
        steps=recipe.steps,
        seconds=recipe.seconds,
        after_step=limit_scale,
        log=log,
    )
    save_open_clip(model, config, tokenizer, output)
    return result.scores(model, output / "open_clip_model.safetensors")


def _losses(
    model: Any, tokenizer: Any, views: Views, phrases: _Phrases, recipe: ContrastiveRecipe
) -> tuple[Tensor, list[Tensor]]:
    """Return the loss of a batch, and its terms: pairs and domains."""
    index, pixels, _ = views.sample()
    device = pixels.device
    chosen = index.tolist()
    written, positive = phrases.sample(chosen)
    ids = tokenizer(
        [*written, *phrases.domains()], padding="max_length", truncation=True, max_length=recipe.text_tokens,
        return_tensors="pt",
    ).input_ids  # fmt: skip
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        images_embedded = model.encode_image(pixels.contiguous(memory_format=torch.channels_last), normalize=True)
        texts_embedded = model.encode_text(ids.to(device), normalize=True)
    logits = model.logit_scale.exp() * images_embedded.float() @ texts_embedded.float().T
    count = len(chosen)
    pair_loss = multi_positive_loss(logits[:, :count], positive.to(device))
    domains = torch.tensor([phrases.domain_numbers[i] for i in chosen]).to(device)
    domain_loss = nn.functional.cross_entropy(logits[:, count:], domains, ignore_index=-1)
    return pair_loss + recipe.domain_weight * domain_loss, [pair_loss, domain_loss]


def measure_contrastive(
    folder: Path, images: Sequence[np.ndarray], texts: Sequence[str], device: torch.device
) -> dict[str, Any]:
    """Measure the saved model on images that it was not trained on.

    Args:
        folder: written by `train_contrastive`.
        images: RGB uint8 (H, W, 3).
        texts: their target captions.
        device: where to run.

    Returns:
        Metrics, 0..1: `domain_accuracy` of the most similar of "a street, {phrase}" (the first phrase of each domain);
        the lowest accuracy of a domain, `domain_accuracy_worst`; and `against_clear_worst`, the lowest balanced
        accuracy of a domain's phrase against that of clear weather.
    """
    clip = load_clip(str(folder)).to(device)
    known = [(i, parts[-1]) for i, parts in enumerate(map(caption_parts, texts)) if parts[-1] in DOMAIN_PHRASES]
    target = np.array([DOMAINS.index(domain) for _, domain in known])
    phrases = clip.encode_texts([f"a street, {wordings[0]}" for wordings in DOMAIN_PHRASES.values()])
    similarity = (clip.encode_images([images[i] for i, _ in known]) @ phrases.T).numpy()
    right = similarity.argmax(1) == target
    present, clear = sorted(set(target.tolist())), DOMAINS.index("clear")
    pairs = []
    for domain in (domain for domain in present if domain != clear and clear in present):
        closer = similarity[:, domain] > similarity[:, clear]
        pairs.append((closer[target == domain].mean() + 1 - closer[target == clear].mean()) / 2)
    return {
        "held_out": len(known),
        "domain_accuracy": round(float(right.mean()), 4),
        "domain_accuracy_worst": round(float(min(right[target == domain].mean() for domain in present)), 4),
        "against_clear_worst": round(float(min(pairs)), 4) if pairs else None,
    }


def multi_positive_loss(logits: Tensor, positive: Tensor) -> Tensor:
    """Return CLIP's loss for images with several positive texts, and texts with several positive images.

    Args:
        logits: (B, T) similarity of image and text.
        positive: (B, T) bool, the positive pairs; at least one per row and column.

    Returns:
        The mean negative log-probability of the positives, over rows and over columns, averaged.
    """
    weights = positive.float()
    rows = -(logits.log_softmax(1) * weights).sum(1) / weights.sum(1)
    columns = -(logits.log_softmax(0) * weights).sum(0) / weights.sum(0)
    return (rows.mean() + columns.mean()) / 2


class _Phrases:
    """Samples texts of images from the parts of their captions.

    Attributes:
        domain_numbers: the number of each caption's domain, -1 if it has none.
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
        self.domain_numbers = [
            DOMAINS.index(parts[-1]) if parts and parts[-1] in DOMAIN_PHRASES else -1 for parts in self._parts
        ]

    def sample(self, index: Sequence[int]) -> tuple[list[str], Tensor]:
        """Return a text for each image, and (B, B) bool: which texts (columns) describe which images (rows)."""
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
        return written, (1 - has) @ says.T == 0  # all parts of the text are in the caption

    def domains(self) -> list[str]:
        """Return a text for each domain, all with one template."""
        template = self._random.choice(_TEMPLATES)
        body = ", ".join(part for part in self._random.choice(self._parts) if part not in DOMAIN_PHRASES)
        return [template.format(caption=body, phrase=self._worded(domain)) for domain in DOMAINS]

    def _worded(self, part: str) -> str:
        return self._random.choice(DOMAIN_PHRASES[part]) if part in DOMAIN_PHRASES else part


def _config(recipe: ContrastiveRecipe, vocabulary: int, end: int) -> dict[str, Any]:
    """Return the content of open_clip_config.json."""
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
                "hf_tokenizer_name": "tokenizer.json",  # open_clip reads the folder's tokenizer, whatever the name
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
    """Write a folder that open_clip reads: its config, fp16 weights, and transformers' tokenizer."""
    from safetensors.torch import save_file

    tokenizer.save_pretrained(output)
    weights = {name: tensor.half().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with replace_file(output / "open_clip_model.safetensors") as temporary:
        save_file(weights, temporary, metadata={"format": "pt"})
    write_json(output / "open_clip_config.json", config)
