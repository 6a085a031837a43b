"""The check of generators on clear images, on made-up results of relis/eval.py."""

from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from report_world import matrix_of, write_set

from genval.report.clear_check import clear_check
from genval.results.finding import NoResultsError

NAMES = ("alpha", "beta", "gamma", "delta", "epsilon", "eta", "theta", "zeta")
RIGHT = {name: 0.9 - 0.05 * index for index, name in enumerate(NAMES)}
CITY = [f"frankfurt_000000_{number:06d}" for number in range(12)]
# Streets are drawn with replacement: the first one twice, the last one never.
STREETS = [CITY[0], *CITY[:-1]]
CLEAR = [f"clear_{number}_{street}" for number, street in enumerate(STREETS)]


def write_results(root: Path, generated: dict[str, float], dataset: str = "Cityscapes_clear") -> None:
    for model, right in RIGHT.items():
        write_set(root, model, "Cityscapes", "clean", CITY, right)
    for model, right in generated.items():
        write_set(root, model, dataset, "clear", CLEAR, right)


def miou(names: list[str], right: float) -> float:
    matrix = sum(matrix_of(name, right) for name in names)
    hits = np.diag(matrix)
    return float(100 * np.mean(hits / (matrix.sum(0) + matrix.sum(1) - hits)))


def test_the_real_frames_are_those_of_the_generated_images(tmp_path: Path) -> None:
    write_results(tmp_path, RIGHT)
    check = clear_check(tmp_path, list(RIGHT), draws=200)
    assert check.real == {model: pytest.approx(miou(STREETS, right)) for model, right in RIGHT.items()}
    assert check.generated == {model: pytest.approx(miou(CLEAR, right)) for model, right in RIGHT.items()}
    expected = scipy.stats.pearsonr(list(check.real.values()), list(check.generated.values()))[0]
    assert check.pearson.value == pytest.approx(expected)
    assert check.pearson.ends and check.pearson.ends[0] <= check.r <= check.pearson.ends[1]
    assert check.passed and (check.images, check.frames) == (12, 11)
    assert "controlnet: r of mIoU" in check.sentence() and "8 segmenters" in check.sentence()


def test_another_ranking_does_not_pass(tmp_path: Path) -> None:
    write_results(tmp_path, dict(zip(RIGHT, reversed(RIGHT.values()), strict=True)), "Cityscapes_img2img_clear")
    check = clear_check(tmp_path, list(RIGHT), "img2img", draws=200)
    assert check.r < -0.9 and not check.passed
    assert "img2img" in check.sentence() and "say nothing" in check.sentence()


def test_models_with_both_results_are_compared(tmp_path: Path) -> None:
    write_results(tmp_path / "real", {})
    write_results(tmp_path / "own", {"alpha": 0.9, "beta": 0.5, "gamma": 0.6})
    check = clear_check(tmp_path / "real", list(RIGHT), "own", generated_eval_dir=tmp_path / "own", draws=200)
    assert list(check.real) == ["alpha", "beta", "gamma"]
    assert check.pearson.low is None and "no interval: too few segmenters: 3" in check.sentence()


def test_missing_results_are_named_with_their_commands(tmp_path: Path) -> None:
    write_results(tmp_path, {})
    with pytest.raises(NoResultsError, match=r"style_transfer\.py --generator img2img --domain clear && .*relis/eval"):
        clear_check(tmp_path, list(RIGHT), "img2img")
    with pytest.raises(NoResultsError, match="--method fourier --domains clear --reference PATH"):
        clear_check(tmp_path, list(RIGHT), "fourier")
    # Two models always agree or disagree completely.
    for model in ("alpha", "beta"):
        write_set(tmp_path, model, "Cityscapes_clear", "clear", CLEAR, RIGHT[model])
    with pytest.raises(NoResultsError, match="at least 3 segmenters on both sets, found 2: no results of gamma"):
        clear_check(tmp_path, list(RIGHT))
    with pytest.raises(NoResultsError, match="found 2: evaluate more segmenters"):
        clear_check(tmp_path, ["alpha", "beta"])
    for model in ("alpha", "beta", "gamma"):
        write_set(tmp_path, model, "Cityscapes_clear", "clear", ["clear_0_weimar_000001_000019"], 0.9)
    with pytest.raises(NoResultsError, match="1 streets of Cityscapes_clear have no results on Cityscapes"):
        clear_check(tmp_path, list(RIGHT))
