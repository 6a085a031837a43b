import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from diffusion_world import HEIGHT, WIDTH, write_cityscapes

from genval.diffusion.models.hints import CITYSCAPES_IDS
from genval.diffusion.pairs import find_jsonl, load_framed, read_pairs, readable_pairs
from genval.runtime.errors import GenValError


def test_own_lines_name_the_mask(city_folder: Path) -> None:
    pairs = read_pairs(find_jsonl("training/train.jsonl", city_folder), city_folder)
    assert len(pairs) == 6
    assert pairs[0].mask.name == "aachen_000000_000019_gtFine_labelIds.png"
    assert pairs[0].caption == "trees"


def test_published_lines_name_links(city_folder: Path, tmp_path: Path) -> None:
    line = {
        "image": "training/target/val/lindau/lindau_000000_000019_leftImg8bit.png",
        "conditioning_image": "training/seg/val/lindau/lindau_000000_000019_leftImg8bit.png",
        "text": "a road",
    }
    (tmp_path / "val.jsonl").write_text(json.dumps(line) + "\n")
    (pair,) = read_pairs(tmp_path / "val.jsonl", city_folder)
    assert pair.image == city_folder / "leftImg8bit/val/lindau/lindau_000000_000019_leftImg8bit.png"
    assert pair.mask == city_folder / "gtFine/val/lindau/lindau_000000_000019_gtFine_labelIds.png"


@pytest.mark.parametrize("link", ["training/target", "training/seg"])
def test_published_links_are_used_where_they_exist(city_folder: Path, tmp_path: Path, link: str) -> None:
    folder = tmp_path / "cityscapes"
    shutil.copytree(city_folder, folder)
    shutil.copytree(folder / ("leftImg8bit" if link.endswith("target") else "gtFine"), folder / link)
    line = {
        "image": "training/target/val/lindau/lindau_000000_000019_leftImg8bit.png",
        "conditioning_image": "training/seg/val/lindau/lindau_000000_000019_leftImg8bit.png",
        "text": "a road",
    }
    (tmp_path / "val.jsonl").write_text(json.dumps(line) + "\n")
    (pair,) = read_pairs(tmp_path / "val.jsonl", folder)
    chosen = pair.image if link.endswith("target") else pair.mask
    assert chosen.is_relative_to(folder / link)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"image": "a.png", "text": "x"}', "entry 1 has no text conditioning_image"),
        ('{"image": "a.png", "conditioning_image": "b.png", "text": "x"}', "a.png does not exist"),
        ("", "no entries"),
        ("{", "line 1 is not valid JSON"),
    ],
)
def test_bad_lines(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "x.jsonl").write_text(line + "\n")
    with pytest.raises(GenValError, match=message):
        read_pairs(tmp_path / "x.jsonl", tmp_path)


def test_missing_captions_file_says_where_it_should_be(tmp_path: Path) -> None:
    with pytest.raises(GenValError, match=r"ControlNet/training/none\.jsonl"):
        find_jsonl("training/none.jsonl", tmp_path)
    with pytest.raises(GenValError, match=r"expected /no/where\.jsonl, with lines"):  # each place once
        find_jsonl("/no/where.jsonl", tmp_path)


def test_damaged_pairs_are_refused(tmp_path: Path) -> None:
    folder = write_cityscapes(tmp_path / "city")
    pair = read_pairs(folder / "training/train.jsonl", folder)[0]
    good = pair.mask.read_bytes()
    assert load_framed(pair, HEIGHT, WIDTH, 0).mask.shape == (HEIGHT, WIDTH)
    pair.mask.write_bytes(good[: len(good) // 2])
    with pytest.raises(GenValError, match="cannot be decoded"):
        load_framed(pair, HEIGHT, WIDTH, 0)
    cv2.imwrite(str(pair.mask), np.zeros((8, 8), np.uint8))
    with pytest.raises(GenValError, match="but its mask"):
        load_framed(pair, HEIGHT, WIDTH, 0)
    cv2.imwrite(str(pair.mask), np.full((HEIGHT, WIDTH), 40, np.uint8))
    with pytest.raises(GenValError, match="labelIds"):
        load_framed(pair, HEIGHT, WIDTH, 0)


def test_damaged_pairs_are_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    city = write_cityscapes(tmp_path / "city")
    pairs = read_pairs(city / "training/train.jsonl", city)
    pairs[2].mask.write_bytes(pairs[2].mask.read_bytes()[:60])
    assert readable_pairs(pairs, CITYSCAPES_IDS.labels, 2) == pairs[:2] + pairs[3:]
    assert f"skipped {pairs[2].image}" in "".join(capsys.readouterr())
    with pytest.raises(GenValError, match="were skipped"):
        readable_pairs(pairs[2:3], CITYSCAPES_IDS.labels, 2)
