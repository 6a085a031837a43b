"""Which detection is taken, the metrics of a mask's quality, and runs that stop, go on and change their settings."""

import numpy as np
import pytest

from genval.artifacts.stage import run_stage
from genval.datasets.boxes import Box
from genval.datasets.ood_objects import find_object_images
from genval.grounding.detector import Detection, load_detector
from genval.grounding.masks import MaskStage, choose, quality
from genval.grounding.outliner import load_outliner
from genval.grounding.settings import MaskSettings
from genval.grounding.similarity import Similarity
from genval.runtime.errors import GenValError
from genval.runtime.files import write_png


def test_the_highest_scoring_detection_that_names_the_object_is_chosen():
    box = (0.0, 0.0, 1.0, 1.0)
    detections = [Detection(box, 0.9, ""), Detection(box, 0.4, "bear"), Detection(box, 0.6, "polar bear")]
    assert choose(detections) == 2
    assert choose(detections[:1]) is None
    assert choose([]) is None


def test_quality_of_a_mask():
    mask = np.zeros((20, 30), dtype=np.uint8)
    mask[4:8, 10:20] = 255  # 40 pixels: 32 in the box (columns 10..17), 20 in the detection (columns 10..14)
    metrics = quality(mask, Box.square(2, 8, 10), (9.5, 3.2, 14.4, 8.0))
    assert metrics == {"mask_area_ratio": 0.4, "mask_inside_box": 0.8, "mask_inside_detection": 0.5}


@pytest.mark.parametrize("name", ["box_threshold", "text_threshold", "nms_threshold", "margin"])
def test_thresholds_are_fractions(name):
    for value in (-0.1, float("nan")):
        with pytest.raises(GenValError, match=f"--{name}: expected"):
            MaskSettings(**{name: value})


class Encoder:
    """Vectors along the axes, chosen by a text's last word; images by their first pixel."""

    hash = "0"
    axes = ("lion", "road", "car")

    def encode_texts(self, texts):
        import torch

        return torch.eye(3)[[self.axes.index(text.split()[-1]) for text in texts]]

    def encode_images(self, images):
        import torch

        return torch.tensor([[0.6, 0.8, 0.0] if image[0, 0, 0] else [0.8, 0.0, 0.6] for image in images])


def test_similarity_names_the_nearest_of_the_scene():
    images = [np.full((2, 2, 3), value, dtype=np.uint8) for value in (0, 255)]
    judge = Similarity(Encoder(), ("road", "car"))
    assert judge(images, "lion") == [
        {"object": pytest.approx(0.8), "scene": pytest.approx(0.6), "scene_name": "car"},
        {"object": pytest.approx(0.6), "scene": pytest.approx(0.8), "scene_name": "road"},
    ]
    assert judge(images[1:], "car")[0]["scene_name"] == "road"
    assert judge([], "lion") == []


@pytest.fixture(scope="module")
def models(grounding_models):
    return load_detector(str(grounding_models.detector)), load_outliner(str(grounding_models.sam))


@pytest.fixture
def make(models, object_images):
    """Mask what is missing, two images per batch; returns how many were written."""
    images = find_object_images(object_images / "refined", object_images / "with_positions")

    def make(**settings):
        record = {"box": 0.25, **settings}
        stage = MaskStage(object_images / "masks", *models, MaskSettings(**settings), record)
        return run_stage(stage, images, batch_size=2, num_workers=2).written

    return make


def masks(root):
    paths = sorted((root / "masks").rglob("*_mask.*"))
    return {path.relative_to(root / "masks").as_posix(): path.read_bytes() for path in paths}


def test_a_run_resumes_where_it_stopped(make, object_images):
    assert make() == 6
    expected, manifest = masks(object_images), object_images / "masks" / "manifest.jsonl"
    assert len(expected) == 6
    assert make() == 0
    lines = manifest.read_text().splitlines(keepends=True)
    manifest.write_text("".join(lines[:2] + lines[3:]))  # one line is lost, and one file
    (object_images / "masks" / next(name for name in expected if name.startswith("polar bear/2"))).unlink()
    assert make() == 2
    assert masks(object_images) == expected


def test_other_settings_and_other_images_are_seen(make, object_images):
    make()
    assert make(text_threshold=0.3) == 6
    assert make(text_threshold=0.3, margin=0.2) == 6
    write_png(object_images / "refined" / "lion" / "0.png", np.full((80, 160, 3), 90, dtype=np.uint8))
    assert make(text_threshold=0.3, margin=0.2) == 1


def test_only_finding_nothing_becomes_a_text(make, object_images):
    make(box_threshold=1.0)
    written = masks(object_images)
    assert len(written) == 6
    assert written["lion/0_mask.txt"] == b"No detection of 'lion' is above the box threshold 1.0.\n"
    make(text_threshold=1.0)
    assert b"detections names 'lion' above the text threshold 1.0" in masks(object_images)["lion/0_mask.txt"]
    # Found with other thresholds, the texts make way for masks.
    make(text_threshold=0.0)
    assert {name.rpartition(".")[2] for name in masks(object_images)} == {"png"}
    make(box_threshold=1.0)
    assert {name.rpartition(".")[2] for name in masks(object_images)} == {"txt"}


@pytest.mark.parametrize("failure", ["write", "outline"])
def test_any_other_failure_is_an_error_and_no_text(make, models, object_images, monkeypatch, failure):
    def fail(*_):
        raise GenValError("No space left on device")

    place = {"write": "genval.grounding.masks.write_png", "outline": "genval.grounding.outliner.Outliner.outline"}
    monkeypatch.setattr(place[failure], fail)
    with pytest.raises(GenValError, match="No space left"):
        make(text_threshold=0.0)
    assert not masks(object_images)
