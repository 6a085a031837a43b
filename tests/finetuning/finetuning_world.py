"""A tiny Cityscapes with both splits, images with generated objects, and a small network with random weights."""

import json

import numpy as np
import pytest
import torch

from genval.runtime.files import write_jsonl, write_png

SIZE = (64, 128)


def street(seed):
    """A street: sky above, a road below; the class is visible in the red channel."""
    generator = np.random.default_rng(seed)
    label_ids = np.full(SIZE, 23, np.uint8)
    label_ids[28:] = 7
    label_ids[30:40, 10 + seed : 30 + seed] = 26
    image = generator.integers(0, 100, (*SIZE, 3)).astype(np.uint8)
    image[..., 0] += 4 * label_ids
    return image, label_ids


def write_streets(root):
    for split, city, number in (("train", "aachen", 4), ("val", "munster", 2)):
        for index in range(number):
            image, label_ids = street(index + (10 if split == "val" else 0))
            name = f"{city}_{index:06d}_000019"
            write_png(root / f"cityscapes/leftImg8bit/{split}/{city}/{name}_leftImg8bit.png", image)
            write_png(root / f"cityscapes/gtFine/{split}/{city}/{name}_gtFine_labelIds.png", label_ids)


def write_objects(root, city="aachen"):
    """Two images of a lion, in frames of the city."""
    lines = []
    for index in range(2):
        image, label_ids = street(index)
        mask = np.zeros(SIZE, np.uint8)
        mask[34:44, 50:66] = 255
        image[mask > 0] = (250, 200, 30 + index)
        positions = root / "with_positions/lion"
        write_png(root / f"refined/lion/{index}.png", image)
        write_png(root / f"masks/lion/{index}_mask.png", mask)
        write_png(positions / f"{index}.png", image)
        write_png(positions / f"{index}_gt.png", label_ids)
        box = {f"{index}.png": {"pos_mask": [30, 48], "size_mask": 20}}
        (positions / f"{index}_pos.json").write_text(json.dumps(box))
        lines.append({"id": f"lion/{index}", "object": "lion", "source": f"{city}_{index:06d}_000019"})
    write_jsonl(root / "with_positions/manifest.jsonl", lines)


def write_fog(root):
    """Generated fog of two frames of train and one of val, in the layout of style_transfer.py."""
    for number, (split, city, index) in enumerate(
        (("train", "aachen", 0), ("train", "aachen", 1), ("val", "munster", 0))
    ):
        image, label_ids = street(index + (10 if split == "val" else 0))
        name = f"fog_{number}_{city}_{index:06d}_000019"
        write_png(root / f"fog/leftImg8bit/{split}/{city}/{name}_leftImg8bit.png", image // 2 + 100 + number)
        write_png(root / f"fog/gtFine/{split}/{city}/{name}_gtFine_labelIds.png", label_ids)


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A folder with `cityscapes`, `objects` (frames of train) and `net.pth`, an LRASPP of torchvision."""
    from torchvision import models

    root = tmp_path_factory.mktemp("finetuning")
    write_streets(root)
    write_objects(root / "objects")
    torch.manual_seed(0)
    network = models.get_model("lraspp_mobilenet_v3_large", weights=None, weights_backbone=None, num_classes=19)
    torch.save(network.state_dict(), root / "net.pth")
    return root


@pytest.fixture
def settings(world, tmp_path):
    """A function that makes settings of a short run on the CPU; keywords are flags."""
    from genval.finetuning.settings import FinetuneSettings
    from genval.runtime.flags import make_settings

    def make(**flags):
        defaults = dict(
            segmenter=f"torchvision:lraspp_mobilenet_v3_large,{world}/net.pth",
            outliers=str(world / "objects"),
            datasets_dir=str(world),
            output=str(tmp_path / "output"),
            logs_dir=str(tmp_path / "logs"),
            run="run",
            crop_size=(48, 96),
            batch_size=4,
            max_steps=4,
            val_every=0,
            checkpoint_every=2,
            num_workers=1,
            accelerator="cpu",
            devices="1",
            lr=1e-3,
            warmup_steps=0,
        )
        return make_settings(FinetuneSettings, **{**defaults, **flags})

    return make
