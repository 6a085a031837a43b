"""A random inpainting model made of the tiny base: its UNet with nine input channels, all other parts shared."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch


def widened(unet: Any, channels: int = 9) -> Any:
    """The UNet with more input channels, whose weights are random, so that the additional inputs matter."""
    from diffusers import UNet2DConditionModel

    wide = UNet2DConditionModel.from_config({**unet.config, "in_channels": channels, "sample_size": 64})
    state = unet.state_dict()
    first = state["conv_in.weight"]
    added = (first.shape[0], channels - first.shape[1], *first.shape[2:])
    more = 0.1 * torch.randn(added, generator=torch.Generator().manual_seed(2))
    wide.load_state_dict({**state, "conv_in.weight": torch.cat([first, more], dim=1)})
    return wide


@pytest.fixture(scope="session")
def inpainting_folder(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the UNet alone and names the base's for the rest."""
    from genval.diffusion.inpainting.model import save_inpainting
    from genval.diffusion.models.pipelines import load_base

    folder = tmp_path_factory.mktemp("inpainting") / "inpainting"
    unet = widened(load_base(base_folder).unet)
    save_inpainting(unet, folder, os.path.relpath(base_folder, folder), dtype="fp32")
    return folder
