"""How scores fall with the strength of a generated condition, and the strength at which a model falls below a limit.

The sets of one domain at several strengths (`--domain_strength` of ControlNet/style_transfer.py) show the same streets.
Reference images are not used: the curve compares models with each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from genval.datasets import CLASSES
from genval.datasets.layouts import GATED_SUFFIX, at_strength, strength_of
from genval.report.evidence import Evidence, read_evidence, require_same_models, with_street_sources
from genval.report.predictors import Generator
from genval.report.resampling import draw_images, interval
from genval.report.schema import SeverityCurve, ValueWithInterval
from genval.report.scores import mean_iou, weigh
from genval.runtime.commands import Command, Missing
from path_dicts import DEFAULT_GENERATOR

KEPT_SHARE = 0.9
"""Without a limit, a model must keep this share of its own mIoU at the lowest strength."""


def find_strengths(root: Path, generator: Generator, domain: str, gate: bool) -> list[float]:
    """Return the strengths of a domain with results below `root`, ascending."""
    whole = generator.place(domain, gate).dataset.removesuffix(GATED_SUFFIX)
    suffix = GATED_SUFFIX if gate else ""
    found = set()
    for folder in root.glob(f"*/{whole}*"):
        name, strength = strength_of(folder.name.removesuffix(suffix))
        if name == whole and folder.name == at_strength(whole, strength) + suffix:
            found.add(strength)
    return sorted(found)


def severity_curve(
    root: Path,
    models: Sequence[str],
    generator: Generator,
    domain: str,
    missing: list[Missing],
    *,
    gate: bool = False,
    min_miou: float | None = None,
    draws: int,
    seed: int,
    preset: str | None = None,
) -> SeverityCurve | None:
    """Compute the mIoU of each model at every strength, and where it falls below a limit.

    The images are those that exist at all strengths, since a set may have more images than another. Streets are
    resampled together at all strengths. The classes are those labelled at all of them.

    Args:
        root: folder of the evaluation results.
        models: names as given to relis/eval.py; those with results at every strength are compared.
        generator: of the sets.
        domain: its name.
        missing: models without results at a strength are appended.
        gate: whether the sets are those that relis/eval.py --gate evaluated.
        min_miou: the limit in percent; None for `KEPT_SHARE` of a model's own mIoU at the lowest strength.
        draws: bootstrap draws.
        seed: of the draws.
        preset: of the commands.

    Returns:
        None with fewer than two strengths, or where no model has results at all of them, or no image exists at all of
        them.

    Raises:
        GenValError: a file is damaged, or one name stands for different models at two strengths.
    """
    strengths = find_strengths(root, generator, domain, gate)
    if len(strengths) < 2:
        return None
    sets: dict[float, Evidence] = {}
    for strength in strengths:
        place = generator.place(at_strength(domain, strength), gate)
        evidence = read_evidence(root, models, place, preset, missing)
        if evidence is not None and evidence.counts.shape[-1] == len(CLASSES):
            sets[strength] = with_street_sources(evidence, domain)
    if len(sets) < 2:
        return None
    require_same_models(sets.values(), root, preset)
    common = frozenset.intersection(*(frozenset(evidence.images) for evidence in sets.values()))
    if not common:
        own = {"preset": preset, "generator": None if generator.name == DEFAULT_GENERATOR else generator.name}
        command = Command(
            "ControlNet/style_transfer", {**own, "domain": domain, "domain_strength": ",".join(map(str, sets))}
        )
        missing.append(Missing(f"images of the same streets at all strengths of {domain}", str(command)))
        return None
    sets = {strength: evidence.of_images(common) for strength, evidence in sets.items()}
    kept = np.flatnonzero(np.all([evidence.has() for evidence in sets.values()], axis=0))
    classes = np.flatnonzero(np.all([evidence.labelled() for evidence in sets.values()], axis=0)).tolist()
    if not len(kept) or not classes:
        return None
    drawn = draw_images({str(strength): evidence.sources for strength, evidence in sets.items()}, draws, seed)
    counts = {strength: evidence.counts[:, kept] for strength, evidence in sets.items()}
    value = np.stack([mean_iou(of.sum(0), classes) for of in counts.values()], -1)
    resampled = np.stack([mean_iou(weigh(of, drawn[str(s)]), classes) for s, of in counts.items()], -1)

    def limit(scores: np.ndarray) -> np.ndarray:
        return KEPT_SHARE * scores[..., 0] if min_miou is None else np.full(scores.shape[:-1], min_miou)

    at = np.array(list(sets))
    falls, falls_resampled = (falls_below(scores, limit(scores), at) for scores in (value, resampled))
    return SeverityCurve(
        strengths=at.tolist(),
        images=len(common),
        classes=[CLASSES[index] for index in classes],
        min_miou=min_miou,
        miou={
            models[index]: [
                ValueWithInterval.of_ends(float(value[row, step]), interval(resampled[:, row, step]))
                for step in range(len(at))
            ]
            for row, index in enumerate(kept.tolist())
        },
        falls_at={
            models[index]: ValueWithInterval(_known(falls[row]), *_quantiles(falls_resampled[:, row]))
            for row, index in enumerate(kept.tolist())
        },
    )


def falls_below(scores: np.ndarray, limit: np.ndarray, strengths: np.ndarray) -> np.ndarray:
    """Return the strength at which scores first fall below a limit, linear between two strengths.

    Args:
        scores: (..., S) at the strengths.
        limit: (...).
        strengths: (S,), ascending.

    Returns:
        float64 (...); infinite where the scores stay at the limit or above.

    >>> falls_below(np.array([[80.0, 60.0, 20.0], [80.0, 79.0, 78.0]]), np.array([40.0, 40.0]), np.array([0, 0.5, 1]))
    array([0.75,  inf])
    """
    below = scores < limit[..., None]
    step = below.argmax(-1)[..., None]
    before = np.maximum(step - 1, 0)
    upper, lower = (np.take_along_axis(scores, index, -1)[..., 0] for index in (before, step))
    start, end = strengths[before[..., 0]], strengths[step[..., 0]]
    drop = np.where(upper > lower, upper - lower, 1)
    crossing = start + (end - start) * np.clip((upper - limit) / drop, 0, 1)
    return np.where(below.any(-1), crossing, np.inf)


def _quantiles(values: np.ndarray) -> tuple[float | None, float | None]:
    """Return the 95 % interval; an end is None where the score does not fall below the limit."""
    low, high = np.quantile(values, [0.025, 0.975], method="inverted_cdf")
    return _known(low), _known(high)


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
