import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from diffusion_world import HEIGHT, WIDTH

from genval.datasets.labels import IGNORE, PALETTE
from genval.diffusion.models.controlnet import load_controlnet
from genval.diffusion.models.pipelines import load_base
from genval.diffusion.pairs import read_pairs
from genval.diffusion.settings import SamplingConfig
from genval.diffusion.training.log import ImageLog, mask_agreement
from genval.diffusion.training.module import ControlNetModule
from genval.diffusion.training.settings import TrainingConfig
from genval.runtime.files import write_png


class ColourReader(torch.nn.Module):
    """A segmenter that knows the class by its colour in the palette."""

    name = "colour reader"

    def forward(self, images: torch.Tensor, size: tuple[int, int] | None = None) -> torch.Tensor:
        palette = torch.from_numpy(PALETTE[:19].astype(np.float32))
        return -(images.float()[:, None] - palette[None, :, :, None, None]).square().sum(2)


class Constant(torch.nn.Module):
    """A segmenter that sees one class everywhere."""

    name = "constant"

    def __init__(self, train_id: int) -> None:
        super().__init__()
        self.train_id = train_id

    def forward(self, images: torch.Tensor, size: tuple[int, int] | None = None) -> torch.Tensor:
        return torch.eye(19)[self.train_id].reshape(1, 19, 1, 1).expand(len(images), 19, *images.shape[2:])


def test_agreement_is_the_miou_of_the_masks_classes() -> None:
    target = np.array([[[0, 0, 10, 10], [0, 0, IGNORE, 10]]], np.uint8)
    assert mask_agreement(ColourReader(), PALETTE[target], target) == 1
    wrong = target.copy()
    wrong[0, 0, 0] = 10  # road painted as sky: IoU 3/4 and 3/4
    assert mask_agreement(ColourReader(), PALETTE[wrong], target) == pytest.approx(0.75)
    wrong[0, 0, 0] = 13  # a class no mask has: road 3/4, sky 1
    assert mask_agreement(ColourReader(), PALETTE[wrong], target) == pytest.approx(0.875)


def test_the_best_controlnet_is_kept(
    base_folder: Path, controlnet_folder: Path, city_folder: Path, tmp_path: Path
) -> None:
    base = load_base(base_folder)
    config = TrainingConfig(height=HEIGHT, width=WIDTH, batch_size=2)
    module = ControlNetModule(base, load_controlnet(controlnet_folder, base), config)
    pairs = read_pairs(city_folder / "training/val.jsonl", city_folder)

    def log(train_id: int) -> ImageLog:
        return ImageLog(tmp_path, pairs, 1, SamplingConfig(steps=1), Constant(train_id))

    record = tmp_path / "best/agreement.json"
    low = log(16).write(module, 1)  # trains are on no mask
    assert low == 0 and json.loads(record.read_text()) == {"step": 1, "mask_agreement": 0.0}
    high = log(0).write(module, 2)
    assert high is not None and high > 0
    assert json.loads(record.read_text())["step"] == 2
    log(16).write(module, 3)  # another callback, as of a resumed run
    assert json.loads(record.read_text()) == {"step": 2, "mask_agreement": high}
    kept = load_controlnet(tmp_path / "best", base).state_dict()
    assert all(torch.equal(value, module.trained.state_dict()[key]) for key, value in kept.items())
    assert cv2.imread(str(tmp_path / "image_log/step_000003.png")).shape == (3 * HEIGHT, 3 * WIDTH, 3)


def test_images_do_not_depend_on_the_batch_size(
    base_folder: Path, controlnet_folder: Path, city_folder: Path, tmp_path: Path
) -> None:
    base = load_base(base_folder)
    pairs = read_pairs(city_folder / "training/val.jsonl", city_folder)
    logged: list[Any] = []
    for batch_size in (1, 3):
        config = TrainingConfig(height=HEIGHT, width=WIDTH, batch_size=batch_size)
        module = ControlNetModule(base, load_controlnet(controlnet_folder, base), config)
        assert ImageLog(tmp_path, pairs, 1, SamplingConfig(steps=1)).write(module, batch_size) is None
        logged.append(cv2.imread(str(tmp_path / f"image_log/step_{batch_size:06d}.png")).astype(int))
    assert np.abs(logged[0] - logged[1]).max() <= 2
    assert not (tmp_path / "best").exists()


def test_the_image_log_that_an_interrupted_run_has_not_written_is_written_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    monkeypatch.setattr(ImageLog, "write", lambda self, module, step: written.append(step))
    trainer: Any = SimpleNamespace(global_step=4, is_global_zero=True, loggers=[])
    module: Any = None
    log = ImageLog(tmp_path, [], 2, SamplingConfig(steps=1))
    log.on_train_start(trainer, module)
    log.on_train_batch_end(trainer, module, None, None, 0)  # of an accumulated step
    assert written == [4]
    write_png(tmp_path / "image_log/step_000004.png", np.zeros((2, 2, 3), np.uint8))
    again = ImageLog(tmp_path, [], 2, SamplingConfig(steps=1))
    again.on_train_start(trainer, module)
    again.on_train_batch_end(trainer, module, None, None, 0)
    assert written == [4]
