"""Temperature scaling on reference sets: results of relis/eval_calibration_clustering.py, per model."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import path_dicts
from genval.datasets.corruptions import CORRUPTIONS
from genval.datasets.layouts import CORRUPTED_PREFIX, GENERATED_PREFIX
from genval.evaluation.calibration import CITYSCAPES_CALIBRATION, ImageSet
from genval.metrics.correlation import CORRELATIONS
from genval.report import HARDEST_SHARE
from genval.report.comparison import CLEAR, CORRUPTED, FEWEST_MODELS, SYNTHETIC, number
from genval.report.evidence import architectures
from genval.report.resampling import draw_models, interval, wilson_interval
from genval.report.settings import CorrelationSettings
from genval.results.scenes import ALL, GATED_SUFFIX, folder_name
from genval.runtime.commands import Command, Missing
from genval.runtime.errors import GenValError
from genval.runtime.files import read_json
from genval.runtime.paths import resolve
from genval.runtime.seeds import item_seed


def hardest_source(share: float) -> str:
    """What temperatures of the hardest generated images are called.

    >>> hardest_source(0.5), hardest_source(0.25)
    ('synthetic, hardest half', 'synthetic, hardest 25 %')
    """
    return f"{SYNTHETIC}, hardest {'half' if share == 0.5 else f'{100 * share:g} %'}"


def measure_scaling(
    settings: CorrelationSettings, domain: str, models: Sequence[str], missing: list[Missing]
) -> dict[str, Any] | None:
    """ECE on the reference set before and after scaling, as `genval.report` describes it.

    Args:
        settings: of report/correlate.py.
        domain: whose reference set is tested.
        models: names as given to relis/eval.py.
        missing: what is missing is appended.

    Returns:
        None when no model was tried with temperatures of all synthetic images.

    Raises:
        GenValError: a file is not one of relis/eval_calibration_clustering.py.
    """
    root, method = resolve(settings.scaling_dir), settings.scaling_method
    tested = _tested(domain, settings.reference_dataset)
    own = _generated(settings, domain)
    shares = sorted({HARDEST_SHARE, *_tried_shares(root, models, tested, own, method)}, reverse=True)
    hardest = {hardest_source(share): dataclasses.replace(own, hardest=share) for share in shares}
    places = {
        SYNTHETIC: [own],
        **{source: [image_set] for source, image_set in hardest.items()},
        # Calibrated as in the papers, or on the whole set.
        CLEAR: [CITYSCAPES_CALIBRATION, ImageSet("Cityscapes"), ImageSet("Cityscapes", ("clean",))],
        CORRUPTED: [ImageSet(f"{CORRUPTED_PREFIX}{domain}")] if domain in CORRUPTIONS else [],
    }
    tries = {
        source: {model: _read(root, model, tested, from_sets, method) for model in models}
        for source, from_sets in places.items()
    }
    _list_missing(settings, domain, tested, hardest, tries, missing)
    kept = [model for model in models if tries[SYNTHETIC][model] is not None]
    if not kept:
        return None
    before = {model: 100 * _figure(tries[SYNTHETIC][model], "before") for model in kept}
    # Every source is of models in `before`: means before and after are over the same ones.
    after = {
        source: {model: 100 * _figure(of_source[model], "after_mean") for model in kept if of_source[model]}
        for source, of_source in tries.items()
    }
    if not any(_read(root, model, [own], [own], method) for model in kept):
        missing.append(
            Missing(f"temperatures of {own.name} tested on itself", str(_test(settings, kept, own, own.dataset, ALL)))
        )
    seed = item_seed(settings.seed, f"{domain} scaling")
    both = [model for model in kept if model in after[CLEAR]]
    less = np.array([after[SYNTHETIC][model] - after[CLEAR][model] for model in both])
    return {
        "method": method,
        "models": [
            {"model": m, "before": before[m], **{source: after[source].get(m) for source in places}} for m in kept
        ],
        "improved": {source: _improved(before, after[source]) for source in places},
        "mean": {"before": _mean(np.array(list(before.values())), settings.bootstrap_draws, seed)}
        | {source: _mean(np.array(list(after[source].values())), settings.bootstrap_draws, seed) for source in places},
        "after": _after(root, own, kept, after[SYNTHETIC], method, settings.bootstrap_draws, seed),
        "less_than_clear": _mean(less, settings.bootstrap_draws, seed),
    }


def _generated(settings: CorrelationSettings, domain: str) -> ImageSet:
    return ImageSet(f"{GENERATED_PREFIX}{domain}{GATED_SUFFIX if settings.gate else ''}")


def _tried_shares(
    root: Path, models: Sequence[str], tested: Sequence[ImageSet], own: ImageSet, method: str
) -> set[float]:
    """The shares of the hardest images of a generated set whose temperatures some model was tried with."""
    shares = set()
    for model in models:
        for test in tested:
            for path in (root / folder_name(model) / test.name).glob(f"from_{own.name}_hardest*/{method}.json"):
                percent = re.fullmatch(r"\d+(\.\d+)?(e-\d+)?", path.parent.name.partition("_hardest")[2])
                if percent and 0 < float(percent[0]) < 100:
                    shares.add(float(percent[0]) / 100)
    return shares


def _tested(domain: str, true_dataset: str | None) -> list[ImageSet]:
    """The reference set by the names it may have been tested under."""
    dataset, cond = (true_dataset, domain) if true_dataset else path_dicts.REAL_SETS.get(domain, ("", domain))
    return [ImageSet(dataset, (cond,)), ImageSet(dataset)] if dataset == "IDD" else [ImageSet(dataset, (cond,))]


def _read(
    root: Path, model: str, tested: Sequence[ImageSet], calibrating: Sequence[ImageSet], method: str
) -> dict[str, Any] | None:
    """The first file there is of a model tried on a set with temperatures of another."""
    for test in tested:
        for source in calibrating:
            path = root / folder_name(model) / test.name / f"from_{source.name}" / f"{method}.json"
            if path.exists():
                values = read_json(path)
                for part in ("before", "after_mean"):
                    if not isinstance(values.get(part, {}).get("ece"), float):
                        raise GenValError(f"{path} has no ECE {part}. Run relis/eval_calibration_clustering.py again.")
                return dict(values)
    return None


def _figure(values: Mapping[str, Any] | None, part: str) -> float:
    assert values is not None
    return float(values[part]["ece"])


def _improved(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, Any]:
    both = [model for model in before if model in after]
    better = sum(after[model] < before[model] for model in both)
    low, high = wilson_interval(better, len(both))
    ends = {"low": number(low), "high": number(high)}
    if not both:
        return {"models": 0, "share": None, **ends, "before": None}
    mean = sum(before[model] for model in both) / len(both)
    return {"models": len(both), "share": better / len(both), **ends, "before": mean}


def _mean(values: np.ndarray, draws: int, seed: int) -> dict[str, float | None] | None:
    if len(values) == 0:
        return None
    ends = None
    if len(values) >= FEWEST_MODELS:
        ends = interval(values[draw_models(len(values), draws, seed)].mean(1))
    low, high = ends or (None, None)
    return {"value": float(values.mean()), "low": low, "high": high}


def _after(
    root: Path, own: ImageSet, models: Sequence[str], on_true: Mapping[str, float], method: str, draws: int, seed: int
) -> dict[str, Any] | None:
    """Whether ECE after scaling on the synthetic set, with its own temperatures, predicts that on the reference set."""
    tries = {model: _read(root, model, [own], [own], method) for model in models}
    both = [model for model, values in tries.items() if values is not None]
    if len(both) < FEWEST_MODELS:
        return None
    x = np.array([100 * _figure(tries[model], "after_mean") for model in both])
    y = np.array([on_true[model] for model in both])
    chosen = draw_models(len(both), draws, seed)
    return {
        "models": len(both),
        **{
            name: {
                "value": number(coefficient(x, y)),
                "over_models": interval(coefficient(x[chosen], y[chosen])),
                "over_images": None,
                "over_both": None,
            }
            for name, coefficient in CORRELATIONS.items()
        },
    }


def _list_missing(
    settings: CorrelationSettings,
    domain: str,
    tested: Sequence[ImageSet],
    hardest: Mapping[str, ImageSet],
    tries: Mapping[str, Mapping[str, Any]],
    missing: list[Missing],
) -> None:
    place = tested[0]
    calibrating = {
        SYNTHETIC: _generated(settings, domain),
        **hardest,
        CLEAR: CITYSCAPES_CALIBRATION,
        CORRUPTED: ImageSet(f"{CORRUPTED_PREFIX}{domain}"),
    }
    for source, of_source in tries.items():
        if any(of_source.values()) or (source == CORRUPTED and domain not in CORRUPTIONS):
            continue
        test = _test(settings, list(of_source), calibrating[source], place.dataset, place.conds[0])
        calibrate = test.with_script("relis/compute_clusters_temp_scaling", "trg_dataset", "cond", "output_dir")
        missing.append(Missing(f"temperatures of {source} images tested on {place.name}", f"{calibrate} && {test}"))


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
