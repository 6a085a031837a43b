"""The recipe of the small diffusion model: normalised latents, a tokenizer of whole words, and exact resuming."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from genval.diffusion.training.autoencoder import AutoencoderRecipe, encode_images, train_autoencoder
from genval.diffusion.training.base_model import DiffusionRecipe, build_tokenizer, train_diffusion
from genval.diffusion.training.loop import Snapshot
from genval.runtime import files
from genval.runtime.errors import GenValError
from mini.recipe import stages
from mini.recipe.data import load_captioned_images
from mini.recipe.settings import TrainSettings
from mini.recipe.stages import measured_part, train_stages

CPU = torch.device("cpu")
TEXTS = ["a narrow street with two cars, in fog", "a wide road with people, at night"] * 4
SMALL = {"block_out_channels": (32, 32), "text_width": 16, "text_layers": 1, "attention_heads": 2, "vocabulary": 200}


@pytest.fixture(scope="module")
def images():
    blocks = torch.rand(8, 3, 4, 8, generator=torch.Generator().manual_seed(0))
    return (torch.nn.functional.interpolate(blocks, scale_factor=8) * 255).byte()


@pytest.fixture(scope="module")
def autoencoder(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe") / "autoencoder"
    recipe = AutoencoderRecipe(block_out_channels=(16, 16), steps=30, batch_size=4, learning_rate=6e-3)
    return folder, train_autoencoder(images, recipe, folder, CPU, log=lambda _: None)


@pytest.mark.slow
def test_latents_have_zero_mean_and_unit_variance_a_channel(images, autoencoder):
    from diffusers import AutoencoderKL

    folder, metrics = autoencoder
    latents = encode_images(AutoencoderKL.from_pretrained(folder), images).float()
    assert latents.mean((0, 2, 3)).abs().max() < 0.02
    assert (latents.std((0, 2, 3)) - 1).abs().max() < 0.02
    assert metrics["psnr_db"] > 12  # an untrained one reaches 5 to 9 dB
    assert metrics["parameters"] > 0


def test_words_of_the_captions_are_single_tokens_and_others_still_have_some():
    tokenizer = build_tokenizer(TEXTS, DiffusionRecipe(**SMALL))
    words = tokenizer.convert_ids_to_tokens(tokenizer("A narrow street, in fog").input_ids)
    assert words[1:-1] == ["a</w>", "narrow</w>", "street</w>", ",</w>", "in</w>", "fog</w>"]
    assert tokenizer.get_vocab() == build_tokenizer(TEXTS, DiffusionRecipe(**SMALL)).get_vocab()
    smoke = tokenizer("smoke").input_ids[1:-1]
    assert len(smoke) > 1
    assert tokenizer.unk_token_id not in smoke


class _Killed(Exception):
    pass


@pytest.mark.slow
def test_a_stopped_run_resumes_to_the_same_weights(images, autoencoder, tmp_path):
    recipe = DiffusionRecipe(steps=6, batch_size=2, warmup_steps=2, snapshot_steps=4, **SMALL)

    def train(output, log):
        return train_diffusion(images, TEXTS, autoencoder[0], recipe, output, CPU, log=log)

    train(tmp_path / "whole", lambda _: None)

    def kill_at_the_end(line):
        if line.startswith("diffusion step 5"):
            raise _Killed

    with pytest.raises(_Killed):
        train(tmp_path / "stopped", kill_at_the_end)
    assert not (tmp_path / "stopped").exists()
    assert (tmp_path / "stopped.snapshot.pt").exists()
    metrics = train(tmp_path / "stopped", lambda _: None)
    assert not (tmp_path / "stopped.snapshot.pt").exists()
    assert metrics["loss"] > 0
    for part in ("unet/diffusion_pytorch_model", "text_encoder/model"):
        whole, resumed = (load_file(tmp_path / name / f"{part}.safetensors") for name in ("whole", "stopped"))
        assert all(torch.equal(whole[key], resumed[key]) for key in whole)


@pytest.mark.slow
def test_a_snapshot_of_other_settings_is_refused(images, autoencoder, tmp_path):
    def stop(line):
        if line.startswith("diffusion step 2"):
            raise _Killed

    recipe = DiffusionRecipe(steps=3, batch_size=2, snapshot_steps=2, **SMALL)
    with pytest.raises(_Killed):
        train_diffusion(images, TEXTS, autoencoder[0], recipe, tmp_path / "out", CPU, log=stop)
    other = DiffusionRecipe(steps=4, batch_size=2, snapshot_steps=2, **SMALL)
    with pytest.raises(GenValError, match="other settings"):
        train_diffusion(images, TEXTS, autoencoder[0], other, tmp_path / "out", CPU, log=stop)


def test_a_damaged_snapshot_is_named_and_the_one_before_is_taken(tmp_path, capsys):
    model, recipe = torch.nn.Linear(1, 1), DiffusionRecipe(**SMALL)
    snapshot = Snapshot(tmp_path / "out", recipe, {"model": model}, torch.Generator(), every=1)
    for step in (1, 2, 3):
        torch.nn.init.constant_(model.weight, step)
        snapshot.save(step)
    assert snapshot.load() == 3 and model.weight.item() == 3
    snapshot.path.write_bytes(snapshot.path.read_bytes()[:-200])
    assert snapshot.load() == 2 and model.weight.item() == 2
    assert f"{snapshot.path} is damaged" in capsys.readouterr().err
    snapshot.before.write_bytes(b"")
    assert snapshot.load() == 0
    snapshot.remove()
    assert not list(tmp_path.iterdir())


def test_images_and_masks_are_read_at_one_size(tmp_path):
    files.write_png(tmp_path / "a.png", np.full((8, 16, 3), 9, np.uint8))
    files.write_png(tmp_path / "m.png", np.full((8, 16), 7, np.uint8))
    record = {"image": "a.png", "conditioning_image": "m.png", "text": "a street"}
    files.write_jsonl(tmp_path / "list.jsonl", [record])
    data = load_captioned_images(tmp_path, "list.jsonl", 4, 8, masks=True)
    assert data.images.shape == (1, 3, 4, 8)
    assert data.label_ids is not None
    assert (data.label_ids == 7).all()
    files.write_jsonl(tmp_path / "list.jsonl", [{"image": "a.png"}])
    with pytest.raises(GenValError, match="text: expected a value"):
        load_captioned_images(tmp_path, "list.jsonl", 4, 8)
    files.write_jsonl(tmp_path / "list.jsonl", [])
    for absent in ("list.jsonl", "none.jsonl"):
        with pytest.raises(GenValError, match=r"lists no image.*mini/render\.py"):
            load_captioned_images(tmp_path, absent, 4, 8)


@pytest.mark.parametrize("stage, before", [("diffusion", "autoencoder"), ("inpainting", "diffusion")])
def test_a_stage_names_the_one_before_it(tmp_path, stage, before):
    with pytest.raises(GenValError, match=rf"is missing\. Run its stage first: --stages {before}"):
        train_stages(TrainSettings(output=str(tmp_path), stages=(stage,), accelerator="cpu"))


def test_the_controlnet_is_trained_on_the_device_of_the_other_stages(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(stages, "call", lambda *flags: calls.append([*map(str, flags)]))
    for accelerator, devices in [("cuda", "1"), ("cuda:0", "0,"), ("cuda:1", "1,")]:
        stages.controlnet_stage(TrainSettings(output=str(tmp_path), accelerator=accelerator))
        flags = calls[-1]
        assert flags[flags.index("--accelerator") + 1] == "gpu" and flags[flags.index("--devices") + 1] == devices
    stages.controlnet_stage(TrainSettings(output=str(tmp_path), accelerator="cpu"))
    assert "--devices" not in calls[-1] and calls[-1][calls[-1].index("--accelerator") + 1] == "cpu"


def test_too_few_images_to_hold_one_out_are_refused():
    assert measured_part(11).sum() == 1
    with pytest.raises(GenValError, match="Found 10 images, but at least 11 are needed"):
        measured_part(10)
