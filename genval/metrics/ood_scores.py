"""Out-of-distribution detection: anomaly scores of pixels, and how well they tell an object from its background.

A score is high where a segmenter is unsure, the negated confidence, and the object is the positive class:

- `entropy` of the softmax, in nats; `confidence`, the negated largest softmax probability (MSP); `logits`, the negated
  largest logit: these three are published, under these names.
- `energy`, minus the log of the sum of the exponentials of the logits. Source: Liu et al., "Energy-based
  Out-of-distribution Detection" (NeurIPS 2020), equation 4, at temperature 1.
- `standardised`, the negated largest logit in standard deviations from its mean over pixels of a known set that are
  predicted as the same class. Source: Jung et al., "Standardized Max Logits" (ICCV 2021), section 3.2.

An image leaves counts of its pixels at 65,536 levels of each score. They add up over images, processes and sets, and
every figure follows from them. A level is a range of float32 numbers with the same exponent and first 11 (entropy: 10)
bits of the mantissa: scores of any scale are resolved to one part in 2,048, and near-certain pixels, where confidences
crowd, much finer. `bounds` says how far a figure from levels can be from that of single pixels, which is what
`ExactFigures` gives.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from genval.metrics import ranking
from genval.metrics.statistics import LogitsNotFiniteError
from genval.runtime.errors import GenValError

if TYPE_CHECKING:
    from torch import Tensor

PUBLISHED = ("entropy", "confidence", "logits")
SCORES = (*PUBLISHED, "energy")
STANDARDISED = "standardised"
FIGURES = ("auroc", "fpr95", "aupr_object", "aupr_background")
BACKGROUND, OBJECT, VOID = 0, 1, 255
"""What a pixel of an object mask is."""

LEVELS = 1 << 16
# The lowest and highest exponent of float32 numbers that have levels of their own, and the bits of mantissa that tell
# levels apart; smaller numbers count as 0, larger ones as the largest. Odds against (1/p - 1) of 19 classes are 0 or
# 2^-24 to 18, an entropy is at most log 19 and may be tiny, and logits may be anything.
_SCALES = {
    "entropy": (-58, 3, 10),
    "confidence": (-25, 5, 11),
    "logits": (-6, 9, 11),
    "energy": (-6, 9, 11),
    STANDARDISED: (-6, 9, 11),
}
_SIGNED = ("logits", "energy", STANDARDISED)
# Pixels at a time on a CPU: what is made of them, 19 float32 logits each for one, stays in the second-level cache.
_CPU_CHUNK = 16384
# Logits further below the largest count as this far below it: exp(-80) is still a normal float32 number.
LOWEST = -80.0


@dataclass
class OodCounts:
    """Mergeable statistics of pixels; `a + b` are those of both sets."""

    levels: np.ndarray  # int64 (S, 2, LEVELS): background and object pixels by level, the highest score first
    entropy: np.ndarray  # float64 (2,): sum of the entropies of background and object, nats
    pixels: np.ndarray  # int64 (3,): background, object and void

    def __add__(self, other: OodCounts) -> OodCounts:
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in dataclasses.fields(self))
        return OodCounts(*(a + b for a, b in pairs))

    @classmethod
    def empty(cls, scores: int) -> OodCounts:
        """The statistics of no pixel, for so many scores."""
        return cls(np.zeros((scores, 2, LEVELS), np.int64), np.zeros(2), np.zeros(3, np.int64))


@dataclass
class MaxLogits:
    """The largest logit among pixels of each predicted class; `a + b` is of both sets."""

    pixels: np.ndarray  # int64 (C,)
    sums: np.ndarray  # float64 (C,)
    squares: np.ndarray  # float64 (C,)

    def __add__(self, other: MaxLogits) -> MaxLogits:
        return MaxLogits(self.pixels + other.pixels, self.sums + other.sums, self.squares + other.squares)

    @classmethod
    def measure(cls, logits: Tensor) -> MaxLogits:
        """Of logits (C, ...)."""
        import torch

        flat = logits.flatten(1)
        largest, classes = flat.max(0)
        values = largest.double()
        weighted = (torch.bincount(classes, w, minlength=len(flat)).cpu().numpy() for w in (values, values**2))
        return cls(torch.bincount(classes, minlength=len(flat)).cpu().numpy(), *weighted)

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation, float64 (C,); those of all pixels for a class of fewer than two."""
        total = MaxLogits(*(np.full(len(self.pixels), a.sum()) for a in (self.pixels, self.sums, self.squares)))
        if total.pixels[0] < 2:
            raise GenValError("Largest logits of fewer than two pixels cannot be standardised.")
        rare = self.pixels < 2
        pixels, sums, squares = (
            np.where(rare, getattr(total, f.name), getattr(self, f.name)) for f in dataclasses.fields(self)
        )
        mean = sums / pixels
        return mean, np.sqrt(np.maximum(squares / pixels - mean**2, 1e-12))


def anomaly_scores(logits: Tensor, standard: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """The scores of pixels, all from one softmax.

    Args:
        logits: (C, N), not soft-maxed.
        standard: mean and standard deviation (C,) of the largest logit (`MaxLogits.moments`), on the logits' device:
            for the score `standardised`.

    Returns:
        Float32 (S, N) in the order of `SCORES`, `standardised` last; NaN or infinite where logits are not finite.
    """
    import torch

    largest, classes = logits.max(0)
    below = (logits - largest).clamp_(min=LOWEST)
    probabilities = below.exp()
    totals = probabilities.sum(0)
    log_totals = totals.log()
    entropy = log_totals - probabilities.mul_(below).sum(0) / totals
    rows = [entropy.clamp_(min=0), -totals.reciprocal(), -largest, -(largest + log_totals)]
    if standard is not None:
        rows.append((standard[0][classes] - largest) / standard[1][classes])
    return torch.stack(rows)


def level_of(score: Tensor, name: str) -> Tensor:
    """The level of an anomaly score (float32, finite), int32 in 0..LEVELS-1, the highest scores at 0."""
    import torch

    first, count, shift = scale(name)
    value = score.reciprocal().neg_().sub_(1) if name == "confidence" else score
    bits = value.contiguous().view(torch.int32)
    if name not in _SIGNED:
        return (bits >> shift).clamp_(first, first + count).neg_().add_(first + count)
    # The bits of negative numbers ascend away from 0: turned round, all ascend. Those near 0 make one level.
    key = (bits >> 31).bitwise_and_(0x7FFFFFFF).bitwise_xor_(bits) >> shift
    below = key.clamp(-first - count - 1, -first - 1)
    return key.clamp_(first, first + count).add_(below).neg_().add_(count - 1)


def level_edge(level: int, name: str) -> float:
    """The lowest score of a level: pixels that are at least as anomalous have a score at or above it.

    >>> level_edge(0, "entropy"), level_edge(0, "logits")
    (8.0, 512.0)
    """
    first, count, shift = scale(name)
    step = count - level
    # The lowest number of a level below 0 is the end of it that is away from 0.
    magnitude = step if step >= 0 else 1 - step
    value = float(np.int32((magnitude + first) << shift).view(np.float32)) if magnitude else 0.0
    if name == "confidence":
        return -1 / (1 + value)
    return -value if step < 0 else value


def scale(name: str) -> tuple[int, int, int]:
    """Of a score's levels on one side of 0: the key before the first, their number, the bits that a key leaves out."""
    lowest, highest, mantissa_bits = _SCALES[name]
    return ((127 + lowest) << mantissa_bits) - 1, (highest - lowest) << mantissa_bits, 23 - mantissa_bits


def count_scores(scores: Tensor, kinds: Tensor, names: Sequence[str]) -> np.ndarray:
    """Count pixels by level.

    Args:
        scores: float32 (S, N), finite.
        kinds: uint8 (N,), `BACKGROUND`, `OBJECT` or `VOID`, on the same device.
        names: of the scores.

    Returns:
        int64 (S, 2, LEVELS).
    """
    import torch

    # One bincount of all pixels, and one of the few that are an object; void ones are left out beforehand.
    counted = kinds != VOID
    if not bool(counted.all()):
        scores, kinds = scores[:, counted], kinds[counted]
    objects = torch.nonzero(kinds)[:, 0]
    step = _step(kinds)
    level = torch.empty(kinds.shape, dtype=torch.int32, device=kinds.device)
    rows = []
    for score, name in zip(scores, names, strict=True):
        for start in range(0, len(level), step):
            level[start : start + step] = level_of(score[start : start + step], name)
        of_object = torch.bincount(level[objects], minlength=LEVELS)
        rows.append(torch.stack([torch.bincount(level, minlength=LEVELS) - of_object, of_object]))
    return torch.stack(rows).cpu().numpy()


def _step(pixels: Tensor) -> int:
    """How many pixels go through at a time: what fits a CPU's cache, or all at once on a GPU."""
    return _CPU_CHUNK if pixels.device.type == "cpu" else max(1, len(pixels))


def measure_ood(
    logits: Tensor, kinds: Tensor, standard: tuple[Tensor, Tensor] | None = None
) -> tuple[OodCounts, Tensor]:
    """Score and count one image's pixels, on the device of its logits.

    Args:
        logits: (C, ...), not soft-maxed; finite, but for minus infinity at classes that are ruled out.
        kinds: uint8 of the shape of the rest, `BACKGROUND`, `OBJECT` or `VOID`, on the same device.
        standard: as for `anomaly_scores`.

    Returns:
        The counts; the scores, float32 (S, N).

    Raises:
        GenValError: shapes do not fit, a mask holds something else, or a logit is NaN or infinite.
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
    # A NaN or infinity among the logits shows in the largest, hence in a score.
    entropy = [scores[0][flat_kinds == kind].sum(dtype=torch.float64) for kind in (BACKGROUND, OBJECT)]
    sound, *numbers = torch.stack([torch.isfinite(scores).all().long(), *pixels]).tolist()
    if not sound:
        raise LogitsNotFiniteError("Logits must be finite, found NaN or infinity.")
    if sum(numbers) != len(flat_kinds):
        raise GenValError(f"A mask holds {BACKGROUND}, {OBJECT} and {VOID}, found other values.")
    counts = OodCounts(
        levels=count_scores(scores, flat_kinds, names),
        entropy=torch.stack(entropy).cpu().numpy(),
        pixels=np.array(numbers, np.int64),
    )
    return counts, scores


def figures_of(background: np.ndarray, objects: np.ndarray) -> dict[str, np.ndarray]:
    """`FIGURES` from counts at levels (..., L), the highest score first; arrays (...), NaN where not defined.

    Fractions in 0..1. `aupr_object` has the object as the positive class and the score, `aupr_background` the
    background and the confidence, both by trapezoids as published; `fpr95` is the share of the background above the
    highest threshold that 95 % of the object's pixels reach.
    """
    both = (background.sum(-1) > 0) & (objects.sum(-1) > 0)
    background, objects = np.asarray(background, np.float64), np.asarray(objects, np.float64)  # once for all of them
    values = (
        ranking.auroc(objects, background),
        ranking.fpr_at_tpr(objects, background, interpolate=True),
        ranking.aupr(objects, background),
        ranking.aupr(background[..., ::-1], objects[..., ::-1]),
    )
    return {name: np.where(both, value, np.nan) for name, value in zip(FIGURES, values, strict=True)}


def level_figures(levels: np.ndarray) -> dict[str, float]:
    """`FIGURES` of one score from its counts (2, LEVELS)."""
    if not levels.any(1).all():
        return dict.fromkeys(FIGURES, math.nan)
    filled = np.flatnonzero(levels.any(0))
    return {name: float(value) for name, value in figures_of(*levels[:, filled]).items()}


def exact_counts(background: np.ndarray, objects: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Background and object pixels at each distinct score, the highest first.

    Args:
        background: scores of the background's pixels, float32, ascending.
        objects: of the object's.

    Returns:
        Two int64 arrays (number of distinct scores,).

    >>> exact_counts(np.array([0.1, 0.9], np.float32), np.array([0.9], np.float32))
    (array([1, 1]), array([1, 0]))
    """
    (values, counts), (of_objects, object_counts) = _distinct(background), _distinct(objects)
    place = np.searchsorted(values, of_objects)
    shared = np.zeros(len(of_objects), bool)
    inside = place < len(values)
    shared[inside] = values[place[inside]] == of_objects[inside]
    hits = np.zeros(len(values), np.int64)
    hits[place[shared]] = object_counts[shared]
    between = place[~shared]
    return np.insert(counts, between, 0)[::-1], np.insert(hits, between, object_counts[~shared])[::-1]


def _distinct(ordered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct values of an ascending array, and how often each is there."""
    if not len(ordered):
        return ordered, np.zeros(0, np.int64)
    last = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), len(ordered) - 1)
    return ordered[last], np.diff(last, prepend=-1)


class ExactFigures:
    """`FIGURES` from counts at distinct scores that come piece by piece, the highest scores first.

    Args:
        background: number of all background pixels.
        objects: of all object pixels.
    """

    def __init__(self, background: int, objects: int) -> None:
        self.background, self.objects = background, objects
        self._above = [0, 0]  # background and object pixels of the pieces so far
        self._pairs = self._of_objects = self._of_background = 0.0
        self._passed: float | None = None

    def add(self, background: np.ndarray, objects: np.ndarray) -> None:
        """Take the next counts, as from `exact_counts`."""
        for start in range(0, len(objects), _CPU_CHUNK):
            self._add(background[start : start + _CPU_CHUNK], objects[start : start + _CPU_CHUNK])

    def _add(self, background: np.ndarray, objects: np.ndarray) -> None:
        # Pixels above each score and down to it: one more entry than scores.
        false = np.concatenate([[0], np.cumsum(background)]) + self._above[0]
        found = np.concatenate([[0], np.cumsum(objects)]) + self._above[1]
        self._above = [int(false[-1]), int(found[-1])]
        at = np.flatnonzero(objects)
        hits = objects[at].astype(np.float64)
        self._pairs += float(hits @ (self.background - (false[at] + false[at + 1]) / 2))
        self._of_objects += float(hits @ _mean_precision(found[at], false[at], found[at + 1], false[at + 1]))
        left, left_objects = self.background - false, self.objects - found
        precision = np.divide(left, left + left_objects, out=np.ones(len(left)), where=left + left_objects > 0)
        self._of_background += float(background @ ((precision[1:] + precision[:-1]) / 2))
        enough = found[1:] >= 0.95 * self.objects * (1 - 1e-9)
        if self._passed is None and enough[-1]:
            self._passed = float(false[1 + int(np.argmax(enough))])

    def figures(self) -> dict[str, float]:
        """Of all that was added; NaN without an object or without background."""
        if not self.background or not self.objects:
            return dict.fromkeys(FIGURES, math.nan)
        assert self._above == [self.background, self.objects] and self._passed is not None
        values = (
            self._pairs / self.background / self.objects,
            self._passed / self.background,
            self._of_objects / self.objects,
            self._of_background / self.background,
        )
        return dict(zip(FIGURES, values, strict=True))


def _mean_precision(found: np.ndarray, false: np.ndarray, found_now: np.ndarray, false_now: np.ndarray) -> np.ndarray:
    """The mean of precision before and at a score, 1 before the first pixel."""
    alarms = found + false
    before = np.divide(found, alarms, out=np.ones(len(found)), where=alarms > 0)
    mean: np.ndarray = (before + found_now / (found_now + false_now)) / 2
    return mean


def exact_figures(background: np.ndarray, objects: np.ndarray) -> dict[str, float]:
    """`FIGURES` of single pixels: arguments as for `exact_counts`.

    >>> exact_figures(np.array([0.1, 0.2], np.float32), np.array([0.3], np.float32))["auroc"]
    1.0
    """
    result = ExactFigures(len(background), len(objects))
    result.add(*exact_counts(background, objects))
    return result.figures()


def bounds(levels: np.ndarray) -> dict[str, float]:
    """How far `FIGURES` from one score's levels (2, LEVELS) can be from those of single pixels, at most.

    Only the order inside a level is unknown. `auroc`: half the pairs inside one level. `fpr95`: the background pixels
    of the level in which the threshold lies. `aupr_*`: precision at a positive pixel lies between what it would be
    with all negatives of its level before it and with none of the level's pixels but positives.
    """
    filled = np.flatnonzero(levels.any(0))
    background, objects = levels[:, filled].astype(np.float64)
    if not background.any() or not objects.any():
        return dict.fromkeys(FIGURES, math.nan)
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
    # Before the first pixel precision counts as 1.
    least = np.divide(before, before + false, out=np.ones_like(found), where=before + false > 0)
    most = np.divide(found, found + false_before, out=np.ones_like(found), where=found + false_before > 0)
    return float((positives * (most - least)).sum() / positives.sum())
