"""Anomaly scores of pixels from a network's features, which need the features of known pixels, and from its gradients.

- `mahalanobis`: distance to the nearest class mean under one covariance of all classes. Source: Lee et al., "A Simple
  Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks" (NeurIPS 2018), section 2.1.
- `knn`: distance to the k-th nearest of known pixels, of features of unit length. Source: Sun et al.,
  "Out-of-distribution Detection with Deep Nearest Neighbors" (ICML 2022), section 3.
- `odin`: largest softmax probability at a high temperature, of an image that was changed in the direction that raises
  this probability. Source: Liang et al., "Enhancing the Reliability of Out-of-distribution Image Detection in Neural
  Networks" (ICLR 2018), section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genval.runtime.errors import GenValError

NEIGHBOURS = 10
ODIN_TEMPERATURE = 1000.0
ODIN_STEP = 0.0014
"""Change of a normalised pixel; the paper chooses it for each set of known and unknown images."""
_SHRINKAGE = 1e-3  # of the covariance towards a multiple of the identity
_CHUNK = 4096


@dataclass
class FeatureSums:
    """Sums over the features of known pixels, float64.

    Attributes:
        pixels: (C,), of each class.
        sums: (C, D).
        products: (D, D), of all classes together.
    """

    pixels: Tensor
    sums: Tensor
    products: Tensor

    @classmethod
    def measure(cls, features: Tensor, classes: Tensor, number: int) -> FeatureSums:
        """Measure pixels.

        Args:
            features: (D, N).
            classes: int64 (N,), 0 up to below `number`.
            number: of classes.
        """
        wide = features.double()
        one_hot = torch.nn.functional.one_hot(classes, number).double()
        return cls(one_hot.sum(0), (wide @ one_hot).T, wide @ wide.T)

    def __add__(self, other: FeatureSums) -> FeatureSums:
        return FeatureSums(self.pixels + other.pixels, self.sums + other.sums, self.products + other.products)

    def gaussians(self) -> tuple[Tensor, Tensor]:
        """Compute the means of the classes that occur, float32 (c, D), and a whitening of the shared covariance (D, D).

        Raises:
            GenValError: there is no pixel.
        """
        seen = self.pixels > 0
        total = float(self.pixels.sum())
        if not total:
            raise GenValError("There are no labelled pixels to fit features to. Give another --known.")
        means = self.sums[seen] / self.pixels[seen, None]
        covariance = self.products / total - (means.T * (self.pixels[seen] / total)) @ means
        size = covariance.trace() / len(covariance)
        covariance = (1 - _SHRINKAGE) * covariance + (_SHRINKAGE * size + 1e-12) * torch.eye(
            len(covariance), dtype=torch.float64, device=covariance.device
        )
        # The inverse of the Cholesky factor: lengths after it are Mahalanobis distances.
        identity = torch.eye(len(covariance), dtype=torch.float64, device=covariance.device)
        whitening = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), identity, upper=False)
        return means.float(), whitening.float()


def mahalanobis(features: Tensor, means: Tensor, whitening: Tensor) -> Tensor:
    """Compute the Mahalanobis distance of pixels to the nearest class mean.

    Args:
        features: float32 (D, N).
        means: float32 (c, D).
        whitening: float32 (D, D); both from `FeatureSums.gaussians`.

    Returns:
        float32 (N,), 0 or more.
    """
    centres = means @ whitening.T
    parts = [torch.cdist((whitening @ part).T, centres).amin(1) for part in features.split(_CHUNK, 1)]
    return torch.cat(parts) if parts else features.new_zeros(0)


def neighbour_distance(features: Tensor, bank: Tensor, neighbours: int = NEIGHBOURS) -> Tensor:
    """Compute the distance of pixels to their k-th nearest neighbour in a bank of known pixels.

    Args:
        features: float32 (D, N).
        bank: float32 (M, D), of unit length.
        neighbours: k; the farthest where the bank is smaller.

    Returns:
        float32 (N,), 0 to 2.
    """
    k = min(neighbours, len(bank))
    unit = torch.nn.functional.normalize(features.T)
    parts = [torch.cdist(part, bank).kthvalue(k, dim=1).values for part in unit.split(_CHUNK)]
    return torch.cat(parts) if parts else features.new_zeros(0)


def odin_score(logits: Tensor, temperature: float = ODIN_TEMPERATURE) -> Tensor:
    """Compute a number with the order of the negated largest softmax probability at a high temperature.

    At a high temperature all probabilities are nearly equal. Their negated logarithm, minus that of the uniform
    distribution, times the temperature, keeps the digits in which they differ.

    Args:
        logits: (B, C, ...).
        temperature: of the softmax.

    Returns:
        float32 (B, ...).

    >>> odin_score(torch.tensor([[1.0, 3.0]])).round().tolist()
    [-1.0]
    """
    wide = logits.double()
    mean = (torch.logsumexp(wide / temperature, 1) - torch.tensor(float(logits.shape[1])).double().log()) * temperature
    return (mean - wide.amax(1)).float()


def spread(count: int, number: int) -> Sequence[int]:
    """Return at most `number` of `count` indices, evenly spaced."""
    return torch.linspace(0, count - 1, min(count, number)).round().long().unique().tolist() if count else []
