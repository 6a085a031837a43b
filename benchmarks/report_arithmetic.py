"""How long the report's bootstrap takes at the paper's size: 1,000 draws of 40 models on 512 images of 19 classes.

Reads:  nothing: the counts are made up
Writes: nothing: a table on standard output

    python benchmarks/report_arithmetic.py

The plain way, a loop over draws, models and coefficients, is timed on a few draws and multiplied.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

from genval.runtime import cli


def parse_args() -> argparse.Namespace:
    parser = cli.script_parser(__doc__, "benchmarks/report_arithmetic")
    parser.add_argument("--models", type=cli.positive_int, default=40)
    parser.add_argument("--images", type=cli.positive_int, default=512)
    parser.add_argument("--draws", type=cli.positive_int, default=1000)
    parser.add_argument("--plain_draws", type=cli.positive_int, default=10, help="draws the plain way is timed on")
    return cli.parse(parser)


def main(args: argparse.Namespace) -> None:
    import numpy as np
    import scipy.stats

    from genval.report.comparison import compare
    from genval.report.figures import mean_iou, miou_figure
    from genval.report.resampling import draw_images, draw_models
    from genval.report.sample_size import sample_size_curve
    from genval.runtime.tables import markdown_table

    sides = {
        name: made_up(name, args.images, args.models, seed) for seed, name in enumerate(("true", "synthetic", "clear"))
    }
    classes, names = list(range(19)), [str(index) for index in range(args.models)]

    def drawn() -> dict[str, Any]:
        weights = draw_images({side: evidence.sources for side, evidence in sides.items()}, args.draws, 0)
        return {side: miou_figure(evidence, weights[side], classes) for side, evidence in sides.items()}

    def plain() -> None:
        chosen = draw_models(args.models, args.plain_draws, 0)
        weights = np.random.default_rng(0).integers(0, 3, (args.plain_draws, args.images))
        for draw, of_draw in enumerate(chosen):
            figures = [
                [
                    mean_iou((weights[draw][:, None, None] * evidence.counts[:, model]).sum(0), classes)
                    for model in of_draw
                ]
                for evidence in sides.values()
            ]
            for predictor in figures[1:]:
                for coefficient in (scipy.stats.pearsonr, scipy.stats.spearmanr, scipy.stats.kendalltau):
                    coefficient(predictor, figures[0])

    figures, seconds = timed(drawn)
    rows = [["mIoU of all draws, three sets", seconds]]
    rows.append(["correlations, differences, ranking", timed(lambda: compare(names, figures, True, args.draws, 0))[1]])
    curve = timed(
        lambda: sample_size_curve(
            sides["synthetic"].counts, lambda counts: mean_iou(counts, classes), figures["true"].value, args.draws, 0
        )
    )
    rows.append(["sample-size curve", curve[1]])
    rows.append(["the first two, the plain way", timed(plain)[1] * args.draws / args.plain_draws])
    print(markdown_table(["step", "seconds"], rows, digits=2))


def made_up(name: str, images: int, models: int, seed: int) -> Any:
    """Counts of a set on which models are right on 30 to 90 % of the pixels of each class."""
    import numpy as np

    from genval.report.evidence import Evidence, Place

    generator = np.random.default_rng(seed)
    right = np.linspace(0.3, 0.9, models)[:, None] + generator.normal(0, 0.1, (images, models, 19))
    labelled = np.broadcast_to(generator.integers(1000, 100000, (images, 1, 19)), right.shape)
    counts = np.stack([np.floor(right.clip(0.01, 0.99) * labelled), labelled, labelled], 2)
    ids = tuple(f"{name}{index}" for index in range(images))
    return Evidence(Place(name, name), ids, ids, counts, None)


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What it returns, and how many seconds it took."""
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


if __name__ == "__main__":
    cli.run(main, parse_args)
