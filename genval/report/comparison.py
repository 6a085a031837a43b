"""How well scores on one set predict scores on the reference set, across models, compared with the baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from genval.metrics.correlation import CORRELATIONS
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
    Ranking,
    ValueWithInterval,
)
from genval.report.scores import Scores

# With fewer models, neither an interval over them nor the correlation itself is informative.
FEWEST_MODELS = 4
# If a draw holds two models, every r is 1 or -1, up to this rounding error.
_ROUNDING = 1e-9
TOP = 5


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
    own = _resampled_correlations(sides[SYNTHETIC], sides[TRUE], draws, seed)
    for predictor in (predictor for predictor in predictors if predictor in sides):
        kept = np.flatnonzero(~np.isnan(sides[predictor].value))
        same, drawn = own, own
        if len(kept) < len(models):  # compared over the models that the baseline has
            same = _resampled_correlations(sides[SYNTHETIC].select(kept), sides[TRUE].select(kept), draws, seed)
        if predictor != SYNTHETIC:
            drawn = _resampled_correlations(sides[predictor].select(kept), sides[TRUE].select(kept), draws, seed)
            difference[predictor] = _difference(same, drawn, len(kept))
        correlation[predictor] = Coefficients(len(kept), **_estimates(drawn))
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
        beats={baseline: _beats(difference[baseline]) for baseline in baselines},
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
        drawn = {
            side: _resampled_correlations(sides[side][index], reference, draws, seed, widest_only=True)
            for side in (SYNTHETIC, CLEAR)
            if side in sides
        }
        coefficients = {
            side: ClassCoefficients(**{c: e.with_one_interval() for c, e in _estimates(by_name).items()})
            for side, by_name in drawn.items()
        }
        difference = None
        if len(drawn) == 2:
            less = _minus(drawn[SYNTHETIC]["pearson"], drawn[CLEAR]["pearson"])
            difference = _estimate(less).with_one_interval()
        values[name] = ClassComparison(coefficients.get(SYNTHETIC), coefficients.get(CLEAR), difference)
    return values


def number(value: Any) -> float | None:
    """Return a number of any type as JSON holds it: None for NaN."""
    return None if np.isnan(value) else float(value)


_Drawn = dict[str, np.ndarray | None]
"""A coefficient's `value`, and its values over draws: `over_models`, `over_images` and `over_both`."""


def _resampled_correlations(
    x: Scores, y: Scores, draws: int, seed: int, widest_only: bool = False
) -> dict[str, _Drawn]:
    """Each coefficient's value, and its values over draws of models, of images, and of both together.

    `widest_only` skips the draws of images alone, and those of models alone if there are draws of both.
    """
    count = len(x.value)
    chosen = draw_models(count, draws, seed) if count >= FEWEST_MODELS else None
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
        for name, coefficient in CORRELATIONS.items()
    }


def _estimate(drawn: _Drawn) -> Estimate:
    value = drawn["value"]
    assert value is not None
    ends = {way: None if values is None else interval(values) for way, values in drawn.items() if way != "value"}
    return Estimate(number(value), **ends)


def _estimates(drawn: Mapping[str, _Drawn]) -> dict[str, Estimate]:
    return {name: _estimate(values) for name, values in drawn.items()}


def _minus(a: _Drawn, b: _Drawn) -> _Drawn:
    return {way: None if x is None or b[way] is None else x - b[way] for way, x in a.items()}


def _difference(synthetic: Mapping[str, _Drawn], baseline: Mapping[str, _Drawn], models: int) -> CoefficientDifference:
    less = {name: _minus(synthetic[name], baseline[name]) for name in synthetic}
    widest = next((v for v in (less["pearson"][way] for way in ("over_both", "over_models")) if v is not None), None)
    share = None
    if widest is not None and not np.isnan(widest).all():
        share = float(np.mean(widest[~np.isnan(widest)] > _ROUNDING))
    return CoefficientDifference(models, **_estimates(less), share_above=share)


def _beats(difference: CoefficientDifference | None) -> str | None:
    if difference is None:
        return None
    ends = difference.pearson.ends
    if ends is None:
        return "undecided"
    return "yes" if ends[0] > 0 else "no" if ends[1] < 0 else "undecided"


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
