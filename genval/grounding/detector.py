"""GroundingDINO through transformers: boxes of what a phrase names (Liu et al., 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genval.artifacts.fingerprint import weights_hash
from genval.grounding.loading import find_file, find_place, is_original, load_pretrained, read_preprocessing
from genval.grounding.original import load_groundingdino
from genval.runtime.errors import GenValError
from genval.runtime.paths import resolve
from genval.runtime.precision import compute_dtype

# What the published code resizes to and normalises with.
_SHORTEST, _LONGEST = 800, 1333
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Detection:
    """A box and how sure it is.

    Attributes:
        box: left, top, right, bottom in pixels of the image.
        score: the largest probability over the phrase's tokens, 0..1.
        phrase: the tokens whose probability is above the text threshold; empty where none is.
    """

    box: tuple[float, float, float, float]
    score: float
    phrase: str


class Detector:
    """GroundingDINO with its tokenizer and preprocessing.

    Weights stay in float32, also under a `true` precision: the deformable attention's sampling points need it.

    Args:
        model: transformers' GroundingDinoForObjectDetection.
        tokenizer: BERT's.
        shortest: pixels that an image's shorter side is resized to.
        longest: pixels that its longer side may have.
        mean: of the normalisation, of values 0..1.
        std: likewise.
        precision: one of Lightning's.

    Attributes:
        hash: of the weights, as they were loaded.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        shortest: int = _SHORTEST,
        longest: int = _LONGEST,
        mean: Sequence[float] = _MEAN,
        std: Sequence[float] = _STD,
        precision: str = "32-true",
    ) -> None:
        self.hash = weights_hash(model)
        self.device = torch.device("cpu")
        self._model = mend_text_positions(model).eval().requires_grad_(False)
        self._tokenizer = tokenizer
        self._shortest, self._longest = shortest, longest
        self._mean, self._std = (torch.tensor(values)[:, None, None] for values in (mean, std))
        self._dtype = compute_dtype(precision)

    def to(self, device: torch.device | str) -> Detector:
        """Move the model to a device; returns itself."""
        self.device = torch.device(device)
        self._model.to(self.device)
        self._mean, self._std = self._mean.to(self.device), self._std.to(self.device)
        return self

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """RGB uint8 (H, W, 3) of any size, resized as the published code does, with Pillow's bilinear filter."""
        from PIL import Image

        height, width = input_size(image.shape[0], image.shape[1], self._shortest, self._longest)
        return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))

    @torch.no_grad()
    def detect(
        self,
        inputs: Sequence[np.ndarray],
        sizes: Sequence[tuple[int, int]],
        text: str,
        box_threshold: float,
        text_threshold: float,
        nms_threshold: float,
    ) -> list[list[Detection]]:
        """Boxes of what `text` names in each image, the surest first.

        Args:
            inputs: of `prepare`. Images of one size run together, so that no padding enters.
            sizes: height and width of each image before, in pixels.
            text: names, lower case or not; several are separated by " . ".
            box_threshold: a box is kept whose largest token probability is above it.
            text_threshold: a token is part of a box's phrase if its probability is above it.
            nms_threshold: of two boxes that overlap by more than this (intersection over union), the surer is kept.

        Raises:
            GenValError: the model gives values that are not finite.
        """
        tokens = self._tokenizer([as_caption(text)], return_tensors="pt")
        found: list[list[Detection]] = [[] for _ in inputs]
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, picture in enumerate(inputs):
            groups.setdefault(picture.shape, []).append(index)
        for indices in groups.values():
            pixels = torch.from_numpy(np.stack([inputs[index] for index in indices])).to(self.device)
            pixels = (pixels.permute(0, 3, 1, 2).float() / 255 - self._mean) / self._std
            batch = {name: value.expand(len(indices), -1).to(self.device) for name, value in tokens.items()}
            with torch.autocast(self.device.type, self._dtype, enabled=self._dtype != torch.float32):
                output = self._model(pixel_values=pixels, **batch)
            count = tokens["input_ids"].shape[1]
            # Columns behind the text are filled with minus infinity.
            probabilities = output.logits[..., :count].float().sigmoid().cpu()
            boxes = output.pred_boxes.float().cpu()
            if not (probabilities.isfinite().all() and boxes.isfinite().all()):
                raise GenValError("GroundingDINO gives values that are not finite. Use --precision 32-true.")
            for index, probability, box in zip(indices, probabilities, boxes, strict=True):
                found[index] = self._select(
                    probability, box, sizes[index], tokens["input_ids"][0], box_threshold, text_threshold, nms_threshold
                )
        return found

    def _select(
        self,
        probabilities: Tensor,
        boxes: Tensor,
        size: tuple[int, int],
        token_ids: Tensor,
        box_threshold: float,
        text_threshold: float,
        nms_threshold: float,
    ) -> list[Detection]:
        """Detections of one image from probabilities (queries, tokens) and boxes (queries, 4), 0..1."""
        from torchvision.ops import box_convert, clip_boxes_to_image, nms

        scores = probabilities.amax(dim=1)
        kept = scores > box_threshold
        height, width = size
        corners = box_convert(boxes[kept], "cxcywh", "xyxy") * torch.tensor([width, height, width, height])
        corners = clip_boxes_to_image(corners, size)
        scores, probabilities = scores[kept], probabilities[kept]
        # The first and the last token are BERT's own.
        named = probabilities[:, 1:-1] > text_threshold
        detections = []
        for index in nms(corners, scores, nms_threshold).tolist():
            phrase = self._tokenizer.decode(token_ids[1:-1][named[index]]).replace(".", "").strip()
            left, top, right, bottom = corners[index].tolist()
            detections.append(Detection((left, top, right, bottom), float(scores[index]), phrase))
        return detections


def load_detector(name: str, tokenizer: str = "bert-base-uncased", precision: str = "32-true") -> Detector:
    """Load GroundingDINO.

    Args:
        name: a hub name, a folder in transformers' layout, or a file of the original format (relative: from the
            repository's root, or below `checkpoints/`).
        tokenizer: hub name or folder of BERT's tokenizer, which files of the original format do not hold.
        precision: one of Lightning's.

    Raises:
        GenValError: files are missing, damaged or of another model.
    """
    from transformers import AutoTokenizer, GroundingDinoForObjectDetection

    if is_original(name):
        path = find_file(name)
        return Detector(load_groundingdino(path), _load_tokenizer(tokenizer), precision=precision)
    place = find_place(name)
    model = load_pretrained(GroundingDinoForObjectDetection, place, name, ("grounding-dino",))
    try:
        words = AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError) as error:
        raise GenValError(f"{name} has no tokenizer: {' '.join(str(error).split())[:300]}") from error
    settings = read_preprocessing(place)
    size = settings.get("size", {})
    return Detector(
        model,
        words,
        size.get("shortest_edge", _SHORTEST),
        size.get("longest_edge", _LONGEST),
        settings.get("image_mean", _MEAN),
        settings.get("image_std", _STD),
        precision,
    )


def mend_text_positions(model: Any) -> Any:
    """Have GroundingDINO count the tokens of each name as the original does; returns the model.

    transformers 5.17 counts a name's closing full stop as position 0 and cuts the positions' waves to whole
    numbers, which moves logits by 10 and more; 5.23 does neither. A token's position is the number of tokens before it
    that it attends to.
    """

    def of_words(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        token_ids, attends, token_types, _positions, *rest = args
        positions = attends.tril(-1).sum(-1).view(token_ids.shape)
        return (token_ids, attends, token_types, positions, *rest), kwargs

    def of_layers(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        attends = ~kwargs["text_self_attention_masks"]
        positions = attends.tril(-1).sum(-1).to(kwargs["text_features"].dtype)
        return args, {**kwargs, "text_position_ids": positions}

    model.model.text_backbone.register_forward_pre_hook(of_words, with_kwargs=True)
    model.model.encoder.register_forward_pre_hook(of_layers, with_kwargs=True)
    return model


def as_caption(text: str) -> str:
    """Lower case with a full stop behind, as the published code asks."""
    text = text.lower().strip()
    return text if text.endswith(".") else f"{text}."


def input_size(height: int, width: int, shortest: int, longest: int) -> tuple[int, int]:
    """Height and width with the shorter side at `shortest`, or less where the longer one would pass `longest`."""
    short, long = sorted((height, width))
    if long / short * shortest > longest:
        shortest = round(longest * short / long)
    other = int(shortest * long / short)
    return (shortest, other) if height <= width else (other, shortest)


def _load_tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    folder = resolve(name)
    try:
        return AutoTokenizer.from_pretrained(str(folder) if folder.is_dir() else name)
    except (OSError, ValueError) as error:
        raise GenValError(
            f"Cannot load the tokenizer {name}: {' '.join(str(error).split())[:300]} GroundingDINO's original file has "
            "none: give the folder or hub name of BERT's (uncased) as --tokenizer."
        ) from error
