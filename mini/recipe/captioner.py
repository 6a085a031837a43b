"""The small captioner, in BLIP's own structure and folder format: a vision transformer and a text decoder."""

from __future__ import annotations

import math
import re
import string
import time
from collections import Counter
from collections.abc import Callable, Sequence
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
from genval.runtime.files import read_mask
from mini.recipe.views import Views, caption_parts, moved, named_domains, names, progress
from mini.world.captions import COUNTED, DOMAIN_PHRASES

NUM_CLASSES = len(CLASSES)


@dataclass(frozen=True)
class CaptionerRecipe:
    """Size and schedule of the captioner."""

    image_size: int = 256  # pixels a side: frames are twice as wide as high, and squeezed
    patch_size: int = 8  # 192 numbers a patch, no more than a token holds: larger ones lose what is small
    vision_width: int = 192
    vision_layers: int = 6
    text_width: int = 128
    text_layers: int = 2
    attention_heads: int = 4
    text_tokens: int = 72  # the longest caption of the world has 58, its weather at the end
    steps: int = 9000
    seconds: float | None = None  # end so long after the first step even if steps remain
    batch_size: int = 128
    matrix_rate: float = 3e-3  # Muon's learning rate
    learning_rate: float = 8e-4  # AdamW's
    warmup: float = 0.06  # share of the schedule
    weight_decay: float = 0.05
    parts_weight: float = 5.0  # of the second task, see `train_captioner`
    classes_weight: float = 3.0  # of the third
    cells: int = 4  # a side of a patch, of the third
    rare_weight: float = 30.0  # at most so much more of it for a cell of a rare class
    seed: int = 0


def train_captioner(
    images: Tensor,
    texts: Sequence[str],
    recipe: CaptionerRecipe,
    output: Path,
    device: torch.device,
    classes: Tensor | None = None,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train on captioned images and save a folder that `BlipForConditionalGeneration.from_pretrained` reads, in fp16.

    Beside the next word, the vision transformer predicts which parts the caption has ("two cars", "cars", "trees", the
    weather), and from each token the class of each cell of its patch, where rare classes weigh more: small things are
    found in far fewer steps so. The parts are read from the mean and the maximum of all tokens, where they are learned
    soonest, and from the first token alone, where the text decoder need not search for them. The three layers that do
    it are not saved. The matrices of the layers are trained with Muon (Jordan et al., 2024), all else with AdamW.

    Args:
        images: (N, 3, S, S) uint8 RGB, S the recipe's `image_size`.
        texts: N captions.
        classes: (N, C, C) uint8 from `load_class_cells`, C = S / patch * cells, or None: without the third task.
        recipe: size and schedule.
        output: folder to write.
        device: where to train.
        log: takes a line of text.

    Returns:
        Figures: last smoothed losses (nats a token, a part, a cell), parameters, steps, seconds.
    """
    from transformers import BlipConfig, BlipForConditionalGeneration
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(recipe.seed)
    processor = build_processor(texts, recipe.image_size)
    tokenizer = processor.tokenizer
    begin, end = tokenizer.convert_tokens_to_ids("[DEC]"), tokenizer.sep_token_id
    tokens = tokenizer(
        list(texts), padding=True, truncation=True, max_length=recipe.text_tokens, return_tensors="pt"
    ).to(device)
    tokens["input_ids"][:, 0] = begin
    parts, wanted = part_table(texts)
    wanted = wanted.to(device)

    model = BlipForConditionalGeneration(
        BlipConfig(
            text_config={
                "vocab_size": len(tokenizer),
                "hidden_size": recipe.text_width,
                "intermediate_size": 4 * recipe.text_width,
                "num_hidden_layers": recipe.text_layers,
                "num_attention_heads": recipe.attention_heads,
                "max_position_embeddings": recipe.text_tokens + 8,
                "bos_token_id": begin,
                "eos_token_id": end,
                "sep_token_id": end,
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
    ).to(device)
    fuse_attention(model)
    if device.type == "cuda":
        for layer in model.vision_model.encoder.layers:
            layer.compile()
    part_head = nn.Linear(2 * recipe.vision_width, len(parts)).to(device)
    first_head = nn.Linear(recipe.vision_width, len(parts)).to(device)
    class_head = nn.Linear(recipe.vision_width, NUM_CLASSES * recipe.cells**2).to(device)
    if classes is not None:
        seen = torch.bincount(classes.flatten(), minlength=256)[:NUM_CLASSES].to(device) / classes.numel()
        rare = (1 / seen.clamp(min=1e-6)).sqrt().clamp(max=recipe.rare_weight)
        classes = classes.to(device)
    heads = nn.ModuleList([part_head, first_head, class_head])
    trained = [*model.parameters(), *heads.parameters()]
    layers = (model.vision_model.encoder, model.text_decoder.bert.encoder)
    matrices = [weight for part in layers for weight in part.parameters() if weight.ndim == 2]
    known = set(map(id, matrices))
    others = [weight for weight in trained if id(weight) not in known]
    decay = recipe.weight_decay
    optimisers = (
        torch.optim.Muon(matrices, lr=0.0, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=0.0, weight_decay=decay, betas=(0.9, 0.98), fused=device.type == "cuda"),
    )
    rates = (recipe.matrix_rate, recipe.learning_rate)
    views = Views(images, recipe.batch_size, device, recipe.seed)
    smoothed = torch.zeros(3, device=device)
    start, step = time.perf_counter(), 0
    model.train()
    while (done := progress(step, recipe.steps, start, recipe.seconds)) < 1:
        warm = min(1.0, done / recipe.warmup)
        for optimiser, rate in zip(optimisers, rates, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = rate * warm * (0.5 + 0.5 * math.cos(math.pi * done))
        index, pixels, warp = views.draw()
        ids, mask = tokens["input_ids"][index], tokens["attention_mask"][index]
        labels = ids.masked_fill(mask == 0, -100)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            result = model(pixel_values=pixels, input_ids=ids, attention_mask=mask, labels=labels)
            tokens_seen = result.image_embeds[:, 1:]
            part_logits = torch.stack(
                [
                    part_head(torch.cat([tokens_seen.mean(1), tokens_seen.amax(1)], 1)),
                    first_head(result.image_embeds[:, 0]),
                ]
            )
            class_logits = class_head(tokens_seen)
        part_loss = F.binary_cross_entropy_with_logits(part_logits.float(), wanted[index].expand_as(part_logits))
        class_loss = torch.zeros((), device=device)
        if classes is not None:
            shown = moved(classes[index].unsqueeze(1).float(), warp, "nearest")[:, 0].long()
            class_loss = F.cross_entropy(
                of_cells(class_logits.float(), recipe.cells), shown, weight=rare, ignore_index=255
            )
        loss = result.loss.float() + recipe.parts_weight * part_loss + recipe.classes_weight * class_loss
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        losses = torch.stack([result.loss.float(), part_loss, class_loss]).detach()
        smoothed = smoothed.lerp(losses, max(0.02, 1 / (step + 1)))
        if step % 100 == 0:
            word, part, cell = smoothed.tolist()
            seconds = time.perf_counter() - start
            log(f"captioner step {step} words {word:.4f} parts {part:.4f} classes {cell:.4f} {seconds:.0f} s")
        if step == 0:
            start = time.perf_counter()  # compiling is no part of the schedule
        step += 1

    model.half().eval().save_pretrained(output)
    processor.save_pretrained(output)
    return {
        "loss_words": round(smoothed[0].item(), 4),
        "loss_parts": round(smoothed[1].item(), 4),
        "loss_classes": round(smoothed[2].item(), 4),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "bytes": (output / "model.safetensors").stat().st_size,
        "steps": step,
        "seconds": round(time.perf_counter() - start, 1),
    }


def measure_captioner(
    folder: Path, images: Sequence[np.ndarray], texts: Sequence[str], device: torch.device
) -> dict[str, Any]:
    """How often the saved captioner is right on images it was not trained on.

    A caption names the right weather where its phrases are those of the true domain and of no other. A thing is there
    where the true caption names it, which it does from a share of the image on: 4e-4 for a car (26 of the 256x256
    pixels the network sees), 2.5e-4 for a person (16 pixels).

    Args:
        folder: written by `train_captioner`.
        images: RGB uint8 (H, W, 3).
        texts: their true captions.
        device: where to run.

    Returns:
        Figures, all but the counts 0..1: `weather_accuracy`, the least of a domain `weather_accuracy_worst`, and for
        `car` and `person`: accuracy, accuracy balanced over present and absent, and the share present.
    """
    blip = load_blip(str(folder)).to(device)
    captions = blip.caption_images(images, max_tokens=CaptionerRecipe.text_tokens, batch_size=128)
    right: dict[str, list[bool]] = {domain: [] for domain in DOMAIN_PHRASES}
    for text, caption in zip(texts, captions, strict=True):
        for domain in named_domains(text):
            right[domain].append(named_domains(caption) == {domain})
    of_domain = [sum(flags) / len(flags) for flags in right.values() if flags]
    flags = [flag for each in right.values() for flag in each]
    figures: dict[str, Any] = {"held_out": len(texts), "weather_accuracy": round(sum(flags) / len(flags), 4)}
    figures["weather_accuracy_worst"] = round(min(of_domain), 4)
    for thing, words in {"car": ("car", "cars"), "person": ("person", "people")}.items():
        there = np.array([names(text, *words) for text in texts])
        said = np.array([names(caption, *words) for caption in captions])
        sides = [(said == there)[there == side].mean() for side in (True, False) if (there == side).any()]
        figures[f"{thing}_accuracy"] = round(float((said == there).mean()), 4)
        figures[f"{thing}_balanced_accuracy"] = round(float(np.mean(sides)), 4)
        figures[f"{thing}_share"] = round(float(there.mean()), 4)
    return figures


def of_cells(logits: Tensor, cells: int) -> Tensor:
    """Logits (B, N * N, classes * cells^2) of N x N tokens as a map (B, classes, N * cells, N * cells)."""
    side = math.isqrt(logits.shape[1])
    return F.pixel_shuffle(logits.transpose(1, 2).unflatten(2, (side, side)), cells)


def load_class_cells(data_dir: Path, records: Sequence[dict[str, Any]], side: int, workers: int) -> Tensor | None:
    """The class in the middle of each of `side` x `side` cells of each image.

    Args:
        data_dir: where the paths of the records start.
        records: lines of a list; `conditioning_image` names the mask, level3Ids where its name says so.
        side: cells.
        workers: threads.

    Returns:
        (N, side, side) uint8 trainIds, 255 where there is none; None where a record names no mask.

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
    """A `BlipProcessor` whose vocabulary is the captions' words, and letters for all others."""
    from transformers import BertTokenizer, BlipImageProcessor, BlipProcessor

    words = sorted({word for text in texts for word in re.findall(r"\w+", text.lower())})
    letters = [*string.ascii_lowercase, *string.digits]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", *string.punctuation, *letters]
    tokens += [f"##{letter}" for letter in letters] + [word for word in words if word not in letters]
    tokenizer = BertTokenizer(vocab={token: number for number, token in enumerate(tokens)})
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    return BlipProcessor(BlipImageProcessor(size={"height": image_size, "width": image_size}), tokenizer)


def part_table(texts: Sequence[str], at_least: int = 20) -> tuple[list[str], Tensor]:
    """The parts that `at_least` captions have, and which caption has which: float32 (N, parts), 0 or 1.

    What is counted is a part with its number and one without: "a person" is also "people".
    """
    of_text = [[*(parts := caption_parts(text)), *kinds(parts)] for text in texts]
    counts = Counter(part for parts in of_text for part in set(parts))
    common = sorted(
        part for part, count in counts.items() if count >= min(at_least, len(texts)) or part in DOMAIN_PHRASES
    )
    number = {part: i for i, part in enumerate(common)}
    table = torch.zeros(len(texts), len(common))
    for row, parts in enumerate(of_text):
        table[row, [number[part] for part in parts if part in number]] = 1
    return common, table


def kinds(parts: Sequence[str]) -> list[str]:
    """The plurals of the counted things among a caption's parts.

    >>> kinds(["a wide street", "a person", "two parked bicycles", "trees"])
    ['people', 'parked bicycles']
    """
    return [many for _, one, many, _ in COUNTED if any(part == one or part.endswith(f" {many}") for part in parts)]
