"""Where objects are put: the published squares, and squares that stand on the ground."""

import numpy as np
import pytest

from genval.datasets.boxes import Box
from genval.datasets.placement import PlacementConfig, crop_around, place
from genval.runtime.errors import GenValError


def street(height=256, width=512):
    """A mask with buildings above, a road below, and a car that stands on it."""
    mask = np.full((height, width), 11, np.uint8)
    mask[height // 2 :] = 7
    mask[height // 2 : 3 * height // 4, : width // 4] = 26
    return mask


def places(mask, config, count=60):
    return [place(mask, config, np.random.default_rng(seed)) for seed in range(count)]


def inside(inner, outer):
    return (
        outer.top <= inner.top
        and outer.left <= inner.left
        and inner.top + inner.side <= outer.top + outer.side
        and inner.left + inner.side <= outer.left + outer.side
    )


@pytest.mark.parametrize("height", [1024, 256, 200])
def test_published_squares_have_the_published_sizes_and_places(height):
    width = 2 * height
    drawn = places(np.zeros((height, width), np.uint8), PlacementConfig(), 300)
    sides = [one.box.side for one in drawn]
    assert height // 4 <= min(sides) < height * 0.26 and height * 0.49 < max(sides) <= height // 2
    for one in drawn:
        assert one.rule == "published"
        assert one.crop.side == int(1.5 * one.box.side)
        assert one.crop.top >= height // 4 and one.crop.left >= 0
        assert one.crop.top + one.crop.side <= height and one.crop.left + one.crop.side <= width
        margin = (one.crop.side - one.box.side) // 2
        assert (one.box.top - one.crop.top, one.box.left - one.crop.left) == (margin, margin)
    assert len({one.box for one in drawn}) > 290


def test_a_place_is_its_seeds():
    mask, config = street(), PlacementConfig("road", 96)
    assert place(mask, config, np.random.default_rng(7)) == place(mask, config, np.random.default_rng(7))


def test_on_the_road_squares_stand_on_ground_and_grow_towards_the_camera():
    mask = street()
    drawn = places(mask, PlacementConfig("road", 96, 512))
    assert {one.rule for one in drawn} == {"road"}
    for one in drawn:
        box = one.box
        foot = box.top + box.side - 1
        assert 24 <= box.side <= 128 and mask[foot, box.left + box.side // 2] == 7
        quarter = mask[foot + 1 - box.side // 4 : foot + 1, box.left : box.left + box.side]
        assert (quarter == 7).mean() >= 0.6
        assert inside(box, one.crop) and inside(one.crop, Box.square(0, 0, 512)) and one.crop.top + one.crop.side <= 256
        # 0.6 to 2.4 m under a camera at 1.22 m, half a row of rounding
        assert (box.side + 0.5) / (foot - 0.42 * 256) >= 0.6 / 1.22 - 0.01
        assert (box.side - 0.5) / (foot - 0.42 * 256) <= 2.4 / 1.22 + 0.01
    feet, sides = zip(*((one.box.top + one.box.side, one.box.side) for one in drawn), strict=True)
    assert np.corrcoef(feet, sides)[0, 1] > 0.4


def test_a_frame_without_ground_takes_the_published_rule_and_says_so():
    assert {one.rule for one in places(np.full((256, 512), 11, np.uint8), PlacementConfig("road", 96), 5)} == {
        "published"
    }
    with pytest.raises(GenValError, match=r"no road or sidewalk .*--max_box"):
        place(np.full((128, 128), 11, np.uint8), PlacementConfig("road", 96, 680), np.random.default_rng(0))


@pytest.mark.parametrize(
    ("shape", "config"),
    [
        ((256, 90), PlacementConfig()),
        ((256, 512), PlacementConfig(largest=520)),
        ((256, 512), PlacementConfig(context=1.6)),
        ((256, 100), PlacementConfig("road")),
    ],
)
def test_a_frame_smaller_than_a_box_is_an_error(shape, config):
    with pytest.raises(GenValError, match=rf"frame\.png is {shape[1]}x{shape[0]}: expected room for a crop"):
        place(np.zeros(shape, np.uint8), config, np.random.default_rng(0), "frame.png")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rule": "sky"}, "--placement"),
        ({"smallest": 600}, "--min_box 600 --max_box 512"),
        ({"smallest": 0}, "--min_box"),
        ({"context": 0.9}, "--context"),
        ({"context": float("nan")}, "--context"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, words):
    with pytest.raises(GenValError, match=words):
        PlacementConfig(**settings)


def test_a_crop_around_a_box_stays_in_the_frame():
    assert crop_around(Box.square(50, 60, 40), 1.5, 200, 400) == Box.square(40, 50, 60)
    assert crop_around(Box.square(0, 370, 30), 2, 200, 400) == Box.square(0, 340, 60)
    assert crop_around(Box.square(0, 0, 200), 1.5, 200, 400) == Box.square(0, 0, 200)
