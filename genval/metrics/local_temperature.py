"""Local temperature scaling: a small network that gives each pixel of an image a temperature of its own.

Source: Ding et al., "Local Temperature Scaling for Probability Calibration" (ICCV 2021), section 3.3. Its network is a
binary tree: four convolutions of the logits, 5x5 with dilation 2, are the leaves; at each fork a further convolution of
the logits decides, pixel by pixel, how much of either branch passes (a sigmoid); at the last one the tree meets a
convolution of the image. It is trained by the negative log likelihood of a calibration set's labels. Dividing a pixel's
logits by one positive number keeps its predicted class.

Three things differ from the paper. A branch gives the logarithm of a factor on the best single temperature, so that any
temperature is positive and training starts at plain temperature scaling, where the paper's ReLU can stay at zero. The
forks start at small random weights: from zero weights, as published, all leaves would remain one and the same. What
goes in is each logit's distance from the pixel's largest, since the softmax knows nothing else.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from genval.runtime.errors import GenValError

# Distances that the network is shown end here, and are divided by this.
_LOWEST, _UNIT = -40.0, 10.0
# Of the logarithm of the factor: temperatures from a 20th to 20 times the single one.
_RANGE = 3.0
_LEAVES, _FORKS = 4, 3


class LocalTemperature(nn.Module):
    """From logits and image to temperatures.

    Args:
        classes: channels of the logits.
        temperature: the single temperature that training starts from, above 0.
        generator: of the initial weights; None gives zeros, for weights that are loaded.
    """

    def __init__(self, classes: int = 19, temperature: float = 1.0, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if not temperature > 0:
            raise GenValError(f"A temperature must be above 0, found {temperature}.")
        self.leaves = _convolution(classes, _LEAVES)
        self.forks = _convolution(classes, _FORKS + 1)
        self.image = _convolution(3, 1)
        self.start: Tensor
        self.register_buffer("start", torch.tensor(float(temperature)))
        for parameter in self.parameters():
            nn.init.zeros_(parameter)
        if generator is not None:
            nn.init.normal_(self.forks.weight, std=0.02, generator=generator)

    def forward(self, logits: Tensor, images: Tensor) -> Tensor:
        """Each pixel's temperature.

        Args:
            logits: float32 (B, C, H, W); minus infinity at classes that are ruled out is fine.
            images: RGB uint8 (B, 3, H, W).

        Returns:
            float32 (B, H, W), above 0.
        """
        below = (logits - logits.amax(1, keepdim=True)).clamp(min=_LOWEST) / _UNIT
        leaves = self.leaves(below)
        first, second, third, last = self.forks(below).sigmoid().unbind(1)
        left = torch.lerp(leaves[:, 1], leaves[:, 0], first)
        right = torch.lerp(leaves[:, 3], leaves[:, 2], second)
        tree = torch.lerp(right, left, third)
        of_image = self.image(images.float() / 127.5 - 1)[:, 0]
        factor = torch.lerp(of_image, tree, last)
        temperatures: Tensor = self.start * (_RANGE * torch.tanh(factor / _RANGE)).exp()
        return temperatures


def scaled_nll(logits: Tensor, temperatures: Tensor, labels: Tensor, ignore: int = 255) -> Tensor:
    """Sum over labelled pixels of the negative log likelihood, in nats, of logits divided by temperatures.

    Args:
        logits: float32 (B, C, H, W).
        temperatures: float32 (B, H, W).
        labels: uint8 (B, H, W).
        ignore: label of pixels that are not measured.
    """
    scaled = logits / temperatures[:, None]
    return functional.cross_entropy(scaled, labels.long(), ignore_index=ignore, reduction="sum")


def _convolution(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 5, padding=4, dilation=2, padding_mode="replicate")
