"""The converters against what the original code gave with the same weights, and against the full-size key lists."""

import gzip
import json

import numpy as np
import pytest
import torch

from genval.grounding import groundingdino_keys, original, sam_keys
from genval.grounding.detector import _MEAN, _STD, Detector
from genval.grounding.original import load_groundingdino, load_sam
from genval.grounding.outliner import Outliner
from genval.runtime.errors import GenValError
from genval.runtime.paths import REPO_ROOT

GOLDEN = REPO_ROOT / "tests" / "golden"


@pytest.mark.parametrize("case", ["a", "b", "c"])
def test_groundingdino_gives_what_the_original_gives(golden_detector, case):
    model, arrays = Detector(load_groundingdino(golden_detector.path), None)._model, golden_detector.arrays
    pixel_mask = torch.from_numpy(arrays[f"{case}/in/pixel_mask"]).long()
    pixels = torch.zeros(len(pixel_mask), 3, *pixel_mask.shape[1:])
    mean, std = (torch.tensor(values)[:, None, None] for values in (_MEAN, _STD))
    for index in range(len(pixels)):
        image = torch.from_numpy(arrays[f"{case}/in/image_u8_{index}"]) / 255
        pixels[index, :, : image.shape[1], : image.shape[2]] = (image - mean) / std
    names = ("input_ids", "attention_mask", "token_type_ids")
    text = {name: torch.from_numpy(arrays[f"{case}/in/{name}"]) for name in names}
    with torch.no_grad():
        output = model(pixel_values=pixels, pixel_mask=pixel_mask, **text)
    logits = arrays[f"{case}/out/pred_logits"]
    np.testing.assert_allclose(output.logits[..., : logits.shape[-1]].numpy(), logits, atol=1e-3)
    np.testing.assert_allclose(output.pred_boxes.numpy(), arrays[f"{case}/out/pred_boxes"], atol=1e-4)


def test_segment_anything_gives_what_the_original_gives(golden_sam):
    arrays = golden_sam.arrays
    outliner = Outliner(load_sam(golden_sam.path))
    image, boxes = arrays["in/image"], arrays["in/boxes"]
    prepared = outliner.prepare(image)
    np.testing.assert_array_equal(prepared, arrays["in/resized"])
    pixels = outliner._normalised(prepared)[None]
    np.testing.assert_allclose(pixels.numpy(), arrays["in/pixel_values"], atol=1e-6)
    prompts = torch.from_numpy(arrays["in/boxes_in_input_frame"])[None]
    for kind, several in (("single", False), ("multi", True)):
        with torch.no_grad():
            output = outliner._model(pixel_values=pixels, input_boxes=prompts, multimask_output=several)
        expected = arrays[f"out/{kind}_low_res_logits"]
        np.testing.assert_allclose(output.pred_masks[0].numpy(), expected, atol=1e-5)
        np.testing.assert_allclose(output.iou_scores[0].numpy(), arrays[f"out/{kind}_iou"], atol=1e-5)
    # The whole way from an image and a box: the best of three masks.
    size = (image.shape[0], image.shape[1])
    outlined = outliner.outline([prepared] * 2, [size] * 2, [tuple(box) for box in boxes.tolist()])
    best = arrays["out/multi_iou"].argmax(axis=1)
    for index, (mask, estimate) in enumerate(outlined):
        low = torch.from_numpy(arrays["out/multi_low_res_logits"][index, best[index]])
        expected = outliner.to_size(low[None, None], prepared.shape[:2], size)[0, 0] > 0
        assert (mask == expected.numpy()).mean() > 0.999
        assert estimate == pytest.approx(arrays["out/multi_iou"][index].max(), abs=1e-5)


def test_masks_come_to_the_size_of_the_image_as_the_original_does_it(golden_sam):
    arrays = golden_sam.arrays
    outliner = Outliner(load_sam(golden_sam.path))
    low = torch.from_numpy(arrays["out/single_low_res_logits"])
    logits = outliner.to_size(low, arrays["in/resized"].shape[:2], arrays["in/image"].shape[:2])
    np.testing.assert_allclose(logits.numpy(), arrays["out/single_logits_at_image_size"], atol=1e-5)
    np.testing.assert_array_equal(logits.numpy() > 0, arrays["out/single_masks"])


def full_size(file, name, also=()):
    lists = json.loads(gzip.decompress((GOLDEN / file).read_bytes()))
    entries = lists[name] | (lists["may_also_be_present"] if also else {})
    return {key: torch.empty(shape, device="meta") for key, (shape, *_) in entries.items()}


@pytest.mark.parametrize("also", [False, True])
def test_every_key_of_the_published_detector_has_its_place(tmp_path, also):
    from transformers import GroundingDinoConfig, GroundingDinoForObjectDetection

    state = full_size("groundingdino_swint_keys.json.gz", "groundingdino_swint", also)
    arguments = (groundingdino_keys, lambda config: GroundingDinoConfig(**config), GroundingDinoForObjectDetection)
    model = original.build(tmp_path / "file.pth", "GroundingDINO", state, *arguments, device="meta")
    assert model.config.backbone_config.depths == [2, 2, 6, 2]
    assert model.config.text_config.num_attention_heads == 12


def test_every_key_of_the_published_sam_has_its_place(tmp_path):
    from transformers import SamConfig, SamModel

    state = full_size("sam_vit_h_keys.json.gz", "sam_vit_h")
    arguments = (sam_keys, lambda config: SamConfig(**config), SamModel)
    model = original.build(tmp_path / "file.pth", "Segment Anything", state, *arguments, device="meta")
    vision = model.config.vision_config
    assert (vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads) == (1280, 32, 16)
    assert list(vision.global_attn_indexes) == [7, 15, 23, 31]
    assert vision.window_size == 14
    assert model.config.mask_decoder_config.layer_norm_eps == 1e-5


def test_a_file_that_is_not_whole_is_refused_with_its_keys(golden_sam, tmp_path):
    path = tmp_path / "sam_tiny.pth"
    (tmp_path / "sam_tiny").symlink_to(golden_sam.path.with_suffix(""))
    state = dict(golden_sam.state)
    del state["mask_decoder.iou_token.weight"]
    state["mask_decoder.stray.weight"] = torch.zeros(2)
    state["prompt_encoder.no_mask_embed.weight"] = torch.zeros(1, 3)
    torch.save(state, path)
    with pytest.raises(GenValError) as caught:
        load_sam(path)
    missing, unexpected, shapes = str(caught.value).split("; ")[:3]
    assert missing.endswith("mask_decoder.iou_token.weight")
    assert unexpected == "unexpected: mask_decoder.stray.weight"
    assert "prompt_encoder.no_mask_embed.weight (1, 3)" in shapes


def test_files_of_another_kind_are_refused(golden_sam, golden_detector, tmp_path):
    with pytest.raises(GenValError, match="is not GroundingDINO in its original format"):
        load_groundingdino(golden_sam.path)
    with pytest.raises(GenValError, match="is not Segment Anything in its original format"):
        load_sam(golden_detector.path)


def test_damaged_and_missing_files_are_refused(tmp_path):
    (tmp_path / "torn.pth").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(GenValError, match="cannot be read"):
        load_sam(tmp_path / "torn.pth")
    with pytest.raises(GenValError, match="does not exist"):
        load_sam(tmp_path / "absent.pth")
