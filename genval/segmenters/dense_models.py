"""Transformers models that give logits per pixel: SegFormer, UPerNet, BEiT, DPT, MobileViT, ..."""

from __future__ import annotations

import inspect
import math
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from genval.segmenters.base import Segmenter


class TransformersSegmenter(Segmenter):
    """A transformers semantic segmentation model on images at their native size.

    Mean, deviation and scale are its image processor's; the processor's resize is applied with the input size
    `processor`. Vision transformers get whole patches, and their position embeddings are interpolated to the image's
    size; DPT needs squares as well.
    """

    network: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        config = self.network.config
        patch = getattr(getattr(config, "backbone_config", None) or config, "patch_size", 1)
        self.size_divisor = patch if isinstance(patch, int) else math.lcm(*patch)
        interpolates = "interpolate_pos_encoding" in inspect.signature(self.network.forward).parameters
        self.options = {"interpolate_pos_encoding": True} if interpolates else {}
        # DPT without a backbone of its own takes the number of patches for that of a square.
        self.square = config.model_type == "dpt" and config.backbone_config is None

    def pad(self, pixels: Tensor) -> Tensor:
        if self.square:
            side = max(pixels.shape[-2:])
            pixels = F.pad(pixels, (0, side - pixels.shape[-1], 0, side - pixels.shape[-2]))
        return super().pad(pixels)

    def run(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.network(pixel_values=pixels, **self.options).logits
        return logits
