"""Fused passes: forward passes of mmsegmentation networks in fewer and faster kernels, for inference on a GPU.

The plain pass is the network's own code. The weights stay the same, and the logits of both passes differ by rounding:

- A convolution, the batch normalisation that follows, a residual sum and ReLU are one kernel of cuDNN. The factors of
  the normalisation are multiplied into a copy of the weights.
- Attention runs as one kernel that does not write its weights. mmcv asks PyTorch for these weights and drops them.
- The layers of SegFormer, ConvNeXt and Swin keep their tokens in one memory layout.
- Bilinear resizing, depthwise convolution, adaptive pooling and layer normalisation have faster kernels than PyTorch's.
- The kernels of a pass are recorded as a CUDA graph, which the CPU starts with one call.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from genval.kernels.availability import can_fuse

# `pool` starts a kernel per row and column of the output.
_LARGEST_POOL = 16
# PyTorch's bilinear resizing is faster for the 19 channels of logits. The kernel for layer normalisation keeps a token
# in registers.
_FEW_CHANNELS, _MANY_CHANNELS = 32, 2048
# From this number of channels on, the kernel for depthwise convolutions is faster than cuDNN's.
_MANY_GROUPS = 64
_MOST_RECORDS = 4
# A GPU starts at most 65,535 blocks along one side.
_MOST_WINDOWS = 1 << 15
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# The numbers of channels and tokens by which tensor cores and attention read memory.
_ALIGNED_CHANNELS, _ALIGNED_TOKENS = 8, 16
# mmpretrain is imported only for networks that need it.
_CONVNEXT_BLOCK = "mmpretrain.models.backbones.convnext.ConvNeXtBlock"
_LAYER_NORM_2D = "mmpretrain.models.utils.norm.LayerNorm2d"

Forward = Callable[..., Any]


class FusedPass:
    """Runs a network's forward pass with the layers and functions of this module.

    Passes that need gradients, or hooks of the network's modules, are plain.

    Args:
        network: an mmsegmentation network in evaluation mode, channels-last, whose weights have one dtype. Weights that
            change later have no effect.
        run: the plain forward pass, from pixels (B, 3, H, W) to logits.
    """

    def __init__(self, network: nn.Module, run: Callable[[Tensor], Tensor]) -> None:
        self._run = run
        self._modules = list(network.modules())
        self._methods = list(_fused_methods(network))
        self._functions = _Functions()
        self._graph: _Graph | None = None
        self._records = 0
        self._last: Any = None

    def __call__(self, pixels: Tensor) -> Tensor:
        if torch.is_grad_enabled() or any(one._forward_hooks or one._forward_pre_hooks for one in self._modules):
            return self._run(pixels)
        key = (pixels.shape, pixels.stride(), pixels.dtype)
        if key != self._last:
            self._graph = None
        if self._graph is not None:
            return self._graph(pixels)
        logits = self._pass(pixels)
        # Recording takes the time of a few passes, which pays where many inputs of one size follow each other.
        if key == self._last and self._records < _MOST_RECORDS and can_fuse(pixels.device):
            self._graph = _Graph.record(self._pass, pixels, logits)
            self._records += 1
        self._last = key
        return logits

    def _pass(self, pixels: Tensor) -> Tensor:
        with contextlib.ExitStack() as stack:
            if can_fuse(pixels.device):
                stack.enter_context(self._functions)
            for layer, name, method in self._methods:
                previous = layer.__dict__.get(name)
                setattr(layer, name, method)
                stack.callback(*((delattr, layer, name) if previous is None else (setattr, layer, name, previous)))
            return self._run(pixels)


class _Graph:
    """A recorded pass for inputs of one shape."""

    def __init__(self, run: Callable[[Tensor], Tensor], pixels: Tensor) -> None:
        with torch.inference_mode(False):  # a tensor of inference mode could not be overwritten outside of it
            self._input = torch.zeros_like(pixels)
        stream = torch.cuda.Stream(pixels.device)
        stream.wait_stream(torch.cuda.current_stream(pixels.device))
        with torch.cuda.stream(stream):
            run(self._input)
        torch.cuda.current_stream(pixels.device).wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        # Other threads may load the next network meanwhile.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._output = run(self._input)

    @classmethod
    def record(cls, run: Callable[[Tensor], Tensor], pixels: Tensor, logits: Tensor) -> _Graph | None:
        """Record a pass.

        Returns:
            None if the network waits for the GPU, if the graph does not give the same logits, or if less than a
            quarter of the memory would be free, because nothing else can use the memory of a graph.
        """
        try:
            with torch.cuda.device(pixels.device):
                graph = cls(run, pixels)
            free, total = torch.cuda.mem_get_info(pixels.device)
            if free >= total // 4 and torch.equal(graph(pixels), logits):
                return graph
        except RuntimeError:  # the network waits for the GPU, or the GPU's memory is full
            torch.cuda.synchronize(pixels.device)
        return None

    def __call__(self, pixels: Tensor) -> Tensor:
        self._input.copy_(pixels)
        self._graph.replay()
        return self._output.clone()  # the next pass overwrites it


class _Functions(TorchFunctionMode):
    """Replaces functions of PyTorch by those of `_REPLACEMENTS`, for channels-last tensors on a GPU."""

    def __torch_function__(
        self, function: Forward, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        replacement = _REPLACEMENTS.get(function)
        if replacement is not None and args and _fits(args[0]):
            return replacement(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def _fits(x: Any) -> bool:
    """Whether the kernels accept x: a tensor on a GPU, with the channels of a pixel or token next to each other."""
    if not isinstance(x, Tensor) or not x.is_cuda or x.dtype not in _DTYPES or not x.numel():
        return False
    return x.is_contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x.is_contiguous()


def _interpolate(
    x: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor:
    from genval.kernels.maps import resize_bilinear

    sides = (size, size) if isinstance(size, int) else size
    is_simple = mode == "bilinear" and not antialias and scale_factor is None and isinstance(sides, (tuple, list))
    if not is_simple or x.ndim != 4 or x.shape[1] < _FEW_CHANNELS or len(sides) != 2 or min(sides) < 1:
        return F.interpolate(x, size, scale_factor, mode, align_corners, recompute_scale_factor, antialias)
    height, width = map(int, sides)
    return resize_bilinear(x, (height, width), bool(align_corners))


def _conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    from genval.kernels.maps import depthwise

    step = _pair(dilation)
    is_depthwise = x.ndim == 4 and 1 < groups == x.shape[1] and weight.shape[:2] == (groups, 1)
    # cuDNN is faster for few channels and for strides, but not if the filter is dilated.
    is_slow = max(step) > 1 or (max(_pair(stride)) == 1 and groups >= _MANY_GROUPS)
    if is_depthwise and is_slow and weight.dtype == x.dtype and not isinstance(padding, str):
        return depthwise(x, weight, bias, _pair(stride), _pair(padding), step)
    missing = -len(weight) % _ALIGNED_CHANNELS
    if missing and groups == 1 and x.dtype != torch.float32 and x.ndim == 4 and x.shape[1] % _ALIGNED_CHANNELS == 0:
        # cuDNN is slow where the number of channels of the result is not aligned, such as 19 classes.
        weight, added = F.pad(weight, (0,) * 7 + (missing,)), None if bias is None else F.pad(bias, (0, missing))
        y = F.conv2d(x, weight, added, stride, padding, dilation)
        return y[:, : y.shape[1] - missing].contiguous(memory_format=torch.channels_last)
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)


def _layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    from genval.kernels.blocks import normalise_tokens

    channels = x.shape[-1]
    if x.ndim != 3 or tuple(normalized_shape) != (channels,) or channels > _MANY_CHANNELS:
        return F.layer_norm(x, normalized_shape, weight, bias, eps)
    if weight is None or bias is None or not weight.dtype == bias.dtype == x.dtype:
        return F.layer_norm(x, normalized_shape, weight, bias, eps)
    return normalise_tokens(x, weight, bias, eps)


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return (value[0], value[0]) if len(value) == 1 else tuple(value)


def _adaptive_avg_pool2d(x: Tensor, output_size: Any) -> Tensor:
    size = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
    if x.ndim != 4 or None in size or max(size) > _LARGEST_POOL or size == (1, 1):
        return F.adaptive_avg_pool2d(x, output_size)
    return pool(x, size)


def pool(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Average the pixels of each of `size` overlapping parts of a map, as `torch.nn.functional.adaptive_avg_pool2d`.

    Args:
        x: (N, C, H, W).
        size: parts along the height and the width.

    Returns:
        (N, C, *size), of the dtype of x; means are computed in float32.
    """
    rows = [x[:, :, part].mean(2, dtype=torch.float32) for part in _parts(x.shape[2], size[0])]
    column = torch.stack(rows, 2)
    parts = [column[..., part].mean(3) for part in _parts(x.shape[3], size[1])]
    return torch.stack(parts, 3).to(x.dtype, memory_format=torch.channels_last)


def _parts(length: int, number: int) -> Iterator[slice]:
    for part in range(number):
        yield slice(part * length // number, -(-(part + 1) * length // number))


_REPLACEMENTS: dict[Forward, Forward] = {
    F.interpolate: _interpolate,
    F.conv2d: _conv2d,
    F.adaptive_avg_pool2d: _adaptive_avg_pool2d,
    F.layer_norm: _layer_norm,
}


def _fused_methods(network: nn.Module) -> Iterator[tuple[Any, str, Forward]]:
    """Yield each layer that has a faster method, the name of the method, and the faster one: equal up to rounding."""
    module: Any
    # A graph reads these tensors. In one cache for all networks, the sizes of one would free the tensors of another.
    windows = functools.lru_cache(maxsize=32)(_Windows.of)
    for module in network.modules():
        forward = _fused_forward(module, windows)
        if forward is not None:
            yield module, "forward", forward
        if type(module) is VisionTransformer:
            # The resized position embeddings are the same in each pass.
            yield module, "resize_pos_embed", functools.lru_cache(maxsize=8)(module.resize_pos_embed)


def _fused_forward(module: Any, windows: Callable[..., _Windows]) -> Forward | None:
    """Return a faster forward pass, if the layer's class is known exactly: a subclass may do something else.

    Args:
        module: the layer.
        windows: `_Windows.of`, which keeps its results for the next pass.
    """
    kind = type(module)
    if "forward" in module.__dict__:  # somebody else has replaced it
        return None
    if kind is ShiftWindowMSA:
        return functools.partial(_shifted_windows, module, windows) if type(module.w_msa) is WindowMSA else None
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
    """A convolution whose weights contain the normalisation that follows, and ReLU."""

    weight: Tensor
    bias: Tensor
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    @classmethod
    def of(cls, conv: nn.Module, norm: nn.Module) -> _Folded | None:
        """Fold a pair of layers; None if they are of other kinds."""
        if type(conv) not in (nn.Conv2d, Conv2d) or type(norm) is not nn.BatchNorm2d:
            return None
        assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        # cuDNN's grouped convolutions with ReLU are slow.
        if conv.groups > 1 or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
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
        return cls(weight, bias, conv.stride, conv.padding, conv.dilation)

    def __call__(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """Return ReLU(y), or ReLU(y + added), where y is the normalised convolution of x."""
        # cuDNN counts numbers of a tensor in 32 bits. PyTorch's convolution splits larger tensors.
        if not x.is_cuda or x.numel() // x.shape[1] * max(x.shape[1], len(self.bias)) >= 2**31:
            y = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation)
            return (y if added is None else y.add_(added)).relu_()
        options = (self.bias, self.stride, self.padding, self.dilation, 1)
        if added is None:
            return torch.cudnn_convolution_relu(x, self.weight, *options)
        return torch.cudnn_convolution_add_relu(x, self.weight, added, 1.0, *options)


def _fold(pairs: Sequence[tuple[nn.Module, nn.Module]]) -> list[_Folded] | None:
    """Fold pairs of layers; None if one of them is of another kind."""
    folded = [_Folded.of(*pair) for pair in pairs]
    return [layer for layer in folded if layer is not None] if all(folded) else None


def _conv_module(module: Any) -> Forward | None:
    if module.order != ("conv", "norm", "act") or not module.with_norm or not module.with_activation:
        return None
    if module.with_explicit_padding or module.with_spectral_norm or type(module.activate) is not nn.ReLU:
        return None
    folded = _Folded.of(module.conv, module.norm)
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
    """A block of ResNet; its last layers stay plain if plugins follow them, such as the context blocks of GCNet."""
    has_plugins = getattr(block, "with_plugins", False)
    if has_plugins and (block.after_conv1_plugins or block.after_conv2_plugins):
        return None
    folded = _fold(pairs[:-1] if has_plugins else pairs)
    if folded is None:
        return None

    def forward(x: Tensor) -> Tensor:
        identity = x if block.downsample is None else block.downsample(x)
        for layer in folded[: len(pairs) - 1]:
            x = layer(x)
        if not has_plugins:
            return folded[-1](x, identity)
        x = block.forward_plugin(block.norm3(block.conv3(x)), block.after_conv3_plugin_names)
        return x.add_(identity).relu_()

    return forward


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
class _Windows:
    """The windows of the feature maps of a batch, those without a mask first."""

    places: Tensor  # for each place in the windows, the token of the maps that stands there, (windows * N,)
    padded: Tensor  # places in the windows that lie outside of the maps: they hold zeros
    back: Tensor  # for each token of the maps, its place in the windows
    unmasked: int  # windows without a mask
    mask: Tensor  # is added to the attention within the others, (windows, 1, N, N)

    @classmethod
    def of(cls, images: int, height: int, width: int, side: int, shift: int, device: torch.device) -> _Windows:
        """Divide maps into windows as `ShiftWindowMSA` does, after the padded maps are rolled by `shift`."""
        rows, columns = (-(-length // side) * side for length in (height, width))
        y, x = ((torch.arange(length) + shift) % length for length in (rows, columns))
        places = (y[:, None] * width + x).masked_fill((y >= height)[:, None] | (x >= width), -1)
        # Tokens of different parts of the map, which rolling has brought together, do not see each other.
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


def _shifted_windows(
    module: Any, windows_of: Callable[..., _Windows], query: Tensor, hw_shape: tuple[int, int]
) -> Tensor:
    """Attention within the windows of Swin, of tokens (B, H * W, C)."""
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
    """Attention within windows; `added` (1 or windows, heads, N, N) is added to the weights before their softmax.

    Returns:
        Parts of the result, each (windows, N, C).
    """
    # PyTorch copies a tensor whose rows are not aligned.
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
    if type(activate) is nn.GELU and activate.approximate == "none" and _fits(hidden) and can_fuse(x.device):
        from genval.kernels.maps import depthwise

        hidden = depthwise(hidden, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, gelu=True)
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
