"""One forward pass an image: the predicted classes, their statistics, and logits where they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from genval.metrics.confusion import confusion_matrix
from genval.metrics.statistics import PixelStatistics, measure
from genval.runtime.errors import GenValError
from genval.runtime.seeds import item_seed

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
        # The maximum is NaN where any class is, so that checking it costs a 19th of checking the logits.
        largest, classes = infer(segmenter, images, device).max(dim=1)
        _check(torch.isfinite(largest).flatten(1).all(1).tolist(), segmenter, names)
        return classes.to(torch.uint8).cpu().numpy()


@dataclass(frozen=True)
class Measured:
    """What is kept of one image's logits."""

    prediction: np.ndarray  # trainIds, uint8 (H, W)
    statistics: PixelStatistics
    logits: np.ndarray | None  # float32 or float16 (pixels, C)


def measure_batch(
    segmenter: nn.Module,
    images: np.ndarray,
    train_ids: np.ndarray,
    names: Sequence[str],
    device: torch.device,
    samples: Sequence[np.ndarray | None] | None = None,
    kept: Sequence[np.ndarray | None] | None = None,
    half: bool = False,
) -> list[Measured]:
    """Predict and measure a batch in one pass, on the device.

    Args:
        segmenter: `segmenter(images, size)` gives logits (B, C, *size) from RGB uint8 (B, 3, H, W); has a `name`.
        images: RGB uint8 (B, H, W, 3).
        train_ids: the labels, uint8 (B, H, W).
        names: what errors call each image.
        device: where the segmenter is.
        samples: of each image, the flat indices of the pixels whose confidences are measured; None is all. The
            confusion matrix is of all pixels in any case.
        kept: of each image, the flat indices of the pixels whose logits are given back; None is no pixel.
        half: give logits back as float16.

    Raises:
        GenValError: the logits of an image hold NaN or infinity, or the device's memory is full.
    """
    import torch

    with torch.inference_mode():
        logits = infer(segmenter, images, device)
        labels = torch.from_numpy(train_ids).to(device)
        results = []
        for index, name in enumerate(names):
            sample, keep = (None if rows is None else rows[index] for rows in (samples, kept))
            flat, flat_labels = logits[index].flatten(1), labels[index].flatten()
            try:
                if sample is None:
                    prediction, statistics = measure(flat, flat_labels)
                else:
                    chosen = torch.from_numpy(sample).to(device)
                    largest, classes = flat.max(0)
                    _check([bool(torch.isfinite(largest).all())], segmenter, [name])  # all pixels are predicted
                    prediction = classes.to(torch.uint8)
                    statistics = measure(flat[:, chosen], flat_labels[chosen])[1]
                    statistics.confusion[:] = confusion_matrix(flat_labels, prediction, len(flat))
            except GenValError as error:
                if not bool(torch.isfinite(flat).all()):
                    _check([False], segmenter, [name])
                raise GenValError(f"{segmenter.name}, {name}: {error}") from error
            values = None
            if keep is not None:
                dtype = torch.float16 if half else torch.float32
                values = flat[:, torch.from_numpy(keep).to(device)].T.to(dtype).cpu().numpy()
            results.append(Measured(prediction.cpu().numpy().reshape(train_ids.shape[1:]), statistics, values))
        return results


def sample_pixels(pixels: int, number: int, seed: int, item_id: str) -> np.ndarray:
    """Flat indices of `number` random pixels of an image, ascending; all of them where there are no more, or for -1.

    The choice depends on the seed, the image's id and its size alone.

    >>> sample_pixels(10, 3, seed=0, item_id="a").tolist() == sample_pixels(10, 3, seed=0, item_id="a").tolist()
    True
    """
    if number == -1 or number >= pixels:
        return np.arange(pixels)
    generator = np.random.default_rng(item_seed(seed, item_id))
    return np.sort(generator.choice(pixels, number, replace=False, shuffle=False))


def infer(segmenter: nn.Module, images: np.ndarray, device: torch.device) -> torch.Tensor:
    """Logits (B, C, H, W) of RGB uint8 images (B, H, W, 3), on the device.

    Raises:
        GenValError: the device's memory is full.
    """
    import torch

    tensor = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).contiguous()
    try:
        logits: torch.Tensor = segmenter(tensor, images.shape[1:3])
    except torch.OutOfMemoryError as error:
        raise GenValError(
            f"{segmenter.name} with {len(images)} images of {images.shape[2]}x{images.shape[1]} at a time does not "
            "fit into the device's memory. Give a smaller --batch_size, or --precision 16-true or bf16-true."
        ) from error
    return logits


def _check(sound: Sequence[bool], segmenter: nn.Module, names: Sequence[str]) -> None:
    if not all(sound):
        raise GenValError(
            f"{segmenter.name} gives NaN or infinite logits for {names[list(sound).index(False)]}. "
            "Use --precision 32-true, or check the checkpoint."
        )
