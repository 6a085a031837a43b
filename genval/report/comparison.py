"""How well scores on one set predict scores on the reference set, across models, compared with the baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from genval.metrics.correlation import CORRELATIONS
from genval.report.figures import Figure
from genval.report.resampling import draw_models, interval

TRUE = "true"
SYNTHETIC = "synthetic"
CLEAR = "clear"
CORRUPTED = "corrupted"
PREDICTORS = (SYNTHETIC, CLEAR, CORRUPTED)
BASELINES = (CLEAR, CORRUPTED)
# With fewer models an interval over them, or a correlation at all, says nothing.
FEWEST_MODELS = 4
# Of a draw that holds two models, every r is 1 or -1, give or take this.
_ROUNDING = 1e-9
TOP = 5


def compare(
    models: Sequence[str],
    sides: Mapping[str, Figure],
    higher_is_better: bool,
    draws: int,
    seed: int,
) -> dict[str, Any]:
    """A comparison, as `genval.report` describes it, from `models` to `bias`.

    Args:
        models: their names, the axis of the figures; at least two.
        sides: `true`, `synthetic`, and of `clear` and `corrupted` those there are, which may lack models (NaN).
        higher_is_better: what the ranking goes by.
        draws: of models; images were drawn as often where figures have draws.
        seed: of the drawing of models.
    """
    correlation: dict[str, Any] = dict.fromkeys(PREDICTORS)
    difference: dict[str, Any] = {}
    own = _drawn_correlations(sides[SYNTHETIC], sides[TRUE], draws, seed)
    for predictor in (predictor for predictor in PREDICTORS if predictor in sides):
        kept = np.flatnonzero(~np.isnan(sides[predictor].value))
        same, drawn = own, own
        if len(kept) < len(models):  # compared over the models that the baseline has
            same = _drawn_correlations(sides[SYNTHETIC].of(kept), sides[TRUE].of(kept), draws, seed)
        if predictor in BASELINES:
            drawn = _drawn_correlations(sides[predictor].of(kept), sides[TRUE].of(kept), draws, seed)
            difference[predictor] = _difference(same, drawn, len(kept))
        correlation[predictor] = {"models": len(kept), **{c: _estimate(v) for c, v in drawn.items()}}
    return {
        "models": [
            {"model": model, **{side: _of_model(sides.get(side), index) for side in (TRUE, *PREDICTORS)}}
            for index, model in enumerate(models)
        ],
        "correlation": correlation,
        "difference": {baseline: difference.get(baseline) for baseline in BASELINES},
        "beats": {baseline: _beats(difference.get(baseline)) for baseline in BASELINES},
        "ranking": {
            predictor: _ranking(models, sides[predictor], sides[TRUE], higher_is_better) if predictor in sides else None
            for predictor in PREDICTORS
        },
        "bias": _bias(sides[SYNTHETIC], sides[TRUE]),
    }


def compare_classes(
    names: Sequence[str], sides: Mapping[str, Sequence[Figure]], draws: int, seed: int
) -> dict[str, Any]:
    """`per_class` of a comparison: each class's correlations, synthetic and clear, and the difference of Pearson's.

    Args:
        names: of the classes.
        sides: each side's figure of each class.
        draws: as for `compare`.
        seed: as for `compare`.
    """
    values: dict[str, Any] = {}
    for index, name in enumerate(names):
        true = sides[TRUE][index]
        drawn = {
            side: _drawn_correlations(sides[side][index], true, draws, seed, widest=True)
            for side in (SYNTHETIC, CLEAR)
            if side in sides
        }
        values[name] = dict.fromkeys((SYNTHETIC, CLEAR)) | {
            side: {c: _narrow(_estimate(v)) for c, v in of_side.items()} for side, of_side in drawn.items()
        }
        pearson = {side: of_side["pearson"] for side, of_side in drawn.items()}
        values[name]["difference"] = _narrow(_estimate(_minus(*pearson.values()))) if len(pearson) == 2 else None
    return values


def number(value: Any) -> float | None:
    """A number of whatever type as JSON has it: None for NaN."""
    return None if np.isnan(value) else float(value)


_Drawn = dict[str, np.ndarray | None]


def _drawn_correlations(x: Figure, y: Figure, draws: int, seed: int, widest: bool = False) -> dict[str, _Drawn]:
    """Each coefficient's value, and its values over draws of models, of images, and of both at once.

    `widest` leaves those over images alone out, and those over models alone where there are those over both.
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
    if widest:
        pairs["over_images"] = None
    if widest and pairs["over_both"] is not None:
        pairs["over_models"] = None
    return {
        name: {way: None if pair is None else coefficient(*pair) for way, pair in pairs.items()}
        for name, coefficient in CORRELATIONS.items()
    }


def _estimate(drawn: _Drawn) -> dict[str, Any]:
    value = drawn["value"]
    assert value is not None
    ends = {way: None if values is None else interval(values) for way, values in drawn.items() if way != "value"}
    return {"value": number(value), **ends}


def _minus(a: _Drawn, b: _Drawn) -> _Drawn:
    return {way: None if x is None or b[way] is None else x - b[way] for way, x in a.items()}


def _difference(synthetic: dict[str, _Drawn], baseline: dict[str, _Drawn], models: int) -> dict[str, Any]:
    less = {name: _minus(synthetic[name], baseline[name]) for name in synthetic}
    widest = next((v for v in (less["pearson"][way] for way in ("over_both", "over_models")) if v is not None), None)
    share = None
    if widest is not None and not np.isnan(widest).all():
        share = float(np.mean(widest[~np.isnan(widest)] > _ROUNDING))
    return {"models": models, **{name: _estimate(drawn) for name, drawn in less.items()}, "share_above": share}


def _beats(difference: dict[str, Any] | None) -> str | None:
    if difference is None:
        return None
    ends = difference["pearson"]["over_both"] or difference["pearson"]["over_models"]
    if ends is None:
        return "undecided"
    return "yes" if ends[0] > 0 else "no" if ends[1] < 0 else "undecided"


def _of_model(figure: Figure | None, index: int) -> dict[str, float | None] | None:
    if figure is None or np.isnan(figure.value[index]):
        return None
    ends = None if figure.drawn is None else interval(figure.drawn[:, index])
    low, high = ends or (None, None)
    return {"value": float(figure.value[index]), "low": low, "high": high}


def _ranking(models: Sequence[str], predictor: Figure, true: Figure, higher_is_better: bool) -> dict[str, Any]:
    sign = 1 if higher_is_better else -1
    kept = np.flatnonzero(~np.isnan(predictor.value))
    x, y = sign * predictor.value[kept], sign * true.value[kept]
    common = set(np.argsort(-x, kind="stable")[:TOP]) & set(np.argsort(-y, kind="stable")[:TOP])
    ends = None
    if predictor.drawn is not None and true.drawn is not None:
        ends = interval(regret(sign * predictor.drawn[:, kept], sign * true.drawn[:, kept]))
    low, high = ends or (None, None)
    return {
        "chosen": models[kept[int(x.argmax())]],
        "best": models[kept[int(y.argmax())]],
        "top_1": bool(y[x.argmax()] == y.max()),
        "top_5": len(common) / TOP if len(kept) > TOP else None,  # of no more models all are in common
        "regret": {"value": float(regret(x, y)), "low": low, "high": high},
    }


def regret(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """What choosing the model with the largest `x` (..., M) loses of the largest `y` (..., M); at least 0.

    >>> regret(np.array([3.0, 2.0, 1.0]), np.array([50.0, 52.0, 40.0]))
    np.float64(2.0)
    """
    undefined = np.isnan(x).any(-1) | np.isnan(y).any(-1)
    chosen = np.take_along_axis(y, np.nan_to_num(x).argmax(-1)[..., None], -1)[..., 0]
    return np.where(undefined, np.nan, y.max(-1) - chosen)[()]


def _bias(synthetic: Figure, true: Figure) -> dict[str, float | None]:
    ends = None
    if synthetic.drawn is not None and true.drawn is not None:
        ends = interval((synthetic.drawn - true.drawn).mean(1))
    low, high = ends or (None, None)
    return {"value": number((synthetic.value - true.value).mean()), "low": low, "high": high}


def _narrow(estimate: dict[str, Any]) -> dict[str, float | None]:
    """An estimate with one interval: over both, or over models; none where models were not drawn."""
    ends = estimate["over_both"] or estimate["over_models"] or (None, None)
    return {"value": estimate["value"], "low": ends[0], "high": ends[1]}
