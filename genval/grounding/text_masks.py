"""SAM 3, which segments the objects that a text names, through transformers (Carion et al., 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from genval.artifacts.fingerprint import Hashed
from genval.grounding.detections import Detection, select_boxes, split_names
from genval.grounding.loading import find_place, load_pretrained, load_tokenizer, read_preprocessing, read_type
from genval.runtime.errors import GenValError
from genval.runtime.precision import autocast, weights_dtype

# Published folders have the config of the model for videos, which contains that for images.
TEXT_MASKERS = ("sam3", "sam3_video", "sam3_lite_text")
_SIDE = 1008
_MEAN = _STD = (0.5, 0.5, 0.5)
_TOKENS = 32


class TextMasker(Hashed):
    """SAM 3 with its tokenizer and preprocessing. Its detections have masks.

    Args:
        model: transformers' Sam3Model.
        tokenizer: of CLIP.
        side: of the model's square input, in pixels; images are stretched to it.
        mean, std: of the normalisation, for values 0..1.
        precision: one of Lightning's.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        side: int = _SIDE,
        mean: Sequence[float] = _MEAN,
        std: Sequence[float] = _STD,
        precision: str = "32-true",
    ) -> None:
        super().__init__(model)
        self.precision = precision
        self.device = torch.device("cpu")
        self._side = side
        self._model = model.eval().requires_grad_(False).to(weights_dtype(precision))
        self._tokenizer = tokenizer
        self._mean, self._std = (torch.tensor(values)[:, None, None] for values in (mean, std))

    def to(self, device: torch.device | str) -> TextMasker:
        """Move the model to a device; return itself."""
        self.device = torch.device(device)
        self._model.to(self.device)
        self._mean, self._std = self._mean.to(self.device), self._std.to(self.device)
        return self

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Return the image: it is resized on the device."""
        return image

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
        """Detect and segment the objects that `text` names in each image; see `ObjectDetector.detect`.

        A score is the probability of the query times that of the presence of the object. Several names are one text.

        Raises:
            GenValError: the model's outputs are not finite.
        """
        name = ", ".join(split_names(text))
        tokens = self._tokenizer_inputs(name)
        batch = {key: value.expand(len(inputs), -1).to(self.device) for key, value in tokens.items()}
        square = (self._side, self._side)
        pixels = []
        for image in inputs:
            values = torch.from_numpy(image).to(self.device).permute(2, 0, 1)[None].float() / 255
            pixels.append(functional.interpolate(values, square, mode="bilinear", antialias=True)[0])
        normalised = ((torch.stack(pixels) - self._mean) / self._std).to(weights_dtype(self.precision))
        with autocast(self.device, self.precision):
            output = self._model(pixel_values=normalised, **batch)
        presence = 1.0 if output.presence_logits is None else output.presence_logits.float().sigmoid()
        scores = (output.pred_logits.float().sigmoid() * presence).cpu()
        boxes, masks = output.pred_boxes.float().cpu(), output.pred_masks
        if not (scores.isfinite().all() and boxes.isfinite().all()):
            raise GenValError("SAM 3 gives values that are not finite. Use --precision 32-true.")
        found = []
        for score, box, mask, (height, width) in zip(scores, boxes, masks, sizes, strict=True):
            corners = box * torch.tensor([width, height, width, height])
            numbers, detections = select_boxes(
                score, corners, [name] * len(score), (height, width), box_threshold, text_threshold, nms_threshold
            )
            outlined = []
            for number, detection in zip(numbers, detections, strict=True):
                logits = mask[number][None, None].float()
                full = functional.interpolate(logits, (height, width), mode="bilinear", align_corners=False)[0, 0] > 0
                outlined.append(Detection(detection.box, detection.score, detection.phrase, full.cpu().numpy()))
            found.append(outlined)
        return found

    def _tokenizer_inputs(self, name: str) -> dict[str, Tensor]:
        options = {"padding": "max_length", "max_length": _TOKENS, "truncation": True, "return_tensors": "pt"}
        tokens = self._tokenizer([name], **options)
        return {key: tokens[key] for key in ("input_ids", "attention_mask")}


def load_text_masker(name: str, precision: str = "32-true") -> TextMasker:
    """Load SAM 3.

    Args:
        name: a hub name or a folder in transformers' layout. Relative paths start at the repository's root or at
            `checkpoints/`.
        precision: one of Lightning's.

    Raises:
        GenValError: files are missing, damaged or of another model.
    """
    import transformers

    place = find_place(name)
    kind = read_type(place, name, TEXT_MASKERS)
    model_class = transformers.Sam3LiteTextModel if kind == "sam3_lite_text" else transformers.Sam3Model
    model = load_pretrained(model_class, place, name, TEXT_MASKERS)
    settings = read_preprocessing(place)
    size = settings.get("size", {"height": _SIDE, "width": _SIDE})
    if size.get("height") is None or size["height"] != size.get("width"):
        raise GenValError(f"{place}: preprocessor_config.json has the size {size}: expected a square.")
    return TextMasker(
        model,
        load_tokenizer(place, name),
        size["height"],
        settings.get("image_mean", _MEAN),
        settings.get("image_std", _STD),
        precision,
    )
