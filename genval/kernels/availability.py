"""Whether the Triton kernels of this package run on a device."""

from __future__ import annotations

import threading
import warnings
from functools import cache
from importlib.util import find_spec

import torch

# A thread may compile the kernels while another one asks for them.
_TEST_OF_TRITON = threading.Lock()


def can_fuse(device: torch.device) -> bool:
    """Whether the Triton kernels run on a device: a GPU on which a small test of Triton succeeds.

    At first use Triton compiles with the system's C compiler, which a minimal container may not have.
    """
    with _TEST_OF_TRITON:
        return device.type == "cuda" and _runs_triton(device)


@cache
def _runs_triton(device: torch.device) -> bool:
    if not find_spec("triton"):
        return False
    from genval.kernels.blocks import add_residual

    try:
        with torch.cuda.device(device):  # Triton runs kernels on the thread's device
            ones = torch.ones(1, 16, 1, 1, device=device)
            if not (add_residual(ones, ones, ones.flatten()) == 3).all():
                raise RuntimeError("a kernel gives a wrong result")
    except Exception as error:  # many kinds, from a missing compiler to a driver that is too old
        warnings.warn(
            f"Triton does not work here ({type(error).__name__}: {error}). Metrics take ten times as long, and "
            "generation takes 1.4 times as long. Triton needs a C compiler and Python's headers: "
            "apt install gcc python3-dev",
            stacklevel=2,
        )
        return False
    return True
