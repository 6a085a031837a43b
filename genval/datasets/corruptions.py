"""Standard corruptions of clear images: the baseline of generated images.

Rain, snow and darkness are kornia's (Apache-2.0) `RandomRain`, `RandomSnow`, and `adjust_gamma` with
`RandomGaussianNoise`. kornia has no fog: its fractal map, `contrib.diamond_square`, is blended with the image by
the formula of Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations" (ICLR 2019), with their constants. Severities are 1 to 5, as theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from genval.runtime.errors import GenValError

if TYPE_CHECKING:
    from torch import Tensor

SEVERITIES = (1, 2, 3, 4, 5)
# By severity: thickness of the haze, and how much finer detail weighs in its fractal map.
_FOG = ((1.5, 0.5), (2.0, 0.5), (2.5, 0.59), (2.5, 0.67), (3.0, 0.71))
# Share of the pixels on streaks, and the gain of what is behind them.
_RAIN = ((0.02, 0.9), (0.04, 0.8), (0.07, 0.7), (0.1, 0.6), (0.15, 0.5))
# Lightness below which a pixel is bleached, and how much lighter it gets.
_SNOW = ((0.3, 1.5), (0.4, 1.75), (0.5, 2.0), (0.6, 2.5), (0.7, 3.0))
# Gamma, gain, and standard deviation of the sensor's noise.
_NIGHT = ((1.2, 0.7, 0.02), (1.5, 0.5, 0.03), (1.8, 0.4, 0.04), (2.1, 0.3, 0.05), (2.5, 0.25, 0.06))
# The length of a streak is the image's height divided by this number.
_STREAK = 16


def corrupt(image: np.ndarray, domain: str, severity: int, seed: int) -> np.ndarray:
    """Corrupt an image. Equal seeds give equal results.

    Not thread-safe: kornia samples from torch's global generator, whose state is restored afterwards.

    Args:
        image: RGB uint8 (H, W, 3), at least 16 pixels high and wide.
        domain: one of `CORRUPTIONS`.
        severity: 1 to 5.
        seed: of the random numbers.

    Returns:
        RGB uint8 (H, W, 3).

    Raises:
        GenValError: there is no such corruption or severity, or the image is too small.
    """
    import torch

    check(domain, severity)
    if min(image.shape[:2]) < _STREAK:
        raise GenValError(f"An image must be at least 16x16 to be corrupted, found {image.shape[1]}x{image.shape[0]}.")
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pixels = CORRUPTIONS[domain](pixels, severity - 1)
    corrupted: np.ndarray = (pixels[0].permute(1, 2, 0).clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return corrupted


def check(domain: str, severity: int) -> None:
    """Check the name and the severity of a corruption.

    Raises:
        GenValError: there is no such corruption or severity.
    """
    if domain not in CORRUPTIONS:
        hint = " No corruption stands for another country." if domain == "india" else ""
        raise GenValError(f"No corruption for {domain!r}: expected one of {', '.join(CORRUPTIONS)}.{hint}")
    if severity not in SEVERITIES:
        raise GenValError(f"Expected a severity of 1 to 5, found {severity}.")


def _fog(pixels: Tensor, level: int) -> Tensor:
    from kornia.contrib import diamond_square

    thickness, roughness = _FOG[level]
    haze = diamond_square((1, 1, *pixels.shape[-2:]), roughness=roughness, normalize_range=(0.0, 1.0))
    brightest = pixels.max()
    return (pixels + thickness * haze) * brightest / (brightest + thickness)


def _rain(pixels: Tensor, level: int) -> Tensor:
    from kornia.augmentation import RandomRain
    from kornia.enhance import adjust_gamma

    share, gain = _RAIN[level]
    height, width = pixels.shape[-2:]
    streak = height // _STREAK
    drops, slant = round(share * height * width / streak), min(streak // 3, width - 1)
    rain = RandomRain((drops, drops), (streak, streak), (-slant, slant), p=1.0)
    return rain(adjust_gamma(pixels, 1.0, gain))


def _snow(pixels: Tensor, level: int) -> Tensor:
    from kornia.augmentation import RandomSnow

    below, lighter = _SNOW[level]
    return RandomSnow((below, below), (lighter, lighter), p=1.0)(pixels)


def _night(pixels: Tensor, level: int) -> Tensor:
    from kornia.augmentation import RandomGaussianNoise
    from kornia.enhance import adjust_gamma

    gamma, gain, noise = _NIGHT[level]
    return RandomGaussianNoise(std=noise, p=1.0)(adjust_gamma(pixels, gamma, gain))


CORRUPTIONS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "fog": _fog,
    "night": _night,
    "rain": _rain,
    "snow": _snow,
}
