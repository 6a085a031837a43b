"""Class names that models carry: mapped to the 19 in any order and spelling, or refused."""

import json

import pytest
import torch

from genval.datasets.labels import CITYSCAPES, CLASSES, IGNORE
from genval.runtime.errors import GenValError
from genval.segmenters import load_segmenter
from genval.segmenters.checkpoints import read_state_dict
from genval.segmenters.class_map import CLASS_MAPS, find_class_map, map_by_name
from genval.segmenters.class_names import find_names, train_id_of

ALPHABETICAL = sorted(range(19), key=CLASSES.__getitem__)
SYNONYMS = {"traffic light": "trafficlight", "traffic sign": "Traffic_Signs", "motorcycle": "motorbike", "car": "Cars"}


def table(names, **options):
    return map_by_name("net", names, None, **options).table[: len(names)].tolist()


@pytest.mark.parametrize("spell", [str, str.upper, lambda name: name.replace(" ", ""), lambda name: f" {name}-"])
def test_another_order_is_mapped_in_any_spelling(spell):
    assert table([spell(CLASSES[i]) for i in ALPHABETICAL]) == ALPHABETICAL
    assert map_by_name("net", [spell(name) for name in CLASSES], None) is None


def test_synonyms_background_and_absent_classes(capsys):
    assert [train_id_of(SYNONYMS.get(name, name)) for name in CLASSES] == list(range(19))
    assert table(["background", *(SYNONYMS.get(CLASSES[i], CLASSES[i]) for i in ALPHABETICAL)]) == [255, *ALPHABETICAL]
    camvid = ["Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car", "Pedestrian",
              "Bicyclist", "Void"]  # fmt: skip
    assert table(camvid) == [10, 2, 5, 0, 1, 8, 7, 4, 13, 11, 12, IGNORE]
    assert "absent: wall, traffic light, terrain, truck, bus, train, motorcycle, bicycle" in capsys.readouterr().out


def test_the_34_labels_of_cityscapes_are_mapped():
    names = [f"unlabeled {i}" for i in range(34)]
    for label_id, train_id in enumerate(CITYSCAPES.table[:34]):
        if train_id != IGNORE:
            names[label_id] = CLASSES[train_id]
    names[6], names[9], names[30] = "ground", "parking", "trailer"
    assert table([name.rstrip(" 0123456789") for name in names]) == CITYSCAPES.table[:34].tolist()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([*CLASSES[:18], "dog"], "not among Cityscapes': dog"),
        (["wall"] * 150, "the class wall more than once"),
        ([*CLASSES, "pedestrian"], r"person more than once: \['person', 'pedestrian'\]"),
        (["background", "void"], "none of the 19"),
        (CLASSES[:18], "names 18 classes and has 19 outputs"),
    ],
)
def test_names_that_cannot_be_mapped_are_refused(names, message):
    with pytest.raises(GenValError, match=message) as error:
        map_by_name("net", names, None, outputs=19 if len(names) == 18 else None)
    assert "--class_map" in str(error.value)
    given = find_class_map("trainids")
    assert map_by_name("net", names, given) is given


@pytest.mark.parametrize("names", [None, [f"LABEL_{i}" for i in range(19)], [str(i) for i in range(150)]])
def test_placeholders_say_nothing(names):
    assert map_by_name("net", names, None) is None


@pytest.mark.parametrize(
    "stated",
    [
        {"classes": ["a", "b"]},
        {"CLASSES": ("a", "b")},
        {"id2label": {"1": "b", "0": "a"}},
        {"names": "{0: 'a', 1: 'b'}"},
        {"labels": '["a", "b"]'},
        {"class_names": "a, b"},
    ],
)
def test_names_are_found_under_the_usual_keys(stated):
    assert find_names(None, "text", {"epoch": 3}, stated) == ("a", "b")


@pytest.mark.parametrize("stated", [{"classes": 19}, {"names": {"1": "a"}}, {"labels": [1, 2]}, {"classes": "["}])
def test_what_is_no_list_of_names_is_ignored(stated):
    assert find_names(stated) is None


def test_names_in_checkpoints(tmp_path):
    state = {"weight": torch.zeros(1)}
    for meta in ({"CLASSES": ("a", "b")}, {"dataset_meta": {"classes": ("a", "b"), "palette": [[0, 0, 0]]}}):
        torch.save({"state_dict": state, "meta": meta}, tmp_path / "net.pth")
        assert read_state_dict(tmp_path / "net.pth").classes == ("a", "b")
    torch.save(state, tmp_path / "net.pth")
    assert read_state_dict(tmp_path / "net.pth").classes is None
    from safetensors.torch import save_file

    save_file(state, tmp_path / "net.safetensors", metadata={"classes": '["a", "b"]'})
    assert read_state_dict(tmp_path / "net.safetensors").classes == ("a", "b")


def test_an_openmmlab_checkpoint_of_another_order(tmp_path, checkpoint, images):
    config = "mini/segmenters/pspnet-r18.py"
    expected = load_segmenter(f"mmseg:{config},{checkpoint}", "cpu")(images)
    content = torch.load(checkpoint, weights_only=True)
    for key in ("decode_head.conv_seg.weight", "decode_head.conv_seg.bias"):
        content["state_dict"][key] = content["state_dict"][key][ALPHABETICAL]
    content["meta"] = {"dataset_meta": {"classes": [CLASSES[i].replace(" ", "") for i in ALPHABETICAL]}}
    torch.save(content, tmp_path / "other.pth")
    given = load_segmenter(f"mmseg:{config},{tmp_path}/other.pth", "cpu")(images)
    torch.testing.assert_close(given, expected, rtol=0, atol=1e-5)


def test_a_torchscript_file_with_names_beside_it(tmp_path, images):
    torch.manual_seed(0)
    network = torch.nn.Conv2d(3, 19, 1)
    torch.jit.save(torch.jit.trace(network, torch.zeros(1, 3, 8, 8)), tmp_path / "net.pt")
    name = f"torchscript:{tmp_path}/net.pt"
    plain = load_segmenter(name, "cpu")(images)
    (tmp_path / "net.pt.json").write_text(json.dumps({"classes": [CLASSES[i] for i in ALPHABETICAL]}))
    named = load_segmenter(name, "cpu")(images)
    torch.testing.assert_close(named[:, ALPHABETICAL], plain)
    (tmp_path / "net.pt.json").write_text(json.dumps({"classes": list(CLASSES[:18])}))
    with pytest.raises(GenValError, match=r"net\.pt has 19 classes.*does not contain \[18\]"):
        load_segmenter(name, "cpu")(images)


def test_the_shipped_map_of_20_outputs():
    shipped = find_class_map("CITYSCAPES-20")
    shipped.check("net", 20)
    assert shipped.table[:20].tolist() == [*range(19), IGNORE]
    with pytest.raises(GenValError, match="net has 19 classes"):
        find_class_map(next(name for name in CLASS_MAPS if name == "mapillary-v1.2")).check("net", 19)


def test_files_of_names_in_any_case(tmp_path):
    path = tmp_path / "map.json"
    for content in (
        {"0": "Road", "1": "TRAFFICLIGHT", "2": None, "3": 13, "4": "void"},
        ["Road", "traffic light", None, 13, "void"],
    ):
        path.write_text(json.dumps(content))
        assert find_class_map(str(path)).table[:5].tolist() == [0, 6, 255, 13, 255]
    path.write_text(json.dumps({"0": "road", "other": None}))
    find_class_map(str(path)).check("net", 256)
    with pytest.raises(GenValError, match=r"does not contain \[256\]"):
        find_class_map(str(path)).check("net", 257)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"0": "dog"}, "output 0 is 'dog', expected a trainId"),
        ({"0": 19}, "output 0 is 19"),
        ({"0": True}, "output 0 is True"),
        ({"0": ["road"]}, "output 0 is"),
        ({"a": "road"}, "expected outputs 0..255"),
        ({"256": "road"}, "expected outputs 0..255"),
        ({"²": "road"}, "expected outputs 0..255"),
        ({"1": "road", "01": "car"}, "expected outputs 0..255"),
        ({"0": None}, "names none of the 19"),
        ({}, "names none of the 19"),
        ({"0": "road", "other": "car"}, '"other" can only be null'),
        ("road", "found str"),
    ],
)
def test_files_that_are_no_class_map(tmp_path, content, message):
    path = tmp_path / "map.json"
    path.write_text(json.dumps(content))
    with pytest.raises(GenValError, match=message):
        find_class_map(str(path))


def test_a_missing_file_is_called_missing():
    with pytest.raises(GenValError, match=r"there is no file .*absent\.json"):
        find_class_map("absent.json")
    with pytest.raises(GenValError, match=r"unknown class map 'cityscape'\. Did you mean cityscapes"):
        find_class_map("cityscape")
