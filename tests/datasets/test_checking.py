"""A data set with one fault of each kind, and one without."""

import numpy as np
import pytest

from genval.datasets import find_items
from genval.datasets.checking import check_items, inspect
from genval.runtime.errors import GenValError
from genval.runtime.files import write_png


@pytest.fixture
def root(tmp_path):
    for city in ("lindau", "munster"):
        for number in range(4):
            name = f"{city}_{number:06d}_000019"
            image = np.full((8, 12, 3), number, np.uint8)
            label_ids = np.full((8, 12), 7, np.uint8)
            label_ids[:2] = 26
            label_ids[2] = 3
            write_png(tmp_path / f"cityscapes/leftImg8bit/val/{city}/{name}_leftImg8bit.png", image)
            write_png(tmp_path / f"cityscapes/gtFine/val/{city}/{name}_gtFine_labelIds.png", label_ids)
    return tmp_path


def image(root, city, number):
    return root / f"cityscapes/leftImg8bit/val/{city}/{city}_{number:06d}_000019_leftImg8bit.png"


def mask(root, city, number):
    return root / f"cityscapes/gtFine/val/{city}/{city}_{number:06d}_000019_gtFine_labelIds.png"


def check(root):
    unpaired = []
    items = find_items("Cityscapes", datasets_dir=root, skipped=unpaired)
    done = []
    report = check_items(items, unpaired, workers=2, on_done=lambda: done.append(1))
    assert len(done) == len(items)
    return report


def test_a_sound_set(root):
    report = check(root)
    assert report["faults"] == [] and report["masks_without_a_class"] == []
    assert report["pairs"] == 8
    assert report["scenes"] == {"clean/lindau": 4, "clean/munster": 4}
    assert report["sizes"] == {"12x8": 8}
    assert report["ids"] == {"3": 96, "7": 480, "26": 192}
    assert report["classes"]["road"] == {"pixels": 480, "images": 8}
    assert report["classes"]["car"] == {"pixels": 192, "images": 8}
    assert report["classes"]["sky"] == {"pixels": 0, "images": 0}
    assert report["ignored_pixels"] == 96


def test_every_fault_is_found_and_none_hides_another(root):
    mask(root, "lindau", 0).unlink()
    image(root, "lindau", 1).unlink()
    image(root, "lindau", 2).write_bytes(image(root, "lindau", 2).read_bytes()[:-30])
    strange = np.full((8, 11), 77, np.uint8)
    strange[0] = 7
    write_png(mask(root, "lindau", 3), strange)
    mask(root, "munster", 0).write_bytes(b"")
    write_png(mask(root, "munster", 1), np.zeros((8, 12, 3), np.uint8))
    image(root, "munster", 2).with_suffix(".jpg").write_bytes(b"")
    write_png(mask(root, "munster", 3), np.zeros((8, 12), np.uint8))
    report = check(root)
    reasons = {(fault["file"], fault["reason"]) for fault in report["faults"]}
    expected = [
        (image(root, "lindau", 0), "image without a mask"),
        (mask(root, "lindau", 1), "mask without an image"),
        (image(root, "lindau", 2), "cannot be decoded"),
        (mask(root, "lindau", 3), "11x8 pixels, the image has 12x8"),
        (mask(root, "lindau", 3), "ids that are not Cityscapes labelIds: 77"),
        (mask(root, "munster", 0), "cannot be decoded"),
        (mask(root, "munster", 1), "is not a label mask"),
        (image(root, "munster", 2).with_suffix(".jpg"), "another file of this id"),
    ]
    assert len(reasons) == len(expected)
    for file, reason in expected:
        assert any(found == str(file) and reason in text for found, text in reasons), (file, reason)
    assert report["masks_without_a_class"] == [str(mask(root, "munster", 3))]
    assert report["sizes"] == {"12x8": 4, "unreadable": 1}


def test_two_files_of_one_id_stop_an_evaluation(root):
    image(root, "munster", 2).with_suffix(".jpg").write_bytes(b"")
    with pytest.raises(GenValError, match="Two files for munster_000002_000019"):
        find_items("Cityscapes", datasets_dir=root)
    assert len(find_items("Cityscapes", scene="lindau", datasets_dir=root)) == 4


def test_pixels_are_counted_as_they_are(root):
    (item,) = [i for i in find_items("Cityscapes", datasets_dir=root) if i.id == "lindau_000000_000019"]
    finding = inspect(item)
    assert finding.size == (12, 8) and finding.pixels.sum() == 96 and finding.faults == []
