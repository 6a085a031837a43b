"""The small captioner: a BLIP (vision transformer and text decoder) in transformers' folder format."""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genval.captions.blip import fuse_attention, load_blip
from genval.datasets.labels import CITYSCAPES, CLASSES, IDD
from genval.datasets.reading import read_mask
from genval.diffusion.training.loop import Log, Optimisation, fit, warm_cosine
from mini.recipe.views import Views, caption_parts, moved, named_domains, names
from mini.world.captions import COUNTED, DOMAIN_PHRASES

NUM_CLASSES = len(CLASSES)


@dataclass(frozen=True)
class CaptionerRecipe:
    """Size and schedule of the captioner."""

    image_size: int = 256  # pixels per side; frames of 2:1 are resized to a square
    patch_size: int = 8  # 192 values per patch, as many as a token has; larger patches lose small objects
    vision_width: int = 192
    vision_layers: int = 6
    text_width: int = 128
    text_layers: int = 2
    attention_heads: int = 4
    text_tokens: int = 72  # the longest caption of the mini world has 58, with the weather at the end
    steps: int = 9000
    seconds: float | None = None  # time limit, counted from the end of the first step
    batch_size: int = 128
    matrix_rate: float = 3e-3  # Muon's learning rate
    learning_rate: float = 8e-4  # AdamW's
    warmup: float = 0.06  # fraction of the schedule
    weight_decay: float = 0.05
    parts_weight: float = 5.0  # weight of the loss of caption parts, see `train_captioner`
    classes_weight: float = 3.0  # weight of the loss of cell classes
    cells: int = 4  # cells per side of a patch
    rare_weight: float = 30.0  # maximum weight of a rare class in the loss of cell classes
    seed: int = 0


def train_captioner(
    images: Tensor,
    texts: Sequence[str],
    recipe: CaptionerRecipe,
    output: Path,
    device: torch.device,
    classes: Tensor | None = None,
    log: Log = print,
) -> dict[str, Any]:
    """Train on captioned images and save a folder that `BlipForConditionalGeneration.from_pretrained` reads, in fp16.

    There are two auxiliary tasks. The vision transformer predicts which parts the caption has ("two cars", "cars",
    "trees", the weather), both from the mean and maximum of all tokens, which is learned fastest, and from the first
    token. It also predicts from each token the class of each cell of its patch, with higher weights for rare classes,
    so that small objects are learned in fewer steps. The three layers of the auxiliary tasks are not saved. The
    matrices of the layers are trained with Muon (Jordan et al., 2024), all other weights with AdamW.

    Args:
        images: (N, 3, S, S) uint8 RGB, S the recipe's `image_size`.
        texts: N captions.
        classes: (N, C, C) uint8 from `load_class_cells`, C = S / patch * cells; None disables the task of cell classes.
        recipe: size and schedule.
        output: folder to write.
        device: where to train.
        log: called with each line of text.

    Returns:
        Scores: last smoothed losses (nats per token, part and cell), parameters, steps, seconds.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(recipe.seed)
    processor = build_processor(texts, recipe.image_size)
    tokenizer = processor.tokenizer
    tokens = _tokenize(tokenizer, texts, recipe.text_tokens).to(device)
    parts, wanted = part_table(texts)
    wanted = wanted.to(device)

    model = build_captioner(tokenizer, recipe).to(device)
    fuse_attention(model)
    if device.type == "cuda":
        for layer in model.vision_model.encoder.layers:
            layer.compile()
    heads = _Heads(recipe, len(parts), classes).to(device)
    views = Views(images, recipe.batch_size, device, recipe.seed)
    model.train()

    result = fit(
        "captioner", lambda _: _losses(model, heads, views, tokens, wanted, recipe),
        _optimisation(model, heads, recipe, device), labels=["words", "parts", "classes"], steps=recipe.steps,
        seconds=recipe.seconds, untimed_first_step=True, log=log,
    )  # fmt: skip
    model.half().eval().save_pretrained(output)
    processor.save_pretrained(output)
    return result.scores(model, output / "model.safetensors")


def _tokenize(tokenizer: Any, texts: Sequence[str], length: int) -> Any:
    """Return `input_ids` and `attention_mask` (N, tokens) of captions, which begin with the decoder's start token."""
    tokens = tokenizer(list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt")
    tokens["input_ids"][:, 0] = tokenizer.convert_tokens_to_ids("[DEC]")
    return tokens


def build_captioner(tokenizer: Any, recipe: CaptionerRecipe) -> Any:
    """Build a BLIP of the recipe's size with random weights."""
    from transformers import BlipConfig, BlipForConditionalGeneration

    return BlipForConditionalGeneration(
        BlipConfig(
            text_config={
                "vocab_size": len(tokenizer),
                "hidden_size": recipe.text_width,
                "intermediate_size": 4 * recipe.text_width,
                "num_hidden_layers": recipe.text_layers,
                "num_attention_heads": recipe.attention_heads,
                "max_position_embeddings": recipe.text_tokens + 8,
                "bos_token_id": tokenizer.convert_tokens_to_ids("[DEC]"),
                "eos_token_id": tokenizer.sep_token_id,
                "sep_token_id": tokenizer.sep_token_id,
                "pad_token_id": tokenizer.pad_token_id,
            },
            vision_config={
                "hidden_size": recipe.vision_width,
                "intermediate_size": 4 * recipe.vision_width,
                "num_hidden_layers": recipe.vision_layers,
                "num_attention_heads": recipe.attention_heads,
                "image_size": recipe.image_size,
                "patch_size": recipe.patch_size,
                "initializer_range": 0.02,
            },
        )
    )


class _Heads(nn.Module):
    """The layers of the auxiliary tasks, which are not saved.

    Args:
        recipe: width and cells.
        parts: number of caption parts.
        classes: (N, C, C) uint8 trainIds of the cells; None disables the task of cell classes.
    """

    def __init__(self, recipe: CaptionerRecipe, parts: int, classes: Tensor | None) -> None:
        super().__init__()
        self._cells = recipe.cells
        self._part_head = nn.Linear(2 * recipe.vision_width, parts)
        self._first_head = nn.Linear(recipe.vision_width, parts)
        self._class_head = nn.Linear(recipe.vision_width, NUM_CLASSES * recipe.cells**2)
        self._classes: Tensor | None
        self.register_buffer("_classes", classes)
        self._weight: Tensor
        if classes is not None:
            share = torch.bincount(classes.flatten(), minlength=256)[:NUM_CLASSES] / classes.numel()
            self.register_buffer("_weight", (1 / share.clamp(min=1e-6)).sqrt().clamp(max=recipe.rare_weight))

    def forward(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits of the parts (2, B, parts) and of the classes (B, tokens, classes * cells^2)."""
        tokens = embeddings[:, 1:]
        pooled = torch.cat([tokens.mean(1), tokens.amax(1)], 1)
        parts = torch.stack([self._part_head(pooled), self._first_head(embeddings[:, 0])])
        return parts, self._class_head(tokens)

    def class_loss(self, logits: Tensor, index: Tensor, warp: Tensor) -> Tensor:
        """Return the cross-entropy of the cell classes of images `index`, warped by `warp`; 0 if disabled."""
        if self._classes is None:
            return torch.zeros((), device=logits.device)
        moved_classes = moved(self._classes[index].unsqueeze(1).float(), warp, "nearest")[:, 0].long()
        maps = cell_map(logits.float(), self._cells)
        return F.cross_entropy(maps, moved_classes, weight=self._weight, ignore_index=255)


def _losses(
    model: Any, heads: _Heads, views: Views, tokens: Any, wanted: Tensor, recipe: CaptionerRecipe
) -> tuple[Tensor, list[Tensor]]:
    """Return the loss of a batch, and its terms: words, caption parts and cell classes.

    Args:
        model: in training mode.
        heads: of the auxiliary tasks.
        views: samples the images.
        tokens: `input_ids` and `attention_mask` (N, tokens) of the captions.
        wanted: (N, parts) from `part_table`.
        recipe: weights of the losses.
    """
    index, pixels, warp = views.sample()
    ids, mask = tokens["input_ids"][index], tokens["attention_mask"][index]
    labels = ids.masked_fill(mask == 0, -100)
    with torch.autocast(pixels.device.type, torch.bfloat16, enabled=pixels.device.type == "cuda"):
        result = model(pixel_values=pixels, input_ids=ids, attention_mask=mask, labels=labels)
        part_logits, class_logits = heads(result.image_embeds)
    part_loss = F.binary_cross_entropy_with_logits(part_logits.float(), wanted[index].expand_as(part_logits))
    class_loss = heads.class_loss(class_logits, index, warp)
    word_loss = result.loss.float()
    loss = word_loss + recipe.parts_weight * part_loss + recipe.classes_weight * class_loss
    return loss, [word_loss, part_loss, class_loss]


def _optimisation(model: Any, heads: nn.Module, recipe: CaptionerRecipe, device: torch.device) -> Optimisation:
    """Return Muon for the matrices of the transformer layers, and AdamW for all other weights."""
    trained = [*model.parameters(), *heads.parameters()]
    layers = (model.vision_model.encoder, model.text_decoder.bert.encoder)
    matrices = [weight for part in layers for weight in part.parameters() if weight.ndim == 2]
    known = set(map(id, matrices))
    others = [weight for weight in trained if id(weight) not in known]
    decay = recipe.weight_decay
    muon = torch.optim.Muon(matrices, lr=0.0, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(others, lr=0.0, weight_decay=decay, betas=(0.9, 0.98), fused=device.type == "cuda")
    return Optimisation(
        parameters=trained,
        optimisers=[(muon, recipe.matrix_rate), (adamw, recipe.learning_rate)],
        schedule=warm_cosine(recipe.warmup),
    )


def measure_captioner(
    folder: Path, images: Sequence[np.ndarray], texts: Sequence[str], device: torch.device
) -> dict[str, Any]:
    """Measure the saved captioner on images that it was not trained on.

    The weather is right if the caption has phrases of the target caption's domain and of no other. An object is present
    if the target caption names it, which it does from a minimum fraction of the image on: 4e-4 for a car (26 of the
    256x256 input pixels), 2.5e-4 for a person (16 pixels).

    Args:
        folder: written by `train_captioner`.
        images: RGB uint8 (H, W, 3).
        texts: their target captions.
        device: where to run.

    Returns:
        Metrics, 0..1 except for counts: `weather_accuracy`, the lowest accuracy of a domain `weather_accuracy_worst`,
        and for `car` and `person` the accuracy, the balanced accuracy and the fraction of images with it.
    """
    blip = load_blip(str(folder)).to(device)
    captions = blip.caption_images(images, max_tokens=CaptionerRecipe.text_tokens, batch_size=128)
    right: dict[str, list[bool]] = {domain: [] for domain in DOMAIN_PHRASES}
    for text, caption in zip(texts, captions, strict=True):
        for domain in named_domains(text):
            right[domain].append(named_domains(caption) == {domain})
    domain_accuracies = [sum(flags) / len(flags) for flags in right.values() if flags]
    flags = [flag for each in right.values() for flag in each]
    metrics: dict[str, Any] = {"held_out": len(texts), "weather_accuracy": round(sum(flags) / len(flags), 4)}
    metrics["weather_accuracy_worst"] = round(min(domain_accuracies), 4)
    for thing, words in {"car": ("car", "cars"), "person": ("person", "people")}.items():
        there = np.array([names(text, *words) for text in texts])
        said = np.array([names(caption, *words) for caption in captions])
        sides = [(said == there)[there == side].mean() for side in (True, False) if (there == side).any()]
        metrics[f"{thing}_accuracy"] = round(float((said == there).mean()), 4)
        metrics[f"{thing}_balanced_accuracy"] = round(float(np.mean(sides)), 4)
        metrics[f"{thing}_share"] = round(float(there.mean()), 4)
    return metrics


def cell_map(logits: Tensor, cells: int) -> Tensor:
    """Reshape logits (B, N * N, classes * cells^2) of N x N tokens to (B, classes, N * cells, N * cells)."""
    side = math.isqrt(logits.shape[1])
    return F.pixel_shuffle(logits.transpose(1, 2).unflatten(2, (side, side)), cells)


def load_class_cells(data_dir: Path, records: Sequence[dict[str, Any]], side: int, workers: int) -> Tensor | None:
    """Return the class at the centre of each of `side` x `side` cells of each image.

    Args:
        data_dir: folder from which the paths of the records start.
        records: lines of a list; `conditioning_image` is the mask, with level3Ids if its name contains the word.
        side: number of cells per side.
        workers: number of threads.

    Returns:
        (N, side, side) uint8 trainIds, 255 for no class; None if a record has no mask.

    Raises:
        GenValError: a mask is missing or damaged.
    """
    if not all("conditioning_image" in record for record in records):
        return None

    def load(record: dict[str, Any]) -> np.ndarray:
        path = record["conditioning_image"]
        train_ids = (IDD if "labellevel3Ids" in path else CITYSCAPES).table[read_mask(data_dir / path)]
        return cv2.resize(train_ids, (side, side), interpolation=cv2.INTER_NEAREST_EXACT)

    with ThreadPoolExecutor(workers) as pool:
        return torch.from_numpy(np.stack(list(pool.map(load, records))))


def build_processor(texts: Sequence[str], image_size: int) -> Any:
    """Build a `BlipProcessor` whose vocabulary is the words of the captions, and letters for all other words."""
    from transformers import BertTokenizer, BlipImageProcessor, BlipProcessor

    words = sorted({word for text in texts for word in re.findall(r"\w+", text.lower())})
    letters = [*string.ascii_lowercase, *string.digits]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", *string.punctuation, *letters]
    tokens += [f"##{letter}" for letter in letters] + [word for word in words if word not in letters]
    tokenizer = BertTokenizer(vocab={token: number for number, token in enumerate(tokens)})
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    return BlipProcessor(BlipImageProcessor(size={"height": image_size, "width": image_size}), tokenizer)


def part_table(texts: Sequence[str], at_least: int = 20) -> tuple[list[str], Tensor]:
    """Return the parts that at least `at_least` captions have, and float32 (N, parts), 1 where a caption has a part.

    A counted part is also a part without its number: "a person" is also "people".
    """
    text_parts = [[*(parts := caption_parts(text)), *kinds(parts)] for text in texts]
    counts = Counter(part for parts in text_parts for part in set(parts))
    common = sorted(
        part for part, count in counts.items() if count >= min(at_least, len(texts)) or part in DOMAIN_PHRASES
    )
    number = {part: i for i, part in enumerate(common)}
    table = torch.zeros(len(texts), len(common))
    for row, parts in enumerate(text_parts):
        table[row, [number[part] for part in parts if part in number]] = 1
    return common, table


def kinds(parts: Sequence[str]) -> list[str]:
    """Return the plurals of the counted objects among a caption's parts.

    >>> kinds(["a wide street", "a person", "two parked bicycles", "trees"])
    ['people', 'parked bicycles']
    """
    return [many for _, one, many, _ in COUNTED if any(part == one or part.endswith(f" {many}") for part in parts)]
