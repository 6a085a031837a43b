"""Layers of mmsegmentation and mmpretrain with faster forward passes, for fused passes (`genval.segmenters.fused`).

Their calls of PyTorch's functions, such as `layer_norm`, are replaced too (`genval.segmenters.fused_functions`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmcv.cnn.bricks import Conv2d
from mmcv.cnn.bricks.transformer import MultiheadAttention
from mmseg.models.backbones import VisionTransformer
from mmseg.models.backbones.mit import EfficientMultiheadAttention, MixFFN
from mmseg.models.backbones.resnet import BasicBlock, Bottleneck
from mmseg.models.backbones.swin import ShiftWindowMSA, WindowMSA
from mmseg.models.decode_heads import PSPHead, SegformerHead, SETRUPHead, UPerHead
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from genval.kernels.availability import can_fuse
from genval.segmenters.fused_functions import Forward, fits, is_slow_depthwise, pair

# Attention starts at least one block of threads per window. A GPU starts at most 65,535 blocks along this side.
_MOST_WINDOWS = 1 << 15
# Attention reads this number of tokens at once.
_ALIGNED_TOKENS = 16
# mmpretrain is imported only for networks that need it.
_CONVNEXT_BLOCK = "mmpretrain.models.backbones.convnext.ConvNeXtBlock"
_LAYER_NORM_2D = "mmpretrain.models.utils.norm.LayerNorm2d"


def fused_methods(network: nn.Module) -> Iterator[tuple[Any, str, Forward]]:
    """Yield each layer that has a faster method, with the name of the method and the faster method.

    The results of both methods are equal up to rounding.
    """
    module: Any
    # A CUDA graph reads the tensors of the windows. Each network has its own cache, so that the image sizes of one
    # network do not free the tensors of another.
    windows = functools.lru_cache(maxsize=32)(Windows.of)
    for module in network.modules():
        forward = _fused_forward(module, windows)
        if forward is not None:
            yield module, "forward", forward
        if type(module) is VisionTransformer:
            # The resized position embeddings are the same in each pass.
            yield module, "resize_pos_embed", functools.lru_cache(maxsize=8)(module.resize_pos_embed)
        for name, method in _head_methods(module):
            if name not in module.__dict__:  # other code has replaced it
                yield module, name, method


def _fused_forward(module: Any, windows: Callable[..., Windows]) -> Forward | None:
    """Return a faster forward pass of a layer, or None. Subclasses of the known classes may do something else.

    Args:
        module: the layer.
        windows: `Windows.of` with a cache of its results.
    """
    kind = type(module)
    if "forward" in module.__dict__:  # other code has replaced it
        return None
    if kind is ShiftWindowMSA:
        return functools.partial(shifted_windows, module, windows) if type(module.w_msa) is WindowMSA else None
    if kind is MixFFN:
        return functools.partial(_mix_ffn, module)
    if kind in (MultiheadAttention, EfficientMultiheadAttention):
        if not module.batch_first or not _is_simple(module.attn):
            return None
        return functools.partial(_attention if kind is MultiheadAttention else _efficient_attention, module)
    if kind is ConvModule:
        return _conv_module(module)
    if kind is nn.Sequential:
        return _stem(list(module))
    if kind is BasicBlock:
        return _residual_block(module, ((module.conv1, module.norm1), (module.conv2, module.norm2)))
    if kind is Bottleneck:
        pairs = ((module.conv1, module.norm1), (module.conv2, module.norm2), (module.conv3, module.norm3))
        return _residual_block(module, pairs)
    if _name(module) == _LAYER_NORM_2D:
        return functools.partial(_layer_norm_2d, module)
    if _name(module) == _CONVNEXT_BLOCK and module.linear_pw_conv and module.grn is None:
        return functools.partial(_convnext_block, module) if _name(module.norm) == _LAYER_NORM_2D else None
    return None


def _name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


@dataclass(frozen=True)
class _Folded:
    """A convolution and a batch normalisation that is multiplied into its weights, with or without ReLU."""

    weight: Tensor
    bias: Tensor
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    @classmethod
    def of(cls, conv: nn.Module, norm: nn.Module) -> _Folded | None:
        """Fold a convolution and the normalisation that follows. None if they cannot be folded."""
        if type(conv) not in (nn.Conv2d, Conv2d) or type(norm) is not nn.BatchNorm2d:
            return None
        assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        # cuDNN's grouped convolutions with ReLU are slow. Depthwise convolutions have a kernel of their own.
        if conv.groups > 1 and not _is_slow_depthwise(conv):
            return None
        if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            return None
        if not norm.affine or norm.running_mean is None or norm.running_var is None:
            return None
        factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        shift = norm.bias.double() - norm.running_mean.double() * factor
        if conv.bias is not None:
            shift = shift + conv.bias.double() * factor
        weight = (conv.weight.double() * factor.view(-1, 1, 1, 1)).to(conv.weight.dtype)
        weight = weight.detach().contiguous(memory_format=torch.channels_last)
        bias = shift.detach().to(conv.weight.dtype)
        if not (weight.isfinite().all() and bias.isfinite().all()):  # float16 has no numbers above 65,504
            return None
        return cls(weight, bias, pair(conv.stride), pair(conv.padding), pair(conv.dilation), conv.groups)

    def product(self, x: Tensor) -> Tensor:
        """Return the convolution of x without its bias and ReLU."""
        return F.conv2d(x, self.weight, None, self.stride, self.padding, self.dilation, self.groups)

    def __call__(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """Return ReLU(y), or ReLU(y + added), where y is the normalised convolution of x."""
        shape = (self.stride, self.padding, self.dilation)
        if self.groups > 1 and added is None and fits(x) and can_fuse(x.device):
            from genval.kernels.maps import depthwise

            return depthwise(x, self.weight, self.bias, *shape, "relu")
        # cuDNN counts numbers of a tensor in 32 bits. PyTorch's convolution splits larger tensors.
        is_large = x.numel() // x.shape[1] * max(x.shape[1], len(self.bias)) >= 2**31
        if self.groups > 1 or not x.is_cuda or is_large:
            y = F.conv2d(x, self.weight, self.bias, *shape, self.groups)
            return (y if added is None else y.add_(added)).relu_()
        if added is None:
            return torch.cudnn_convolution_relu(x, self.weight, self.bias, *shape, 1)
        return torch.cudnn_convolution_add_relu(x, self.weight, added, 1.0, self.bias, *shape, 1)


def _is_slow_depthwise(conv: nn.Conv2d) -> bool:
    is_depthwise = conv.groups == conv.in_channels == conv.out_channels
    return is_depthwise and is_slow_depthwise(conv.groups, pair(conv.stride), pair(conv.dilation))


def _fold(pairs: Sequence[tuple[nn.Module, nn.Module]]) -> list[_Folded] | None:
    """Fold pairs of layers. None if one pair cannot be folded."""
    folded = [_Folded.of(*pair) for pair in pairs]
    return [layer for layer in folded if layer is not None] if all(folded) else None


def _fold_module(module: Any) -> _Folded | None:
    """Fold a convolution, a batch normalisation and ReLU. None if the layers are other ones, or cannot be folded."""
    if module.order != ("conv", "norm", "act") or not module.with_norm or not module.with_activation:
        return None
    if module.with_explicit_padding or module.with_spectral_norm or type(module.activate) is not nn.ReLU:
        return None
    return _Folded.of(module.conv, module.norm)


def _conv_module(module: Any) -> Forward | None:
    folded = _fold_module(module)
    if folded is None:
        return None

    def forward(x: Tensor, activate: bool = True, norm: bool = True) -> Any:
        return folded(x) if activate and norm else ConvModule.forward(module, x, activate, norm)

    return forward


def _stem(layers: Sequence[nn.Module]) -> Forward | None:
    """The first layers of ResNet-V1c: convolution, normalisation and ReLU, three times."""
    if not layers or len(layers) % 3 or any(type(layer) is not nn.ReLU for layer in layers[2::3]):
        return None
    folded = _fold(list(zip(layers[::3], layers[1::3], strict=True)))
    if folded is None:
        return None

    def forward(x: Tensor) -> Tensor:
        for layer in folded:
            x = layer(x)
        return x

    return forward


def _residual_block(block: Any, pairs: Sequence[tuple[nn.Module, nn.Module]]) -> Forward | None:
    """A block of ResNet. Its last layers stay plain if plugins follow them, such as the context blocks of GCNet."""
    has_plugins = getattr(block, "with_plugins", False)
    if has_plugins and (block.after_conv1_plugins or block.after_conv2_plugins):
        return None
    folded = _fold(pairs[:-1] if has_plugins else pairs)
    if folded is None:
        return None
    layers = list(block.downsample) if type(block.downsample) is nn.Sequential and not has_plugins else []
    shortcut = _Folded.of(*layers) if len(layers) == 2 else None
    if shortcut is not None:  # its bias is added with that of the last layer
        bias = (folded[-1].bias.float() + shortcut.bias.float()).to(shortcut.bias.dtype)
        folded[-1] = dataclasses.replace(folded[-1], bias=bias)

    def forward(x: Tensor) -> Tensor:
        if shortcut is not None:
            identity = shortcut.product(x)
        else:
            identity = x if block.downsample is None else block.downsample(x)
        for layer in folded[: len(pairs) - 1]:
            x = layer(x)
        if not has_plugins:
            return folded[-1](x, identity)
        x = block.forward_plugin(block.norm3(block.conv3(x)), block.after_conv3_plugin_names)
        return x.add_(identity).relu_()

    return forward


@dataclass(frozen=True)
class _JoinedConv:
    """A convolution of maps that are resized to the size of the first one and concatenated; then ReLU.

    On a GPU, each map is multiplied with its weights before it is resized (`genval.kernels.maps.add_resized`).
    """

    module: Any  # convolves maps that are joined already
    # (C, channels, taps, taps) for the first map, and (taps * taps * C, channels, 1, 1) for each other one.
    weights: list[Tensor]
    bias: Tensor
    taps: int  # rows and columns of the filters

    @classmethod
    def of(cls, module: Any, channels: Sequence[int]) -> _JoinedConv | None:
        """Split a convolution by the channels of its maps.

        Returns:
            None if the module has other layers than a convolution, batch normalisation and ReLU; if the result of the
            convolution has another size than its input; or in float16, which has no numbers for large partial sums.
        """
        folded = _fold_module(module) if type(module) is ConvModule else None
        if folded is None or folded.weight.dtype == torch.float16:
            return None
        taps = folded.weight.shape[2]
        shape = ((taps, taps), (1, 1), (taps // 2, taps // 2), (1, 1), 1)
        found = (folded.weight.shape[2:], folded.stride, folded.padding, folded.dilation, folded.groups)
        if found != shape or taps % 2 == 0 or sum(channels) != folded.weight.shape[1]:
            return None
        first, *others = folded.weight.split(list(channels), 1)
        products = [weight.permute(2, 3, 0, 1).reshape(-1, weight.shape[1], 1, 1) for weight in others]
        weights = [weight.contiguous(memory_format=torch.channels_last) for weight in (first, *products)]
        return cls(module, weights, folded.bias, taps)

    def __call__(self, maps: Sequence[Tensor], align_corners: bool) -> Tensor:
        first, *others = maps
        if not _can_add_resized(maps):
            joined: Tensor = self.module(torch.cat([first, *(_resize(x, first, align_corners) for x in others)], 1))
            return joined
        from genval.kernels.maps import add_resized

        y = F.conv2d(first, self.weights[0], padding=self.taps // 2)
        products = [F.conv2d(x, weight) for x, weight in zip(others, self.weights[1:], strict=True)]
        return add_resized(y, products, align_corners, self.taps, self.bias, relu=True)


def _can_add_resized(maps: Sequence[Tensor]) -> bool:
    return all(fits(x) for x in maps) and can_fuse(maps[0].device)


def _resize(x: Tensor, like: Tensor, align_corners: bool) -> Tensor:
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=align_corners)


def _head_methods(head: Any) -> Iterator[tuple[str, Forward]]:
    """Yield the name of each method of a decode head that has a faster one, with the faster one."""
    kind = type(head)
    if kind is SegformerHead and head.interpolate_mode == "bilinear":
        fusion = _JoinedConv.of(head.fusion_conv, [head.channels] * len(head.convs))
        if fusion is not None:
            yield "forward", functools.partial(_segformer_head, head, fusion)
    if kind in (PSPHead, UPerHead):
        width = head.in_channels if kind is PSPHead else head.in_channels[-1]
        bottleneck = _JoinedConv.of(head.bottleneck, [width, *[head.channels] * len(head.psp_modules)])
        if bottleneck is not None:
            name = "_forward_feature" if kind is PSPHead else "psp_forward"
            yield name, functools.partial(_pooling_pyramid, head, bottleneck)
    if kind is UPerHead:
        fusion = _JoinedConv.of(head.fpn_bottleneck, [head.channels] * len(head.in_channels))
        if fusion is not None:
            yield "_forward_feature", functools.partial(_feature_pyramid, head, fusion)
    if kind is SETRUPHead:
        yield "forward", functools.partial(_setr_up_head, head)


def _segformer_head(head: Any, fusion: _JoinedConv, inputs: Sequence[Tensor]) -> Any:
    maps = [conv(x) for conv, x in zip(head.convs, head._transform_inputs(inputs), strict=True)]
    return head.cls_seg(fusion(maps, head.align_corners))


def _pooling_pyramid(head: Any, bottleneck: _JoinedConv, inputs: Sequence[Tensor]) -> Tensor:
    """PSPHead selects its map, and UPerHead uses the last one."""
    x = head._transform_inputs(inputs) if type(head) is PSPHead else inputs[-1]
    return bottleneck([x, *(pool(x) for pool in head.psp_modules)], head.align_corners)


def _feature_pyramid(head: Any, fusion: _JoinedConv, inputs: Sequence[Tensor]) -> Tensor:
    inputs = head._transform_inputs(inputs)
    maps = [conv(x) for conv, x in zip(head.lateral_convs, inputs[:-1], strict=True)]
    maps.append(head.psp_forward(inputs))
    for index in reversed(range(len(maps) - 1)):
        maps[index] = _add_coarser(maps[index], maps[index + 1], head.align_corners)
    finer = [conv(x) for conv, x in zip(head.fpn_convs, maps[:-1], strict=True)]
    return fusion([*finer, maps[-1]], head.align_corners)


def _add_coarser(x: Tensor, coarser: Tensor, align_corners: bool) -> Tensor:
    """Add a resized map to x in place."""
    if not _can_add_resized([x, coarser]):
        return x.add_(_resize(coarser, x, align_corners))
    from genval.kernels.maps import add_resized

    return add_resized(x, [coarser], align_corners)


def _setr_up_head(head: Any, inputs: Sequence[Tensor]) -> Any:
    """Classify the pixels before the last resizing: both are linear, and there are fewer classes than channels."""
    x = head._transform_inputs(inputs)
    x = _to_map(head.norm(_to_tokens(x)), x.shape[2:])
    for layers in head.up_convs[:-1]:
        x = layers(x)
    conv, upsample = head.up_convs[-1]
    return upsample(head.cls_seg(conv(x)))


def _is_simple(attention: nn.MultiheadAttention) -> bool:
    return (
        attention._qkv_same_embed_dim
        and attention.in_proj_bias is not None
        and attention.bias_k is None
        and not attention.add_zero_attn
    )


def _attention(
    module: Any, query: Tensor, key: Tensor | None = None, value: Tensor | None = None,
    identity: Tensor | None = None, **others: Any,
) -> Any:  # fmt: skip
    if key is not None or value is not None or any(other is not None for other in others.values()):
        return MultiheadAttention.forward(module, query, key, value, identity, **others)
    return (query if identity is None else identity) + _attend(module.attn, query, query)


def _efficient_attention(module: Any, x: Tensor, hw_shape: tuple[int, int], identity: Tensor | None = None) -> Tensor:
    keys = x
    if module.sr_ratio > 1:
        keys = module.norm(_to_tokens(module.sr(_to_map(x, hw_shape))))
    return (x if identity is None else identity) + _attend(module.attn, x, keys)


def _attend(attention: nn.MultiheadAttention, query: Tensor, keys: Tensor) -> Tensor:
    """Attention from `query` (B, N, C) to `keys` (B, M, C), which are also the values."""
    width, heads = attention.embed_dim, attention.num_heads
    weight, bias = attention.in_proj_weight, attention.in_proj_bias

    def split(tokens: Tensor) -> Tensor:
        """(B, N, parts * C) to (parts, B, heads, N, C / heads)."""
        return tokens.unflatten(2, (-1, heads, width // heads)).permute(2, 0, 3, 1, 4)

    if keys is query:
        q, k, v = split(F.linear(query, weight, bias))
    else:
        (q,) = split(F.linear(query, weight[:width], bias[:width]))
        k, v = split(F.linear(keys, weight[width:], bias[width:]))
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    return F.linear(mixed, attention.out_proj.weight, attention.out_proj.bias)


@dataclass(frozen=True)
class Windows:
    """The windows of N tokens into which the feature maps of a batch are divided. Windows without a mask come first."""

    places: Tensor  # for each place in the windows, the index of its token in the maps, (windows * N,)
    padded: Tensor  # indices of the places that lie outside of the maps, and hold zeros
    back: Tensor  # for each token of the maps, the index of its place in the windows
    unmasked: int  # number of windows without a mask
    mask: Tensor  # added to the attention weights of the other windows before their softmax, (windows, 1, N, N)

    @classmethod
    def of(cls, images: int, height: int, width: int, side: int, shift: int, device: torch.device) -> Windows:
        """Divide maps into windows of `side` x `side` tokens. As in `ShiftWindowMSA`, maps are padded, then rolled."""
        rows, columns = (-(-length // side) * side for length in (height, width))
        y, x = ((torch.arange(length) + shift) % length for length in (rows, columns))
        places = (y[:, None] * width + x).masked_fill((y >= height)[:, None] | (x >= width), -1)
        # Rolling brings tokens of different parts of a map into one window. They do not attend to each other.
        part_y, part_x = (
            (torch.arange(length) >= length - side).long() + (torch.arange(length) >= length - shift)
            for length in (rows, columns)
        )
        parts = part_y[:, None] * 3 + part_x

        def split(values: Tensor) -> Tensor:
            return values.view(rows // side, side, columns // side, side).transpose(1, 2).reshape(-1, side**2)

        places, parts = split(places), split(parts)
        mask = torch.where(parts[:, None] == parts[:, :, None], 0.0, -100.0)
        is_masked = mask.flatten(1).any(1) if shift else torch.zeros(len(mask), dtype=torch.bool)
        starts = torch.arange(images)[:, None, None] * height * width
        groups = [places[~is_masked], places[is_masked]]
        ordered = torch.cat([torch.where(group < 0, -1, group + starts).flatten() for group in groups])
        (present,) = (ordered >= 0).nonzero(as_tuple=True)
        back = torch.empty(images * height * width, dtype=torch.long)
        back[ordered[present]] = present
        (padded,) = (ordered < 0).nonzero(as_tuple=True)
        masks = mask[is_masked][:, None].repeat(images, 1, 1, 1)
        unmasked = images * int((~is_masked).sum())
        return cls(ordered.clamp_min(0).to(device), padded.to(device), back.to(device), unmasked, masks.to(device))


def shifted_windows(
    module: Any, windows_of: Callable[..., Windows], query: Tensor, hw_shape: tuple[int, int]
) -> Tensor:
    """Attention of tokens (B, H * W, C) within the windows of Swin, as `ShiftWindowMSA`."""
    attention, side = module.w_msa, module.window_size
    images, _, width = query.shape
    heads, tokens = attention.num_heads, side**2
    windows = windows_of(images, *hw_shape, side, module.shift_size, query.device)
    inputs = query.flatten(0, 1).index_select(0, windows.places)
    if len(windows.padded):
        inputs.index_fill_(0, windows.padded, 0)
    qkv = attention.qkv(inputs).view(-1, tokens, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
    index = attention.relative_position_index.flatten()
    bias = attention.relative_position_bias_table[index].view(1, tokens, tokens, heads).permute(0, 3, 1, 2)
    mixed = _attend_windows(qkv[:, : windows.unmasked], bias, attention.scale)
    if len(windows.mask):
        mixed += _attend_windows(qkv[:, windows.unmasked :], bias + windows.mask, attention.scale)
    outputs = attention.proj(torch.cat(mixed) if len(mixed) > 1 else mixed[0])
    return module.drop(outputs.flatten(0, 1).index_select(0, windows.back).unflatten(0, (images, -1)))


def _attend_windows(qkv: Tensor, added: Tensor, scale: float) -> list[Tensor]:
    """Attention within windows.

    Args:
        qkv: queries, keys and values, (3, windows, heads, N, C / heads).
        added: is added to the attention weights before their softmax, (1 or windows, heads, N, N).
        scale: the factor of the attention weights.

    Returns:
        Parts of the result, each (windows, N, C).
    """
    # Rows are padded, because PyTorch copies `added` in each call if its rows are not aligned.
    tokens = added.shape[-1]
    added = F.pad(added.to(qkv.dtype).contiguous(), (0, -tokens % _ALIGNED_TOKENS))[..., :tokens]
    mixed = []
    # cuDNN's attention, which PyTorch prefers, is slow for so few tokens.
    with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
        for start in range(0, qkv.shape[1], _MOST_WINDOWS):
            q, k, v = qkv[:, start : start + _MOST_WINDOWS]
            terms = added if len(added) == 1 else added[start : start + _MOST_WINDOWS]
            mixed.append(F.scaled_dot_product_attention(q, k, v, terms, scale=scale).transpose(1, 2).flatten(2))
    return mixed


def _layer_norm_2d(norm: Any, x: Tensor, data_format: str = "channel_first") -> Tensor:
    if data_format == "channel_last":
        return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    tokens = F.layer_norm(_to_tokens(x), norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    return _to_map(tokens, x.shape[2:])


def _convnext_block(block: Any, x: Tensor) -> Tensor:
    hidden = _to_tokens(block.depthwise_conv(x))
    hidden = F.layer_norm(hidden, block.norm.normalized_shape, block.norm.weight, block.norm.bias, block.norm.eps)
    hidden, tokens = block.pointwise_conv2(block.act(block.pointwise_conv1(hidden))), _to_tokens(x)
    tokens = tokens + hidden if block.gamma is None else torch.addcmul(tokens, hidden, block.gamma)
    return _to_map(tokens, x.shape[2:])


def _mix_ffn(module: Any, x: Tensor, hw_shape: tuple[int, int], identity: Tensor | None = None) -> Tensor:
    first, conv, activate, _, last, _ = module.layers
    hidden = _to_map(F.linear(x, first.weight.flatten(1), first.bias), hw_shape)
    if type(activate) is nn.GELU and activate.approximate == "none" and fits(hidden) and can_fuse(x.device):
        from genval.kernels.maps import depthwise

        hidden = depthwise(hidden, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, "gelu")
    else:
        hidden = activate(conv(hidden))
    hidden = _to_tokens(hidden)
    return (x if identity is None else identity) + F.linear(hidden, last.weight.flatten(1), last.bias)


def _to_map(tokens: Tensor, hw_shape: Sequence[int]) -> Tensor:
    """(B, H * W, C) to (B, C, H, W), channels-last, without a copy."""
    return tokens.unflatten(1, tuple(hw_shape)).permute(0, 3, 1, 2)


def _to_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) to (B, H * W, C); without a copy if x is channels-last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)
