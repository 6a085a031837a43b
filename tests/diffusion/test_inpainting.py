from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusion_world import SCHEDULES, write_base, write_xl_base
from inpainting_world import widened

from genval.diffusion.inpainting.model import (
    InpaintingBatch,
    InpaintingConfig,
    inpaint_latents,
    inpainting_channels,
    load_inpainting,
    make_inpainter,
    save_inpainting,
    start_inpainting,
)
from genval.diffusion.models.pipelines import StableDiffusion, checkpoint_hash, load_base
from genval.diffusion.original.writing import save_original
from genval.diffusion.sampling import generation as sampling
from genval.diffusion.sampling.generation import item_noise, make_scheduler
from genval.runtime.errors import GenValError

PROMPTS = ["a photo of a lion", "a photo of an owl", "lion"]
SIDE = 32


@pytest.fixture(scope="module", params=sorted(SCHEDULES))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> StableDiffusion:
    base = load_base(write_base(tmp_path_factory.mktemp("base") / "b", request.param))
    base.unet = widened(base.unet).eval()
    return base


def batch(count: int, negative_prompts: tuple[str, ...] = ("", "dark", "")) -> InpaintingBatch:
    rng = np.random.default_rng(3)
    masks = np.zeros((count, SIDE, SIDE), bool)
    for i in range(count):
        masks[i, 8 : 20 + 4 * i, 6:22] = True
    images = rng.integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)
    return InpaintingBatch(images, masks, PROMPTS[:count], negative_prompts[:count], [1, 2, 3][:count])


def pipeline_latents(
    pipeline: Any, model: StableDiffusion, config: InpaintingConfig, negative_prompts: list[str] | None
) -> torch.Tensor:
    """What diffusers makes of `batch(2)`, with our noise and with latents by the posterior's mean."""
    given = batch(2)
    noise = item_noise(given.seeds, (4, SIDE // 4, SIDE // 4))
    pixels = torch.from_numpy(given.images).permute(0, 3, 1, 2) / 127.5 - 1
    masks = torch.from_numpy(given.masks)
    if config.denoising_strength < 1:
        pipeline.prepare_latents = lambda *_, timestep, **__: (
            pipeline.scheduler.add_noise(model.encode_pixels(pixels), noise, timestep),
            noise,
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        PROMPTS[:2],
        image=pixels,
        mask_image=masks[:, None].float(),
        masked_image_latents=inpainting_channels(model, pixels, masks)[:, 1:],
        negative_prompt=negative_prompts,
        num_inference_steps=config.steps,
        guidance_scale=config.guidance_scale,
        strength=config.denoising_strength,
        latents=noise,
        height=SIDE,
        width=SIDE,
        output_type="latent",
    ).images


@pytest.mark.parametrize(
    ("sampler", "guidance", "strength"), [("ddim", 15.0, 1.0), ("ddim", 7.5, 0.65), ("dpm++", 1.0, 0.65)]
)
def test_loop_agrees_with_the_diffusers_pipeline(
    model: StableDiffusion, sampler: str, guidance: float, strength: float
) -> None:
    from diffusers import StableDiffusionInpaintPipeline

    config = InpaintingConfig(5, guidance, strength, sampler)
    ours = inpaint_latents(make_inpainter(model, config), batch(2), config)
    pipeline = StableDiffusionInpaintPipeline(
        vae=model.vae,
        text_encoder=model.text_encoder,
        tokenizer=model.tokenizer,
        unet=model.unet,
        scheduler=make_scheduler(model.scheduler_config, sampler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    theirs = pipeline_latents(pipeline, model, config, ["", "dark"])
    scale = theirs.abs().max()
    assert scale > 0.5
    torch.testing.assert_close(ours / scale, theirs / scale, atol=2e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("strength", [1.0, 0.65])
def test_stable_diffusion_xl_agrees_with_the_diffusers_pipeline(tmp_path: Path, strength: float) -> None:
    from diffusers import StableDiffusionXLInpaintPipeline

    model: Any = load_base(write_xl_base(tmp_path / "xl"))
    model.unet = widened(model.unet).eval()
    config = InpaintingConfig(4, 5.0, strength)
    ours = inpaint_latents(make_inpainter(model, config), batch(2, ("", "")), config)
    pipeline = StableDiffusionXLInpaintPipeline(
        vae=model.vae,
        text_encoder=model.text_encoder,
        text_encoder_2=model.text_encoder_2,
        tokenizer=model.tokenizer,
        tokenizer_2=model.tokenizer_2,
        unet=model.unet,
        scheduler=make_scheduler(model.scheduler_config, "ddim"),
        add_watermarker=False,
    )
    theirs = pipeline_latents(pipeline, model, config, None)
    scale = theirs.abs().max()
    torch.testing.assert_close(ours / scale, theirs / scale, atol=5e-5, rtol=0)


def test_an_item_does_not_depend_on_its_batch(model: StableDiffusion) -> None:
    config = InpaintingConfig(2, 3.0, 0.65)
    denoiser = make_inpainter(model, config)
    together = start_inpainting(denoiser, batch(3), config)().images
    assert together.shape == (3, SIDE, SIDE, 3) and together.dtype == np.uint8
    for i in range(3):
        alone = start_inpainting(denoiser, batch(3).rows([i]), config)().images[0]
        assert np.abs(alone.astype(int) - together[i]).max() <= 1
    assert np.abs(together[0].astype(int) - together[1]).max() > 8


def test_what_is_hidden_counts_only_below_full_strength(model: StableDiffusion) -> None:
    given, config = batch(1), InpaintingConfig(2, 3.0)
    other = InpaintingBatch(
        np.where(given.masks[..., None], 255 - given.images, given.images),
        given.masks,
        given.prompts,
        given.negative_prompts,
        given.seeds,
    )
    inpainted = [inpaint_latents(make_inpainter(model, config), one, config) for one in (given, other)]
    torch.testing.assert_close(*inpainted, atol=1e-5, rtol=0)
    config = InpaintingConfig(2, 3.0, 0.65)
    inpainted = [inpaint_latents(make_inpainter(model, config), one, config) for one in (given, other)]
    assert (inpainted[0] - inpainted[1]).abs().max() > 0.01


def test_a_bad_image_is_sampled_again(model: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    config, calls = InpaintingConfig(1, 3.0), []
    decode = type(model).decode_latents

    def flawed(self: Any, latents: torch.Tensor) -> torch.Tensor:
        calls.append(len(latents))
        pixels = decode(self, latents)
        if len(calls) == 1:
            pixels[1] = float("nan")
        return pixels

    monkeypatch.setattr(type(model), "decode_latents", flawed)
    inpainted = start_inpainting(make_inpainter(model, config), batch(3), config)()
    assert (
        calls == [3, 1]
        and inpainted.retries == [0, 1, 0]
        and inpainted.seeds[::2] == [1, 3]
        and inpainted.seeds[1] != 2
    )
    monkeypatch.setattr(sampling, "_BLACK", 255)
    with pytest.raises(GenValError, match="Black or non-finite images"):
        start_inpainting(make_inpainter(model, config), batch(1), config)()


def test_parts_are_shared_with_another_folder(inpainting_folder: Path, base_folder: Path, tmp_path: Path) -> None:
    assert sorted(path.name for path in inpainting_folder.iterdir()) == ["model_index.json", "unet"]
    model, base = load_inpainting(inpainting_folder), load_base(base_folder)
    assert model.unet.config.in_channels == 9 and model.scheduler_config == base.scheduler_config
    for ours, theirs in zip(model.vae.parameters(), base.vae.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert checkpoint_hash(inpainting_folder) != checkpoint_hash(base_folder)
    # A part that is here goes before the shared one, and shared weights count in the hash.
    text_encoder = load_base(base_folder).text_encoder
    with torch.no_grad():
        text_encoder.get_input_embeddings().weight.mul_(2)
    for name, encoder in (("without", None), ("with", text_encoder)):
        save_inpainting(model.unet, tmp_path / name, str(base_folder), "fp32", encoder)
    own = load_inpainting(tmp_path / "with").text_encoder.get_input_embeddings().weight
    assert torch.equal(own, text_encoder.get_input_embeddings().weight)
    assert checkpoint_hash(tmp_path / "without") == checkpoint_hash(inpainting_folder)
    assert checkpoint_hash(tmp_path / "with") != checkpoint_hash(inpainting_folder)
    save_inpainting(model.unet, tmp_path / "lost", "../nowhere")
    with pytest.raises(GenValError, match=r"has no .*vae/config\.json"):
        load_inpainting(tmp_path / "lost")


@pytest.mark.slow
def test_the_original_format_is_read(inpainting_folder: Path, tmp_path: Path) -> None:
    model = load_inpainting(inpainting_folder)
    save_original(model, None, tmp_path / "sd-v1-5-inpainting.ckpt")
    again = load_inpainting(tmp_path / "sd-v1-5-inpainting.ckpt")
    assert again.unet.config.in_channels == 9
    assert all(
        torch.equal(ours, theirs) for ours, theirs in zip(model.unet.parameters(), again.unet.parameters(), strict=True)
    )
    config = InpaintingConfig(1, 3.0)
    inpainted = [start_inpainting(make_inpainter(one, config), batch(1), config)().images for one in (model, again)]
    assert np.array_equal(*inpainted)


def test_another_model_is_refused(base_folder: Path) -> None:
    with pytest.raises(GenValError, match="is not an inpainting model: expected a UNet with 9 input channels"):
        load_inpainting(base_folder)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"steps": 0}, "--steps"),
        ({"denoising_strength": 0}, "--denoising_strength"),
        ({"denoising_strength": 1.2}, "--denoising_strength"),
        ({"denoising_strength": float("nan")}, "--denoising_strength"),
        ({"steps": 1, "denoising_strength": 0.5}, "leaves no step"),
        ({"guidance_scale": float("nan")}, "--guidance_scale"),
        ({"sampler": "lcm"}, "--sampler"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(GenValError, match=words):
        InpaintingConfig(**settings)


def test_steps_taken_are_the_published_ones() -> None:
    assert InpaintingConfig(50, 7.5, 0.65).taken == 32 and InpaintingConfig().taken == 50


def test_a_size_that_does_not_suit_is_refused(model: StableDiffusion) -> None:
    config, given = InpaintingConfig(1), batch(1)
    cut = InpaintingBatch(given.images[:, :30], given.masks[:, :30], *[["x"]] * 2, [1])
    with pytest.raises(GenValError, match="multiples of 8, found 30x32"):
        start_inpainting(make_inpainter(model, config), cut, config)()
