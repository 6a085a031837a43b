"""Files of the original format against outputs of the original code, made with tiny and with full-size key lists."""

import gzip
import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genval.diffusion.models.controlnet import default_base, load_controlnet
from genval.diffusion.models.hints import encode_hint
from genval.diffusion.models.pipelines import StableDiffusion, TextStates, load_base
from genval.diffusion.original import reading
from genval.diffusion.original.writing import original_state
from genval.diffusion.sampling import generation as sampling
from genval.diffusion.sampling.generation import GenerationBatch, sample_latents
from genval.diffusion.settings import SamplingConfig
from genval.runtime.errors import GenValError
from genval.runtime.paths import REPO_ROOT

GOLDEN = REPO_ROOT / "tests" / "golden"
pytestmark = pytest.mark.slow  # networks of diffusers, and files of their size
TOLERANCE = 1e-4
# Rules of the golden data: a tensor is random, seeded by its key, scaled by its kind.
SCALES = {
    "w": lambda noise: noise * (1.0 / math.sqrt(math.prod(noise.shape[1:]))),
    "b": lambda noise: 0.02 * noise,
    "n": lambda noise: 1 + 0.02 * noise,
}


@pytest.fixture(scope="module")
def expected() -> Mapping[str, torch.Tensor]:
    return {key: torch.from_numpy(value) for key, value in np.load(GOLDEN / "ldm_tiny.npz").items()}


@pytest.fixture(scope="module")
def checkpoint(expected: Mapping[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny file; the heads of its text encoder, which shapes do not tell, in a config next to it."""
    description = json.loads((GOLDEN / "ldm_tiny.json").read_text())
    state, total = {}, 0.0
    for key, (shape, _, kind) in description["keys"].items():
        if kind == "const":
            state[key] = expected[f"const/{key}"]
            continue
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(key.encode())))
        state[key] = SCALES[kind](noise)
        total += float(state[key].abs().double().sum())
    assert math.isclose(total, description["weights_check"]["sum_abs_of_all_drawn_values"], rel_tol=1e-6)
    path = tmp_path_factory.mktemp("golden") / "tiny.ckpt"
    torch.save({"state_dict": state, "epoch": 3, "global_step": 5}, path)
    config = path.with_suffix("") / "text_encoder/config.json"
    config.parent.mkdir(parents=True)
    config.write_text(json.dumps({"num_attention_heads": description["text_config"]["num_attention_heads"]}))
    return path


@pytest.fixture(scope="module")
def models(checkpoint: Path) -> tuple[StableDiffusion, Any]:
    assert default_base(checkpoint) == checkpoint
    base = load_base(checkpoint)
    return base, load_controlnet(checkpoint, base)


def check(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)


def test_residuals_and_denoiser(models: tuple[StableDiffusion, Any], expected: Mapping[str, torch.Tensor]) -> None:
    base, controlnet = models
    masks = expected["in/label_ids"][:, 0].to(torch.uint8)  # -1 is 255 in a mask file
    hint = encode_hint(masks)
    check(hint, expected["in/hint"], 1e-7)
    noisy, steps, context = expected["in/x"], expected["in/timesteps"], expected["in/context"]
    with torch.no_grad():
        down, middle = controlnet(noisy, steps, context, hint, return_dict=False)
        plain = base.unet(noisy, steps, context).sample
        controlled = base.unet(
            noisy, steps, context, down_block_additional_residuals=down, mid_block_additional_residual=middle
        ).sample
    check(down[1], expected["out/residual_1"])
    check(middle, expected["out/residual_12_mid"])
    statistics = json.loads((GOLDEN / "ldm_tiny.json").read_text())["stats"]["control_residuals"]
    for residual, theirs in zip((*down, middle), statistics, strict=True):
        assert list(residual.shape) == theirs["shape"]
        measured = [float(residual.mean()), float(residual.std(correction=0)), *residual.flatten()[:8].tolist()]
        assert np.allclose(measured, [theirs["mean"], theirs["std"], *theirs["first8"]], atol=TOLERANCE)
    check(plain, expected["out/unet"])
    check(controlled, expected["out/unet_control"])


def test_vae(models: tuple[StableDiffusion, Any], expected: Mapping[str, torch.Tensor]) -> None:
    base, _ = models
    with torch.no_grad():
        posterior = base.vae.encode(expected["in/image"]).latent_dist
        decoded = base.vae.decode(expected["in/z"]).sample
    check(posterior.mode(), expected["out/vae_mode"])
    check(posterior.logvar, expected["out/vae_logvar"])
    check(decoded, expected["out/vae_decode"])
    check(base.decode_latents(expected["in/z"])[..., ::4, ::4], expected["out/decode_first_stage"])


def test_text_encoder(models: tuple[StableDiffusion, Any], expected: Mapping[str, torch.Tensor]) -> None:
    base, _ = models
    with torch.no_grad():
        check(base.text_encoder(expected["in/input_ids"])[0], expected["out/clip_last_hidden_state"])
    assert base.encode_text(["a car"]).states.shape == (1, 77, 32)


@pytest.mark.parametrize(
    ("steps", "strength", "name"),
    [
        pytest.param(25, 1.0, "", marks=pytest.mark.slow),
        (25, 0.7, "_strength0.7"),
        pytest.param(30, 1.0, "_S30", marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_published_sampler(
    models: tuple[StableDiffusion, Any],
    expected: Mapping[str, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
    steps: int,
    strength: float,
    name: str,
) -> None:
    """The whole DDIM run, with guidance 8, from the same noise and text."""
    base, controlnet = models
    text = TextStates(torch.cat([expected["in/uncond"], expected["in/cond"]]))
    monkeypatch.setattr(StableDiffusion, "encode_text", lambda self, prompts: text)
    monkeypatch.setattr(sampling, "item_noise", lambda seeds, shape: expected["in/x_T"].clone())
    masks = expected["in/label_ids"][:, 0].to(torch.uint8).numpy()
    config = SamplingConfig(steps, 8.0, strength)
    latents = sample_latents(base, controlnet, GenerationBatch(masks, ["", ""], ["", ""], [0, 1]), config)
    theirs = expected[f"out/ddim_latents{name}"]
    assert theirs.abs().max() > 30
    check(latents, theirs, 1e-3)


@pytest.fixture(scope="module")
def full_keys() -> dict[str, dict[str, Any]]:
    return json.loads(gzip.decompress((GOLDEN / "ldm_full_keys.json.gz").read_bytes()))


def write_empty(path: Path, keys: Mapping[str, Any]) -> Path:
    """A file of full-size shapes and a few kilobytes: every tensor is one zero, repeated."""
    state = {key: torch.zeros((), dtype=getattr(torch, dtype)).expand(shape) for key, (shape, dtype) in keys.items()}
    # The noise schedule is compared with the config's.
    state["alphas_cumprod"] = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000).double() ** 2).cumprod(0).float()
    torch.save({"state_dict": state}, path)
    return path


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything but the reading of weights: models stay without memory."""
    monkeypatch.setattr(reading, "_fill", lambda model, *_: model.to("meta"))


@pytest.mark.parametrize(
    "name", [pytest.param("sd15", marks=pytest.mark.slow), "sd15_inpainting", "genval_controlnet_cs"]
)
@pytest.mark.usefixtures("no_weights")
def test_full_size_keys_fit_and_come_back(name: str, full_keys: dict[str, Any], tmp_path: Path) -> None:
    keys = full_keys[name]
    extra = full_keys["sd15_ema_extra"] if name == "sd15" else {}
    path = write_empty(tmp_path / f"{name}.ckpt", {**keys, **extra})
    base = load_base(path, "meta")
    assert base.unet.config.in_channels == (9 if name == "sd15_inpainting" else 4)
    assert base.unet.config.attention_head_dim == 8 and base.vae.config.scaling_factor == 0.18215
    assert base.text_encoder.config.num_attention_heads == 12
    controlnet = load_controlnet(path, base) if name == "genval_controlnet_cs" else None
    written = original_state(base, controlnet)
    assert {key: list(tensor.shape) for key, tensor in written.items()} == {
        key: shape for key, (shape, _) in keys.items()
    }


@pytest.mark.slow
@pytest.mark.usefixtures("no_weights")
def test_any_lost_or_added_key_is_an_error(full_keys: dict[str, Any], tmp_path: Path) -> None:
    keys = full_keys["genval_controlnet_cs"]
    chosen = [key for key in keys if "." in key and not key.endswith("position_ids")]
    for key in np.random.default_rng(0).choice(chosen, 4).tolist():
        path = write_empty(tmp_path / "c.ckpt", {name: value for name, value in keys.items() if name != key})
        with pytest.raises(GenValError, match=f"(missing keys|has no).*{key}"):
            load_controlnet(path, load_base(path, "meta"))
    path = write_empty(tmp_path / "c.ckpt", {**keys, "first_stage_model.extra": [[1], "float32"]})
    with pytest.raises(GenValError, match=r"unexpected keys: first_stage_model\.extra;"):
        load_base(path, "meta")


def test_schedule_vectors_are_the_originals(
    models: tuple[StableDiffusion, Any], expected: Mapping[str, torch.Tensor]
) -> None:
    state = original_state(*models)
    for key, vector in expected.items():
        name = key.removeprefix("const/")
        if key != name and "." not in name:
            torch.testing.assert_close(state[name], vector, rtol=2e-4, atol=1e-7)
