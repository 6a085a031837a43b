import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusion_world import HEIGHT, WIDTH, write_xl_base
from safetensors.torch import load_file, save_file

from genval.diffusion.models.controlnet import add_control, load_controlnet, save_controlnet
from genval.diffusion.models.hints import encode_hint
from genval.diffusion.models.pipelines import StableDiffusionXL, TextStates, checkpoint_hash, load_base
from genval.diffusion.sampling.generation import GenerationBatch, generate, item_noise, make_scheduler, sample_latents
from genval.diffusion.settings import SamplingConfig
from genval.runtime.errors import GenValError

pytestmark = pytest.mark.slow  # whole networks and files, in other libraries for the most part

PROMPTS = ["a street, in fog", "trees, in fog"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_xl_base(tmp_path_factory.mktemp("xl") / "base")


@pytest.fixture(scope="module")
def models(folder: Path) -> tuple[StableDiffusionXL, Any]:
    base = load_base(folder)
    assert isinstance(base, StableDiffusionXL)
    controlnet = add_control(base, hint_init="hinges")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in controlnet.named_parameters():
            if name.startswith(("controlnet_down", "controlnet_mid", "controlnet_cond_embedding.conv_out")):
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return base, controlnet


def masks() -> np.ndarray:
    return np.random.default_rng(3).choice(np.array([7, 11, 23, 26, 255], np.uint8), (2, HEIGHT, WIDTH))


@pytest.mark.parametrize("guidance", [5.0, 1.0])
def test_loop_agrees_with_the_diffusers_pipeline(models: tuple[StableDiffusionXL, Any], guidance: float) -> None:
    from diffusers import StableDiffusionXLControlNetPipeline

    base, controlnet = models
    config = SamplingConfig(4, guidance)
    ours = sample_latents(base, controlnet, GenerationBatch(masks(), PROMPTS, ["", ""], [1, 2]), config)
    pipeline = StableDiffusionXLControlNetPipeline(
        vae=base.vae,
        text_encoder=base.text_encoder,
        text_encoder_2=base.text_encoder_2,
        tokenizer=base.tokenizer,
        tokenizer_2=base.tokenizer_2,
        unet=base.unet,
        controlnet=controlnet,
        scheduler=make_scheduler(base.scheduler_config, "ddim"),
        add_watermarker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        PROMPTS,
        image=encode_hint(torch.from_numpy(masks())),
        num_inference_steps=4,
        guidance_scale=guidance,
        latents=item_noise([1, 2], (4, HEIGHT // 4, WIDTH // 4)),
        height=HEIGHT,
        width=WIDTH,
        output_type="latent",
    ).images
    scale = theirs.abs().max()
    assert scale > 0.5
    torch.testing.assert_close(ours / scale, theirs / scale, atol=2e-5, rtol=0)


def test_empty_prompts_are_zeros_where_the_base_says_so(models: tuple[StableDiffusionXL, Any], folder: Path) -> None:
    base, _ = models
    text = base.encode_text(["", "a car"])
    assert text.pooled is not None and text.states.shape == (2, 16, 48) and text.pooled.shape == (2, 24)
    assert not text.states[0].any() and not text.pooled[0].any() and text.states[1].any()
    index = folder / "model_index.json"
    before = index.read_text()
    index.write_text(before.replace("true", "false"))
    try:
        assert load_base(folder).encode_text([""]).states.any()
    finally:
        index.write_text(before)


def test_the_images_size_is_a_condition(models: tuple[StableDiffusionXL, Any]) -> None:
    base, _ = models
    added = base.added_conditions(base.encode_text(["a", "b"]), 512, 1024)
    assert added["time_ids"].tolist() == [[512, 1024, 0, 0, 512, 1024]] * 2
    with pytest.raises(ValueError, match="pooled"):
        base.added_conditions(TextStates(torch.zeros(1, 16, 48)), 32, 32)


def test_half_precision_keeps_the_vae_in_full(models: tuple[StableDiffusionXL, Any], folder: Path) -> None:
    base = load_base(folder, dtype=torch.float16)
    assert base.unet.dtype == base.text_encoder_2.dtype == torch.float16 and base.vae.dtype == torch.float32
    images = torch.randint(0, 256, (1, 3, HEIGHT, WIDTH), dtype=torch.uint8)
    latents = base.encode_images(images)
    assert latents.dtype == torch.float16 and base.decode_latents(latents).dtype == torch.float32
    torch.testing.assert_close(latents.float(), models[0].encode_images(images), atol=2e-3, rtol=2e-3)
    assert load_base(folder, dtype=torch.bfloat16).vae.dtype == torch.bfloat16


def test_control_is_saved_and_fits_only_its_base(
    models: tuple[StableDiffusionXL, Any], controlnet_folder: Path, base_folder: Path, tmp_path: Path
) -> None:
    base, controlnet = models
    save_controlnet(controlnet, tmp_path / "c")
    again = load_controlnet(tmp_path / "c", base)
    assert all(torch.equal(one, other) for one, other in zip(controlnet.parameters(), again.parameters(), strict=True))
    with pytest.raises(GenValError, match="does not fit the base"):
        load_controlnet(controlnet_folder, base)
    with pytest.raises(GenValError, match="addition_embed_type text_time instead of None"):
        load_controlnet(tmp_path / "c", load_base(base_folder))


def test_an_image(models: tuple[StableDiffusionXL, Any]) -> None:
    generated = generate(*models, GenerationBatch(masks(), PROMPTS, ["", "dark"], [1, 2]), SamplingConfig(2, 3.0))
    assert generated.images.shape == (2, HEIGHT, WIDTH, 3)


def test_a_folder_without_the_second_encoder_is_refused(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    assert checkpoint_hash(broken) == checkpoint_hash(folder)
    weights = broken / "text_encoder_2/model.safetensors"
    save_file({key: value + 1 for key, value in load_file(weights).items()}, weights, {"format": "pt"})
    assert checkpoint_hash(broken) != checkpoint_hash(folder)
    weights.unlink()
    with pytest.raises(GenValError, match=r"has no text_encoder_2/model\.safetensors"):
        load_base(broken)
