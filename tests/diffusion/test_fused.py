from typing import Any

import pytest
import torch

from genval.diffusion.sampling import blocks, fused


@pytest.mark.parametrize(("rows", "images"), [(1, 2), (2, 2)])
@torch.no_grad()
def test_fused_blocks_agree(rows: int, images: int) -> None:
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
        expected = blocks.resnet(block, x, time)
        torch.testing.assert_close(fused.resnet(block, x, time), expected, atol=1e-4, rtol=1e-4)
    module: Any = Transformer2DModel(2, 12, in_channels=24, norm_num_groups=4, cross_attention_dim=16).to(device)
    texts = [torch.randn(2 * images, 2, 7, 12, device=device) for _ in range(2)]
    attention = module.transformer_blocks[0].attn1
    qkv = [torch.cat([attention.to_q.weight, attention.to_k.weight, attention.to_v.weight])]
    expected = blocks.transformer(module, x, texts, qkv)
    torch.testing.assert_close(fused.transformer(module, x, texts, qkv), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("activation", ["silu", "gelu"])  # blocks with other activations are left
@torch.no_grad()
def test_a_vae_with_fused_blocks_agrees(activation: str) -> None:
    from diffusers import AutoencoderKL

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    types: Any = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    shape: Any = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
    vae: Any = AutoencoderKL(**types, **shape, act_fn=activation).to(device)
    latents, pixels = torch.randn(2, 4, 4, 6, device=device), torch.randn(2, 3, 8, 12, device=device)
    decoded, encoded = vae.decode(latents).sample, vae.encode(pixels).latent_dist.mean
    for _ in range(2):  # a second denoiser of the process prepares it again
        fused.fuse_vae(vae)
    torch.testing.assert_close(vae.decode(latents).sample, decoded, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(vae.encode(pixels).latent_dist.mean, encoded, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_tiny_autoencoder_which_has_no_such_blocks_works_as_before() -> None:
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    vae: Any = AutoencoderTiny(decoder_block_out_channels=(8,) * 4, num_decoder_blocks=(1,) * 4)
    latents, pixels = torch.randn(1, 4, 4, 6), torch.randn(1, 3, 16, 16)
    decoded, encoded = vae.decode(latents).sample, vae.encode(pixels).latents
    fused.fuse_vae(vae)
    torch.testing.assert_close(vae.decode(latents).sample, decoded)
    torch.testing.assert_close(vae.encode(pixels).latents, encoded)
