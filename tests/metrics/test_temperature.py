"""Temperature searches against the whole grid, one by one, and against the published numbers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genval.metrics import temperature
from genval.metrics.calibration import top1_metrics
from genval.metrics.temperature import (
    GRID,
    Pixels,
    SearchResult,
    ece_at,
    nll_at,
    scale_logits,
    search,
    search_ece,
    search_nll,
    search_per_class,
)
from genval.runtime.errors import GenValError


@st.composite
def pixels(draw):
    """Few pixels, so that the ECE has many local minima; all right, all wrong, tied and extreme ones among them."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    number, classes = draw(st.integers(1, 60)), draw(st.integers(1, 6))
    logits = generator.normal(size=(number, classes)) * draw(st.sampled_from([0.0, 0.5, 4.0, 40.0]))
    labels = generator.integers(0, classes, number)
    accurate = generator.random(number) < draw(st.sampled_from([0.0, 0.5, 1.0]))
    labels = np.where(accurate, logits.argmax(1), labels)
    return Pixels.from_logits(logits, labels)


def slow_ece(logits, labels, temperature):
    scaled = np.exp((logits - logits.max(1, keepdims=True)) / temperature)
    probabilities = scaled / scaled.sum(1, keepdims=True)
    return top1_metrics(probabilities.max(1), probabilities.argmax(1) == labels)["ece"]


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(pixels())
def test_the_search_finds_the_first_minimum_of_the_ece_on_the_grid(some):
    found = search_ece(some)
    every = [ece_at(some, float(temperature))[0] for temperature in GRID]
    assert found.value == min(every)
    assert found.temperature == GRID[int(np.argmin(every))]


@pytest.fixture
def calls(monkeypatch):
    """The calls of the functions that read all pixels."""
    calls = []
    for name in ("ece_at", "_mean_confidence", "_nll"):
        original = getattr(temperature, name)
        monkeypatch.setattr(temperature, name, lambda *args, original=original: calls.append(args) or original(*args))
    return calls


def test_the_search_needs_few_evaluations(calls):
    generator = np.random.default_rng(0)
    logits = 3 * generator.normal(size=(5000, 19))
    labels = (logits / 2 + generator.gumbel(size=logits.shape)).argmax(1)  # drawn as temperature 2 says
    found = search_ece(Pixels.from_logits(logits, labels))
    assert 10 < len(calls) < 60 and found.temperature == pytest.approx(2, abs=0.2)
    assert found.value == pytest.approx(slow_ece(logits, labels, found.temperature), abs=1e-9)


@settings(deadline=None, max_examples=30)
@given(pixels())
def test_the_likelihoods_minimum_is_the_global_one(some):
    found = search_nll(some)
    assert GRID[0] <= found.temperature <= GRID[-1]
    every = [nll_at(some, float(temperature)) for temperature in GRID[::10]]
    assert found.value <= min(every) + 1e-9


def test_void_and_bad_pixels():
    kept = Pixels.from_logits(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([255, 1], np.uint8))
    assert len(kept) == 1 and kept.predictions.tolist() == [1]
    with pytest.raises(GenValError, match="No pixel has a label"):
        Pixels.from_logits(np.zeros((1, 2)), np.array([255]))
    with pytest.raises(GenValError, match="finite"):
        Pixels.from_logits(np.full((1, 2), np.nan), np.array([0]))
    with pytest.raises(GenValError, match="Unknown metric 'brier'"):
        search(kept, "brier")


def test_a_class_temperature_divides_the_pixels_predicted_as_it():
    logits = np.array([[4.0, 2.0, 0.0], [0.0, 2.0, 4.0]])
    scaled = scale_logits(logits, np.array([2.0, 1.0, 4.0]))
    assert scaled.tolist() == [[2.0, 1.0, 0.0], [0.0, 0.5, 1.0]]
    assert scale_logits(logits, 2.0).tolist() == (logits / 2).tolist()
    assert (scale_logits(logits, np.array([2.0, 1.0, 4.0])).argmax(1) == logits.argmax(1)).all()


def test_published_temperatures(golden):
    arrays, expected = golden[0], golden[1]["temperature"]
    some = Pixels.from_logits(arrays["logits"].transpose(0, 2, 3, 1).reshape(-1, 19), arrays["labels"].ravel())
    assert search_ece(some).temperature == expected["best_by_ece_grid_0.5_to_10_step_0.01"]
    by_class = search_per_class(some, grid=np.arange(0.5, 10, 0.05))
    np.testing.assert_allclose(by_class, expected["best_by_ece_per_predicted_class_step_0.05"], rtol=0, atol=1e-6)
    assert ece_at(some, 1.36)[0] == pytest.approx(expected["after"]["ece_15_equal_size_bins"], abs=1e-6)
    assert nll_at(some, 1.36) == pytest.approx(expected["after"]["nll"], abs=1e-6)


def test_threads_do_not_change_the_answer():
    some = Pixels.from_logits(torch.randn(3000, 19, generator=torch.manual_seed(0)).numpy() * 3, np.arange(3000) % 19)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = search_ece(some)
        torch.set_num_threads(2)
        assert search_ece(some).temperature == one.temperature
    finally:
        torch.set_num_threads(before)


def drawn_pixels(number=500, temperature=2.0):
    generator = np.random.default_rng(0)
    logits = 3 * generator.normal(size=(number, 5))
    return Pixels.from_logits(logits, (logits / temperature + generator.gumbel(size=logits.shape)).argmax(1))


def test_derivatives_of_the_likelihood_are_those_of_differences():
    some, step = drawn_pixels(), 1e-4
    before, middle, after = (temperature._nll(some, 0.7 + shift)[0] for shift in (-step, 0, step))
    _, slope, curvature = temperature._nll(some, 0.7)
    assert slope == pytest.approx((after - before) / (2 * step), rel=1e-5)
    assert curvature == pytest.approx((after - 2 * middle + before) / step**2, rel=1e-4)


def test_the_search_of_the_likelihood_needs_few_evaluations(calls):
    search_nll(drawn_pixels())
    assert 4 < len(calls) < 16


def test_the_likelihood_is_lowest_at_the_ends_or_where_its_slope_is_zero():
    right = Pixels.from_logits(np.array([[3.0, 0.0], [0.0, 2.0]]), np.array([0, 1]))
    wrong = Pixels.from_logits(np.array([[0.3, 0.0], [0.0, 0.2]]), np.array([1, 0]))
    for some, end in ((right, GRID[0]), (wrong, GRID[-1])):
        assert search_nll(some) == SearchResult(end, nll_at(some, end))
    # Three quarters of the pixels are right: the best confidence is 3/4, at logits whose difference is log 3.
    for factor in (0.8, 1.0, 2.0, 8.0):
        logits = np.zeros((4, 2))
        logits[:, 0] = factor * np.log(3)
        found = search_nll(Pixels.from_logits(logits, np.array([0, 0, 0, 1])))
        assert found.temperature == pytest.approx(factor, abs=1e-8)
        assert found.value == pytest.approx(-0.75 * np.log(0.75) - 0.25 * np.log(0.25), abs=1e-12)


def test_a_search_is_by_its_metric():
    some = drawn_pixels()
    assert search(some) == search(some, "ece") == search_ece(some)
    assert search(some, "nll") == search_nll(some) != search_ece(some)
    by_class = search_per_class(some, "nll")
    for index in range(5):
        assert by_class[index] == search_nll(some.select(some.predictions == index)).temperature


def test_scaled_logits_keep_their_type():
    logits = np.array([[4, 2], [0, 2]], np.float32)
    for divisor in (2.0, np.array([2.0, 4.0])):
        assert scale_logits(logits, divisor).dtype == np.float32
