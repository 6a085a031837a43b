"""How often the report's intervals cover the truth, and how often its verdict is wrong, by simulation.

Reads:  nothing: scores are drawn from populations of known correlation
Writes: {output}, Markdown tables

    python benchmarks/interval_coverage.py --reduced        # a part of the cells: minutes on two cores
    python benchmarks/interval_coverage.py                  # all cells: minutes on 16 cores

The true score of a model on each side is drawn from a normal population with standard deviation 1; the truth is the
correlation of these scores. The noise of one image has two parts of equal size: one of each model, and one that all
models share, which cancels. The images of the predictors are of the same streets, so that half of the variance of each
model's noise is common to them. Scores are means over images, and intervals are those of `report/correlate.py`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from genval.runtime import cli
from genval.runtime.flags import flag
from genval.runtime.settings import comma_list, positive_int

if TYPE_CHECKING:
    import numpy as np

    from genval.metrics.noisy_correlation import Scores

PARTS = ("coverage", "level", "verdict", "power", "few_labels")
TRUTHS = (0.0, 0.5, 0.85, 0.95)


@dataclass(frozen=True, kw_only=True)
class IntervalCoverageSettings:
    """Settings of benchmarks/interval_coverage.py."""

    SCRIPT: ClassVar[str] = "benchmarks/interval_coverage"

    parts: tuple[str, ...] = flag(PARTS, f"tables: {', '.join(PARTS)}", type=comma_list)
    reduced: bool = flag(False, "a part of the cells")
    population: Literal["normal", "t5", "two groups"] = flag("normal", "distribution of the true scores")
    repetitions: int = flag(1000, "simulated studies per cell", type=positive_int)
    bootstrap_draws: int = flag(400, "bootstrap draws", type=positive_int)
    jobs: int = flag(os.cpu_count() or 1, "processes", type=positive_int)
    seed: int = flag(0, "seed of the simulation")
    output: str = flag("results/interval_coverage.md", "file of the tables")
    preset: str | None = None


@dataclass(frozen=True)
class Cell:
    """One setting of the simulation."""

    models: int
    images: int
    noise: tuple[float, ...]  # of one image on each side, as a multiple of the models' spread; the reference first
    r: tuple[float, ...]  # of each predictor with the reference
    between: float = 0.0  # of the predictors with each other

    def covariance(self) -> list[list[float]]:
        """Return the covariance matrix of the true scores, the reference first."""
        if len(self.r) == 1:
            return [[1.0, self.r[0]], [self.r[0], 1.0]]
        a, b = self.r
        return [[1.0, a, b], [a, 1.0, self.between], [b, self.between, 1.0]]


def main(settings: IntervalCoverageSettings) -> None:
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # each process has one core
        os.environ.setdefault(name, "1")
    from genval.runtime.errors import GenValError
    from genval.runtime.files import write_bytes
    from genval.runtime.paths import resolve

    if unknown := set(settings.parts) - set(PARTS):
        raise GenValError(f"--parts: expected some of {', '.join(PARTS)}, found {', '.join(sorted(unknown))}.")
    start = time.perf_counter()
    texts = [f"Population: {settings.population}. {settings.repetitions:,} simulated studies per cell."]
    with ProcessPoolExecutor(settings.jobs) as pool:
        for part in settings.parts:
            began = time.perf_counter()
            texts += [_TABLES[part](settings, pool), f"Time: {time.perf_counter() - began:.0f} s."]
            path = resolve(settings.output)
            write_bytes(path, ("\n\n".join(texts) + "\n").encode())
            print("\n\n".join(texts[-2:]), flush=True)
    print(f"wrote {path} in {time.perf_counter() - start:.0f} s with {settings.jobs} processes")


def simulate(
    cell: Cell, population: str, generator: np.random.Generator, weights: Sequence[np.ndarray]
) -> tuple[list[Scores], np.ndarray]:
    """Draw one study: the scores of every side and those on resampled images, and the true ones, (sides, models).

    Args:
        cell: the setting.
        population: of the true scores: normal, t5 (Student's distribution) or two groups.
        generator: of the draws.
        weights: how often each image is drawn, float64 (D, N), of the reference and of the predictors.
    """
    import numpy as np

    from genval.metrics.noisy_correlation import Scores

    root = np.linalg.cholesky(np.array(cell.covariance()))
    latent = generator.normal(size=(len(root), cell.models))
    if population == "t5":
        latent *= np.sqrt(3 / generator.chisquare(5, cell.models))
    if population == "two groups":  # each side's variance is 1: 0.36 within and 0.64 between the groups
        latent[0] = 0.6 * latent[0] + 0.8 * np.where(generator.random(cell.models) < 0.5, -1, 1)
    true = root @ latent
    streets = generator.normal(size=(cell.images, cell.models))
    sides = []
    for side, (scores, noise) in enumerate(zip(true, cell.noise, strict=True)):
        own = generator.normal(size=(cell.images, cell.models))
        if side > 0 and len(true) > 2:
            own = (own + streets) / np.sqrt(2)
        by_image = scores + noise * (own + generator.normal(size=(cell.images, 1)))
        drawn = weights[min(side, 1)] @ by_image / cell.images if noise else None
        sides.append(Scores(by_image.mean(0), drawn, cell.images))
    return sides, true


def run_cell(cell: Cell, population: str, repetitions: int, draws: int, seed: Sequence[int]) -> list[dict[str, Any]]:
    """Simulate studies of a cell; returns the estimates of each."""
    import numpy as np

    from genval.report.comparison import beats, pearson_difference, pearson_estimate
    from genval.report.verdict import trust_in

    generator = np.random.default_rng(list(seed))
    even = np.full(cell.images, 1 / cell.images)
    weights = [generator.multinomial(cell.images, even, draws).astype(np.float64) for _ in range(2)]
    studies = []
    for _ in range(repetitions):
        (reference, *predictors), _ = simulate(cell, population, generator, weights)
        own = pearson_estimate(predictors[0], reference)
        study = {"refused": own.refused is not None, "low": own.low, "high": own.high, "observed": own.value}
        if len(predictors) > 1:
            study["beats"] = beats(pearson_difference(predictors[0], predictors[1], reference)[0])
            study["trust"] = trust_in(own, study["beats"])
        studies.append(study)
    return studies


def run_few_labels(
    cell: Cell, population: str, repetitions: int, draws: int, seed: Sequence[int]
) -> list[dict[str, Any]]:
    """Simulate studies with few labelled images; returns the coverage, width and errors over the models of each."""
    import numpy as np

    from genval.report.few_labels import combine

    generator = np.random.default_rng(list(seed))
    even = np.full(cell.images, 1 / cell.images)
    studies = []
    for _ in range(repetitions):
        weights = [generator.multinomial(cell.images, even, draws).astype(np.float64)] * 2
        (labelled, generated), (true, _) = simulate(cell, population, generator, weights)
        found = combine(labelled, generated, cell.images)
        studies.append(
            {
                "covered": np.mean((found.low <= true) & (true <= found.high)),
                "width": np.median(found.high - found.low),
                "error": np.mean((found.value - true) ** 2),
                "alone": np.mean((labelled.value - true) ** 2),
            }
        )
    return studies


def run_cells(
    cells: Sequence[Cell],
    settings: IntervalCoverageSettings,
    pool: ProcessPoolExecutor,
    run: Callable[..., list[dict[str, Any]]] = run_cell,
) -> dict[Cell, list[dict[str, Any]]]:
    """Simulate all cells, in pieces of at most 100 studies."""
    futures = []
    for index, cell in enumerate(cells):
        for piece, first in enumerate(range(0, settings.repetitions, 100)):
            number = min(100, settings.repetitions - first)
            seed = (settings.seed, index, piece)
            futures.append((cell, pool.submit(run, cell, settings.population, number, settings.bootstrap_draws, seed)))
    studies: dict[Cell, list[dict[str, Any]]] = {cell: [] for cell in cells}
    for cell, future in futures:
        studies[cell] += future.result()
    return studies


def coverage_table(settings: IntervalCoverageSettings, pool: ProcessPoolExecutor) -> str:
    """Coverage and median width by models, images, noise and true r, and how often "yes" is wrong."""
    import numpy as np

    from genval.runtime.tables import markdown_table

    places = [
        (models, images, noise)
        for models in (8, 12, 40)
        for images in ((16, 64) if settings.reduced else (8, 16, 64, 512))
        for noise in ((0.0, 1.0, 1.6) if settings.reduced else (0.0, 0.5, 1.0, 1.6))
    ]
    cells = {(*place, r): Cell(place[0], place[1], (place[2], place[2]), (r,)) for place in places for r in TRUTHS}
    cells[4, 64, 1.0, 0.85] = Cell(4, 64, (1.0, 1.0), (0.85,))
    studies = run_cells(list(cells.values()), settings, pool)
    rows = []
    inside: dict[bool, list[float]] = {True: [], False: []}
    for models, images, noise in places:
        row: list[Any] = [models, images, noise, f"{noise / images**0.5:.2f}"]
        refused = []
        for r in TRUTHS:
            found = [study for study in studies[cells[models, images, noise, r]] if not study["refused"]]
            refused.append(1 - len(found) / settings.repetitions)
            low, high = (np.array([study[end] for study in found]) for end in ("low", "high"))
            covered = np.mean((low <= r) & (r <= high))
            inside[images >= 16].append(float(covered))
            row.append(f"{covered:.3f} ({np.median(high - low):.2f})")
            if r == 0.5:
                wrong_yes = np.mean(low > 0.5)
            if r == 0.95:
                above, below = np.mean(low > r), np.mean(high < r)
        rows.append([*row, f"{wrong_yes:.3f}", f"{above:.3f}, {below:.3f}", f"{max(refused):.3f}"])
    header = ["segmenters", "images", "noise of one image", "of the set", *(f"r = {r:g}" for r in TRUTHS)]
    header += ['"yes" at r = 0.5', "r = 0.95 below, above the interval", "refused"]
    four = np.mean([study["refused"] for study in studies[cells[4, 64, 1.0, 0.85]]])
    said = [f"From 16 images on, coverage is {min(inside[True]):.3f} to {max(inside[True]):.3f}."]
    if inside[False]:
        said.append(f"With 8 images it is {min(inside[False]):.3f} to {max(inside[False]):.3f}.")
    said.append(f"With 4 segmenters the share of refusals is {four:.3f}.")
    return (
        "## Coverage of the 95 % interval of r (median width)\n\n"
        + markdown_table(header, rows, digits=1)
        + f"\n\n{' '.join(said)}"
    )


def level_table(settings: IntervalCoverageSettings, pool: ProcessPoolExecutor) -> str:
    """How often a predictor is said to beat another one that is as good: nominally 2.5 % on either side."""
    from genval.runtime.tables import markdown_table

    cells = [
        Cell(models, images, (0.08 * root, 0.1 * root, clear * root), (r, r), r * r + (1 - r * r) * share)
        for models in (8, 12, 40)
        for images in ((64,) if settings.reduced else (16, 64, 512))
        for root in (images**0.5,)
        for r in ((0.8, 0.9) if settings.reduced else (0.5, 0.8, 0.9, 0.95))
        for share in (0.0, 0.6)
        for clear in (0.1, 0.325)
    ]
    studies = run_cells(cells, settings, pool)
    rows = [
        [cell.models, cell.images, f"{cell.r[0]:g}", f"{cell.between:.2f}", f"{cell.noise[2] / cell.images**0.5:.3f}"]
        + [f"{share(studies[cell], 'beats', answer):.3f}" for answer in ("yes", "no")]
        for cell in cells
    ]
    header = ["segmenters", "images", "r of both", "r between them", "noise of the second", '"better"', '"worse"']
    worst = max(float(row[column]) for row in rows for column in (5, 6))
    return (
        "## Two predictors of equal r: how often one is said to be better\n\n"
        + markdown_table(header, rows)
        + f"\n\nThe largest share is {worst:.3f}; nominal is 0.025."
    )


def verdict_table(settings: IntervalCoverageSettings, pool: ProcessPoolExecutor) -> str:
    """The shares of the verdict's answers where generated images are not, or not better than, what they should be."""
    from genval.runtime.tables import markdown_table

    cells = [
        Cell(models, 64, (noise, noise, noise), (r, clear), 0.3)
        for noise in ((0.5,) if settings.reduced else (0.0, 0.5))
        for models in (4, 5, 6, 8, 12, 40)
        for r, clear in ((0.0, 0.0), (0.5, 0.5), (0.5, 0.0))
    ]
    studies = run_cells(cells, settings, pool)
    answers = ("better", "yes", "worse", "weak", "no", "few")
    rows = [
        [cell.models, cell.noise[0], *(f"{r:g}" for r in cell.r)]
        + [f"{share(studies[cell], 'trust', answer):.3f}" for answer in answers]
        + [f"{share(studies[cell], 'beats', 'yes'):.3f}"]
        for cell in cells
    ]
    header = ["segmenters", "noise of one image", "r", "r of clear", *answers, "beats clear"]
    return "## Answers of the verdict\n\n" + markdown_table(header, rows)


def power_table(settings: IntervalCoverageSettings, pool: ProcessPoolExecutor) -> str:
    """How often a better predictor is found to be better, and a high r to be above 0.5."""
    from genval.runtime.tables import markdown_table

    pairs = ((0.7, 0.0), (0.85, 0.0), (0.85, 0.5), (0.95, 0.0), (0.95, 0.5), (0.95, 0.8))
    cells = [
        Cell(models, images, (1.0, 1.0, 1.0), pair, pair[0] * pair[1])
        for models in (8, 12, 20, 40)
        for images in ((64,) if settings.reduced else (16, 64, 512))
        for pair in pairs
    ]
    studies = run_cells(cells, settings, pool)
    rows = [
        [
            cell.models,
            cell.images,
            *(f"{r:g}" for r in cell.r),
            f"{share(studies[cell], 'beats', 'yes'):.2f}",
            f"{sum(study['low'] > 0.5 for study in studies[cell]) / len(studies[cell]):.2f}",
        ]
        for cell in cells
    ]
    header = ["segmenters", "images", "r", "r of clear", 'found to be "better"', "interval of r above 0.5"]
    return "## Power\n\n" + markdown_table(header, rows)


def few_labels_table(settings: IntervalCoverageSettings, pool: ProcessPoolExecutor) -> str:
    """Coverage of the intervals of scores that combine few labelled images with generated ones."""
    import numpy as np

    from genval.runtime.tables import markdown_table

    cells = [
        Cell(models, images, (noise, 0.0), (r,))
        for models in ((12,) if settings.reduced else (8, 12, 40))
        for images in (4, 8, 16, 32)
        for noise in ((1.6,) if settings.reduced else (0.5, 1.6))
        for r in (0.0, 0.85, 0.95)
    ]
    studies = run_cells(cells, settings, pool, run_few_labels)
    rows = []
    for cell, found in studies.items():
        covered, width, error, alone = (
            np.array([study[key] for study in found]) for key in ("covered", "width", "error", "alone")
        )
        row = [cell.models, cell.images, cell.noise[0], f"{cell.r[0]:g}", f"{covered.mean():.3f}"]
        rows.append([*row, f"{np.median(width):.2f}", f"{np.sqrt(error.mean() / alone.mean()):.2f}"])
    header = ["segmenters", "labelled images", "noise of one image", "r of generated", "coverage", "median width"]
    header += ["error, share of that of the labelled images alone"]
    text = (
        "Widths are in units of the models' spread. Errors are root mean squared. The noise that all models share is "
        "as large as that of each model, and no other set reduces it."
    )
    title = "## Few labels: coverage of the 95 % interval of a model's score"
    return f"{title}\n\n{markdown_table(header, rows)}\n\n{text}"


def share(studies: Sequence[dict[str, Any]], key: str, value: str) -> float:
    """Return the share of the studies with a value."""
    return sum(study[key] == value for study in studies) / len(studies)


_TABLES: dict[str, Callable[[IntervalCoverageSettings, ProcessPoolExecutor], str]] = {
    "coverage": coverage_table,
    "level": level_table,
    "verdict": verdict_table,
    "power": power_table,
    "few_labels": few_labels_table,
}


if __name__ == "__main__":
    cli.run(main, IntervalCoverageSettings, __doc__)
