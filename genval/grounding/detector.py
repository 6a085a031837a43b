"""GroundingDINO and MM-GroundingDINO, open-vocabulary object detection, through transformers.

Liu et al., 2023, and Zhao et al., 2024.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genval.artifacts.fingerprint import Hashed
from genval.grounding.detections import Detection, ObjectDetector
from genval.grounding.loading import (
    find_file,
    find_place,
    is_original,
    load_pretrained,
    load_tokenizer,
    read_preprocessing,
    read_type,
)
from genval.grounding.original import load_groundingdino
from genval.grounding.owlv2 import load_owlv2
from genval.runtime.errors import GenValError
from genval.runtime.hub import pretrained
from genval.runtime.paths import resolve
from genval.runtime.precision import compute_dtype

# Image size and normalisation of the published code.
_SHORTEST, _LONGEST = 800, 1333
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)
# Arguments and keyword arguments of a module's forward.
_HookInputs = tuple[tuple[Any, ...], dict[str, Any]]


class Detector(Hashed):
    """GroundingDINO with its tokenizer and preprocessing.

    Weights stay in float32 under every precision, because the sampling points of the deformable attention need it.

    Args:
        model: transformers' GroundingDinoForObjectDetection or MMGroundingDinoForObjectDetection.
        tokenizer: of BERT.
        shortest: size of an image's shorter side after resizing, in pixels.
        longest: maximum size of its longer side, in pixels.
        mean, std: of the normalisation, for values 0..1.
        precision: one of Lightning's.
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
        super().__init__(model)
        self.device = torch.device("cpu")
        self._model = fix_text_positions(model).eval().requires_grad_(False)
        self._tokenizer = tokenizer
        self._shortest, self._longest = shortest, longest
        self._mean, self._std = (torch.tensor(values)[:, None, None] for values in (mean, std))
        self._dtype = compute_dtype(precision)

    def to(self, device: torch.device | str) -> Detector:
        """Move the model to a device; return itself."""
        self.device = torch.device(device)
        self._model.to(self.device)
        self._mean, self._std = self._mean.to(self.device), self._std.to(self.device)
        return self

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Resize an RGB uint8 (H, W, 3) image as the published code does, with Pillow's bilinear filter."""
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
        """Detect the objects that `text` names in each image; return them by descending score.

        Args:
            inputs: of `prepare`. Images of the same size are batched, so there is no padding.
            sizes: height and width of each image before resizing, in pixels.
            text: one or more names, separated by " . "; case is ignored.
            box_threshold: minimum score of a box.
            text_threshold: minimum probability of a token in a box's phrase.
            nms_threshold: if two boxes overlap by more than this (IoU), only the one with the higher score is kept.

        Raises:
            GenValError: the model's outputs are not finite.
        """
        tokens = self._tokenizer([as_caption(text)], return_tensors="pt")
        found: list[list[Detection]] = [[] for _ in inputs]
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, image in enumerate(inputs):
            groups.setdefault(image.shape, []).append(index)
        for indices in groups.values():
            pixels = torch.from_numpy(np.stack([inputs[index] for index in indices])).to(self.device)
            pixels = (pixels.permute(0, 3, 1, 2).float() / 255 - self._mean) / self._std
            batch = {name: value.expand(len(indices), -1).to(self.device) for name, value in tokens.items()}
            with torch.autocast(self.device.type, self._dtype, enabled=self._dtype != torch.float32):
                output = self._model(pixel_values=pixels, **batch)
            count = tokens["input_ids"].shape[1]
            # Columns after the last token are minus infinity.
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
        """Return the detections of one image from probabilities (queries, tokens) and boxes (queries, 4), 0..1."""
        from torchvision.ops import box_convert, clip_boxes_to_image, nms

        scores = probabilities.amax(dim=1)
        kept = scores > box_threshold
        height, width = size
        corners = box_convert(boxes[kept], "cxcywh", "xyxy") * torch.tensor([width, height, width, height])
        corners = clip_boxes_to_image(corners, size)
        scores, probabilities = scores[kept], probabilities[kept]
        # The first and the last token are [CLS] and [SEP].
        named = probabilities[:, 1:-1] > text_threshold
        detections = []
        for index in nms(corners, scores, nms_threshold).tolist():
            phrase = self._tokenizer.decode(token_ids[1:-1][named[index]]).replace(".", "").strip()
            left, top, right, bottom = corners[index].tolist()
            detections.append(Detection((left, top, right, bottom), float(scores[index]), phrase))
        return detections


def load_detector(name: str, tokenizer: str = "bert-base-uncased", precision: str = "32-true") -> ObjectDetector:
    """Load GroundingDINO, MM-GroundingDINO or OWLv2.

    Args:
        name: a hub name, a folder in transformers' layout, or a file of GroundingDINO's original format. Relative paths
            start at the repository's root or at `checkpoints/`.
        tokenizer: hub name or folder of BERT's tokenizer, which files of the original format do not contain.
        precision: one of Lightning's.

    Raises:
        GenValError: files are missing, damaged or of another model.
    """
    if is_original(name):
        path = find_file(name)
        return Detector(load_groundingdino(path), _load_tokenizer(tokenizer), precision=precision)
    place = find_place(name)
    return DETECTORS[read_type(place, name, DETECTORS)](place, name, precision)


def _load_transformers(place: str, name: str, precision: str) -> Detector:
    import transformers

    kind = read_type(place, name, ("grounding-dino", "mm-grounding-dino"))
    architecture = "GroundingDino" if kind == "grounding-dino" else "MMGroundingDino"
    model = load_pretrained(getattr(transformers, f"{architecture}ForObjectDetection"), place, name, (kind,))
    settings = read_preprocessing(place)
    size = {key: value for key, value in settings.get("size", {}).items() if value}
    if size and set(size) != {"shortest_edge", "longest_edge"}:
        raise GenValError(
            f"{place}: preprocessor_config.json has the size {size}: expected shortest_edge and longest_edge."
        )
    return Detector(
        model,
        load_tokenizer(place, name),
        size.get("shortest_edge", _SHORTEST),
        size.get("longest_edge", _LONGEST),
        settings.get("image_mean", _MEAN),
        settings.get("image_std", _STD),
        precision,
    )


DETECTORS: dict[str, Callable[[str, str, str], ObjectDetector]] = {
    "grounding-dino": _load_transformers,
    "mm-grounding-dino": _load_transformers,
    "owlv2": load_owlv2,
}
"""Model type of a config: the function that loads it from a place, with a name for errors and a precision."""


def fix_text_positions(model: Any) -> Any:
    """Make GroundingDINO compute the position ids of text tokens as the original does; return the model.

    A token's position is the number of tokens before it that it attends to. transformers 5.17 gives position 0 to the
    full stop after a name and rounds the position embeddings to integers, which changes logits by 10 and more; 5.23
    does neither.
    """

    def set_text_positions(
        _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        token_ids, attention_mask, token_types, _positions, *rest = args
        positions = attention_mask.tril(-1).sum(-1).view(token_ids.shape)
        return (token_ids, attention_mask, token_types, positions, *rest), kwargs

    def set_encoder_positions(
        _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        attention_mask = ~kwargs["text_self_attention_masks"]
        positions = attention_mask.tril(-1).sum(-1).to(kwargs["text_features"].dtype)
        return args, {**kwargs, "text_position_ids": positions}

    model.model.text_backbone.register_forward_pre_hook(set_text_positions, with_kwargs=True)
    model.model.encoder.register_forward_pre_hook(set_encoder_positions, with_kwargs=True)
    return model


def as_caption(text: str) -> str:
    """Convert a text to lower case and add a full stop, as the published code requires."""
    text = text.lower().strip()
    return text if text.endswith(".") else f"{text}."


def input_size(height: int, width: int, shortest: int, longest: int) -> tuple[int, int]:
    """Return the height and width after resizing the shorter side to `shortest`, or less if limited by `longest`."""
    short, long = sorted((height, width))
    if long / short * shortest > longest:
        shortest = round(longest * short / long)
    other = int(shortest * long / short)
    return (shortest, other) if height <= width else (other, shortest)


def _load_tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    folder = resolve(name)
    try:
        location, options = pretrained(str(folder) if folder.is_dir() else name)
        return AutoTokenizer.from_pretrained(location, **options)
    except (OSError, ValueError) as error:
        raise GenValError(
            f"Cannot load the tokenizer {name}: {' '.join(str(error).split())[:300]} GroundingDINO's original file has "
            "none: give the folder or hub name of BERT's (uncased) as --tokenizer."
        ) from error
