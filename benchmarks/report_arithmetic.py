"""Time of the report's bootstrap at the paper's size: 1,000 resamples of 40 models on 512 images of 19 classes.

Reads:  nothing: the counts are made up
Writes: nothing: a table on standard output

    python benchmarks/report_arithmetic.py

The plain implementation, a loop over resamples, models and coefficients, is timed on a few resamples and extrapolated.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from genval.runtime import cli
from genval.runtime.flags import flag
from genval.runtime.settings import positive_int


@dataclass(frozen=True, kw_only=True)
class ReportArithmeticSettings:
    """Settings of benchmarks/report_arithmetic.py."""

    SCRIPT: ClassVar[str] = "benchmarks/report_arithmetic"

    segmenters: int = flag(40, "number of models", type=positive_int)
    images: int = flag(512, "images per set", type=positive_int)
    draws: int = flag(1000, "number of resamples", type=positive_int)
    plain_draws: int = flag(10, "resamples of the plain implementation", type=positive_int)
    preset: str | None = None


def main(settings: ReportArithmeticSettings) -> None:
    import numpy as np
    import scipy.stats

    from genval.report.comparison import compare
    from genval.report.resampling import draw_images, draw_models
    from genval.report.sample_size import sample_size_curve
    from genval.report.scores import mean_iou, miou_scores
    from genval.runtime.tables import markdown_table

    sides = {
        name: random_counts(name, settings.images, settings.segmenters, seed)
        for seed, name in enumerate(("true", "synthetic", "clear"))
    }
    classes, names = list(range(19)), [str(index) for index in range(settings.segmenters)]

    def resampled() -> dict[str, Any]:
        weights = draw_images({side: evidence.sources for side, evidence in sides.items()}, settings.draws, 0)
        return {side: miou_scores(evidence, weights[side], classes) for side, evidence in sides.items()}

    def plain() -> None:
        chosen = draw_models(settings.segmenters, settings.plain_draws, 0)
        weights = np.random.default_rng(0).integers(0, 3, (settings.plain_draws, settings.images))
        for sample, models in enumerate(chosen):
            scores = [
                [
                    mean_iou((weights[sample][:, None, None] * evidence.counts[:, model]).sum(0), classes)
                    for model in models
                ]
                for evidence in sides.values()
            ]
            for predictor in scores[1:]:
                for coefficient in (scipy.stats.pearsonr, scipy.stats.spearmanr, scipy.stats.kendalltau):
                    coefficient(predictor, scores[0])

    scores, seconds = timed(resampled)
    rows = [["mIoU of all resamples, three sets", seconds]]

    def compared() -> Any:
        return compare(names, scores, metric="miou", higher_is_better=True, sets={}, draws=settings.draws, seed=0)

    rows.append(["correlations, differences, ranking", timed(compared)[1]])
    curve = timed(
        lambda: sample_size_curve(
            sides["synthetic"].counts,
            lambda counts: mean_iou(counts, classes),
            scores["true"].value,
            draws=settings.draws,
            seed=0,
        )
    )
    rows.append(["sample-size curve", curve[1]])
    rows.append(["the first two, plain implementation", timed(plain)[1] * settings.draws / settings.plain_draws])
    print(markdown_table(["step", "seconds"], rows, digits=2))


def random_counts(name: str, images: int, models: int, seed: int) -> Any:
    """Return counts of a set on which models are right on 30 to 90 % of the pixels of each class."""
    import numpy as np

    from genval.report.evidence import Evidence, Place

    generator = np.random.default_rng(seed)
    right = np.linspace(0.3, 0.9, models)[:, None] + generator.normal(0, 0.1, (images, models, 19))
    labelled = np.broadcast_to(generator.integers(1000, 100000, (images, 1, 19)), right.shape)
    counts = np.stack([np.floor(right.clip(0.01, 0.99) * labelled), labelled, labelled], 2)
    ids = tuple(f"{name}{index}" for index in range(images))
    return Evidence(Place(name, name), ids, ids, counts, None)


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """Return a function's result and its seconds."""
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


if __name__ == "__main__":
    cli.run(main, ReportArithmeticSettings, __doc__)
