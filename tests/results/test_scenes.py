import doctest
import json

import numpy as np
import pytest
import torch

from genval.datasets.reading import read_mask
from genval.metrics.statistics import measure
from genval.report.evidence import Place, evaluation
from genval.results import scenes as results_module
from genval.results.finding import list_scenes
from genval.results.scenes import SceneResults, finish_scene, folder_name, image_record, model_list, save_image
from genval.runtime.errors import GenValError
from genval.runtime.files import write_json, write_jsonl


def test_examples_in_docstrings():
    outcome = doctest.testmod(results_module)
    assert outcome.attempted > 0 and outcome.failed == 0


def test_folder_names_are_safe_and_distinct():
    names = ["DLV3+ResNet18", "hf:a/b", "hf:a_b", "mmseg:/x/c.py,/y/c.pth", "..", "x" * 300, "a b"]
    folders = [folder_name(name) for name in names]
    assert folders[0] == "DLV3+ResNet18"
    assert len(set(folders)) == len(names)
    assert all(not set("/:, ") & set(folder) and 0 < len(folder) < 120 and folder[0] != "." for folder in folders)


def test_model_lists():
    assert model_list("all", "mini") == list(results_module.path_dicts.MINI_SEGMENTERS)
    assert len(model_list("all")) == 42
    with pytest.raises(GenValError, match="names separated by commas"):
        model_list("a,,b")
    assert model_list("a, b,a") == ["a", "b"]


@pytest.fixture
def scene(tmp_path):
    for name in ("image", "mask"):
        (tmp_path / name).write_bytes(b"1234")
    return SceneResults(tmp_path / "results", "hf:a/b", "Cityscapes_fog", "fog", "lindau")


def record(scene, item_id="x", weights="w"):
    return image_record(
        item_id, scene.root.parent / "image", scene.root.parent / "mask", scene.model, weights, "32-true"
    )


def statistics(labels, prediction):
    """Of logits that are 5 at the prediction and 0 elsewhere."""
    logits = 5 * torch.nn.functional.one_hot(torch.from_numpy(prediction).long(), 19).movedim(-1, 0).float()
    return measure(logits, torch.from_numpy(labels))[1]


def test_an_image_is_done_if_its_files_exist_and_have_the_same_record(scene):
    labels, prediction = np.array([[0, 1, 255]], np.uint8), np.array([[0, 0, 3]], np.uint8)
    save_image(scene, record(scene), prediction, statistics(labels, prediction))
    assert scene.is_done(record(scene))
    assert (read_mask(scene.prediction("x")) == prediction).all()
    assert not scene.is_done(record(scene, weights="others"))
    for other in (b"another image", b"1235"):
        (scene.root.parent / "image").write_bytes(other)
        assert not scene.is_done(record(scene))
    (scene.root.parent / "image").write_bytes(b"1234")
    scene.prediction("x").unlink()
    assert not scene.is_done(record(scene)) and scene.is_done(record(scene), prediction=False)
    scene.counts("x").unlink()
    assert not scene.is_done(record(scene), prediction=False)


def test_files_of_a_model_whose_writing_was_interrupted_are_not_those_of_the_model_before(scene, monkeypatch):
    labels = np.zeros((2, 2), np.uint8)
    first, second = record(scene), record(scene, weights="other")
    save_image(scene, first, labels, statistics(labels, labels))

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(results_module, "write_statistics", stop)
    with pytest.raises(KeyboardInterrupt):
        save_image(scene, second, labels + 1, statistics(labels, labels + 1))
    assert not scene.is_done(first) and not scene.is_done(second)


def test_finished_scenes_are_listed_and_others_refused_with_the_command(scene):
    with pytest.raises(
        GenValError, match=r"found nothing\. Run: python relis/eval\.py --preset mini --segmenters hf:a/b"
    ):
        list_scenes(scene.root, scene.model, scene.dataset, [("all", "all")], preset="mini")
    one = np.array([[0, 1, 255]], np.uint8)
    save_image(scene, record(scene), one % 2, statistics(one, one % 2))
    with pytest.raises(GenValError, match=r"No finished results in .*lindau\. Run: "):
        list_scenes(scene.root, scene.model, scene.dataset, [("fog", "lindau")])
    names = [str(index) for index in range(19)]
    finish_scene(scene, [record(scene)], names, range(19), {"2": [0, 1], "3": [0, 1, 2]}, {"split": None})
    (found,) = list_scenes(scene.root, scene.model, scene.dataset, [("fog", "all"), ("all", "lindau")])
    assert found == scene
    assert found.read_matrix()[:2, :2].tolist() == [[1, 0], [0, 1]]
    values = json.loads(scene.metrics.read_text())
    assert (values["model"], values["images"], values["miou"], values["miou_2"], values["miou_3"]) == (
        "hf:a/b",
        1,
        1,
        1,
        None,
    )
    with pytest.raises(GenValError, match=r"scene munster in .*found fog/lindau"):
        list_scenes(scene.root, scene.model, scene.dataset, [("fog", "munster")])


@pytest.mark.parametrize("damage", ["", "{}", '{"confusion_matrix": [[1, 2]]}', '{"confusion_matrix": [[0.5]]}'])
def test_damaged_statistics_are_refused(scene, damage):
    path = scene.statistics("x")
    path.parent.mkdir(parents=True)
    path.write_text(damage)
    with pytest.raises(GenValError, match=r"statistics/x\.json"):
        results_module.read_statistics(path)


def test_an_id_that_leaves_the_scene_is_refused(tmp_path):
    scene = results_module.SceneResults(tmp_path, "model", "set", "fog", "all")
    write_jsonl(scene.folder / "manifest.jsonl", [{"id": "../../x"}])
    with pytest.raises(GenValError, match=r"manifest\.jsonl, line 1: id: expected a name without"):
        scene.ids()


def test_commands_repeat_the_input_size(scene):
    """Its height and width are a list in settings.json, which flags take as one text."""
    settings = {"settings": {"input_size": [256, 512], "class_map": None, "precision": "32-true", "split": "val"}}
    write_json(scene.folder / "settings.json", settings)
    assert scene.saved_flags() == {"input_size": "256x512", "split": "val"}
    assert "--input_size 256x512" in str(scene.command())
    other = SceneResults(scene.root, scene.model, "ACDC", "fog", "all")
    assert evaluation(scene.root, [scene.model], Place("ACDC", "fog"), None) == str(other.command())
