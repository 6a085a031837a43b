"""Whether the generator whose images are nearer to unlabelled images of a condition predicts the reference better.

The distance is the CMMD that ControlNet/check_generated.py --reference wrote beside a generated set. Distances are
comparable within a domain only: each has its own reference images.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from genval.datasets.layouts import generator_folder
from genval.evaluation.realism import REALISM
from genval.report.predictors import Generator
from genval.report.schema import SYNTHETIC, Comparison, ValueWithInterval
from genval.runtime.files import read_json


class _Distance(TypedDict):
    value: float
    low: float
    high: float


class _Realism(TypedDict):
    """The part of `realism.json` that is read."""

    distance: _Distance


def read_realism(generated: Path, generators: Sequence[Generator], domain: str) -> dict[str, ValueWithInterval]:
    """Return the CMMD of each generator's set of a domain by the predictor's key, as far as it was measured.

    Args:
        generated: the folder of the generated sets.
        generators: those with a results folder of their own have no set in it.
        domain: its name.

    Raises:
        GenValError: a file is damaged.
    """
    found = {}
    for index, generator in enumerate(generators):
        path = generated / generator_folder(generator.name) / domain / REALISM
        if generator.eval_dir is None and path.exists():
            distance = read_json(path, _Realism, "Run ControlNet/check_generated.py --reference again.")["distance"]
            key = SYNTHETIC if index == 0 else generator.name
            found[key] = ValueWithInterval(distance["value"], distance["low"], distance["high"])
    return found


def nearer_predicts_better(
    realism: Mapping[str, Mapping[str, ValueWithInterval]], robustness: Mapping[str, Comparison]
) -> tuple[int, int]:
    """Count the pairs of generators of one domain in which the nearer one has the higher r, and all pairs.

    Pairs of equal distances or equal r are not counted.
    """
    agreeing = total = 0
    for domain, distances in realism.items():
        correlation = robustness[domain].correlation if domain in robustness else {}
        known = [
            (distance.value, of.pearson.shown)
            for key, distance in distances.items()
            if (of := correlation.get(key)) is not None and of.pearson.shown is not None and distance.value is not None
        ]
        for (distance, r), (other_distance, other_r) in itertools.combinations(known, 2):
            if distance != other_distance and r != other_r:
                total += 1
                agreeing += (distance < other_distance) == (r > other_r)
    return agreeing, total
