"""The start of a script that generates images: imports without what generation does not use, while the device starts.

Only scripts call this, not the library: a package that is hidden from diffusers stays hidden in the process.
"""

from __future__ import annotations

import os
import threading

from genval.runtime.imports import hidden
from genval.runtime.settings import DeviceSettings

# Packages that diffusers and transformers import where they are installed: half of their time of import.
_UNUSED = ("torchmetrics", "peft", "scipy", "sklearn", "torchvision")


def import_libraries(settings: DeviceSettings) -> None:
    """Import the libraries that generation uses; a thread starts the device meanwhile."""
    import torch

    if settings.accelerator != "cpu" and torch.cuda.is_available():
        threading.Thread(target=_start_device, daemon=True).start()
    with hidden(*_UNUSED):
        import lightning_fabric  # noqa: F401
        from diffusers import (  # noqa: F401
            AutoencoderKL,
            AutoencoderTiny,
            ControlNetModel,
            DDIMScheduler,
            SchedulerMixin,
            UNet2DConditionModel,
        )
        from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer  # noqa: F401


def _start_device() -> None:
    """Start CUDA on this process's device. An error is left to the code that uses the device."""
    import torch

    number = int(os.environ.get("LOCAL_RANK", "0"))
    if number < torch.cuda.device_count():
        torch.zeros(1, device=f"cuda:{number}")
