"""Time OOD detection of one image: the published procedure beside this library's, in one run.

Reads:  nothing, draws logits and an object; with --segmenter the config of one of the zoo's models, random weights
Writes: nothing; prints Markdown tables of milliseconds, ratios and the largest difference of a figure

    python benchmarks/ood_arithmetic.py --height 1024 --width 2048
    python benchmarks/ood_arithmetic.py --device cuda --segmenter DLV3+ResNet101 --precision bf16-true

Published: on all pixels scikit-learn's roc_curve and two precision_recall_curve for each of three scores; five forward
passes an image in float32, a softmax of each on the CPU. One CPU thread unless --threads says otherwise; with --device
cuda this library's counting, and with --segmenter both ways' forward passes, run there.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from genval.runtime.cli import parse, positive_int, run, script_parser

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def parse_args() -> argparse.Namespace:
    parser = script_parser(__doc__, "benchmarks/ood_arithmetic")
    parser.add_argument("--height", type=positive_int, default=1024, help="of the image")
    parser.add_argument("--width", type=positive_int, default=2048, help="of the image")
    parser.add_argument("--threads", type=positive_int, default=1, help="of the CPU")
    parser.add_argument("--repeats", type=positive_int, default=5, help="the least time of so many is shown")
    parser.add_argument("--device", default="cpu", help="cpu or cuda: where this library's passes run")
    parser.add_argument("--segmenter", help="a name of path_dicts.ZOO: time both ways from the image on")
    parser.add_argument("--precision", default="bf16-true", help="of this library's forward pass with --segmenter")
    parser.add_argument("--channels_last", action="store_true", help="likewise")
    return parse(parser)


def main(args: argparse.Namespace) -> None:
    import torch

    from genval.metrics.ood_scores import PUBLISHED, count_scores, exact_metrics, level_metrics, measure_ood
    from genval.runtime.tables import markdown_table

    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    logits, kinds = draw(args.height, args.width)
    there = logits.to(device), kinds.to(device)
    scores = measure_ood(logits, kinds)[1][: len(PUBLISHED)]
    scores_there, flat_there = scores.to(device), kinds.flatten().to(device)
    values, is_object = scores.numpy(), kinds.numpy().ravel() == 1

    def of_levels() -> list[list[float]]:
        return [list(level_metrics(counts).values()) for counts in count_scores(scores_there, flat_there, PUBLISHED)]

    def of_pixels() -> list[list[float]]:
        parts = [(np.sort(score[~is_object]), np.sort(score[is_object])) for score in values]
        return [list(exact_metrics(*part).values()) for part in parts]

    def from_logits() -> list[list[float]]:
        if device.type == "cpu":
            counts = measure_ood(*there)[0]
        else:
            from genval.kernels.ood_scores import launch

            read = launch(*(tensor[None] for tensor in there))[0]
            torch.cuda.synchronize()
            counts = next(read())
        return [list(level_metrics(levels).values()) for levels in counts.levels[: len(PUBLISHED)]]

    rows = []

    def compare(name: str, theirs: tuple[float, Any], ours: tuple[float, Any]) -> None:
        difference = float(np.max(np.abs(np.subtract(theirs[1], ours[1]))))
        rows.append([name, theirs[0], ours[0], theirs[0] / ours[0], f"{difference:.1e}"])

    cpu = torch.device("cpu")
    figures = least_time(lambda: [published_figures(score, is_object) for score in values], 1, cpu)
    softmaxes = least_time(lambda: published_scores(logits), 1, cpu)
    compare("figures of 3 scores, levels", figures, least_time(of_levels, args.repeats, device))
    compare("figures of 3 scores, exact", figures, least_time(of_pixels, args.repeats, cpu))
    together = figures[0] + softmaxes[0], figures[1]
    compare("the same from logits, levels (*)", together, least_time(from_logits, args.repeats, device))
    print(markdown_table(["step, ms", "published", "here", "ratio", "largest difference"], rows, digits=2))
    print("(*) published: the softmax of five inferences; here also the energy score")
    print(f"{args.width}x{args.height}, {args.threads} thread(s), {args.device}, least of {args.repeats}")
    if args.segmenter:
        print(
            markdown_table(["image to figures, s", "published", "here", "ratio"], [end_to_end(args, device)], digits=4)
        )


def end_to_end(args: argparse.Namespace, device: torch.device) -> list[Any]:
    """Seconds from an image in memory to its figures: five float32 passes and scikit-learn, and one pass and levels."""
    import torch

    import path_dicts
    from genval.evaluation.inference import infer, launch_ood_batch
    from genval.metrics.ood_scores import PUBLISHED, level_metrics
    from genval.segmenters.openmmlab import OpenMMLabSegmenter, build_network

    entry = path_dicts.ZOO[args.segmenter]
    slow, fast = (
        OpenMMLabSegmenter(args.segmenter, build_network(entry["config"], entry.get("overrides")).to(device), precision)
        for precision in ("32-true", args.precision)
    )
    image = np.random.default_rng(0).integers(0, 256, (1, args.height, args.width, 3), np.uint8)
    kinds = draw(args.height, args.width)[1]
    if args.channels_last:
        fast.use_channels_last()
    is_object, masks = kinds.numpy().ravel() == 1, kinds[None].numpy()

    def published() -> list[list[float]]:
        with torch.inference_mode():
            for _ in range(5):
                logits = infer(slow, image, device)[0].cpu()
                scores = published_scores(logits, 1)
        return [published_figures(score, is_object) for score in scores]

    def ours() -> list[list[float]]:
        ((counts, _),) = launch_ood_batch(fast, image, masks, ["image"], device)()
        return [list(level_metrics(levels).values()) for levels in counts.levels[: len(PUBLISHED)]]

    theirs, here = (least_time(way, number, device)[0] / 1000 for way, number in ((published, 2), (ours, args.repeats)))
    return [f"{args.segmenter}, {args.precision}, {args.width}x{args.height}", theirs, here, theirs / here]


def draw(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Logits (19, H, W) of a network that is less sure of an object of a 16th of the image, and its mask (H, W)."""
    import torch

    generator = torch.Generator().manual_seed(0)
    kinds = torch.zeros(height, width, dtype=torch.uint8)
    kinds[height // 2 : height // 2 + height // 4, width // 4 : width // 2] = 1
    patches = torch.randint(0, 19, (-(-height // 32), -(-width // 32)), generator=generator)
    classes = patches.repeat_interleave(32, 0).repeat_interleave(32, 1)[:height, :width].contiguous()
    logits = torch.randn(19, height, width, generator=generator)
    strength = torch.randn(height, width, generator=generator).mul(1.2).add(1.6 - 0.8 * kinds).exp()
    logits.scatter_add_(0, classes[None], strength[None])
    return logits, kinds


def published_scores(logits: Tensor, inferences: int = 5) -> list[np.ndarray]:
    """Entropy, negated confidence and negated largest logit, float32 (N,); each inference's softmax anew."""
    for _ in range(inferences):
        probabilities = logits.softmax(0).numpy()
        entropy = -(probabilities * np.log(probabilities + 1e-15)).sum(0)
    return [entropy.ravel(), -probabilities.max(0).ravel(), -logits.numpy().max(0).ravel()]


def published_figures(score: np.ndarray, is_object: np.ndarray) -> list[float]:
    """AUROC, FPR at 95 % TPR, AUPR of the object and of the background."""
    from sklearn.metrics import auc, precision_recall_curve, roc_curve

    fpr, tpr, _ = roc_curve(is_object, score)
    areas = [precision_recall_curve(is_object, score), precision_recall_curve(~is_object, -score)]
    of_object, of_background = (float(auc(recall, precision)) for precision, recall, _ in areas)
    return [float(auc(fpr, tpr)), float(fpr[np.argmax(tpr >= 0.95)]), of_object, of_background]


def least_time(function: Callable[[], Any], repeats: int, device: torch.device) -> tuple[float, Any]:
    """Milliseconds of the fastest call, after one to warm up if there are several, and what it returned.

    On the CPU with one thread it is that thread's own time, so that other programs do not count.
    """
    import torch

    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    result, seconds = None, []
    for _ in range(repeats + (repeats > 1)):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = clock()
        result = function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(clock() - start)
    return 1000 * min(seconds), result


if __name__ == "__main__":
    run(main, parse_args)
