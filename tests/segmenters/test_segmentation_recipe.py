"""The training of the small segmenters: augmentation, weights, and the whole way at a few steps."""

import pytest
import torch

import path_dicts
from genval.runtime.errors import GenValError
from genval.runtime.paths import REPO_ROOT, resolve
from genval.segmenters import load_segmenter
from mini.recipe.segmentation import (
    AUGMENTATIONS,
    IGNORE,
    SEGMENTER_RECIPES,
    Augmentation,
    _blur,
    _change_colours,
    _class_weights,
    _schedule,
    augment,
    specification,
    train_segmenter,
    weights_file,
)

CPU = torch.device("cpu")


def random_data(count, height=64, width=128, classes=19, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8)
    train_ids = torch.randint(0, classes, (count, height, width), generator=generator, dtype=torch.uint8)
    train_ids[:, :8] = IGNORE
    return images, train_ids


def test_the_named_mini_segmenters_are_the_recipes():
    folder = REPO_ROOT / "checkpoints" / "mini" / "segmenters"
    for name, listed in path_dicts.MINI_SEGMENTERS.items():
        prefix, _, rest = listed.partition(":")
        paths = ",".join(str(resolve(part)) for part in rest.split(","))
        assert f"{prefix}:{paths}" == specification(name, folder)
    assert path_dicts.MINI_SEGMENTERS.keys() <= SEGMENTER_RECIPES.keys()
    assert {recipe.augmentation for recipe in SEGMENTER_RECIPES.values()} == AUGMENTATIONS.keys()


QUICK_RECIPES = ("mini-pspnet-r18", "mini-segformer-hf")  # one of each file format


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK_RECIPES else pytest.param(name, marks=pytest.mark.slow) for name in SEGMENTER_RECIPES],
)
def test_training_saves_what_the_registry_reads(tmp_path, name):
    images, train_ids = random_data(2)
    figures = train_segmenter(
        name, images, train_ids, tmp_path, val_images=images, val_train_ids=train_ids, device=CPU, steps=2,
        batch_size=2, log=lambda line: None,
    )  # fmt: skip
    assert figures["steps"] == 2
    assert 0.2e6 < figures["parameters"] < 1.5e6
    assert figures["bytes"] == weights_file(name, tmp_path).stat().st_size < 0.8e6
    assert 0 <= figures["val_miou"] <= 1
    logits = load_segmenter(specification(name, tmp_path), CPU)(images)
    assert logits.shape == (2, 19, 64, 128)
    assert logits.isfinite().all()


def quick_training(folder, images, train_ids, **settings):
    """Train `mini-semfpn-r18` on the CPU and validate it on the same images."""
    settings = {"batch_size": 4, "device": CPU, "log": lambda line: None} | settings
    return train_segmenter(
        "mini-semfpn-r18", images, train_ids, folder, val_images=images, val_train_ids=train_ids, **settings
    )


@pytest.mark.slow
def test_training_learns(tmp_path):
    palette = torch.tensor([[200, 30, 30], [30, 200, 30], [30, 30, 200]], dtype=torch.uint8)
    blocks = torch.randint(0, 3, (8, 4, 8), generator=torch.Generator().manual_seed(0))
    train_ids = blocks.repeat_interleave(16, 1).repeat_interleave(16, 2).byte()
    images = palette[train_ids.long()].permute(0, 3, 1, 2).contiguous()
    figures = quick_training(tmp_path, images, train_ids, steps=80, num_classes=3)
    assert figures["val_miou"] > 0.5  # chance is 0.2
    assert figures["val_iou"]["sky"] is None


@pytest.mark.slow
def test_training_repeats(tmp_path):
    states = []
    for folder in ("a", "b"):
        quick_training(tmp_path / folder, *random_data(4), steps=3)
        states.append(torch.load(weights_file("mini-semfpn-r18", tmp_path / folder), weights_only=True)["state_dict"])
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_a_time_budget_ends_the_training(tmp_path):
    images, train_ids = random_data(2)
    figures = quick_training(tmp_path, images, train_ids, steps=100_000, seconds=0.2)
    assert 0 < figures["steps"] < 100_000


def test_bad_training_data_is_refused(tmp_path):
    images, train_ids = random_data(2)

    def train(name="mini-fast-scnn", images=images, train_ids=train_ids, classes=19):
        train_segmenter(
            name, images, train_ids, tmp_path, val_images=images, val_train_ids=train_ids, device=CPU,
            num_classes=classes,
        )  # fmt: skip

    with pytest.raises(GenValError, match="Unknown recipe 'unet'"):
        train("unet")
    with pytest.raises(GenValError, match="divisible by 64"):
        train(images=images[..., :100], train_ids=train_ids[..., :100])
    with pytest.raises(GenValError, match="uint8 images"):
        train(images=images.float())
    with pytest.raises(GenValError, match="uint8 train ids"):
        train(train_ids=train_ids[:1])
    with pytest.raises(GenValError, match=r"Train ids must be 0..10 or 255"):
        train(classes=11)


@pytest.mark.parametrize("kind", AUGMENTATIONS)
@pytest.mark.parametrize("half", [False, True])
def test_augmented_batches(kind, half):
    images, train_ids = random_data(6)
    generator = torch.Generator().manual_seed(0)
    pixels, labels = augment(images, train_ids, AUGMENTATIONS[kind], half, generator)
    assert pixels.shape == (6, 3, 32, 64) if half else (6, 3, 64, 128)
    assert (pixels.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert set(labels.unique().tolist()) <= {*range(19), IGNORE}
    again = augment(images, train_ids, AUGMENTATIONS[kind], half, torch.Generator().manual_seed(0))
    assert torch.equal(pixels, again[0])
    assert torch.equal(labels, again[1])


def test_images_and_labels_move_together():
    """Where the label is a function of the colour, it still is after the augmentation, and padding is ignored."""
    train_ids = torch.zeros(16, 64, 128, dtype=torch.uint8)
    train_ids[:, 20:40, 30:90] = 1
    images = (train_ids * 250 + 3).unsqueeze(1).repeat(1, 3, 1, 1)
    pixels, labels = augment(images, train_ids, Augmentation(flip=True), False, torch.Generator().manual_seed(3))
    red = pixels[:, 0] * 58.395 + 123.675
    assert (red[labels == 1] > 120).float().mean() > 0.98
    assert (red[labels == 0] < 130).float().mean() > 0.98
    outside = labels == IGNORE
    assert outside.any()
    assert (pixels[:, 0][outside].abs() < 2.2).all()


def test_colour_changes_keep_grey_and_brightness_adds():
    grey = torch.full((64, 3, 8, 8), 100.0)
    generator = torch.Generator().manual_seed(0)
    turned = _change_colours(grey, Augmentation(saturation=1, hue=36), generator)
    torch.testing.assert_close(turned, grey, rtol=0, atol=1e-3)
    brighter = _change_colours(grey, Augmentation(brightness=50), generator)
    assert 20 < (brighter - 100).abs().max() <= 50
    assert (brighter == 100).flatten(1).all(1).float().mean() == pytest.approx(0.5, abs=0.2)


def test_blur_is_a_gaussian_and_zero_leaves_alone():
    pixels = torch.zeros(2, 3, 21, 21)
    pixels[:, :, 10, 10] = 1
    blurred = _blur(pixels, torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(blurred[0], pixels[0])
    assert blurred[1, 0].sum() == pytest.approx(1, abs=1e-5)
    assert (blurred[1, 0, 10, 11] / blurred[1, 0, 10, 10]).item() == pytest.approx(torch.tensor(-0.5).exp().item())


def test_class_weights_and_schedule():
    train_ids = torch.zeros(1, 100, 100, dtype=torch.uint8)
    train_ids[:, :10], train_ids[:, 10] = 1, 2
    train_ids[:, 11, :2] = 3
    weights = _class_weights(train_ids, 19)
    assert weights[0] == 0.5
    assert weights[3] == 4
    assert (weights[4:] == 1).all()
    values = [_schedule(step / 100) for step in range(101)]
    assert max(values) == pytest.approx(1, abs=1e-6)
    assert values[0] == values[-1] == pytest.approx(0.01)
