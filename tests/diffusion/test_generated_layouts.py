"""Generated sets as they are published and written are found by the evaluation's reader."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from genval.datasets.items import find_items


def write_set(domain_folder: Path, mask_suffix: str) -> None:
    for kind in ("leftImg8bit", "original", "gtFine"):
        for city, number in (("frankfurt", 0), ("lindau", 1)):
            name = f"fog_{number}_{city}_00000{number}_000019"
            suffix = mask_suffix if kind == "gtFine" else "_leftImg8bit"
            file = domain_folder / kind / "val" / city / f"{name}{suffix}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            shape = (8, 8) if kind == "gtFine" else (8, 8, 3)
            cv2.imwrite(str(file), np.full(shape, 7, np.uint8))


@pytest.mark.parametrize(
    ("below", "mask_suffix"),
    [
        ("fog", "_gtFine_labelIds"),  # what style_transfer.py writes, and the released data
        ("fog", "_labelIds"),  # the published generator's names
        ("num_samples_512/1/fog", "_labelIds"),  # and its folder, found through --generated_dir
    ],
)
def test_found_as_cityscapes_fog(tmp_path: Path, below: str, mask_suffix: str) -> None:
    write_set(tmp_path / below, mask_suffix)
    items = find_items("Cityscapes_fog", generated_dir=(tmp_path / below).parent)
    assert [(item.scene, item.cond) for item in items] == [("frankfurt", "fog"), ("lindau", "fog")]
    assert all(item.image.exists() and item.mask.exists() and "original" not in item.image.parts for item in items)
    assert find_items("Cityscapes_fog", root=tmp_path / below) == items
