import itertools

import numpy as np
import pytest
import torch

from genval.datasets.boxes import Box
from genval.diffusion.sampling.windows import blend_weights, windows


@pytest.mark.parametrize(
    ("size", "window", "count"),
    [((64, 64), (64, 64), 1), ((64, 128), (64, 64), 3), ((128, 256), (64, 64), 15), ((72, 64), (64, 64), 2)],
)
def test_windows_cover_everything_and_overlap(size: tuple[int, int], window: tuple[int, int], count: int) -> None:
    found = windows(*size, *window)
    assert len(found) == count
    covered = np.zeros(size, int)
    for one in found:
        assert one.cut(covered).shape == window
        one.cut(covered)[:] += 1
    assert covered.min() == 1
    lefts = sorted({one.left for one in found})
    assert all(right - left <= 0.75 * window[1] + 0.5 for left, right in itertools.pairwise(lefts))


def test_the_same_place_in_pixels() -> None:
    assert Box(1, 2, 3, 4).times(8) == Box(8, 16, 24, 32)


def test_weights_are_largest_in_the_middle_and_never_zero() -> None:
    weights = blend_weights(8, 6, torch.device("cpu"))
    assert weights.shape == (8, 6) and weights.min() > 0
    assert weights.argmax() in (8 // 2 * 6 - 6 + 2, 8 // 2 * 6 - 6 + 3)
    torch.testing.assert_close(weights, weights.flip(0, 1))
