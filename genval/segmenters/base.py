"""The base class of segmenters: RGB uint8 images to float32 logits of the 19 Cityscapes classes."""

from __future__ import annotations

import abc
import contextlib
import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genval.runtime.errors import GenValError
from genval.runtime.precision import autocast, check_precision, weights_dtype
from genval.segmenters.class_map import ClassMap
from genval.segmenters.outputs import check_logits, check_values, named_failures
from genval.segmenters.processor import Processor
from genval.segmenters.recipe import Recipe

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


class Segmenter(nn.Module, abc.ABC):
    """A segmentation network with its preprocessing.

    Subclasses implement `run`, the forward pass of the network. They may set `align_corners` (how logits are resized),
    `reads_bgr` (the network's channel order, and that of `mean` and `std`), and the sizes that the network accepts: at
    least `minimum_size` pixels per side, and multiples of `size_divisor`. Images of other sizes are padded at the
    bottom and the right with the mean colour, and the logits are cropped. `definition` is a resolved
    config, or a hash of an exported file: it identifies the network together with the weights and the attributes.
    Without it `genval.segmenters.identity` examines the network's modules.

    With `input_size` (height, width), images are resized to it for the network, bilinearly with antialiasing and
    rounded to uint8; the logits are resized to the size that the caller asks for, as in any case. With the input size
    `processor`, the size is that of `processor`, which loaders of models with an image processor set.

    Args:
        name: as given by the user.
        network: in evaluation mode, on its device.
        mean: of the three input channels, on the scale 0..255.
        std: of the three input channels, on the scale 0..255.
        precision: one of `genval.runtime.precision.PRECISIONS`.
        class_map: for a network of other classes than the 19.

    Raises:
        GenValError: the precision is unknown, the normalisation is not finite or divides by 0, or weights are complex.
    """

    mean: Tensor
    std: Tensor
    align_corners = False
    reads_bgr = False
    resizes = False
    """Whether images are resized as `processor` does without being asked to."""
    minimum_size = 1
    size_divisor = 1
    input_size: tuple[int, int] | Literal["processor"] | None = None
    processor: Processor | None = None
    of_queries = False
    """Whether logits are logarithms of class scores that queries give, which are not a distribution."""
    definition: str | None = None
    revision: str | None = None
    """The commit of a model from the Hugging Face hub."""
    recipe: Recipe | None = None
    """How relis/finetune.py made the weights, if it did."""

    def __init__(
        self,
        name: str,
        network: nn.Module,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        precision: str = "32-true",
        class_map: ClassMap | None = None,
    ) -> None:
        super().__init__()
        check_precision(precision)
        if not all(map(math.isfinite, (*mean, *std))) or min(std) <= 0:
            raise GenValError(f"{name}: expected a finite mean and a std above 0, found {list(mean)} and {list(std)}.")
        if any(tensor.is_complex() for tensor in network.state_dict().values() if isinstance(tensor, Tensor)):
            raise GenValError(f"{name} has complex weights, which have no --precision. Give it as module:function.")
        self.name = name
        self._is_checked = False
        self.precision = precision
        self.network = network.eval().to(weights_dtype(precision))
        device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
        for key, values in (("mean", mean), ("std", std)):
            tensor = torch.tensor(values, dtype=torch.float32, device=device).view(1, 3, 1, 1)
            self.register_buffer(key, tensor)
        self.class_map = class_map.to(device) if class_map is not None else None
        self.memory_format = torch.contiguous_format
        strides = [max(m.stride) for m in network.modules() if isinstance(m, nn.Conv2d)]
        self.avoids_onednn = not strides or max(strides) > 2  # none: the structure of the network is not known

    @abc.abstractmethod
    def run(self, pixels: Tensor) -> Tensor:
        """Logits (B, C, h, w) of any size and float dtype from normalised pixels of a size that the network takes."""

    def infer(self, pixels: Tensor) -> Tensor:
        """Logits (B, C, h, w) of any size and float dtype from what `prepare` gives."""
        height, width = pixels.shape[-2:]
        padded = self.pad(pixels)
        logits = self.run(padded)
        if padded.shape == pixels.shape:
            return logits
        if logits.shape[-2:] != padded.shape[-2:]:
            logits = F.interpolate(logits.float(), padded.shape[-2:], mode="bilinear", align_corners=self.align_corners)
        return logits[..., :height, :width]

    def crop_logits(self, images: Tensor) -> Tensor:
        """Segment crops for training, in one pass and with gradients.

        Args:
            images: (B, 3, H, W) on the scale 0..255, RGB, on the segmenter's device.

        Returns:
            Float32 logits (B, 19, h, w) of the network's own size.
        """
        logits = Segmenter.infer(self, self.prepare(images))  # without the sliding window of whole images
        return self.class_map(logits) if self.class_map is not None else logits.float()

    def pad(self, pixels: Tensor) -> Tensor:
        """Normalised pixels, extended at the bottom and the right to a size that the network takes."""
        height, width = pixels.shape[-2:]
        more = (
            -(-max(length, self.minimum_size) // self.size_divisor) * self.size_divisor - length
            for length in (width, height)
        )
        right, bottom = more
        return F.pad(pixels, (0, right, 0, bottom)) if right or bottom else pixels

    def set_input_size(self, size: tuple[int, int] | Literal["processor"]) -> None:
        """Resize images to a height and width for the network, or as the model's image processor does.

        Raises:
            GenValError: the network takes images of one other size, or has no image processor.
        """
        if size == "processor":
            if self.processor is None:
                raise GenValError(
                    f"{self.name} has no image processor; only hf: models have one. Give --input_size HxW."
                )
            self.processor.fitted_size(1024, 2048)  # refuses what it cannot do
            self.definition = f"{self.definition}{self.processor}"
        fixed = getattr(self, "size", None)
        if fixed not in (None, size):
            raise GenValError(f"{self.name} only takes images of {fixed[0]}x{fixed[1]}. Leave --input_size out.")
        self.input_size = size

    def network_size(self, height: int, width: int) -> tuple[int, int]:
        """The height and width to which an image is resized for the network."""
        if self.input_size == "processor":
            assert self.processor is not None
            return self.processor.fitted_size(height, width)
        return self.input_size or (height, width)

    def compile_network(self, backend: str | Callable[..., Any] = "inductor") -> None:
        """Compile the network with torch.compile. This takes minutes at the first batch of each shape."""
        self.run = torch.compile(self.run, backend=backend, dynamic=False)  # type: ignore[method-assign]

    def fuse(self) -> None:
        """Compute the logits of inference with fewer and faster kernels, if the network's library has them.

        Logits change by rounding. See `genval.segmenters.fused`.
        """

    def use_channels_last(self) -> None:
        """Use the channels-last memory format, which is faster for convolutions."""
        self.memory_format = torch.channels_last
        self.network.to(memory_format=torch.channels_last)

    def resize(self, images: Tensor) -> Tensor:
        """The images, uint8 (B, 3, H, W), at the size of `network_size`."""
        fitted = self.network_size(*images.shape[-2:])
        if tuple(images.shape[-2:]) == fitted:
            return images
        resized = F.interpolate(images.float(), fitted, mode="bilinear", antialias=True)
        return resized.round().clamp(0, 255).to(torch.uint8)

    def prepare(self, images: Tensor) -> Tensor:
        """The network's input: `images` (B, 3, H, W) normalised, in the precision of the weights."""
        if self.reads_bgr:
            images = images.flip(1)
        pixels: Tensor = (images.float() - self.mean) / self.std
        return pixels.to(weights_dtype(self.precision), memory_format=self.memory_format)

    def infer_images(self, images: Tensor) -> Tensor:
        """Logits (B, C, h, w) of any size and float dtype from images, uint8 (B, 3, H, W)."""
        return self.infer(self.prepare(images))

    @torch.no_grad()
    def forward(self, images: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Segment a batch.

        Args:
            images: (B, 3, H, W) uint8, RGB, on the segmenter's device, at their native size.
            size: height and width of the result, e.g. the label's; the input's own if None.

        Returns:
            Float32 logits (B, 19, *size), not soft-maxed; resized bilinearly where the network's own size is another.

        Raises:
            GenValError: the images have another shape or dtype, or the network fails or does not give logits of the 19
                classes (see `outputs.check_logits` and `outputs.check_values`).
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise GenValError(
                f"{self.name} expects RGB uint8 images (B, 3, H, W), found {images.dtype} {tuple(images.shape)}."
            )
        target = tuple(size or images.shape[-2:])
        images = self.resize(images)
        task = f"{self.name} fails on images {tuple(images.shape)}"
        with named_failures(task), self._arithmetic(images.device):
            logits = self.infer_images(images)
        check_logits(self.name, logits, images, self.class_map)
        if not self._is_checked:  # on a GPU the check waits for the device
            check_values(self.name, logits)
            self._is_checked = True
        logits = self.class_map(logits) if self.class_map is not None else logits.float()
        if tuple(logits.shape[-2:]) != target:
            logits = F.interpolate(logits, target, mode="bilinear", align_corners=self.align_corners)
        return logits

    def _arithmetic(self, device: torch.device) -> AbstractContextManager[object]:
        stack = contextlib.ExitStack()
        if device.type == "cpu" and self.precision.startswith("bf16") and self.avoids_onednn:
            # oneDNN's bfloat16 convolutions of stride 4 and 8 are wrong for some numbers of channels (torch 2.14.1);
            # without it they are right, and slow.
            warnings.filterwarnings("ignore", message="TF32 acceleration on top of oneDNN")
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
        stack.enter_context(autocast(device, self.precision))
        return stack
