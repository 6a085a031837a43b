"""Parts of the benchmarks of arithmetic: the least time of a function, and rows that compare it with another one."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

HEADER = ("step, ms", "published", "here", "ratio", "largest difference")


def least_time(function: Callable[[], Any], repeats: int, device: torch.device) -> tuple[float, Any]:
    """Time a function; several repeats follow one call to warm up.

    On the CPU with one thread the time is that thread's own CPU time, so that other programs do not count.

    Returns:
        Milliseconds of the fastest call, and the result of the last one.
    """
    import torch

    is_single = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if is_single else time.perf_counter
    result, seconds = None, []
    for _ in range(repeats + (repeats > 1)):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = clock()
        result = function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(clock() - start)
    return 1000 * min(seconds), result


def comparison_row(name: str, published: tuple[float, Any], here: tuple[float, Any]) -> list[Any]:
    """Return the cells of `HEADER` from two outcomes of `least_time`."""
    difference = float(np.max(np.abs(np.subtract(published[1], here[1]))))
    return [name, published[0], here[0], published[0] / here[0], f"{difference:.1e}"]
