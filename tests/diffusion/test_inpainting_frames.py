"""Squares of frames on their way to a model and back."""

import cv2
import numpy as np
import pytest

from genval.datasets.boxes import Box
from genval.diffusion.inpainting.frames import box_mask, cut, paste_box, paste_feathered, seam

BOX, CROP = Box.square(20, 50, 40), Box(10, 40, 60, 60)


@pytest.fixture
def frame():
    return np.random.default_rng(0).integers(0, 256, (96, 160, 3), dtype=np.uint8)


def test_a_crop_is_resized_by_cubic_interpolation(frame):
    assert np.array_equal(cut(frame, CROP, 60, 60), frame[10:70, 40:100])
    assert np.array_equal(
        cut(frame, CROP, 32, 32), cv2.resize(frame[10:70, 40:100], (32, 32), interpolation=cv2.INTER_CUBIC)
    )


def test_the_mask_is_the_box_at_the_models_size():
    mask = box_mask(BOX, CROP, 60, 60)
    assert mask.sum() == 1600 and mask[10:50, 10:50].all()
    mask = box_mask(Box.square(0, 0, 2), Box(0, 0, 60, 60), 6, 6)
    assert mask.sum() == 1 and mask[0, 0]


def test_a_blurred_mask_loses_its_corners_alone():
    plain, blurred = box_mask(BOX, CROP, 512, 512), box_mask(BOX, CROP, 512, 512, blurred=True)
    assert not (blurred & ~plain).any()
    lost = plain & ~blurred
    assert 0.04 < lost.mean() / plain.mean() < 0.06
    rows, columns = np.nonzero(lost)
    assert not ((rows > 160) & (rows < 350) | (columns > 160) & (columns < 350)).any()


@pytest.mark.parametrize("side", [1, 2, 3, 20, 60, 128, 200])
def test_a_blurred_mask_is_never_empty_however_small_the_box(side):
    box = Box.square(200, 100, side)
    plain, blurred = (box_mask(box, Box(0, 0, 512, 512), 512, 512, blurred) for blurred in (False, True))
    assert 0.5 < (plain & blurred).sum() / plain.sum() <= 1 and not (blurred & ~plain).any()


def test_outside_the_box_a_frame_keeps_its_bytes(frame):
    pasted = paste_box(frame, np.full((32, 32, 3), 200, np.uint8), CROP, BOX)
    changed = np.any(pasted != frame, axis=-1)
    assert (pasted[20:60, 50:90] == 200).all()
    changed[20:60, 50:90] = False
    assert not changed.any()


def test_a_seam_mixes_around_the_box_and_no_farther(frame):
    inpainted = np.full((60, 60, 3), 200, np.uint8)
    before = frame.copy()
    pasted = paste_feathered(frame, inpainted, CROP, BOX, feather=5)
    assert np.array_equal(frame, before)
    assert (pasted[20:60, 50:90] == 200).all()
    changed = np.any(pasted != frame, axis=-1)
    assert not changed[:16].any() and not changed[64:].any() and not changed[:, :46].any() and not changed[:, 94:].any()
    share = seam(CROP, BOX, 5)
    row = share[30, 5:11]
    np.testing.assert_allclose(row, [0, 0.2, 0.4, 0.6, 0.8, 1], atol=1e-6)
    expected = np.rint(0.6 * 200 + 0.4 * frame[40, 48].astype(np.float32))
    assert np.abs(pasted[40, 48] - expected).max() <= 1


def test_a_seam_ends_at_the_crops_edge_and_at_the_frames():
    share = seam(Box.square(18, 48, 44), BOX, 8)
    assert share[0].max() == 0 and share[:, -1].max() == 0 and share.max() == 1
    at_corner = seam(Box.square(20, 50, 60), BOX, 8)
    assert at_corner[0, 0] == 1 and (at_corner[:40, :40] == 1).all() and at_corner[:, 48:].max() == 0


def test_without_a_feather_the_box_is_pasted_hard(frame):
    inpainted = np.full((60, 60, 3), 200, np.uint8)
    assert np.array_equal(paste_feathered(frame, inpainted, CROP, BOX, 0), paste_box(frame, inpainted, CROP, BOX))
