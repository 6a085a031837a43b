"""One forward pass an image: the predicted classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from genval.runtime.errors import GenValError

if TYPE_CHECKING:
    import torch
    from torch import nn


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
        tensor = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).contiguous()
        try:
            logits = segmenter(tensor, images.shape[1:3])
        except torch.OutOfMemoryError as error:
            raise GenValError(
                f"{segmenter.name} with {len(images)} images of {images.shape[2]}x{images.shape[1]} at a time does not "
                "fit into the device's memory. Give a smaller --batch_size, or --precision 16-true or bf16-true."
            ) from error
        # The maximum is NaN where any class is, so that checking it costs a 19th of checking the logits.
        largest, classes = logits.max(dim=1)
        sound = torch.isfinite(largest).flatten(1).all(1).tolist()
        if not all(sound):
            raise GenValError(
                f"{segmenter.name} gives NaN or infinite logits for {names[sound.index(False)]}. "
                "Use --precision 32-true, or check the checkpoint."
            )
        return classes.to(torch.uint8).cpu().numpy()
