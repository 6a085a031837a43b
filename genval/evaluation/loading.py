"""Loading of the segmenters of an evaluation, and a check of all of them before the first is evaluated."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

from genval.artifacts.fingerprint import Hashed
from genval.evaluation.settings import SegmenterSettings
from genval.runtime.devices import background_stream, same_outcome
from genval.runtime.errors import GenValError
from genval.segmenters.identity import model_identity
from genval.segmenters.prediction import predict

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch import nn

# Bytes of the weights of checked segmenters that are kept on a CPU until they are evaluated.
_KEPT = 1 << 30

_Loaded = tuple["nn.Module", Hashed]
T = TypeVar("T")


def check_names(names: Sequence[str]) -> None:
    """Check that segmenters are known and their checkpoints exist, without loading them.

    Raises:
        GenValError: a name is unknown, or a checkpoint is missing.
    """
    from genval.segmenters import specify  # takes seconds to import

    for name in names:
        specify(name)


def load_segmenters(
    settings: SegmenterSettings,
    names: Sequence[str],
    fabric: Fabric,
    precision: str,
    images: Iterable[tuple[Path, Callable[[], np.ndarray]]],
) -> Iterator[tuple[nn.Module, str]]:
    """Yield each segmenter, on its device, and its `model_identity`; while it is used, a thread loads the next one.

    Before the first is yielded, each of the others is loaded and run on one image, so that a bad one stops the run
    before others have run for hours. The processes share this check.

    Args:
        settings: which segmenters are run, and how.
        names: names of the segmenters, in their order.
        fabric: the processes, each of which gets all segmenters.
        precision: one of Lightning's.
        images: files, each with a function that reads it, RGB uint8 (H, W, 3); the first that can be read is used.

    Raises:
        GenValError: a segmenter cannot be loaded, or fails.
    """
    load = functools.partial(_load, device=fabric.device, precision=precision)
    with same_outcome(fabric):
        checked = names[1:][fabric.global_rank :: fabric.world_size]
        kept = _check(checked, functools.partial(load, replace(settings, compile="off")), settings, fabric, images)

    def load_hashed(name: str) -> _Loaded:
        segmenter = load(settings, name)
        return segmenter, Hashed(segmenter)

    for segmenter, hashed in _load_ahead(names, load_hashed, kept, fabric):
        with same_outcome(fabric):
            identity = model_identity(segmenter, hashed)
        yield segmenter, identity


def _check(
    names: Sequence[str],
    load: Callable[[str], nn.Module],
    settings: SegmenterSettings,
    fabric: Fabric,
    images: Iterable[tuple[Path, Callable[[], np.ndarray]]],
) -> dict[str, _Loaded]:
    """Load each segmenter and run it on one image.

    Returns:
        Segmenters with the hashes of their weights, by name. They need not be loaded again. At most `_KEPT` bytes of
        weights are kept on a CPU, and a quarter of the free memory on a GPU.
    """
    kept: dict[str, _Loaded] = {}
    room = 0 if settings.compile == "on" else _room(fabric.device)
    first: tuple[Path, np.ndarray] | None = None
    for name, segmenter in zip(names, _load_ahead(names, load, {}), strict=True):
        first = first or _first_readable(images)
        if first is not None:
            batch = np.repeat(first[1][None], settings.batch_size, axis=0)
            predict(segmenter, batch, [str(first[0])] * len(batch), fabric.device)
        size = sum(value.nbytes for value in segmenter.state_dict().values() if isinstance(value, torch.Tensor))
        if size <= room:
            kept[name], room = (segmenter, Hashed(segmenter)), room - size
    return kept


def _load_ahead(
    names: Sequence[str], load: Callable[[str], T], kept: dict[str, T], fabric: Fabric | None = None
) -> Iterator[T]:
    """Yield each segmenter; while it is used, a thread loads the next one. Those in `kept` are taken from there."""
    following: Future[T] | None = None
    with ThreadPoolExecutor(1, thread_name_prefix="segmenter") as thread:
        for name, later in itertools.zip_longest(names, names[1:]):
            with same_outcome(fabric):
                loaded = kept.pop(name, None) or (load(name) if following is None else following.result())
            following = None
            if later is not None and later not in kept:
                following = thread.submit(load, later)
            yield loaded


def _room(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] // 4 if device.type == "cuda" else _KEPT


def _first_readable(images: Iterable[tuple[Path, Callable[[], np.ndarray]]]) -> tuple[Path, np.ndarray] | None:
    for path, read in images:
        # A bad image is the run's own error, or is skipped.
        with contextlib.suppress(GenValError):
            return path, read()
    return None


def _load(settings: SegmenterSettings, name: str, device: torch.device, precision: str) -> nn.Module:
    from genval.segmenters import load_segmenter  # a model's library takes seconds to import

    with background_stream(device):
        segmenter = load_segmenter(
            name,
            device,
            precision,
            class_map=settings.class_map,
            compiled=settings.compile == "on",
            channels_last=settings.channels_last == "on",
            fused=settings.channels_last == "on",
            trust_code=settings.trust_code,
            input_size=settings.input_size,
        )
    for tensor in itertools.chain(segmenter.parameters(), segmenter.buffers()):
        if tensor.is_cuda:  # a network may replace a tensor which the main thread's work still reads
            tensor.record_stream(torch.cuda.current_stream(tensor.device))
    return segmenter
