"""The losses of pixels that belong to no known class, and the scores of OOD detection that they are for.

- `uniform`: outlier exposure, the divergence of the softmax from the uniform distribution. Source: Hendrycks et al.,
  "Deep Anomaly Detection with Outlier Exposure" (ICLR 2019), section 3, for classifiers.
- `energy`: squared margins of the energy of known pixels and of outliers. Source: Liu et al., "Energy-based
  Out-of-distribution Detection" (NeurIPS 2020), equation 8.
- `rba`: the same margins for the score "rejected by all". Source: Nayal et al., "RbA: Segmenting Unknown Regions
  Rejected by All" (ICCV 2023), whose loss has the margin of outliers only. The softmax of a per-pixel network does not
  change when all its logits fall, so that known pixels need a margin too.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genval.metrics.ood_scores import rejected_by_all


def uniform_loss(logits: Tensor, outliers: Tensor) -> Tensor:
    """The Kullback-Leibler divergence of the softmax from the uniform distribution, averaged over outliers.

    Args:
        logits: float32 (B, C, H, W).
        outliers: bool (B, H, W).

    Returns:
        A scalar, nats, 0 or more; 0 without outliers.

    >>> uniform_loss(torch.zeros(1, 4, 1, 1), torch.ones(1, 1, 1, dtype=torch.bool)).item()
    0.0
    """
    chosen = logits.movedim(1, -1)[outliers]  # few of the pixels
    divergence = -chosen.log_softmax(1).mean(1) - math.log(logits.shape[1])
    return divergence.clamp(min=0).sum() / max(1, len(chosen))


def energy(logits: Tensor) -> Tensor:
    """The energy of pixels, (B, H, W), nats, from logits (B, C, H, W): high for outliers."""
    return -logits.logsumexp(1)


def margin_loss(scores: Tensor, known: Tensor, outliers: Tensor, margins: Tensor) -> Tensor:
    """Squared distances by which scores of known pixels are too high and those of outliers too low.

    Args:
        scores: float32 (B, H, W), high for outliers.
        known: bool (B, H, W), pixels of the known classes.
        outliers: bool (B, H, W).
        margins: float32 (2,), the score that known pixels should not exceed, and the one that outliers should reach.

    Returns:
        A scalar in units of the squared distance of the margins.
    """
    distance = margins[1] - margins[0]
    too_high = ((scores - margins[0]) / distance).clamp(min=0).square()
    too_low = ((margins[1] - scores) / distance).clamp(min=0).square()
    return _mean(too_high, known) + _mean(too_low, outliers)


def rba(logits: Tensor, of_queries: bool) -> Tensor:
    """The score "rejected by all" of pixels, (B, H, W), from logits (B, C, H, W); see `rejected_by_all`."""
    return rejected_by_all(logits.transpose(0, 1), of_queries)


def outlier_margins(loss: str, scores: Tensor, classes: int, gap: float, of_queries: bool) -> Tensor:
    """The margins of `margin_loss` for a segmenter: where its known pixels are before the training, and a goal.

    Args:
        loss: `energy` or `rba`.
        scores: of known pixels, before the training.
        classes: number of classes.
        gap: of the energy, nats.
        of_queries: whether the segmenter has queries.

    Returns:
        float32 (2,). The goal of `rba` is the score of a pixel that all classes reject: 0 for queries, whose class
        scores are not negative, and else the number of classes.
    """
    known = scores.mean()
    if loss == "energy":
        return torch.stack([known, known + gap])
    goal = torch.full_like(known, 0.0 if of_queries else float(classes))
    return torch.stack([torch.minimum(known, goal - 1), goal])


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    """The mean of values at chosen pixels; 0, with a gradient of 0, where none is chosen."""
    return (values * chosen).sum() / chosen.sum().clamp(min=1)
