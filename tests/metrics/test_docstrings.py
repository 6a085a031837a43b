"""The examples in the docstrings of the metrics run."""

import doctest
import importlib

import pytest

from genval.runtime import tables


@pytest.mark.parametrize(
    "name",
    [
        "bootstrap",
        "calibration",
        "confusion",
        "correlation",
        "division",
        "ood_scores",
        "ranking",
        "reliability",
        "segmentation",
        "temperature",
    ],
)
def test_examples_of_metrics(name):
    outcome = doctest.testmod(importlib.import_module(f"genval.metrics.{name}"))
    assert outcome.attempted > 0 and outcome.failed == 0


def test_examples_of_tables():
    outcome = doctest.testmod(tables)
    assert outcome.attempted > 0 and outcome.failed == 0
