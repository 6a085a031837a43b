"""The blocks of a UNet, a ControlNet and a VAE on an NVIDIA GPU, with the kernels of `genval.kernels.blocks`.

They replace the functions of the same names of `genval.diffusion.sampling.blocks`, and take channels-last networks
and tensors. Convolutions, matrix products and attention are PyTorch's.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from genval.diffusion.sampling import blocks
from genval.kernels.blocks import add_and_normalise, add_bias, add_residual, gated_gelu, join, normalise, upsample


def resnet(block: Any, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    """Run a residual block, as `genval.diffusion.sampling.blocks.resnet`."""
    hidden = F.conv2d(normalise(block.norm1, x), block.conv1.weight, None, padding=1)
    hidden = F.conv2d(normalise(block.norm2, hidden, time + block.conv1.bias), block.conv2.weight, None, padding=1)
    if block.conv_shortcut is not None:
        x = _project(block.conv_shortcut, x)
    y = add_residual(x, hidden, block.conv2.bias)
    return y if block.output_scale_factor == 1 else y / block.output_scale_factor


def transformer(module: Any, x: torch.Tensor, texts: list[torch.Tensor], qkv: list[torch.Tensor]) -> torch.Tensor:
    """Run a transformer over the pixels of x, as `genval.diffusion.sampling.blocks.transformer`."""
    norm = partial(normalise, silu=False)
    return blocks.transformer(module, x, texts, qkv, norm, _feed_forward, add_and_normalise)


def _feed_forward(network: Any, tokens: torch.Tensor) -> torch.Tensor:
    first, _, last = network.net
    hidden: torch.Tensor = last(gated_gelu(first.proj(tokens)))
    return hidden


def convolve(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """Run a convolution, whose bias PyTorch would add at half of the speed."""
    return add_bias(F.conv2d(x, layer.weight, None, layer.stride, layer.padding), layer.bias)


def residual(layer: Any, output: torch.Tensor, strength: float) -> torch.Tensor:
    """Return a residual of a ControlNet, as `genval.diffusion.sampling.blocks.residual`."""
    projected = _project(layer, output)
    return projected if strength == 1 else projected * strength


def last(unet: Any, x: torch.Tensor) -> torch.Tensor:
    """Turn the output of a UNet's last block into its prediction."""
    result: torch.Tensor = unet.conv_out(normalise(unet.conv_norm_out, x))
    return result


def _project(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """A 1x1 convolution as a matrix product, which adds the bias without another pass over the result."""
    return F.linear(x.permute(0, 2, 3, 1), layer.weight.flatten(1), layer.bias).permute(0, 3, 1, 2)


BLOCKS = blocks.Blocks(resnet, transformer, convolve, upsample, join, residual, last)


def fuse_vae(vae: Any) -> None:
    """Run the blocks and the last normalisations of a VAE with these kernels from now on. They have no gradients."""
    vae.to(memory_format=torch.channels_last)
    for block in vae.modules():
        if type(block).__name__ == "ResnetBlock2D" and isinstance(block.nonlinearity, torch.nn.SiLU):
            block.forward = partial(_vae_resnet, block)
        elif type(block).__name__ == "Upsample2D":
            block.forward = partial(_enlarge, block)
    for part in (vae.encoder, vae.decoder):
        if hasattr(part, "conv_norm_out"):  # an AutoencoderTiny has no normalisation
            part.conv_norm_out.forward = partial(normalise, part.conv_norm_out, silu=False)


def _vae_resnet(block: Any, x: torch.Tensor, temb: None = None) -> torch.Tensor:
    return resnet(block, x, block.conv1.bias.new_zeros((1, block.out_channels)))


def _enlarge(block: Any, x: torch.Tensor) -> torch.Tensor:
    return convolve(block.conv, upsample(x))
