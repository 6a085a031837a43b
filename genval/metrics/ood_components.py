"""Detection of whole objects: sIoU, PPV and F1 of connected components, as defined by SegmentMeIfYouCan.

Source: Chan et al., "SegmentMeIfYouCan: A Benchmark for Anomaly Segmentation" (NeurIPS Datasets and Benchmarks 2021),
section 3.2. Details that the text does not specify are taken from its evaluation code. Components are 8-connected. Void
pixels are never predicted. Predicted components below a minimum size are dropped, and objects below a minimum size are
void. F1 is averaged over the 11 thresholds 0.25, 0.30, ..., 0.75; a predicted component whose PPV is below the
threshold is a false positive.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from genval.kernels.layout import OBJECT, VOID
from genval.metrics.division import safe_divide

THRESHOLDS = tuple(round(0.25 + 0.05 * step, 2) for step in range(11))
COMPONENT_METRICS = ("siou", "ppv", "f1")


@dataclass(frozen=True)
class Sizes:
    """The minimum numbers of pixels of components: the benchmark's, for images of about 1280x720 and larger."""

    predicted: int = 500
    object: int = 100


_QUANTILES = 384  # of the object's scores and of the background's, per image
_BEYOND = 1e-2


@dataclass(frozen=True)
class Components:
    """The components of an image."""

    siou: np.ndarray  # float64, per object: intersection over the union adjusted for other objects
    ppv: np.ndarray  # float64, per predicted component: its share of object pixels

    def sums(self) -> np.ndarray:
        """Return sums that add up over images, float64 (4 + 3 * 11,), for `component_metrics`."""
        thresholds = np.array(THRESHOLDS)[:, None]
        hits, misses = (self.siou >= thresholds).sum(1), (self.siou < thresholds).sum(1)
        false = (self.ppv < thresholds).sum(1)
        heads = [self.siou.sum(), len(self.siou), self.ppv.sum(), len(self.ppv)]
        return np.concatenate([heads, hits, misses, false]).astype(np.float64)


def measure_components(found: np.ndarray, kinds: np.ndarray, sizes: Sizes = Sizes()) -> Components:
    """Find the components of one image.

    Args:
        found: bool (H, W), pixels whose score reaches a threshold.
        kinds: uint8 (H, W), 0 background, 1 object, 255 void.
        sizes: the minimum sizes of components.
    """
    import cv2

    objects = (kinds == OBJECT).astype(np.uint8)
    predicted = (found & (kinds != VOID)).astype(np.uint8)
    count, object_of, statistics, _ = cv2.connectedComponentsWithStats(objects, connectivity=8)
    number, prediction_of, areas, _ = cv2.connectedComponentsWithStats(predicted, connectivity=8)
    keep = areas[:, cv2.CC_STAT_AREA] >= sizes.predicted
    large = statistics[:, cv2.CC_STAT_AREA] >= sizes.object
    keep[0] = large[0] = True
    # Pixels by object (0 is none) and predicted component (0 is none).
    shared = np.bincount((object_of.astype(np.int64) * number + prediction_of).ravel(), minlength=count * number)
    table = shared.reshape(count, number).astype(np.float64)
    table[:, 0] += table[:, ~keep].sum(1)
    # The pixels of a small object are void, even where a component is predicted.
    table = table[large][:, keep]
    touches = table[1:, 1:] > 0
    lengths, areas_left = table[1:].sum(1), table[:, 1:].sum(0)
    on_objects = table[1:, 1:]
    inside = on_objects.sum(1)
    # Pixels of a touching component that lie on other objects do not count against this object.
    elsewhere = (touches * on_objects.sum(0)).sum(1) - inside
    union = (touches * areas_left).sum(1) + lengths - inside - elsewhere
    kept = areas_left > 0
    return Components(siou=inside / union, ppv=on_objects.sum(0)[kept] / areas_left[kept])


def component_metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
    """Compute `COMPONENT_METRICS` from sums (..., 37): arrays (...) of fractions, NaN where not defined."""
    steps = len(THRESHOLDS)
    siou, objects, ppv, predicted = np.moveaxis(sums[..., :4], -1, 0)
    hits, misses, false = (sums[..., 4 + part * steps : 4 + (part + 1) * steps] for part in range(3))
    f1 = safe_divide(2 * hits, 2 * hits + misses + false).mean(-1)
    return {"siou": safe_divide(siou, objects), "ppv": safe_divide(ppv, predicted), "f1": f1}


def image_bins(background: np.ndarray, objects: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count an image's pixels between quantiles of its scores, as SegmentMeIfYouCan's evaluation does.

    Args:
        background: scores of the background's pixels, (N,).
        objects: scores of the object's pixels, (M,).

    Returns:
        The lower end of each bin, float64 (K,); counts of background and object, int64 (2, K).
    """
    everything = np.concatenate([background, objects]).astype(np.float64)
    low, high = everything.min(), everything.max()
    beyond = max(_BEYOND * (high - low), _BEYOND)
    parts = [np.array([low - beyond, high + beyond])]
    for scores in (objects, background):
        if len(scores):
            parts.append(np.quantile(scores.astype(np.float64), np.linspace(0, 1, min(_QUANTILES, len(scores)))))
    edges = np.unique(np.concatenate(parts))
    return edges[:-1], np.stack([np.histogram(scores, edges)[0] for scores in (background, objects)])


def benchmark_threshold(bins: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
    """Return SegmentMeIfYouCan's threshold: of all ends of bins of all images, the one with the best F1 of pixels.

    Pixels of a higher score are predicted as object.

    Args:
        bins: of each image, from `image_bins`.
    """
    ends, counts = (np.concatenate(parts, -1) for parts in zip(*bins, strict=True))
    order = np.argsort(-ends, kind="stable")
    background, objects = np.cumsum(counts[:, order], 1).astype(np.float64)
    f1 = 2 * objects / np.maximum(objects[-1] + objects + background, 1)
    ordered = ends[order]
    f1[:-1][ordered[:-1] == ordered[1:]] = -1  # a threshold counts when all its bins are above it
    return float(ordered[int(np.argmax(f1))])


def best_level(levels: np.ndarray) -> int:
    """Return the level of the threshold with the best F1 of pixels; pixels at it or above are predicted as object.

    Args:
        levels: counts (2, SCORE_LEVELS) of background and object, the highest score first.
    """
    background, objects = np.cumsum(levels, 1).astype(np.float64)
    f1 = 2 * objects / np.maximum(objects[-1] + objects + background, 1)
    return int(np.argmax(f1))
