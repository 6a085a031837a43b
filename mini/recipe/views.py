"""Training data of the captioner and the CLIP model: augmented images, and the parts of captions."""

from __future__ import annotations

import random
import re

import torch
from torch import Tensor
from torch.nn import functional as F

from mini.world.captions import DOMAIN_PHRASES

# The mean and deviation that CLIP's and BLIP's own preprocessing use, on the scale 0..1.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
_SHIFT = 0.06  # of the image's side, up to +-
_GAIN = 0.08  # of the brightness, 1 +- this
_COARSE_SHARE = 0.25  # of the batches: generated images are half as high as rendered ones
_PHRASES = {phrase: domain for domain, phrases in DOMAIN_PHRASES.items() for phrase in phrases}


class Views:
    """Samples batches of augmented images: mirrored, shifted, changed in brightness, and sometimes at half the height.

    Args:
        images: (N, 3, H, W) uint8 RGB.
        batch_size: images per batch.
        device: where batches are made; the images are kept there.
        seed: of the random choices.
    """

    def __init__(self, images: Tensor, batch_size: int, device: torch.device, seed: int) -> None:
        self._images = images.to(device)
        self._batch_size = batch_size
        self._generator = torch.Generator(device).manual_seed(seed)
        self._coin = random.Random(seed)  # on the CPU, because a device's generator would synchronise
        self._scale = [torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (MEAN, STD)]

    def sample(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return indices (B,), normalised images float32 (B, 3, H, W), and their affine maps (B, 2, 3), for `moved`."""
        count, device, generator = self._batch_size, self._images.device, self._generator
        index = torch.randint(len(self._images), (count,), generator=generator, device=device)
        change = torch.rand(count, 4, generator=generator, device=device)
        pixels = self._images[index].float() / 255
        warp = torch.zeros(count, 2, 3, device=device)
        warp[:, 0, 0] = torch.where(change[:, 0] < 0.5, 1.0, -1.0)
        warp[:, 1, 1] = 1
        warp[:, :, 2] = (2 * change[:, 1:3] - 1) * 2 * _SHIFT
        pixels = moved(pixels, warp)
        if self._coin.random() < _COARSE_SHARE:
            height, width = pixels.shape[-2:]
            coarse = F.interpolate(pixels, (height // 2, width), mode="area")
            pixels = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
        pixels = pixels * (1 + _GAIN * (2 * change[:, 3] - 1)).view(-1, 1, 1, 1)
        mean, std = self._scale
        return index, (pixels - mean) / std, warp


def moved(maps: Tensor, warp: Tensor, mode: str = "bilinear") -> Tensor:
    """Apply the affine maps of `Views.sample` to (B, C, h, w), mirrored at the edges; "nearest" keeps the values."""
    grid = F.affine_grid(warp, list(maps.shape), align_corners=False)
    return F.grid_sample(maps, grid, mode=mode, padding_mode="reflection", align_corners=False)


def held_out(count: int) -> Tensor:
    """Return which of `count` images are held out from training, bool (count,): every twentieth."""
    return torch.arange(count) % 20 == 10


def caption_parts(text: str) -> list[str]:
    """Return the parts of a caption in order; a phrase of the weather becomes the name of its domain.

    >>> caption_parts("a wide street and a crossing with two cars, trees and signs, on a sunny day")
    ['a wide street', 'a crossing', 'two cars', 'trees', 'signs', 'clear']
    """
    body, _, weather = text.rpartition(", ")
    if weather not in _PHRASES:
        body, weather = text, ""
    parts = [part for part in re.split(r", | and | with ", body) if part]
    return [*parts, _PHRASES[weather]] if weather else parts


def named_domains(text: str) -> set[str]:
    """Return the domains whose phrases occur in a text."""
    return {domain for phrase, domain in _PHRASES.items() if re.search(rf"\b{phrase}\b", text)}


def names(text: str, *words: str) -> bool:
    """Return whether one of the words occurs in a text."""
    return any(re.search(rf"\b{word}\b", text) for word in words)
