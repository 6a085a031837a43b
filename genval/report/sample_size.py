"""How many generated images are enough: what a smaller generated set would have said."""

from __future__ import annotations

from typing import Any

import numpy as np

from genval.metrics.correlation import kendall, pearson
from genval.report.comparison import number, regret
from genval.report.figures import weigh

SMALLEST = 8


def sizes(total: int) -> list[int]:
    """The numbers of images tried: 8, 16, 32, ... and all of them.

    >>> sizes(40), sizes(5)
    ([8, 16, 32, 40], [5])
    """
    doubled = [SMALLEST << power for power in range(20) if SMALLEST << power < total]
    return [*doubled, total]


def sample_size_curve(
    counts: np.ndarray,
    figure: Any,
    true: np.ndarray,
    draws: int,
    seed: int,
    settled_tau: float = 0.9,
    settled_regret: float = 1.0,
) -> dict[str, Any]:
    """A curve, as `genval.report` describes it, of a figure of which higher is better.

    So many images are drawn with replacement from all that were generated; the true figures stay as they are, so that
    what varies is due to the number of generated images alone.

    Args:
        counts: of the generated set, float64 (N, M, ...), N images of M models.
        figure: function from summed counts (..., M, ...) to figures (..., M).
        true: the true figures, float64 (M,).
        draws: sets drawn at each number.
        seed: of the drawing.
        settled_tau: see `settles_ranking`.
        settled_regret: see `settles_choice`.
    """
    total = len(counts)
    full = figure(counts.sum(0))
    generator = np.random.default_rng(seed)
    columns: dict[str, list[dict[str, float | None]]] = {"pearson": [], "tau": [], "regret": []}
    tried = sizes(total)
    for size in tried:
        weights = generator.multinomial(size, np.full(total, 1 / total), draws).astype(np.float64)
        drawn = figure(weigh(counts, weights))
        r, tau = pearson(drawn, true), kendall(drawn, full)
        # A choice that happens to be better than that by all images is no more settled than a worse one.
        away = np.abs(regret(drawn, np.broadcast_to(true, drawn.shape)) - regret(full, true))
        low, high = np.nanpercentile(r, [2.5, 97.5]) if not np.isnan(r).all() else (np.nan, np.nan)
        columns["pearson"].append(
            {
                "value": number(pearson(full, true)) if size == total else number(np.nanmedian(r)),
                "low": number(low),
                "high": number(high),
                "width": number(high - low),
            }
        )
        columns["tau"].append({"value": number(np.nanmedian(tau)), "low": number(np.nanpercentile(tau, 5))})
        columns["regret"].append({"value": number(np.nanmean(away)), "high": number(np.nanpercentile(away, 95))})
    return {
        "images": tried,
        **columns,
        "settles_ranking": _from_which_on(
            tried, [entry["low"] is not None and entry["low"] >= settled_tau for entry in columns["tau"]]
        ),
        "settles_choice": _from_which_on(
            tried, [entry["high"] is not None and entry["high"] <= settled_regret for entry in columns["regret"]]
        ),
        "settled_tau": settled_tau,
        "settled_regret": settled_regret,
        "total": total,
    }


def _from_which_on(numbers: list[int], good: list[bool]) -> int | None:
    """The smallest number at which, and at all larger ones, it is good."""
    found = None
    for value, is_good in zip(reversed(numbers), reversed(good), strict=True):
        if not is_good:
            break
        found = value
    return found
