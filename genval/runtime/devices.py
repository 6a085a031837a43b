"""The devices and processes that `--accelerator --devices --num_nodes` mean."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from genval.runtime.errors import GenValError
from genval.runtime.imports import hidden, placeholders

if TYPE_CHECKING:
    import numpy as np
    import torch
    from lightning_fabric import Fabric
    from torch import Tensor


# How the variables begin that MPI launchers set for each process: Open MPI, MPICH and Intel MPI, PMIx, MVAPICH2, Cray.
_OF_MPI = ("OMPI_", "PMI_", "MPI_", "PMIX_", "MV2_", "PALS_")


class DeviceFlags(Protocol):
    """What `launch_fabric` reads of a stage's settings; `genval.runtime.settings.DeviceSettings` has it."""

    @property
    def accelerator(self) -> str: ...

    @property
    def devices(self) -> str: ...

    @property
    def num_nodes(self) -> int: ...


def launch_fabric(settings: DeviceFlags) -> Fabric:
    """Start Lightning Fabric: this process, or one process per device.

    Every process runs the script from the start up to here, then continues with its own `fabric.device` and
    `fabric.global_rank`.

    Raises:
        GenValError: this machine does not have these devices.
    """
    # Fabric imports torchmetrics to compare its version, for a feature that is not used here. torchmetrics imports
    # transformers and torchvision: half of the start-up time of an evaluation. It imports torch's compiler, which takes
    # a second, to recognise compiled modules in Fabric.setup, which is not used either. One of several processes would
    # not end without it.
    unused = ["torch._dynamo"] if _is_one_process(settings) else []
    with hidden("torchmetrics"), placeholders(*unused):
        from lightning_fabric import Fabric
    from lightning_utilities.core import rank_zero

    rank_zero.log.addFilter(is_no_advice)
    # Fabric starts MPI to ask for the number of processes, which takes half a second. Without a launcher it is one.
    unused = [] if any(name.startswith(_OF_MPI) for name in os.environ) else ["mpi4py"]
    try:
        with hidden(*unused):
            fabric = Fabric(accelerator=settings.accelerator, devices=settings.devices, num_nodes=settings.num_nodes)
    except (RuntimeError, ValueError, TypeError) as error:  # Lightning's MisconfigurationException is a RuntimeError
        reason = " ".join(str(error).split())
        raise GenValError(
            f"--accelerator {settings.accelerator} --devices {settings.devices} are not available: {reason} "
            "Use --accelerator cpu --devices 1, or auto."
        ) from error
    fabric.launch()
    return fabric


def is_no_advice(record: logging.LogRecord) -> bool:
    """Not Lightning's advice at each start: to compute in a lower precision, for which there is a flag, or its tips."""
    message = record.getMessage()
    return "that has Tensor Cores" not in message and "Tip: " not in message


def _is_one_process(settings: DeviceFlags) -> bool:
    """Whether these flags certainly mean one process."""
    import torch

    if settings.num_nodes != 1 or str(settings.devices) not in ("1", "auto"):
        return False
    if str(settings.devices) == "1":
        return True
    launched = {"WORLD_SIZE", "SLURM_NTASKS"} & os.environ.keys()
    return not launched and (settings.accelerator == "cpu" or torch.cuda.device_count() <= 1)


def find_device(accelerator: str) -> torch.device:
    """Return the one device of a script that uses no more.

    Args:
        accelerator: auto (the GPU if there is one, else the CPU), gpu, or a device of torch such as cpu or cuda:1.

    Raises:
        GenValError: this machine does not have the device.
    """
    import torch

    gpu = "cuda" if accelerator == "gpu" or torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(gpu if accelerator in ("auto", "gpu") else accelerator)
        torch.zeros(1, device=device).item()  # torch.device accepts the names of devices that are not there
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise GenValError(f"--accelerator {accelerator} is not available: {reason}. Use cpu, or auto.") from error
    return device


def choose_precision(precision: str, device: torch.device) -> str:
    """What "auto" stands for: bfloat16 on a GPU that computes with it, float32 elsewhere."""
    import torch

    if precision != "auto":
        return precision
    is_capable = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8
    return "bf16-true" if is_capable else "32-true"


def to_device(values: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """Copy an array or a tensor of the host to the device; to a GPU asynchronously, from pinned memory."""
    import torch

    tensor = torch.as_tensor(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def record_event(device: torch.device) -> Callable[[], None]:
    """Return a function that waits until the device has done all work that was started before this call."""
    import torch

    if device.type != "cuda":
        return lambda: None
    event = torch.cuda.current_stream(device).record_event()
    return event.synchronize


def available_memory() -> int:
    """Return how many bytes of memory this process could use without swapping; 0 where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):
        return 0
    with contextlib.suppress(OSError, ValueError):  # a container's limit; without one, the file holds "max"
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        # Contents of files that the system keeps count as used, and are dropped when memory is needed.
        kept = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used -= sum(int(kept.get(name, 0)) for name in ("active_file", "inactive_file"))
        available = min(available, max(0, limit - used))
    return available


@contextlib.contextmanager
def same_outcome(fabric: Fabric | None) -> Iterator[None]:
    """A step that succeeds in every process or in none; all processes wait for each other at its end.

    Without it, a bad file in one process leaves the others with a broken connection and a traceback each. The step must
    not communicate otherwise. With `fabric` None there is one process, and the step is its own.

    Raises:
        GenValError: the first process's error of this kind, on the first process; the others leave silently.
    """
    if fabric is None or fabric.world_size == 1:
        yield
        return
    message = None
    try:
        yield
    except GenValError as error:
        message = str(error)
    messages = [fabric.broadcast(message, rank) for rank in range(fabric.world_size)]
    first = next((text for text in messages if text is not None), None)
    if first is not None:
        if fabric.is_global_zero:
            raise GenValError(first)
        sys.exit(2)
