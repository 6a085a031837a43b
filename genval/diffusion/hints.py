"""Label ids as the picture a ControlNet is steered by.

The published encoding is one channel, (labelId + 1) / 34, with Cityscapes' labelIds -1..33. Its name is kept in the
ControlNet's `config.json`, so that a model trained on another encoding is refused instead of misread.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from genval.datasets.labels import CITYSCAPES, IGNORE
from genval.runtime.errors import GenValError

ENCODING = "label_id"
CONFIG_KEY = "hint_encoding"
LAST_LABEL_ID = 33
# Hinges bend over about one id: their pre-activation grows by this much from one id to the next.
_HINGE_SLOPE = 2.0


def encode_hint(masks: torch.Tensor) -> torch.Tensor:
    """(B, H, W) uint8 labelIds to (B, 1, H, W) float32 hints, (labelId + 1) / 34, in 0..1.

    A mask file has no negative values: Cityscapes' id -1 (licence plate) reads as 255 there.
    """
    if masks.dtype != torch.uint8 or masks.ndim != 3:
        raise ValueError(f"expected (B, H, W) uint8, found {tuple(masks.shape)} {masks.dtype}")
    # uint8 arithmetic wraps, which is what turns 255 (id -1) into 0.
    return (masks + 1).unsqueeze(1).float() / (LAST_LABEL_ID + 1)


def record_encoding(controlnet: Any) -> None:
    """Note the encoding in the ControlNet's config; it is saved in `config.json` and survives loading."""
    controlnet.register_to_config(**{CONFIG_KEY: ENCODING})


def check_encoding(controlnet: Any, source: object) -> None:
    """Refuse a ControlNet that was trained on other hints.

    Raises:
        GenValError: another number of hint channels, or another encoding or none in its config.
    """
    channels = controlnet.config.conditioning_channels
    encoding = controlnet.config.get(CONFIG_KEY)
    if channels != 1 or encoding != ENCODING:
        raise GenValError(
            f"{source} does not read label masks: expected 1 hint channel and {CONFIG_KEY!r}: {ENCODING!r} in its "
            f"config.json, found {channels} and {encoding!r}. Make one with ControlNet/tool_add_control.py and train "
            "it, or add the entry if it was trained on (labelId + 1) / 34."
        )


@torch.no_grad()
def init_hinges(conv: torch.nn.Conv2d) -> None:
    """Start a hint embedding's first convolution as hinges: output c is SiLU(k (hint - t_c)), about max(0, hint - t_c).

    A default initialisation sees neighbouring ids as almost one value. The thresholds t_c are spread over the midpoints
    between consecutive evaluated ids, so that linear combinations of the outputs tell classes apart from the start.

    Args:
        conv: a convolution with one input channel, any odd kernel; only the centre tap is used at first.
    """
    evaluated = np.flatnonzero(CITYSCAPES.table != IGNORE)
    ids = np.concatenate([[-1], evaluated])
    midpoints = (ids[1:] + ids[:-1]) / 2
    places = np.linspace(0, len(midpoints) - 1, conv.out_channels)
    thresholds = (np.interp(places, np.arange(len(midpoints)), midpoints) + 1) / (LAST_LABEL_ID + 1)
    slope = _HINGE_SLOPE * (LAST_LABEL_ID + 1)
    height, width = conv.kernel_size
    conv.weight.zero_()
    conv.weight[:, 0, height // 2, width // 2] = slope
    assert conv.bias is not None
    conv.bias.copy_(torch.from_numpy(-slope * thresholds))
