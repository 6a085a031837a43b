"""Objects found as wholes: sIoU, PPV and F1 of connected components, as SegmentMeIfYouCan defines them.

Source: Chan et al., "SegmentMeIfYouCan: A Benchmark for Anomaly Segmentation" (NeurIPS Datasets and Benchmarks 2021),
section 3.2, and its evaluation code for what the text leaves open: 8-connected components; void pixels are never
predicted; predicted components below a size are dropped, and objects below one are void; F1 is averaged over the 11
thresholds 0.25, 0.30, ..., 0.75, of which a false positive is a predicted component whose PPV is below.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from genval.metrics.ood_scores import OBJECT, VOID

THRESHOLDS = tuple(round(0.25 + 0.05 * step, 2) for step in range(11))
COMPONENT_FIGURES = ("siou", "ppv", "f1")


@dataclass(frozen=True)
class Sizes:
    """The fewest pixels of a component that counts: the benchmark's, for images of about 1280x720 and larger."""

    predicted: int = 500
    object: int = 100


OBSTACLE_SIZES = Sizes(50, 10)
"""The benchmark's sizes for RoadObstacle21, whose objects are far away."""


@dataclass(frozen=True)
class Components:
    """Components of an image."""

    siou: np.ndarray  # float64, of each object: intersection over the union adjusted for other objects
    ppv: np.ndarray  # float64, of each predicted component: its share of object pixels

    def sums(self) -> np.ndarray:
        """What adds up over images, float64 (4 + 3 * 11,): `component_figures` are made of it."""
        thresholds = np.array(THRESHOLDS)[:, None]
        hits, misses = (self.siou >= thresholds).sum(1), (self.siou < thresholds).sum(1)
        false = (self.ppv < thresholds).sum(1)
        heads = [self.siou.sum(), len(self.siou), self.ppv.sum(), len(self.ppv)]
        return np.concatenate([heads, hits, misses, false]).astype(np.float64)


def measure_components(found: np.ndarray, kinds: np.ndarray, sizes: Sizes = Sizes()) -> Components:
    """The components of one image.

    Args:
        found: bool (H, W), pixels whose score is at or above a threshold.
        kinds: uint8 (H, W), 0 background, 1 object, 255 void.
        sizes: the fewest pixels of a component.
    """
    import cv2

    objects = (kinds == OBJECT).astype(np.uint8)
    predicted = (found & (kinds != VOID)).astype(np.uint8)
    count, of_object, statistics, _ = cv2.connectedComponentsWithStats(objects, connectivity=8)
    number, of_prediction, areas, _ = cv2.connectedComponentsWithStats(predicted, connectivity=8)
    keep = areas[:, cv2.CC_STAT_AREA] >= sizes.predicted
    large = statistics[:, cv2.CC_STAT_AREA] >= sizes.object
    keep[0] = large[0] = True
    # Pixels of each pair of an object (or none) and a predicted component (or none).
    shared = np.bincount((of_object.astype(np.int64) * number + of_prediction).ravel(), minlength=count * number)
    table = shared.reshape(count, number).astype(np.float64)
    table[:, 0] += table[:, ~keep].sum(1)
    # A small object's pixels are void, also those of a predicted component on it.
    table = table[large][:, keep]
    touches = table[1:, 1:] > 0
    lengths, areas_left = table[1:].sum(1), table[:, 1:].sum(0)
    of_objects = table[1:, 1:]
    inside = of_objects.sum(1)
    # Of the components that touch an object, what lies on other objects is not held against it.
    elsewhere = (touches * of_objects.sum(0)).sum(1) - inside
    union = (touches * areas_left).sum(1) + lengths - inside - elsewhere
    kept = areas_left > 0
    return Components(siou=inside / union, ppv=of_objects.sum(0)[kept] / areas_left[kept])


def component_figures(sums: np.ndarray) -> dict[str, np.ndarray]:
    """`COMPONENT_FIGURES` from added-up sums (..., 37): arrays (...) of fractions, NaN where not defined."""
    steps = len(THRESHOLDS)
    siou, objects, ppv, predicted = np.moveaxis(sums[..., :4], -1, 0)
    hits, misses, false = (sums[..., 4 + part * steps : 4 + (part + 1) * steps] for part in range(3))
    f1 = _ratio(2 * hits, 2 * hits + misses + false).mean(-1)
    return {"siou": _ratio(siou, objects), "ppv": _ratio(ppv, predicted), "f1": f1}


def best_level(levels: np.ndarray) -> int:
    """The level down to which pixels are taken for an object: that of the best F1 of all pixels.

    Args:
        levels: counts (2, LEVELS) of background and object, the highest score first.
    """
    background, objects = np.cumsum(levels, 1).astype(np.float64)
    f1 = 2 * objects / np.maximum(objects[-1] + objects + background, 1)
    return int(np.argmax(f1))


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(np.shape(below), math.nan), where=below > 0)
