import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genval.datasets.boxes import Box
from genval.diffusion.framing import check_pair, crop_box, fit_image, fit_mask
from genval.runtime.errors import GenValError


def test_published_square_lies_on_the_shorter_side() -> None:
    assert crop_box(1024, 2048, 512, 512, 0.0) == Box(0, 0, 1024, 1024)
    assert crop_box(1024, 2048, 512, 512, 1.0) == Box(0, 1024, 1024, 1024)


def test_frame_of_the_targets_shape_is_not_cut() -> None:
    assert crop_box(1024, 2048, 128, 256, 0.7) == Box(0, 0, 1024, 2048)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 64), st.integers(1, 64), st.floats(0, 1))
def test_box_lies_inside(height: int, width: int, target_height: int, target_width: int, place: float) -> None:
    box = crop_box(height, width, target_height, target_width, place)
    top, left, box_height, box_width = box.top, box.left, box.height, box.width
    assert top >= 0 and left >= 0 and box_height >= 1 and box_width >= 1
    assert top + box_height <= height and left + box_width <= width
    assert box_height == height or box_width == width


def test_mask_is_resized_without_new_ids_and_in_register_with_the_image() -> None:
    mask = np.repeat(np.repeat(np.array([[7, 26], [11, 255]], np.uint8), 8, 0), 8, 1)
    image = np.repeat(mask[..., None], 3, 2)
    box = crop_box(16, 16, 4, 4, 0)
    assert (fit_image(image, box, 4, 4)[..., 0] == fit_mask(mask, box, 4, 4)).all()
    assert set(np.unique(fit_mask(mask, crop_box(16, 16, 5, 5, 0), 5, 5))) <= {7, 11, 26, 255}


def test_sizes_that_differ_are_refused() -> None:
    with pytest.raises(GenValError, match="64x32 but its mask b is 32x32"):
        check_pair(np.zeros((32, 64, 3)), np.zeros((32, 32)), "a", "b")


def test_nearest_resize_takes_the_image_pixels_as_they_are() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    image[::2] = 200
    box = crop_box(8, 8, 4, 4, 0)
    assert set(np.unique(fit_image(image, box, 4, 4, "nearest"))) <= {0, 200}
    assert (fit_image(image, box, 4, 4) == 100).all()
