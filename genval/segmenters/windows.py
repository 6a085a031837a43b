"""Transformers models that take squares of one size: images are cut into windows of it."""

from __future__ import annotations

import itertools
import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from genval.runtime.errors import GenValError
from genval.segmenters.base import Segmenter
from genval.segmenters.dense_models import TransformersSegmenter
from genval.segmenters.processor import Processor
from genval.segmenters.query_models import QuerySegmenter, to_logits

WINDOWED = ("data2vec-vision", "eomt", "eomt_dinov3", "videomt")
"""Model types whose position grid has the size of the training images."""


class WindowSegmenter(Segmenter):
    """Runs a network of fixed position grid in windows of its training size.

    The image is resized as the image processor does (see `Processor.fitted_size`), unless `input_size` is given. It is
    extended at the bottom and the right with black, as the processors do, and cut into as few windows as cover it, with
    equal overlaps. What the network gives for a pixel is averaged over the windows, and resized to the image.

    Args:
        processor: of the images.

    Raises:
        GenValError: the input is not square, or attention masks are used at random, as in the middle of training.
    """

    network: Any
    processor: Processor
    resizes = True

    def __init__(self, *args: Any, processor: Processor, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        side = self.network.config.image_size
        sides = {side} if isinstance(side, int) else set(side)
        if len(sides) > 1:
            raise GenValError(f"{self.name}: config.json has image_size {side}, expected one side of a square.")
        self.side = int(sides.pop())
        self.processor = processor
        shares = getattr(self.network, "attn_mask_probs", torch.zeros(1))
        if self.network.config.model_type != "videomt" and ((shares > 0) & (shares < 1)).any():
            raise GenValError(
                f"{self.name} was saved in the middle of its training: attn_mask_probs has values between 0 and 1 "
                f"({shares.tolist()}), with which predictions are random. Save it with zeros."
            )

    def set_input_size(self, size: tuple[int, int] | Literal["processor"]) -> None:
        if size != "processor":  # the default
            super().set_input_size(size)

    def infer(self, pixels: Tensor) -> Tensor:
        size = pixels.shape[-2:]
        fitted = size if self.input_size else self.processor.fitted_size(*size)
        if fitted != size:
            pixels = F.interpolate(pixels.float(), fitted, mode="bilinear", antialias=True).to(pixels.dtype)
        outputs = self.average_windows(pixels)
        return F.interpolate(outputs, size, mode="bilinear", align_corners=False) if fitted != size else outputs

    def average_windows(self, pixels: Tensor) -> Tensor:
        """What the network gives for normalised pixels (B, 3, H, W) of any size, float32 (B, C, H, W)."""
        height, width = pixels.shape[-2:]
        bottom, right = max(0, self.side - height), max(0, self.side - width)
        if bottom or right:
            black = (-self.mean / self.std).to(pixels.dtype)
            pixels = F.pad(pixels - black, (0, right, 0, bottom)) + black
        total: Tensor | None = None
        count = torch.zeros(pixels.shape[-2:], device=pixels.device)
        for top, left in itertools.product(*(window_starts(length, self.side) for length in pixels.shape[-2:])):
            window = (..., slice(top, top + self.side), slice(left, left + self.side))
            outputs = self.run_window(pixels[window])
            if total is None:
                total = outputs.new_zeros(*outputs.shape[:2], *pixels.shape[-2:])
            total[window] += outputs
            count[window] += 1
        assert total is not None
        return (total / count)[..., :height, :width]

    def run_window(self, pixels: Tensor) -> Tensor:
        """What is averaged, float32 (B, C, side, side) from pixels of the same size."""
        return F.interpolate(self.run(pixels).float(), pixels.shape[-2:], mode="bilinear", align_corners=False)


class WindowedTransformer(WindowSegmenter, TransformersSegmenter):
    """Data2Vec: logits are averaged."""


class WindowedQueries(WindowSegmenter, QuerySegmenter):
    """EoMT, EoMT-DINOv3 and VidEoMT: the scores of the classes are averaged, and the logits are their logarithms."""

    def infer(self, pixels: Tensor) -> Tensor:
        return to_logits(super().infer(pixels))

    def run_window(self, pixels: Tensor) -> Tensor:
        return self.run(pixels).exp()


def window_starts(length: int, side: int) -> list[int]:
    """Where the fewest windows that cover a length start, with equal overlaps.

    >>> window_starts(2048, 1024), window_starts(1000, 640), window_starts(640, 640)
    ([0, 1024], [0, 360], [0])
    """
    windows = math.ceil(length / side)
    overlap = (windows * side - length) / (windows - 1) if windows > 1 else 0
    return [int(index * (side - overlap)) for index in range(windows)]
