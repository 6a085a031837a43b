"""How many generated images are enough: the results of smaller generated sets."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from genval.metrics.correlation import kendall, pearson
from genval.report.comparison import number, regret
from genval.report.schema import AgreementPoint, CorrelationPoint, RegretPoint, SampleSizeCurve
from genval.report.scores import weigh

SMALLEST = 8


def sizes(total: int) -> list[int]:
    """List the numbers of images tried: 8, 16, 32, ... and all of them.

    >>> sizes(40), sizes(5)
    ([8, 16, 32, 40], [5])
    """
    doubled = [SMALLEST << power for power in range(20) if SMALLEST << power < total]
    return [*doubled, total]


def sample_size_curve(
    counts: np.ndarray,
    score: Callable[[np.ndarray], np.ndarray],
    reference: np.ndarray,
    *,
    draws: int,
    seed: int,
    settled_tau: float = 0.9,
    settled_regret: float = 1.0,
) -> SampleSizeCurve:
    """Compute the curve of a score of which higher is better.

    At each number, images are drawn with replacement from all generated ones. The reference scores stay fixed, so that
    the variation is due to the number of generated images alone.

    Args:
        counts: of the generated set, float64 (N, M, ...), N images of M models.
        score: function from summed counts (..., M, ...) to scores (..., M).
        reference: the reference scores, float64 (M,).
        draws: sets drawn at each number.
        seed: of the draws.
        settled_tau: Kendall's tau from which a ranking is settled.
        settled_regret: points within which a choice is settled.
    """
    total = len(counts)
    full = score(counts.sum(0))
    generator = np.random.default_rng(seed)
    r_points: list[CorrelationPoint] = []
    tau_points: list[AgreementPoint] = []
    regret_points: list[RegretPoint] = []
    for size in sizes(total):
        weights = generator.multinomial(size, np.full(total, 1 / total), draws).astype(np.float64)
        drawn = score(weigh(counts, weights))
        r_points.append(_correlation_point(pearson(drawn, reference), pearson(full, reference), size == total))
        tau = kendall(drawn, full)
        tau_points.append(AgreementPoint(number(np.nanmedian(tau)), number(np.nanpercentile(tau, 5))))
        # A choice that happens to be better than that by all images is no more settled than a worse one.
        away = np.abs(regret(drawn, np.broadcast_to(reference, drawn.shape)) - regret(full, reference))
        regret_points.append(RegretPoint(number(np.nanmean(away)), number(np.nanpercentile(away, 95))))
    return SampleSizeCurve(
        images=sizes(total),
        pearson=r_points,
        tau=tau_points,
        regret=regret_points,
        settles_ranking=_from_which_on(
            sizes(total), [point.low is not None and point.low >= settled_tau for point in tau_points]
        ),
        settles_choice=_from_which_on(
            sizes(total), [point.high is not None and point.high <= settled_regret for point in regret_points]
        ),
        settled_tau=settled_tau,
        settled_regret=settled_regret,
        total=total,
    )


def _correlation_point(drawn: np.ndarray, full: np.ndarray, is_full: bool) -> CorrelationPoint:
    """The point of r over draws; with all images, its value is that of the generated set itself."""
    low, high = np.nanpercentile(drawn, [2.5, 97.5]) if not np.isnan(drawn).all() else (np.nan, np.nan)
    value = number(full) if is_full else number(np.nanmedian(drawn))
    return CorrelationPoint(value, number(low), number(high), number(high - low))


def _from_which_on(numbers: list[int], good: list[bool]) -> int | None:
    """Return the smallest number that is good and from which on all larger ones are good."""
    found = None
    for value, is_good in zip(reversed(numbers), reversed(good), strict=True):
        if not is_good:
            break
        found = value
    return found
