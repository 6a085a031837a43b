"""The devices and processes that `--accelerator --devices --num_nodes` mean."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from genval.runtime.errors import GenValError
from genval.runtime.imports import hidden, placeholders

if TYPE_CHECKING:
    import numpy as np
    import torch
    from lightning_fabric import Fabric
    from torch import Tensor


# Variables that MPI launchers set for each process: Open MPI, MPICH and Intel MPI, PMIx, MVAPICH2, Cray. Images of
# containers set other variables of MPI, such as OMPI_MCA_*.
_OF_MPI = (
    "OMPI_COMM_WORLD_SIZE",
    "PMI_SIZE",
    "PMI_RANK",
    "MPI_LOCALNRANKS",
    "PMIX_RANK",
    "MV2_COMM_WORLD_SIZE",
    "PALS_RANKID",
)
# How the variables of all launchers begin: torchrun and Lightning, SLURM, LSF and MPI.
_OF_LAUNCHERS = ("LOCAL_RANK", "WORLD_SIZE", "TORCHELASTIC_", "SLURM_", "LSB_", *_OF_MPI)
# The variables in which launchers number processes or machines, from 0 for the first.
_NUMBERS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
# Seconds that this process gets to report an error of its own after another process has failed.
_PATIENCE = 5

# The variable of a process that waits for the first one, and the processes that wait.
_WAITS = "GENVAL_WAITS_FOR_FIRST"
_others: list[subprocess.Popen[bytes]] = []

_Result = TypeVar("_Result")


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
        GenValError: this machine does not have these devices, or SLURM has started another number of processes.
    """
    # The script's frame has not waited or started them where the settings have no group of devices.
    wait_for_first()
    if not _others:
        start_others(settings)
    others = let_others_go()
    # Fabric imports torchmetrics to compare its version, for a feature that is not used here. torchmetrics imports
    # transformers and torchvision: half of the start-up time of an evaluation. It imports torch's compiler, which takes
    # a second, to recognise compiled modules in Fabric.setup, which is not used either.
    with hidden("torchmetrics"), placeholders("torch._dynamo"):
        from lightning_fabric import Fabric
        from lightning_fabric.strategies import DDPStrategy
    from lightning_utilities.core import rank_zero

    rank_zero.log.addFilter(is_wanted)
    # Fabric starts MPI to ask for the number of processes, which takes half a second. Without a launcher it is one.
    unused = ["mpi4py"] if os.environ.keys().isdisjoint(_OF_MPI) else []
    chosen: dict[str, Any] = {
        "accelerator": settings.accelerator, "devices": settings.devices, "num_nodes": settings.num_nodes
    }  # fmt: skip
    try:
        with hidden(*unused):
            fabric = Fabric(**chosen)
            if isinstance(fabric.strategy, DDPStrategy) and settings.num_nodes == 1:
                # The processes only tell each other small objects of the host. NCCL takes seconds to start.
                fabric = Fabric(**chosen, strategy=DDPStrategy(process_group_backend="gloo"))
    except (RuntimeError, ValueError, TypeError) as error:  # Lightning's MisconfigurationException is a RuntimeError
        for process in others:
            process.kill()
        reason = " ".join(str(error).split())
        raise GenValError(
            f"--accelerator {settings.accelerator} --devices {settings.devices} are not available: {reason} "
            "Use --accelerator cpu --devices 1, or auto."
        ) from error
    try:
        fabric.launch()
    except ValueError as error:  # SLURM has started another number of processes
        raise GenValError(f"--devices {settings.devices} --num_nodes {settings.num_nodes}: {error}") from error
    return fabric


@contextlib.contextmanager
def computed_ahead(compute: Callable[[], _Result]) -> Iterator[Callable[[Fabric], _Result]]:
    """Compute what all processes need in a thread of the first process, from before `launch_fabric` on.

    Yields:
        A function that every process calls with its fabric. It waits for the result and sends it to all processes.
    """
    with ThreadPoolExecutor(1) as pool:
        # A launcher that sets none of these variables lets every process compute.
        future = pool.submit(compute) if is_first_process() else None

        def result(fabric: Fabric) -> _Result:
            own = None
            if fabric.is_global_zero:
                own = compute() if future is None else future.result()
            shared: Any = fabric.broadcast(own)
            return shared

        yield result


def start_others(settings: DeviceFlags) -> None:
    """Start the other processes of `--devices N` on this machine, which prepare and wait for `let_others_go`.

    Lightning would start them after its import, and after a training's models are loaded. With the variables that are
    set here, it takes them as started. It still starts those of `--devices auto`, and refuses numbers that are none. If
    this process ends before it lets them go, because its inputs are bad for example, the others end silently.
    """
    devices = str(settings.devices)
    launched = any(name.startswith(_OF_LAUNCHERS) for name in os.environ)
    if launched or settings.num_nodes != 1 or not devices.isdecimal() or int(devices) < 2:
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0", "WORLD_SIZE": devices}
    command = [sys.executable, os.path.abspath(sys.argv[0]), *sys.argv[1:]]
    for rank in range(1, int(devices)):
        environment = {**os.environ, "LOCAL_RANK": str(rank), _WAITS: "1"}
        _others.append(subprocess.Popen(command, env=environment, stdin=subprocess.PIPE))
    os.environ["LOCAL_RANK"] = "0"


def is_first_process() -> bool:
    """Whether this process is the first of a run by the variables of its launcher, before Lightning is imported."""
    return all(os.environ.get(name, "0") == "0" for name in _NUMBERS)


def is_before_first() -> bool:
    """Whether the first process has started this one and has not let it go yet."""
    return _WAITS in os.environ


def wait_for_first() -> None:
    """In a process that `start_others` started: import torch, wait for the first process, and end if that has ended.

    From now on, a process that the first one has started ends when that ends.
    """
    if not is_first_process():  # each process would say that it takes part
        logging.getLogger("lightning_fabric.utilities.distributed").setLevel(logging.WARNING)
    # Launchers set RANK. The first process, and Lightning in it, do not.
    if os.environ.get("LOCAL_RANK", "0") != "0" and "RANK" not in os.environ:
        _end_with_first()
    if is_before_first():
        import torch  # noqa: F401

        if not sys.stdin.read(1):
            os._exit(0)
        del os.environ[_WAITS]


@functools.cache
def _end_with_first() -> None:
    """End this process soon after the first one, for whose data it would wait in vain."""
    first = os.getppid()

    def watch() -> None:
        while os.getppid() == first:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def let_others_go() -> list[subprocess.Popen[bytes]]:
    """Let the waiting processes continue, watch them from now on, and return them."""
    others, _others[:] = _others[:], []
    for process in others:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has failed, which `_watch` reports
            process.stdin.write(b"\n")
            process.stdin.close()
    if others:
        threading.Thread(target=_watch, args=(others,), daemon=True).start()
    return others


def _watch(others: list[subprocess.Popen[bytes]]) -> None:
    """End all processes after one has failed: those that exchange data with it would wait for half an hour."""
    while not all(process.poll() == 0 for process in others):
        time.sleep(1)
        codes = [process.poll() for process in others]
        if any(codes):
            time.sleep(_PATIENCE)
            code = next(filter(None, codes))
            if code < 0:  # killed; otherwise it has reported its error
                print(f"\nerror: Another process ended with code {code}.", file=sys.stderr, flush=True)
            for process in others:
                process.kill()
            os._exit(max(code, 1))


def let_another_report(is_for_user: bool) -> bool:
    """Wait before one of several processes reports an error, which may follow from that of another process.

    When one process fails, the connections of the others break. It reports its error, and its end ends the others while
    they wait here: by `_watch` and `_end_with_first`, or by the launcher.

    Args:
        is_for_user: whether the error has a message for the user, such as a bad file's. The first process reports it at
            once; others, which may have the same error, a little later.

    Returns:
        Whether this process reports its error. It does not if the first process ends before it lets this one go: that
        has reported what ends all processes.
    """
    if is_before_first() and not sys.stdin.read(1):
        return False
    if not is_first_process():
        time.sleep(_PATIENCE if is_for_user else 4 * _PATIENCE)
    elif "MASTER_ADDR" in os.environ and not is_for_user:  # there are others
        time.sleep(2 * _PATIENCE)
    return True


def is_wanted(record: logging.LogRecord) -> bool:
    """Not Lightning's advice at each start: to compute in a lower precision, for which there is a flag, or its tips.

    Nor its line about an interruption, after which scripts say how to go on.
    """
    message = record.getMessage()
    return not any(text in message for text in ("that has Tensor Cores", "Tip: ", "Detected KeyboardInterrupt"))


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
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)  # on which Triton runs kernels
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
    """Copy an array or a tensor of the host to the device.

    A GPU copies from pinned memory, while it still does the work that was started before.
    """
    import torch

    tensor = torch.as_tensor(values)
    if device.type != "cuda":
        return tensor.to(device)
    current, copying = torch.cuda.current_stream(device), _copying_stream(device, "to device")
    with torch.cuda.stream(copying):
        copied = tensor.pin_memory().to(device, non_blocking=True)
    current.wait_stream(copying)
    copied.record_stream(current)  # its memory must not be used again before this stream has read it
    return copied


def to_host(*tensors: Tensor) -> Callable[[], list[np.ndarray]]:
    """Start to copy tensors of one device to the host.

    A GPU copies them while it does the work that is started later.

    Returns:
        A function that waits for the copies and returns them, in pinned memory where the device is a GPU.
    """
    import torch

    device = tensors[0].device
    if device.type != "cuda":
        return lambda: [tensor.numpy() for tensor in tensors]
    copying = _copying_stream(device, "to host")
    copying.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(copying):
        copies = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
    for tensor in tensors:
        tensor.record_stream(copying)
    copied = copying.record_event()

    def wait() -> list[np.ndarray]:
        copied.synchronize()
        return [tensor.numpy() for tensor in copies]

    return wait


@contextlib.contextmanager
def background_stream(device: torch.device) -> Iterator[None]:
    """Run a background thread's work on a GPU beside that of the main thread; at the end, wait for this work.

    It waits only for work that was started before. Otherwise, each copy from or to the GPU would also wait for the
    batches that the main thread starts later.
    """
    import torch

    if device.type != "cuda":
        yield
        return
    stream = _shared_stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    stream.synchronize()


def _copying_stream(device: torch.device, direction: Literal["to device", "to host"]) -> torch.cuda.Stream:
    import torch

    return _numbered_stream(torch.cuda.current_device() if device.index is None else device.index, direction)


@functools.cache
def _numbered_stream(index: int, direction: str) -> torch.cuda.Stream:
    import torch

    return torch.cuda.Stream(index)


@functools.cache
def _shared_stream(device: torch.device) -> torch.cuda.Stream:
    import torch

    return torch.cuda.Stream(device)  # a single one, because each stream keeps the memory that it has freed


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
