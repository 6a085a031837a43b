"""The small GroundingDINO (ConvNeXt, BERT and two-stage queries) in transformers' folder format."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genval.diffusion.training.loop import Average, Log, adamw, fit, float32_cosine, warm_cosine
from genval.grounding.detector import Detection, as_caption, fix_text_positions, load_detector
from mini.recipe.object_crops import CropSampler, MeasuredCrop, ObjectImages

# Token ids of BERT's uncased vocabulary, which are fixed in transformers.
_SPECIAL = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103}
_FIRST_SIGN, _FIRST_LETTER = 999, 1037
_LEAST_QUALITY = 0.5  # minimum IoU of a positive box, and minimum target score of the matched boxes
_NAMES_WEIGHT = 4.0
THRESHOLDS = (0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5)


@dataclass(frozen=True)
class DetectorRecipe:
    """Size and schedule of the detector."""

    image_size: int = 96
    vision_widths: tuple[int, ...] = (32, 64, 96, 128)
    vision_depths: tuple[int, ...] = (1, 2, 3, 1)
    text_width: int = 64
    text_layers: int = 2
    width: int = 128  # of the encoder and the decoder
    layers: int = 2  # of each
    feed_forward: int = 256
    attention_heads: int = 4
    queries: int = 20
    text_tokens: int = 64  # at most
    steps: int = 4000
    seconds: float | None = None  # time limit
    batch_size: int = 256
    learning_rate: float = 8e-4
    warmup: float = 0.05  # fraction of the schedule
    weight_decay: float = 0.02
    ema: float = 0.997  # of the weights that are saved
    empty_share: float = 0.3  # fraction of the crops without an object
    wrong_share: float = 0.25  # fraction of the crops with another object than the prompted one
    finders: int = 5  # predictions that are matched to an object, of the encoder and of each decoder layer
    seed: int = 0


def train_detector(
    images: ObjectImages,
    recipe: DetectorRecipe,
    output: Path,
    device: torch.device,
    log: Log = print,
) -> dict[str, Any]:
    """Train on square crops around objects and save a folder that `GroundingDinoForObjectDetection` reads, in fp16.

    A crop contains the prompted object, another one, or no object (the same street without it).

    Args:
        images: streets with an object, of many names.
        recipe: size and schedule.
        output: folder to write: model, tokenizer and preprocessing.
        device: where to train.
        log: called with each line of text.

    Returns:
        Scores: last smoothed losses, parameters, bytes, steps, seconds.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(recipe.seed)
    torch.set_float32_matmul_precision("high")
    known = sorted(set(images.names))
    tokenizer = build_tokenizer(known)
    names = _Names(tokenizer, known, device)
    model = build_detector(recipe, len(tokenizer)).to(device)
    fix_text_positions(model)
    average = Average(model, recipe.ema)
    optimisation = adamw(
        model.parameters(), device, learning_rate=recipe.learning_rate, weight_decay=recipe.weight_decay,
        schedule=warm_cosine(recipe.warmup, float32_cosine),
    )  # fmt: skip
    sampler = CropSampler(images.to(device), recipe.image_size, recipe.seed)
    shown = torch.tensor([known.index(name) for name in images.names], device=device)
    model.train()

    result = fit(
        "detector",
        lambda _: _losses(model, sampler, names, shown, recipe),
        optimisation,
        labels=["proposal_names", "proposal_boxes", "names", "boxes"],
        steps=recipe.steps,
        seconds=recipe.seconds,
        average=average,
        log=log,
    )
    _save_detector(average.model, tokenizer, recipe, output)
    return result.scores(average.model, output / "model.safetensors")


def _losses(
    model: Any, sampler: CropSampler, names: _Names, shown: Tensor, recipe: DetectorRecipe
) -> tuple[Tensor, Sequence[Tensor]]:
    """Return the loss of a batch, and its terms: names and boxes of the proposals, then of the queries.

    Args:
        model: in training mode.
        sampler: samples the crops.
        names: the possible prompts.
        shown: (N,) int64, the number of each image's name.
        recipe: batch size, and fractions of the crops without the prompted object.
    """
    device, count = shown.device, len(names.wanted)
    index = sampler.indices(recipe.batch_size)
    lot = torch.rand(recipe.batch_size, generator=sampler.generator, device=device)
    empty = lot < recipe.empty_share
    wrong = (lot > 1 - recipe.wrong_share) & (count > 1)
    other = torch.randint(1, max(2, count), lot.shape, generator=sampler.generator, device=device)
    asked = (shown[index] + wrong * other) % count
    crops = sampler.sample(index, empty)
    tokens = names.tokens(asked)
    predicted = predictions(model, model(pixel_values=crops.pixels, **tokens), tokens["attention_mask"])
    first, *layers = (
        detection_losses(logits, boxes, names.wanted[asked], crops.boxes, ~(empty | wrong), recipe.finders)
        for logits, boxes in predicted
    )
    parts = torch.cat([first, torch.stack(layers).mean(0)])
    return parts.sum(), parts


def _save_detector(model: Any, tokenizer: Any, recipe: DetectorRecipe, output: Path) -> None:
    """Save model, tokenizer and, last, preprocessing, in fp16."""
    from transformers import GroundingDinoImageProcessor

    model.half().eval().save_pretrained(output)
    tokenizer.save_pretrained(output)
    size = {"shortest_edge": recipe.image_size, "longest_edge": 2 * recipe.image_size}
    GroundingDinoImageProcessor(size=size).save_pretrained(output)


def build_detector(recipe: DetectorRecipe, vocabulary: int) -> Any:
    """Build a GroundingDINO of the recipe's size, with random weights for small widths.

    transformers initialises all weights with a standard deviation of 0.02 and the fusion of text and image with 1e-4,
    which is meant for large pretrained backbones. With both, the outputs of small layers almost vanish.
    """
    from transformers import GroundingDinoConfig, GroundingDinoForObjectDetection

    model = GroundingDinoForObjectDetection(
        GroundingDinoConfig(
            backbone_config={
                "model_type": "convnext",
                "hidden_sizes": list(recipe.vision_widths),
                "depths": list(recipe.vision_depths),
                "layer_scale_init_value": 0.3,
                "image_size": recipe.image_size,
                "out_features": ["stage2", "stage3", "stage4"],
            },
            text_config={
                "model_type": "bert",
                "vocab_size": vocabulary,
                "hidden_size": recipe.text_width,
                "num_hidden_layers": recipe.text_layers,
                "num_attention_heads": 2,
                "intermediate_size": 2 * recipe.text_width,
                "max_position_embeddings": recipe.text_tokens,
                "hidden_dropout_prob": 0.0,
                "attention_probs_dropout_prob": 0.0,
            },
            d_model=recipe.width,
            num_queries=recipe.queries,
            num_feature_levels=3,
            encoder_layers=recipe.layers,
            decoder_layers=recipe.layers,
            encoder_ffn_dim=recipe.feed_forward,
            decoder_ffn_dim=recipe.feed_forward,
            encoder_attention_heads=recipe.attention_heads,
            decoder_attention_heads=recipe.attention_heads,
            max_text_len=recipe.text_tokens,
            dropout=0.0,
            fusion_droppath=0.0,
        )
    )
    with torch.no_grad():
        for name, module in model.named_modules():
            # The sampling offsets of the attention and the last layers of the box heads stay zero.
            if isinstance(module, nn.Linear) and module.weight.any() and "attention_weights" not in name:
                nn.init.xavier_uniform_(module.weight)
        for layer in model.model.encoder.layers:
            layer.fusion_layer.vision_param.fill_(0.5)
            layer.fusion_layer.text_param.fill_(0.5)
        # A score is the product of two layer-normalised vectors. One of them starts small, so scores start near 0.
        norm = model.model.encoder.layers[-1].text_enhancer_layer.layer_norm_after
        norm.weight.fill_(recipe.width**-0.5)
    return model


def predictions(model: Any, result: Any, attention_mask: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return token logits (B, n, tokens) and boxes (B, n, 4; centre and size, 0..1) of the encoder and decoder layers.

    Args:
        model: GroundingDinoForObjectDetection, two-stage.
        result: output of the model, which itself contains only the predictions of the last layer.
        attention_mask: (B, tokens), 0 at padding; logits are minus infinity there.
    """
    count = attention_mask.shape[1]
    predicted = [(result.enc_outputs_class[..., :count], result.enc_outputs_coord_logits.sigmoid())]
    references = [result.init_reference_points, *result.intermediate_reference_points.unbind(1)]
    for layer, hidden in enumerate(result.intermediate_hidden_states.unbind(1)):
        logits = model.class_embed[layer](hidden, result.encoder_last_hidden_state_text, attention_mask.bool())
        boxes = (model.bbox_embed[layer](hidden) + references[layer].logit(eps=1e-5)).sigmoid()
        predicted.append((logits[..., :count], boxes))
    return predicted


def detection_losses(
    logits: Tensor, predicted: Tensor, wanted: Tensor, boxes: Tensor, present: Tensor, count: int
) -> Tensor:
    """Return the losses of predictions in images with one object or none.

    The `count` predictions with the lowest matching cost of DETR (Carion et al., 2020) are matched to the object and
    learn its box (L1 and generalised IoU). They, and all predictions with an IoU of at least 0.5, learn the tokens of
    its name with the IoU as target probability; all others learn no token (quality focal loss: Li et al., 2020).
    Duplicates of a correct box are positives too, because they are removed by non-maximum suppression later. The
    weights are GroundingDINO's.

    Args:
        logits: (B, n, tokens), minus infinity at padding.
        predicted: (B, n, 4) predicted boxes, centre and size, 0..1.
        wanted: (B, tokens) bool, the tokens of the name.
        boxes: (B, 4) target boxes: left, top, right, bottom, 0..1.
        present: (B,) bool, whether the image contains the prompted object.
        count: number of matched predictions.

    Returns:
        (2,) the losses of names and boxes, averaged over the positives and the matched predictions.
    """
    from torchvision.ops import box_convert, generalized_box_iou_loss

    logits = logits.float().clamp(min=-30)
    predicted = predicted.float()
    corners = box_convert(predicted, "cxcywh", "xyxy")
    true = boxes.unsqueeze(1).expand_as(corners)
    distance = (predicted - box_convert(true, "xyxy", "cxcywh")).abs().sum(-1)
    overlap_loss = generalized_box_iou_loss(corners, true, reduction="none")
    probabilities = logits.sigmoid()
    share = (wanted / wanted.sum(1, keepdim=True)).unsqueeze(1)
    cost = 5 * distance + 2 * overlap_loss - (probabilities * share).sum(-1)
    nearest = torch.zeros_like(cost).scatter_(1, cost.detach().topk(count, 1, largest=False).indices, 1)
    nearest = nearest * present.unsqueeze(1)
    overlap = pairwise_overlap(corners, true).detach()
    quality = torch.where(nearest > 0, overlap.clamp(min=_LEAST_QUALITY), overlap * (overlap >= _LEAST_QUALITY))
    quality = (quality * present.unsqueeze(1)).unsqueeze(-1) * wanted.unsqueeze(1)
    entropy = F.binary_cross_entropy_with_logits(logits, quality, reduction="none")
    names = ((quality - probabilities).square() * entropy).sum() / (quality > 0).sum().clamp(min=1)
    places = ((5 * distance + 2 * overlap_loss) * nearest).sum() / nearest.sum().clamp(min=1)
    return torch.stack([_NAMES_WEIGHT * names, places])


def pairwise_overlap(one: Tensor, other: Tensor) -> Tensor:
    """Return the elementwise IoU of boxes (..., 4): left, top, right, bottom."""
    inner = (torch.minimum(one, other)[..., 2:] - torch.maximum(one, other)[..., :2]).clamp(min=0).prod(-1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1) for boxes in (one, other)]
    return inner / (areas[0] + areas[1] - inner).clamp(min=1e-6)


def build_tokenizer(names: Sequence[str]) -> Any:
    """Build a BERT tokenizer with the words of the names; other words are split into letters."""
    from transformers import BertTokenizer

    token_ids = dict(_SPECIAL)
    token_ids |= {sign: _FIRST_SIGN + i for i, sign in enumerate("!\"#$%&'()*+,-./0123456789:;<=>?@[\\]^_`")}
    letters = string.ascii_lowercase
    words = sorted({word for name in names for word in name.lower().split()} - set(letters))
    others = [*letters, *(f"##{letter}" for letter in letters + string.digits), *words]
    token_ids |= {token: _FIRST_LETTER + i for i, token in enumerate(others)}
    token_of_id = {number: token for token, number in token_ids.items()}
    return BertTokenizer(
        vocab={token_of_id.get(number, f"[unused{number}]"): number for number in range(max(token_of_id) + 1)}
    )


class _Names:
    """The tokenized prompts of the detector.

    Args:
        tokenizer: of `build_tokenizer`.
        names: names of objects.
        device: device of the tokens.

    Attributes:
        wanted: (names, tokens) bool, the tokens of the name without special tokens.
    """

    def __init__(self, tokenizer: Any, names: Sequence[str], device: torch.device) -> None:
        encoded = tokenizer([as_caption(name) for name in names], padding=True, return_tensors="pt")
        self._tokens = {key: value.to(device) for key, value in encoded.items()}
        marks = torch.tensor([tokenizer.convert_tokens_to_ids(token) for token in ("[PAD]", "[CLS]", "[SEP]", ".")])
        self.wanted = ~torch.isin(self._tokens["input_ids"], marks.to(device))

    def tokens(self, index: Tensor) -> dict[str, Tensor]:
        """Return the model's text inputs for the names with the given numbers."""
        return {key: value[index] for key, value in self._tokens.items()}


def measure_detector(folder: Path, crops: Sequence[MeasuredCrop], device: torch.device) -> dict[str, Any]:
    """Measure the saved detector on held-out crops, with the code of `genval.grounding`.

    Args:
        folder: written by `train_detector`.
        crops: with and without an object.
        device: where to run.

    Returns:
        `held_out`, the number of crops; `box_iou`, the mean IoU of the highest-scoring box with the target; and by
        threshold, 0..1: `recall`, crops with a detection of IoU 0.5 or more; `false_alarms`, crops without an object
        that have a detection; `wrong_names`, crops with a detection of the next name in the alphabet. Empty without
        crops.
    """
    if not crops:
        return {}
    detector = load_detector(str(folder)).to(device)
    names = sorted({crop.name for crop in crops})

    def best(name: str, images: list[np.ndarray]) -> list[Detection | None]:
        inputs = [detector.prepare(image) for image in images]
        found = detector.detect(inputs, [image.shape[:2] for image in images], name, 0.0, min(THRESHOLDS), 1.0)
        return [max(each, key=lambda one: one.score if one.phrase else 0.0, default=None) for each in found]

    overlaps, scores, alarms, mistakes = [], [], [], []
    for number, name in enumerate(names):
        mine = [crop for crop in crops if crop.name == name]
        for crop, detection in zip(mine, best(name, [crop.image for crop in mine]), strict=True):
            overlaps.append(
                float(pairwise_overlap(torch.tensor(detection.box), torch.tensor(crop.box))) if detection else 0.0
            )
            scores.append(named_score(detection))
        alarms += map(named_score, best(name, [crop.empty for crop in mine]))
        mistakes += map(named_score, best(names[(number + 1) % len(names)], [crop.image for crop in mine]))
    found = np.array(scores) * (np.array(overlaps) >= 0.5)

    def above(values: Any) -> dict[str, float]:
        return {str(limit): round(float((np.array(values) > limit).mean()), 4) for limit in THRESHOLDS}

    return {
        "held_out": len(crops),
        "box_iou": round(float(np.mean(overlaps)), 4),
        "recall": above(found),
        "false_alarms": above(alarms),
        "wrong_names": above(mistakes) if len(names) > 1 else {},
    }


def named_score(detection: Detection | None) -> float:
    """Return the score of a detection that names the object; 0 if there is none."""
    return detection.score if detection and detection.phrase else 0.0
