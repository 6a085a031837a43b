"""Time OOD detection for one image: the published procedure and this library, in one run.

Reads:  nothing; generates logits and an object; with --segmenter the config of a model of the zoo, with random weights
Writes: nothing; prints Markdown tables of milliseconds, ratios and the largest difference of a metric

    python benchmarks/ood_arithmetic.py --height 1024 --width 2048
    python benchmarks/ood_arithmetic.py --accelerator gpu --segmenter DLV3+ResNet101 --precision bf16-true

Published: scikit-learn's roc_curve and two precision_recall_curve on all pixels, for each of three scores; five forward
passes per image in float32, each with a softmax on the CPU. All run on one CPU thread unless --threads says otherwise.
With --accelerator gpu the counting of this library, and with --segmenter all forward passes, run on the GPU.
"""

from __future__ import annotations

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


@dataclass(frozen=True, kw_only=True)
class OodArithmeticSettings:
    """The size of the image, and how to time."""

    SCRIPT: ClassVar[str] = "benchmarks/ood_arithmetic"

    height: int = flag(1024, "height of the image", type=positive_int)
    width: int = flag(2048, "width of the image", type=positive_int)
    threads: int = flag(1, "number of CPU threads", type=positive_int)
    repeats: int = flag(5, "the table shows the least time of this many repeats", type=positive_int)
    accelerator: Literal["cpu", "gpu", "cuda"] = flag("cpu", "where the passes of this library run")
    segmenter: str | None = flag(None, "a name of path_dicts.ZOO: also time both procedures from the image on")
    precision: str = flag("bf16-true", "precision of this library's forward pass with --segmenter")
    channels_last: bool = flag(False, "use channels-last and fused passes of this library")


def main(settings: OodArithmeticSettings) -> None:
    import sklearn.metrics  # noqa: F401 - so that no timing includes the import
    import torch

    from genval.metrics.ood_scores import PUBLISHED, count_scores, exact_metrics, level_metrics, measure_ood
    from genval.runtime.tables import markdown_table

    torch.set_num_threads(settings.threads)
    device, cpu = torch.device("cpu" if settings.accelerator == "cpu" else "cuda"), torch.device("cpu")
    logits, kinds = make_scene(settings.height, settings.width)
    scores = measure_ood(logits, kinds)[1][: len(PUBLISHED)]
    device_scores, device_kinds = scores.to(device), kinds.flatten().to(device)
    device_logits, device_masks = logits.to(device), kinds.to(device)
    values, is_object = scores.numpy(), kinds.numpy().ravel() == 1

    def from_scores() -> list[list[float]]:
        counts = count_scores(device_scores, device_kinds, PUBLISHED)
        return [list(level_metrics(levels).values()) for levels in counts]

    def from_pixels() -> list[list[float]]:
        parts = [(np.sort(score[~is_object]), np.sort(score[is_object])) for score in values]
        return [list(exact_metrics(*part).values()) for part in parts]

    metrics = least_time(lambda: [published_metrics(score, is_object) for score in values], 1, cpu)
    softmaxes = least_time(lambda: published_scores(logits), 1, cpu)
    here = least_time(lambda: metrics_from_logits(device_logits, device_masks), settings.repeats, device)
    rows = [
        comparison_row("metrics of 3 scores, levels", metrics, least_time(from_scores, settings.repeats, device)),
        comparison_row("metrics of 3 scores, exact", metrics, least_time(from_pixels, settings.repeats, cpu)),
        comparison_row("the same from logits, levels (*)", (metrics[0] + softmaxes[0], metrics[1]), here),
    ]
    print(markdown_table(HEADER, rows, digits=2))
    print("(*) published: with the softmax of five inferences; here: with the energy score")
    size = f"{settings.width}x{settings.height}, {settings.threads} thread(s), {settings.accelerator}"
    print(f"{size}, least of {settings.repeats}")
    if settings.segmenter:
        header = ["image to metrics, s", "published", "here", "ratio"]
        print(markdown_table(header, [compare_end_to_end(settings, settings.segmenter, device)], digits=4))


def metrics_from_logits(logits: Tensor, kinds: Tensor) -> list[list[float]]:
    """Compute the metrics of the published scores by the CPU's function, or on a GPU by the kernel."""
    import torch

    from genval.metrics.ood_scores import PUBLISHED, level_metrics, measure_ood, measure_ood_batch

    if logits.device.type == "cpu":
        counts = measure_ood(logits, kinds)[0]
    else:
        read = measure_ood_batch(logits[None], kinds[None])[0]
        torch.cuda.synchronize()
        counts = next(read())
    return [list(level_metrics(levels).values()) for levels in counts.levels[: len(PUBLISHED)]]


def compare_end_to_end(settings: OodArithmeticSettings, segmenter: str, device: torch.device) -> list[Any]:
    """Return the row of seconds from an image to its metrics: 5 float32 passes and scikit-learn; 1 pass and levels."""
    import torch

    import path_dicts
    from genval.evaluation.inference import launch_ood_batch
    from genval.metrics.ood_scores import PUBLISHED, level_metrics
    from genval.segmenters.openmmlab import OpenMMLabSegmenter, build_network
    from genval.segmenters.prediction import infer

    entry = path_dicts.ZOO[segmenter]
    slow, fast = (
        OpenMMLabSegmenter(segmenter, build_network(entry["config"], entry.get("overrides")).to(device), precision)
        for precision in ("32-true", settings.precision)
    )
    image = np.random.default_rng(0).integers(0, 256, (1, settings.height, settings.width, 3), np.uint8)
    kinds = make_scene(settings.height, settings.width)[1]
    if settings.channels_last:
        fast.use_channels_last()
        fast.fuse()
    is_object, masks = kinds.numpy().ravel() == 1, kinds[None].numpy()

    def published() -> list[list[float]]:
        with torch.inference_mode():
            for _ in range(5):
                logits = infer(slow, image, device)[0].cpu()
                scores = published_scores(logits, 1)
        return [published_metrics(score, is_object) for score in scores]

    def here() -> list[list[float]]:
        ((counts, _),) = launch_ood_batch(fast, image, masks, ["image"], device)()
        return [list(level_metrics(levels).values()) for levels in counts.levels[: len(PUBLISHED)]]

    before = least_time(published, 2, device)[0] / 1000
    after = least_time(here, settings.repeats, device)[0] / 1000
    return [f"{segmenter}, {settings.precision}, {settings.width}x{settings.height}", before, after, before / after]


def make_scene(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return logits (19, H, W) that are less confident on an object of a 16th of the image, and its mask (H, W)."""
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
    """Return entropy, negated confidence and negated largest logit, float32 (N,), after one softmax per inference."""
    for _ in range(inferences):
        probabilities = logits.softmax(0).numpy()
        entropy = -(probabilities * np.log(probabilities + 1e-15)).sum(0)
    return [entropy.ravel(), -probabilities.max(0).ravel(), -logits.numpy().max(0).ravel()]


def published_metrics(score: np.ndarray, is_object: np.ndarray) -> list[float]:
    """Return AUROC, FPR at 95 % TPR, AUPR of the object and AUPR of the background."""
    from sklearn.metrics import auc, precision_recall_curve, roc_curve

    fpr, tpr, _ = roc_curve(is_object, score)
    curves = [precision_recall_curve(is_object, score), precision_recall_curve(~is_object, -score)]
    aupr_object, aupr_background = (float(auc(recall, precision)) for precision, recall, _ in curves)
    return [float(auc(fpr, tpr)), float(fpr[np.argmax(tpr >= 0.95)]), aupr_object, aupr_background]


if __name__ == "__main__":
    cli.run(main, OodArithmeticSettings, __doc__)
