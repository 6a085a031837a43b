"""The recipe of the inpainting model: crops as the stage cuts them, a wider UNet that begins as the narrow one."""

import random

import cv2
import numpy as np
import pytest
import torch
from diffusion_world import write_base

from genval.runtime import files
from genval.runtime.errors import GenValError
from mini.recipe.inpainting import (
    InpaintingRecipe,
    ObjectCrops,
    _Task,
    box_masks,
    cut_crop,
    load_object_crops,
    train_inpainting,
    widened,
)

CPU = torch.device("cpu")
SMALL = InpaintingRecipe(size=32, variants=2, steps=3, batch_size=2)


def test_the_box_holds_the_object_and_the_crop_the_box():
    rng = random.Random(0)
    for _ in range(200):
        side = rng.randint(10, 44)
        top, left = rng.randint(0, 64 - side), rng.randint(0, 128 - side)
        frame = np.zeros((64, 128, 3), np.uint8)
        frame[top : top + side, left : left + side] = 255
        crop, (y0, x0, y1, x1) = cut_crop(frame, (top, left, side), SMALL, rng)
        assert crop.shape == (32, 32, 3)
        assert y1 - y0 == pytest.approx(32 / 1.5, abs=1.1) and x1 - x0 == pytest.approx(32 / 1.5, abs=1.1)
        assert min(y0, x0) >= 0 and max(y1, x1) <= 32
        outside = crop[..., 0].astype(int)
        outside[y0:y1, x0:x1] = 0
        # A pixel of rounding at the box's edges, where the object touches it.
        assert cv2.erode((outside > 128).astype(np.uint8), np.ones((3, 3))).sum() == 0
        assert crop[y0:y1, x0:x1].mean() > 255 * 0.35  # the object fills at least 1 / 1.5 of the box's side


def test_a_wide_unet_answers_as_the_narrow_one_at_first():
    from diffusers import UNet2DConditionModel

    levels = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
    narrow = UNet2DConditionModel(
        block_out_channels=(16,), layers_per_block=1, cross_attention_dim=32, norm_num_groups=8, **levels
    ).eval()
    wide = widened(narrow).eval()
    latents, extra_channels = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 8, 8)
    states = torch.randn(2, 3, 32)
    with torch.no_grad():
        expected = narrow(latents, 3, states).sample
        torch.testing.assert_close(wide(torch.cat([latents, extra_channels], 1), 3, states).sample, expected)


def test_masks_are_one_inside_the_box():
    masks = box_masks(torch.tensor([[1, 2, 3, 4], [0, 0, 4, 1]]), 4)
    assert masks[0, 0].tolist() == [[0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0]]
    assert masks[1, 0].sum(1).tolist() == [1, 1, 1, 1]


def write_images(folder, count=4):
    rng = np.random.default_rng(0)
    lines = []
    for number, name in zip(range(count), ("lion", "sofa", "", "vase") * count, strict=False):
        files.write_png(folder / f"{number}.png", rng.integers(0, 255, (64, 128, 3), dtype=np.uint8))
        lines.append({"image": f"{number}.png", "object": name, "box": [20, 30, 24], "text": f"a photo of a {name}"})
    files.write_jsonl(folder / "training/objects.jsonl", lines)
    return folder


def test_lines_without_a_large_enough_object_are_passed_over(tmp_path):
    crops = load_object_crops(write_images(tmp_path), SMALL, None, 2)
    assert crops.names == ["lion", "lion", "sofa", "sofa", "vase", "vase"]
    assert crops.images.shape == (6, 3, 32, 32) and crops.boxes.shape == (6, 4)
    assert not torch.equal(crops.boxes[0], crops.boxes[1]) or not torch.equal(crops.images[0], crops.images[1])
    again = load_object_crops(tmp_path, SMALL, None, 1)
    assert torch.equal(again.images, crops.images) and torch.equal(again.boxes, crops.boxes)
    with pytest.raises(GenValError, match="--training_objects"):
        load_object_crops(tmp_path, InpaintingRecipe(least_side=0.5), None, 1)
    with pytest.raises(GenValError, match="missing"):
        load_object_crops(tmp_path / "training", SMALL, None, 1)


def test_prompts_are_sentences_names_or_nothing_in_the_shares_asked():
    task = object.__new__(_Task)
    task._recipe, task._none = SMALL, 9
    task._texts, task._names = torch.tensor([0, 1]), torch.tensor([2, 3])
    chosen = torch.tensor([0, 1]).repeat(2000)
    rows = task.sample_prompts(chosen, torch.Generator().manual_seed(0))
    assert (rows == 9).float().mean() == pytest.approx(0.12, abs=0.02)
    asked = rows != 9
    assert ((rows[asked] == chosen[asked]) | (rows[asked] == chosen[asked] + 2)).all()
    assert (rows[asked] > 1).float().mean() == pytest.approx(0.4, abs=0.03)


@pytest.mark.slow
def test_a_trained_folder_is_what_the_stage_loads(tmp_path):
    from genval.diffusion.inpainting.model import load_inpainting

    base = write_base(tmp_path / "base")
    crops = load_object_crops(write_images(tmp_path), SMALL, None, 1)
    crops = ObjectCrops(crops.images, crops.boxes, crops.texts, crops.names, torch.tensor([True] * 2 + [False] * 4))
    metrics = train_inpainting(crops, base, SMALL, tmp_path / "inpainting", CPU, log=lambda _: None)
    assert metrics["steps"] == 3 and metrics["loss"] > 0 and metrics["crops"] == 4
    assert metrics["box_loss_right_name"] > 0
    assert sorted(path.name for path in (tmp_path / "inpainting").iterdir()) == [
        "model_index.json", "text_encoder", "unet"
    ]  # fmt: skip
    model = load_inpainting(tmp_path / "inpainting")
    assert model.unet.config.in_channels == 9
    # The new inputs are heard, and the text encoder is the trained one.
    assert model.unet.conv_in.weight[:, 4:].abs().max() > 0
    from transformers import CLIPTextModel

    before = CLIPTextModel.from_pretrained(base / "text_encoder").state_dict()
    assert any(not torch.allclose(before[key], value.float(), atol=1e-4)
               for key, value in model.text_encoder.state_dict().items())  # fmt: skip
