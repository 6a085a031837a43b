"""Segment Anything, its three versions and SAM-HQ, through transformers: masks of the objects in boxes.

Kirillov et al., 2023; Ke et al., 2023; Ravi et al., 2024; Carion et al., 2025.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from genval.artifacts.fingerprint import Hashed
from genval.grounding.loading import find_file, find_place, is_original, load_pretrained, read_preprocessing, read_type
from genval.grounding.original import load_sam
from genval.runtime.errors import GenValError
from genval.runtime.precision import autocast, weights_dtype

_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)
_HALF = (0.5, 0.5, 0.5)  # SAM 3
OUTLINERS = {
    "sam": "SamModel",
    "sam_hq": "SamHQModel",
    "sam2": "Sam2Model",
    "sam3_tracker": "Sam3TrackerModel",
    # Published folders have the config of the model for videos, which contains that for images.
    "sam2_video": "Sam2Model",
    "sam3_video": "Sam3TrackerModel",
}
"""Model type of a config: transformers' class of the model that segments what is in a box."""

# Of SAM 3's files, which transformers 5.23 loads without an error and without a weight.
_TRACKER_KEYS = {
    r"^detector_model\.vision_encoder\.backbone\.": "vision_encoder.backbone.",
    r"^tracker_neck\.": "vision_encoder.neck.",
    r"^tracker_model\.": "",
}

# They keep an image's aspect ratio and pad it; the others stretch it to a square.
_PADS = ("sam", "sam_hq")


class Outliner(Hashed):
    """Segment Anything with its preprocessing.

    Args:
        model: transformers' model of a class of `OUTLINERS`.
        precision: one of Lightning's.
        mean, std: of the normalisation, for values 0..1.

    Attributes:
        side: of the model's square input, in pixels.
    """

    def __init__(
        self,
        model: Any,
        precision: str = "32-true",
        mean: Sequence[float] = _MEAN,
        std: Sequence[float] = _STD,
    ) -> None:
        super().__init__(model)
        self.precision = precision
        self.device = torch.device("cpu")
        self.stretches = model.config.model_type not in _PADS
        side = (model.config.prompt_encoder_config if self.stretches else model.config.vision_config).image_size
        self.side = int(side if isinstance(side, int) else side[0])
        self._model = model.eval().requires_grad_(False).to(weights_dtype(precision))
        self._mean, self._std = (torch.tensor(values)[:, None, None] for values in (mean, std))

    def to(self, device: torch.device | str) -> Outliner:
        """Move the model to a device; return itself."""
        self.device = torch.device(device)
        self._model.to(self.device)
        self._mean, self._std = self._mean.to(self.device), self._std.to(self.device)
        return self

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Prepare an RGB uint8 (H, W, 3) image of any size for `outline`.

        For the first version and SAM-HQ, the longer side is resized to `side` with Pillow's bilinear filter. For the
        others, floats are resized on the device, so the image is returned unchanged.
        """
        from PIL import Image

        if self.stretches:
            return image
        height, width = fitted_size(image.shape[0], image.shape[1], self.side)
        return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))

    @torch.no_grad()
    def outline(
        self,
        inputs: Sequence[np.ndarray],
        sizes: Sequence[tuple[int, int]],
        boxes: Sequence[tuple[float, float, float, float]],
    ) -> list[tuple[np.ndarray, float]]:
        """Segment the object in the box of each image; of several masks, return the one with the highest estimated IoU.

        Args:
            inputs: of `prepare`.
            sizes: height and width of each image before resizing, in pixels.
            boxes: left, top, right, bottom in pixels of each image before resizing.

        Returns:
            For each image a mask, bool (H, W), and its estimated IoU.

        Raises:
            GenValError: the model's outputs are not finite.
        """
        dtype = weights_dtype(self.precision)
        pixels = torch.stack([self._normalised(image) for image in inputs]).to(dtype)
        scaled = []
        for image, (height, width), box in zip(inputs, sizes, boxes, strict=True):
            fitted = (self.side, self.side) if self.stretches else image.shape[:2]
            scaled.append(torch.tensor(box) * torch.tensor([fitted[1] / width, fitted[0] / height] * 2))
        prompts = torch.stack(scaled)[:, None].to(self.device)
        with autocast(self.device, self.precision):
            output = self._model(pixel_values=pixels, input_boxes=prompts, multimask_output=True)
        logits, estimates = output.pred_masks[:, 0].float(), output.iou_scores[:, 0].float()
        if not (logits.isfinite().all() and estimates.isfinite().all()):
            raise GenValError("Segment Anything gives values that are not finite. Use --precision 32-true.")
        best = estimates.argmax(dim=1)
        outlined = []
        for index, (image, size) in enumerate(zip(inputs, sizes, strict=True)):
            chosen = logits[index, best[index]]
            mask = self.to_size(chosen[None, None], image.shape[:2], size)[0, 0] > 0
            outlined.append((mask.cpu().numpy(), float(estimates[index, best[index]])))
        return outlined

    def to_size(self, logits: Tensor, fitted: tuple[int, ...], size: tuple[int, int]) -> Tensor:
        """Resize logits (B, C, h, w) of the model's square input to the size of the image, bilinearly.

        Args:
            logits: of the model.
            fitted: height and width of the image inside the square, from `prepare`.
            size: height and width of the image before resizing.
        """
        if not self.stretches:
            logits = functional.interpolate(logits, (self.side, self.side), mode="bilinear", align_corners=False)
            logits = logits[..., : fitted[0], : fitted[1]]
        return functional.interpolate(logits, size, mode="bilinear", align_corners=False)

    def _normalised(self, image: np.ndarray) -> Tensor:
        """Return the model's input of one image, float32 (3, side, side)."""
        pixels = torch.from_numpy(image).to(self.device).permute(2, 0, 1).float() / 255
        if self.stretches:
            square = (self.side, self.side)
            pixels = functional.interpolate(pixels[None], square, mode="bilinear", antialias=True)[0]
        pixels = (pixels - self._mean) / self._std
        return functional.pad(pixels, (0, self.side - pixels.shape[2], 0, self.side - pixels.shape[1]))


def load_outliner(name: str, precision: str = "32-true") -> Outliner:
    """Load Segment Anything of any version, or SAM-HQ.

    Args:
        name: a hub name, a folder in transformers' layout, or a file of the first version's original format. Relative
            paths start at the repository's root or at `checkpoints/`.
        precision: one of Lightning's.

    Raises:
        GenValError: files are missing, damaged or of another model.
    """
    import transformers

    if is_original(name):
        return Outliner(load_sam(find_file(name)), precision)
    place = find_place(name)
    kind = read_type(place, name, OUTLINERS)
    mapping = _TRACKER_KEYS if kind == "sam3_video" else None
    model = load_pretrained(getattr(transformers, OUTLINERS[kind]), place, name, OUTLINERS, mapping)
    settings = read_preprocessing(place)
    mean, std = (_HALF, _HALF) if kind.startswith("sam3") else (_MEAN, _STD)
    return Outliner(model, precision, settings.get("image_mean", mean), settings.get("image_std", std))


def fitted_size(height: int, width: int, side: int) -> tuple[int, int]:
    """Return the height and width after resizing the longer side to `side`, rounded to the nearest integer."""
    scale = side / max(height, width)
    return int(height * scale + 0.5), int(width * scale + 0.5)
