"""Local temperature scaling: a small network that predicts a temperature for each pixel of an image.

Source: Ding et al., "Local Temperature Scaling for Probability Calibration" (ICCV 2021), section 3.3. The network is a
binary tree. Its leaves are four convolutions of the logits, 5x5 with dilation 2. At each fork, the sigmoid of a further
convolution of the logits weights the two branches, pixel by pixel. The last fork combines the tree with a convolution
of the image. The training loss is the negative log likelihood of the labels of a calibration set. Dividing the logits
of a pixel by a positive number does not change its predicted class.

Three things differ from the paper:

- A branch predicts the logarithm of a factor on the best single temperature. Every temperature is then positive, and
  training starts at plain temperature scaling. The paper's ReLU can remain at zero.
- The forks start at small random weights. From zero weights, as published, all leaves would remain equal.
- The input is the distance of each logit from the pixel's largest logit, since the softmax depends on nothing else.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from genval.runtime.errors import GenValError

# Input distances are clamped at the first number and divided by the second.
_LOWEST, _UNIT = -40.0, 10.0
# Range of the logarithm of the factor: temperatures are 1/20 to 20 times the single temperature.
_RANGE = 3.0
_LEAVES, _FORKS = 4, 3


class LocalTemperature(nn.Module):
    """A network that maps logits and an image to temperatures.

    Args:
        classes: channels of the logits.
        temperature: the single temperature at which training starts, above 0.
        generator: of the initial weights; None initialises them with zeros, for weights that are loaded later.
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
        """Return the temperature of each pixel.

        Args:
            logits: float32 (B, C, H, W); minus infinity is allowed at classes that are ruled out.
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
        image = self.image(images.float() / 127.5 - 1)[:, 0]
        factor = torch.lerp(image, tree, last)
        temperatures: Tensor = self.start * (_RANGE * torch.tanh(factor / _RANGE)).exp()
        return temperatures


def scaled_nll(logits: Tensor, temperatures: Tensor, labels: Tensor, ignore: int = 255) -> Tensor:
    """Return the sum over labelled pixels of the negative log likelihood, in nats, of logits divided by temperatures.

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
