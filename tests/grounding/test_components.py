"""Every detector and every model of the Segment Anything family against transformers' own processing."""

import json

import numpy as np
import pytest
import torch

from benchmarks.components.masks import TEXT_MASKS, TINY, clip_tokenizer, write_tiny
from genval.grounding.detector import DETECTORS, load_detector
from genval.grounding.outliner import OUTLINERS, load_outliner
from genval.grounding.text_masks import load_text_masker
from genval.runtime.errors import GenValError

SIZES = [(60, 90), (80, 40)]
BOXES = [(10.0, 10.0, 60.0, 50.0), (5.0, 20.0, 30.0, 70.0)]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """A function from a class to a folder with a small model of it, and the model."""
    made = {}

    def find(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            made[name] = folder, write_tiny(name, folder)
        return made[name]

    return find


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return [rng.integers(256, size=(*size, 3), dtype=np.uint8) for size in SIZES]


def test_every_type_of_the_registries_has_a_small_model():
    import transformers

    types = {getattr(transformers, name).config_class.model_type for name in TINY}
    assert types - {"sam3", "sam3_lite_text"} == {*DETECTORS, *OUTLINERS} - {"sam2_video", "sam3_video"}


@pytest.mark.parametrize("name", ["SamHQModel", "Sam3TrackerModel"])
def test_masks_equal_those_of_transformers(folder_of, images, name):
    import transformers

    folder, model = folder_of(name)
    outliner = load_outliner(str(folder))
    found = outliner.outline([outliner.prepare(image) for image in images], SIZES, BOXES)
    padded = {"longest_edge": outliner.side}, {"height": outliner.side, "width": outliner.side}
    if name == "SamHQModel":
        image_processor = transformers.SamImageProcessor(size=padded[0], pad_size=padded[1])
        processor = transformers.SamHQProcessor(image_processor)
    else:
        image_processor = transformers.Sam3ImageProcessor(size=padded[1])
        processor = transformers.Sam3TrackerProcessor(image_processor)
    for image, box, (mask, estimate) in zip(images, BOXES, found, strict=True):
        inputs = processor(images=image, input_boxes=[[list(box)]], return_tensors="pt")
        sizes = [inputs.pop(key) for key in ("original_sizes", "reshaped_input_sizes") if key in inputs]
        with torch.no_grad():
            output = model(**{key: value.float() for key, value in inputs.items()}, multimask_output=True)
        [masks] = processor.post_process_masks(output.pred_masks, *sizes)
        best = output.iou_scores[0, 0].argmax()
        # The images are rounded to whole numbers at another point.
        assert float((masks[0, best].numpy() == mask).mean()) > 0.97
        assert estimate == pytest.approx(float(output.iou_scores[0, 0, best]), abs=1e-3)


@pytest.mark.parametrize("name", ["MMGroundingDinoForObjectDetection", "Owlv2ForObjectDetection"])
def test_boxes_equal_those_of_transformers(folder_of, images, name):
    import transformers

    folder, model = folder_of(name)
    detector = load_detector(str(folder))
    inputs = [detector.prepare(image) for image in images]
    found = detector.detect(inputs, SIZES, "lion", 0.05, 0.05, 1.0)
    for image, size, detections in zip(images, SIZES, found, strict=True):
        if name == "Owlv2ForObjectDetection":
            processor = transformers.Owlv2Processor.from_pretrained(folder)
            given = processor(images=image, text=[["a photo of a lion"]], return_tensors="pt")
            with torch.no_grad():
                output = model(**given)
            [result] = processor.post_process_grounded_object_detection(output, 0.05, [size])
        else:
            image_processor = transformers.GroundingDinoImageProcessor.from_pretrained(folder)
            processor = transformers.GroundingDinoProcessor(image_processor, detector._tokenizer)
            given = processor(images=image, text="lion.", return_tensors="pt")
            with torch.no_grad():
                output = model(**given)
            [result] = processor.post_process_grounded_object_detection(output, given["input_ids"], 0.05, 0.05, [size])
        order = result["scores"].argsort(descending=True)
        assert len(detections) == len(order) > 0
        scores = [detection.score for detection in detections]
        np.testing.assert_allclose(scores, result["scores"][order], atol=2e-3)
        best = np.clip(result["boxes"][order[0]], 0, [size[1], size[0]] * 2)
        np.testing.assert_allclose(detections[0].box, best, atol=0.5)


@pytest.mark.parametrize("name", TEXT_MASKS)
def test_sam_3_segments_from_the_text(folder_of, images, name):
    import transformers

    folder, model = folder_of(name)
    masker = load_text_masker(str(folder))
    found = masker.detect(images, SIZES, "Lion.", 0.1, 0.1, 1.0)
    processor = transformers.Sam3Processor(
        transformers.Sam3ImageProcessor(size={"height": 56, "width": 56}), masker._tokenizer
    )
    for image, size, detections in zip(images, SIZES, found, strict=True):
        given = processor(images=image, text="lion", return_tensors="pt")
        with torch.no_grad():
            output = model(pixel_values=given["pixel_values"], **masker._tokenizer_inputs("lion"))
        [result] = processor.post_process_instance_segmentation(output, 0.1, 0.5, [size])
        order = result["scores"].argsort(descending=True)
        assert len(detections) == len(order) > 0
        np.testing.assert_allclose([one.score for one in detections], result["scores"][order], atol=2e-3)
        assert detections[0].phrase == "lion"
        assert detections[0].mask.shape == size and detections[0].mask.dtype == bool
        assert float((detections[0].mask == result["masks"][order[0]].bool().numpy()).mean()) > 0.97


def test_a_published_folder_of_sam_3_holds_both_models(tmp_path):
    """It is one of the model for videos, which consists of the detector and the tracker."""
    import transformers

    tracker = dict(TINY["Sam3TrackerModel"])
    tracker |= {"image_size": 56, "memory_attention_hidden_size": 16}
    config = transformers.Sam3VideoConfig(detector_config=TINY["Sam3Model"], tracker_config=tracker)
    model = transformers.Sam3VideoModel(config).eval()
    model.save_pretrained(tmp_path)
    clip_tokenizer().save_pretrained(tmp_path)
    outliner, masker = load_outliner(str(tmp_path)), load_text_masker(str(tmp_path))
    for ours, theirs in (
        (outliner._model.mask_decoder, model.tracker_model.mask_decoder),
        (outliner._model.vision_encoder.neck, model.tracker_neck),
        (outliner._model.vision_encoder.backbone, model.detector_model.vision_encoder.backbone),
        (masker._model, model.detector_model),
    ):
        expected = theirs.state_dict()
        assert ours.state_dict().keys() == expected.keys()
        assert all(torch.equal(value, expected[key]) for key, value in ours.state_dict().items())


def test_half_precision_runs(folder_of, images):
    for name in ("Owlv2ForObjectDetection", "Sam3Model"):
        load = load_text_masker if name == "Sam3Model" else load_detector
        detector = load(str(folder_of(name)[0]), precision="bf16-true")
        inputs = [detector.prepare(image) for image in images]
        assert all(detector.detect(inputs, SIZES, "lion", 0.0, 0.0, 1.0))


def test_two_names_are_two_queries(folder_of, images):
    detector = load_detector(str(folder_of("Owlv2ForObjectDetection")[0]))
    found = detector.detect([detector.prepare(image) for image in images], SIZES, "lion . polar bear", 0.0, 0.0, 1.0)
    assert {one.phrase for one in found[0]} <= {"lion", "polar bear"}
    alone = detector.detect([detector.prepare(images[1])], SIZES[1:], "lion . polar bear", 0.0, 0.0, 1.0)
    np.testing.assert_allclose(found[1][0].box, alone[0][0].box, atol=1e-3)


@pytest.mark.parametrize(
    ("load", "kind", "message"),
    [
        (load_detector, "owlvit", "type 'owlvit': expected 'grounding-dino' or 'mm-grounding-dino' or 'owlv2'"),
        (load_detector, "omdet-turbo", "type 'omdet-turbo': expected 'grounding-dino'"),
        (load_outliner, "edgetam", "type 'edgetam': expected 'sam' or 'sam_hq' or 'sam2' or 'sam3_tracker'"),
        (load_outliner, "sam3", "type 'sam3': expected 'sam'"),
        (load_text_masker, "sam3_tracker", "type 'sam3_tracker': expected 'sam3'"),
    ],
)
def test_others_are_refused_by_name(tmp_path, load, kind, message):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(GenValError, match=message):
        load(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "load", "changes"),
    [
        ("MMGroundingDinoForObjectDetection", load_detector, {"do_normalize": False}),
        ("MMGroundingDinoForObjectDetection", load_detector, {"rescale_factor": 1 / 127.5}),
        ("MMGroundingDinoForObjectDetection", load_detector, {"size": {"height": 64, "width": 64}}),
        ("MMGroundingDinoForObjectDetection", load_detector, {"size": 800}),
        ("Sam3Model", load_text_masker, {"do_rescale": False}),
        ("Sam3Model", load_text_masker, {"do_resize": False}),
        ("Sam3Model", load_text_masker, {"size": {"height": 56, "width": 112}}),
    ],
)
def test_another_preprocessing_is_refused(tmp_path, name, load, changes):
    write_tiny(name, tmp_path)
    load(str(tmp_path))
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(GenValError, match=rf"preprocessor_config\.json has .*{next(iter(changes))}"):
        load(str(tmp_path))


def test_quantised_models_and_adapters_are_refused(tmp_path):
    write_tiny("Sam2Model", tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": {"quant_method": "unknown"}}))
    with pytest.raises(GenValError, match="is quantised"):
        load_outliner(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(GenValError, match="adapter of peft"):
        load_outliner(str(tmp_path))
