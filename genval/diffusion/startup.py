"""The start of a script that generates images: processes, device and imports.

Only scripts call this, not the library: a package that is hidden from diffusers stays hidden in the process.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING

from genval.runtime.devices import launch_fabric
from genval.runtime.imports import hidden, postponed
from genval.runtime.settings import DeviceSettings
from genval.runtime.startup import few_imports

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# Packages that import all of their models and modes, of which generation uses few.
_LARGE = (
    "diffusers.models.autoencoders",
    "diffusers.models.controlnets",
    "diffusers.models.transformers",
    "diffusers.models.unets",
)
# Packages that diffusers and transformers import where they are installed: half of their time of import.
_UNUSED = ("peft", "scipy", "sklearn", "torchvision")


def launch(settings: DeviceSettings) -> Fabric:
    """Start the processes as `launch_fabric` does, and import what generation needs while the device starts.

    Raises:
        GenValError: as `launch_fabric`.
    """
    import torch

    device_start = threading.Thread(target=_start_device, daemon=True)
    if settings.accelerator != "cpu" and torch.cuda.is_available():
        device_start.start()
    # The imports come second, so that the other processes start as early as possible.
    fabric = launch_fabric(settings)
    # Where a version of these libraries cannot be imported in this way, the code that uses a model imports it.
    with contextlib.suppress(ImportError, RuntimeError), hidden(*_UNUSED), few_imports(), postponed(*_LARGE):
        from diffusers import (  # noqa: F401
            AutoencoderKL,
            AutoencoderTiny,
            ControlNetModel,
            DDIMScheduler,
            SchedulerMixin,
            UNet2DConditionModel,
        )
        from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer  # noqa: F401
    if device_start.ident is not None:
        device_start.join()  # nothing else uses the device while kernels are compiled for the first time
    return fabric


def _start_device() -> None:
    """Start CUDA on this process's device, and compile or load the kernels of generation in the default precision.

    An error is left to the code that uses the device.
    """
    import torch

    from genval.kernels.availability import can_fuse

    number = int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)
    if number >= torch.cuda.device_count():
        return
    device = torch.device("cuda", number)
    with contextlib.suppress(RuntimeError), torch.cuda.device(device):  # of this thread, on which Triton runs kernels
        if can_fuse(device):
            from genval.kernels.blocks import compile_kernels

            compile_kernels(device, torch.bfloat16)
