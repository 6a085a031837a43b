"""Detection of pixels of unknown classes by the confidence of a segmenter, from saved logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from genval.artifacts.fingerprint import file_mark
from genval.datasets import IGNORE
from genval.datasets.labels import IDD
from genval.datasets.reading import read_mask
from genval.metrics.ranking import aupr, auroc, fpr_at_tpr
from genval.metrics.reliability import pool
from genval.metrics.statistics import PixelStatistics, count_confidences, odds_against
from genval.results.finding import open_tensors
from genval.results.scenes import SceneResults
from genval.runtime.commands import Command
from genval.runtime.errors import GenValError
from genval.runtime.paths import resolve

METRICS = ("auroc", "aupr", "fpr95")


@dataclass(frozen=True)
class UnknownFound:
    """How well low confidence detects pixels of unknown classes; metrics are fractions, by the names in `METRICS`."""

    per_image: dict[str, dict[str, float]]  # by image; NaN if an image has no unknown or no known pixel
    pooled: dict[str, float]  # over the pixels of all images
    intervals: dict[str, tuple[float, float]]  # 95 % over images, of the pooled `auroc` and `aupr`
    unknown: int  # pixels
    known: int


def measure_unknown(scenes: Sequence[SceneResults], unknown: Sequence[int]) -> UnknownFound:
    """Measure the detection of unknown classes on a set.

    Args:
        scenes: scenes with saved logits, of all pixels or of a sample.
        unknown: the ids in the masks of the unknown classes; none of them has a trainId.

    Raises:
        GenValError: a scene has no logits, a mask has changed since they were saved, or no pixel is of an
            unknown or of a known class.
    """
    counted: dict[str, PixelStatistics] = {}
    for results in scenes:
        tensors = open_tensors(results, "logits")
        records = {record["id"]: record for record in results.records()}
        for item_id in tensors.ids:
            mask = resolve(records[item_id]["mask"])
            if file_mark(mask) != records[item_id]["mask_mark"]:
                command = _command(results).with_flags(overwrite=True)
                raise GenValError(f"{mask} has changed since the logits of {item_id} were saved. Run: {command}")
            logits, labels, indices = tensors.read(item_id, "logits", "labels", "indices")
            is_unknown = np.isin(read_mask(mask, IDD.table).reshape(-1)[indices], unknown)
            counted[f"{results.scene}/{item_id}"] = _count(logits, is_unknown, labels)
    total, ends = pool(counted.values())
    positive, negative = (int(pixels) for pixels in total.levels.sum(1))
    if not positive or not negative:
        raise GenValError(
            f"Expected saved pixels of unknown and of known classes, found {positive} and {negative}. "
            "Give other --unknown classes, or save all pixels' logits (relis/extract_logits.py --logit_pixels -1)."
        )
    return UnknownFound(
        per_image={name: _metrics(statistics) for name, statistics in counted.items()},
        pooled=_metrics(total),
        intervals={"auroc": ends["auroc"], "aupr": ends["aupr_wrong"]},
        unknown=positive,
        known=negative,
    )


def _count(logits: np.ndarray, unknown: np.ndarray, labels: np.ndarray) -> PixelStatistics:
    """Count pixels by confidence, with unknown pixels counted as wrong and known pixels as right predictions.

    With these counts, `auroc` and `aupr_wrong` are the AUROC and AUPR of the detector of unknown pixels. Adding the
    counts pools images.
    """
    flat = torch.from_numpy(np.ascontiguousarray(logits.T, np.float32))
    if not bool(torch.isfinite(flat.amax(0)).all()):
        raise GenValError("Logits must be finite, found NaN or infinity.")
    known = torch.from_numpy(labels != IGNORE)
    statistics = PixelStatistics.empty(len(flat))
    statistics.levels[:] = count_confidences(odds_against(flat), known, known | torch.from_numpy(unknown))[0]
    return statistics


def _metrics(statistics: PixelStatistics) -> dict[str, float]:
    # The least confident pixels score highest.
    unknown, known = statistics.levels[:, ::-1]
    values = auroc(unknown, known), aupr(unknown, known), fpr_at_tpr(unknown, known, interpolate=True)
    metrics = dict(zip(METRICS, map(float, values), strict=True))
    return metrics if known.any() else dict.fromkeys(METRICS, float("nan"))


def _command(results: SceneResults) -> Command:
    return results.command().with_script("relis/extract_logits")
