"""ControlNet/train_base.py: a base of one's own images, which the other scripts use as any base."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from diffusion_world import HEIGHT, WIDTH, Refusal
from script_runs import run_script

PLACE = "Germany"


@pytest.fixture(scope="module")
def fog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fog")
    for number in range(4):
        cv2.imwrite(str(folder / f"{number}.jpg"), np.full((HEIGHT, 2 * WIDTH, 3), 150 + 20 * number, np.uint8))
    return folder


def _command(base_folder: Path, city: Path, fog: Path, folder: Path) -> list[object]:
    return [
        "ControlNet/train_base.py", "--data_dir", city, "--place", PLACE, "--unlabelled", f"fog={fog}@Sweden",
        "--autoencoder", base_folder, "--model_size", "small", "--height", HEIGHT, "--width", WIDTH, "--batch_size", 2,
        "--output", folder / "base", "--logs_dir", folder / "logs", "--accelerator", "cpu", "--num_images", 1,
        "--steps", 1,
    ]  # fmt: skip


@pytest.mark.slow
def test_a_base_is_trained_resumed_and_used(
    base_folder: Path, city_folder: Path, fog: Path, tmp_path: Path, refused: Refusal
) -> None:
    command = _command(base_folder, city_folder, fog, tmp_path)
    result = run_script(*command, "--max_steps", 1000, "--max_minutes", 1e-4)
    assert result.returncode == 0, result.stderr
    assert "6 images: a street in Germany, on a clear day" in result.stdout
    assert "4 images: a street in Sweden, in fog" in result.stdout
    assert "run the same command again to resume" in result.stdout.splitlines()[-1]
    run = tmp_path / "logs/base"
    assert (run / "training.snapshot.pt").exists()
    steps = json.loads((tmp_path / "base/training.json").read_text())["steps"]

    changed = ["--max_steps", steps + 2, "--template", "a road[ in {place}][, {condition}]"]
    refused([*command, *changed], "saved with other settings", "data")

    result = run_script(*command, "--max_steps", steps + 2, "--images_every", steps + 2)
    assert result.returncode == 0, result.stderr
    assert "read" in result.stdout and "to resume" not in result.stdout
    scores = json.loads((tmp_path / "base/training.json").read_text())
    assert scores["finished"] and scores["steps"] == steps + 2
    assert not (run / "training.snapshot.pt").exists()
    assert cv2.imread(str(run / f"image_log/step_{steps + 2:06d}.png")).shape == (2 * HEIGHT, WIDTH, 3)
    assert any(run.rglob("metrics.csv")) and any(run.rglob("events.out.tfevents*"))
    refused([*command], "holds a base already", "--start_from")
    _check_use(tmp_path / "base", city_folder, tmp_path)


def _check_use(base_folder: Path, city: Path, folder: Path) -> None:
    """A ControlNet is made of the base, and its pairs and captions suit train.py and style_transfer.py."""
    from genval.diffusion.models.controlnet import add_control
    from genval.diffusion.models.pipelines import load_base
    from genval.diffusion.pairs import find_jsonl, read_pairs
    from genval.diffusion.sampling.generation import GenerationBatch, generate
    from genval.diffusion.settings import SamplingConfig
    from genval.diffusion.training.module import ControlNetModule
    from genval.diffusion.training.settings import TrainingConfig

    pairs = read_pairs(find_jsonl(str(base_folder / "captions/train.jsonl"), city), city)
    assert len(pairs) == 6 and {pair.caption for pair in pairs} == {"a street in Germany, on a clear day"}
    assert len(read_pairs(base_folder / "captions/val.jsonl", city)) == 3
    base = load_base(base_folder)
    assert base.scheduler_config["prediction_type"] == "v_prediction"
    # The words of the domains are single tokens.
    assert len(base.tokenizer("in snow").input_ids) == 4
    controlnet = add_control(base)
    ControlNetModule(base, controlnet, TrainingConfig(height=HEIGHT, width=WIDTH))
    masks = np.full((1, HEIGHT, WIDTH), 7, np.uint8)
    prompts = ["a street in Germany, in fog"]
    batch = GenerationBatch(masks, prompts, [""], [0])
    images = generate(base, controlnet.eval(), batch, SamplingConfig(steps=2)).images
    assert images.shape == (1, HEIGHT, WIDTH, 3)
    assert all(bool(weight.isfinite().all()) for weight in base.unet.parameters())


@pytest.mark.slow
def test_an_autoencoder_is_trained_where_none_is_given(city_folder: Path, fog: Path, tmp_path: Path) -> None:
    from genval.diffusion.training.base_run import _autoencoder, prepare_base
    from genval.diffusion.training.settings import BaseTrainingSettings
    from genval.runtime.flags import make_settings

    settings = make_settings(
        BaseTrainingSettings, data_dir=str(city_folder), unlabelled=(f"fog={fog}",), autoencoder_steps=2,
        height=HEIGHT, width=WIDTH, logs_dir=str(tmp_path), output="checkpoints/nowhere", accelerator="cpu",
        num_workers=2,
    )  # fmt: skip
    run = prepare_base(settings)
    vae = _autoencoder(run)
    written = (run.folder / "autoencoder/diffusion_pytorch_model.safetensors").stat().st_mtime_ns
    again = _autoencoder(run)  # resumed: read
    assert (run.folder / "autoencoder/diffusion_pytorch_model.safetensors").stat().st_mtime_ns == written
    states = vae.state_dict(), again.state_dict()
    assert all((states[0][name] == states[1][name]).all() for name in states[0])
    assert len(vae.config.block_out_channels) == 4


def test_bad_input_is_named(base_folder: Path, city_folder: Path, fog: Path, tmp_path: Path, refused: Refusal) -> None:
    command = _command(base_folder, city_folder, fog, tmp_path)
    refused([*command, "--unlabelled", f"nigth={fog}"], "night")
    refused([*command, "--unlabelled", f"fog={tmp_path}/nowhere"], "is not a folder")
    refused([*command, "--template", "a street"], "--template")
    refused([*command, "--condition_weights", "snow=2"], "no image shows")
    refused([*command, "--condition_weights", "fog=-1"], "above 0")
    refused([*command, "--caption_dropout", 0.9], "sum of up to 1")
    refused([*command, "--height", 24], "multiples of 32")
    refused([*command, "--autoencoder", tmp_path / "nowhere"], "No autoencoder")
    refused([*command, "--data_dir", tmp_path / "nowhere"], "Cityscapes")
    refused([*command, "--run", "../elsewhere"], "--run")
