"""Reliability diagrams: accuracy over confidence, per bin.

Source: Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017), figure 1.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from genval.metrics.calibration import BINS, binned_ece
from genval.metrics.division import safe_divide
from genval.metrics.statistics import PixelStatistics
from genval.runtime.files import write_bytes


def reliability_bins(statistics: PixelStatistics) -> dict[str, list[float]]:
    """Return the data of a diagram, fit for JSON: `pixels`, `right` and the sum of `confidence` per bin."""
    return {
        "pixels": statistics.bins.sum(0).tolist(),
        "right": statistics.bins[1].tolist(),
        "confidence": statistics.bin_confidence.tolist(),
    }


def write_reliability_diagram(path: Path, sets: Mapping[str, PixelStatistics]) -> None:
    """Write a PNG with one panel per set, side by side: accuracy, gap to the confidence and share of pixels per bin.

    Args:
        path: the PNG.
        sets: statistics by the panel's title.
    """
    from matplotlib.collections import PolyCollection
    from matplotlib.figure import Figure

    edges = np.arange(BINS + 1) / BINS

    def bars(lower: np.ndarray, upper: np.ndarray, **style: Any) -> PolyCollection:
        # One artist for all bars of a panel: 15 artists take longer to draw.
        left, right = edges[:-1], edges[1:]
        corners = [(left, lower), (left, upper), (right, upper), (right, lower)]
        return PolyCollection(list(np.moveaxis(np.array(corners), -1, 0)), **style)

    width, height = 3.4 * len(sets), 4.2
    figure = Figure(figsize=(width, height))
    # Margins in inches. A constrained layout would draw everything twice to find them.
    margins = {"left": 0.6 / width, "right": 1 - 0.15 / width, "bottom": 0.5 / height, "top": 1 - 0.5 / height}
    grid = {"height_ratios": [3, 1], "wspace": 0.28, "hspace": 0.08}
    panels = figure.subplots(2, len(sets), sharex=True, squeeze=False, gridspec_kw={**grid, **margins})
    zeros = np.zeros(BINS)
    for (title, statistics), (top, bottom) in zip(sets.items(), panels.T, strict=True):
        pixels, right = statistics.bins.sum(0), statistics.bins[1]
        accuracy, confidence = (safe_divide(values, pixels, default=0) for values in (right, statistics.bin_confidence))
        top.add_collection(
            bars(zeros, accuracy, facecolor="#4878a8", edgecolor="white", label="accuracy"), autolim=False
        )
        gap = {"color": "#d65f5f", "alpha": 0.35, "hatch": "//"}
        top.add_collection(bars(accuracy, confidence, label="gap to confidence", **gap), autolim=False)
        top.plot([0, 1], [0, 1], color="0.3", linewidth=1, linestyle="--")
        ece = float(binned_ece(right, pixels, statistics.bin_confidence))
        top.set(title=f"{title}\nECE {100 * ece:.2f} %", xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
        shares = pixels / max(1, pixels.sum())
        bottom.add_collection(bars(zeros, shares, facecolor="0.6", edgecolor="white"), autolim=False)
        bottom.set(xlabel="confidence", ylabel="share of pixels", ylim=(0, 1))
    panels[0, 0].legend(loc="upper left", fontsize="small")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120)
    write_bytes(path, stream.getvalue())
