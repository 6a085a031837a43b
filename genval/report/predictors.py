"""The predictors of a report: what reference scores are predicted from, and where the results of each are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import path_dicts
from genval.datasets.layouts import domain_of, generated_set
from genval.report.evidence import Place
from genval.report.schema import CLEAR, CORRUPTED, NOTHING, SYNTHETIC, TRUE, UNLABELLED, Predictor
from genval.report.unlabelled import NAMES, label_free_predictors
from genval.results.scenes import GATED_SUFFIX
from genval.runtime.errors import GenValError
from genval.runtime.paths import resolve

# Names of other predictors, and of the folder prefix of the corrupted sets.
_RESERVED = (TRUE, SYNTHETIC, CLEAR, CORRUPTED, "corrupt", *NAMES)
# Generators that are trained on, or copy the appearance of, unlabelled images of the condition.
_FROM_UNLABELLED = ("translate", *path_dicts.TRANSFER_METHODS)


@dataclass(frozen=True)
class Generator:
    """A generator of `--generators`, and where the results on its sets are."""

    name: str
    eval_dir: str | None  # of its own results, as the flag names it; None for those in --eval_dir

    def place(self, domain: str, gate: bool) -> Place:
        """Return the generator's set of a domain; a folder of results of its own holds `Cityscapes_{domain}`."""
        name = generated_set(domain) if self.eval_dir is not None else generated_set(domain, self.name)
        return Place(name + (GATED_SUFFIX if gate else ""), domain_of(name))

    def root(self, eval_dir: str) -> Path:
        """Return the folder of the results on its sets."""
        return resolve(self.eval_dir or eval_dir)


def parse_generators(entries: Sequence[str], domains: Sequence[str], preset: str | None) -> list[Generator]:
    """Read `--generators`: each entry is NAME, or NAME=PATH with the folder of the results on its sets.

    Args:
        entries: of the flag.
        domains: for the command in the error.
        preset: likewise.

    Raises:
        GenValError: a name is reserved or given twice, or PATH is not a folder of results.
    """
    generators = []
    for entry in entries:
        name, equals, path = entry.partition("=")
        if not name or name in _RESERVED or "/" in name or (equals and not path):
            raise GenValError(
                f"--generators: expected NAME or NAME=EVAL_DIR, where NAME is none of {', '.join(_RESERVED)}; "
                f"found {entry!r}."
            )
        if equals:
            _require_results(name, path, domains, preset)
        generators.append(Generator(name, path if equals else None))
    names = [generator.name for generator in generators]
    if len(set(names)) < len(names) or not names:
        raise GenValError(f"--generators: expected different names, found {', '.join(names) or 'none'}.")
    return generators


def list_predictors(generators: Sequence[Generator], label_free: Sequence[str] = ()) -> list[Predictor]:
    """List what reference scores are predicted from; the first generator is `synthetic`.

    Args:
        generators: of `parse_generators`.
        label_free: names of label-free estimates.
    """
    several = len(generators) > 1 or generators[0].name != path_dicts.DEFAULT_GENERATOR
    return [
        *(
            Predictor(
                SYNTHETIC if index == 0 else generator.name,
                generator.name if several else "generated",
                UNLABELLED if generator.name in _FROM_UNLABELLED else NOTHING,
                is_generator=True,
            )
            for index, generator in enumerate(generators)
        ),
        Predictor(CLEAR, "clear weather", NOTHING),
        Predictor(CORRUPTED, "corruptions", NOTHING),
        *label_free_predictors(label_free),
    ]


def _require_results(name: str, path: str, domains: Sequence[str], preset: str | None) -> None:
    """Refuse a folder that does not hold results of relis/eval.py; a folder of images gets the command for them."""
    folder = resolve(path)
    if any(folder.glob("*/*/*/*/metrics.json")):
        return
    sets = ",".join(map(generated_set, domains))
    flags = f"{f'--preset {preset} ' if preset else ''}--segmenters all --trg_dataset {sets}"
    command = f"python relis/eval.py {flags} --generated_dir {path} --eval_dir results/eval_{name}"
    if any(folder.glob("leftImg8bit")) or any(folder.glob("*/leftImg8bit")):
        raise GenValError(
            f"--generators {name}={path}: the folder holds images, expected results of relis/eval.py. "
            f"Run: {command} and give {name}=results/eval_{name}"
        )
    raise GenValError(f"--generators {name}={path}: found no results of relis/eval.py in {folder}. Run: {command}")
