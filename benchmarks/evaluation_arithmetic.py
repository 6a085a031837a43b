"""Time what follows the forward pass, for one image: the published procedure beside this library's, in one run.

Reads:  nothing; draws labels and logits of a street scene's proportions
Writes: nothing; prints a Markdown table of milliseconds, ratios and the largest difference of a figure

    python benchmarks/evaluation_arithmetic.py --height 1024 --width 2048

Published: per-image mIoU by one bincount and accuracy by one comparison a class; ECE by 15 boolean masks over float64
confidences, the same with boundaries interpolated from the sorted confidences, KS by sorting; misclassification by
scikit-learn's roc_curve and two precision_recall_curve; temperature by 950 times softmax and a 15-mask ECE in float64.
One CPU thread unless --threads says otherwise; with --device cuda this library's passes run there.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from genval.runtime.cli import parse, positive_int, run, script_parser


def parse_args() -> argparse.Namespace:
    parser = script_parser(__doc__, "benchmarks/evaluation_arithmetic")
    parser.add_argument("--height", type=positive_int, default=1024, help="of the image")
    parser.add_argument("--width", type=positive_int, default=2048, help="of the image")
    parser.add_argument("--pixels", type=positive_int, default=20000, help="pixels of the temperature search")
    parser.add_argument("--threads", type=positive_int, default=1, help="of the CPU")
    parser.add_argument("--repeats", type=positive_int, default=3, help="the least time of so many is shown")
    parser.add_argument("--device", default="cpu", help="cpu or cuda: where this library's passes run")
    return parse(parser)


def main(args: argparse.Namespace) -> None:
    import torch

    from genval.metrics import ranking
    from genval.metrics.confusion import confusion_matrix
    from genval.metrics.reliability import reliability_metrics
    from genval.metrics.segmentation import mean_iou, pixel_accuracy
    from genval.metrics.statistics import PixelStatistics, measure
    from genval.metrics.temperature import Pixels, search_ece
    from genval.runtime.tables import markdown_table

    torch.set_num_threads(args.threads)
    logits, labels = draw(args.height, args.width)
    device = torch.device(args.device)
    there = logits.to(device), labels.to(device)
    counted = (labels != 255).numpy().ravel()
    predictions = logits.argmax(0).to(torch.uint8)
    confidence = logits.softmax(0).amax(0).numpy().ravel()[counted]
    right = (predictions == labels).numpy().ravel()[counted]
    wrong = ~right

    def ours(function: Callable[[], Any]) -> tuple[float, Any]:
        return least_time(function, args.repeats, device)

    def published(function: Callable[[], Any]) -> tuple[float, Any]:
        return least_time(function, 1, torch.device("cpu"))

    def statistics() -> PixelStatistics:
        if device.type == "cpu":
            return measure(*there)[1]
        from genval.kernels.statistics import launch

        read = launch(*(tensor[None] for tensor in there))
        torch.cuda.synchronize()
        return next(read())[1]

    def of_matrix() -> tuple[float, float]:
        matrix = confusion_matrix(*(tensor.to(device) for tensor in (labels, predictions)))
        return mean_iou(matrix), pixel_accuracy(matrix) / 100

    rows = []

    def compare(name: str, theirs: tuple[float, Any], mine: tuple[float, Any]) -> None:
        difference = float(np.max(np.abs(np.subtract(theirs[1], mine[1]))))
        rows.append([name, theirs[0], mine[0], theirs[0] / mine[0], f"{difference:.1e}"])

    scores = published(lambda: published_scores(labels.numpy(), predictions.numpy()))
    compare("mIoU and accuracy", scores, ours(of_matrix))
    totals, hits = torch.from_numpy(1 / confidence).to(device), torch.from_numpy(right).to(device)
    calibration = published(lambda: published_calibration(confidence.astype(np.float64), right))
    compare("ECE, adaptive ECE, KS from confidences", calibration, ours(lambda: from_counts(totals, hits)[:3]))
    errors = published(lambda: published_ranking(confidence, wrong))
    compare("AUROC, 2 AUPR, FPR95 from confidences", errors, ours(lambda: from_counts(totals, hits)[3:]))
    softmax = published(lambda: (logits.softmax(0).max(0), 0)[1])
    everything = ours(lambda: reliability_metrics(statistics()))
    names = ("ece", "adaptive_ece", "ks", "auroc", "aupr_wrong", "aupr_right")
    figures = [everything[1][name] for name in names]
    together = scores[0] + calibration[0] + errors[0] + softmax[0], [*calibration[1], *errors[1][:3]]
    compare("all of it from logits, with softmax and argmax (*)", together, (everything[0], figures))

    chosen = np.random.default_rng(0).choice(labels.numel(), min(args.pixels, labels.numel()), replace=False)
    sample = logits.flatten(1)[:, chosen].T.numpy(), labels.flatten()[chosen].numpy()
    theirs = published(lambda: published_temperature(*sample))
    compare(f"temperature, {args.pixels} pixels", theirs, ours(lambda: search_ece(Pixels.from_logits(*sample)).temperature))
    oracle = ranking.prediction_rejection_ratio(*ranking.counts_by_score(right.astype(float), right))
    print(markdown_table(["step, ms", "published", "here", "ratio", "largest difference"], rows, digits=2))
    print("(*) here also class-wise ECE, NLL, Brier score, PRR and entropies, which the published time is without")
    print(f"{args.width}x{args.height}, {args.threads} thread(s), {args.device}; PRR of the oracle {float(oracle):.1f}")


def draw(height: int, width: int) -> Any:
    """Logits (19, H, W) of a network that is right on most pixels, and labels (H, W) in patches, a tenth void."""
    import torch

    generator = torch.Generator().manual_seed(0)
    patches = torch.randint(0, 19, (-(-height // 32), -(-width // 32)), generator=generator)
    labels = patches.repeat_interleave(32, 0).repeat_interleave(32, 1)[:height, :width].contiguous()
    logits = torch.randn(19, height, width, generator=generator)
    strength = torch.randn(height, width, generator=generator).mul(1.2).add(1.6).exp()
    logits.scatter_add_(0, labels[None], strength[None])
    labels[: height // 10] = 255
    return logits, labels.to(torch.uint8)


def least_time(function: Callable[[], Any], repeats: int, device: Any) -> tuple[float, Any]:
    """Milliseconds of the fastest call after one to warm up, and what it returned."""
    import torch

    result, seconds = None, []
    for _ in range(repeats + (repeats > 1)):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        result = function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 1000 * min(seconds), result


def from_counts(totals: Any, right: Any) -> list[float]:
    """ECE, adaptive ECE, KS, AUROC and AUPR of errors, AUPR of hits and FPR95 of errors, from counts."""
    import torch

    from genval.metrics import calibration, ranking
    from genval.metrics.statistics import count_confidences, level_confidence

    levels, bins, sums = count_confidences(totals, right, torch.ones_like(right))
    wrong, hits = levels
    pixels = levels.sum(0)[::-1]
    curve = calibration.gap_curve(hits[::-1], pixels, pixels * level_confidence()[::-1])
    errors = [
        calibration.binned_ece(bins[1], bins.sum(0), sums),
        calibration.adaptive_ece(curve, pixels),
        calibration.ks_error(curve),
    ]
    upside_down = wrong[::-1], hits[::-1]
    ranked = [ranking.auroc(*upside_down), ranking.aupr(*upside_down), ranking.aupr(hits, wrong)]
    return [float(value) for value in [*errors, *ranked, ranking.fpr_at_tpr(*upside_down, interpolate=True)]]


def published_scores(labels: np.ndarray, predictions: np.ndarray) -> tuple[float, float]:
    """mIoU over present classes and accuracy of one image."""
    keep = labels != 255
    matrix = np.bincount(19 * labels[keep].astype(int) + predictions[keep], minlength=361).reshape(19, 19)
    with np.errstate(invalid="ignore"):
        iou = np.diag(matrix) / (matrix.sum(0) + matrix.sum(1) - np.diag(matrix))
    hits = sum(((predictions == index) & (labels == index)).sum() for index in range(19))
    return float(np.nanmean(iou)), float(hits / keep.sum())


def published_calibration(confidence: np.ndarray, right: np.ndarray) -> list[float]:
    """ECE, adaptive ECE and KS error."""

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
    """AUROC, AUPR of errors, AUPR of hits and FPR at 95 % TPR, with errors as the positive class."""
    from sklearn.metrics import auc, precision_recall_curve, roc_curve

    fpr, tpr, _ = roc_curve(wrong, -confidence)
    of_errors, of_hits = precision_recall_curve(wrong, -confidence), precision_recall_curve(~wrong, confidence)
    passed = fpr[np.argmax(tpr >= 0.95)]
    return [float(auc(fpr, tpr)), *(float(auc(r, p)) for p, r, _ in (of_errors, of_hits)), float(passed)]


def published_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature of least ECE on the grid."""
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
    run(main, parse_args)
