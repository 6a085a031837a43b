"""The blocks of a UNet and a ControlNet in PyTorch's operations.

The modules and their weights are diffusers'. `genval.diffusion.sampling.fused` has faster blocks for NVIDIA GPUs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Blocks:
    """What runs the parts of a network: the functions of this module (`PLAIN`), or faster ones."""

    resnet: Callable[..., torch.Tensor]
    transformer: Callable[..., torch.Tensor]
    convolve: Callable[..., torch.Tensor]
    upsample: Callable[..., torch.Tensor]
    join: Callable[..., torch.Tensor]
    residual: Callable[..., torch.Tensor]
    last: Callable[..., torch.Tensor]


def convolve(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """Run a convolution."""
    result: torch.Tensor = layer(x)
    return result


def upsample(x: torch.Tensor) -> torch.Tensor:
    """Repeat each pixel of (rows, C, h, w) twice in both directions."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def join(x: torch.Tensor, skip: torch.Tensor, added: torch.Tensor | None) -> torch.Tensor:
    """Concatenate x, (rows, C, h, w), and the sum of two tensors whose rows are repeated, or the first of them."""
    return torch.cat([x, repeat(skip if added is None else skip + added, len(x))], dim=1)


def residual(layer: Any, output: torch.Tensor, strength: float) -> torch.Tensor:
    """Return a residual of a ControlNet: an output of its encoder, after a 1x1 convolution, times `strength`."""
    result: torch.Tensor = layer(output) * strength
    return result


def last(unet: Any, x: torch.Tensor) -> torch.Tensor:
    """Turn the output of a UNet's last block into its prediction."""
    result: torch.Tensor = unet.conv_out(F.silu(group_norm(unet.conv_norm_out, x)))
    return result


def resnet(block: Any, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    """Run a residual block.

    Args:
        block: diffusers' ResnetBlock2D.
        x: (rows, C, h, w).
        time: (R, C'), the block's projected time embedding; R is 1 or the number of rows.

    Returns:
        (rows, C', h, w).
    """
    hidden = block.conv1(F.silu(group_norm(block.norm1, x)))
    hidden = hidden + time[:, :, None, None]
    hidden = block.conv2(F.silu(group_norm(block.norm2, hidden)))
    if block.conv_shortcut is not None:
        x = block.conv_shortcut(x)
    return (x + hidden) / block.output_scale_factor


def transformer(
    module: Any,
    x: torch.Tensor,
    texts: list[torch.Tensor],
    qkv: list[torch.Tensor],
    normalise: Callable[..., torch.Tensor] | None = None,
    feed_forward: Callable[..., torch.Tensor] | None = None,
    add_and_normalise: Callable[..., tuple[torch.Tensor, torch.Tensor]] | None = None,
) -> torch.Tensor:
    """Run a transformer over the pixels of x.

    Args:
        module: diffusers' Transformer2DModel.
        x: (rows, C, h, w).
        texts: keys and values of its cross-attentions. They may have twice as many rows as `x`, which is then repeated.
        qkv: the fused weights of its self-attentions.
        normalise: takes the GroupNorm and its input (default: `group_norm`).
        feed_forward: takes the feed-forward network and its input (default: call the network).
        add_and_normalise: takes two summands, of which the second may be None, and a LayerNorm; returns the sum and
            what the LayerNorm makes of it.

    Returns:
        (rows of the texts, C, h, w).
    """
    height, width = x.shape[2:]
    # The projections are 1x1 convolutions in Stable Diffusion 1 and linear in XL: one matrix product in both.
    tokens = (normalise or group_norm)(module.norm, x).permute(0, 2, 3, 1).flatten(1, 2)
    tokens = F.linear(tokens, module.proj_in.weight.flatten(1), module.proj_in.bias)
    add = add_and_normalise or _add_and_normalise
    for block, weights, keys, values in zip(module.transformer_blocks, qkv, texts[::2], texts[1::2], strict=True):
        tokens, normal = add(tokens, None, block.norm1)
        tokens, normal = add(tokens, _self_attention(block.attn1, normal, weights), block.norm2)
        tokens, normal, x = (repeat(one, len(keys)) for one in (tokens, normal, x))
        queries = heads(block.attn2.to_q(normal), block.attn2.heads)
        tokens, normal = add(tokens, _attend(block.attn2, queries, keys, values), block.norm3)
        tokens = tokens + (block.ff(normal) if feed_forward is None else feed_forward(block.ff, normal))
    tokens = F.linear(tokens, module.proj_out.weight.flatten(1), module.proj_out.bias)
    return x + tokens.unflatten(1, (height, width)).permute(0, 3, 1, 2)


def _add_and_normalise(x: torch.Tensor, hidden: torch.Tensor | None, norm: Any) -> tuple[torch.Tensor, torch.Tensor]:
    total = x if hidden is None else x + hidden
    return total, norm(total)


def _self_attention(attention: Any, tokens: torch.Tensor, qkv: torch.Tensor) -> torch.Tensor:
    queries, keys, values = (heads(part, attention.heads) for part in F.linear(tokens, qkv).chunk(3, dim=-1))
    return _attend(attention, queries, keys, values)


def group_norm(norm: torch.nn.GroupNorm, x: torch.Tensor) -> torch.Tensor:
    """Group normalisation of (B, C, h, w).

    In compiled code it is computed from the mean and variance of each channel, because these sums are fast on
    channels-last tensors. The variance of a group is the mean of its channels' variances plus the variance of their
    means.
    """
    if not torch.compiler.is_compiling():
        return norm(x)
    groups = norm.num_groups
    variances, means = torch.var_mean(x.float(), dim=(2, 3), correction=0)
    by_group = means.unflatten(1, (groups, -1))
    mean = by_group.mean(2, keepdim=True)
    variance = variances.unflatten(1, (groups, -1)).mean(2, keepdim=True) + (by_group - mean).square().mean(2, True)
    scale = torch.rsqrt(variance + norm.eps) * norm.weight.float().unflatten(0, (groups, -1))
    shift = norm.bias.float().unflatten(0, (groups, -1)) - mean * scale
    return (x.float() * scale.flatten(1)[:, :, None, None] + shift.flatten(1)[:, :, None, None]).to(x.dtype)


def _attend(attention: Any, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    attended = F.scaled_dot_product_attention(queries, keys, values)
    return attention.to_out[0](attended.transpose(1, 2).flatten(2))


def heads(tokens: torch.Tensor, heads: int) -> torch.Tensor:
    """Reshape (rows, tokens, C) to (rows, heads, tokens, C / heads)."""
    return tokens.unflatten(-1, (heads, -1)).transpose(1, 2)


def repeat(x: torch.Tensor, rows: int) -> torch.Tensor:
    """Repeat `x` until it has that many rows."""
    return x if len(x) == rows else torch.cat([x] * (rows // len(x)))


PLAIN = Blocks(resnet, transformer, convolve, upsample, join, residual, last)
