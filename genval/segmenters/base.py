"""What a segmenter is: RGB uint8 images in, float32 logits of the 19 Cityscapes classes out."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genval.datasets.labels import CLASSES
from genval.runtime.errors import GenValError

NUM_CLASSES = len(CLASSES)

# Lightning's names: `true` casts the weights, `mixed` keeps them in float32 and casts inside the operations.
_TRUE = {"32-true": torch.float32, "16-true": torch.float16, "bf16-true": torch.bfloat16}
_MIXED = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}
PRECISIONS = (*_TRUE, *_MIXED)


class Segmenter(nn.Module):
    """A segmentation network with its preprocessing.

    Subclasses say in `infer` how the network runs, and may set `align_corners` (how logits are resized) and
    `reads_bgr` (the network's channel order, and that of `mean` and `std`).

    Args:
        name: as the user spelled it.
        network: in evaluation mode, on its device.
        mean: of the three input channels, on the scale 0..255.
        std: of the three input channels, on the scale 0..255.
        precision: one of `PRECISIONS`.

    Raises:
        GenValError: the precision is unknown.
    """

    mean: Tensor
    std: Tensor
    align_corners = False
    reads_bgr = False

    def __init__(
        self, name: str, network: nn.Module, mean: Sequence[float], std: Sequence[float], precision: str = "32-true"
    ) -> None:
        super().__init__()
        check_precision(precision)
        self.name = name
        self.precision = precision
        self.network = network.eval().to(_TRUE.get(precision, torch.float32))
        device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
        for key, values in (("mean", mean), ("std", std)):
            tensor = torch.tensor(values, dtype=torch.float32, device=device).view(1, 3, 1, 1)
            self.register_buffer(key, tensor)

    def infer(self, pixels: Tensor) -> Tensor:
        """Logits (B, 19, h, w) of any size and float dtype from what `prepare` gives."""
        raise NotImplementedError

    def prepare(self, images: Tensor) -> Tensor:
        """The network's input: `images` (B, 3, H, W) normalised, in the precision of the weights."""
        if self.reads_bgr:
            images = images.flip(1)
        pixels: Tensor = (images.float() - self.mean) / self.std
        return pixels.to(_TRUE.get(self.precision, torch.float32))

    @torch.no_grad()
    def forward(self, images: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Segment a batch.

        Args:
            images: (B, 3, H, W) uint8, RGB, on the segmenter's device, at their native size.
            size: height and width of the result, e.g. the label's; the input's own if None.

        Returns:
            Float32 logits (B, 19, *size), not soft-maxed; resized bilinearly where the network's own size is another.

        Raises:
            GenValError: the images have another shape or dtype, or the network does not give 19 classes.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise GenValError(
                f"{self.name} expects RGB uint8 images (B, 3, H, W), found {images.dtype} {tuple(images.shape)}."
            )
        with self._autocast(images.device.type):
            logits = self.infer(self.prepare(images))
        if logits.ndim != 4 or logits.shape[:2] != (len(images), NUM_CLASSES):
            raise GenValError(
                f"{self.name} gives {tuple(logits.shape)}, expected ({len(images)}, {NUM_CLASSES}, h, w): "
                "a segmenter needs one logit for each of the 19 Cityscapes classes, in the order of the trainIds."
            )
        target = tuple(size or images.shape[-2:])
        logits = logits.float()
        if tuple(logits.shape[-2:]) != target:
            logits = F.interpolate(logits, target, mode="bilinear", align_corners=self.align_corners)
        return logits

    def _autocast(self, device_type: str) -> AbstractContextManager[object]:
        dtype = _MIXED.get(self.precision)
        return torch.autocast(device_type, dtype) if dtype else contextlib.nullcontext()


def check_precision(precision: str) -> None:
    """Raise GenValError unless `precision` is one of `PRECISIONS`."""
    if precision not in PRECISIONS:
        raise GenValError(f"Unknown precision {precision!r}: expected one of {', '.join(PRECISIONS)}.")
