import json
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genval.datasets import labels
from genval.runtime.errors import GenValError
from genval.runtime.paths import REPO_ROOT

CAMVID_CLASSES = REPO_ROOT / "tests/golden/camvid_classes.json"


def test_the_cityscapes_table_is_that_of_cityscapesscripts():
    expected = dict(
        zip((7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33), range(19), strict=True)
    )
    assert {i: int(t) for i, t in enumerate(labels.CITYSCAPES.table) if t != labels.IGNORE} == expected


def test_the_idd_table_has_no_terrain_and_no_train():
    assert labels.IDD.classes == labels.IDD_17
    assert {9, 16}.isdisjoint(labels.IDD.table.tolist())
    assert labels.IDD.to_train_ids(np.array([[22, 24, 25, 39, 251, 255]], np.uint8)).tolist() == [
        [2, 8, 10, 255, 255, 255]
    ]


def test_the_camvid_table_is_that_of_the_data():
    classes = json.loads(CAMVID_CLASSES.read_text())
    expected = {int(number): train_id for number, (_, train_id) in classes.items()}
    assert expected == dict(enumerate(labels.CAMVID.table[:12].tolist()))
    assert labels.CAMVID.classes == labels.CAMVID_11


@pytest.mark.parametrize("space", labels.LABEL_SPACES.values(), ids=lambda space: space.name)
@given(seed=st.integers(0, 2**32 - 1))
def test_translation_is_the_boolean_assignment_of_the_definition(space, seed):
    generator = np.random.default_rng(seed)
    mask = generator.choice(np.flatnonzero(space.known), generator.integers(1, 30, 2)).astype(np.uint8)
    slow = np.full_like(mask, labels.IGNORE)
    for label_id, train_id in enumerate(space.table):
        slow[mask == label_id] = train_id
    assert (space.to_train_ids(mask) == slow).all()


@pytest.mark.parametrize(
    ("space", "unknown"), [(labels.CITYSCAPES, [34, 254]), (labels.IDD, [40, 250]), (labels.CAMVID, [12, 255])]
)
def test_unknown_ids_are_named(space, unknown):
    mask = np.zeros((3, 4), np.uint8)
    mask[0, :2] = unknown
    with pytest.raises(GenValError, match=f"a/b.png holds ids .*found {unknown[0]}, {unknown[1]}"):
        space.to_train_ids(mask, "a/b.png")


def test_tables_cannot_be_changed_by_accident():
    with pytest.raises(ValueError, match="read-only"):
        labels.CITYSCAPES.table[0] = 1


def test_a_frame_takes_under_four_milliseconds():
    mask = np.random.default_rng(0).integers(0, 34, (1024, 2048)).astype(np.uint8)
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        labels.CITYSCAPES.to_train_ids(mask)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 4e-3


def test_colours_are_the_cityscapes_ones_and_void_is_black():
    painted = labels.colourise(np.array([[0, 13, 255]], np.uint8))
    assert painted.tolist() == [[[128, 64, 128], [0, 0, 142], [0, 0, 0]]]


def write(path, content):
    path.write_text(json.dumps(content))
    return str(path)


def test_a_label_map_of_ones_own(tmp_path):
    space = labels.find_label_space(write(tmp_path / "map.json", {"0": "road", "7": 13, "3": None, "255": 255}))
    assert space.to_train_ids(np.array([[0, 7, 3, 255]], np.uint8)).tolist() == [[0, 13, 255, 255]]
    assert space.classes == (0, 13)
    with pytest.raises(GenValError, match=r"ids that are not the ids of map\.json: expected 0, 3, 7, 255, found 1"):
        space.to_train_ids(np.array([[1]], np.uint8))
    space = labels.find_label_space(write(tmp_path / "other.json", {"0": "traffic light", "other": None}))
    assert space.to_train_ids(np.array([[0, 9]], np.uint8)).tolist() == [[6, 255]]


def test_a_label_map_that_was_edited_is_read_again_and_has_another_mark(tmp_path):
    first = labels.find_label_space(write(tmp_path / "map.json", {"0": "road", "7": "car"}))
    second = labels.find_label_space(write(tmp_path / "map.json", {"7": "road", "0": "car"}))
    assert (first.table[7], second.table[7]) == (13, 0)
    assert None is not first.mark != second.mark is not None
    assert labels.find_label_space(write(tmp_path / "other.json", {"7": 0, "0": 13})).mark == second.mark
    assert labels.CITYSCAPES.mark is labels.find_label_space("idd-level1").mark is None


@pytest.mark.parametrize("name", ["Traffic Light", "TRAFFIC LIGHT", "traffic_light", "trafficLight"])
def test_names_of_classes_are_in_any_case(tmp_path, name):
    assert labels.find_label_space(write(tmp_path / "map.json", {"4": name})).table[4] == 6


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"0": "street"}, r"id 0 is 'street', expected a trainId 0..18, null, or one of: road, "),
        ({"0": 19}, "id 0 is 19"),
        ({"0": True}, "0: expected an integer, found true or false"),
        ({"256": 0}, "expected ids 0..255"),
        ({"7": 0, "07": 13}, "expected ids 0..255.*found .07."),
        ({"road": 0}, "expected ids 0..255"),
        ({"0": "road", "other": 3}, '"other" can only be null'),
        ({"0": None}, "names none of the 19 classes"),
        ([0, 1], "found a list"),
    ],
)
def test_bad_label_maps(tmp_path, content, message):
    with pytest.raises(GenValError, match=message):
        labels.find_label_space(write(tmp_path / "map.json", content))


def test_unknown_labels_are_named():
    with pytest.raises(GenValError, match=r"Unknown labels 'kitti': expected one of cityscapes, .*JSON file"):
        labels.find_label_space("kitti")


def test_a_missing_file_of_labels_is_called_missing(tmp_path):
    with pytest.raises(GenValError, match=r"Labels: there is no file .*absent\.json: expected one of cityscapes, "):
        labels.find_label_space(str(tmp_path / "absent.json"))
    with pytest.raises(GenValError, match=r"Labels: .* is a folder: expected one of"):
        labels.find_label_space(str(tmp_path))


def test_label_spaces_are_named_in_any_case():
    assert labels.find_label_space("CamVid") is labels.CAMVID


IDD_LEVEL1 = {0: [0], 1: [1, 9], 2: [11, 12], 3: [13, 14, 15, 16, 17, 18], 4: [3, 4, 5, 6, 7], 5: [2, 8], 6: [10]}


def test_the_merged_classes_of_idd_are_a_partition_of_the_19():
    space = labels.MERGED_SPACES["idd-level1"]
    assert sorted(train_id for members in space.groups.members for train_id in members) == list(range(19))
    for label_id, members in IDD_LEVEL1.items():
        assert space.groups.members[space.table[label_id]] == tuple(members)
    assert space.names == (
        "drivable", "non-drivable", "far object", "roadside object", "sky", "living thing", "vehicle",
    )  # fmt: skip
    assert space.classes == tuple(range(7)) and space.class_sets == {} and space.table[255] == 255


def test_a_file_gives_several_classes_to_one_id(tmp_path):
    content = {"5": ["building", 8], "6": "sky", "7": ["Vegetation", "building"], "9": None, "other": None}
    space = labels.find_label_space(write(tmp_path / "map.json", content))
    merged = space.names.index("building+vegetation")
    assert space.to_train_ids(np.array([[5, 6, 7, 9, 200]], np.uint8)).tolist() == [
        [merged, space.names.index("sky"), merged, 255, 255]
    ]
    assert len(space.names) == 18 and set(space.classes) == {merged, space.names.index("sky")}  # others stay alone
    assert space.groups.members[merged] == (2, 8) and space.groups.to_json()["road"] == ["road"]


def test_the_19_classes_in_merged_ones():
    space = labels.find_label_space("cityscapes@idd-level1")
    merged = labels.MERGED_SPACES["idd-level1"]
    for label_id in range(34):
        train_id = labels.CITYSCAPES.table[label_id]
        expected = next((i for i, members in enumerate(merged.groups.members) if train_id in members), 255)
        assert space.table[label_id] == expected
    assert space.groups == merged.groups and (space.train_id_table == labels.CITYSCAPES.table).all()
    assert len(labels.find_label_space("camvid@idd-level1").classes) == 7
    pixels = np.bincount([0, 1, 2, 255], minlength=256)  # trainIds, not labelIds
    assert space.fault(pixels) == labels.CITYSCAPES.fault(pixels) is not None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"0": ["road", "sidewalk"], "1": ["sidewalk", "terrain"]}, "ids 0 and 1 share the class sidewalk"),
        ({"0": ["road", "sidewalk"], "1": "road"}, "ids 0 and 1 share the class road"),
        ({"0": []}, "id 0 is .*one or more classes"),
        ({"0": ["road", 255]}, "id 0 is .*one or more classes"),
        ({"0": ["road", "street"]}, "id 0 is 'street'"),
    ],
)
def test_bad_merged_classes(tmp_path, content, message):
    with pytest.raises(GenValError, match=message):
        labels.find_label_space(write(tmp_path / "map.json", content))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cityscapes@idd", "IDD level3Ids merges no classes"),
        ("idd-level1@idd-level1", "IDD level-1 ids are merged classes"),
        ("cityscapes@level1", "Unknown labels 'level1'"),
    ],
)
def test_bad_names_of_merged_classes(name, message):
    with pytest.raises(GenValError, match=message):
        labels.find_label_space(name)
