"""How well scores on one set predict scores on the reference set, across models, compared with the baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from genval.metrics.correlation import kendall, pearson, spearman
from genval.metrics.noisy_correlation import Scores, corrected_correlation, corrected_difference
from genval.report.resampling import draw_models, interval
from genval.report.schema import (
    CLEAR,
    CORRUPTED,
    SYNTHETIC,
    TRUE,
    ClassCoefficients,
    ClassComparison,
    CoefficientDifference,
    Coefficients,
    ComparedSet,
    Comparison,
    Estimate,
    ModelScores,
    PearsonEstimate,
    Ranking,
    ValueWithInterval,
)

# A correlation of two models is always 1 or -1.
FEWEST_COMPARED = 3
# With fewer models there is no interval of a mean over models.
FEWEST_MODELS = 4
# With fewer models or images there is no interval of a correlation.
FEWEST_CORRELATED = 8
FEWEST_IMAGES = 8
TOP = 5
_RANK_CORRELATIONS = {"spearman": spearman, "kendall": kendall}


def compare(
    models: Sequence[str],
    sides: Mapping[str, Scores],
    *,
    metric: str,
    higher_is_better: bool,
    sets: Mapping[str, ComparedSet | None],
    draws: int,
    seed: int,
) -> Comparison:
    """Compare the predictors with the reference; the parts for classes are not filled in.

    Args:
        models: their names, the axis of the scores; at least two.
        sides: `true` and `synthetic`, and the baselines that are available: `clear`, `corrupted` and others of any
            name. Baselines may miss models (NaN).
        metric: its name.
        higher_is_better: the order of the ranking.
        sets: the images of each side.
        draws: bootstrap draws of models; scores on resampled images have as many.
        seed: of the draws of models.
    """
    baselines = list(dict.fromkeys((CLEAR, CORRUPTED, *(side for side in sides if side not in (TRUE, SYNTHETIC)))))
    predictors = [SYNTHETIC, *baselines]
    correlation: dict[str, Coefficients | None] = dict.fromkeys(predictors)
    difference: dict[str, CoefficientDifference | None] = dict.fromkeys(baselines)
    own = _resampled_ranks(sides[SYNTHETIC], sides[TRUE], draws, seed)
    for predictor in (predictor for predictor in predictors if predictor in sides):
        kept = np.flatnonzero(~np.isnan(sides[predictor].value))
        ranks, same = own, own
        synthetic, reference, theirs = (sides[side].select(kept) for side in (SYNTHETIC, TRUE, predictor))
        if len(kept) < len(models):  # compared over the models that the baseline has
            same = _resampled_ranks(synthetic, reference, draws, seed)
        if predictor != SYNTHETIC:
            ranks = _resampled_ranks(theirs, reference, draws, seed)
            difference[predictor] = _difference(synthetic, theirs, reference, _minus(same, ranks))
        correlation[predictor] = Coefficients(len(kept), pearson_estimate(theirs, reference), **_estimates(ranks))
    return Comparison(
        metric=metric,
        unit="percent",
        better="higher" if higher_is_better else "lower",
        sets=dict(sets),
        models=[
            ModelScores(model, {side: _model_score(sides.get(side), index) for side in (TRUE, *predictors)})
            for index, model in enumerate(models)
        ],
        correlation=correlation,
        difference=difference,
        beats={side: None if (less := difference[side]) is None else beats(less.pearson) for side in baselines},
        ranking={
            predictor: _ranking(models, sides[predictor], sides[TRUE], higher_is_better) if predictor in sides else None
            for predictor in predictors
        },
        bias=_bias(sides[SYNTHETIC], sides[TRUE]),
    )


def compare_classes(
    names: Sequence[str], sides: Mapping[str, Sequence[Scores]], draws: int, seed: int
) -> dict[str, ClassComparison]:
    """Compare each class on its own: the correlations of synthetic and clear, and the difference of Pearson's r.

    Args:
        names: of the classes.
        sides: the scores of each class, by side.
        draws: as for `compare`.
        seed: as for `compare`.
    """
    values: dict[str, ClassComparison] = {}
    for index, name in enumerate(names):
        reference = sides[TRUE][index]
        coefficients: dict[str, ClassCoefficients] = {}
        for side in (side for side in (SYNTHETIC, CLEAR) if side in sides):
            ranks = _estimates(_resampled_ranks(sides[side][index], reference, draws, seed, widest_only=True))
            of_ranks = {coefficient: estimate.with_one_interval() for coefficient, estimate in ranks.items()}
            coefficients[side] = ClassCoefficients(pearson_estimate(sides[side][index], reference), **of_ranks)
        less = None
        if CLEAR in sides:
            less, _ = pearson_difference(sides[SYNTHETIC][index], sides[CLEAR][index], reference)
        values[name] = ClassComparison(coefficients.get(SYNTHETIC), coefficients.get(CLEAR), less)
    return values


def number(value: Any) -> float | None:
    """Return a number of any type as JSON holds it: None for NaN."""
    return None if np.isnan(value) else float(value)


def coefficients(x: Scores, y: Scores, draws: int, seed: int) -> Coefficients:
    """Estimate every coefficient of two sides, see `compare`."""
    return Coefficients(len(x.value), pearson_estimate(x, y), **_estimates(_resampled_ranks(x, y, draws, seed)))


def pearson_estimate(x: Scores, y: Scores) -> PearsonEstimate:
    """Estimate Pearson's r of two sides with an interval, or say why there is none.

    >>> scores = Scores(np.array([1.0, 2.0, 3.0]), None)
    >>> pearson_estimate(scores, scores).refused
    'too few segmenters: 3, at least 8 are needed'
    """
    value, refused = number(pearson(x.value, y.value)), _refusal(x, y)
    if value is None or refused:
        return PearsonEstimate(value, None, None, None, refused or "the scores of all segmenters are equal")
    found = corrected_correlation(x, y)
    return PearsonEstimate(value, number(found.value), found.low, found.high, None)


def pearson_difference(first: Scores, second: Scores, y: Scores) -> tuple[PearsonEstimate, float | None]:
    """Estimate the difference of the correlations of two predictors, and the share of the draws above 0."""
    value = number(pearson(first.value, y.value) - pearson(second.value, y.value))
    refused = _refusal(first, second, y)
    if value is None or refused:
        return PearsonEstimate(value, None, None, None, refused or "the scores of all segmenters are equal"), None
    found = corrected_difference(first, second, y)
    return PearsonEstimate(value, number(found.value), found.low, found.high, None), found.share_above


def _refusal(*sides: Scores) -> str | None:
    """Why there is no interval of a correlation."""
    models = len(sides[0].value)
    if models < FEWEST_CORRELATED:
        return f"too few segmenters: {models}, at least {FEWEST_CORRELATED} are needed"
    images = min((side.units for side in sides if side.drawn is not None and side.units is not None), default=None)
    if images is not None and images < FEWEST_IMAGES:
        return f"too few images: {images}, at least {FEWEST_IMAGES} are needed"
    undefined = any(np.isnan(side.value).any() or _undefined_share(side) > 0.1 for side in sides)
    return "a score is not defined, or not in a tenth of the resamples" if undefined else None


def _undefined_share(side: Scores) -> float:
    return 0.0 if side.drawn is None else float(np.isnan(side.drawn).any(1).mean())


_Drawn = dict[str, np.ndarray | None]
"""A coefficient's `value`, and its values over draws: `over_models`, `over_images` and `over_both`."""


def _resampled_ranks(x: Scores, y: Scores, draws: int, seed: int, widest_only: bool = False) -> dict[str, _Drawn]:
    """Each rank correlation's value, and its values over draws of models, of images, and of both together.

    `widest_only` skips the draws of images alone, and those of models alone if there are draws of both.
    """
    count = len(x.value)
    chosen = draw_models(count, draws, seed) if count >= FEWEST_CORRELATED else None
    images = None if x.drawn is None or y.drawn is None else (x.drawn, y.drawn)
    pairs: dict[str, tuple[np.ndarray, np.ndarray] | None] = {
        "value": (x.value, y.value),
        "over_models": None if chosen is None else (x.value[chosen], y.value[chosen]),
        "over_images": images,
        "over_both": None
        if chosen is None or images is None
        else (np.take_along_axis(images[0], chosen, 1), np.take_along_axis(images[1], chosen, 1)),
    }
    if widest_only:
        pairs["over_images"] = None
    if widest_only and pairs["over_both"] is not None:
        pairs["over_models"] = None
    return {
        name: {way: None if pair is None else coefficient(*pair) for way, pair in pairs.items()}
        for name, coefficient in _RANK_CORRELATIONS.items()
    }


def _estimates(drawn: Mapping[str, _Drawn]) -> dict[str, Estimate]:
    return {name: _estimate(values) for name, values in drawn.items()}


def _estimate(drawn: _Drawn) -> Estimate:
    value = drawn["value"]
    assert value is not None
    ends = {way: None if values is None else interval(values) for way, values in drawn.items() if way != "value"}
    return Estimate(number(value), **ends)


def _minus(a: Mapping[str, _Drawn], b: Mapping[str, _Drawn]) -> dict[str, _Drawn]:
    def minus(x: np.ndarray | None, y: np.ndarray | None) -> np.ndarray | None:
        return None if x is None or y is None else x - y

    return {name: {way: minus(values, b[name][way]) for way, values in a[name].items()} for name in a}


def _difference(
    synthetic: Scores, baseline: Scores, reference: Scores, ranks: Mapping[str, _Drawn]
) -> CoefficientDifference:
    estimate, share_above = pearson_difference(synthetic, baseline, reference)
    return CoefficientDifference(len(synthetic.value), estimate, **_estimates(ranks), share_above=share_above)


def beats(difference: PearsonEstimate) -> str:
    """Say whether the interval of a difference is above 0: yes, no (it is below 0) or undecided."""
    if difference.ends is None:
        return "undecided"
    return "yes" if difference.ends[0] > 0 else "no" if difference.ends[1] < 0 else "undecided"


def _model_score(scores: Scores | None, index: int) -> ValueWithInterval | None:
    if scores is None or np.isnan(scores.value[index]):
        return None
    ends = None if scores.drawn is None else interval(scores.drawn[:, index])
    return ValueWithInterval.of_ends(float(scores.value[index]), ends)


def _ranking(models: Sequence[str], predictor: Scores, reference: Scores, higher_is_better: bool) -> Ranking:
    sign = 1 if higher_is_better else -1
    kept = np.flatnonzero(~np.isnan(predictor.value))
    x, y = sign * predictor.value[kept], sign * reference.value[kept]
    common = set(np.argsort(-x, kind="stable")[:TOP]) & set(np.argsort(-y, kind="stable")[:TOP])
    ends = None
    if predictor.drawn is not None and reference.drawn is not None:
        ends = interval(regret(sign * predictor.drawn[:, kept], sign * reference.drawn[:, kept]))
    return Ranking(
        chosen=models[kept[int(x.argmax())]],
        best=models[kept[int(y.argmax())]],
        top_1=bool(y[x.argmax()] == y.max()),
        top_5=len(common) / TOP if len(kept) > TOP else None,  # with five models or fewer, all are in common
        regret=ValueWithInterval.of_ends(float(regret(x, y)), ends),
    )


def regret(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the part of the largest `y` (..., M) that is lost by choosing the model with the largest `x` (..., M).

    >>> regret(np.array([3.0, 2.0, 1.0]), np.array([50.0, 52.0, 40.0]))
    np.float64(2.0)
    """
    undefined = np.isnan(x).any(-1) | np.isnan(y).any(-1)
    chosen = np.take_along_axis(y, np.nan_to_num(x).argmax(-1)[..., None], -1)[..., 0]
    return np.where(undefined, np.nan, y.max(-1) - chosen)[()]


def _bias(synthetic: Scores, reference: Scores) -> ValueWithInterval:
    ends = None
    if synthetic.drawn is not None and reference.drawn is not None:
        ends = interval((synthetic.drawn - reference.drawn).mean(1))
    return ValueWithInterval.of_ends(number((synthetic.value - reference.value).mean()), ends)
