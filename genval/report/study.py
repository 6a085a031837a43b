"""Everything in `correlation.json`: see `genval.report` for what it holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import path_dicts
from genval.datasets import CLASS_SETS, CLASSES
from genval.datasets.corruptions import CORRUPTIONS
from genval.datasets.layouts import CORRUPTED_PREFIX, GENERATED_PREFIX
from genval.report import FORMAT
from genval.report.comparison import CLEAR, CORRUPTED, SYNTHETIC, TRUE, compare, compare_classes
from genval.report.evidence import Evidence, Place, read_evidence, short_names, with_street_sources
from genval.report.figures import Figure, class_figures, ece_figure, mean_iou, miou_figure
from genval.report.ood_comparison import compare_ood_detection
from genval.report.published import PUBLISHED
from genval.report.resampling import draw_images
from genval.report.sample_size import sample_size_curve
from genval.report.scaling import measure_scaling
from genval.report.settings import CorrelationSettings
from genval.report.verdict import answer, verdict
from genval.results.scenes import GATED_SUFFIX, list_models, model_list
from genval.runtime.commands import Command, Missing
from genval.runtime.errors import GenValError
from genval.runtime.paths import resolve
from genval.runtime.seeds import item_seed

# A correlation of two models is always 1 or -1.
FEWEST_COMPARED = 3


def correlate(settings: CorrelationSettings) -> dict[str, Any]:
    """Compare synthetic, clear and corrupted scores with reference scores, as far as there are results.

    Args:
        settings: of report/correlate.py.

    Raises:
        GenValError: there are no results at all, or a file is damaged.
    """
    root = resolve(settings.eval_dir)
    models = list_models(root) if settings.segmenters == "all" else model_list(settings.segmenters, settings.preset)
    if not models:
        raise GenValError(
            f"No results in {root}. "
            "Run: python relis/eval.py --trg_dataset Cityscapes,Cityscapes_fog,ACDC --segmenters all"
        )
    missing: list[Missing] = []
    clear = read_evidence(root, models, Place(settings.clear_dataset, settings.clear_cond), settings.preset, missing)
    robustness: dict[str, Any] = {}
    calibration: dict[str, Any] = {}
    curves: dict[str, Any] = {}
    for domain in settings.domains:
        sides = _read_sides(settings, root, models, domain, clear, missing)
        kept = _compared(sides, [evidence.has() for evidence in sides.values()])
        calibration[domain] = {"ece": None, "scaling": measure_scaling(settings, domain, models, missing)}
        if kept is None:
            continue
        # A baseline that too few of the compared models have is none.
        if CORRUPTED in sides and sides[CORRUPTED].has()[kept].sum() < FEWEST_COMPARED:
            del sides[CORRUPTED]
        seed = item_seed(settings.seed, domain)
        drawn = draw_images(
            {side: evidence.sources for side, evidence in sides.items()}, settings.bootstrap_draws, seed
        )
        names = [models[index] for index in kept]
        classes, flag = choose_classes(domain, sides, settings.class_set)
        robustness[domain] = _robustness(settings, domain, names, kept, sides, drawn, classes, flag)
        curves[domain] = _curve(settings, domain, kept, sides, classes)
        calibration[domain]["ece"] = _calibration(settings, domain, models, sides, drawn)
    ood_detection, ood_figures = compare_ood_detection(settings, models, _clear_figure(settings, clear), missing)
    values: dict[str, Any] = {
        "format": FORMAT,
        "settings": {key: list(value) if isinstance(value, tuple) else value for key, value in vars(settings).items()},
        "models": models,
        "short_names": short_names(models),
        "domains": list(settings.domains),
        "robustness": robustness,
        "calibration": calibration,
        "ood_detection": ood_detection,
        "ood_figures": ood_figures,
        "sample_size": curves,
        "published": PUBLISHED,
        "missing": [{"what": one.what, "command": one.remedy} for one in dict.fromkeys(missing)],
    }
    answers = answer(values)
    return {**values, "answers": answers, "verdict": verdict(values, answers)}


def true_place(domain: str, true_dataset: str | None) -> Place:
    """The reference set of a domain, by `path_dicts.REAL_SETS`, or its condition in another data set.

    Raises:
        GenValError: the table has no such domain.
    """
    if true_dataset is not None:
        return Place(true_dataset, domain)
    if domain not in path_dicts.REAL_SETS:
        raise GenValError(
            f"No reference set is known for the domain {domain!r}: expected one of {', '.join(path_dicts.REAL_SETS)}. "
            "Give --reference_dataset, or add it to REAL_SETS in path_dicts.py."
        )
    return Place(*path_dicts.REAL_SETS[domain])


def synthetic_place(domain: str, gate: bool) -> Place:
    """The generated set of a domain."""
    return Place(f"{GENERATED_PREFIX}{domain}{GATED_SUFFIX if gate else ''}", domain)


def corrupted_place(domain: str) -> Place:
    """The corrupted set of a domain."""
    return Place(f"{CORRUPTED_PREFIX}{domain}", domain)


def choose_classes(domain: str, sides: Mapping[str, Evidence], asked: str) -> tuple[list[int], str | None]:
    """The one class set of all sides, by index, and why it is not all 19.

    Args:
        domain: india is compared over IDD's 17 classes.
        sides: of them, the reference and the synthetic set decide.
        asked: "19" or "17" for a fixed set; "auto" for those labelled in both sets.
    """
    both = np.flatnonzero(sides[TRUE].labelled() & sides[SYNTHETIC].labelled()).tolist()
    if asked != "auto":
        classes = list(CLASS_SETS[asked])
        absent = [CLASSES[index] for index in classes if index not in both]
        return classes, f"not labelled in both sets: {', '.join(absent)}" if absent else None
    if domain == "india":
        both = [index for index in both if index in CLASS_SETS["17"]]
    absent = [name for index, name in enumerate(CLASSES) if index not in both]
    return both, f"not labelled in both sets: {', '.join(absent)}" if absent else None


def _read_sides(
    settings: CorrelationSettings,
    root: Path,
    models: list[str],
    domain: str,
    clear: Evidence | None,
    missing: list[Missing],
) -> dict[str, Evidence]:
    """The evidence on each side that there is; images made from one street share their source."""
    generation = Command("ControlNet/style_transfer", {"preset": settings.preset, "domain": domain})
    true = read_evidence(root, models, true_place(domain, settings.reference_dataset), settings.preset, missing)
    synthetic = read_evidence(
        root, models, synthetic_place(domain, settings.gate), settings.preset, missing, str(generation)
    )
    corrupted = None
    if domain in CORRUPTIONS:
        corruption = Command("relis/corrupt", {"preset": settings.preset, "domains": domain})
        corrupted = read_evidence(root, models, corrupted_place(domain), settings.preset, missing, str(corruption))
    streets = {SYNTHETIC: synthetic, CLEAR: clear, CORRUPTED: corrupted}
    sides = {side: with_street_sources(evidence) for side, evidence in streets.items() if evidence is not None}
    return {**({TRUE: true} if true is not None else {}), **sides}


def _compared(sides: Mapping[str, Evidence], has: Sequence[np.ndarray]) -> np.ndarray | None:
    """Indices of the models that can be compared, or None where they are too few.

    A model needs the reference, the synthetic and the clear set; without corrupted results it is excluded from that
    comparison alone.
    """
    if TRUE not in sides or SYNTHETIC not in sides:
        return None
    needed = [mask for side, mask in zip(sides, has, strict=True) if side != CORRUPTED]
    kept = np.flatnonzero(np.all(needed, axis=0))
    return kept if len(kept) >= FEWEST_COMPARED else None


def _sets(sides: Mapping[str, Evidence]) -> dict[str, Any]:
    return {
        side: {**dataclasses.asdict(sides[side].place), "images": len(sides[side].images)} if side in sides else None
        for side in (TRUE, SYNTHETIC, CLEAR, CORRUPTED)
    }


def _robustness(
    settings: CorrelationSettings,
    domain: str,
    names: list[str],
    kept: np.ndarray,
    sides: Mapping[str, Evidence],
    drawn: Mapping[str, np.ndarray],
    classes: list[int],
    flag: str | None,
) -> dict[str, Any]:
    seed = item_seed(settings.seed, f"{domain} models")
    figures = {side: miou_figure(evidence, drawn[side], classes).of(kept) for side, evidence in sides.items()}
    by_class = {
        side: [figure.of(kept) for figure in class_figures(evidence, drawn[side], classes)]
        for side, evidence in sides.items()
        if side != CORRUPTED
    }
    class_names = [CLASSES[index] for index in classes]
    return {
        "figure": "miou",
        "unit": "percent",
        "better": "higher",
        "sets": _sets(sides),
        "classes": class_names,
        "classes_flag": flag,
        **compare(names, figures, True, settings.bootstrap_draws, seed),
        "per_class": compare_classes(class_names, by_class, settings.bootstrap_draws, seed),
    }


def _calibration(
    settings: CorrelationSettings,
    domain: str,
    models: list[str],
    sides: Mapping[str, Evidence],
    drawn: Mapping[str, np.ndarray],
) -> dict[str, Any] | None:
    with_bins = {side: evidence for side, evidence in sides.items() if evidence.has_bins().any()}
    kept = _compared(with_bins, [evidence.has_bins() for evidence in with_bins.values()])
    if kept is None:
        return None
    if CORRUPTED in with_bins and with_bins[CORRUPTED].has_bins()[kept].sum() < FEWEST_COMPARED:
        del with_bins[CORRUPTED]
    figures = {side: ece_figure(evidence, drawn[side]).of(kept) for side, evidence in with_bins.items()}
    seed = item_seed(settings.seed, f"{domain} models")
    return {
        "figure": "ece",
        "unit": "percent",
        "better": "lower",
        "sets": _sets(with_bins),
        **compare([models[index] for index in kept], figures, False, settings.bootstrap_draws, seed),
    }


def _curve(
    settings: CorrelationSettings, domain: str, kept: np.ndarray, sides: Mapping[str, Evidence], classes: list[int]
) -> dict[str, Any]:
    true = mean_iou(sides[TRUE].counts[:, kept].sum(0), classes)
    return sample_size_curve(
        sides[SYNTHETIC].counts[:, kept],
        lambda counts: mean_iou(counts, classes),
        true,
        settings.bootstrap_draws,
        item_seed(settings.seed, f"{domain} sample size"),
        settings.settled_tau,
        settings.settled_regret,
    )


def _clear_figure(settings: CorrelationSettings, clear: Evidence | None) -> Figure | None:
    """Clear-weather mIoU: what one knows of a model without generating anything."""
    if clear is None:
        return None
    drawn = draw_images({CLEAR: clear.sources}, settings.bootstrap_draws, item_seed(settings.seed, CLEAR))
    return miou_figure(clear, drawn[CLEAR], np.flatnonzero(clear.labelled()).tolist())
