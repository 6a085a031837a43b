"""Whether the generator whose images are nearer to unlabelled images of a condition predicts the reference better.

The distance is the CMMD that ControlNet/check_generated.py --reference wrote beside a generated set. Distances are
comparable within a domain only: each has its own reference images.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NotRequired, TypedDict

from genval.artifacts.fingerprint import files_hash
from genval.datasets.items import ALL, find_items
from genval.datasets.layouts import GENERATED_PREFIX, generator_folder
from genval.evaluation.realism import REALISM
from genval.report.predictors import Generator
from genval.report.schema import SYNTHETIC, Comparison, ValueWithInterval
from genval.runtime.commands import Command, Missing
from genval.runtime.errors import GenValError
from genval.runtime.files import read_json

_SCRIPT = "ControlNet/check_generated"


class _Distance(TypedDict):
    value: float
    low: float
    high: float


class _Realism(TypedDict):
    """The part of `realism.json` that is read; earlier versions did not record what was measured."""

    distance: _Distance
    images_hash: NotRequired[str]
    reference_hash: NotRequired[str]
    clip_hash: NotRequired[str]


def read_realism(
    generated: Path, generators: Sequence[Generator], domain: str, preset: str | None, missing: list[Missing]
) -> dict[str, ValueWithInterval]:
    """Return the CMMD of each generator's set of a domain by the predictor's key, as far as it was measured.

    Args:
        generated: the folder of the generated sets.
        generators: those with a results folder of their own have no set in it.
        domain: its name.
        preset: of the commands.
        missing: distances of other images than those of the set now are appended, and those to other reference images
            or by another CLIP model than the first generator's.

    Raises:
        GenValError: a file is damaged.
    """
    found: dict[str, ValueWithInterval] = {}
    first: tuple[str | None, str | None] | None = None
    for index, generator in enumerate(generators):
        folder = generated / generator_folder(generator.name) / domain
        if generator.eval_dir is not None or not (folder / REALISM).exists():
            continue
        realism = read_json(folder / REALISM, _Realism, "Run ControlNet/check_generated.py --reference again.")
        measured_with = realism.get("reference_hash"), realism.get("clip_hash")
        first = first or measured_with
        if realism.get("images_hash") != _images_hash(folder, domain) or measured_with != first:
            flags = {"preset": preset, "domain": domain, "generator": generator.name, "clip": "CLIP"}
            what = f"distance of the images of {generator.name} in {domain} as they are, to the reference of the others"
            missing.append(Missing(what, str(Command(_SCRIPT, {**flags, "reference": "PATH"}))))
            continue
        distance = realism["distance"]
        key = SYNTHETIC if index == 0 else generator.name
        found[key] = ValueWithInterval(distance["value"], distance["low"], distance["high"])
    return found


def _images_hash(folder: Path, domain: str) -> str | None:
    """The hash of the images of a generated set; None where it has none."""
    try:
        items = find_items(f"{GENERATED_PREFIX}{domain}", split=ALL, root=folder, skipped=[])
    except GenValError:
        return None
    return files_hash(item.image for item in items)


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
