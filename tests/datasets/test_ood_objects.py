"""Images with an object and their boxes, in the layout of the published code."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genval.artifacts.fingerprint import file_mark
from genval.datasets.boxes import Box
from genval.datasets.ood_objects import (
    find_object_images,
    natural,
    object_folder,
    read_box,
    read_objects,
)
from genval.runtime.errors import GenValError
from genval.runtime.paths import REPO_ROOT


def find(root, objects=None):
    return find_object_images(root / "refined", root / "with_positions", objects)


def test_images_are_sorted_by_object_and_number(object_images):
    (object_images / "refined" / "lion" / "2.png").rename(object_images / "refined" / "lion" / "10.png")
    place = object_images / "with_positions" / "lion"
    (place / "2_pos.json").rename(place / "10_pos.json")
    assert [image.id for image in find(object_images, ["lion"])] == ["lion/0", "lion/1", "lion/10"]
    assert len(find(object_images)) == 6


def test_the_manifest_gives_the_object_of_a_folder(object_images):
    (object_images / "refined" / "polar bear").rename(object_images / "refined" / "polar_bear")
    (object_images / "with_positions" / "polar bear").rename(object_images / "with_positions" / "polar_bear")
    line = json.dumps({"id": "polar_bear/0", "object": "polar bear"})
    (object_images / "with_positions" / "manifest.jsonl").write_text(line + "\n")
    assert {image.object for image in find(object_images, ["polar bear"])} == {"polar bear"}


def test_a_box_is_row_column_and_side(object_images):
    image = find(object_images)[1]
    assert read_box(image, 80, 160) == Box.square(80 - 44 - 1, 10, 44)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ('{"1.png": {"pos_mask": [0, 0], "size_mask": 8}}', "has no 0.png. Expected"),
        ('{"0.png": {"pos_mask": [0], "size_mask": 8}}', "expected"),
        ('{"0.png": {"pos_mask": [-1, 0], "size_mask": 8}}', "is not inside"),
        ('{"0.png": {"pos_mask": [60, 10], "size_mask": 40}}', "is not inside"),
    ],
)
def test_a_box_that_does_not_fit_is_an_error(object_images, content, message):
    image = find(object_images)[0]
    image.position.write_text(content)
    with pytest.raises(GenValError, match=message):
        read_box(image, 80, 160)


def test_missing_images_objects_and_boxes_are_errors(object_images, tmp_path):
    with pytest.raises(GenValError, match=r"Run: python ood_objects/refine_gen_images\.py"):
        find(tmp_path / "nowhere")
    with pytest.raises(GenValError, match=r"No images of zebra .* found lion, polar bear"):
        find(object_images, ["lion", "zebra"])
    (object_images / "with_positions" / "lion" / "1_pos.json").unlink()
    with pytest.raises(GenValError, match=r"1_pos\.json does not exist \(1 of 6"):
        find(object_images)


def test_an_image_made_from_another_source_is_an_error(object_images):
    inpainted, refined = (object_images / stage / "lion/0.png" for stage in ("with_positions", "refined"))
    inpainted.write_bytes(b"first")
    line = json.dumps({"id": "lion/0", "source": file_mark(inpainted)})
    (object_images / "refined/manifest.jsonl").write_text(line + "\n")
    assert len(find(object_images)) == 6
    inpainted.write_bytes(b"second")
    with pytest.raises(GenValError, match=r"refined/lion/0\.png was made from another .*refine_gen_images\.py"):
        find(object_images)
    assert len(find(object_images, ["polar bear"])) == 3
    # Records of sd_inpaint.py name a street.
    line = json.dumps({"id": "lion/0", "source": "munster_000001", "position": "lion/0_pos.json"})
    (object_images / "refined/manifest.jsonl").write_text(line + "\n")
    assert len(find(object_images)) == 6
    refined.unlink()
    inpainted.unlink()
    assert len(find(object_images)) == 5


def test_natural_order():
    assert sorted(["10", "9", "a2", "a10", "2"], key=natural) == ["2", "9", "10", "a2", "a10"]


def test_the_list_of_objects_has_the_published_number():
    names = (REPO_ROOT / "ood_objects" / "objects.txt").read_text().splitlines()
    assert len(names) == len(set(names)) == 42
    assert all(name == name.strip() and name for name in names)


@pytest.mark.parametrize("name", ["lion", "polar bear", "x.y", "a_b-c", "json", "x.json5"])
def test_a_safe_name_is_its_folder(name):
    assert object_folder(name) == name


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "../x", "/etc", "a/b", "a\\b", "x.", " x", "\x00", "Lion", "狮子", "Löwe"),
        *("settings.json", "curated.json", "manifest.jsonl"),  # the stages' own files
    ],
)
def test_any_other_name_gets_a_safe_one(name):
    folder = object_folder(name)
    assert folder != name and re.fullmatch(r"[a-z0-9-]+-[0-9a-f]{8}", folder) and len(folder) < 50
    assert len(object_folder(name + "a" * 300)) < 50


@given(st.lists(st.text(max_size=6), unique=True, max_size=6))
def test_two_names_never_share_a_folder_even_without_capitals(names):
    folders = [object_folder(name) for name in names]
    folders += [object_folder(folder) for folder in folders if folder not in names]
    assert len({folder.casefold() for folder in folders}) == len(folders)


def test_a_list_of_objects_is_read_without_blank_lines(tmp_path):
    (tmp_path / "objects.txt").write_text("lion\n\n  polar bear \nlion\nLöwe\n", encoding="utf-8")
    assert read_objects(tmp_path / "objects.txt") == ["lion", "polar bear", "Löwe"]
    (tmp_path / "objects.txt").write_text("\n \n")
    with pytest.raises(GenValError, match=r"objects\.txt is empty"):
        read_objects(tmp_path / "objects.txt")
    with pytest.raises(GenValError, match="Cannot read"):
        read_objects(tmp_path / "none.txt")
    (tmp_path / "objects.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(GenValError, match="not a text file"):
        read_objects(tmp_path / "objects.txt")
