"""The curve of scores by strength of a generated condition, on made-up results of relis/eval.py."""

import doctest
from pathlib import Path

import numpy as np
import pytest
from report_world import FOG, matrix_of, write_set

from genval.metrics import segmentation
from genval.report import severity
from genval.report.predictors import Generator
from genval.report.schema import SeverityCurve
from genval.report.settings import CorrelationSettings
from genval.report.severity import falls_below, find_strengths, severity_curve
from genval.runtime.commands import Missing
from genval.runtime.errors import GenValError
from genval.runtime.flags import parse_settings

CONTROLNET = Generator("controlnet", None)
RIGHT = {
    "steady": {0.0: 0.9, 0.5: 0.89, 1.0: 0.88},
    "early": {0.0: 0.9, 0.5: 0.6, 1.0: 0.5},
    "late": {0.0: 0.9, 0.5: 0.88, 1.0: 0.6},
}
SETS = {0.0: "fog-0.0", 0.5: "fog-0.5", 1.0: "fog"}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for model, by_strength in RIGHT.items():
        for strength, right in by_strength.items():
            write_set(tmp_path, model, f"Cityscapes_{SETS[strength]}", SETS[strength], FOG, right)
    write_set(tmp_path, "steady", "Cityscapes_fog-0.5-gated", "fog-0.5", FOG, 0.9)
    write_set(tmp_path, "steady", "Cityscapes_foggy-0.5", "foggy-0.5", FOG, 0.9)
    return tmp_path


def curve_of(results: Path, missing: list[Missing], **changes: object) -> SeverityCurve | None:
    settings: dict = {"draws": 100, "seed": 0, **changes}
    return severity_curve(results, list(RIGHT), CONTROLNET, "fog", missing, **settings)


def test_models_fall_below_the_limit_where_their_scores_say_so(results: Path) -> None:
    assert find_strengths(results, CONTROLNET, "fog", gate=False) == [0.0, 0.5, 1.0]
    assert find_strengths(results, CONTROLNET, "fog", gate=True) == [0.5]
    curve = curve_of(results, [])
    assert curve is not None and curve.images == len(FOG) and len(curve.classes) == 19
    for model, by_strength in RIGHT.items():
        for value, right in zip(curve.miou[model], by_strength.values(), strict=True):
            expected = 100 * segmentation.mean_iou(np.sum([matrix_of(item, right) for item in FOG], 0))
            assert value.value == pytest.approx(expected)
            assert value.low <= expected <= value.high
    steady, early, late = (curve.falls_at[model] for model in RIGHT)
    assert steady.value is steady.low is steady.high is None
    assert 0 < early.low <= early.value <= early.high < 0.5 < late.low <= late.value <= late.high < 1
    scores = [value.value for value in curve.miou["early"]]
    assert np.interp(early.value, [0, 0.5, 1], scores) == pytest.approx(0.9 * scores[0])
    fixed = curve_of(results, [], min_miou=99.0)
    assert fixed is not None and {falls.value for falls in fixed.falls_at.values()} == {0.0}
    assert SeverityCurve.from_json(curve.to_json()) == curve


def test_only_images_that_exist_at_all_strengths_are_compared(tmp_path: Path, results: Path) -> None:
    """The whole domain often has more images than its weaker strengths."""
    part, apart = tmp_path / "part", tmp_path / "apart"
    for root, whole in ((part, FOG), (apart, FOG[2:])):
        write_set(root, "early", "Cityscapes_fog-0.0", "fog-0.0", FOG[:2], 0.9)
        write_set(root, "early", "Cityscapes_fog", "fog", whole, 0.9)
    curve = curve_of(part, [])
    assert curve is not None and curve.images == 2
    low, high = curve.miou["early"]
    assert low.value == high.value != curve_of(results, []).miou["early"][0].value
    missing: list[Missing] = []
    assert curve_of(apart, missing) is None
    assert missing[-1].what == "images of the same streets at all strengths of fog"
    assert "--domain fog --domain_strength 0.0,1.0" in missing[-1].remedy


def test_one_strength_is_no_curve_and_models_without_a_strength_are_listed(tmp_path: Path, results: Path) -> None:
    only = tmp_path / "only"
    write_set(only, "early", "Cityscapes_fog", "fog", FOG, 0.9)
    assert curve_of(only, []) is None
    write_set(only, "early", "Cityscapes_fog-0.0", "fog-0.0", FOG, 0.9)
    missing: list[Missing] = []
    curve = curve_of(only, missing)
    assert curve is not None and list(curve.miou) == ["early"]
    assert any("steady, late on Cityscapes_fog-0.0" in part.what for part in missing)


def test_a_limit_is_reached_between_two_strengths() -> None:
    assert doctest.testmod(severity).failed == 0
    at = np.array([0.0, 0.5, 1.0])
    rising = np.array([[30.0, 60.0, 60.0], [50.0, 50.0, 20.0]])
    assert falls_below(rising, np.array([40.0, 50.0]), at).tolist() == [0.0, 0.5]


@pytest.mark.parametrize("name, value", [("min_miou", "101"), ("settled_tau", "5"), ("settled_regret", "-1")])
def test_limits_that_are_no_numbers_of_their_scale_are_refused(name, value):
    with pytest.raises(GenValError, match=rf"--{name}: expected a number from -?\d+ to \d+, found {value}"):
        parse_settings(CorrelationSettings, [f"--{name}", value])
