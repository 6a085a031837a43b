"""Time what follows the forward pass, for one image: the published procedure and this library, in one run.

Reads:  nothing; generates labels and logits with the proportions of a street scene
Writes: nothing; prints a Markdown table of milliseconds, ratios and the largest difference of a metric

    python benchmarks/evaluation_arithmetic.py --height 1024 --width 2048

Published: per-image mIoU by one bincount and accuracy by one comparison per class; ECE by 15 boolean masks over float64
confidences, and again with boundaries interpolated from the sorted confidences; KS by sorting; misclassification
detection by scikit-learn's roc_curve and two precision_recall_curve; temperature by 950 times softmax and a 15-mask ECE
in float64. All run on one CPU thread unless --threads says otherwise; with --accelerator gpu the passes of this library
run on the GPU.
"""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from timing import HEADER, comparison_row, least_time

try:
    from genval.runtime import cli
    from genval.runtime.flags import flag
    from genval.runtime.settings import positive_int
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed in this environment. Run: make install")

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from genval.metrics.statistics import PixelStatistics


@dataclass(frozen=True, kw_only=True)
class EvaluationArithmeticSettings:
    """The size of the image, and how to time."""

    SCRIPT: ClassVar[str] = "benchmarks/evaluation_arithmetic"

    height: int = flag(1024, "height of the image", type=positive_int)
    width: int = flag(2048, "width of the image", type=positive_int)
    pixels: int = flag(20000, "number of pixels of the temperature search", type=positive_int)
    threads: int = flag(1, "number of CPU threads", type=positive_int)
    repeats: int = flag(3, "the table shows the least time of this many repeats", type=positive_int)
    accelerator: Literal["cpu", "gpu", "cuda"] = flag("cpu", "where the passes of this library run")


def main(settings: EvaluationArithmeticSettings) -> None:
    import sklearn.metrics  # noqa: F401 - so that no timing includes the import
    import torch

    from genval.metrics import ranking
    from genval.runtime.tables import markdown_table

    torch.set_num_threads(settings.threads)
    device = torch.device("cpu" if settings.accelerator == "cpu" else "cuda")
    logits, labels = make_scene(settings.height, settings.width)
    counted = (labels != 255).numpy().ravel()
    confidence = logits.softmax(0).amax(0).numpy().ravel()[counted]
    right = (logits.argmax(0) == labels).numpy().ravel()[counted]
    rows = compare_metrics(logits, labels, confidence, right, settings.repeats, device)
    rows.append(compare_temperature(logits, labels, settings.pixels, settings.repeats, device))
    oracle = ranking.prediction_rejection_ratio(*ranking.counts_by_score(right.astype(float), right))
    print(markdown_table(HEADER, rows, digits=2))
    print("(*) this library also computes class-wise ECE, NLL, Brier score, PRR and entropies in this time")
    size = f"{settings.width}x{settings.height}, {settings.threads} thread(s), {settings.accelerator}"
    print(f"{size}; PRR of the oracle {float(oracle):.1f}")


def compare_metrics(
    logits: Tensor, labels: Tensor, confidence: np.ndarray, right: np.ndarray, repeats: int, device: torch.device
) -> list[list[Any]]:
    """Return the rows of robustness, calibration and misclassification detection, and of all of them from logits.

    Args:
        logits: (C, H, W).
        labels: uint8 (H, W).
        confidence: of the N labelled pixels (N,).
        right: whether they are predicted correctly, bool (N,).
        repeats: of the functions of this library; published ones run once.
        device: where the functions of this library run.
    """
    import torch

    from genval.metrics.confusion import confusion_matrix
    from genval.metrics.reliability import reliability_metrics
    from genval.metrics.segmentation import mean_iou, pixel_accuracy

    cpu = torch.device("cpu")
    predictions = logits.argmax(0).to(torch.uint8)
    on_device = logits.to(device), labels.to(device)
    odds, hits = torch.from_numpy(1 / confidence - 1).to(device), torch.from_numpy(right).to(device)

    def from_matrix() -> tuple[float, float]:
        matrix = confusion_matrix(*(tensor.to(device) for tensor in (labels, predictions)))
        return mean_iou(matrix), pixel_accuracy(matrix) / 100

    scores = least_time(lambda: published_scores(labels.numpy(), predictions.numpy()), 1, cpu)
    calibration = least_time(lambda: published_calibration(confidence.astype(np.float64), right), 1, cpu)
    errors = least_time(lambda: published_ranking(confidence, ~right), 1, cpu)
    softmax = least_time(lambda: (logits.softmax(0).max(0), 0)[1], 1, cpu)
    here = least_time(lambda: reliability_metrics(measure_image(*on_device)), repeats, device)
    names = ("ece", "adaptive_ece", "ks", "auroc", "aupr_wrong", "aupr_right")
    published = scores[0] + calibration[0] + errors[0] + softmax[0], [*calibration[1], *errors[1][:3]]
    calibration_here = least_time(lambda: from_counts(odds, hits)[:3], repeats, device)
    errors_here = least_time(lambda: from_counts(odds, hits)[3:], repeats, device)
    return [
        comparison_row("mIoU and accuracy", scores, least_time(from_matrix, repeats, device)),
        comparison_row("ECE, adaptive ECE, KS from confidences", calibration, calibration_here),
        comparison_row("AUROC, 2 AUPR, FPR95 from confidences", errors, errors_here),
        comparison_row(
            "all of it from logits, with softmax and argmax (*)", published, (here[0], [here[1][n] for n in names])
        ),
    ]


def compare_temperature(logits: Tensor, labels: Tensor, pixels: int, repeats: int, device: torch.device) -> list[Any]:
    """Return the row of the temperature search on a random sample of pixels."""
    import torch

    from genval.metrics.temperature import Pixels, search_ece

    chosen = np.random.default_rng(0).choice(labels.numel(), min(pixels, labels.numel()), replace=False)
    sample = logits.flatten(1)[:, chosen].T.numpy(), labels.flatten()[chosen].numpy()
    published = least_time(lambda: published_temperature(*sample), 1, torch.device("cpu"))
    here = least_time(lambda: search_ece(Pixels.from_logits(*sample)).temperature, repeats, device)
    return comparison_row(f"temperature, {pixels} pixels", published, here)


def measure_image(logits: Tensor, labels: Tensor) -> PixelStatistics:
    """Measure an image by the CPU's function, or on a GPU by the kernel."""
    import torch

    from genval.metrics.statistics import measure, measure_batch

    if logits.device.type == "cpu":
        return measure(logits, labels)[1]
    read = measure_batch(logits[None], labels[None])
    torch.cuda.synchronize()
    return next(read())[1]


def make_scene(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return logits (19, H, W) that are right on most pixels, and labels (H, W) in patches, a tenth void."""
    import torch

    generator = torch.Generator().manual_seed(0)
    patches = torch.randint(0, 19, (-(-height // 32), -(-width // 32)), generator=generator)
    labels = patches.repeat_interleave(32, 0).repeat_interleave(32, 1)[:height, :width].contiguous()
    logits = torch.randn(19, height, width, generator=generator)
    strength = torch.randn(height, width, generator=generator).mul(1.2).add(1.6).exp()
    logits.scatter_add_(0, labels[None], strength[None])
    labels[: height // 10] = 255
    return logits, labels.to(torch.uint8)


def from_counts(odds: Tensor, right: Tensor) -> list[float]:
    """Compute metrics from counts: ECE, adaptive ECE, KS; AUROC and AUPR of errors, AUPR of correct pixels, FPR95."""
    import torch

    from genval.metrics import calibration, ranking
    from genval.metrics.statistics import count_confidences, level_confidence

    levels, bins, sums = count_confidences(odds, right, torch.ones_like(right))
    wrong, hits = levels
    pixels = levels.sum(0)[::-1]
    curve = calibration.gap_curve(hits[::-1], pixels, pixels * level_confidence()[::-1])
    errors = [
        calibration.binned_ece(bins[1], bins.sum(0), sums),
        calibration.adaptive_ece(curve, pixels),
        calibration.ks_error(curve),
    ]
    ascending = wrong[::-1], hits[::-1]
    ranked = [ranking.auroc(*ascending), ranking.aupr(*ascending), ranking.aupr(hits, wrong)]
    return [float(value) for value in [*errors, *ranked, ranking.fpr_at_tpr(*ascending, interpolate=True)]]


def published_scores(labels: np.ndarray, predictions: np.ndarray) -> tuple[float, float]:
    """Return the mIoU over present classes and the accuracy of one image."""
    keep = labels != 255
    matrix = np.bincount(19 * labels[keep].astype(int) + predictions[keep], minlength=361).reshape(19, 19)
    with np.errstate(invalid="ignore"):
        iou = np.diag(matrix) / (matrix.sum(0) + matrix.sum(1) - np.diag(matrix))
    hits = sum(((predictions == index) & (labels == index)).sum() for index in range(19))
    return float(np.nanmean(iou)), float(hits / keep.sum())


def published_calibration(confidence: np.ndarray, right: np.ndarray) -> list[float]:
    """Return ECE, adaptive ECE and KS error."""

    def masks(edges: np.ndarray) -> float:
        total = 0.0
        for lower, upper in itertools.pairwise(edges):
            inside = (confidence > lower) & (confidence <= upper)
            if inside.any():
                total += abs(confidence[inside].mean() - right[inside].mean()) * inside.mean()
        return total

    count = len(confidence)
    populations = np.interp(np.linspace(0, count, 16), np.arange(count), np.sort(confidence))
    order = np.argsort(confidence)
    gaps = np.cumsum(confidence[order] / count) - np.cumsum(right[order] / count)
    return [masks(np.linspace(0, 1, 16)), masks(populations), float(np.abs(gaps).max())]


def published_ranking(confidence: np.ndarray, wrong: np.ndarray) -> list[float]:
    """Return AUROC, AUPR of errors, AUPR of correct pixels and FPR at 95 % TPR, with errors as the positive class."""
    from sklearn.metrics import auc, precision_recall_curve, roc_curve

    fpr, tpr, _ = roc_curve(wrong, -confidence)
    curves = precision_recall_curve(wrong, -confidence), precision_recall_curve(~wrong, confidence)
    passed = fpr[np.argmax(tpr >= 0.95)]
    return [float(auc(fpr, tpr)), *(float(auc(r, p)) for p, r, _ in curves), float(passed)]


def published_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature with the lowest ECE on the grid."""
    keep = labels != 255
    logits, labels = logits[keep].astype(np.float64), labels[keep]
    right = logits.argmax(1) == labels
    best = (np.inf, 1.0)
    for temperature in np.arange(0.5, 10, 0.01):
        scaled = np.exp((logits - logits.max(1, keepdims=True)) / temperature)
        confidence = (scaled / scaled.sum(1, keepdims=True)).max(1)
        ece = 0.0
        for lower in np.arange(15) / 15:
            inside = (confidence > lower) & (confidence <= lower + 1 / 15)
            if inside.any():
                ece += abs(confidence[inside].mean() - right[inside].mean()) * inside.mean()
        best = min(best, (ece, float(temperature)))
    return best[1]


if __name__ == "__main__":
    cli.run(main, EvaluationArithmeticSettings, __doc__)
