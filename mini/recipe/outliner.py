"""The small Segment Anything (vision transformer and mask decoder) in transformers' folder format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genval.diffusion.training.loop import Average, Log, adamw, fit, float32_cosine, warm_cosine
from genval.grounding.detector import load_detector
from genval.grounding.masks import choose
from genval.grounding.outliner import load_outliner
from genval.grounding.settings import MaskSettings
from genval.runtime.flags import make_settings
from mini.recipe.object_crops import CropSampler, MeasuredCrop, ObjectImages


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
    seconds: float | None = None  # time limit
    batch_size: int = 256
    learning_rate: float = 1e-3
    warmup: float = 0.05  # fraction of the schedule
    weight_decay: float = 0.05
    ema: float = 0.997  # of the weights that are saved
    jitter: float = 0.07  # standard deviation of the box's sides, as a fraction of its size
    seed: int = 0


def train_outliner(
    images: ObjectImages,
    recipe: OutlinerRecipe,
    output: Path,
    device: torch.device,
    log: Log = print,
) -> dict[str, Any]:
    """Train on square crops around objects and their boxes, and save a folder that `SamModel` reads, in fp16.

    Args:
        images: streets with an object.
        recipe: size and schedule.
        output: folder to write: model and preprocessing.
        device: where to train.
        log: called with each line of text.

    Returns:
        Scores: last smoothed losses of masks and of their estimated IoU, parameters, bytes, steps, seconds.
    """
    from transformers import SamImageProcessor
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(recipe.seed)
    model = build_outliner(recipe).to(device)
    average = Average(model, recipe.ema)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimisation = adamw(
        trained, device, learning_rate=recipe.learning_rate, weight_decay=recipe.weight_decay,
        schedule=warm_cosine(recipe.warmup, float32_cosine),
    )  # fmt: skip
    sampler = CropSampler(images.to(device), recipe.image_size, recipe.seed)
    model.train()

    result = fit(
        "outliner",
        lambda _: _losses(model, sampler, recipe),
        optimisation,
        labels=["masks", "estimates"],
        steps=recipe.steps,
        seconds=recipe.seconds,
        average=average,
        log=log,
    )
    average.model.half().eval().save_pretrained(output)
    side = recipe.image_size
    SamImageProcessor(size={"longest_edge": side}, pad_size={"height": side, "width": side}).save_pretrained(output)
    return result.scores(average.model, output / "model.safetensors")


def _losses(model: Any, sampler: CropSampler, recipe: OutlinerRecipe) -> tuple[Tensor, Sequence[Tensor]]:
    """Return the loss of a batch, and its terms: masks and their estimated IoU."""
    device = sampler.generator.device
    index = sampler.indices(recipe.batch_size)
    crops = sampler.sample(index, torch.zeros_like(index, dtype=torch.bool))
    prompts = jittered(crops.boxes, recipe.jitter, sampler.generator) * recipe.image_size
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        result = model(pixel_values=crops.pixels, input_boxes=prompts.unsqueeze(1), multimask_output=True)
    logits = F.interpolate(
        result.pred_masks[:, 0].float(), crops.masks.shape[-2:], mode="bilinear", align_corners=False
    )
    parts = outline_losses(logits, result.iou_scores[:, 0].float(), crops.masks)
    return parts.sum(), parts


def build_outliner(recipe: OutlinerRecipe) -> Any:
    """Build a Segment Anything of the recipe's size, with the original code's random initialisation.

    transformers initialises the vision encoder with a standard deviation of 1e-10 and the frequencies of the position
    embedding with half the width, because weights are loaded afterwards. A model cannot be trained from these values.
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
    """Add Gaussian noise to the sides of boxes (B, 4), 0..1; its deviation is a fraction of the box's size."""
    size = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    noise = torch.randn(boxes.shape, generator=generator, device=boxes.device)
    return (boxes + deviation * size * noise).clamp(0, 1)


def outline_losses(logits: Tensor, estimates: Tensor, masks: Tensor) -> Tensor:
    """Return the losses of three masks per image and of their estimated IoU.

    Only the best of the three masks is trained, with cross-entropy and Dice loss, as in Segment Anything (Kirillov et
    al., 2023, with focal loss instead of cross-entropy). Every estimate is trained on the IoU of its mask.

    Args:
        logits: (B, 3, s, s).
        estimates: (B, 3), estimated IoU.
        masks: (B, 1, s, s), target masks of 0 and 1.

    Returns:
        (2,) the mean loss of the best masks and the mean squared error of the estimates.
    """
    wanted = masks.expand_as(logits)
    entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean((2, 3))
    probabilities = logits.sigmoid()
    both = (probabilities * wanted).sum((2, 3))
    dice = 1 - (2 * both + 1) / (probabilities.sum((2, 3)) + wanted.sum((2, 3)) + 1)
    best = (entropy + dice).amin(1).mean()
    return torch.stack([best, (estimates - mask_overlap(logits.detach() > 0, wanted > 0.5)).square().mean()])


def mask_overlap(one: Tensor, other: Tensor) -> Tensor:
    """Return the IoU of bool masks over the last two axes; 0 if both are empty."""
    return (one & other).sum((-2, -1)) / (one | other).sum((-2, -1)).clamp(min=1)


def measure_outliner(
    folder: Path, crops: Sequence[MeasuredCrop], device: torch.device, detector: Path | None = None
) -> dict[str, Any]:
    """Measure the saved outliner on held-out crops, with the code of `genval.grounding`.

    Args:
        folder: written by `train_outliner`.
        crops: with and without an object.
        device: where to run.
        detector: folder of a trained detector, whose boxes are used too, as in ood_objects/get_masks.py.

    Returns:
        `held_out`, the number of crops; `mask_iou`, the mean IoU with the target boxes as prompts. With a detector, at
        the thresholds of the preset `mini`, also `masked`, the fraction of crops with a mask; `mask_iou_found`, their
        mean IoU; and `masked_empty`, the fraction of streets without an object that get a mask. Empty without crops.
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
    metrics = {"held_out": len(crops), "mask_iou": round(float(np.mean(true)), 4)}
    if detector is None:
        return metrics
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
    return metrics | {
        "masked": round(len(found) / len(crops), 4),
        "mask_iou_found": round(float(np.mean(masks)), 4) if masks else None,
        "masked_empty": round(alarms / len(crops), 4),
    }
