"""Out-of-distribution detection: anomaly scores of pixels, and metrics of how well they separate object and background.

A score is high where a model is not confident. The object is the positive class. The scores are:

- `entropy` of the softmax, in nats; `confidence`, the negated largest softmax probability (MSP); `logits`, the negated
  largest logit. These three are published, under these names. Pixels are ranked by the odds against the prediction,
  (1 - p) / p, whose order is that of the negated probability p, also where float32 rounds p to 1.
- `energy`, minus the log of the sum of the exponentials of the logits. Source: Liu et al., "Energy-based
  Out-of-distribution Detection" (NeurIPS 2020), equation 4, at temperature 1.
- `standardised`, the negated largest logit, standardised by mean and standard deviation over the pixels of a known set
  that are predicted as the same class. Source: Jung et al., "Standardized Max Logits" (ICCV 2021), section 3.2.

The state is the number of pixels at each of up to 65,536 levels of each score (`genval.kernels.layout`). These counts
add up over images, processes and sets, and every metric follows from them. `ood_bounds` returns the largest possible
differences to the metrics of single pixels, which `ExactMetrics` computes. No finite logit is beyond the levels.
Entropies below 2^-105 are: `saturated_share` returns the share of such pixels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from genval.kernels.layout import (
    BACKGROUND,
    LOWEST_LOGIT,
    OBJECT,
    SCORE_LEVELS,
    SCORES,
    SIGNED_SCORES,
    SMALLEST_ODDS,
    STANDARDISED,
    VOID,
    level_edges,
)
from genval.metrics import ranking
from genval.metrics.division import safe_divide
from genval.metrics.states import MergeableState
from genval.metrics.statistics import (
    LogitsNotFiniteError,
    first_of,
    flat_nonzero,
    magnitude_level,
    odds_against,
)
from genval.runtime.errors import GenValError

if TYPE_CHECKING:
    from torch import Tensor

    from genval.kernels.ood_scores import BatchCounts

PUBLISHED = ("entropy", "confidence", "logits")
OOD_METRICS = ("auroc", "fpr95", "aupr_object", "aupr_background")
# Pixels at a time on a CPU: their 19 float32 logits each, and the intermediate results, fit the second-level cache.
_CPU_CHUNK = 16384
# Below this, float32 loses digits of log(1 + x); x - x^2 / 2 is exact to 2^-25.
_SMALL = 2.0**-12


@dataclass
class OodCounts(MergeableState):
    """Mergeable statistics of pixels; `a + b` are those of both sets."""

    levels: np.ndarray  # int64 (S, 2, SCORE_LEVELS): background and object pixels by level, the highest score first
    entropy: np.ndarray  # float64 (2,): sum of the entropies of background and object, nats
    pixels: np.ndarray  # int64 (3,): background, object and void

    @classmethod
    def empty(cls, scores: int) -> OodCounts:
        """Return the statistics of no pixel, for a number of scores."""
        return cls(np.zeros((scores, 2, SCORE_LEVELS), np.int64), np.zeros(2), np.zeros(3, np.int64))


@dataclass
class MaxLogits(MergeableState):
    """Sums over the largest logits of the pixels of each predicted class; `a + b` are those of both sets."""

    pixels: np.ndarray  # int64 (C,)
    sums: np.ndarray  # float64 (C,)
    squares: np.ndarray  # float64 (C,)

    @classmethod
    def measure(cls, logits: Tensor) -> MaxLogits:
        """Measure logits (C, ...)."""
        import torch

        flat = logits.flatten(1)
        largest, classes = flat.max(0)
        values = largest.double()
        weighted = (torch.bincount(classes, w, minlength=len(flat)).cpu().numpy() for w in (values, values**2))
        return cls(torch.bincount(classes, minlength=len(flat)).cpu().numpy(), *weighted)

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Compute mean and standard deviation, float64 (C,); a class of fewer than 2 pixels has those of all."""
        total = MaxLogits(*(np.full(len(self.pixels), a.sum()) for a in (self.pixels, self.sums, self.squares)))
        if total.pixels[0] < 2:
            raise GenValError(
                "Largest logits cannot be standardised: expected at least two pixels, found fewer than two."
            )
        rare = self.pixels < 2
        pixels, sums, squares = (
            np.where(rare, getattr(total, f.name), getattr(self, f.name)) for f in dataclasses.fields(self)
        )
        mean = sums / pixels
        return mean, np.sqrt(np.maximum(squares / pixels - mean**2, 1e-12))


def anomaly_scores(logits: Tensor, standard: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Compute the scores of pixels from one softmax.

    Args:
        logits: (C, N), not soft-maxed.
        standard: mean and standard deviation (C,) of the largest logit (`MaxLogits.moments`), on the logits' device:
            for the score `standardised`. None omits it.

    Returns:
        Float32 (S, N) in the order of `SCORES`, `standardised` last. The row of `confidence` holds the odds against the
        prediction (`genval.metrics.statistics.odds_against`).

    Raises:
        LogitsNotFiniteError: a logit is NaN or infinite, or all of a pixel's are minus infinity.
    """
    import torch

    largest = logits.amax(0)
    if not math.isfinite(largest.sum(dtype=torch.float64)):
        raise LogitsNotFiniteError
    classes = first_of(logits, largest).long()
    below = (logits - largest).clamp_(min=LOWEST_LOGIT)
    exponentials = below.exp()
    odds = exponentials.scatter_(0, classes[None], 0).sum(0)
    totals = odds + 1
    log_totals = torch.where(odds < _SMALL, odds * (1 - odds / 2), totals.log())
    entropy = log_totals - exponentials.mul_(below).sum(0) / totals
    if len(odds) and float(odds.min()) < SMALLEST_ODDS:
        small = flat_nonzero(odds < SMALLEST_ODDS)
        odds[small] = odds_against(logits.index_select(1, small))
    rows = [entropy.clamp_(min=0), odds, -largest, -(largest + log_totals)]
    if standard is not None:
        rows.append((standard[0][classes] - largest) / standard[1][classes])
    return torch.stack(rows)


def rejected_by_all(logits: Tensor, of_queries: bool = False) -> Tensor:
    """Compute the score `rba`: minus the sum over classes of the hyperbolic tangent of the class scores.

    Source: Nayal et al., "RbA: Segmenting Unknown Regions Rejected by All" (ICCV 2023), equation 5.

    Args:
        logits: (C, ...), not soft-maxed.
        of_queries: whether the logits are logarithms of class scores, as `QuerySegmenter` gives them; else they are the
            class scores themselves.

    Returns:
        (...), from -C, where all classes accept the pixel, to C.

    >>> import torch
    >>> rejected_by_all(torch.tensor([0.0, -100.0])).item()
    1.0
    """
    scores = logits.exp() if of_queries else logits
    return -scores.tanh().sum(0)


def score_level(score: Tensor, name: str) -> Tensor:
    """Return the levels, int32 in 0..SCORE_LEVELS-1, of scores (float32 (N,), finite); the highest are at level 0.

    Args:
        score: a row of `anomaly_scores`.
        name: of the score.
    """
    import torch

    level = magnitude_level(score, name)
    if name in SIGNED_SCORES:
        sign = score.view(torch.int32) >> 31  # -1 for negative numbers, else 0
        level = level.bitwise_xor_(sign).sub_(sign)
    return level.neg_().add_(len(level_edges(name)) - 1)


def level_edge(level: int, name: str) -> float:
    """Return the lowest score of a level: the threshold that pixels at this level or above reach.

    For `confidence` it is the negated probability. For numbers below 0 it is the next number outside of the level.

    >>> level_edge(0, "entropy"), level_edge(21055, "logits")
    (7.998046875, 8.0)
    """
    edges = level_edges(name)
    step = len(edges) - 1 - level
    if name == "confidence":
        return -1 / (1 + float(edges[step]))
    # The lowest number of a level below 0 is the end that is further from 0.
    return float(edges[step]) if step >= 0 else -float(np.append(edges, np.finfo(np.float32).max)[1 - step])


def saturated_share(levels: np.ndarray, name: str) -> float:
    """Return the share of the pixels of counts (2, SCORE_LEVELS) at an end level, where they have no order.

    The ends are the lowest and the highest level of a score; NaN without pixels.
    """
    magnitudes = len(level_edges(name)) - 1
    ends = levels[:, [0, 2 * magnitudes if name in SIGNED_SCORES else magnitudes]]
    return float(safe_divide(ends.sum(keepdims=True), levels.sum())[0, 0])


def count_scores(scores: Tensor, kinds: Tensor, names: Sequence[str]) -> np.ndarray:
    """Count pixels by level.

    Args:
        scores: float32 (S, N), finite.
        kinds: uint8 (N,), `BACKGROUND`, `OBJECT` or `VOID`, on the same device.
        names: of the scores.

    Returns:
        int64 (S, 2, SCORE_LEVELS).
    """
    import torch

    # One bincount of all pixels except void ones, and one of the few object pixels.
    counted = kinds != VOID
    if not bool(counted.all()):
        scores, kinds = scores[:, counted], kinds[counted]
    objects = torch.nonzero(kinds)[:, 0]
    step = _step(kinds)
    level = torch.empty(kinds.shape, dtype=torch.int32, device=kinds.device)
    rows = []
    for score, name in zip(scores, names, strict=True):
        for start in range(0, len(level), step):
            level[start : start + step] = score_level(score[start : start + step], name)
        object_counts = torch.bincount(level[objects], minlength=SCORE_LEVELS)
        rows.append(torch.stack([torch.bincount(level, minlength=SCORE_LEVELS) - object_counts, object_counts]))
    return torch.stack(rows).cpu().numpy()


def _step(pixels: Tensor) -> int:
    """Return how many pixels to process at a time: as many as fit a CPU's cache, or all on a GPU."""
    return _CPU_CHUNK if pixels.device.type == "cpu" else max(1, len(pixels))


def measure_ood(
    logits: Tensor, kinds: Tensor, standard: tuple[Tensor, Tensor] | None = None
) -> tuple[OodCounts, Tensor]:
    """Score and count one image's pixels, on the device of its logits.

    Args:
        logits: (C, ...), not soft-maxed; finite, except for minus infinity at classes that are ruled out.
        kinds: uint8 of the shape of the rest, `BACKGROUND`, `OBJECT` or `VOID`, on the same device.
        standard: as for `anomaly_scores`.

    Returns:
        The counts; the scores, float32 (S, N).

    Raises:
        LogitsNotFiniteError: a logit is NaN or infinite.
        GenValError: shapes do not fit, or the mask holds another value.
    """
    import torch

    flat, flat_kinds = logits.detach().float().flatten(1), kinds.flatten()
    if logits.shape[1:] != kinds.shape:
        raise GenValError(f"Logits of {tuple(logits.shape[1:])} pixels and a mask of {tuple(kinds.shape)} do not fit.")
    pixels = [(flat_kinds == kind).sum() for kind in (BACKGROUND, OBJECT, VOID)]
    names = SCORES if standard is None else (*SCORES, STANDARDISED)
    scores = torch.empty(len(names), len(flat_kinds), device=flat.device)
    step = _step(flat_kinds)
    for start in range(0, len(flat_kinds), step):
        scores[:, start : start + step] = anomaly_scores(flat[:, start : start + step], standard)
    # An infinite standardised score is refused as well.
    entropy = [scores[0][flat_kinds == kind].sum(dtype=torch.float64) for kind in (BACKGROUND, OBJECT)]
    finite, *numbers = torch.stack([torch.isfinite(scores).all().long(), *pixels]).tolist()
    if not finite:
        raise LogitsNotFiniteError
    if sum(numbers) != len(flat_kinds):
        raise _invalid_mask()
    counts = OodCounts(
        levels=count_scores(scores, flat_kinds, names),
        entropy=torch.stack(entropy).cpu().numpy(),
        pixels=np.array(numbers, np.int64),
    )
    return counts, scores


def measure_ood_batch(
    logits: Tensor, kinds: Tensor, standard: tuple[Tensor, Tensor] | None = None, keep: bool = False
) -> tuple[Callable[[], Iterator[OodCounts]], Tensor | None]:
    """Start to score and count a batch of images on a GPU, by one Triton kernel.

    Args:
        logits: floating point (B, C, ...); otherwise as for `measure_ood`.
        kinds: uint8 (B, ...), `BACKGROUND`, `OBJECT` or `VOID`, on the same device.
        standard: as for `anomaly_scores`.
        keep: return the scores as well.

    Returns:
        A function that waits for the device, yields the counts image by image and raises the errors of `measure_ood`;
        and the scores, float32 (B, S, N) on the device, or None.

    Raises:
        GenValError: shapes do not fit, or an image is too large for 32-bit offsets.
    """
    from genval.kernels.ood_scores import launch

    if (len(logits), *logits.shape[2:]) != kinds.shape:
        raise GenValError(f"Logits {tuple(logits.shape)} and masks {tuple(kinds.shape)} do not fit.")
    read, scores = launch(logits, kinds, standard, keep)

    def images() -> Iterator[OodCounts]:
        counts = read()
        for index in range(len(counts.levels)):
            yield _from_counts(counts, index)

    return images, scores


def _from_counts(counts: BatchCounts, index: int) -> OodCounts:
    """Return the statistics of one image of a batch."""
    if not counts.finite[index]:
        raise LogitsNotFiniteError
    if counts.invalid_kinds[index]:
        raise _invalid_mask()
    return OodCounts(
        levels=counts.levels[index].astype(np.int64),
        entropy=counts.entropy[index].copy(),
        pixels=counts.pixels[index].astype(np.int64),
    )


def _invalid_mask() -> GenValError:
    return GenValError(f"A mask holds {BACKGROUND}, {OBJECT} and {VOID}, found other values.")


def ood_metrics(background: np.ndarray, objects: np.ndarray) -> dict[str, np.ndarray]:
    """Compute `OOD_METRICS` from counts at levels (..., L), the highest score first.

    `fpr95` is the share of the background at or above the highest threshold that 95 % of the object's pixels reach. The
    areas below precision-recall curves are computed by trapezoids, as published: `aupr_object` has the object as the
    positive class and ranks by the score, `aupr_background` has the background and ranks by the confidence.

    Returns:
        Arrays (...) of fractions in 0..1, by name; NaN where not defined.
    """
    both = (background.sum(-1) > 0) & (objects.sum(-1) > 0)
    background, objects = np.asarray(background, np.float64), np.asarray(objects, np.float64)  # once for all of them
    values = (
        ranking.auroc(objects, background),
        ranking.fpr_at_tpr(objects, background, interpolate=True),
        ranking.aupr(objects, background),
        ranking.aupr(background[..., ::-1], objects[..., ::-1]),
    )
    return {name: np.where(both, value, np.nan) for name, value in zip(OOD_METRICS, values, strict=True)}


def level_metrics(levels: np.ndarray) -> dict[str, float]:
    """Compute `OOD_METRICS` of one score from its counts (2, SCORE_LEVELS)."""
    if not levels.any(1).all():
        return dict.fromkeys(OOD_METRICS, math.nan)
    filled = np.flatnonzero(levels.any(0))
    return {name: float(value) for name, value in ood_metrics(*levels[:, filled]).items()}


def exact_counts(background: np.ndarray, objects: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count background and object pixels at each distinct score, the highest first.

    Args:
        background: scores of the background's pixels, float32, ascending.
        objects: scores of the object's pixels likewise.

    Returns:
        Two int64 arrays (number of distinct scores,).

    >>> exact_counts(np.array([0.1, 0.9], np.float32), np.array([0.9], np.float32))
    (array([1, 1]), array([1, 0]))
    """
    (values, counts), (object_values, object_counts) = _distinct(background), _distinct(objects)
    place = np.searchsorted(values, object_values)
    shared = np.zeros(len(object_values), bool)
    inside = place < len(values)
    shared[inside] = values[place[inside]] == object_values[inside]
    hits = np.zeros(len(values), np.int64)
    hits[place[shared]] = object_counts[shared]
    between = place[~shared]
    return np.insert(counts, between, 0)[::-1], np.insert(hits, between, object_counts[~shared])[::-1]


def _distinct(ordered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct values of an ascending array, and how often each occurs."""
    if not len(ordered):
        return ordered, np.zeros(0, np.int64)
    last = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), len(ordered) - 1)
    return ordered[last], np.diff(last, prepend=-1)


class ExactMetrics:
    """`OOD_METRICS` of single pixels, updated with counts at distinct scores, the highest scores first.

    Args:
        background: number of all background pixels.
        objects: number of all object pixels.
    """

    def __init__(self, background: int, objects: int) -> None:
        self.background, self.objects = background, objects
        self._above = [0, 0]  # background and object pixels of the pieces so far
        self._pairs = self._object_area = self._background_area = 0.0
        self._passed: float | None = None

    def update(self, background: np.ndarray, objects: np.ndarray) -> None:
        """Add the next counts, from `exact_counts`."""
        for start in range(0, len(objects), _CPU_CHUNK):
            self._update(background[start : start + _CPU_CHUNK], objects[start : start + _CPU_CHUNK])

    def _update(self, background: np.ndarray, objects: np.ndarray) -> None:
        # Pixels above each score, and finally all pixels: one more entry than scores.
        false = np.concatenate([[0], np.cumsum(background)]) + self._above[0]
        found = np.concatenate([[0], np.cumsum(objects)]) + self._above[1]
        self._above = [int(false[-1]), int(found[-1])]
        at = np.flatnonzero(objects)
        hits = objects[at].astype(np.float64)
        self._pairs += float(hits @ (self.background - (false[at] + false[at + 1]) / 2))
        self._object_area += float(hits @ _mean_precision(found[at], false[at], found[at + 1], false[at + 1]))
        left, left_objects = self.background - false, self.objects - found
        precision = safe_divide(left, left + left_objects, default=1)
        self._background_area += float(background @ ((precision[1:] + precision[:-1]) / 2))
        enough = found[1:] >= 0.95 * self.objects * (1 - 1e-9)
        if self._passed is None and enough[-1]:
            self._passed = float(false[1 + int(np.argmax(enough))])

    def compute(self) -> dict[str, float]:
        """Return the metrics of all counts; NaN without object pixels or without background pixels."""
        if not self.background or not self.objects:
            return dict.fromkeys(OOD_METRICS, math.nan)
        assert self._above == [self.background, self.objects] and self._passed is not None
        values = (
            self._pairs / self.background / self.objects,
            self._passed / self.background,
            self._object_area / self.objects,
            self._background_area / self.background,
        )
        return dict(zip(OOD_METRICS, values, strict=True))


def _mean_precision(found: np.ndarray, false: np.ndarray, found_now: np.ndarray, false_now: np.ndarray) -> np.ndarray:
    """Return the mean of the precision before and at a score; before the first pixel it is 1."""
    alarms = found + false
    before = safe_divide(found, alarms, default=1)
    mean: np.ndarray = (before + found_now / (found_now + false_now)) / 2
    return mean


def exact_metrics(background: np.ndarray, objects: np.ndarray) -> dict[str, float]:
    """Compute `OOD_METRICS` of single pixels; arguments as for `exact_counts`.

    >>> exact_metrics(np.array([0.1, 0.2], np.float32), np.array([0.3], np.float32))["auroc"]
    1.0
    """
    metrics = ExactMetrics(len(background), len(objects))
    metrics.update(*exact_counts(background, objects))
    return metrics.compute()


def ood_bounds(levels: np.ndarray) -> dict[str, float]:
    """Return the largest possible differences between `level_metrics` (counts (2, SCORE_LEVELS)) and `exact_metrics`.

    Only the order inside a level is unknown. The bound of `auroc` is half the share of pairs inside one level; that of
    `fpr95` is the share of the background pixels in the level of the threshold. For `aupr_*`, the precision at a
    positive pixel is lowest if all negatives of its level come before it, and highest if all come after it.
    """
    filled = np.flatnonzero(levels.any(0))
    background, objects = levels[:, filled].astype(np.float64)
    if not background.any() or not objects.any():
        return dict.fromkeys(OOD_METRICS, math.nan)
    at = int(np.argmax(np.cumsum(objects) >= 0.95 * objects.sum()))
    return {
        "auroc": float(ranking.auroc_bound(objects, background)),
        "fpr95": float(background[at] / background.sum()),
        "aupr_object": _aupr_bound(objects, background),
        "aupr_background": _aupr_bound(background[::-1], objects[::-1]),
    }


def _aupr_bound(positives: np.ndarray, negatives: np.ndarray) -> float:
    found, false = np.cumsum(positives), np.cumsum(negatives)
    before, false_before = found - positives, false - negatives
    # Before the first pixel the precision counts as 1.
    least = safe_divide(before, before + false, default=1)
    most = safe_divide(found, found + false_before, default=1)
    return float((positives * (most - least)).sum() / positives.sum())
