from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusion_world import HEIGHT, SCHEDULES, WIDTH, write_base

from genval.diffusion.models.controlnet import load_controlnet
from genval.diffusion.models.hints import encode_hint
from genval.diffusion.models.pipelines import StableDiffusion, load_base
from genval.diffusion.sampling import generation as sampling
from genval.diffusion.sampling.generation import GenerationBatch, generate, item_noise, make_scheduler, sample_latents
from genval.diffusion.settings import SamplingConfig
from genval.runtime.errors import GenValError

PROMPTS = ["a street, in fog", "trees, in fog", "a car"]


@pytest.fixture(scope="module", params=sorted(SCHEDULES))
def models(
    request: pytest.FixtureRequest, controlnet_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[StableDiffusion, Any]:
    base = load_base(write_base(tmp_path_factory.mktemp("base") / "b", request.param))
    return base, load_controlnet(controlnet_folder, base)


def masks(count: int) -> np.ndarray:
    rng = np.random.default_rng(3)
    return rng.choice(np.array([7, 11, 23, 26, 255], np.uint8), (count, HEIGHT, WIDTH))


@pytest.mark.parametrize(
    ("sampler", "guidance", "strength"),
    [("ddim", 8.0, 1.0), ("ddim", 1.0, 1.0), ("dpm++", 3.0, 0.7), ("unipc", 3.0, 1.0)],
)
def test_loop_agrees_with_the_diffusers_pipeline(
    models: tuple[StableDiffusion, Any], sampler: str, guidance: float, strength: float
) -> None:
    from diffusers import StableDiffusionControlNetPipeline

    base, controlnet = models
    config = SamplingConfig(5, guidance, strength, sampler)
    ours = sample_latents(base, controlnet, GenerationBatch(masks(2), PROMPTS[:2], ["", "dark"], [1, 2]), config)
    pipeline = StableDiffusionControlNetPipeline(
        vae=base.vae,
        text_encoder=base.text_encoder,
        tokenizer=base.tokenizer,
        unet=base.unet,
        controlnet=controlnet,
        scheduler=make_scheduler(base.scheduler_config, sampler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        PROMPTS[:2],
        image=encode_hint(torch.from_numpy(masks(2))),
        negative_prompt=["", "dark"],
        num_inference_steps=5,
        guidance_scale=guidance,
        controlnet_conditioning_scale=strength,
        latents=item_noise([1, 2], (4, HEIGHT // 4, WIDTH // 4)),
        height=HEIGHT,
        width=WIDTH,
        output_type="latent",
    ).images
    scale = theirs.abs().max()
    assert scale > 0.5
    torch.testing.assert_close(ours / scale, theirs / scale, atol=2e-5, rtol=0)


@pytest.mark.parametrize("sampler", ["ddim", "dpm++", "unipc"])
def test_a_start_from_photos_agrees_with_the_diffusers_pipeline(
    models: tuple[StableDiffusion, Any], sampler: str
) -> None:
    from diffusers import StableDiffusionControlNetImg2ImgPipeline
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    base, controlnet = models
    config = SamplingConfig(5, 3.0, 0.7, sampler)
    chosen, seeds, strength = PROMPTS[:2], [1, 2], 0.6
    batch = GenerationBatch(masks(2), chosen, ["", "dark"], seeds, photos(2), strength)
    ours = sample_latents(base, controlnet, batch, config)
    pipeline = StableDiffusionControlNetImg2ImgPipeline(
        vae=base.vae,
        text_encoder=base.text_encoder,
        tokenizer=base.tokenizer,
        unet=base.unet,
        controlnet=controlnet,
        scheduler=make_scheduler(base.scheduler_config, sampler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    with pytest.MonkeyPatch.context() as patch:
        # The pipeline encodes by a sample of the posterior, drawn from the generators of the noise; ours by its mean.
        patch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
        theirs = pipeline(
            chosen,
            image=torch.from_numpy(photos(2)).permute(0, 3, 1, 2).float() / 255,
            control_image=encode_hint(torch.from_numpy(masks(2))),
            strength=strength,
            negative_prompt=["", "dark"],
            num_inference_steps=5,
            guidance_scale=3.0,
            controlnet_conditioning_scale=0.7,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="latent",
        ).images
    assert torch.allclose(ours, theirs, atol=2e-4), (ours - theirs).abs().max()


def photos(count: int) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (count, HEIGHT, WIDTH, 3), np.uint8)


@pytest.mark.parametrize(
    ("sampler", "large"), [("ddim", "direct"), ("dpm++", "tiled"), ("unipc", "direct"), ("lcm", "direct")]
)
def test_less_strength_keeps_more_of_the_photo(models: tuple[StableDiffusion, Any], sampler: str, large: str) -> None:
    base, controlnet = models
    config = SamplingConfig(10, 1.0, 1.0, sampler, large, HEIGHT)

    def draw(strength: float, chosen: slice = slice(2), from_photos: bool = True) -> torch.Tensor:
        started = photos(2)[chosen] if from_photos else None
        seeds = [1, 2][chosen]
        batch = GenerationBatch(masks(2)[chosen], PROMPTS[:2][chosen], ["", ""][chosen], seeds, started, strength)
        return sample_latents(base, controlnet, batch, config)

    photo = base.encode_images(torch.from_numpy(photos(2)).permute(0, 3, 1, 2))
    little, more = draw(0.2), draw(0.8)
    assert (little - photo).abs().mean() < (more - photo).abs().mean()
    assert torch.allclose(more[1:], draw(0.8, slice(1, 2)), atol=1e-4)  # an image does not depend on its batch
    assert torch.equal(draw(1.0), draw(1.0, from_photos=False))  # from noise alone


def test_published_sampler_comes_out_of_the_usual_config() -> None:
    scheduler = make_scheduler(SCHEDULES["epsilon"], "ddim")
    scheduler.set_timesteps(25)
    assert scheduler.timesteps.tolist() == list(range(961, 0, -40))
    assert float(scheduler.final_alpha_cumprod) == float(scheduler.alphas_cumprod[0])
    assert scheduler.config.clip_sample is False and scheduler.config.prediction_type == "epsilon"


def test_steps_that_do_not_divide_the_schedule_are_the_original_codes() -> None:
    scheduler = make_scheduler(SCHEDULES["epsilon"], "ddim")
    sampling.set_steps(scheduler, 30)
    assert scheduler.timesteps.tolist() == list(range(991, 0, -33)) and len(scheduler.timesteps) == 31
    sampling.set_steps(scheduler, 25)
    assert scheduler.timesteps.tolist() == list(range(961, 0, -40))
    sampling.set_steps(scheduler, 3)
    assert scheduler.timesteps.tolist() == [667, 334, 1]


@pytest.mark.parametrize("sampler", ["ddim", "dpm++", "unipc"])
def test_a_bases_own_schedule_is_used(sampler: str) -> None:
    scheduler = make_scheduler(SCHEDULES["v_prediction"], sampler)
    scheduler.set_timesteps(5)
    assert scheduler.config.prediction_type == "v_prediction"
    assert scheduler.timesteps.tolist() == [999, 799, 599, 399, 199]
    assert float(scheduler.alphas_cumprod[-1]) < 1e-6


@pytest.mark.parametrize(
    ("sampler", "large"), [("dpm++", "direct"), ("lcm", "direct"), ("ddim", "tiled"), ("unipc", "upscaled")]
)
def test_an_item_does_not_depend_on_its_batch(models: tuple[StableDiffusion, Any], sampler: str, large: str) -> None:
    base, controlnet = models
    config = SamplingConfig(2, 3.0, sampler=sampler, large=large, tile=24)
    batch = GenerationBatch(masks(3), PROMPTS, [""] * 3, [1, 2, 3])
    together = generate(base, controlnet, batch, config, rows=4).images
    assert together.shape == (3, HEIGHT, WIDTH, 3) and together.dtype == np.uint8
    for i in range(3):
        alone = generate(base, controlnet, batch.rows([i]), config).images[0]
        assert np.abs(alone.astype(int) - together[i]).max() <= 1
    assert (together[0] != together[1]).any()


def test_a_window_as_large_as_the_image_is_the_image(models: tuple[StableDiffusion, Any]) -> None:
    base, controlnet = models
    direct, tiled = (
        sample_latents(
            base,
            controlnet,
            GenerationBatch(masks(2)[..., :HEIGHT], PROMPTS[:2], ["", ""], [1, 2]),
            SamplingConfig(3, 3.0, large=large, tile=HEIGHT),
        )
        for large in ("direct", "tiled")
    )
    assert torch.equal(direct, tiled)


def test_windows_see_their_own_part_of_the_mask(
    models: tuple[StableDiffusion, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, controlnet = models
    seen = []
    monkeypatch.setattr(sampling, "encode_hint", lambda masks, encoding: seen.append(masks) or encode_hint(masks))
    config = SamplingConfig(1, 3.0, large="tiled", tile=HEIGHT)
    one = masks(1)
    sample_latents(base, controlnet, GenerationBatch(one, ["a"], [""], [1]), config)
    crops = torch.cat(seen)
    starts = [0, (WIDTH - HEIGHT) // 2, WIDTH - HEIGHT]
    for crop, left in zip(crops, starts, strict=True):
        np.testing.assert_array_equal(crop.numpy(), one[0][:, left : left + HEIGHT])


def test_an_upscaled_image_keeps_what_was_generated_small(models: tuple[StableDiffusion, Any]) -> None:
    base, controlnet = models

    def draw(strength: float) -> np.ndarray:
        config = SamplingConfig(10, 1.0, large="upscaled", tile=24, upscale_denoising_strength=strength)
        return generate(base, controlnet, GenerationBatch(masks(1), ["a"], [""], [1]), config).images[0].astype(float)

    little, more, all_anew = draw(0.1), draw(0.4), draw(1.0)
    assert np.abs(little - more).mean() < np.abs(little - all_anew).mean()


@pytest.mark.parametrize(
    "settings",
    [
        {"large": "huge"},
        {"upscale_denoising_strength": 0.0},
        {"upscale_denoising_strength": 1.5},
        {"guidance_scale": float("nan")},
    ],
)
def test_bad_settings_of_large_images(settings: dict[str, Any]) -> None:
    with pytest.raises(GenValError, match="--" + next(iter(settings))):
        SamplingConfig(**settings)


def test_a_window_the_model_cannot_generate(models: tuple[StableDiffusion, Any]) -> None:
    base, controlnet = models
    with pytest.raises(GenValError, match=r"--tile 20: .*multiples of 8"):
        generate(
            base, controlnet, GenerationBatch(masks(1), ["a"], [""], [1]), SamplingConfig(1, large="tiled", tile=20)
        )


def test_mask_prompt_seed_and_strength_matter(models: tuple[StableDiffusion, Any]) -> None:
    base, controlnet = models

    def latents(prompt: str = "a", seed: int = 1, strength: float = 1.0, mask: int = 7) -> torch.Tensor:
        chosen = np.full((1, HEIGHT, WIDTH), mask, np.uint8)
        batch = GenerationBatch(chosen, [prompt], [""], [seed])
        return sample_latents(base, controlnet, batch, SamplingConfig(3, 3.0, strength))

    first = latents()
    assert torch.equal(first, latents())
    for other in (latents(prompt="z z z z"), latents(seed=2), latents(strength=0.0), latents(mask=26)):
        assert (first - other).abs().max() > 1e-4
    torch.testing.assert_close(latents(strength=0.0), latents(strength=0.0, mask=26))


def test_hint_embedding_runs_once_and_is_put_back(models: tuple[StableDiffusion, Any]) -> None:
    base, controlnet = models
    calls = []
    embedding = controlnet.controlnet_cond_embedding
    handle = embedding.register_forward_hook(lambda *_: calls.append(1))
    sample_latents(base, controlnet, GenerationBatch(masks(1), ["a"], [""], [1]), SamplingConfig(4, 3.0))
    handle.remove()
    assert len(calls) == 1 and controlnet.controlnet_cond_embedding is embedding


@pytest.mark.parametrize("bad", [0.0, float("nan")])
def test_failed_images_are_sampled_again_with_other_seeds(
    models: tuple[StableDiffusion, Any], monkeypatch: pytest.MonkeyPatch, bad: float
) -> None:
    base, controlnet = models
    original = StableDiffusion.decode_latents
    calls = []

    def decode(self: StableDiffusion, latents: torch.Tensor) -> torch.Tensor:
        pixels = original(self, latents)
        calls.append(len(pixels))
        if len(calls) <= 2:
            pixels[-1] = bad if bad != 0 else -1.0
        return pixels

    monkeypatch.setattr(StableDiffusion, "decode_latents", decode)
    generated = generate(
        base, controlnet, GenerationBatch(masks(2), PROMPTS[:2], ["", ""], [1, 2]), SamplingConfig(2, 3.0)
    )
    assert calls == [2, 1, 1]
    assert generated.retries == [0, 2]
    assert generated.seeds[0] == 1 and generated.seeds[1] != 2
    calls[:] = []
    again = generate(base, controlnet, GenerationBatch(masks(2), PROMPTS[:2], ["", ""], [1, 2]), SamplingConfig(2, 3.0))
    assert again.seeds == generated.seeds and (again.images == generated.images).all()


def test_an_image_that_always_fails_is_an_error(
    models: tuple[StableDiffusion, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, controlnet = models
    monkeypatch.setattr(
        StableDiffusion, "decode_latents", lambda self, latents: torch.full((len(latents), 3, HEIGHT, WIDTH), -1.0)
    )
    with pytest.raises(GenValError, match="4 seeds for 'a street, in fog'"):
        generate(base, controlnet, GenerationBatch(masks(1), PROMPTS[:1], [""], [1]), SamplingConfig(1, 3.0))


@pytest.mark.parametrize("settings", [{"sampler": "euler"}, {"steps": 0}])
def test_bad_settings(settings: dict[str, Any]) -> None:
    with pytest.raises(GenValError):
        SamplingConfig(**settings)


def test_long_prompts_are_cut(models: tuple[StableDiffusion, Any]) -> None:
    base, _ = models
    assert base.encode_text(["a " * 100, ""]).states.shape == (2, 16, 32)


def test_images_come_back_from_the_latents_scale(models: tuple[StableDiffusion, Any]) -> None:
    base, _ = models
    images = torch.randint(0, 256, (2, 3, HEIGHT, WIDTH), dtype=torch.uint8)
    latents = base.encode_images(images)
    assert latents.shape == (2, 4, HEIGHT // 4, WIDTH // 4)
    raw = base.vae.encode(images / 127.5 - 1).latent_dist.mean
    torch.testing.assert_close(latents, raw * 0.5)
    torch.testing.assert_close(base.decode_latents(latents), base.vae.decode(raw).sample)
