"""One forward pass an image: the predicted classes, their statistics, and logits where they are asked for."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

from genval.metrics.confusion import confusion_matrix
from genval.metrics.statistics import LogitsNotFiniteError, PixelStatistics, measure, measure_batch
from genval.runtime.seeds import item_seed
from genval.segmenters.prediction import infer, memory_errors, naming_errors, to_device

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from genval.metrics.ood_scores import OodCounts


@dataclass(frozen=True)
class Measured:
    """What is kept of one image's logits."""

    prediction: np.ndarray  # trainIds, uint8 (H, W)
    statistics: PixelStatistics
    logits: np.ndarray | None  # float32 or float16 (pixels, C)


def launch_batch(
    segmenter: nn.Module,
    images: np.ndarray,
    train_ids: np.ndarray,
    names: Sequence[str],
    device: torch.device,
    samples: Sequence[np.ndarray] | None = None,
    kept: Sequence[np.ndarray] | None = None,
    half: bool = False,
) -> Callable[[], list[Measured]]:
    """Start to predict and measure a batch in one pass, on the device.

    A GPU is still at work when this returns, so that the host can meanwhile write the batch before and load the next.

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

    Returns:
        A function that waits for the device and gives what is kept of each image. It raises GenValError if the logits
        of an image hold NaN or infinity.

    Raises:
        GenValError: the device's memory is full, or, on a CPU, what the function raises.
    """
    import torch

    with torch.inference_mode(), memory_errors(segmenter, images):
        logits = infer(segmenter, images, device)
        labels = to_device(train_ids, device)
        if samples is None and can_fuse(device):
            measured = measure_batch(logits, labels)
        else:
            each = [None] * len(names) if samples is None else samples
            of_images = []
            for name, image, known, sample in zip(names, logits, labels, each, strict=True):
                with naming_errors(segmenter, name):
                    of_images.append(_measure(image, known, sample))
            measured = partial(iter, of_images)
        values = [
            # Pinned memory, to which a GPU copies while the host goes on.
            image.flatten(1)[:, to_device(pixels, device)]
            .T.to(torch.float16 if half else torch.float32)
            .to("cpu", non_blocking=True)
            for image, pixels in zip(logits, kept or [], strict=kept is not None)
        ]
        copied = torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None

    def wait() -> list[Measured]:
        if copied is not None:
            copied.synchronize()
        of_images, results = measured(), []
        for index, name in enumerate(names):
            with naming_errors(segmenter, name):
                prediction, statistics = next(of_images)
            # Out of pinned memory, of which there should not be more than the two batches at work need.
            logits_kept = values[index].numpy().copy() if kept is not None else None
            results.append(Measured(prediction, statistics, logits_kept))
        return results

    return wait


def _measure(logits: Tensor, labels: Tensor, sample: np.ndarray | None) -> tuple[np.ndarray, PixelStatistics]:
    """The classes and the statistics of one image; with `sample`, the confidences of these pixels alone."""
    if sample is None:
        predicted, statistics = measure(logits, labels)
        return predicted.cpu().numpy(), statistics
    chosen = to_device(sample, logits.device)
    largest, classes = logits.max(0)
    if not bool(largest.isfinite().all()):  # all pixels are predicted
        raise LogitsNotFiniteError
    predicted = classes.byte()
    statistics = measure(logits.flatten(1)[:, chosen], labels.flatten()[chosen])[1]
    statistics.confusion[:] = confusion_matrix(labels, predicted, len(logits))
    return predicted.cpu().numpy(), statistics


def launch_ood_batch(
    segmenter: nn.Module,
    images: np.ndarray,
    kinds: np.ndarray,
    names: Sequence[str],
    device: torch.device,
    standard: tuple[Tensor, Tensor] | None = None,
    keep: bool = False,
) -> Callable[[], list[tuple[OodCounts, Tensor | None]]]:
    """Start to score a batch's pixels and to count them by score, in one pass, on the device.

    Args:
        segmenter: as for `launch_batch`.
        images: RGB uint8 (B, H, W, 3).
        kinds: `BACKGROUND`, `OBJECT` or `VOID`, uint8 (B, H, W).
        names: what errors call each image.
        device: where the segmenter is.
        standard: as for `ood.measure_ood`.
        keep: give the scores as well, float32 (S, H * W), on the device.

    Returns:
        A function that waits for the device and gives the counts of each image, and its scores or None. It raises
        GenValError if the logits of an image hold NaN or infinity, or its mask holds something else.

    Raises:
        GenValError: the device's memory is full, or, on a CPU, what the function raises.
    """
    import torch

    from genval.metrics.ood_scores import measure_ood, measure_ood_batch

    with torch.inference_mode(), memory_errors(segmenter, images):
        logits = infer(segmenter, images, device)
        masks = to_device(kinds, device)
        counted: Callable[[], Iterator[OodCounts]]
        scores: Sequence[Tensor | None]
        if can_fuse(device):
            counted, kept = measure_ood_batch(logits, masks, standard, keep)
            scores = [None] * len(names) if kept is None else list(kept)
        else:
            of_images, scores = [], []
            for name, image, mask in zip(names, logits, masks, strict=True):
                with naming_errors(segmenter, name):
                    counts, of_pixels = measure_ood(image, mask, standard)
                of_images.append(counts)
                scores.append(of_pixels if keep else None)
            counted = partial(iter, of_images)
        copied = torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None

    def wait() -> list[tuple[OodCounts, Tensor | None]]:
        if copied is not None:
            copied.synchronize()
        of_images, results = counted(), []
        for name, of_pixels in zip(names, scores, strict=True):
            with naming_errors(segmenter, name):
                results.append((next(of_images), of_pixels))
        return results

    return wait


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


@cache
def can_fuse(device: torch.device) -> bool:
    """Whether the Triton kernels run on a device: on a GPU, once Triton has shown that it works there.

    Triton compiles with the system's C compiler at first use, which a slim image may not have.
    """
    import torch

    if device.type != "cuda" or not find_spec("triton"):
        return False
    from genval.kernels.statistics import launch

    try:
        launch(torch.zeros(1, 1, 1, device=device), torch.zeros(1, 1, dtype=torch.uint8, device=device))
        torch.cuda.synchronize(device)
    except Exception as error:  # of many kinds, from the search for a compiler to the driver
        warnings.warn(
            f"Triton does not work here ({type(error).__name__}: {error}), so that metrics take ten times as long. "
            "It needs a C compiler and Python's headers: apt install gcc python3-dev",
            stacklevel=2,
        )
        return False
    return True
