import copy
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusion_world import HEIGHT, WIDTH

from genval.diffusion.models.controlnet import load_controlnet
from genval.diffusion.models.pipelines import StableDiffusion, TextStates, load_base
from genval.diffusion.sampling import denoiser as denoiser_module
from genval.diffusion.sampling.blocks import group_norm
from genval.diffusion.sampling.denoiser import Denoiser, check_network
from genval.diffusion.sampling.generation import GenerationBatch, generate, start_generation
from genval.diffusion.settings import SamplingConfig
from genval.runtime.errors import GenValError

ROWS = 2


@pytest.fixture(scope="module")
def models(base_folder: Path, controlnet_folder: Path) -> tuple[StableDiffusion, Any]:
    base = load_base(base_folder)
    return base, load_controlnet(controlnet_folder, base).eval()


@pytest.fixture
def quick_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace as for generated kernels, but run the trace: generating them takes minutes on a CPU."""
    traced = functools.partial(torch.compile, backend="eager")
    monkeypatch.setattr(torch, "compile", lambda function, options=None, **kinds: traced(function, **kinds))
    torch._dynamo.reset()


def masks(count: int) -> np.ndarray:
    return np.random.default_rng(3).choice(np.array([7, 11, 23, 26], np.uint8), (count, HEIGHT, WIDTH))


def attention_first_unet() -> Any:
    """A UNet with cross-attention in its first block, as Stable Diffusion 1.5, but not in the last."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=2,
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=8,
    ).eval()


def random_controlnet(unet: Any) -> Any:
    from diffusers import ControlNetModel

    controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32), conditioning_channels=1)
    with torch.no_grad():
        for name, parameter in controlnet.named_parameters():
            if name.startswith(("controlnet_down", "controlnet_mid", "controlnet_cond_embedding.conv_out")):
                parameter.normal_(std=0.1)
    return controlnet.eval()


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_agrees_with_the_modules_own_forward(guidance: float, fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fused kernels run in Triton's interpreter without a GPU."""
    if fused:
        pytest.importorskip("triton", reason="Triton is not available for this system")
    device = torch.device("cuda" if fused and torch.cuda.is_available() else "cpu")
    monkeypatch.setattr(denoiser_module, "can_fuse", lambda device: fused)
    torch.manual_seed(1)
    unet = attention_first_unet().to(device)
    controlnet = random_controlnet(unet)
    base: Any = SimpleNamespace(unet=unet, device=device, dtype=torch.float32, downscale=2)
    rows = 2 * ROWS if guidance > 1 else ROWS
    latents, text = torch.randn(ROWS, 4, 8, 16, device=device), torch.randn(rows, 7, 32, device=device)
    hints, timesteps = torch.rand(ROWS, 1, 16, 32, device=device), torch.tensor([900, 300], device=device)
    ours = Denoiser(base, controlnet, 0.7, guidance)
    conditions = ours.condition(TextStates(text), hints, timesteps, None)
    for step, timestep in enumerate(timesteps):
        repeated = latents.repeat(rows // ROWS, 1, 1, 1)
        with torch.no_grad():
            down, middle = controlnet(
                repeated,
                timestep,
                text,
                hints.repeat(rows // ROWS, 1, 1, 1),
                conditioning_scale=0.7,
                return_dict=False,
            )
            predicted = unet(
                repeated, timestep, text, down_block_additional_residuals=down, mid_block_additional_residual=middle
            ).sample
        if guidance > 1:
            without, with_prompt = predicted.chunk(2)
            predicted = without + guidance * (with_prompt - without)
        torch.testing.assert_close(ours(latents, step, conditions), predicted, atol=2e-5, rtol=1e-4)


def test_the_part_without_text_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    unet = attention_first_unet()
    controlnet = random_controlnet(unet)
    base: Any = SimpleNamespace(unet=unet, device=torch.device("cpu"), dtype=torch.float32, downscale=2)
    ours = Denoiser(base, controlnet, 1.0, 4.0)
    conditions = ours.condition(
        TextStates(torch.randn(2 * ROWS, 7, 32)), torch.rand(ROWS, 1, 16, 32), torch.tensor([1]), None
    )
    rows: list[int] = []
    for network in (unet, controlnet):
        first = network.down_blocks[0]
        first.resnets[0].conv2.register_forward_hook(lambda *call: rows.append(len(call[2])))
        first.attentions[0].transformer_blocks[0].attn1.to_out[0].register_forward_hook(
            lambda *call: rows.append(len(call[2]))
        )
        first.attentions[0].transformer_blocks[0].attn2.to_out[0].register_forward_hook(
            lambda *call: rows.append(len(call[2]))
        )
        # Queries are of the fused product and keys of the text are at hand.
        network.down_blocks[0].attentions[0].transformer_blocks[0].attn2.to_k.register_forward_hook(
            lambda *_: pytest.fail("the text's keys were computed again")
        )
    ours(torch.randn(ROWS, 4, 8, 16), 0, conditions)
    assert rows == 2 * [ROWS, ROWS, 2 * ROWS]


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compile")
def test_generated_kernels_agree_and_are_made_for_one_shape(
    models: tuple[StableDiffusion, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    base, controlnet = models
    config = SamplingConfig(2, 3.0, sampler="dpm++")
    batch = GenerationBatch(masks(3), ["a", "b", "c"], [""] * 3, [1, 2, 3])

    def images(count: int, denoiser: Denoiser) -> np.ndarray:
        return start_generation(denoiser, batch.rows(range(count)), config, rows=2)().images

    plain = generate(base, controlnet, batch, config).images
    compiled = Denoiser(base, controlnet, 1.0, 3.0, compiled=True)
    rows: set[int] = set()
    shapes: set[Any] = set()
    blocks = compiled._blocks

    def resnet(block: Any, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        rows.add(len(x))
        shapes.add((x.shape, x.stride(), block.out_channels))
        return blocks.resnet(block, x, time)

    def transformer(module: Any, x: torch.Tensor, texts: list[torch.Tensor], qkv: list[torch.Tensor]) -> torch.Tensor:
        shapes.add((x.shape, x.stride(), len(texts[0])))
        return blocks.transformer(module, x, texts, qkv)

    compiled._blocks = dataclasses.replace(blocks, resnet=resnet, transformer=transformer)
    assert np.abs(images(3, compiled).astype(int) - plain).max() <= 1
    assert np.abs(images(1, compiled).astype(int) - plain[:1]).max() <= 1
    assert rows == {2, 4}  # the last batch, of one, was filled up
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == len(shapes)


def test_group_norm_through_the_channels(quick_compile: None) -> None:
    norm = torch.nn.GroupNorm(4, 24, eps=1e-6)
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    compiled: Callable[..., torch.Tensor] = torch.compile(group_norm)
    for offset in (0.0, 100.0):  # a mean far from zero must not cost digits
        x = (torch.randn(3, 24, 5, 7) + offset).to(memory_format=torch.channels_last)
        exact = copy.deepcopy(norm).double()(x.double()).float()
        torch.testing.assert_close(compiled(norm, x), exact, atol=1e-4 if offset else 1e-5, rtol=1e-4)
    half = torch.randn(2, 24, 4, 4, dtype=torch.bfloat16)
    assert compiled(norm.bfloat16(), half).dtype == torch.bfloat16


def test_other_networks_are_refused(models: tuple[StableDiffusion, Any]) -> None:
    from diffusers import UNet2DConditionModel

    other = UNet2DConditionModel(
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "UpBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=4,
    )
    with pytest.raises(GenValError, match=r"The base's UNet is not of Stable Diffusion.*SimpleCrossAttnDownBlock2D"):
        check_network(other, "The base's UNet")
    check_network(models[1], "The ControlNet")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("compiled", [False, True])
def test_a_replayed_recording_agrees(models: tuple[StableDiffusion, Any], compiled: bool) -> None:
    base, controlnet = models
    base.to("cuda")
    controlnet.to("cuda")
    config = SamplingConfig(3, 3.0)
    batch = GenerationBatch(masks(2), ["a", "b"], ["", ""], [1, 2])
    try:
        plain = generate(base, controlnet, batch, config).images
        recorded = Denoiser(base, controlnet, 1.0, 3.0, compiled=compiled, graphed=True)
        for _ in range(2):
            images = start_generation(recorded, batch, config)().images
            assert np.abs(images.astype(int) - plain).max() <= 1
        assert isinstance(recorded._graph, denoiser_module._Graph)
    finally:
        base.to("cpu")
        controlnet.to("cpu")
