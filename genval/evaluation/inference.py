"""One forward pass per image: the predicted classes, their statistics, and on request the logits."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from genval.kernels.availability import can_fuse
from genval.metrics.confusion import confusion_matrix
from genval.metrics.statistics import LogitsNotFiniteError, PixelStatistics, measure, measure_batch
from genval.runtime.devices import to_device, to_host
from genval.runtime.errors import GenValError
from genval.runtime.seeds import item_seed
from genval.segmenters.class_map import merge_logits
from genval.segmenters.prediction import infer, memory_errors, naming_errors

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from genval.datasets.labels import ClassGroups
    from genval.evaluation.more_scores import MoreScores
    from genval.metrics.ood_scores import OodCounts

Result = TypeVar("Result")


@dataclass(frozen=True)
class Measured:
    """The result of one image."""

    prediction: np.ndarray  # trainIds or numbers of merged classes, uint8 (H, W)
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
    groups: ClassGroups | None = None,
) -> Callable[[], list[Measured]]:
    """Start to predict and measure a batch on the device, in one forward pass.

    On a GPU the work is still running when this returns. Meanwhile the host can write the previous batch and load the
    next one.

    Args:
        segmenter: `segmenter(images, size)` gives logits (B, C, *size) from RGB uint8 (B, 3, H, W); has a `name`.
        images: RGB uint8 (B, H, W, 3).
        train_ids: the labels, uint8 (B, H, W): trainIds, or numbers of merged classes.
        names: the name of each image in errors.
        device: where the segmenter is.
        samples: for each image, the flat indices of the pixels whose confidences are measured; None means all pixels.
            The confusion matrix always counts all pixels.
        kept: for each image, the flat indices of the pixels whose logits are returned; None means no pixel.
        half: return logits as float16.
        groups: the merged classes into which the logits are merged (see `merge_logits`), before anything is measured.

    Returns:
        A function that waits for the device and returns the result of each image. It raises GenValError if the logits
        of an image hold NaN or infinity.

    Raises:
        GenValError: the device's memory is full. On a CPU, also what the function raises.
    """
    import torch

    with torch.inference_mode(), memory_errors(segmenter, images):
        logits = infer(segmenter, images, device)
        if groups is not None:
            logits = merge_logits(logits, groups.members)
        labels = to_device(train_ids, device)
        if samples is None and can_fuse(device):
            measured = measure_batch(logits, labels)
        else:
            results = []
            chosen: Sequence[np.ndarray | None] = [None] * len(names) if samples is None else samples
            for name, image, image_labels, sample in zip(names, logits, labels, chosen, strict=True):
                with naming_errors(segmenter, name):
                    results.append(_measure(image, image_labels, sample))
            measured = partial(iter, results)
        selected = None if kept is None else _select(logits, kept, torch.float16 if half else torch.float32)

    def wait() -> list[Measured]:
        pairs = _next_of_each(segmenter, names, measured())
        # Copied out of pinned memory, of which only the two batches in progress should hold any.
        values = [None] * len(names) if selected is None else [part.copy() for part in selected()[0]]
        return [Measured(*pair, value) for pair, value in zip(pairs, values, strict=True)]

    return wait


def _measure(logits: Tensor, labels: Tensor, sample: np.ndarray | None) -> tuple[np.ndarray, PixelStatistics]:
    """Return the classes and the statistics of one image; with `sample`, only these pixels' confidences count."""
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


def _select(logits: Tensor, kept: Sequence[np.ndarray], dtype: torch.dtype) -> Callable[[], list[np.ndarray]]:
    """Start to copy the logits of the chosen pixels to the host, one array (B, pixels, C)."""
    pixels = to_device(np.stack(kept), logits.device)[:, None].expand(-1, logits.shape[1], -1)
    flat = logits.flatten(2)
    # All pixels are in order. Another copy of all logits would need much memory.
    chosen = flat if pixels.shape[2] == flat.shape[2] else flat.gather(2, pixels)
    return to_host(chosen.to(dtype).transpose(1, 2).contiguous())


def _next_of_each(segmenter: nn.Module, names: Sequence[str], results: Iterator[Result]) -> list[Result]:
    """Take one result per image; errors name the segmenter and the image."""
    taken: list[Result] = []
    for name in names:
        with naming_errors(segmenter, name):
            taken.append(next(results))
    return taken


def launch_ood_batch(
    segmenter: nn.Module,
    images: np.ndarray,
    kinds: np.ndarray,
    names: Sequence[str],
    device: torch.device,
    standard: tuple[Tensor, Tensor] | None = None,
    keep: bool = False,
    more: MoreScores | None = None,
) -> Callable[[], list[tuple[OodCounts, Tensor | None]]]:
    """Start to score the pixels of a batch and to count them by score on the device, in one forward pass.

    Args:
        segmenter: as for `launch_batch`.
        images: RGB uint8 (B, H, W, 3).
        kinds: `BACKGROUND`, `OBJECT` or `VOID`, uint8 (B, H, W).
        names: the name of each image in errors.
        device: where the segmenter is.
        standard: as for `genval.metrics.ood_scores.measure_ood`.
        keep: return the scores too, float32 (S, H * W), on the device.
        more: computes further scores, which follow the others.

    Returns:
        A function that waits for the device and returns the counts of each image, with its scores or None. It raises
        GenValError if the logits of an image hold NaN or infinity, or if its mask holds an invalid value.

    Raises:
        GenValError: the device's memory is full. On a CPU, also what the function raises.
    """
    import torch

    from genval.metrics.ood_scores import count_scores, measure_ood, measure_ood_batch

    with torch.inference_mode(), memory_errors(segmenter, images):
        logits = infer(segmenter, images, device)
        masks = to_device(kinds, device)
        counted: Callable[[], Iterator[OodCounts]]
        scores: Sequence[Tensor | None]
        if can_fuse(device):
            counted, kept = measure_ood_batch(logits, masks, standard, keep)
            scores = [None] * len(names) if kept is None else list(kept)
        else:
            results, scores = [], []
            for name, image, mask in zip(names, logits, masks, strict=True):
                with naming_errors(segmenter, name):
                    counts, image_scores = measure_ood(image, mask, standard)
                results.append(counts)
                scores.append(image_scores if keep else None)
            counted = partial(iter, results)
        further = None if more is None else more(to_device(images, device).permute(0, 3, 1, 2), logits)

    def wait() -> list[tuple[OodCounts, Tensor | None]]:
        found = list(zip(_next_of_each(segmenter, names, counted()), scores, strict=True))
        if more is None or further is None:
            return found
        added = []
        for name, (counts, kept), image, mask in zip(names, found, further.flatten(2), masks.flatten(1), strict=True):
            with naming_errors(segmenter, name):
                if not bool(image.isfinite().all()):
                    raise GenValError(f"a score of {', '.join(more.names)} is not finite. Use --precision 32-true.")
                counts.levels = np.concatenate([counts.levels, count_scores(image, mask, more.names)])
            added.append((counts, None if kept is None else torch.cat([kept, image])))
        return added

    return wait


def sample_pixels(pixels: int, number: int, seed: int, item_id: str) -> np.ndarray:
    """Return the flat indices of `number` random pixels of an image, ascending.

    All pixels are returned if the image has no more, or if `number` is -1. The choice depends only on the seed, the
    image's id and its size.

    >>> sample_pixels(10, 3, seed=0, item_id="a").tolist() == sample_pixels(10, 3, seed=0, item_id="a").tolist()
    True
    """
    if number == -1 or number >= pixels:
        return np.arange(pixels)
    generator = np.random.default_rng(item_seed(seed, item_id))
    return np.sort(generator.choice(pixels, number, replace=False, shuffle=False))


def start_device(device: torch.device) -> None:
    """Start a GPU in a thread: its context, its libraries and the compilation of the kernel of the metrics.

    This takes seconds, in which the main thread imports and loads a segmenter.
    """

    def start() -> None:
        import torch

        # The segmenter meets the same error. Triton runs kernels on the thread's device.
        with contextlib.suppress(RuntimeError), torch.cuda.device(device):
            ones = torch.ones(1, 1, 8, 8, device=device)
            torch.nn.functional.conv2d(ones @ ones, ones)
            if can_fuse(device):
                # The number of classes makes this the kernel that measures images.
                logits, labels = torch.zeros(1, 19, 16), torch.zeros(1, 16, dtype=torch.uint8)
                measure_batch(logits.to(device), labels.to(device))

    if device.type == "cuda":
        threading.Thread(target=start, name="start-device").start()  # Python waits for it when it exits
