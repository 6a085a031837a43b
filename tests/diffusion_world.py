"""A random Stable Diffusion of 0.2 million parameters, its ControlNet, and a Cityscapes of nine small frames."""

from __future__ import annotations

import copy
import functools
import json
import runpy
import string
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
import torch

if TYPE_CHECKING:
    from genval.diffusion.models.pipelines import StableDiffusion

ROOT = Path(__file__).resolve().parents[1]
HEIGHT, WIDTH = 32, 64
TOKENS = 16
SCHEDULES = {
    "epsilon": {
        "_class_name": "PNDMScheduler",  # as Stable Diffusion 1.5 comes
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
    },
    "v_prediction": {
        "_class_name": "DDIMScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
        "clip_sample": False,
    },
}


def write_base(folder: Path, prediction_type: str = "v_prediction", cross_attention_dim: int = 32) -> Path:
    """Write a random Stable Diffusion (VAE factor 4, two UNet levels) in diffusers' folder layout."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = [*string.ascii_lowercase, ",", "."]
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    begin, end = vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=TOKENS)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokens),
            hidden_size=cross_attention_dim,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            bos_token_id=begin,
            eos_token_id=end,
            pad_token_id=end,
        )
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
        scaling_factor=0.5,
    )
    unet = UNet2DConditionModel(
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=cross_attention_dim,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    for name, part in (("vae", vae), ("text_encoder", text_encoder), ("tokenizer", tokenizer), ("unet", unet)):
        part.save_pretrained(folder / name)
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULES[prediction_type]))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    return folder


def write_xl_base(folder: Path) -> Path:
    """Write a random Stable Diffusion XL: two text encoders, sizes as conditions, two depths of attention."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    letters = [*string.ascii_lowercase, ",", "."]
    tokens = ["!", *letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    begin, end = vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]
    torch.manual_seed(0)

    def text_config(width: int, activation: str) -> CLIPTextConfig:
        return CLIPTextConfig(
            vocab_size=len(tokens),
            hidden_size=width,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            projection_dim=24,
            hidden_act=activation,
            bos_token_id=begin,
            eos_token_id=end,
            pad_token_id=end,
        )

    parts = {
        "tokenizer": CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=TOKENS),
        "tokenizer_2": CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=TOKENS, pad_token="!"),
        "text_encoder": CLIPTextModel(text_config(16, "quick_gelu")),
        "text_encoder_2": CLIPTextModelWithProjection(text_config(32, "gelu")),
        "vae": AutoencoderKL(
            block_out_channels=(8, 16, 16),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            norm_num_groups=4,
            scaling_factor=0.13025,
        ),
        "unet": UNet2DConditionModel(
            block_out_channels=(16, 32),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            transformer_layers_per_block=(1, 2),
            cross_attention_dim=16 + 32,
            attention_head_dim=(2, 4),
            norm_num_groups=8,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 24,
        ),
    }
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULES["epsilon"]))
    (folder / "model_index.json").write_text(
        json.dumps({"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True})
    )
    return folder


def write_cityscapes(folder: Path, height: int = HEIGHT, width: int = WIDTH) -> Path:
    """Write six training and three validation frames in Cityscapes' layout, and their training/*.jsonl."""
    rng = np.random.default_rng(0)
    ids = np.array([7, 8, 11, 21, 23, 24, 26, 255], dtype=np.uint8)
    for split, city, count in (("train", "aachen", 6), ("val", "lindau", 3)):
        lines = []
        for number in range(count):
            name = f"{city}_{number:06d}_000019"
            mask = cv2.resize(rng.choice(ids, (4, 8)), (width, height), interpolation=cv2.INTER_NEAREST)
            image = f"leftImg8bit/{split}/{city}/{name}_leftImg8bit.png"
            label = f"gtFine/{split}/{city}/{name}_gtFine_labelIds.png"
            for file, pixels in ((image, np.stack([mask * 3, mask * 5, mask * 7], -1)), (label, mask)):
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(folder / file), pixels)
            text = "a street, cars" if number % 2 else "trees"
            lines.append(json.dumps({"image": image, "conditioning_image": label, "text": text}))
        (folder / "training").mkdir(exist_ok=True)
        (folder / "training" / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@functools.cache
def _loaded(folder: Path) -> StableDiffusion:
    from genval.diffusion.models.pipelines import load_base

    return load_base(folder)


def copy_of_base(folder: Path) -> StableDiffusion:
    """What `load_base` gives, copied: loading takes longer than most of what is tested with it."""
    return copy.deepcopy(_loaded(folder))


class Refusal:
    """Runs a script in this process (a start of the libraries takes seconds) and expects a user's error."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch = monkeypatch
        self.capsys = capsys

    def __call__(self, command: Sequence[object], *words: str) -> None:
        """Exit code 2, and one line beginning with `error:` that has the words."""
        self.monkeypatch.setattr(sys, "argv", [str(argument) for argument in command])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(ROOT / str(command[0])), run_name="__main__")
        errors = [line for line in self.capsys.readouterr().err.splitlines() if line.startswith("error:")]
        assert stop.value.code == 2 and len(errors) == 1, errors
        for word in words:
            assert word in errors[0], errors[0]


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refusal:
    """`refused(command, *words)`: the script ends with a user's error that has the words."""
    return Refusal(monkeypatch, capsys)


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base with v-prediction on a zero-terminal-SNR schedule."""
    return write_base(tmp_path_factory.mktemp("base") / "stable-diffusion")


@pytest.fixture(scope="session")
def controlnet_folder(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ControlNet for it whose zero convolutions are not zero, so that masks matter."""
    from genval.diffusion.models.controlnet import add_control, save_controlnet
    from genval.diffusion.models.pipelines import load_base

    folder = tmp_path_factory.mktemp("controlnet") / "controlnet"
    controlnet = add_control(load_base(base_folder), hint_init="hinges")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in controlnet.named_parameters():
            if name.startswith(("controlnet_down", "controlnet_mid", "controlnet_cond_embedding.conv_out")):
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    save_controlnet(controlnet, folder)
    return folder


@pytest.fixture(scope="session")
def city_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Cityscapes, for reading only."""
    return write_cityscapes(tmp_path_factory.mktemp("city") / "cityscapes")
