"""Comparisons against the definitions, draw by draw."""

import numpy as np
import pytest
import scipy.stats

from genval.metrics.noisy_correlation import corrected_correlation, corrected_difference
from genval.report.comparison import compare, compare_classes, regret
from genval.report.resampling import draw_models
from genval.report.scores import Scores
from genval.runtime.json_record import encode

MODELS = [f"model{index}" for index in range(9)]
DRAWS, SEED = 200, 5


def scores(generator, centre, noise=1.0):
    return Scores(centre, centre + noise * generator.normal(size=(DRAWS, len(centre))), 64)


def compared(models, sides, higher_is_better=True, seed=SEED):
    """The comparison as it is written to JSON."""
    comparison = compare(
        models, sides, metric="miou", higher_is_better=higher_is_better, sets={}, draws=DRAWS, seed=seed
    )
    return comparison.to_json()


@pytest.fixture
def sides():
    generator = np.random.default_rng(1)
    truth = np.array([10.0, 30.0, 20.0, 50.0, 40.0, 35.0, 25.0, 15.0, 45.0])
    return {
        "true": scores(generator, truth),
        "synthetic": scores(generator, truth + np.array([1, -1, 2, 0, -2, 1, 1, -1, 1])),
        "clear": scores(generator, np.array([60.0, 61.0, 65.0, 62.0, 59.0, 64.0, 63.5, 58.0, 60.5])),
    }


def test_intervals_of_ranks_are_those_of_a_plain_loop(sides):
    result = compared(MODELS, sides)
    chosen = draw_models(len(MODELS), DRAWS, SEED)
    x, y, baseline = (sides[name] for name in ("synthetic", "true", "clear"))
    both, differences = [], []
    for draw, indices in enumerate(chosen):
        true = y.drawn[draw][indices]
        both.append(scipy.stats.kendalltau(x.drawn[draw][indices], true)[0])
        differences.append(both[-1] - scipy.stats.kendalltau(baseline.drawn[draw][indices], true)[0])
    kendall = result["correlation"]["synthetic"]["kendall"]
    assert kendall["value"] == pytest.approx(scipy.stats.kendalltau(x.value, y.value)[0])
    assert kendall["over_both"] == pytest.approx(np.nanpercentile(both, [2.5, 97.5]).tolist())
    images = [scipy.stats.kendalltau(a, b)[0] for a, b in zip(x.drawn, y.drawn, strict=True)]
    assert kendall["over_images"] == pytest.approx(np.percentile(images, [2.5, 97.5]).tolist())
    less = result["difference"]["clear"]
    assert less["kendall"]["over_both"] == pytest.approx(np.nanpercentile(differences, [2.5, 97.5]).tolist())


def test_pearson_is_observed_and_corrected(sides):
    result = compared(MODELS, sides)
    x, y, baseline = (sides[name] for name in ("synthetic", "true", "clear"))
    pearson, corrected = result["correlation"]["synthetic"]["pearson"], corrected_correlation(x, y)
    assert pearson["value"] == pytest.approx(scipy.stats.pearsonr(x.value, y.value)[0])
    assert [pearson[key] for key in ("corrected", "low", "high")] == [corrected.value, corrected.low, corrected.high]
    assert pearson["refused"] is None
    less, difference = result["difference"]["clear"], corrected_difference(x, baseline, y)
    assert [less["pearson"][key] for key in ("corrected", "low")] == [difference.value, difference.low]
    assert less["share_above"] == difference.share_above > 0.9


def test_a_good_predictor_beats_a_bad_one_and_not_the_other_way(sides):
    result = compared(MODELS, sides)
    assert result["beats"] == {"clear": "yes", "corrupted": None}
    swapped = {"true": sides["true"], "synthetic": sides["clear"], "clear": sides["synthetic"]}
    assert compared(MODELS, swapped)["beats"]["clear"] == "no"
    same = {**sides, "clear": sides["synthetic"]}
    assert compared(MODELS, same)["beats"]["clear"] == "undecided"
    assert abs(compared(MODELS, same)["difference"]["clear"]["pearson"]["high"]) < 0.001


def test_a_baseline_with_missing_models_is_compared_over_those_it_has(sides):
    corrupted = sides["synthetic"].value.copy()
    corrupted[3] = np.nan
    drawn = np.repeat(corrupted[None], DRAWS, 0)
    result = compared(MODELS, {**sides, "corrupted": Scores(corrupted, drawn)})
    assert result["correlation"]["corrupted"]["models"] == 8
    assert result["correlation"]["synthetic"]["models"] == 9
    # On the same models the two are the same predictor.
    assert result["difference"]["corrupted"]["pearson"]["value"] == pytest.approx(0)
    assert result["ranking"]["corrupted"]["best"] == "model8"
    assert result["models"][3]["corrupted"] is None


@pytest.mark.parametrize("number", [3, 7])
def test_few_models_have_values_and_no_interval(sides, number):
    few = {side: of_side.select(np.arange(number)) for side, of_side in sides.items()}
    result = compared(MODELS[:number], few)
    pearson = result["correlation"]["synthetic"]["pearson"]
    assert pearson["value"] > 0.9 and pearson["corrected"] is None and pearson["low"] is None
    assert pearson["refused"] == f"too few segmenters: {number}, at least 8 are needed"
    assert result["difference"]["clear"]["pearson"]["refused"] == pearson["refused"]
    assert result["beats"]["clear"] == "undecided"
    kendall = result["correlation"]["synthetic"]["kendall"]
    assert kendall["over_models"] is None and kendall["over_both"] is None and kendall["over_images"] is not None


def test_few_images_and_undefined_scores_have_no_interval(sides):
    few = {**sides, "true": Scores(sides["true"].value, sides["true"].drawn, 7)}
    refused = compared(MODELS, few)["correlation"]["synthetic"]["pearson"]["refused"]
    assert refused == "too few images: 7, at least 8 are needed"
    drawn = sides["true"].drawn.copy()
    drawn[:40, 2] = np.nan
    undefined = {**sides, "true": Scores(sides["true"].value, drawn, 64)}
    refused = compared(MODELS, undefined)["correlation"]["clear"]["pearson"]["refused"]
    assert refused == "a score is not defined, or not in a tenth of the resamples"
    constant = {**sides, "synthetic": Scores(np.ones(9), None)}
    estimate = compared(MODELS, constant)["correlation"]["synthetic"]["pearson"]
    assert estimate["value"] is None and estimate["refused"] == "the scores of all segmenters are equal"


def test_an_interval_over_images_alone_is_not_shown_as_that_of_r(sides):
    few = {side: of_side.select(np.arange(3)) for side, of_side in sides.items()}
    by_class = encode(compare_classes(["road"], {side: [of_side] for side, of_side in few.items()}, DRAWS, SEED))
    value = by_class["road"]["synthetic"]["pearson"]
    assert value["value"] is not None and value["low"] is None and value["high"] is None
    assert by_class["road"]["synthetic"]["kendall"]["low"] is None
    assert by_class["road"]["difference"]["low"] is None


def test_the_five_best_of_five_models_are_not_counted(sides):
    five = {side: of_side.select(np.arange(5)) for side, of_side in sides.items()}
    assert compared(MODELS[:5], five)["ranking"]["synthetic"]["top_5"] is None
    assert compared(MODELS, sides)["ranking"]["synthetic"]["top_5"] == 1


def test_ranking_agreement():
    value = np.array([50.0, 52.0, 40.0, 10.0, 20.0, 30.0])
    sides = {"true": Scores(value, None), "synthetic": Scores(np.array([60.0, 59, 58, 57, 1, 2]), None)}
    ranking = compared(MODELS[:6], sides)["ranking"]["synthetic"]
    assert ranking["chosen"] == "model0" and ranking["best"] == "model1" and not ranking["top_1"]
    assert ranking["regret"] == {"value": 2.0, "low": None, "high": None}
    assert ranking["top_5"] == pytest.approx(4 / 5)
    lower = compared(MODELS[:6], sides, False)["ranking"]["synthetic"]
    assert lower["chosen"] == "model4" and lower["best"] == "model3" and lower["regret"]["value"] == 10.0


def test_regret_is_what_the_choice_loses():
    x, y = np.array([[1.0, 2.0], [2.0, 1.0]]), np.array([[5.0, 9.0], [5.0, 9.0]])
    assert regret(x, y).tolist() == [0.0, 4.0]
    assert np.isnan(regret(np.array([np.nan, 1.0]), np.array([1.0, 2.0])))


def test_each_class_is_compared_on_its_own(sides):
    by_class = {side: [of_side, of_side] for side, of_side in sides.items()}
    by_class["synthetic"][1] = Scores(-sides["synthetic"].value, -sides["synthetic"].drawn)
    values = encode(compare_classes(["road", "sky"], by_class, DRAWS, SEED))
    whole = compared(MODELS, sides)
    expected = whole["correlation"]["synthetic"]["pearson"]
    assert values["road"]["synthetic"]["pearson"]["value"] == pytest.approx(expected["value"])
    assert values["road"]["synthetic"]["pearson"] == expected
    assert values["sky"]["synthetic"]["pearson"]["value"] == pytest.approx(-expected["value"])
    assert values["road"]["difference"] == whole["difference"]["clear"]["pearson"]
