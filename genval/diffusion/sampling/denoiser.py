"""One denoising step: a UNet with or without a ControlNet, under classifier-free guidance.

The modules and their weights are diffusers'. The forward pass is written here and in
`genval.diffusion.sampling.blocks`; tests compare it with diffusers'. It is faster for four reasons:

- values that are the same at every step are computed once: the embedded hint, the keys and values of the text, and the
  projected time embeddings of all steps;
- the batches with and without the prompt are identical up to the first cross-attention, so they are computed once;
- queries, keys and values of a self-attention are one matrix product;
- on an NVIDIA GPU, hand-written kernels compute the operations between convolutions, matrix products and attention
  (`genval.diffusion.sampling.fused`). With `compiled`, PyTorch generates kernels instead, which takes minutes.

Small batches, whose time is mostly that of launching kernels, are replayed from a CUDA graph, in which the ControlNet
and the UNet's encoder run in parallel.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from genval.diffusion.models.pipelines import StableDiffusion, TextStates
from genval.diffusion.sampling.blocks import PLAIN, Blocks, heads, repeat
from genval.kernels.availability import can_fuse
from genval.runtime.devices import to_device
from genval.runtime.errors import GenValError

# In order of speed on an H100; PyTorch takes the first backend that supports the size of the heads.
_ATTENTION = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
_BLOCKS = {
    "DownBlock2D",
    "CrossAttnDownBlock2D",
    "UNetMidBlock2DCrossAttn",
    "CrossAttnUpBlock2D",
    "UpBlock2D",
}
# The entries of a config that the code below assumes.
_EXPECTED = {
    "act_fn": "silu",
    "resnet_time_scale_shift": "default",
    "class_embed_type": None,
    "encoder_hid_dim_type": None,
    "only_cross_attention": False,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
}
# Up to this number of pixels per batch, launching the kernels takes longer than running them.
_GRAPHED_PIXELS = 8 * 512 * 512
INDUCTOR_OPTIONS: dict[str, Any] = {"conv_1x1_as_mm": True}
_SHAPES = 128


@dataclasses.dataclass(frozen=True)
class NetworkConditions:
    """The conditions of one network, which are the same at every step.

    Attributes:
        times: (steps, R, T), the projected time embeddings of all residual blocks, concatenated. R is 1, or the rows of
            the batch if the embedding contains the prompt (Stable Diffusion XL).
        texts: keys and values of each cross-attention, (rows, heads, tokens, channels of a head).
    """

    times: torch.Tensor
    texts: list[torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Conditions:
    """The conditions of a batch.

    Attributes:
        unet: of the UNet.
        control: of the ControlNet; None without one.
        hint: the embedded hint, (B, C, h, w); None without a ControlNet.
        extra_channels: (B, C', h, w), the input of an inpainting UNet in addition to the latents; None for others.
    """

    unet: NetworkConditions
    control: NetworkConditions | None
    hint: torch.Tensor | None
    extra_channels: torch.Tensor | None


class Denoiser:
    """Predicts the noise (or velocity) in latents, given masks and prompts.

    Args:
        base: the Stable Diffusion model.
        controlnet: on the base's device and of its dtype, or None.
        strength: factor on all residuals of the ControlNet.
        guidance_scale: of classifier-free guidance; 1 or less disables it.
        compiled: generate kernels for the shape of the first batch; every other shape is compiled again. Blocks of one
            shape share their kernels, and PyTorch caches them on disk.
        graphed: replay small batches from a CUDA graph on a CUDA device. The graph's memory stays allocated.

    Raises:
        GenValError: a network does not have Stable Diffusion's architecture.
    """

    def __init__(
        self,
        base: StableDiffusion,
        controlnet: Any | None,
        strength: float,
        guidance_scale: float,
        compiled: bool = False,
        graphed: bool = False,
    ) -> None:
        check_network(base.unet, "The base's UNet")
        if controlnet is not None:
            check_network(controlnet, "The ControlNet")
        self.base, self.controlnet = base, controlnet
        self.strength, self.guidance_scale = strength, guidance_scale
        self.compiled = compiled
        self._networks = [base.unet] if controlnet is None else [base.unet, controlnet]
        self._qkv = {network: _fused_qkv(network) for network in self._networks}
        self._blocks = PLAIN
        self._memory = torch.contiguous_format
        self._graph: _Graph | None = None
        self._side = torch.cuda.Stream(base.device) if graphed and base.device.type == "cuda" else None
        if compiled:
            self._blocks = dataclasses.replace(
                PLAIN, resnet=compile_shapes(PLAIN.resnet), transformer=compile_shapes(PLAIN.transformer)
            )
        elif can_fuse(base.device):
            from genval.diffusion.sampling import fused

            self._blocks = fused.BLOCKS
        if self._blocks is not PLAIN:
            self._memory = torch.channels_last
            for network in self._networks:
                # Generated kernels are shared only by weights that agree in layout and in whether they need gradients.
                network.to(memory_format=torch.channels_last).requires_grad_(False)

    @property
    def guided(self) -> bool:
        """Whether classifier-free guidance is on, so that a batch is computed with and without its prompts."""
        return self.guidance_scale > 1

    @torch.no_grad()
    def condition(
        self,
        text: TextStates,
        hints: torch.Tensor | None,
        timesteps: torch.Tensor,
        added: dict[str, torch.Tensor] | None,
        extra_channels: torch.Tensor | None = None,
    ) -> Conditions:
        """Compute the conditions of a batch, which all steps share.

        Args:
            text: one row per image; with guidance first the negative prompts, then the prompts.
            hints: (B, channels, H, W), of the ControlNet; None without one.
            timesteps: (steps,), all timesteps of the run.
            added: of `StableDiffusion.added_conditions`, one row per row of `text`.
            extra_channels: (B, C', h, w), the input channels of an inpainting UNet that follow the latents.
        """
        unet, *control = (
            NetworkConditions(_times(network, timesteps, added), _text_keys_and_values(network, text.states))
            for network in self._networks
        )
        extra_channels = None if extra_channels is None else extra_channels.to(self.base.dtype)
        if self.controlnet is None or hints is None:
            return Conditions(unet, None, None, extra_channels)
        hints = hints.to(self.base.dtype).contiguous(memory_format=self._memory)
        return Conditions(unet, control[0], self.controlnet.controlnet_cond_embedding(hints), extra_channels)

    @torch.no_grad()
    def __call__(self, latents: torch.Tensor, step: int, conditions: Conditions) -> torch.Tensor:
        """Return the guided prediction at a step, (B, C, h, w) float32.

        Args:
            latents: (B, C, h, w), scaled by the scheduler.
            step: index into the timesteps of the conditions.
            conditions: of `condition`.
        """
        noisy = latents.to(self.base.dtype)
        if conditions.extra_channels is not None:
            noisy = torch.cat([noisy, conditions.extra_channels], dim=1)
        noisy = noisy.contiguous(memory_format=self._memory)
        inputs = [noisy, conditions.unet.times[step], *conditions.unet.texts]
        if conditions.control is not None and conditions.hint is not None:
            inputs += [conditions.hint, conditions.control.times[step], *conditions.control.texts]
        pixels = latents.shape[0] * latents.shape[2] * latents.shape[3] * self.base.downscale**2
        with fast_attention(latents.device):
            if self._side is not None and pixels <= _GRAPHED_PIXELS:
                shapes = [tuple(tensor.shape) for tensor in inputs]
                if self._graph is None or self._graph.shapes != shapes:
                    self._graph = None  # frees its memory before the next one is recorded
                    self._graph = _Graph(lambda tensors: self._predict(tensors, self._side), inputs)
                predicted = self._graph(inputs).float()
            else:
                predicted = self._predict(inputs).float()
        if not self.guided:
            return predicted
        unconditional, conditional = predicted.chunk(2)
        return unconditional + self.guidance_scale * (conditional - unconditional)

    def _predict(self, inputs: list[torch.Tensor], side: torch.cuda.Stream | None = None) -> torch.Tensor:
        """Return the prediction, (rows, C, h, w). The ControlNet runs on the CUDA stream `side`, if one is given."""
        unet, controlnet = self.base.unet, self.controlnet
        (noisy, unet_time, *unet_texts), control_inputs = _split(inputs, 2 + 2 * len(cross_attentions(unet)))
        residuals: list[torch.Tensor] = []
        if control_inputs:
            hint, control_time, *control_texts = control_inputs
            with _second_stream(side):
                residuals = control(
                    controlnet,
                    noisy,
                    hint,
                    control_time,
                    control_texts,
                    self._qkv[controlnet],
                    self.strength,
                    self._blocks,
                )
        attentions, width = _encoder_sizes(unet)
        encoder_qkv, decoder_qkv = _split(self._qkv[unet], attentions)
        encoder_texts, decoder_texts = _split(unet_texts, 2 * attentions)
        encoder_time, decoder_time = unet_time.split([width, unet_time.shape[-1] - width], dim=-1)
        skips = encode(unet, noisy, None, encoder_time, encoder_texts, encoder_qkv, self._blocks)
        if side is not None and control_inputs:
            torch.cuda.current_stream().wait_stream(side)
        return decode(unet, skips, residuals, decoder_time, decoder_texts, decoder_qkv, self._blocks)


@contextlib.contextmanager
def _second_stream(side: torch.cuda.Stream | None) -> Iterator[None]:
    """Run the block on another CUDA stream, after the work that is queued on the current one."""
    if side is None:
        yield
        return
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        yield


@contextlib.contextmanager
def fast_attention(device: torch.device) -> Iterator[None]:
    """Prefer the attention kernels that are fastest on a CUDA device."""
    if device.type != "cuda":
        yield
        return
    with sdpa_kernel(_ATTENTION, set_priority=True):
        yield


class _Graph:
    """A CUDA graph of a function: its kernels are recorded once and replayed on new values of its inputs."""

    def __init__(self, function: Any, inputs: list[torch.Tensor]) -> None:
        self.shapes = [tuple(tensor.shape) for tensor in inputs]
        self.inputs = [tensor.clone() for tensor in inputs]
        # The first calls compile, choose algorithms and allocate workspaces, which is not allowed during a recording.
        warm_up = torch.cuda.Stream()
        warm_up.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(warm_up):
            for _ in range(3):
                function(self.inputs)
        torch.cuda.current_stream().wait_stream(warm_up)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.output = function(self.inputs)

    def __call__(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        torch._foreach_copy_(self.inputs, inputs)
        self.graph.replay()
        return self.output


def encode(
    network: Any,
    noisy: torch.Tensor,
    hint: torch.Tensor | None,
    time: torch.Tensor,
    texts: list[torch.Tensor],
    qkv: list[torch.Tensor],
    blocks: Blocks,
) -> list[torch.Tensor]:
    """Run the encoder and the middle block of a UNet or ControlNet.

    Args:
        network: the UNet or ControlNet.
        noisy: (B, C, h, w), the noisy latents.
        hint: (B, C', h, w), the embedded hint of a ControlNet, which is added to the output of the first layer.
        time: (R, T'), this encoder's part of `NetworkConditions.times` at one step.
        texts: this encoder's part of `NetworkConditions.texts`.
        qkv: this encoder's fused self-attention weights.
        blocks: what runs the blocks.

    Returns:
        The skip connections, then the output of the middle block. Before the first cross-attention they have as many
        rows as `noisy`, after it as many as `texts`.
    """
    x = blocks.convolve(network.conv_in, noisy)
    if hint is not None:
        x = x + hint
    if time.shape[0] > 1:  # the time embedding contains the prompt, so no layer can be shared
        x = repeat(x, time.shape[0])
    layers = _Layers(network.down_blocks, network.mid_block, time, texts, qkv, blocks)
    skips = [x]
    for block in network.down_blocks:
        for resnet, attention in zip(block.resnets, _attentions(block), strict=True):
            x = layers.resnet(resnet, x)
            if attention is not None:
                x = layers.transformer(attention, x)
            skips.append(x)
        for downsampler in block.downsamplers or ():
            x = blocks.convolve(downsampler.conv, x)
            skips.append(x)
    middle = network.mid_block
    x = layers.resnet(middle.resnets[0], x)
    for attention, resnet in zip(middle.attentions, middle.resnets[1:], strict=True):
        x = layers.resnet(resnet, layers.transformer(attention, x))
    return [*skips, x]


def control(
    controlnet: Any,
    noisy: torch.Tensor,
    hint: torch.Tensor,
    time: torch.Tensor,
    texts: list[torch.Tensor],
    qkv: list[torch.Tensor],
    strength: float,
    blocks: Blocks,
) -> list[torch.Tensor]:
    """Return the residuals of the ControlNet, one per output of `encode`, multiplied by `strength`."""
    outputs = encode(controlnet, noisy, hint, time, texts, qkv, blocks)
    convolutions = [*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block]
    return [blocks.residual(layer, output, strength) for layer, output in zip(convolutions, outputs, strict=True)]


def decode(
    unet: Any,
    skips: list[torch.Tensor],
    residuals: list[torch.Tensor],
    time: torch.Tensor,
    texts: list[torch.Tensor],
    qkv: list[torch.Tensor],
    blocks: Blocks,
) -> torch.Tensor:
    """Run the decoder of a UNet on the outputs of `encode` and `control`; return the prediction, (rows, C, h, w)."""
    # Each skip connection and what is added to it.
    joined = [*zip(skips, residuals or itertools.repeat(None, len(skips)), strict=True)]
    middle, added = joined.pop()
    x = middle if added is None else middle + added
    layers = _Layers(unet.up_blocks, None, time, texts, qkv, blocks)
    for block in unet.up_blocks:
        for resnet, attention in zip(block.resnets, _attentions(block), strict=True):
            x = layers.resnet(resnet, blocks.join(x, *joined.pop()))
            if attention is not None:
                x = layers.transformer(attention, x)
        for upsampler in block.upsamplers or ():
            x = blocks.convolve(upsampler.conv, blocks.upsample(x))
    return blocks.last(unet, x)


class _Layers:
    """Runs the layers of a network in order; each layer takes its own part of the precomputed conditions."""

    def __init__(
        self,
        network_blocks: Any,
        middle: Any,
        time: torch.Tensor,
        texts: list[torch.Tensor],
        qkv: list[torch.Tensor],
        blocks: Blocks,
    ) -> None:
        resnets = _resnets([*network_blocks, *([middle] if middle is not None else [])])
        self.times = iter(time.split([block.out_channels for block in resnets], dim=-1))
        self.texts = iter(texts)
        self.qkv = iter(qkv)
        self.blocks = blocks

    def resnet(self, block: Any, x: torch.Tensor) -> torch.Tensor:
        # A part of a larger tensor has other strides in each network, for which kernels would be compiled again.
        time = next(self.times)
        return self.blocks.resnet(block, x, time.flatten().view(time.shape))

    def transformer(self, module: Any, x: torch.Tensor) -> torch.Tensor:
        depth = len(module.transformer_blocks)
        texts = list(itertools.islice(self.texts, 2 * depth))
        return self.blocks.transformer(module, x, texts, list(itertools.islice(self.qkv, depth)))


def compile_shapes(part: Any) -> Any:
    """Compile a function or the forward pass of a module for each combination of shapes that it is called with.

    Blocks of one shape share their kernels, in all networks: the weights are inputs of what is compiled.

    Returns:
        The compiled function; None for a module, which is changed in place.
    """
    # The blocks of a UNet have about 20 shapes; by default PyTorch gives up after 8.
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, _SHAPES)
    options: dict[str, Any] = {"dynamic": False, "fullgraph": True}
    if torch.cuda.is_available():
        options["options"] = INDUCTOR_OPTIONS
    return part.compile(**options) if isinstance(part, torch.nn.Module) else torch.compile(part, **options)


def check_network(network: Any, source: str) -> None:
    """Check that a UNet or ControlNet has the layers of Stable Diffusion 1, 2 or XL.

    Args:
        network: the UNet or ControlNet.
        source: its name in errors.

    Raises:
        GenValError: a layer or an entry of the config is not supported.
    """
    config = network.config
    kinds = [*config.down_block_types, *config.get("up_block_types", ()), config.mid_block_type]
    unsupported = [str(kind) for kind in kinds if kind not in _BLOCKS]
    unsupported += [f"{key} {config[key]}" for key, value in _EXPECTED.items() if config.get(key, value) != value]
    if config.addition_embed_type not in (None, "text_time"):
        unsupported.append(f"addition_embed_type {config.addition_embed_type}")
    if unsupported:
        raise GenValError(
            f"{source} is not of Stable Diffusion 1, 2 or XL: found {', '.join(unsupported)}. Give another base or "
            "ControlNet."
        )


def cross_attentions(network: Any) -> list[Any]:
    """Return the cross-attentions of a UNet or ControlNet in the order in which they run."""
    return [block.attn2 for block in _transformer_blocks(network)]


def _blocks(network: Any) -> list[Any]:
    return [*network.down_blocks, network.mid_block, *getattr(network, "up_blocks", ())]


def _encoder_sizes(unet: Any) -> tuple[int, int]:
    """Return the number of self-attentions in the encoder and middle block, and the size of their part of `times`."""
    blocks = [*unet.down_blocks, unet.mid_block]
    attentions = [attention for block in blocks for attention in _attentions(block) if attention is not None]
    return (
        sum(len(attention.transformer_blocks) for attention in attentions),
        sum(resnet.out_channels for resnet in _resnets(blocks)),
    )


def _attentions(block: Any) -> list[Any]:
    return list(getattr(block, "attentions", [None] * len(block.resnets)))


def _resnets(blocks: list[Any]) -> list[Any]:
    return [resnet for block in blocks for resnet in block.resnets]


def _transformer_blocks(network: Any) -> list[Any]:
    attentions = [attention for block in _blocks(network) for attention in _attentions(block) if attention is not None]
    return [block for attention in attentions for block in attention.transformer_blocks]


def _fused_qkv(network: Any) -> list[torch.Tensor]:
    """Return the (3C, C) weights of each self-attention, in the order in which they run."""
    attentions = [block.attn1 for block in _transformer_blocks(network)]
    return [torch.cat([a.to_q.weight, a.to_k.weight, a.to_v.weight]).detach() for a in attentions]


def _text_keys_and_values(network: Any, states: torch.Tensor) -> list[torch.Tensor]:
    return [
        heads(projection(states), attention.heads).contiguous()
        for attention in cross_attentions(network)
        for projection in (attention.to_k, attention.to_v)
    ]


def _times(network: Any, timesteps: torch.Tensor, added: dict[str, torch.Tensor] | None) -> torch.Tensor:
    """Return `NetworkConditions.times` of a network."""
    dtype, device = network.conv_in.weight.dtype, network.conv_in.weight.device
    embedded = network.time_embedding(network.time_proj(to_device(timesteps, device)).to(dtype))[:, None]
    if added is not None:
        sizes = network.add_time_proj(added["time_ids"].flatten()).reshape(len(added["text_embeds"]), -1)
        texts_and_sizes = torch.cat([added["text_embeds"], sizes.to(added["text_embeds"])], dim=-1)
        embedded = embedded + network.add_embedding(texts_and_sizes.to(dtype))
    embedded = F.silu(embedded)
    return torch.cat([resnet.time_emb_proj(embedded) for resnet in _resnets(_blocks(network))], dim=-1)


def _split(values: list[torch.Tensor], first: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    return values[:first], values[first:]
