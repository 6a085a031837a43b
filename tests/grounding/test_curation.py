"""A person's choices outlive a new run; doubtful masks start as false."""

import json

import numpy as np
import pytest

from genval.datasets.ood_objects import find_object_images, mask_path, read_curated
from genval.datasets.reading import read_image
from genval.grounding.curation import update_choices, write_sheets
from genval.runtime.errors import GenValError
from genval.runtime.files import write_png


def line(mask=True, similarity=None):
    box = {"top": 30, "left": 20, "side": 40}
    return {"mask": "x" if mask else None, "similarity": similarity, "box": box, "detection_score": 0.5}


def test_choices_of_a_person_stay(tmp_path):
    near, far = ({"object": value, "scene": 0.2, "scene_name": "car"} for value in (0.3, 0.1))
    lines = {"lion/10": line(), "lion/2": line(similarity=near), "lion/3": line(False), "table/0": line(similarity=far)}
    assert update_choices(tmp_path, lines) == {"lion/10": True, "lion/2": True, "table/0": False}
    written = json.loads((tmp_path / "curated.json").read_text())
    assert list(written["lion"]) == ["2", "10"]
    written["lion"]["2"], written["table"]["0"] = False, True
    (tmp_path / "curated.json").write_text(json.dumps(written))
    update_choices(tmp_path, lines | {"table/1": line()})
    assert read_curated(tmp_path) == {"lion/2": False, "lion/10": True, "table/0": True, "table/1": True}


@pytest.mark.parametrize("content", ["[]", '{"lion": [1]}', '{"lion": {"0": "yes"}}'])
def test_other_content_is_refused(tmp_path, content):
    (tmp_path / "curated.json").write_text(content)
    with pytest.raises(GenValError, match=r"curated\.json: .*expected"):
        read_curated(tmp_path)


def test_sheets_show_the_choice_in_colours(object_images):
    images = find_object_images(object_images / "refined", object_images / "with_positions", ["lion"])
    masks = object_images / "masks"
    for image in images:
        mask = np.zeros((80, 160), dtype=np.uint8)
        mask[40:60, 30:50] = 255
        write_png(mask_path(masks, image.id), mask)
    lines = {image.id: line() for image in images}
    sheet = write_sheets(masks, images, lines, {"lion/0": True, "lion/1": False})
    assert sheet == [masks / "lion" / "sheet.png"]
    found = {tuple(colour) for colour in read_image(sheet[0]).reshape(-1, 3).tolist()}
    assert {(40, 170, 70), (210, 50, 40), (255, 60, 200)} <= found
    write_png(mask_path(masks, "lion/0"), np.zeros((40, 80), dtype=np.uint8))
    with pytest.raises(GenValError, match="160x80 pixels and its mask"):
        write_sheets(masks, images, lines, {"lion/0": True})
