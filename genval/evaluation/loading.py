"""Loading of the segmenters of an evaluation, and a check of all of them before the first is evaluated."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from genval.evaluation.settings import SegmenterSettings
from genval.runtime.devices import same_outcome
from genval.runtime.errors import GenValError
from genval.segmenters.prediction import predict

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch import nn

# Bytes of the weights of checked segmenters that are kept on a CPU until they are evaluated.
_KEPT = 1 << 30


def load(settings: SegmenterSettings, name: str, device: torch.device, precision: str) -> nn.Module:
    """Load a segmenter onto a device, as the settings say."""
    from genval.segmenters import load_segmenter  # a model's library takes seconds to import

    return load_segmenter(
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


def check_names(names: Sequence[str]) -> None:
    """Check that segmenters are known and their checkpoints exist, without loading them.

    Raises:
        GenValError: a name is unknown, or a checkpoint is missing.
    """
    from genval.segmenters import specify  # takes seconds to import

    for name in names:
        specify(name)


def check_models(
    settings: SegmenterSettings,
    names: Sequence[str],
    fabric: Fabric,
    precision: str,
    images: Iterable[tuple[Path, Callable[[], np.ndarray]]],
) -> dict[str, nn.Module]:
    """Load each segmenter and run it on one image, so that a bad one stops the run before others have run for hours.

    Args:
        settings: which segmenters are run, and how.
        names: names of the segmenters to check.
        fabric: the processes, each of which checks all segmenters.
        precision: one of Lightning's.
        images: files, each with a function that reads it, RGB uint8 (H, W, 3); the first that can be read is used.

    Returns:
        Segmenters by name, which need not be loaded again, up to `_KEPT` bytes of weights on a CPU and a quarter of the
        free memory of a GPU.

    Raises:
        GenValError: a segmenter cannot be loaded, or fails.
    """
    kept: dict[str, nn.Module] = {}
    room = 0 if settings.compile == "on" else _room(fabric.device)
    first: tuple[Path, np.ndarray] | None = None
    for name in names:
        with same_outcome(fabric):
            loaded = load(replace(settings, compile="off"), name, fabric.device, precision)
            first = first or _first_readable(images)
            if first is not None:
                batch = np.repeat(first[1][None], settings.batch_size, axis=0)
                predict(loaded, batch, [str(first[0])] * len(batch), fabric.device)
            size = sum(value.nbytes for value in loaded.state_dict().values() if isinstance(value, torch.Tensor))
            if size <= room:
                kept[name], room = loaded, room - size
    return kept


def load_ahead(
    settings: SegmenterSettings,
    names: Sequence[str],
    checked: dict[str, nn.Module],
    fabric: Fabric,
    precision: str,
) -> Iterator[nn.Module]:
    """Yield each segmenter; while it is used, a thread loads the next one.

    Args:
        settings: which segmenters are run, and how.
        names: names of the segmenters, in their order.
        checked: from `check_models`; a segmenter is removed when it is yielded.
        fabric: the processes, each of which loads all segmenters.
        precision: one of Lightning's.

    Raises:
        GenValError: a segmenter cannot be loaded.
    """
    following: Future[nn.Module] | None = None
    with ThreadPoolExecutor(1, thread_name_prefix="segmenter") as thread:
        for name, later in itertools.zip_longest(names, names[1:]):
            with same_outcome(fabric):
                if name in checked:
                    loaded = checked.pop(name)
                elif following is not None:
                    loaded = following.result()
                else:
                    loaded = load(settings, name, fabric.device, precision)
            following = None
            if later is not None and later not in checked:
                following = thread.submit(load, settings, later, fabric.device, precision)
            yield loaded


def _room(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] // 4 if device.type == "cuda" else _KEPT


def _first_readable(images: Iterable[tuple[Path, Callable[[], np.ndarray]]]) -> tuple[Path, np.ndarray] | None:
    for path, read in images:
        # A bad image is the run's own error, or is skipped.
        with contextlib.suppress(GenValError):
            return path, read()
    return None
