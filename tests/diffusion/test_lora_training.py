"""A LoRA trained on unlabelled images, on a random model of 0.2 million parameters."""

import json
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
from diffusion_world import HEIGHT, WIDTH, Refusal, copy_of_base
from script_runs import run_script

from genval.diffusion.models.lora import add_lora, fuse_lora, merged_unet, save_lora
from genval.diffusion.models.pipelines import StableDiffusion, TextStates
from genval.diffusion.pairs import Pair
from genval.diffusion.training.data import ControlNetData, encode_pairs
from genval.diffusion.training.lora_run import captioned_images
from genval.diffusion.training.module import LoraModule
from genval.diffusion.training.settings import LoraTrainingSettings, TrainingConfig
from genval.runtime.errors import GenValError
from genval.runtime.flags import make_settings
from genval.training.runs import latest_checkpoint, make_trainer

TARGETS = ("to_q", "to_out.0", "conv1")
SMALL: dict[str, Any] = {
    "height": HEIGHT,
    "width": WIDTH,
    "batch_size": 2,
    "accumulate": 2,
    "max_steps": 4,
    "lr": 1e-2,
    "gradient_clip": 1.0,
    "ema": 0.5,
}


def images_of(city: Path) -> list[Path]:
    return sorted((city / "leftImg8bit/train/aachen").iterdir())


def make_module(base: StableDiffusion, rank: int = 2, **changes: Any) -> LoraModule:
    return LoraModule(base, add_lora(base.unet, rank, 4, TARGETS), TrainingConfig(**{**SMALL, **changes}))


def train(
    base_folder: Path, city: Path, folder: Path, checkpoint: Path | None = None, rank: int = 2, **changes: Any
) -> LoraModule:
    minutes = changes.pop("max_minutes", None)
    module = make_module(copy_of_base(base_folder), rank, **changes)
    pairs = [Pair(image, None, "a street") for image in images_of(city)]
    trainer = make_trainer(
        folder, module.config, len(pairs), accelerator="cpu", devices=1, checkpoint_every=100, max_minutes=minutes
    )
    trainer.fit(module, ControlNetData(pairs, module.config, 1), ckpt_path=checkpoint, weights_only=True)
    return module


def filled(lora: torch.nn.ParameterDict) -> None:
    """Make the second matrices, which are zero before the training, random."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in lora.items():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


def predict(unet: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    noisy, text = torch.randn(1, 4, 8, 16, generator=generator), torch.randn(1, 16, 32, generator=generator)
    with torch.no_grad():
        prediction: torch.Tensor = unet(noisy, torch.tensor([500]), text, return_dict=False)[0]
    return prediction


@pytest.mark.slow
def test_a_stopped_and_resumed_training_is_the_whole(base_folder: Path, city_folder: Path, tmp_path: Path) -> None:
    whole = train(base_folder, city_folder, tmp_path / "whole")
    stopped = train(base_folder, city_folder, tmp_path / "halves", max_minutes=1e-9)
    assert stopped.trainer.global_step == 1
    middle = latest_checkpoint(tmp_path / "halves")
    assert middle is not None and middle.name == "step=1.ckpt"
    halves = train(base_folder, city_folder, tmp_path / "halves", middle)
    saved = torch.load(middle, weights_only=True)["state_dict"]
    assert {key.split(".")[0] for key in saved} == {"lora", "average"}
    for name, value in whole.trained.items():
        assert torch.equal(value, halves.trained[name]), name
        assert not torch.equal(value, whole.lora[name]), name  # averaged
    for name, tensor in copy_of_base(base_folder).unet.named_parameters():
        kept = dict(whole.base.unet.named_parameters())
        assert torch.equal(tensor, kept.get(name, kept.get(name.replace(".weight", ".base_layer.weight"), tensor)))
    with pytest.raises(GenValError, match="--rank and --target_modules"):
        train(base_folder, city_folder, tmp_path / "halves", middle, rank=3)


@pytest.mark.slow
def test_training_lowers_the_loss(base_folder: Path, city_folder: Path, tmp_path: Path) -> None:
    """Measured on fixed noise, before and after."""

    def loss(module: LoraModule) -> float:
        pairs = [Pair(image, None, "a street") for image in images_of(city_folder)]
        cache = encode_pairs(module.base, pairs, module.config, workers=1)
        text = TextStates(cache.texts.states[:1].expand(len(pairs), -1, -1).float())
        with torch.no_grad():
            losses = [
                module.denoising_loss(cache.latents[0, 0].float(), None, text, torch.Generator().manual_seed(seed))
                for seed in range(8)
            ]
        return float(sum(losses))

    before = loss(make_module(copy_of_base(base_folder)))
    after = loss(train(base_folder, city_folder, tmp_path / "run", max_steps=40, accumulate=1, ema=0.0))
    assert after < 0.97 * before


def test_the_file_is_read_by_style_transfer_and_by_diffusers(base_folder: Path, tmp_path: Path) -> None:
    """With the scale alpha / rank, which is 2 here; the UNet before the LoRA differs."""
    from diffusers import StableDiffusionPipeline

    plain, base = copy_of_base(base_folder), copy_of_base(base_folder)
    lora = add_lora(base.unet, 2, 4, TARGETS)
    torch.testing.assert_close(predict(base.unet), predict(plain.unet))
    filled(lora)
    expected = predict(base.unet)
    assert (expected - predict(plain.unet)).abs().max() > 1e-2
    torch.testing.assert_close(predict(merged_unet(base.unet, lora)), expected, atol=1e-5, rtol=1e-4)
    save_lora(base.unet, lora, tmp_path)
    pipeline = StableDiffusionPipeline(
        plain.vae, plain.text_encoder, plain.tokenizer, copy_of_base(base_folder).unet, None, None, None, None, False
    )
    pipeline.load_lora_weights(tmp_path)
    torch.testing.assert_close(predict(pipeline.unet), expected, atol=1e-5, rtol=1e-4)
    assert fuse_lora(plain.unet, tmp_path) == len(lora) // 2
    torch.testing.assert_close(predict(plain.unet), expected, atol=1e-5, rtol=1e-4)


def test_the_base_is_rounded_and_the_lora_is_not(base_folder: Path) -> None:
    module = make_module(copy_of_base(base_folder), ema=0.0)
    filled(module.lora)
    before = {name: parameter.clone() for name, parameter in module.lora.items()}
    module._freeze(torch.bfloat16)
    assert module.base.dtype == torch.bfloat16
    assert all(torch.equal(parameter, before[name]) for name, parameter in module.lora.items())


def test_gradient_checkpointing_gives_the_same_gradients(base_folder: Path) -> None:
    found = []
    for changes in ({}, {"gradient_checkpointing": True}):
        module = make_module(copy_of_base(base_folder), ema=0.0, **changes)
        filled(module.lora)
        generator = torch.Generator().manual_seed(0)
        latents, text = torch.randn(2, 4, 8, 16, generator=generator), torch.randn(2, 16, 32, generator=generator)
        module.denoising_loss(latents, None, TextStates(text), generator).backward()
        found.append({name: parameter.grad for name, parameter in module.lora.items()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], msg=name)
        assert gradient is not None and gradient.any()


def test_unknown_layers_are_refused(base_folder: Path) -> None:
    with pytest.raises(GenValError, match="ends in 'to_x'"):
        add_lora(copy_of_base(base_folder).unet, 2, 2, ("to_q", "to_x"))


def test_prompts_of_the_images(city_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = images_of(city_folder)[0]
    captions, phrasings = tmp_path / "captions.json", tmp_path / "phrasings.txt"
    captions.write_text(json.dumps({"set": {f"x/{first.name}": "trees"}}))
    phrasings.write_text("in fog\nin mist\n")

    def prompts(**flags: Any) -> list[str]:
        settings = make_settings(LoraTrainingSettings, images=str(first.parent), **flags)
        return [pair.caption for pair in captioned_images(settings, lambda prompt: True)]

    assert prompts(domain="fog") == ["a street, in fog"] * 6
    assert prompts(prompt="smoke", caption="", prompt_template="{domain}: {caption}") == ["in smoke:"] * 6
    assert set(prompts(domain="fog", prompt_file=str(phrasings))) == {"a street, in fog", "a street, in mist"}
    with pytest.raises(GenValError, match="no caption for 5 images"):
        prompts(domain="fog", captions=str(captions))
    assert prompts(domain="fog", captions=str(captions), skip_bad=True) == ["trees, in fog"]
    assert capsys.readouterr().out.count("skipped ") == 5
    with pytest.raises(GenValError, match="matches no image"):
        captioned_images(make_settings(LoraTrainingSettings, images=str(tmp_path), domain="fog"), lambda prompt: True)


@pytest.mark.slow
def test_the_preset_of_the_mini_world(city_folder: Path, tmp_path: Path) -> None:
    command = ["ControlNet/train_lora.py", "--preset", "mini", "--images", city_folder / "leftImg8bit/train"]
    command += ["--domain", "fog", "--output", tmp_path / "lora", "--logs_dir", tmp_path / "logs", "--max_steps", 2]
    done = run_script(*command, "--batch_size", 2, "--images_every", 0, "--accelerator", "cpu")
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "logs/0/settings.json").read_text())["settings"]
    assert written["base"] == "checkpoints/mini/stable-diffusion"
    assert (written["height"], written["width"]) == (128, 256)
    assert "Trained 2 steps on 6 images" in done.stdout


@pytest.mark.slow
def test_from_images_to_a_lora_and_its_bad_input(
    base_folder: Path, controlnet_folder: Path, city_folder: Path, tmp_path: Path, refused: Refusal
) -> None:
    size = ["--base", base_folder, "--height", HEIGHT, "--width", WIDTH, "--accelerator", "cpu", "--steps", 2]
    command = ["ControlNet/train_lora.py", "--images", city_folder / "leftImg8bit/train", "--domain", "fog", *size]
    command += ["--output", tmp_path / "lora", "--logs_dir", tmp_path / "logs", "--batch_size", 2, "--num_images", 2]
    dry = run_script(*command, "--dry_run")
    assert "Would train 150 steps of 2 x 1 x 1" in dry.stdout and "on 6 images" in dry.stdout, dry.stderr
    assert not (tmp_path / "logs").exists()
    done = run_script(*command, "--max_steps", 2, "--images_every", 2, "--cache_latents", "--save_dtype", "fp16")
    assert done.returncode == 0, done.stderr
    file = tmp_path / "lora/pytorch_lora_weights.safetensors"
    assert f"Trained 2 steps on 6 images: wrote {file}" in done.stdout and file.exists()
    assert cv2.imread(str(tmp_path / "logs/0/image_log/step_000002.png")).shape == (2 * HEIGHT, 2 * WIDTH, 3)
    transfer = ["ControlNet/style_transfer.py", *size, "--controlnet", controlnet_folder, "--data_dir", city_folder]
    transfer += ["--domain", "fog", "--lora", tmp_path / "lora", "--num_samples", 2, "--output_dir", tmp_path / "out"]
    done = run_script(*transfer)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "out/fog/manifest.jsonl").read_text().splitlines()
    assert len(lines) == 2 and json.loads(lines[0])["lora_hash"]

    refused(command, "holds a LoRA already", "--overwrite")
    command += ["--overwrite", "--run", "other"]
    refused([*command, "--target_modules", "none"], "--target_modules", "'none'")
    refused([*command, "--max_minutes", 0], "--max_minutes")
    refused([*command, "--images", tmp_path / "none"], "--images", "matches no image")
    refused([word for word in command if word not in ("--domain", "fog")], "--domain and --prompt")
    assert not (tmp_path / "logs/other").exists()
