"""Whether a generator ranks segmenters on clear images as the original clear images of the same streets do.

A generator that fails this check is not faithful to its masks: what it says about fog or night means nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import path_dicts
from genval.datasets.layouts import generated_set
from genval.report.comparison import FEWEST_COMPARED, pearson_estimate
from genval.report.evidence import Evidence, Place, evaluation, read_evidence, require_same_models, with_street_sources
from genval.report.resampling import DRAWS, draw_images
from genval.report.schema import PearsonEstimate
from genval.report.scores import Scores, mean_iou, weigh
from genval.results.finding import NoResultsError
from genval.runtime.commands import Command, Missing

MIN_CLEAR_R = 0.8
"""The smallest corrected r with which a generator passes."""
CLEAR_DOMAIN = "clear"
REAL = Place("Cityscapes", "clean")
"""The originals."""


@dataclass(frozen=True)
class ClearCheck:
    """How mIoU on generated clear images agrees with mIoU on the original clear images of the same streets.

    Attributes:
        generator: its name.
        images: images of the generated set, of `frames` streets.
        pearson: r across the models, observed and corrected for the noise of few streets, with its interval.
        generated, real: mIoU in percent by model.
    """

    generator: str
    images: int
    frames: int
    pearson: PearsonEstimate
    generated: dict[str, float]
    real: dict[str, float]

    @property
    def r(self) -> float:
        """The corrected r; the observed one without an interval, and NaN where it is not defined."""
        return math.nan if self.pearson.shown is None else self.pearson.shown

    @property
    def passed(self) -> bool:
        """Whether r reaches `MIN_CLEAR_R`."""
        return self.r >= MIN_CLEAR_R

    def sentence(self) -> str:
        """Return the result in one line."""
        ends, refused = self.pearson.ends, self.pearson.refused
        shown = f"95 % interval {ends[0]:.2f} to {ends[1]:.2f}" if ends else f"no interval: {refused}"
        r = "not defined" if math.isnan(self.r) else f"{self.r:.2f}"
        failed = f"r is below {MIN_CLEAR_R}: results of this generator in other domains say nothing"
        return (
            f"{self.generator}: r of mIoU on generated and original clear images of the same {self.frames} streets is "
            f"{r} ({shown}; {len(self.real)} segmenters, {self.images} generated images); "
            f"{'passed' if self.passed else failed}"
        )


def clear_check(
    eval_dir: Path,
    models: Sequence[str],
    generator: str = path_dicts.DEFAULT_GENERATOR,
    *,
    generated_eval_dir: Path | None = None,
    seed: int = 0,
    preset: str | None = None,
    draws: int = DRAWS,
    real: Evidence | None = None,
) -> ClearCheck:
    """Compare the results on a generator's clear set with those on the originals, the frames of its masks.

    Each original counts as often as images were generated from its mask, and both are drawn together. The classes are
    those that are labelled on both sides. Originals are whole, but generated images may be crops.

    Args:
        eval_dir: folder of the results of relis/eval.py.
        models: names as given to relis/eval.py; those with results on both sets are compared.
        generator: its name, which gives the set's: `Cityscapes_clear` or `Cityscapes_{generator}_clear`.
        generated_eval_dir: another folder of results, of a set that is named `Cityscapes_clear` there.
        seed: of the bootstrap draws.
        preset: of the commands that an error recommends.
        draws: bootstrap draws.
        real: the results on the originals (`REAL`), if they were read before.

    Raises:
        NoResultsError: fewer than three models have results on both sets, or not on all frames; the message has the
            commands.
        GenValError: a file is damaged, or results cannot be compared.
    """
    name = generated_set(CLEAR_DOMAIN, generator if generated_eval_dir is None else path_dicts.DEFAULT_GENERATOR)
    place, root = Place(name, CLEAR_DOMAIN), generated_eval_dir or eval_dir
    missing: list[Missing] = []
    made_by = _generation(generator, preset) if generated_eval_dir is None else ""
    sides = [
        read_evidence(root, models, place, preset, missing, made_by),
        real or read_evidence(eval_dir, models, REAL, preset, missing),
    ]
    generated, real = (None if side is None else with_street_sources(side) for side in sides)
    compared = 0 if generated is None or real is None else int((generated.has() & real.has()).sum())
    if generated is None or real is None or compared < FEWEST_COMPARED:
        commands = "; ".join(f"{part.what}. Run: {part.remedy}" for part in missing)
        raise NoResultsError(
            f"The check of {generator} on clear images needs results of relis/eval.py of at least {FEWEST_COMPARED} "
            f"segmenters on both sets, found {compared}: {commands or 'evaluate more segmenters.'}"
        )
    require_same_models([generated, real], eval_dir, preset)
    rows = {source: row for row, source in enumerate(real.sources)}
    absent = sorted(set(generated.sources) - rows.keys())
    if absent:
        raise NoResultsError(
            f"{len(absent)} streets of {place.dataset} have no results on {REAL.dataset}, such as {absent[0]}. Run: "
            f"{evaluation(eval_dir, models, REAL, preset)} (with --split all for frames of the training set)"
        )
    kept = np.flatnonzero(generated.has() & real.has()).tolist()
    counts = generated.counts[:, kept], real.counts[[rows[source] for source in generated.sources]][:, kept]
    labelled = [np.asarray(side[:, :, 1].sum((0, 1)) > 0) for side in counts]
    classes = np.flatnonzero(labelled[0] & labelled[1]).tolist()
    weights = draw_images({name: generated.sources}, draws, seed)[name]
    frames = generated.units
    scores = [Scores(mean_iou(of.sum(0), classes), mean_iou(weigh(of, weights), classes), frames) for of in counts]
    by_model = [dict(zip((models[index] for index in kept), side.value.tolist(), strict=True)) for side in scores]
    return ClearCheck(generator, len(generated.images), frames, pearson_estimate(*scores), *by_model)


def _generation(generator: str, preset: str | None) -> str:
    """Return the command that makes a generator's clear set."""
    if generator in path_dicts.TRANSFER_METHODS:
        own = {"preset": preset, "method": generator, "domains": CLEAR_DOMAIN, "reference": "PATH"}
        return str(Command("relis/corrupt", own))
    named = None if generator == path_dicts.DEFAULT_GENERATOR else generator
    return str(Command("ControlNet/style_transfer", {"preset": preset, "generator": named, "domain": CLEAR_DOMAIN}))
