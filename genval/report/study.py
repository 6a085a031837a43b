"""Everything in `correlation.json`, computed from the results folders."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

import path_dicts
from genval.datasets import CLASS_SETS, label_space_of
from genval.datasets.corruptions import CORRUPTIONS
from genval.datasets.layouts import CORRUPTED_PREFIX, merged_as
from genval.report.clear_check import CLEAR_DOMAIN, REAL, clear_check
from genval.report.comparison import FEWEST_COMPARED, FEWEST_MODELS, compare, compare_classes
from genval.report.evidence import (
    Evidence,
    Place,
    evaluation,
    read_evidence,
    require_same_models,
    short_names,
    with_street_sources,
)
from genval.report.families import family_of
from genval.report.few_labels import FEWEST_IMAGES, combine
from genval.report.ood_comparison import compare_ood_detection
from genval.report.predictors import Generator, list_predictors, parse_generators
from genval.report.published import PUBLISHED
from genval.report.realism import read_realism
from genval.report.resampling import draw_images
from genval.report.sample_size import sample_size_curve
from genval.report.scaling import ImageMarks, measure_scaling
from genval.report.schema import (
    CLEAR,
    CORRUPTED,
    SYNTHETIC,
    TRUE,
    ComparedSet,
    Comparison,
    DomainCalibration,
    FewLabels,
    Findings,
    GeneratorCheck,
    MissingPart,
    Report,
    SampleSizeCurve,
    SeverityCurve,
    ValueWithInterval,
)
from genval.report.scores import Scores, class_scores, ece_scores, mean_iou, miou_scores
from genval.report.settings import CorrelationSettings
from genval.report.severity import severity_curve
from genval.report.unlabelled import Thresholds, label_free_scores, parse_label_free
from genval.report.verdict import answer, verdict
from genval.results.finding import NoResultsError, list_models
from genval.results.provenance import Provenance, describe_classes, require_different_models
from genval.results.scenes import model_list
from genval.runtime.commands import Command, Missing
from genval.runtime.errors import GenValError
from genval.runtime.paths import resolve
from genval.runtime.seeds import item_seed

# A model without results on one of these sides is not compared in a domain.
_NEEDED = (TRUE, SYNTHETIC, CLEAR)


@dataclasses.dataclass(frozen=True)
class _Domain:
    """What one domain is compared from."""

    name: str
    sides: dict[str, Evidence]  # without baselines that too few of the compared models have
    kept: np.ndarray  # indices of the models compared in mIoU
    weights: dict[str, np.ndarray]  # how often each image is drawn, float64 (draws, images) by side
    classes: list[int]
    classes_flag: str | None


def correlate(settings: CorrelationSettings) -> Report:
    """Compare synthetic, clear and corrupted scores with reference scores, as far as there are results.

    Args:
        settings: of report/correlate.py.

    Raises:
        GenValError: there are no results at all, or a file is damaged.
    """
    root = resolve(settings.eval_dir)
    models = list_models(root) if settings.segmenters == "all" else model_list(settings.segmenters, settings.preset)
    if not models:
        preset = f"--preset {settings.preset} " if settings.preset else ""
        raise GenValError(
            f"No results in {root}. Run: python relis/eval.py {preset}"
            "--trg_dataset Cityscapes,Cityscapes_fog,ACDC --segmenters all"
        )
    generators = parse_generators(settings.generators, settings.domains, settings.preset)
    label_free = parse_label_free(settings.label_free)
    missing: list[Missing] = []
    clear_sets: dict[str, Evidence | None] = {}  # by name: merged classes of a reference set give it another
    robustness: dict[str, Comparison] = {}
    calibration: dict[str, DomainCalibration] = {}
    curves: dict[str, SampleSizeCurve] = {}
    severity: dict[str, SeverityCurve] = {}
    realism: dict[str, dict[str, ValueWithInterval]] = {}
    made: dict[str, Provenance] = {}
    marks: ImageMarks = {}
    thresholds: Thresholds = {}
    for name in settings.domains:
        reference = reference_place(name, settings.reference_dataset)
        clear = Place(merged_as(settings.clear_dataset, reference.dataset), settings.clear_cond)
        if clear.dataset not in clear_sets:
            clear_sets[clear.dataset] = read_evidence(root, models, clear, settings.preset, missing)
        sides = _read_sides(settings, generators, models, name, reference, clear_sets[clear.dataset], missing)
        made |= require_same_models(sides.values(), root, settings.preset)
        require_different_models({model: one.identity for model, one in made.items()})
        scaling = measure_scaling(settings, generators[0], name, models, missing, made, marks)
        domain = _prepare(settings, name, sides)
        ece = None
        if domain is not None:
            sources = {
                side: of_side
                for side, of_side in domain.sides.items()
                if side in _NEEDED and (side != SYNTHETIC or generators[0].eval_dir is None)
            }
            estimates = label_free_scores(
                label_free,
                root,
                models,
                domain.kept,
                sources,
                domain.weights,
                domain.classes,
                thresholds,
                missing,
                settings.preset,
            )
            robustness[name] = _compare_miou(settings, domain, models, estimates)
            curves[name] = _measure_sample_size(settings, domain)
            ece = _compare_ece(settings, domain, models)
        calibration[name] = DomainCalibration(ece, scaling)
        by_strength = severity_curve(
            generators[0].root(settings.eval_dir),
            models,
            generators[0],
            name,
            missing,
            gate=settings.gate,
            min_miou=settings.min_miou,
            draws=settings.bootstrap_draws,
            seed=item_seed(settings.seed, f"{name} severity"),
            preset=settings.preset,
        )
        if by_strength is not None:
            severity[name] = by_strength
        if distances := read_realism(resolve(settings.generated_dir), generators, name, settings.preset, missing):
            realism[name] = distances
    any_clear = clear_sets.get(settings.clear_dataset) or next(iter(clear_sets.values()))
    ood_detection, ood_means = compare_ood_detection(settings, models, _clear_miou(settings, any_clear), missing, made)
    real = next((one for one in clear_sets.values() if one is not None and one.place == REAL), None)
    checks = [_check_on_clear(settings, generator, models, real, missing) for generator in generators]
    findings = Findings(
        settings={key: list(value) if isinstance(value, tuple) else value for key, value in vars(settings).items()},
        models=models,
        short_names=short_names(models),
        families={model: family_of(model) for model in models},
        made_by={model: f"{one.identity} in {one.precision}" for model, one in sorted(made.items())},
        domains=list(settings.domains),
        predictors=list_predictors(generators, label_free),
        checks=checks,
        robustness=robustness,
        calibration=calibration,
        ood_detection=ood_detection,
        ood_means=ood_means,
        sample_size=curves,
        severity=severity,
        realism=realism,
        published=PUBLISHED,
        missing=[MissingPart.of(part) for part in dict.fromkeys(missing)],
    )
    answers = answer(findings)
    return Report.of_findings(findings, answers, verdict(findings, answers))


def _check_on_clear(
    settings: CorrelationSettings,
    generator: Generator,
    models: Sequence[str],
    real: Evidence | None,
    missing: list[Missing],
) -> GeneratorCheck:
    """Check a generator on clear images; without results the check is appended to what is missing."""
    try:
        check = clear_check(
            resolve(settings.eval_dir),
            models,
            generator.name,
            generated_eval_dir=None if generator.eval_dir is None else resolve(generator.eval_dir),
            seed=settings.seed,
            preset=settings.preset,
            draws=settings.bootstrap_draws,
            real=real,
        )
    except NoResultsError as error:
        place = generator.place(CLEAR_DOMAIN, gate=False)
        command = evaluation(generator.root(settings.eval_dir), models, place, settings.preset)
        made_by = _generation(generator, CLEAR_DOMAIN, settings.preset)
        what = f"the check of {generator.name} on generated clear images"
        missing.append(Missing(what, f"{made_by} && {command}" if made_by else command))
        return GeneratorCheck(generator.name, None, str(error), None)
    return GeneratorCheck(generator.name, check.passed, check.sentence(), check.pearson)


def reference_place(domain: str, reference_dataset: str | None) -> Place:
    """Return the reference set of a domain, by `path_dicts.REAL_SETS`, or its condition in another data set.

    Raises:
        GenValError: the table has no such domain.
    """
    if reference_dataset is not None:
        return Place(reference_dataset, domain)
    if domain not in path_dicts.REAL_SETS:
        raise GenValError(
            f"No reference set is known for the domain {domain!r}: expected one of {', '.join(path_dicts.REAL_SETS)}. "
            "Give --reference_dataset, or add it to REAL_SETS in path_dicts.py."
        )
    return Place(*path_dicts.REAL_SETS[domain])


def corrupted_place(domain: str) -> Place:
    """Return the corrupted set of a domain."""
    return Place(f"{CORRUPTED_PREFIX}{domain}", domain)


def choose_classes(domain: str, sides: Mapping[str, Evidence], asked: str) -> tuple[list[int], str | None]:
    """Choose the one class set of all sides, by index, and say why it is not all 19.

    Args:
        domain: india is compared over IDD's 17 classes.
        sides: of them, the reference and the generated sets decide.
        asked: "19" or "17" for a fixed set; "auto" for those labelled in all these sets. Merged classes have no fixed
            sets.
    """
    labelled = [evidence.labelled() for side, evidence in sides.items() if side not in (CLEAR, CORRUPTED)]
    both = np.flatnonzero(np.all(labelled, axis=0)).tolist()
    space = label_space_of(sides[TRUE].place.dataset)
    if space.groups:
        absent = [name for index, name in enumerate(space.names) if index not in both]
        text = f"all sets are evaluated in {describe_classes({'class_groups': space.groups.to_json()})}"
        return both, f"{text}; not labelled in both sets: {', '.join(absent)}" if absent else text
    if asked != "auto":
        classes = list(CLASS_SETS[asked])
        absent = [space.names[index] for index in classes if index not in both]
        return classes, f"not labelled in both sets: {', '.join(absent)}" if absent else None
    if domain == "india":
        both = [index for index in both if index in CLASS_SETS["17"]]
    absent = [name for index, name in enumerate(space.names) if index not in both]
    return both, f"not labelled in both sets: {', '.join(absent)}" if absent else None


def _read_sides(
    settings: CorrelationSettings,
    generators: Sequence[Generator],
    models: list[str],
    domain: str,
    reference_set: Place,
    clear: Evidence | None,
    missing: list[Missing],
) -> dict[str, Evidence]:
    """Read the evidence on each side that has results; images made from one street share their source."""
    root = resolve(settings.eval_dir)

    def in_same_classes(place: Place) -> Place:
        return Place(merged_as(place.dataset, reference_set.dataset), place.cond)

    reference = read_evidence(root, models, reference_set, settings.preset, missing)
    streets: dict[str, Evidence | None] = {}
    for index, generator in enumerate(generators):
        place = in_same_classes(generator.place(domain, settings.gate))
        made_by = _generation(generator, domain, settings.preset)
        found = read_evidence(generator.root(settings.eval_dir), models, place, settings.preset, missing, made_by)
        streets[SYNTHETIC if index == 0 else generator.name] = found
    corrupted = None
    if domain in CORRUPTIONS:
        corruption = Command("relis/corrupt", {"preset": settings.preset, "domains": domain})
        place = in_same_classes(corrupted_place(domain))
        corrupted = read_evidence(root, models, place, settings.preset, missing, str(corruption))
    streets |= {CLEAR: clear, CORRUPTED: corrupted}
    sides = {side: with_street_sources(evidence, domain) for side, evidence in streets.items() if evidence is not None}
    return {**({TRUE: reference} if reference is not None else {}), **sides}


def _generation(generator: Generator, domain: str, preset: str | None) -> str:
    """The command that makes a generator's images; empty where another tool makes them."""
    flags = {"preset": preset, "domain": domain}
    if generator.eval_dir is not None or generator.name not in path_dicts.GENERATORS:
        return ""
    if generator.name in path_dicts.TRANSFER_METHODS:
        method = {"preset": preset, "method": generator.name, "reference": "PATH", "domains": domain}
        return str(Command("relis/corrupt", method))
    if generator.name != path_dicts.DEFAULT_GENERATOR:
        flags["generator"] = generator.name
    return str(Command("ControlNet/style_transfer", flags))


def _compared(sides: Mapping[str, Evidence], has: Sequence[np.ndarray]) -> np.ndarray | None:
    """Indices of the models that can be compared, or None where they are too few.

    A model needs the reference, the synthetic and the clear set; without results on another side it is excluded from
    that comparison alone.
    """
    if TRUE not in sides or SYNTHETIC not in sides:
        return None
    needed = [mask for side, mask in zip(sides, has, strict=True) if side in _NEEDED]
    kept = np.flatnonzero(np.all(needed, axis=0))
    return kept if len(kept) >= FEWEST_COMPARED else None


def _prepare(settings: CorrelationSettings, name: str, sides: dict[str, Evidence]) -> _Domain | None:
    """Choose models and classes and draw images; None where too few models can be compared."""
    kept = _compared(sides, [evidence.has() for evidence in sides.values()])
    if kept is None:
        return None
    sides = _without_small_baseline(sides, kept, Evidence.has)
    sources = {side: evidence.sources for side, evidence in sides.items()}
    weights = draw_images(sources, settings.bootstrap_draws, item_seed(settings.seed, name))
    classes, flag = choose_classes(name, sides, settings.class_set)
    return _Domain(name, sides, kept, weights, classes, flag)


def _without_small_baseline(
    sides: dict[str, Evidence], kept: np.ndarray, has: Callable[[Evidence], np.ndarray]
) -> dict[str, Evidence]:
    """Remove the sides that have results of too few of the compared models."""
    return {
        side: evidence
        for side, evidence in sides.items()
        if side in _NEEDED or has(evidence)[kept].sum() >= FEWEST_COMPARED
    }


def _sets(sides: Mapping[str, Evidence]) -> dict[str, ComparedSet | None]:
    return {
        side: ComparedSet(sides[side].place.dataset, sides[side].place.cond, len(sides[side].images))
        if side in sides
        else None
        for side in dict.fromkeys((TRUE, SYNTHETIC, CLEAR, CORRUPTED, *sides))
    }


def _compare_miou(
    settings: CorrelationSettings, domain: _Domain, models: Sequence[str], estimates: Mapping[str, Scores]
) -> Comparison:
    seed = item_seed(settings.seed, f"{domain.name} models")
    scores = {
        side: miou_scores(evidence, domain.weights[side], domain.classes).select(domain.kept)
        for side, evidence in domain.sides.items()
    }
    enough = {name: one for name, one in estimates.items() if np.isfinite(one.value).sum() >= FEWEST_COMPARED}
    by_class = {
        side: [of.select(domain.kept) for of in class_scores(evidence, domain.weights[side], domain.classes)]
        for side, evidence in domain.sides.items()
        if side in _NEEDED
    }
    names = label_space_of(domain.sides[TRUE].place.dataset).names
    class_names = [names[index] for index in domain.classes]
    comparison = compare(
        [models[index] for index in domain.kept],
        {**scores, **enough},
        metric="miou",
        higher_is_better=True,
        sets=_sets(domain.sides),
        draws=settings.bootstrap_draws,
        seed=seed,
    )
    return dataclasses.replace(
        comparison,
        classes=class_names,
        classes_flag=domain.classes_flag,
        per_class=compare_classes(class_names, by_class, settings.bootstrap_draws, seed),
        few_labels=_with_few_labels(comparison, scores, len(domain.sides[TRUE].images)),
    )


def _with_few_labels(comparison: Comparison, scores: Mapping[str, Scores], images: int) -> FewLabels | None:
    """Combine the scores on the reference images with those on the generated set; None where they are too few."""
    if len(comparison.models) < FEWEST_MODELS or images < FEWEST_IMAGES:
        return None
    if not all(np.isfinite(scores[side].value).all() for side in (TRUE, SYNTHETIC)):
        return None
    found = combine(scores[TRUE], scores[SYNTHETIC], images)
    ends = zip(found.value.tolist(), found.low.tolist(), found.high.tolist(), strict=True)
    models = {
        one.model: ValueWithInterval(value, low, high)
        for one, (value, low, high) in zip(comparison.models, ends, strict=True)
    }
    return FewLabels(images, found.worth if np.isfinite(found.worth) else None, models)


def _compare_ece(settings: CorrelationSettings, domain: _Domain, models: Sequence[str]) -> Comparison | None:
    with_bins = {side: evidence for side, evidence in domain.sides.items() if evidence.has_bins().any()}
    kept = _compared(with_bins, [evidence.has_bins() for evidence in with_bins.values()])
    if kept is None:
        return None
    with_bins = _without_small_baseline(with_bins, kept, Evidence.has_bins)
    scores = {side: ece_scores(evidence, domain.weights[side]).select(kept) for side, evidence in with_bins.items()}
    return compare(
        [models[index] for index in kept],
        scores,
        metric="ece",
        higher_is_better=False,
        sets=_sets(with_bins),
        draws=settings.bootstrap_draws,
        seed=item_seed(settings.seed, f"{domain.name} models"),
    )


def _measure_sample_size(settings: CorrelationSettings, domain: _Domain) -> SampleSizeCurve:
    return sample_size_curve(
        domain.sides[SYNTHETIC].counts[:, domain.kept],
        lambda counts: mean_iou(counts, domain.classes),
        mean_iou(domain.sides[TRUE].counts[:, domain.kept].sum(0), domain.classes),
        draws=settings.bootstrap_draws,
        seed=item_seed(settings.seed, f"{domain.name} sample size"),
        settled_tau=settings.settled_tau,
        settled_regret=settings.settled_regret,
    )


def _clear_miou(settings: CorrelationSettings, clear: Evidence | None) -> Scores | None:
    """Clear-weather mIoU, which is known of a model without generating anything."""
    if clear is None:
        return None
    drawn = draw_images({CLEAR: clear.sources}, settings.bootstrap_draws, item_seed(settings.seed, CLEAR))
    return miou_scores(clear, drawn[CLEAR], np.flatnonzero(clear.labelled()).tolist())
