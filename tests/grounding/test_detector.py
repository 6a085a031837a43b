"""Detections from the model's outputs: thresholds, phrases, overlaps, batches."""

import numpy as np
import pytest
import torch

from benchmarks.components.masks import bert_tokenizer
from genval.grounding.detector import Detector, as_caption, input_size, load_detector
from genval.runtime.errors import GenValError


@pytest.fixture(scope="module")
def detector(grounding_models):
    return load_detector(str(grounding_models.detector))


@pytest.fixture
def images():
    return [np.random.default_rng(seed).integers(256, size=(40, 40, 3), dtype=np.uint8) for seed in range(3)]


def detect(detector, images, text="lion", box=0.25, overlap=0.8, text_threshold=0.25):
    sizes = [image.shape[:2] for image in images]
    return detector.detect([detector.prepare(image) for image in images], sizes, text, box, text_threshold, overlap)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((512, 512), (800, 800)), ((1024, 2048), (666, 1332)), ((300, 400), (800, 1066)), ((400, 300), (1066, 800))],
)
def test_images_are_resized_as_published(size, expected):
    assert input_size(*size, 800, 1333) == expected


def test_a_caption_is_lower_case_and_ends_with_a_full_stop():
    assert as_caption(" Polar Bear ") == "polar bear."
    assert as_caption("lion.") == "lion."


def select(probabilities, boxes, box=0.25, text=0.25, overlap=0.8):
    """`Detector._select` on values of our own, for "polar bear." on an image of 100x200."""
    shell = Detector.__new__(Detector)
    shell._tokenizer = bert_tokenizer()
    ids = shell._tokenizer(["polar bear."], return_tensors="pt")["input_ids"][0]
    return shell._select(torch.tensor(probabilities), torch.tensor(boxes), (100, 200), ids, box, text, overlap)


def test_the_text_threshold_is_its_own():
    # Columns: [CLS], polar, bear, ".", [SEP].
    probabilities = [[0.1, 0.5, 0.3, 0.1, 0.1], [0.1, 0.28, 0.1, 0.1, 0.1], [0.9, 0.1, 0.1, 0.1, 0.9]]
    boxes = [[0.5, 0.5, 0.2, 0.2], [0.2, 0.2, 0.1, 0.1], [0.8, 0.8, 0.1, 0.1]]
    low = select(probabilities, boxes)
    assert [found.phrase for found in low] == ["", "polar bear", "polar"]
    assert [found.score for found in low] == pytest.approx([0.9, 0.5, 0.28])
    assert low[1].box == pytest.approx((80, 40, 120, 60))
    high = select(probabilities, boxes, text=0.4)
    assert [found.phrase for found in high] == ["", "polar", ""]
    assert len(select(probabilities, boxes, box=0.4)) == 2


def test_of_two_overlapping_boxes_the_higher_score_is_kept():
    probabilities = [[0.0, 0.5, 0.5, 0.0, 0.0], [0.0, 0.6, 0.5, 0.0, 0.0], [0.0, 0.4, 0.5, 0.0, 0.0]]
    boxes = [[0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0.2, 0.21], [0.5, 0.5, 0.2, 0.1]]
    assert [found.score for found in select(probabilities, boxes)] == pytest.approx([0.6, 0.5])
    assert len(select(probabilities, boxes, overlap=0.99)) == 3
    assert len(select(probabilities, boxes, overlap=0.4)) == 1


def test_boxes_end_at_the_image():
    found = select([[0.0, 0.5, 0.5, 0.0, 0.0]], [[0.0, 0.5, 0.2, 2.0]])[0]
    assert found.box == pytest.approx((0, 0, 20, 100))


def test_a_batch_gives_what_single_images_give(detector, images):
    images.append(images[0][:30])  # another size among them
    together = detect(detector, images)
    for image, found in zip(images, together, strict=True):
        alone = detect(detector, [image])[0]
        assert [one.phrase for one in alone] == [one.phrase for one in found]
        assert [one.score for one in alone] == pytest.approx([one.score for one in found], abs=1e-5)
        for mine, theirs in zip(alone, found, strict=True):
            assert mine.box == pytest.approx(theirs.box, abs=1e-2)


def test_values_that_are_not_finite_are_an_error(grounding_models, images):
    broken = load_detector(str(grounding_models.detector))
    broken._model.model.level_embed.data[:] = float("nan")
    with pytest.raises(GenValError, match="not finite"):
        detect(broken, images)


def test_a_model_of_another_kind_is_refused(grounding_models):
    with pytest.raises(GenValError, match="of type 'sam': expected 'grounding-dino'"):
        load_detector(str(grounding_models.sam))


def test_an_original_file_without_a_tokenizer_says_what_to_give(golden_detector, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(GenValError, match="--tokenizer"):
        load_detector(str(golden_detector.path), str(tmp_path / "empty"))


def test_a_missing_file_says_where_it_was_sought():
    with pytest.raises(GenValError, match=r"nor does checkpoints/absent.pth"):
        load_detector("absent.pth")


def test_an_original_file_and_a_saved_folder_give_the_same(golden_detector, images, tmp_path):

    bert_tokenizer().save_pretrained(tmp_path / "tokenizer")
    original = load_detector(str(golden_detector.path), str(tmp_path / "tokenizer"))
    original._model.save_pretrained(tmp_path / "detector")
    bert_tokenizer().save_pretrained(tmp_path / "detector")
    folder = load_detector(str(tmp_path / "detector"))
    assert folder.hash == original.hash
    for one in (original, folder):
        one._shortest = 64
    assert detect(original, images[:1]) == detect(folder, images[:1])
