"""Histogram matching and the swap of Fourier amplitudes, against plain numpy."""

import numpy as np
import pytest

from genval.datasets.appearance import find_references, match_histogram, parse_references, swap_amplitude
from genval.runtime.errors import GenValError


def noise(seed: int, height: int = 24, width: int = 40, low: int = 0, high: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, (height, width, 3), np.uint8)


def test_histogram_matching_is_that_of_sorted_values() -> None:
    image, reference = noise(1, low=90, high=200), noise(2, 30, 50, 0, 80)
    matched = match_histogram(image, reference)
    for channel in range(3):
        own, other = image[..., channel].ravel(), reference[..., channel].ravel()
        values, places, counts = np.unique(own, return_inverse=True, return_counts=True)
        targets, other_counts = np.unique(other, return_counts=True)
        mapped = np.interp(counts.cumsum() / own.size, other_counts.cumsum() / other.size, targets)
        assert len(values) < 256
        np.testing.assert_array_equal(matched[..., channel].ravel(), np.rint(mapped[places]))
    assert abs(matched.mean() - reference.mean()) < 1
    np.testing.assert_array_equal(match_histogram(image, image), image)


@pytest.mark.parametrize("size", [(24, 40), (25, 41)])
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.3])
def test_the_amplitudes_of_low_frequencies_are_swapped(size: tuple[int, int], beta: float) -> None:
    image, reference = noise(1, *size, 60, 180), noise(2, *size, 80, 220)
    height, width = size
    largest = int(beta * height)
    expected = np.empty(image.shape)
    for channel in range(3):
        own, other = (np.fft.fftshift(np.fft.fft2(one[..., channel].astype(float))) for one in (image, reference))
        amplitude, phase = np.abs(own), np.angle(own)
        middle = np.s_[
            height // 2 - largest : height // 2 + largest + 1, width // 2 - largest : width // 2 + largest + 1
        ]
        amplitude[middle] = np.abs(other)[middle]
        expected[..., channel] = np.fft.ifft2(np.fft.ifftshift(amplitude * np.exp(1j * phase))).real
    swapped = swap_amplitude(image, reference, beta).astype(float)
    assert np.abs(swapped - np.rint(expected.clip(0, 255))).max() <= 1
    np.testing.assert_allclose(swapped.mean((0, 1)), reference.mean((0, 1)), atol=1)


def test_an_image_is_its_own_reference_at_any_size() -> None:
    image = noise(3)
    np.testing.assert_array_equal(swap_amplitude(image, image, 0.2), image)
    assert swap_amplitude(image, noise(4, 60, 20), 0.02).shape == image.shape


@pytest.mark.parametrize("references", [["a", "b"], ["fog=a"], ["fog=a", "rain=b"], ["fog=a", "fog=b"], ["fog=a", "b"]])
def test_each_domain_needs_its_reference(references: list[str]) -> None:
    with pytest.raises(GenValError, match="--reference"):
        parse_references(references, ["fog", "night"])


def test_references_that_are_not_there(tmp_path) -> None:
    for place in (tmp_path / "missing", tmp_path):
        with pytest.raises(GenValError, match="--reference"):
            find_references(str(place))
