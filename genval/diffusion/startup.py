"""The start of a script that generates images: processes, device and imports.

Only scripts call this, not the library: a package that is hidden from diffusers stays hidden in the process.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import threading
from typing import TYPE_CHECKING

from genval.runtime.devices import launch_fabric
from genval.runtime.imports import hidden, placeholders, postponed, replaced
from genval.runtime.settings import DeviceSettings

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# Packages that import all of their models and modes, of which generation uses few.
_LARGE = (
    "diffusers.models.autoencoders",
    "diffusers.models.controlnets",
    "diffusers.models.transformers",
    "diffusers.models.unets",
    "transformers.models",
)
# What libraries use of torch's compiler without compiling. `disable` returns another function, so its mark gets lost.
# diffusers disables only caches between steps and models that move to the CPU and back, which are not used here, and
# torch disables functions that compute shapes, in which nothing is compiled anyway.
_COMPILER_MARKS = ("allow_in_graph", "assume_constant_result", "disable")

# Packages that diffusers and transformers import where they are installed: half of their time of import.
_UNUSED = ("peft", "scipy", "sklearn", "torchvision")
# A kind of attention that no model uses unless it is asked for. Its import takes a second, for symbolic arithmetic.
_FLEX_ATTENTION = "torch.nn.attention.flex_attention"


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
    with (
        # Where a version of these libraries cannot be imported in this way, the code that uses a model imports it.
        contextlib.suppress(ImportError, RuntimeError),
        hidden(*_UNUSED),
        # Without distributed tensors, whose import takes seconds, and which transformers uses only for models that are
        # split over several devices.
        replaced(torch.distributed, "is_available", lambda: False),
        placeholders(_FLEX_ATTENTION),
        # Both libraries read the metadata of all installed packages.
        replaced(
            importlib.metadata, "packages_distributions", functools.cache(importlib.metadata.packages_distributions)
        ),
        postponed("torch._dynamo", decorators=_COMPILER_MARKS),
        postponed(*_LARGE),
    ):
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
    device = torch.device("cuda", number)
    with contextlib.suppress(RuntimeError):
        if number < torch.cuda.device_count() and can_fuse(device):
            from genval.kernels.blocks import compile_kernels

            compile_kernels(device, torch.bfloat16)
