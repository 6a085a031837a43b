"""Masks of both versions of Segment Anything: one by one, in batches, and with boxes in the image's pixels."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from genval.grounding.outliner import fitted_size, load_outliner
from genval.runtime.errors import GenValError

SIZES = [(40, 40), (30, 52), (100, 70)]
BOXES = [(4.0, 5.0, 30.0, 33.0), (10.0, 2.0, 50.0, 29.0), (0.0, 20.0, 66.0, 90.0)]


@pytest.fixture(scope="module", params=["sam", "sam2"])
def outliner(request, grounding_models):
    return load_outliner(str(getattr(grounding_models, request.param)))


@pytest.fixture
def images():
    return [np.random.default_rng(0).integers(256, size=(*size, 3), dtype=np.uint8) for size in SIZES]


def test_a_batch_gives_what_single_images_give(outliner, images):
    prepared = [outliner.prepare(image) for image in images]
    together = outliner.outline(prepared, SIZES, BOXES)
    for index, (mask, estimate) in enumerate(together):
        alone, estimate_alone = outliner.outline([prepared[index]], [SIZES[index]], [BOXES[index]])[0]
        assert mask.shape == SIZES[index] and mask.dtype == bool
        assert (mask == alone).mean() > 0.99
        assert estimate == pytest.approx(estimate_alone, abs=1e-5)


def test_the_box_is_given_in_the_models_pixels(outliner, images, monkeypatch):
    seen = {}
    model = outliner._model

    def spy(**arguments):
        seen.update(arguments)
        return model(**arguments)

    monkeypatch.setattr(outliner, "_model", spy)
    outliner.outline([outliner.prepare(images[1])], [SIZES[1]], [BOXES[1]])
    # 30x52 becomes 37x64, or is stretched to 64x64.
    factors = (64 / 52, 64 / 30 if outliner.stretches else 37 / 30)
    expected = torch.tensor(BOXES[1]) * torch.tensor(factors * 2)
    torch.testing.assert_close(seen["input_boxes"][0, 0], expected)
    assert seen["pixel_values"].shape == (1, 3, 64, 64)


def test_the_longer_side_is_fitted():
    assert fitted_size(96, 160, 64) == (38, 64)
    assert fitted_size(1024, 512, 1024) == (1024, 512)


def test_half_precision_runs(grounding_models, images):
    outliner = load_outliner(str(grounding_models.sam), "bf16-true")
    mask, estimate = outliner.outline([outliner.prepare(images[0])], SIZES[:1], BOXES[:1])[0]
    assert mask.shape == SIZES[0] and np.isfinite(estimate)


def test_values_that_are_not_finite_are_an_error(grounding_models, images):
    outliner = load_outliner(str(grounding_models.sam))
    outliner._model.mask_decoder.iou_token.weight.data[:] = float("nan")
    with pytest.raises(GenValError, match="not finite"):
        outliner.outline([outliner.prepare(images[0])], SIZES[:1], BOXES[:1])


@pytest.mark.parametrize("fault", ["another kind", "unexpected", "missing"])
def test_sam_hq_is_not_loaded_as_sam(grounding_models, tmp_path, fault):
    """Its config's type begins like Segment Anything's, and its weights contain all of Segment Anything's."""
    folder = shutil.copytree(grounding_models.sam, tmp_path / "sam")
    config = json.loads((folder / "config.json").read_text())
    state = load_file(folder / "model.safetensors")
    if fault == "another kind":
        config["model_type"] = "sam_hq"
    if fault == "unexpected":
        state["mask_decoder.hq_token.weight"] = torch.zeros(1, 16)
    if fault == "missing":
        del state["mask_decoder.iou_token.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    match = {
        "another kind": r"weights of a SamHQModel.*missing_keys.*mask_decoder.hq_",
        "unexpected": r"SamModel, or not only.*hq_token",
        "missing": r"SamModel, or not only.*iou_token",
    }[fault]
    with pytest.raises(GenValError, match=match):
        load_outliner(str(folder))


def test_an_original_file_of_sam_hq_is_refused(golden_sam, tmp_path):
    shutil.copytree(golden_sam.path.with_suffix(""), tmp_path / "sam")
    torch.save(golden_sam.state | {"mask_decoder.hf_token.weight": torch.zeros(1, 16)}, tmp_path / "sam.pth")
    with pytest.raises(GenValError, match=r"unexpected: mask_decoder\.hf_token\.weight"):
        load_outliner(str(tmp_path / "sam.pth"))


def test_a_model_of_another_kind_is_refused(grounding_models):
    with pytest.raises(GenValError, match="of type 'grounding-dino': expected 'sam'"):
        load_outliner(str(grounding_models.detector))
