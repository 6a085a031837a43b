"""Classes of one's own become the 19: probabilities add."""

import json

import pytest
import torch

from genval.datasets import labels
from genval.datasets.labels import LABEL_SPACES, find_label_space
from genval.runtime.errors import GenValError
from genval.segmenters import load_segmenter
from genval.segmenters.class_map import ClassMap, merge_logits
from genval.segmenters.identity import model_identity


@pytest.fixture
def class_map(tmp_path):
    path = tmp_path / "map.json"
    path.write_text(json.dumps({"0": "road", "1": 13, "2": "road", "3": None, "4": "sky"}))
    return str(path)


def test_probabilities_of_parts_add_given_that_the_pixel_is_of_a_class(class_map):
    logits = torch.randn(2, 5, 6, 7, generator=torch.Generator().manual_seed(0)) * 5
    share = logits.softmax(1)
    expected = torch.zeros(2, 19, 6, 7)
    expected[:, 0] = share[:, 0] + share[:, 2]
    expected[:, 13] = share[:, 1]
    expected[:, 10] = share[:, 4]
    expected /= expected.sum(1, keepdim=True)
    merged = ClassMap(find_label_space(class_map))(logits)
    torch.testing.assert_close(merged.softmax(1), expected, rtol=0, atol=1e-6)
    for temperature in (0.5, 10.0):
        absent = (merged / temperature).softmax(1)[:, [i for i in range(19) if i not in (0, 10, 13)]]
        assert (absent == 0).all()
    assert merged.half().isfinite().all()


def test_a_map_of_the_19_onto_themselves_changes_nothing():
    logits = torch.randn(1, 19, 4, 4)
    torch.testing.assert_close(ClassMap(LABEL_SPACES["trainids"])(logits), logits, rtol=0, atol=1e-6)


def test_classes_of_one_part_keep_their_logits_exactly():
    logits = torch.randn(1, 20, 4, 4)
    logits[0, 3, 0, 0] = -torch.inf
    order = [[index] for index in reversed(range(1, 20))]
    assert merge_logits(logits, order).equal(logits[:, 1:].flip(1))
    assert merge_logits(logits, order).equal(torch.stack([logits[:, one].logsumexp(1) for one in order], 1))


@pytest.mark.parametrize("outputs", [4, 6])
def test_a_map_that_does_not_fit_is_refused(class_map, outputs):
    fault = r"also names \[4\]" if outputs == 4 else r"does not contain \[5\]"
    with pytest.raises(GenValError, match=rf"net has {outputs} classes.*{fault}"):
        ClassMap(find_label_space(class_map)).check("net", outputs)


def test_mapillarys_models_may_lack_its_last_class():
    """Unlabeled, 65, is no output of networks trained on the other 65."""
    for outputs in (65, 66):
        ClassMap(LABEL_SPACES["mapillary-v1.2"]).check("net", outputs)


def test_a_factory_with_a_map(class_map, images, tmp_path, monkeypatch):
    (tmp_path / "five_classes.py").write_text(
        "def make(device):\n    return lambda images: images[:, [0, 1, 2, 0, 1]].float()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    segmenter = load_segmenter("five_classes:make", "cpu", trust_code=True, class_map=class_map)
    assert segmenter(images).shape == (2, 19, 96, 160)
    with pytest.raises(GenValError, match=r"five_classes:make has 5 classes, expected 19"):
        load_segmenter("five_classes:make", "cpu", trust_code=True)(images)


def test_another_map_is_another_hash(class_map, tmp_path, checkpoint):
    name = f"mmseg:mini/segmenters/pspnet-r18.py,{checkpoint}"
    other = tmp_path / "other.json"
    other.write_text(json.dumps({str(i): (i + 1) % 19 for i in range(19)}))
    hashes = {
        model_identity(load_segmenter(name, "cpu", class_map=chosen)) for chosen in (None, "trainids", str(other))
    }
    assert len(hashes) == 3


def mapillary_classes():
    from genval.segmenters.openmmlab import import_mmseg

    import_mmseg()
    from mmseg.datasets.mapillary import MapillaryDataset_v1, MapillaryDataset_v2

    return [kind.METAINFO["classes"] for kind in (MapillaryDataset_v1, MapillaryDataset_v2)]


def test_mapillarys_classes_by_name():
    """The tables against the lists of class names that mmsegmentation ships."""
    same = {
        "Road": "road", "Manhole": "road", "Sidewalk": "sidewalk", "Curb": "sidewalk", "Building": "building",
        "Wall": "wall", "Fence": "fence", "Pole": "pole", "Utility Pole": "pole", "Vegetation": "vegetation",
        "Terrain": "terrain", "Sky": "sky", "Person": "person", "Bicyclist": "rider", "Motorcyclist": "rider",
        "Other Rider": "rider", "Car": "car", "Truck": "truck", "Bus": "bus", "On Rails": "train",
        "Motorcycle": "motorcycle", "Bicycle": "bicycle",
    }  # fmt: skip
    one, two = mapillary_classes()
    assert (len(one), len(two)) == (66, 124)

    def of_v2(name):
        if name.startswith("Lane Marking") and "Crosswalk" not in name:
            return "road"
        if name.startswith("Traffic Light"):
            return "traffic light"
        if name.startswith("Traffic Sign") and not any(word in name for word in ("Back", "Ambiguous", "Frame")):
            return "traffic sign"
        return same.get(name)

    own = {"Lane Marking - General": "road", "Traffic Light": "traffic light", "Traffic Sign (Front)": "traffic sign"}
    for space, names, expected in ((labels.MAPILLARY_V1, one, (same | own).get), (labels.MAPILLARY_V2, two, of_v2)):
        found = {name: t for name, t in zip(names, space.table.tolist(), strict=False) if t != labels.IGNORE}
        assert found == {name: labels.CLASSES.index(expected(name)) for name in names if expected(name)}
        assert space.known.sum() == len(names)
