import sys
from typing import Any

import pytest
import torch
from diffusion_world import ROOT

from genval.diffusion.sampling import denoiser


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    import fused_blocks

    return fused_blocks


@pytest.mark.parametrize(("rows", "images"), [(1, 2), (2, 2)])
@torch.no_grad()
def test_fused_blocks_agree(fused: Any, rows: int, images: int) -> None:
    from diffusers.models.resnet import ResnetBlock2D
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    x = (torch.randn(images, 24, 6, 10, device=device) + 3).to(memory_format=torch.channels_last)
    for out in (24, 80):
        block: Any = ResnetBlock2D(in_channels=24, out_channels=out, temb_channels=8, groups=4, eps=1e-6).to(device)
        for parameter in block.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        time = torch.randn(rows, out, device=device)
        expected = denoiser.resnet(block, x, time)
        torch.testing.assert_close(fused.resnet(block, x, time), expected, atol=1e-4, rtol=1e-4)
    module: Any = Transformer2DModel(2, 12, in_channels=24, norm_num_groups=4, cross_attention_dim=16).to(device)
    texts = [torch.randn(2 * images, 2, 7, 12, device=device) for _ in range(2)]
    attention = module.transformer_blocks[0].attn1
    qkv = [torch.cat([attention.to_q.weight, attention.to_k.weight, attention.to_v.weight])]
    expected = denoiser.transformer(module, x, texts, qkv)
    torch.testing.assert_close(fused.transformer(module, x, texts, qkv), expected, atol=1e-4, rtol=1e-4)
