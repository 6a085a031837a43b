"""The small Segment Anything, in the folder format that transformers reads: a vision transformer and a mask decoder."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genval.grounding.detector import load_detector
from genval.grounding.masks import choose
from genval.grounding.outliner import load_outliner
from genval.grounding.settings import MaskSettings
from genval.runtime.flags import make_settings
from mini.recipe.diffusion import update_average
from mini.recipe.object_crops import CropDraws, MeasuredCrop, ObjectImages
from mini.recipe.views import progress


@dataclass(frozen=True)
class OutlinerRecipe:
    """Size and schedule of the outliner."""

    image_size: int = 128
    patch_size: int = 8
    vision_width: int = 128
    vision_layers: int = 5
    attention_heads: int = 4
    width: int = 96  # of the mask decoder
    decoder_layers: int = 2
    steps: int = 5000
    seconds: float | None = None  # end after this time even if steps remain
    batch_size: int = 256
    learning_rate: float = 1e-3
    warmup: float = 0.05  # share of the schedule
    weight_decay: float = 0.05
    ema: float = 0.997  # of the weights that are saved
    jitter: float = 0.07  # deviation of the box's sides, as a share of its size
    seed: int = 0


def train_outliner(
    pictures: ObjectImages,
    recipe: OutlinerRecipe,
    output: Path,
    device: torch.device,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train on squares around objects and their boxes, and save a folder that `SamModel` reads, in fp16.

    Args:
        images: streets with an object.
        recipe: size and schedule.
        output: folder to write: model and preprocessing.
        device: where to train.
        log: takes a line of text.

    Returns:
        Figures: last smoothed losses of masks and of their estimated quality, parameters, bytes, steps, seconds.
    """
    from transformers import SamImageProcessor
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(recipe.seed)
    model = build_outliner(recipe).to(device)
    average = copy.deepcopy(model).requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(
        trained, lr=0.0, weight_decay=recipe.weight_decay, betas=(0.9, 0.98), fused=device.type == "cuda"
    )
    draws = CropDraws(pictures.to(device), recipe.image_size, recipe.seed)
    smoothed = torch.zeros(2, device=device)
    start, step = time.perf_counter(), 0
    model.train()
    while (done := progress(step, recipe.steps, start, recipe.seconds)) < 1:
        warm = min(1.0, done / recipe.warmup)
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate * warm * (0.5 + 0.5 * torch.cos(torch.tensor(torch.pi * done)).item())
        index = draws.indices(recipe.batch_size)
        crops = draws.draw(index, torch.zeros_like(index, dtype=torch.bool))
        prompts = jittered(crops.boxes, recipe.jitter, draws.generator) * recipe.image_size
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            result = model(pixel_values=crops.pixels, input_boxes=prompts.unsqueeze(1), multimask_output=True)
        logits = F.interpolate(
            result.pred_masks[:, 0].float(), crops.masks.shape[-2:], mode="bilinear", align_corners=False
        )
        parts = outline_losses(logits, result.iou_scores[:, 0].float(), crops.masks)
        optimiser.zero_grad(set_to_none=True)
        parts.sum().backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        update_average(average, model, min(recipe.ema, (step + 1) / (step + 10)))
        smoothed = smoothed.lerp(parts.detach(), max(0.02, 1 / (step + 1)))
        if step % 100 == 0:
            mask, estimate = smoothed.tolist()
            log(f"outliner step {step} masks {mask:.4f} estimates {estimate:.4f} {time.perf_counter() - start:.0f} s")
        step += 1

    average.half().eval().save_pretrained(output)
    side = recipe.image_size
    SamImageProcessor(size={"longest_edge": side}, pad_size={"height": side, "width": side}).save_pretrained(output)
    return {
        "loss_masks": round(smoothed[0].item(), 4),
        "loss_estimates": round(smoothed[1].item(), 4),
        "parameters": sum(parameter.numel() for parameter in average.parameters()),
        "bytes": (output / "model.safetensors").stat().st_size,
        "steps": step,
        "seconds": round(time.perf_counter() - start, 1),
    }


def build_outliner(recipe: OutlinerRecipe) -> Any:
    """A Segment Anything of the recipe's size, its random weights drawn as the original code draws them.

    transformers draws those of the vision part with a deviation of 1e-10 and the positions' frequencies with one of
    half the width, for models that are filled from a file; nothing learns from there.
    """
    from transformers import SamConfig, SamModel

    common = {"image_size": recipe.image_size, "patch_size": recipe.patch_size}
    model = SamModel(
        SamConfig(
            vision_config={
                **common,
                "hidden_size": recipe.vision_width,
                "output_channels": recipe.width,
                "num_hidden_layers": recipe.vision_layers,
                "num_attention_heads": recipe.attention_heads,
                "window_size": recipe.image_size // recipe.patch_size,
                "global_attn_indexes": list(range(recipe.vision_layers)),
                "num_pos_feats": recipe.width // 2,
                "mlp_dim": 4 * recipe.vision_width,
            },
            prompt_encoder_config={**common, "hidden_size": recipe.width},
            mask_decoder_config={
                "hidden_size": recipe.width,
                "mlp_dim": 2 * recipe.width,
                "num_hidden_layers": recipe.decoder_layers,
                "num_attention_heads": recipe.attention_heads,
                "iou_head_hidden_dim": recipe.width,
            },
        )
    )
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d | nn.Embedding):
            module.reset_parameters()
    frequencies = model.shared_image_embedding.positional_embedding
    nn.init.normal_(frequencies)
    frequencies.requires_grad_(False)
    return model


def jittered(boxes: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    """Boxes (B, 4) left, top, right, bottom, 0..1, each side moved by `deviation` of the box's size, inside 0..1."""
    size = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    noise = torch.randn(boxes.shape, generator=generator, device=boxes.device)
    return (boxes + deviation * size * noise).clamp(0, 1)


def outline_losses(logits: Tensor, estimates: Tensor, masks: Tensor) -> Tensor:
    """Losses of three masks an image and of their estimated quality.

    Of the three the best one learns, by cross-entropy and Dice loss, as in Segment Anything (Kirillov et al., 2023,
    which has focal loss in place of cross-entropy); every estimate learns its own mask's intersection over union.

    Args:
        logits: (B, 3, s, s).
        estimates: (B, 3) of the intersection over union.
        masks: (B, 1, s, s) of 0 and 1.

    Returns:
        (2,) means of the best masks' losses and of the squared errors of the estimates.
    """
    wanted = masks.expand_as(logits)
    entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean((2, 3))
    probabilities = logits.sigmoid()
    both = (probabilities * wanted).sum((2, 3))
    dice = 1 - (2 * both + 1) / (probabilities.sum((2, 3)) + wanted.sum((2, 3)) + 1)
    best = (entropy + dice).amin(1).mean()
    return torch.stack([best, (estimates - mask_overlap(logits.detach() > 0, wanted > 0.5)).square().mean()])


def mask_overlap(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union of bool masks, over the last two axes; 0 where both are empty."""
    return (one & other).sum((-2, -1)) / (one | other).sum((-2, -1)).clamp(min=1)


def measure_outliner(
    folder: Path, crops: Sequence[MeasuredCrop], device: torch.device, detector: Path | None = None
) -> dict[str, Any]:
    """How well the saved outliner does on squares it was not trained on, through the code that uses it.

    Args:
        folder: written by `train_outliner`.
        crops: with and without an object.
        device: where to run.
        detector: folder of a trained detector, which then says where objects are, as in ood_objects/get_masks.py.

    Returns:
        `held_out`, the number of squares; `mask_iou`, the mean overlap of the masks of true boxes with the true masks;
        with a detector also, at the thresholds of the preset `mini`: `masked`, the share of squares that get a mask,
        `mask_iou_found`, their mean overlap, and `masked_empty`, the share of streets without the object that get one.
        Without squares, nothing.
    """
    if not crops:
        return {}
    outliner = load_outliner(str(folder)).to(device)

    def overlaps(images: Sequence[np.ndarray], boxes: Sequence[Any], masks: Sequence[np.ndarray]) -> list[float]:
        values = []
        for image, box, mask in zip(images, boxes, masks, strict=True):
            ((outline, _),) = outliner.outline([outliner.prepare(image)], [image.shape[:2]], [box])
            values.append(float(mask_overlap(torch.from_numpy(outline), torch.from_numpy(mask))))
        return values

    true = overlaps([crop.image for crop in crops], [crop.box for crop in crops], [crop.mask for crop in crops])
    figures = {"held_out": len(crops), "mask_iou": round(float(np.mean(true)), 4)}
    if detector is None:
        return figures
    finder = load_detector(str(detector)).to(device)
    limits = make_settings(MaskSettings, "mini")
    found: list[tuple[MeasuredCrop, Any]] = []
    alarms = 0
    for name in sorted({crop.name for crop in crops}):
        mine = [crop for crop in crops if crop.name == name]
        for is_empty, images in ((False, [crop.image for crop in mine]), (True, [crop.empty for crop in mine])):
            inputs = [finder.prepare(image) for image in images]
            sizes = [image.shape[:2] for image in images]
            detected = finder.detect(
                inputs, sizes, name, limits.box_threshold, limits.text_threshold, limits.nms_threshold
            )
            for crop, detections in zip(mine, detected, strict=True):
                chosen = choose(detections)
                if chosen is not None and is_empty:
                    alarms += 1
                elif chosen is not None:
                    found.append((crop, detections[chosen].box))
    masks = overlaps([crop.image for crop, _ in found], [box for _, box in found], [crop.mask for crop, _ in found])
    return figures | {
        "masked": round(len(found) / len(crops), 4),
        "mask_iou_found": round(float(np.mean(masks)), 4) if masks else None,
        "masked_empty": round(alarms / len(crops), 4),
    }
