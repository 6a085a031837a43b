"""Names and shapes of tensors in the original Stable Diffusion formats (ldm, sgm and cldm) and in diffusers.

Each `*_sources` function maps the tensors of a diffusers model to keys of an original file and to the change of layout
between the two. Reading and writing use the same mapping. Each `*_config` function reads the sizes of a model from the
shapes in a file. Layer numbers are those of the published code (CompVis/latent-diffusion,
Stability-AI/generative-models and lllyasviel/ControlNet), which numbers the blocks in the order in which they run.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from genval.runtime.errors import GenValError

# Dtypes of saved weights, by `--save_dtype`.
SAVE_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
# The prefix of each part in a file.
UNET = "model.diffusion_model."
VAE = "first_stage_model."
TEXT = "cond_stage_model.transformer.text_model."
TEXT_XL = "conditioner.embedders.0.transformer.text_model."
TEXT_XL_2 = "conditioner.embedders.1.model."
CONTROL = "control_model."
# The noise schedule as 1000 values each; cldm's files have `logvar` too.
SCHEDULE = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
)
# Keys that are not weights of these parts: averaged copies, position tables, noise schedules, CLIP's logit scale.
EXTRA = re.compile(
    rf"{'|'.join(SCHEDULE)}|logvar|denoiser\.sigmas|model_ema\..*|.*\.position_ids|{re.escape(TEXT_XL_2)}logit_scale"
)

# Names inside a residual block of the UNet, and inside the VAE's blocks: diffusers -> original.
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE_BLOCK = {
    "conv_shortcut": "nin_shortcut",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
# A layer of CLIP as open_clip names it.
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


@dataclasses.dataclass(frozen=True)
class Source:
    """The source of a diffusers tensor in an original file.

    Attributes:
        key: the full key.
        change: layout in the original: "same"; "conv", a matrix (A, B) as a convolution (A, B, 1, 1); "transposed"; or
            "third 0", "third 1", "third 2", one of three matrices stacked along the first axis.
    """

    key: str
    change: str = "same"

    def read(self, tensor: torch.Tensor) -> torch.Tensor:
        """Convert the original's tensor to diffusers' layout; the result is a view if possible."""
        if self.change == "conv":
            return tensor.flatten(1)
        if self.change == "transposed":
            return tensor.transpose(0, 1)
        if self.change.startswith("third"):
            return tensor.chunk(3)[int(self.change[-1])]
        return tensor

    def fits(self, original: tuple[int, ...], ours: tuple[int, ...]) -> bool:
        """Return whether a tensor of the original's shape is converted to the shape `ours`."""
        if self.change.startswith("third") and (not original or original[0] % 3):
            return False
        if self.change in ("conv", "transposed") and len(original) not in (2, 4):
            return False
        return tuple(self.read(torch.empty(original, device="meta")).shape) == ours


def write(sources: Mapping[str, Source], tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Convert the tensors of a diffusers model to the original format, the inverse of `Source.read`."""
    written: dict[str, torch.Tensor] = {}
    thirds: dict[str, list[torch.Tensor]] = {}
    for name, source in sources.items():
        tensor = tensors[name]
        if source.change.startswith("third"):
            thirds.setdefault(source.key, [tensor] * 3)[int(source.change[-1])] = tensor
        elif source.change == "conv":
            written[source.key] = tensor[:, :, None, None]
        else:
            written[source.key] = tensor.T.contiguous() if source.change == "transposed" else tensor
    return written | {key: torch.cat(parts) for key, parts in thirds.items()}


def unet_sources(names: Iterable[str], config: Mapping[str, Any]) -> dict[str, Source]:
    """Return the sources of the tensors of diffusers' UNet2DConditionModel.

    Args:
        names: of its state dict.
        config: its config.
    """
    places = _encoder_places(config)
    levels, layers = len(config["block_out_channels"]), config["layers_per_block"]
    number = 0
    for level in range(levels):
        attends = config["up_block_types"][level].startswith("CrossAttn")
        for layer in range(layers + 1):
            places[f"up_blocks.{level}.resnets.{layer}"] = f"output_blocks.{number}.0"
            places[f"up_blocks.{level}.attentions.{layer}"] = f"output_blocks.{number}.1"
            if layer == layers and level < levels - 1:
                places[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{number}.{2 if attends else 1}.conv"
            number += 1
    places |= {"conv_norm_out": "out.0", "conv_out": "out.2"}
    return {name: Source(UNET + _renamed(name, places, _RESNET)) for name in names}


def controlnet_sources(names: Iterable[str], config: Mapping[str, Any]) -> dict[str, Source]:
    """Return the sources of the tensors of diffusers' ControlNetModel."""
    names = list(names)
    places = _encoder_places(config)
    zeros = {name.split(".")[1] for name in names if name.startswith("controlnet_down_blocks.")}
    places |= {f"controlnet_down_blocks.{number}": f"zero_convs.{number}.0" for number in zeros}
    blocks = 2 * (len(config["conditioning_embedding_out_channels"]) - 1)
    hint = "controlnet_cond_embedding"
    # The activations between the convolutions of the hint embedding have numbers too.
    places |= {f"{hint}.blocks.{block}": f"input_hint_block.{2 * block + 2}" for block in range(blocks)}
    places |= {f"{hint}.conv_in": "input_hint_block.0", f"{hint}.conv_out": f"input_hint_block.{2 * blocks + 2}"}
    places["controlnet_mid_block"] = "middle_block_out.0"
    return {name: Source(CONTROL + _renamed(name, places, _RESNET)) for name in names}


def vae_sources(names: Iterable[str], config: Mapping[str, Any]) -> dict[str, Source]:
    """Return the sources of the tensors of diffusers' AutoencoderKL, whose attention has convolutions there."""
    places = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    levels, layers = len(config["block_out_channels"]), config["layers_per_block"]
    for side, blocks, sampler, original in (
        ("encoder", "down_blocks", "downsamplers", "downsample"),
        ("decoder", "up_blocks", "upsamplers", "upsample"),
    ):
        for level in range(levels):
            # The decoder's levels are numbered like the encoder's, from the largest image to the smallest.
            number = level if side == "encoder" else levels - 1 - level
            name = "down" if side == "encoder" else "up"
            for layer in range(layers + 1):
                places[f"{side}.{blocks}.{level}.resnets.{layer}"] = f"{side}.{name}.{number}.block.{layer}"
            places[f"{side}.{blocks}.{level}.{sampler}.0.conv"] = f"{side}.{name}.{number}.{original}.conv"
        places |= {f"{side}.mid_block.resnets.{i}": f"{side}.mid.block_{i + 1}" for i in (0, 1)}
        places |= {f"{side}.mid_block.attentions.0": f"{side}.mid.attn_1"}
        places |= {f"{side}.conv_in": f"{side}.conv_in", f"{side}.conv_out": f"{side}.conv_out"}
        places[f"{side}.conv_norm_out"] = f"{side}.norm_out"
    is_matrix = re.compile(r".*\.to_(q|k|v|out\.0)\.weight")
    return {
        name: Source(VAE + _renamed(name, places, _VAE_BLOCK), "conv" if is_matrix.fullmatch(name) else "same")
        for name in names
    }


def text_sources(names: Iterable[str], prefix: str = TEXT) -> dict[str, Source]:
    """Return the sources of the tensors of transformers' CLIPTextModel, which have the same names there."""
    return {name: Source(prefix + name.removeprefix("text_model.")) for name in names}


def open_clip_sources(names: Iterable[str]) -> dict[str, Source]:
    """Return the sources of the tensors of transformers' CLIPTextModelWithProjection, in open_clip's layout."""
    fixed = {
        "embeddings.token_embedding.weight": Source("token_embedding.weight"),
        "embeddings.position_embedding.weight": Source("positional_embedding"),
        "final_layer_norm.weight": Source("ln_final.weight"),
        "final_layer_norm.bias": Source("ln_final.bias"),
        "text_projection.weight": Source("text_projection", "transposed"),
    }
    sources = {}
    for name in names:
        ours = name.removeprefix("text_model.")
        source = fixed.get(ours)
        if source is None:
            number, rest = ours.removeprefix("encoder.layers.").split(".", 1)
            block = f"transformer.resblocks.{number}"
            if third := re.fullmatch(r"self_attn\.([qkv])_proj\.(weight|bias)", rest):
                source = Source(f"{block}.attn.in_proj_{third[2]}", f"third {'qkv'.index(third[1])}")
            else:
                source = Source(f"{block}.{_renamed_inside(rest, _OPEN_CLIP_LAYER)}")
        sources[name] = dataclasses.replace(source, key=TEXT_XL_2 + source.key)
    return sources


class Shapes(dict[str, tuple[int, ...]]):
    """Shapes of a part's tensors by key without the part's prefix; a missing key raises GenValError."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], prefix: str, source: object) -> None:
        super().__init__((key[len(prefix) :], shape) for key, shape in shapes.items() if key.startswith(prefix))
        self.prefix = prefix
        self.source = source

    def __missing__(self, key: str) -> tuple[int, ...]:
        raise GenValError(f"{self.source} has no {self.prefix}{key}: the file is incomplete. Download it again.")

    def any_below(self, prefix: str) -> bool:
        """Return whether any key starts with a prefix."""
        return any(key.startswith(prefix) for key in self)

    def count(self, pattern: str) -> int:
        """Return for how many numbers 0, 1, 2, ... in place of `{}` some key starts with the pattern."""
        number = 0
        while self.any_below(pattern.format(number)):
            number += 1
        return number


def unet_config(shapes: Shapes) -> dict[str, Any]:
    """Return the config of a UNet2DConditionModel from its shapes; entries with diffusers' default are left out."""
    config = _encoder_config(shapes)
    attends = [name.startswith("CrossAttn") for name in config["down_block_types"]]
    return {
        **config,
        "out_channels": shapes["out.2.weight"][0],
        "up_block_types": ["CrossAttnUpBlock2D" if attends[i] else "UpBlock2D" for i in reversed(range(len(attends)))],
        "sample_size": 128 if "addition_embed_type" in config else 64,
    }


def controlnet_config(shapes: Shapes) -> dict[str, Any]:
    """Return the config of a ControlNetModel from its shapes. Files of this format do not record the hint encoding."""
    numbers = sorted({int(key.split(".")[1]) for key in shapes if key.startswith("input_hint_block.")})
    # One convolution in, two per level (the second halves the size and changes the width), one convolution out.
    widths = [shapes[f"input_hint_block.{number}.weight"][0] for number in numbers[:-1:2]]
    return {
        **_encoder_config(shapes),
        "conditioning_channels": shapes["input_hint_block.0.weight"][1],
        "conditioning_embedding_out_channels": widths,
    }


def vae_config(shapes: Shapes, is_xl: bool) -> dict[str, Any]:
    """Return the config of an AutoencoderKL from its shapes. The scaling factor is not in the file."""
    levels = shapes.count("encoder.down.{}.")
    channels = [shapes[f"encoder.down.{level}.block.0.conv1.weight"][0] for level in range(levels)]
    return {
        "in_channels": shapes["encoder.conv_in.weight"][1],
        "out_channels": shapes["decoder.conv_out.weight"][0],
        "block_out_channels": channels,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": shapes.count("encoder.down.0.block.{}."),
        "latent_channels": shapes["post_quant_conv.weight"][0],
        "sample_size": 1024 if is_xl else 512,
        "scaling_factor": 0.13025 if is_xl else 0.18215,
    }


def text_config(shapes: Shapes) -> dict[str, Any]:
    """Return the config of a CLIPTextModel (OpenAI's CLIP) from its shapes; heads are assumed to be 64 wide."""
    vocabulary, width = shapes["embeddings.token_embedding.weight"]
    return {
        **_clip_config(vocabulary, width),
        "intermediate_size": shapes["encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": shapes.count("encoder.layers.{}."),
        "max_position_embeddings": shapes["embeddings.position_embedding.weight"][0],
        "projection_dim": width,
        "hidden_act": "quick_gelu",
    }


def open_clip_config(shapes: Shapes) -> dict[str, Any]:
    """Return the config of a CLIPTextModelWithProjection from the shapes of open_clip's text encoder."""
    vocabulary, width = shapes["token_embedding.weight"]
    return {
        **_clip_config(vocabulary, width),
        "intermediate_size": shapes["transformer.resblocks.0.mlp.c_fc.weight"][0],
        "num_hidden_layers": shapes.count("transformer.resblocks.{}."),
        "max_position_embeddings": shapes["positional_embedding"][0],
        "projection_dim": shapes["text_projection"][1],
        "hidden_act": "gelu",
    }


def _clip_config(vocabulary: int, width: int) -> dict[str, Any]:
    # The last two tokens of CLIP's vocabulary are those for begin and end.
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_attention_heads": max(1, width // 64),
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": vocabulary - 1,
    }


def _encoder_places(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the original names of the modules that UNet and ControlNet share, by their names in diffusers."""
    places = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "conv_in": "input_blocks.0.0",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
    }
    number = 1
    levels = len(config["block_out_channels"])
    for level in range(levels):
        for layer in range(config["layers_per_block"]):
            places[f"down_blocks.{level}.resnets.{layer}"] = f"input_blocks.{number}.0"
            places[f"down_blocks.{level}.attentions.{layer}"] = f"input_blocks.{number}.1"
            number += 1
        if level < levels - 1:
            places[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
            number += 1
    return places


def _encoder_config(shapes: Shapes) -> dict[str, Any]:
    channels, depths, layers = _levels(shapes)
    middle = "middle_block.1."
    middle_depth = shapes.count(middle + "transformer_blocks.{}.")
    is_linear = len(shapes[middle + "proj_in.weight"]) == 2
    # A level without attention has no depth. The depth of the last level is also that of the middle block.
    depths = [depth or (middle_depth if level == len(depths) - 1 else 1) for level, depth in enumerate(depths)]
    config = {
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "block_out_channels": channels,
        "down_block_types": [
            "CrossAttnDownBlock2D" if shapes.any_below(f"input_blocks.{first}.1.") else "DownBlock2D"
            for first in _first_blocks(len(channels), layers)
        ],
        "layers_per_block": layers,
        "transformer_layers_per_block": depths[0] if len(set(depths)) == 1 else depths,
        "cross_attention_dim": shapes[middle + "transformer_blocks.0.attn2.to_k.weight"][1],
        "use_linear_projection": is_linear,
        # diffusers' name is misleading: these are numbers of heads. 1.x has 8 everywhere, later models are 64 wide.
        "attention_head_dim": [max(1, width // 64) for width in channels] if is_linear else 8,
    }
    if "label_emb.0.0.weight" in shapes:
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": shapes["label_emb.0.0.weight"][1],
        }
    return config


def _levels(shapes: Shapes) -> tuple[list[int], list[int], int]:
    """Return the channels and attention depths of the encoder's levels, and the residual blocks per level."""
    channels, depths, layers = [0], [0], [0]
    for number in range(1, shapes.count("input_blocks.{}.")):
        if shapes.any_below(f"input_blocks.{number}.0.op."):
            channels, depths, layers = [*channels, 0], [*depths, 0], [*layers, 0]
        else:
            channels[-1] = shapes[f"input_blocks.{number}.0.out_layers.3.weight"][0]
            depths[-1] = shapes.count(f"input_blocks.{number}.1.transformer_blocks.{{}}.")
            layers[-1] += 1
    if len(set(layers)) > 1:
        raise GenValError(
            f"{shapes.source}: expected as many blocks at every level of {shapes.prefix}*, found {layers}: "
            "the file is incomplete. Fetch or make it again."
        )
    return channels, depths, layers[0]


def _first_blocks(levels: int, layers: int) -> list[int]:
    """Return the number of each level's first block; block 0 is the first convolution, and downsamplers count too."""
    return [1 + level * (layers + 1) for level in range(levels)]


def _renamed(name: str, places: Mapping[str, str], inner: Mapping[str, str]) -> str:
    """Return the original name of a tensor: its module by `places`, the rest of the name by `inner`."""
    parts = name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        place = places.get(".".join(parts[:cut]))
        if place is not None:
            return f"{place}.{_renamed_inside('.'.join(parts[cut:]), inner)}"
    raise GenValError(f"{name} has no name in the original format: the model is not a Stable Diffusion 1 or XL.")


def _renamed_inside(rest: str, inner: Mapping[str, str]) -> str:
    for ours, theirs in inner.items():
        if rest.startswith(ours + "."):
            return theirs + rest.removeprefix(ours)
    return rest
