"""The networks of contrastive unpaired translation, for several domains at once.

Park, Efros, Zhang, Zhu: Contrastive Learning for Unpaired Image-to-Image Translation, ECCV 2020.

One translator serves all domains: each domain has its own scales and shifts after instance normalisation (Dumoulin,
Shlens, Kudlur: A Learned Representation for Artistic Style, ICLR 2017). The discriminator has one output per domain.
Unlike in the paper, the features of the first layer are also added before the last one, so that small objects and
edges are kept early in the training.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genval.runtime.errors import GenValError
from genval.runtime.files import read_json, replace_file, write_json

WEIGHTS, CONFIG = "translator.safetensors", "config.json"
STRIDE = 4
"""Height and width of a translator's images are multiples of this."""
_HEAD_CHANNELS = 256
_TEMPERATURE = 0.07  # of the contrastive loss, as in the paper


def normalise(features: Tensor) -> Tensor:
    """Instance normalisation in float32: each channel of each image (B, C, H, W) gets mean 0 and variance 1."""
    wide = features.float()
    variance, mean = torch.var_mean(wide, (2, 3), correction=0, keepdim=True)
    return (wide - mean) * torch.rsqrt(variance + 1e-5)


class DomainNorm(nn.Module):
    """Instance normalisation with a scale and a shift per channel and domain."""

    def __init__(self, domains: int, channels: int) -> None:
        super().__init__()
        # Domains that start equal would need thousands of steps to differ.
        self.scale = nn.Parameter(1 + 0.3 * torch.randn(domains, channels))
        self.shift = nn.Parameter(0.3 * torch.randn(domains, channels))

    def forward(self, features: Tensor, domain: Tensor) -> Tensor:
        """Normalise features (B, C, H, W) of the domains (B,)."""
        scale, shift = self.scale[domain, :, None, None], self.shift[domain, :, None, None]
        return (normalise(features) * scale + shift).to(features.dtype)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions whose result is added to their input."""

    def __init__(self, domains: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = DomainNorm(domains, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = DomainNorm(domains, channels)

    def forward(self, features: Tensor, domain: Tensor) -> Tensor:
        inner = F.relu(self.norm1(self.conv1(features), domain))
        return features + self.norm2(self.conv2(inner), domain)


class Translator(nn.Module):
    """Translates images into a domain: two downsampling layers, residual blocks, two upsampling layers.

    Args:
        domains: their names; an image's domain is an index into them.
        channels: of the first layer.
        blocks: number of residual blocks.
        height, width: size of the training's images in pixels.
    """

    def __init__(self, domains: Sequence[str], channels: int, blocks: int, height: int, width: int) -> None:
        super().__init__()
        self.domains, self.channels = tuple(domains), channels
        self.height, self.width = height, width
        count, wide = len(self.domains), 4 * channels
        self.first = nn.Conv2d(3, channels, 7, padding=3, padding_mode="reflect", bias=False)
        self.down = nn.ModuleList(
            nn.Conv2d(factor * channels, 2 * factor * channels, 3, stride=2, padding=1, bias=False) for factor in (1, 2)
        )
        self.blocks = nn.ModuleList(ResidualBlock(count, wide) for _ in range(blocks))
        self.up = nn.ModuleList(
            nn.Conv2d(2 * factor * channels, factor * channels, 3, padding=1, bias=False) for factor in (2, 1)
        )
        self.up_norms = nn.ModuleList(DomainNorm(count, factor * channels) for factor in (2, 1))
        self.skip_norm = DomainNorm(count, channels)
        self.last = nn.Conv2d(channels, 3, 7, padding=3, padding_mode="reflect")
        _initialise(self)

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """Channels of the features that `forward` returns."""
        return 3, 2 * self.channels, 4 * self.channels, 4 * self.channels, 4 * self.channels

    def forward(
        self, images: Tensor, domain: Tensor, only_features: bool = False
    ) -> tuple[Tensor | None, list[Tensor]]:
        """Translate images.

        Args:
            images: (B, 3, H, W), -1..1; H and W are multiples of 4.
            domain: (B,) int64.
            only_features: compute only the features.

        Returns:
            The translated images, float32 (B, 3, H, W), -1..1, or None; and the features that the contrastive loss
            compares: the input, both downsampled features, and those after the first and the middle block.
        """
        features = [images]
        hidden = fine = _activate(self.first(images))
        for conv in self.down:
            hidden = _activate(conv(hidden))
            features.append(hidden)
        middle = len(self.blocks) // 2
        for number, block in enumerate(self.blocks):
            hidden = block(hidden, domain)
            features += [hidden] * ((number == 0) + (number == middle))
            if only_features and number == middle:
                return None, features
        for conv, norm in zip(self.up, self.up_norms, strict=True):
            hidden = F.relu(norm(conv(F.interpolate(hidden, scale_factor=2.0, mode="nearest")), domain))
        hidden = hidden + self.skip_norm(fine, domain)
        with torch.autocast(images.device.type, enabled=False):  # 16 bits are too coarse for the image itself
            return torch.tanh(self.last(hidden.float())), features


class Discriminator(nn.Module):
    """PatchGAN: tells real from translated patches of 70x70 pixels, by one output per domain."""

    def __init__(self, domains: int, channels: int) -> None:
        super().__init__()
        sizes = [3, *(channels * factor for factor in (1, 2, 4, 8))]
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, 4, stride=1 if number == 3 else 2, padding=1)
            for number, (before, after) in enumerate(pairwise(sizes))
        )
        self.last = nn.Conv2d(sizes[-1], domains, 4, padding=1)
        _initialise(self)

    def forward(self, images: Tensor, domain: Tensor) -> Tensor:
        """Return one value per patch, (B, h, w): 1 for real images (B, 3, H, W) of their domain (B,), 0 for others."""
        hidden = images
        for number, conv in enumerate(self.convs):
            hidden = conv(hidden)
            hidden = F.leaky_relu(normalise(hidden).to(hidden.dtype) if number else hidden, 0.2)
        values: Tensor = self.last(hidden)
        return values[torch.arange(len(values), device=values.device), domain]


class PatchHeads(nn.Module):
    """One MLP per layer of features, which maps the features of a patch to a unit vector."""

    def __init__(self, feature_channels: Sequence[int]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(channels, _HEAD_CHANNELS), nn.ReLU(), nn.Linear(_HEAD_CHANNELS, _HEAD_CHANNELS))
            for channels in feature_channels
        )
        _initialise(self)

    def forward(self, features: Sequence[Tensor], positions: Tensor) -> list[Tensor]:
        """Return the vectors, float32 (B, P, 256) per layer.

        Args:
            features: of the layers, (B, C, H, W) each.
            positions: (B, P, 2), rows and columns of the patches on the coarsest layer.
        """
        vectors = []
        rows = features[-1].shape[2]
        for head, layer in zip(self.heads, features, strict=True):
            factor = layer.shape[2] // rows
            places = positions * factor + factor // 2
            index = places[..., 0] * layer.shape[3] + places[..., 1]
            flat = layer.permute(0, 2, 3, 1).flatten(1, 2)
            patches = flat.gather(1, index[..., None].expand(-1, -1, flat.shape[2]))
            vectors.append(F.normalize(head(patches).float(), dim=2))
        return vectors


def patch_loss(queries: Sequence[Tensor], keys: Sequence[Tensor]) -> Tensor:
    """The PatchNCE loss: a patch of the output must resemble the same patch of the input more than its other patches.

    Args:
        queries, keys: unit vectors of the patches of outputs and inputs, float32 (B, P, D) per layer.
    """
    losses = []
    for query, key in zip(queries, keys, strict=True):
        with torch.autocast(query.device.type, enabled=False):
            logits = query @ key.detach().transpose(1, 2) / _TEMPERATURE
        target = torch.arange(logits.shape[1], device=logits.device).repeat(len(logits))
        losses.append(F.cross_entropy(logits.flatten(0, 1), target))
    return torch.stack(losses).mean()


def save_translator(translator: Translator, folder: Path, dtype: str) -> None:
    """Write a translator's weights and config.

    Args:
        dtype: of the weights, "fp32" or "fp16".
    """
    from safetensors.torch import save_file

    kind = torch.float16 if dtype == "fp16" else torch.float32
    weights = {name: value.to("cpu", kind).contiguous() for name, value in translator.state_dict().items()}
    with replace_file(folder / WEIGHTS) as temporary:
        save_file(weights, temporary)
    config = {
        "domains": list(translator.domains),
        "channels": translator.channels,
        "blocks": len(translator.blocks),
        "height": translator.height,
        "width": translator.width,
    }
    write_json(folder / CONFIG, config)


class _Config(TypedDict):
    domains: list[str]
    channels: int
    blocks: int
    height: int
    width: int


def find_translator(folder: Path) -> Path:
    """Return the folder of a translator.

    Raises:
        GenValError: a file is missing.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise GenValError(
                f"No translator in {folder}: expected {CONFIG} and {WEIGHTS}. Run: python "
                "ControlNet/train_translation.py, or give --translator FOLDER."
            )
    return folder


def load_translator(folder: Path) -> Translator:
    """Read a translator on the CPU, in float32 and evaluation mode.

    Raises:
        GenValError: a file is missing or damaged, or the weights do not fit the config.
    """
    from safetensors.torch import load_file

    translator = Translator(**read_json(find_translator(folder) / CONFIG, _Config))
    try:
        weights = {name: value.float() for name, value in load_file(folder / WEIGHTS).items()}
        translator.load_state_dict(weights)
    except Exception as error:  # safetensors has its own exception; torch raises RuntimeError
        reason = str(error).partition("\n")[0]
        raise GenValError(f"{folder / WEIGHTS} is not what {CONFIG} says ({reason}). Train it again.") from error
    return translator.requires_grad_(False).eval()


def to_uint8(images: Tensor) -> Tensor:
    """Return images of -1..1 as uint8."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def _activate(features: Tensor) -> Tensor:
    return F.relu(normalise(features)).to(features.dtype)


def _initialise(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.normal_(module.weight, 0.0, 0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
