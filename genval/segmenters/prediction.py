"""One forward pass of a segmenter: images to logits to classes, with errors that name the image and the remedy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from genval.metrics.statistics import LogitsNotFiniteError
from genval.runtime.devices import to_device
from genval.runtime.errors import GenValError
from genval.segmenters.outputs import check_logits

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

T = TypeVar("T")


def predict(segmenter: nn.Module, images: np.ndarray, names: Sequence[str], device: torch.device) -> np.ndarray:
    """Predict the class of each pixel.

    Args:
        segmenter: `segmenter(images, size)` gives logits (B, 19, *size) from RGB uint8 (B, 3, H, W); has a `name`.
        images: RGB uint8 (B, H, W, 3).
        names: what errors call each image.
        device: where the segmenter is.

    Returns:
        trainIds, uint8 (B, H, W).

    Raises:
        GenValError: the logits of an image hold NaN or infinity, or the device's memory is full.
    """
    import torch

    with torch.inference_mode():
        # The maximum is NaN where any class is, so that checking it costs a 19th of checking the logits.
        largest, classes = infer(segmenter, images, device).max(dim=1)
        for name, sound in zip(names, torch.isfinite(largest).flatten(1).all(1).tolist(), strict=True):
            with naming_errors(segmenter, name):
                if not sound:
                    raise LogitsNotFiniteError
        return classes.to(torch.uint8).cpu().numpy()


def infer(segmenter: nn.Module, images: np.ndarray, device: torch.device) -> Tensor:
    """Run a segmenter: RGB uint8 images (B, H, W, 3) to logits (B, C, H, W), on the device.

    Raises:
        GenValError: the device's memory is full, or the segmenter gives no logits of the 19 classes.
    """
    tensor = to_device(images, device).permute(0, 3, 1, 2).contiguous()
    with memory_errors(segmenter, images):
        logits: Tensor = segmenter(tensor, images.shape[1:3])
    check_logits(getattr(segmenter, "name", "The segmenter"), logits, tensor, None)
    return logits


@contextlib.contextmanager
def naming_errors(segmenter: nn.Module, name: str) -> Iterator[None]:
    """Name the segmenter and the image in errors, and the remedy where logits are not finite."""
    try:
        yield
    except LogitsNotFiniteError as error:
        raise GenValError(
            f"{segmenter.name} gives NaN or infinite logits for {name}. "
            "Use --precision 32-true, or check the checkpoint."
        ) from error
    except GenValError as error:
        raise GenValError(f"{segmenter.name}, {name}: {error}") from error


@contextlib.contextmanager
def memory_errors(segmenter: nn.Module, images: np.ndarray) -> Iterator[None]:
    """Name the remedy where a batch does not fit into the device's memory."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise GenValError(
            f"{segmenter.name} with {len(images)} images of {images.shape[2]}x{images.shape[1]} at a time does not "
            "fit into the device's memory. Give a smaller --batch_size, or --precision 16-true or bf16-true."
        ) from error


def filled(values: Sequence[T], size: int) -> list[T]:
    """Repeat the last value until there are `size` values.

    >>> filled([1, 2], 4)
    [1, 2, 2, 2]
    """
    return [*values, *[values[-1]] * (size - len(values))]


def stack_batch(arrays: Sequence[np.ndarray], device: torch.device) -> np.ndarray:
    """Stack arrays of one shape and dtype; for a GPU in pinned memory, from which `to_device` copies directly."""
    import torch

    if device.type != "cuda":
        return np.stack(arrays)
    shape, dtype = (len(arrays), *arrays[0].shape), torch.from_numpy(arrays[0]).dtype
    with torch.cuda.device(device):  # in a new thread, the current device is GPU 0
        batch: np.ndarray = torch.empty(shape, dtype=dtype, pin_memory=True).numpy()
    return np.stack(arrays, out=batch)
