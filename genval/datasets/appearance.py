"""Appearance transfer without training: an image takes the colours of an unlabelled one; its geometry stays.

Baselines of generated images that need a few images of the condition, but neither labels nor a trained model.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from genval.datasets.unlabelled import find_unlabelled
from genval.runtime.errors import GenValError
from genval.runtime.paths import resolve


def match_histogram(image: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Map each channel monotonically, so that its histogram becomes that of the reference.

    The method is histogram specification (Gonzalez and Woods, "Digital Image Processing", section 3.3): a value is
    mapped to the value of the reference with the same share of pixels below or at it, by linear interpolation.

    Args:
        image: RGB uint8 (H, W, 3).
        reference: RGB uint8 (H', W', 3).

    Returns:
        RGB uint8 (H, W, 3).
    """
    tables: np.ndarray = np.empty((1, 256, 3), np.uint8)
    for channel in range(3):
        own, other = (np.bincount(one[..., channel].ravel(), minlength=256) for one in (image, reference))
        values = np.flatnonzero(other)
        shares = np.cumsum(other)[values] / other.sum()
        tables[0, :, channel] = np.rint(np.interp(np.cumsum(own) / own.sum(), shares, values))
    return np.asarray(cv2.LUT(image, tables))


def swap_amplitude(image: np.ndarray, reference: np.ndarray, beta: float) -> np.ndarray:
    """Replace the amplitudes of an image's low frequencies by those of the reference; the phases stay.

    Source: Yang and Soatto, "FDA: Fourier Domain Adaptation for Semantic Segmentation" (CVPR 2020), equation 4.

    Args:
        image: RGB uint8 (H, W, 3).
        reference: RGB uint8 (H', W', 3); it is resized to the image's size.
        beta: 0 to 0.5: frequencies up to this fraction of the shorter side, along either axis, are replaced. With 0 it
            is the mean colour alone.

    Returns:
        RGB uint8 (H, W, 3).
    """
    from scipy import fft

    height, width = image.shape[:2]
    resized = cv2.resize(reference, (width, height), interpolation=cv2.INTER_AREA)
    largest = int(beta * min(height, width))
    rows = np.r_[0 : largest + 1, height - largest : height]
    # The spectrum of real values is symmetric: rfft2 has the columns of one half only.
    low = np.ix_(rows, range(largest + 1))
    changed = np.empty(image.shape, np.float32)
    for channel in range(3):
        spectrum, other = (fft.rfft2(one[..., channel].astype(np.float32)) for one in (image, resized))
        spectrum[low] = np.abs(other[low]) * np.exp(1j * np.angle(spectrum[low]))
        changed[..., channel] = fft.irfft2(spectrum, (height, width))
    return np.asarray(np.rint(changed.clip(0, 255)).astype(np.uint8))


def find_references(path: str) -> list[Path]:
    """Return the images of a folder and the folders in it, sorted by path, or the one image that `path` names.

    Raises:
        GenValError: there is no such file or folder, or it has no image.
    """
    place = resolve(path)
    if place.is_file():
        return [place]
    return find_unlabelled(path, "--reference")


def parse_references(references: Iterable[str], domains: Iterable[str]) -> dict[str, str]:
    """Return the place of the reference images by domain.

    >>> parse_references(["fog=a", "night=b"], ["fog", "night"])
    {'fog': 'a', 'night': 'b'}
    >>> parse_references(["a"], ["fog"])
    {'fog': 'a'}

    Raises:
        GenValError: a domain has no reference or two, or a reference is for no domain of the run.
    """
    places, names = list(references), list(domains)
    if len(places) == len(names) == 1 and not places[0].startswith(f"{names[0]}="):
        return {names[0]: places[0]}
    found: dict[str, str] = {}
    for place in places:
        name, equals, path = place.partition("=")
        if not equals or name not in names or name in found or not path:
            raise GenValError(
                f"--reference: expected one PATH for each of --domains, as in "
                f"{','.join(f'{name}=PATH' for name in names)}, found {place!r}."
            )
        found[name] = path
    missing = [name for name in names if name not in found]
    if missing:
        raise GenValError(f"--reference: no images for {', '.join(missing)}. Add {missing[0]}=PATH.")
    return found
