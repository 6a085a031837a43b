"""OWLv2, open-vocabulary object detection, through transformers (Minderer et al., 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genval.artifacts.fingerprint import Hashed
from genval.grounding.detections import Detection, select_boxes, split_names
from genval.grounding.loading import load_pretrained, load_processor
from genval.runtime.errors import GenValError
from genval.runtime.precision import autocast, weights_dtype

_PROMPT = "a photo of a {}"


class Owlv2Detector(Hashed):
    """OWLv2 with its processor. A name is searched for as "a photo of a NAME".

    Args:
        model: transformers' Owlv2ForObjectDetection.
        processor: transformers' Owlv2Processor.
        precision: one of Lightning's.
    """

    def __init__(self, model: Any, processor: Any, precision: str = "32-true") -> None:
        super().__init__(model)
        self.precision = precision
        self.device = torch.device("cpu")
        self._model = model.eval().requires_grad_(False).to(weights_dtype(precision))
        self._processor = processor

    def to(self, device: torch.device | str) -> Owlv2Detector:
        """Move the model to a device; return itself."""
        self.device = torch.device(device)
        self._model.to(self.device)
        return self

    def prepare(self, image: np.ndarray) -> Tensor:
        """Pad an RGB uint8 (H, W, 3) image to a square and resize it as the processor does, float32 (3, h, w)."""
        inputs = self._processor.image_processor(images=image, input_data_format="channels_last", return_tensors="pt")
        pixels: Tensor = inputs["pixel_values"][0]
        return pixels

    @torch.no_grad()
    def detect(
        self,
        inputs: Sequence[Tensor],
        sizes: Sequence[tuple[int, int]],
        text: str,
        box_threshold: float,
        text_threshold: float,
        nms_threshold: float,
    ) -> list[list[Detection]]:
        """Detect the objects that `text` names in each image; see `ObjectDetector.detect`.

        Raises:
            GenValError: the model's outputs are not finite.
        """
        from torchvision.ops import box_convert

        names = split_names(text)
        prompts = [_PROMPT.format(name) for name in names]
        tokens = self._processor.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt")
        pixels = torch.stack(list(inputs)).to(self.device, weights_dtype(self.precision))
        # The queries of an image follow each other.
        batch = {name: value.repeat(len(inputs), 1).to(self.device) for name, value in tokens.items()}
        with autocast(self.device, self.precision):
            output = self._model(pixel_values=pixels, **batch)
        logits, boxes = output.logits.float().cpu(), output.pred_boxes.float().cpu()
        if logits.isnan().any() or not boxes.isfinite().all():
            raise GenValError("OWLv2 gives values that are not finite. Use --precision 32-true.")
        found = []
        for logit, box, size in zip(logits, boxes, sizes, strict=True):
            scores, best = logit.sigmoid().max(dim=-1)
            # Boxes are relative to the padded square.
            corners = box_convert(box, "cxcywh", "xyxy") * max(size)
            labels = [names[number] for number in best.tolist()]
            thresholds = (box_threshold, text_threshold, nms_threshold)
            found.append(select_boxes(scores, corners, labels, size, *thresholds)[1])
        return found


def load_owlv2(place: str, name: str, precision: str = "32-true") -> Owlv2Detector:
    """Load OWLv2 from a folder or hub name.

    Raises:
        GenValError: files are missing, damaged or of another model.
    """
    from transformers import Owlv2ForObjectDetection, Owlv2Processor

    model = load_pretrained(Owlv2ForObjectDetection, place, name, ("owlv2",))
    return Owlv2Detector(model, load_processor(Owlv2Processor, place, name), precision)
