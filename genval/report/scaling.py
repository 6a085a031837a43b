"""Temperature scaling on reference sets: results of relis/eval_calibration_clustering.py, per model."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

import path_dicts
from genval.datasets.corruptions import CORRUPTIONS
from genval.datasets.layouts import CORRUPTED_PREFIX, merged_as
from genval.evaluation.calibration import CITYSCAPES_CALIBRATION, ImageSet
from genval.metrics.noisy_correlation import Scores
from genval.report import HARDEST_SHARE
from genval.report.comparison import FEWEST_COMPARED, FEWEST_MODELS, coefficients, number
from genval.report.evidence import architectures
from genval.report.predictors import Generator
from genval.report.resampling import draw_models, interval, wilson_interval
from genval.report.schema import (
    CLEAR,
    CORRUPTED,
    SYNTHETIC,
    Coefficients,
    Improvement,
    ScaledModel,
    Scaling,
    ValueWithInterval,
)
from genval.report.settings import CorrelationSettings
from genval.results.provenance import Provenance, require_images, require_model
from genval.results.scenes import ALL, folder_name
from genval.runtime.commands import Command, Missing
from genval.runtime.files import read_json
from genval.runtime.paths import resolve
from genval.runtime.seeds import item_seed

ImageMarks = dict[tuple[str, ImageSet], str | None]
"""The `ImageSet.mark` of the sets of each model. The same sets are tested and calibrate in many results."""
REFERENCE = "reference"
"""The source of temperatures of the reference images themselves."""


def hardest_source(share: float) -> str:
    """Return the name of the temperatures of the hardest generated images.

    >>> hardest_source(0.5), hardest_source(0.25)
    ('synthetic, hardest half', 'synthetic, hardest 25 %')
    """
    return f"{SYNTHETIC}, hardest {'half' if share == 0.5 else f'{100 * share:g} %'}"


@dataclasses.dataclass(frozen=True)
class _Tries:
    """The temperatures that were tried in one domain: sets that calibrate, and sets that test."""

    settings: CorrelationSettings
    generated: ImageSet  # the generated set of the domain
    tested: list[ImageSet]  # the reference set, by the names under which it may have been tested
    sources: dict[str, list[ImageSet]]  # the sets that calibrate, by source, in order of preference
    results: dict[str, dict[str, dict[str, Any] | None]]  # by source and model
    made: dict[str, Provenance]  # what made the results of relis/eval.py, by model
    marks: ImageMarks

    def improved_ece(self, source: str, models: Sequence[str]) -> dict[str, float]:
        """ECE after scaling with temperatures of a source, in percent, of the models tried with it."""
        return {
            model: 100 * _ece(self.results[source][model], "after_mean")
            for model in models
            if self.results[source][model]
        }

    def on_itself(self, model: str) -> dict[str, Any] | None:
        """The result of the generated set's temperatures on the generated set."""
        return _read(self.settings, model, [self.generated], [self.generated], self.made.get(model), self.marks)


def measure_scaling(
    settings: CorrelationSettings,
    generator: Generator,
    domain: str,
    models: Sequence[str],
    missing: list[Missing],
    made: Mapping[str, Provenance],
    marks: ImageMarks,
) -> Scaling | None:
    """Compare ECE on the reference set before and after scaling.

    Args:
        settings: of report/correlate.py.
        generator: whose images calibrate; there are no temperatures of a generator with a results folder of its own.
        domain: whose reference set is tested.
        models: names as given to relis/eval.py.
        missing: what is missing is appended.
        made: what made the results of relis/eval.py, by model.
        marks: those of sets that were read before; others are added.

    Returns:
        None when no model was tried with temperatures of all synthetic images.

    Raises:
        GenValError: a file is not one of relis/eval_calibration_clustering.py, or is of another model than the results
            of relis/eval.py.
    """
    if generator.eval_dir is not None:
        return None
    tries = _read_tries(settings, generator, domain, models, made, marks)
    _list_missing(settings, domain, tries, missing)
    kept = [model for model in models if tries.results[SYNTHETIC][model] is not None]
    if not kept:
        return None
    before = {model: 100 * _ece(tries.results[SYNTHETIC][model], "before") for model in kept}
    # Every source is of models in `before`: means before and after are over the same ones.
    after = {source: tries.improved_ece(source, kept) for source in tries.sources}
    if not any(tries.on_itself(model) for model in kept):
        own = tries.generated
        command = str(_test(settings, kept, own, own.dataset, ALL))
        missing.append(Missing(f"temperatures of {own.name} tested on itself", command))
    seed = item_seed(settings.seed, f"{domain} scaling")
    both = [model for model in kept if model in after[CLEAR]]
    less = np.array([after[SYNTHETIC][model] - after[CLEAR][model] for model in both])

    def mean(values: np.ndarray) -> ValueWithInterval | None:
        return _mean(values, settings.bootstrap_draws, seed)

    return Scaling(
        method=settings.scaling_method,
        models=[
            ScaledModel(model, before[model], {source: of.get(model) for source, of in after.items()}) for model in kept
        ],
        improved={source: _improvement(before, of) for source, of in after.items()},
        mean={
            "before": mean(np.array(list(before.values()))),
            **{source: mean(np.array(list(of.values()))) for source, of in after.items()},
        },
        after=_correlation_after(tries, kept, after[SYNTHETIC], settings.bootstrap_draws, seed),
        less_than_clear=mean(less),
    )


def _read_tries(
    settings: CorrelationSettings,
    generator: Generator,
    domain: str,
    models: Sequence[str],
    made: Mapping[str, Provenance],
    marks: ImageMarks,
) -> _Tries:
    root, method = resolve(settings.scaling_dir), settings.scaling_method
    tested = _tested(domain, settings.reference_dataset)
    own = ImageSet(merged_as(generator.place(domain, settings.gate).dataset, tested[0].dataset))
    shares = sorted({HARDEST_SHARE, *_tried_shares(root, models, tested, own, method)}, reverse=True)
    sources = {
        SYNTHETIC: [own],
        **{hardest_source(share): [dataclasses.replace(own, hardest=share)] for share in shares},
        # Calibrated as in the papers, or on the whole set.
        CLEAR: [CITYSCAPES_CALIBRATION, ImageSet("Cityscapes"), ImageSet("Cityscapes", ("clean",))],
        CORRUPTED: [ImageSet(f"{CORRUPTED_PREFIX}{domain}")] if domain in CORRUPTIONS else [],
        # The upper bound: temperatures of the tested images themselves.
        REFERENCE: tested,
    }
    # Temperatures of one set of classes say nothing about another.
    sources = {
        source: [dataclasses.replace(one, dataset=merged_as(one.dataset, tested[0].dataset)) for one in calibrating]
        for source, calibrating in sources.items()
    }
    results = {
        source: {model: _read(settings, model, tested, calibrating, made.get(model), marks) for model in models}
        for source, calibrating in sources.items()
    }
    return _Tries(settings, own, tested, sources, results, dict(made), marks)


def _tried_shares(
    root: Path, models: Sequence[str], tested: Sequence[ImageSet], own: ImageSet, method: str
) -> set[float]:
    """List the shares of the hardest images of a generated set whose temperatures were tried with some model."""
    shares = set()
    for model in models:
        for test in tested:
            for path in (root / folder_name(model) / test.name).glob(f"from_{own.name}_hardest*/{method}.json"):
                percent = re.fullmatch(r"\d+(\.\d+)?(e-\d+)?", path.parent.name.partition("_hardest")[2])
                if percent and 0 < float(percent[0]) < 100:
                    shares.add(float(percent[0]) / 100)
    return shares


class _Ece(TypedDict):
    ece: float


class _ScalingResult(TypedDict):
    """A file of relis/eval_calibration_clustering.py."""

    before: _Ece
    after_mean: _Ece


def _tested(domain: str, reference_dataset: str | None) -> list[ImageSet]:
    """List the names under which the reference set may have been tested."""
    dataset, cond = path_dicts.REAL_SETS.get(domain, ("", domain))
    if reference_dataset:
        dataset, cond = reference_dataset, domain
    of_idd = dataset.startswith("IDD")  # it has one condition, which may have been left out
    return [ImageSet(dataset, (cond,)), ImageSet(dataset)] if of_idd else [ImageSet(dataset, (cond,))]


def _read(
    settings: CorrelationSettings,
    model: str,
    tested: Sequence[ImageSet],
    calibrating: Sequence[ImageSet],
    made: Provenance | None,
    marks: ImageMarks,
) -> dict[str, Any] | None:
    """Read the first existing result of a model on a set with temperatures of another set."""
    for test in tested:
        for source in calibrating:
            place = resolve(settings.scaling_dir) / folder_name(model) / test.name / f"from_{source.name}"
            path = place / f"{settings.scaling_method}.json"
            if path.exists():
                values = dict(read_json(path, _ScalingResult, "Run relis/eval_calibration_clustering.py again."))
                if made is not None:
                    remedy = (
                        "Run relis/compute_clusters_temp_scaling.py and relis/eval_calibration_clustering.py again."
                    )
                    require_model(made.model_record, f"the results of {model} on the sets", values, path, remedy)
                    for images, key in ((test, "tested_images_mark"), (source, "calibrated_images_mark")):
                        whole = dataclasses.replace(images, hardest=1.0)
                        if (model, whole) not in marks:
                            marks[model, whole] = whole.mark(settings.eval_dir, model, settings.preset)
                        if (now := marks[model, whole]) is not None:
                            require_images(values.get(key), path, now, images.name, remedy)
                return values
    return None


def _ece(values: Mapping[str, Any] | None, part: str) -> float:
    assert values is not None
    return float(values[part]["ece"])


def _improvement(before: Mapping[str, float], after: Mapping[str, float]) -> Improvement:
    both = [model for model in before if model in after]
    better = sum(after[model] < before[model] for model in both)
    low, high = map(number, wilson_interval(better, len(both)))
    if not both:
        return Improvement(0, None, low, high, None)
    mean = sum(before[model] for model in both) / len(both)
    return Improvement(len(both), better / len(both), low, high, mean)


def _mean(values: np.ndarray, draws: int, seed: int) -> ValueWithInterval | None:
    if len(values) == 0:
        return None
    ends = None
    if len(values) >= FEWEST_MODELS:
        ends = interval(values[draw_models(len(values), draws, seed)].mean(1))
    return ValueWithInterval.of_ends(float(values.mean()), ends)


def _correlation_after(
    tries: _Tries, models: Sequence[str], on_reference: Mapping[str, float], draws: int, seed: int
) -> Coefficients | None:
    """Whether ECE after scaling on the synthetic set, with its own temperatures, predicts that on the reference set."""
    on_synthetic = {model: values for model in models if (values := tries.on_itself(model))}
    if len(on_synthetic) < FEWEST_COMPARED:
        return None
    x = np.array([100 * _ece(values, "after_mean") for values in on_synthetic.values()])
    y = np.array([on_reference[model] for model in on_synthetic])
    return coefficients(Scores(x, None), Scores(y, None), draws, seed)


def _list_missing(settings: CorrelationSettings, domain: str, tries: _Tries, missing: list[Missing]) -> None:
    tested = tries.tested[0]
    for source, calibrating in tries.sources.items():
        by_model = tries.results[source]
        if any(by_model.values()) or not calibrating:
            continue
        test = _test(settings, list(by_model), calibrating[0], tested.dataset, tested.conds[0])
        calibrate = test.with_script("relis/compute_clusters_temp_scaling", "trg_dataset", "cond", "output_dir")
        missing.append(Missing(f"temperatures of {source} images tested on {tested.name}", f"{calibrate} && {test}"))


def _test(
    settings: CorrelationSettings, models: Sequence[str], calibrating: ImageSet, dataset: str, cond: str
) -> Command:
    """Return the command that tests one set's temperatures on another."""
    return Command(
        "relis/eval_calibration_clustering",
        {
            "preset": settings.preset,
            "segmenters": architectures(models, settings.preset),
            "eval_dir": settings.eval_dir,
            "calib_dataset": calibrating.dataset,
            "calib_cond": _unless_all(",".join(calibrating.conds)),
            "calib_scene": _unless_all(",".join(calibrating.scenes)),
            "hardest": f"{calibrating.hardest:g}" if calibrating.hardest < 1 else None,
            "trg_dataset": dataset,
            "cond": _unless_all(cond),
            "output_dir": settings.scaling_dir,
        },
    )


def _unless_all(text: str) -> str | None:
    return None if text == ALL else text
