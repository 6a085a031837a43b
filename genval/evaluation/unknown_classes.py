"""Pixels of classes that a segmenter was never shown, found by its confidence, from saved logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from genval.artifacts.fingerprint import file_mark
from genval.artifacts.tensors import PackedTensors
from genval.datasets import IGNORE
from genval.metrics.ranking import aupr, auroc, fpr_at_tpr
from genval.metrics.reliability import pool
from genval.metrics.statistics import PixelStatistics, count_confidences
from genval.results.scenes import SceneResults
from genval.runtime.commands import Command
from genval.runtime.errors import GenValError
from genval.runtime.files import read_jsonl, read_mask
from genval.runtime.paths import resolve

METRICS = ("auroc", "aupr", "fpr95")


@dataclass(frozen=True)
class UnknownFound:
    """How well low confidence finds the pixels of unknown classes. Figures are fractions by the names of `METRICS`."""

    of_images: dict[str, dict[str, float]]  # by image; NaN where an image has no unknown or no known pixel
    pooled: dict[str, float]  # of all images' pixels together
    intervals: dict[str, tuple[float, float]]  # 95 %, over the choice of images: `auroc` and `aupr` of all pixels
    unknown: int  # pixels
    known: int


def measure_unknown(scenes: Sequence[SceneResults], unknown: Sequence[int]) -> UnknownFound:
    """Measure a set.

    Args:
        scenes: with saved logits, of all pixels or of a sample.
        unknown: the raw ids of the masks that are unknown classes, none of which has a trainId.

    Raises:
        GenValError: a scene has no logits, a mask is not the one they were saved with, or no pixel is of an unknown or
            none of a known class.
    """
    counted: dict[str, PixelStatistics] = {}
    for results in scenes:
        path = results.packed("logits")
        if not path.exists():
            raise GenValError(f"No logits in {path}. Run: {_command(results)}")
        tensors = PackedTensors(path)
        records = {record["id"]: record for record in read_jsonl(results.folder / "manifest.jsonl")}
        for item_id in tensors.ids:
            mask = resolve(records[item_id]["mask"]) if item_id in records else path
            if item_id not in records or file_mark(mask) != records[item_id]["mask_mark"]:
                command = _command(results).with_flags(overwrite=True)
                raise GenValError(f"{mask} and the logits of {item_id} do not fit. Run: {command}")
            logits, labels, indices = tensors.read(item_id, "logits", "labels", "indices")
            is_unknown = np.isin(read_mask(mask).reshape(-1)[indices], unknown)
            counted[f"{results.scene}/{item_id}"] = _count(logits, is_unknown, labels)
    total, ends = pool(counted.values())
    positive, negative = (int(pixels) for pixels in total.levels.sum(1))
    if not positive or not negative:
        raise GenValError(
            f"Of the saved pixels {positive} are of the unknown classes and {negative} of known ones: both are needed. "
            "Give other --unknown classes, or save all pixels' logits (relis/extract_logits.py --logit_pixels -1)."
        )
    return UnknownFound(
        of_images={name: _metrics(statistics) for name, statistics in counted.items()},
        pooled=_metrics(total),
        intervals={"auroc": ends["auroc"], "aupr": ends["aupr_wrong"]},
        unknown=positive,
        known=negative,
    )


def _count(logits: np.ndarray, unknown: np.ndarray, labels: np.ndarray) -> PixelStatistics:
    """Levels of confidence alone, unknown pixels in the place of wrong and known ones in that of right predictions.

    A confidence that ranks right above wrong ranks known above unknown: `auroc` and `aupr_wrong` of such statistics are
    those of the detector, and adding them pools images.
    """
    flat = torch.from_numpy(np.ascontiguousarray(logits.T, np.float32))
    if not bool(torch.isfinite(flat.amax(0)).all()):
        raise GenValError("Logits must be finite, found NaN or infinity.")
    totals = (flat - flat.amax(0)).clamp_(min=-40).exp_().sum(0)
    known = torch.from_numpy(labels != IGNORE)
    statistics = PixelStatistics.empty(len(flat))
    statistics.levels[:] = count_confidences(totals, known, known | torch.from_numpy(unknown))[0]
    return statistics


def _metrics(statistics: PixelStatistics) -> dict[str, float]:
    # The least confident pixels score highest.
    unknown, known = statistics.levels[:, ::-1]
    values = auroc(unknown, known), aupr(unknown, known), fpr_at_tpr(unknown, known, interpolate=True)
    metrics = dict(zip(METRICS, map(float, values), strict=True))
    return metrics if known.any() else dict.fromkeys(METRICS, float("nan"))


def _command(results: SceneResults) -> Command:
    return results.command().with_script("relis/extract_logits")
