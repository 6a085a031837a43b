"""What `correlation.json` holds, as frozen dataclasses: report/correlate.py writes them, tables and page read them.

Scores are in percent. `synthetic` is the generated set of a domain, `true` its reference set, `clear` the clear-weather
set and `corrupted` the set with classic corruptions. With several generators, `synthetic` is the set of the first one,
and each other generator is a side with the generator's name. Predictors are all sides but `true`, and
`Findings.predictors` lists them. Baselines are the predictors that synthetic is compared with. `JSON_KEYS` lists the
fields whose key in the file has another name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, TypedDict

from genval.runtime.commands import Missing
from genval.runtime.errors import GenValError
from genval.runtime.files import read_json
from genval.runtime.json_record import JsonRecord, ShapeError, decode, encode, join

FORMAT = 4

TRUE = "true"
SYNTHETIC = "synthetic"
CLEAR = "clear"
CORRUPTED = "corrupted"

Ends = list[float]
"""A 95 % interval, [low, high]."""


NOTHING = "nothing"
UNLABELLED = "unlabelled images"


@dataclass(frozen=True)
class Predictor(JsonRecord):
    """A source of scores from which the reference scores are predicted."""

    key: str  # of its entries in the comparisons: synthetic, clear, corrupted or the name of another generator
    name: str  # for the reader
    needs: str  # what it needs of the condition: nothing, or unlabelled images
    is_generator: bool = False

    @property
    def is_label_free(self) -> bool:
        """Whether it is an estimate from unlabelled images without generation."""
        return self.needs == UNLABELLED and not self.is_generator


@dataclass(frozen=True)
class ValueWithInterval(JsonRecord):
    """A value and the ends of its one interval."""

    value: float | None
    low: float | None
    high: float | None

    @classmethod
    def of_ends(cls, value: float | None, ends: Ends | None) -> Self:
        """Join a value and an interval; without an interval, low and high are None."""
        low, high = ends or (None, None)
        return cls(value, low, high)

    @property
    def ends(self) -> tuple[float, float] | None:
        """The interval, or None."""
        return None if self.low is None or self.high is None else (self.low, self.high)


@dataclass(frozen=True)
class PearsonEstimate(JsonRecord):
    """Pearson's r, or a difference of two, as observed and corrected for the noise of the images."""

    value: float | None  # observed
    corrected: float | None  # of noise-free scores; None where noise explains all of the variance of a side
    low: float | None  # of the interval of the corrected value
    high: float | None
    refused: str | None  # why there is no interval

    @property
    def shown(self) -> float | None:
        """The corrected value; without one, the observed value."""
        return self.value if self.corrected is None else self.corrected

    @property
    def ends(self) -> tuple[float, float] | None:
        """The interval, or None."""
        return None if self.low is None or self.high is None else (self.low, self.high)


@dataclass(frozen=True)
class Estimate(JsonRecord):
    """A rank correlation, or a difference of two, as observed; percentile intervals over what was resampled."""

    value: float | None
    over_models: Ends | None
    over_images: Ends | None
    over_both: Ends | None

    @property
    def ends(self) -> Ends | None:
        """The interval over models and images, or over models; an interval over images alone would look too narrow."""
        return self.over_both or self.over_models

    def with_one_interval(self) -> ValueWithInterval:
        """Return the value with `ends`."""
        return ValueWithInterval.of_ends(self.value, self.ends)


@dataclass(frozen=True)
class Coefficients(JsonRecord):
    """The correlation of a predictor's scores with the reference scores, across models."""

    models: int  # number of models compared
    pearson: PearsonEstimate
    spearman: Estimate
    kendall: Estimate


@dataclass(frozen=True)
class CoefficientDifference(Coefficients):
    """The difference synthetic - baseline of each coefficient, from the same draws and the same models."""

    share_above: float | None  # share of the draws in which the corrected r of the synthetic set is larger


@dataclass(frozen=True)
class ComparedSet(JsonRecord):
    """The images of one side."""

    dataset: str
    cond: str | None = None  # of scenes only
    images: int | None = None  # of scenes only

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in super().to_json().items() if value is not None}


@dataclass(frozen=True)
class ModelScores(JsonRecord):
    """The score of one model on each side; intervals are over images."""

    model: str
    scores: dict[str, ValueWithInterval | None]  # by side; None without results

    def to_json(self) -> dict[str, Any]:
        return {"model": self.model, **encode(self.scores)}

    @classmethod
    def from_json(cls, value: Any, key: str = "") -> Self:
        model, others = _split_model(value, key)
        return cls(model, decode(dict[str, ValueWithInterval | None], others, key))


@dataclass(frozen=True)
class Ranking(JsonRecord):
    """Which model a predictor chooses, and what that choice costs on the reference set."""

    chosen: str
    best: str  # on the reference set
    top_1: bool  # whether the chosen model has the best reference score
    top_5: float | None  # share of the five best models in common; None with five models or fewer
    regret: ValueWithInterval  # points of the reference score lost by the choice; interval over images


@dataclass(frozen=True)
class ClassCoefficients(JsonRecord):
    """The correlation of one class's IoU with the reference IoU."""

    pearson: PearsonEstimate
    spearman: ValueWithInterval
    kendall: ValueWithInterval


@dataclass(frozen=True)
class ClassComparison(JsonRecord):
    """The comparison of one class."""

    synthetic: ClassCoefficients | None
    clear: ClassCoefficients | None
    difference: PearsonEstimate | None  # synthetic - clear


@dataclass(frozen=True)
class FewLabels(JsonRecord):
    """Scores from the labelled reference images and the generated set together (`few_labels.combine`)."""

    images: int  # labelled reference images
    worth: float | None  # how many labelled images order the models as well as the generated set; None: infinite
    models: dict[str, ValueWithInterval]  # by model, in percent


@dataclass(frozen=True)
class Comparison(JsonRecord):
    """How well the scores of each predictor's set predict the scores on the reference set (`comparison.compare`)."""

    JSON_KEYS: ClassVar = {"metric": "figure"}

    metric: str  # miou, ece, auroc, ...
    unit: str
    better: str  # higher or lower
    sets: dict[str, ComparedSet | None]  # by side
    models: list[ModelScores]
    correlation: dict[str, Coefficients | None]  # by predictor
    difference: dict[str, CoefficientDifference | None]  # by baseline
    beats: dict[str, str | None]  # by baseline: whether the interval of Pearson's difference is above 0: yes, no, ...
    ranking: dict[str, Ranking | None]  # by predictor
    bias: ValueWithInterval  # mean of synthetic - reference over models; interval over images
    classes: list[str] | None = None  # mIoU only: the one class set of every side
    classes_flag: str | None = None  # mIoU only: why they are fewer than 19
    per_class: dict[str, ClassComparison] | None = None  # mIoU only
    few_labels: FewLabels | None = None  # mIoU only, from four models and four reference images on

    def against(self, baseline: str) -> tuple[Coefficients | None, CoefficientDifference | None]:
        """Return the correlation of a baseline, and the difference of synthetic from it; None where not compared."""
        return self.correlation.get(baseline), self.difference.get(baseline)

    def to_json(self) -> dict[str, Any]:
        values = super().to_json()
        classes, flag, per_class = (values.pop(name) for name in ("classes", "classes_flag", "per_class"))
        few_labels = values.pop("few_labels")
        if classes is None:
            return values
        if few_labels is not None:
            values["few_labels"] = few_labels
        first = {name: values.pop(name) for name in ("figure", "unit", "better", "sets")}
        return {**first, "classes": classes, "classes_flag": flag, **values, "per_class": per_class}


@dataclass(frozen=True)
class ScaledModel(JsonRecord):
    """The ECE of one model on the reference set, in percent."""

    model: str
    before: float
    after: dict[str, float | None]  # by source of the temperature; None where not computed

    def to_json(self) -> dict[str, Any]:
        return {"model": self.model, "before": self.before, **self.after}

    @classmethod
    def from_json(cls, value: Any, key: str = "") -> Self:
        model, others = _split_model(value, key)
        if "before" not in others:
            raise ShapeError(join(key, "before"), "a value", "no such key")
        before = decode(float, others.pop("before"), join(key, "before"))
        return cls(model, before, decode(dict[str, float | None], others, key))


@dataclass(frozen=True)
class Improvement(JsonRecord):
    """The share of the models whose ECE is lower after scaling, with Wilson's interval."""

    models: int  # number of models tried with temperatures of this source
    share: float | None
    low: float | None
    high: float | None
    before: float | None  # mean ECE of these models before scaling


@dataclass(frozen=True)
class Scaling(JsonRecord):
    """Temperature scaling, tested on the reference set (`scaling.measure_scaling`).

    Sources of temperatures are synthetic (all generated images, as published), "synthetic, hardest half" and any other
    share of the hardest images that was tried ("synthetic, hardest 25 %"), clear, corrupted and reference. The last
    one is the upper bound: temperatures of the tested images.
    """

    method: str
    models: list[ScaledModel]
    improved: dict[str, Improvement]  # by source
    mean: dict[str, ValueWithInterval | None]  # mean ECE "before" and by source; interval over models
    after: Coefficients | None  # of ECE after scaling, synthetic set against reference set
    less_than_clear: ValueWithInterval | None  # mean ECE after scaling, synthetic - clear temperatures


@dataclass(frozen=True)
class DomainCalibration(JsonRecord):
    """Calibration in one domain."""

    ece: Comparison | None
    scaling: Scaling | None


@dataclass(frozen=True)
class CorrelationPoint(JsonRecord):
    """Pearson's r with the (fixed) reference scores at one number of images."""

    value: float | None
    low: float | None
    high: float | None
    width: float | None


@dataclass(frozen=True)
class AgreementPoint(JsonRecord):
    """Kendall's tau with the ranking by all generated images at one number of images."""

    value: float | None
    low: float | None  # 5 % quantile


@dataclass(frozen=True)
class RegretPoint(JsonRecord):
    """Points between the reference scores of the models chosen by so many images and by all of them."""

    value: float | None
    high: float | None  # 95 % quantile


@dataclass(frozen=True)
class SampleSizeCurve(JsonRecord):
    """The results of smaller generated sets (`sample_size.sample_size_curve`)."""

    images: list[int]  # numbers of images: 8, 16, ...
    pearson: list[CorrelationPoint]
    tau: list[AgreementPoint]
    regret: list[RegretPoint]
    settles_ranking: int | None  # smallest number from which on the 5 % quantile of tau is at least `settled_tau`
    settles_choice: int | None  # smallest number from which on the 95 % quantile of regret is at most `settled_regret`
    settled_tau: float
    settled_regret: float
    total: int  # number of generated images


@dataclass(frozen=True)
class SeverityCurve(JsonRecord):
    """mIoU in percent on the generated sets of a domain by strength (`severity.severity_curve`)."""

    strengths: list[float]  # ascending: 0 is generated clear weather, 1 the domain
    images: int  # of each set
    classes: list[str]
    min_miou: float | None  # the limit in percent; None: 90 % of a model's mIoU at the lowest strength
    miou: dict[str, list[ValueWithInterval]]  # by model, one per strength; intervals over streets
    falls_at: dict[str, ValueWithInterval]  # by model: the strength where mIoU falls below the limit; None: at none


@dataclass(frozen=True)
class OodMeans(JsonRecord):
    """OOD metrics of one score on one set, mean over models."""

    models: int
    auroc: float | None
    aupr_object: float | None
    aupr_background: float | None
    fpr95: float | None


@dataclass(frozen=True)
class PublishedDetector(JsonRecord):
    """A detector of unknown objects on RoadAnomaly21, in percent, by the objects that it was fine-tuned on."""

    name: str
    objects: str
    auroc: float
    aupr: float
    fpr95: float


@dataclass(frozen=True)
class Published(JsonRecord):
    """Values of the published system, from a secondary source."""

    source: str
    models: int
    pearson: dict[str, dict[str, float]]  # r of synthetic and reference mIoU, by generator and domain
    ece_improved_percent: dict[str, str]  # by domain, as it was worded
    ood_pearson: str
    detectors: list[PublishedDetector]


@dataclass(frozen=True)
class ModelChoice(JsonRecord):
    """The model that generated images choose."""

    chosen: str
    best: str  # on the reference set
    regret: float | None  # points of mIoU
    regret_high: float | None  # upper end of its interval


@dataclass(frozen=True)
class EnoughImages(JsonRecord):
    """How many generated images are enough; see `SampleSizeCurve`."""

    settles_ranking: int | None
    settles_choice: int | None
    total: int


@dataclass(frozen=True)
class Answers(JsonRecord):
    """What the verdict says, for programs, by domain (`verdict.answer`)."""

    trust: dict[str, str]  # better, yes, worse, alone, weak, no or few
    model: dict[str, ModelChoice]  # not of domains with the trust no or few
    images: dict[str, EnoughImages]


@dataclass(frozen=True)
class MissingPart(JsonRecord):
    """A part that could not be computed, and the command that makes it."""

    what: str
    command: str

    @classmethod
    def of(cls, missing: Missing) -> Self:
        return cls(missing.what, missing.remedy)


@dataclass(frozen=True)
class GeneratorCheck(JsonRecord):
    """Whether a generator ranks models on clear images as the real clear images do (`clear_check.clear_check`)."""

    generator: str
    passed: bool | None  # None: not checked
    said: str  # the result in a sentence, or what is missing
    pearson: PearsonEstimate | None


@dataclass(frozen=True)
class Findings(JsonRecord):
    """Everything that was compared, before the verdict."""

    JSON_KEYS: ClassVar = {"ood_means": "ood_figures"}

    settings: dict[str, Any]  # the flags
    models: list[str]  # as given to relis/eval.py
    short_names: dict[str, str]  # by model, for the reader
    families: dict[str, str]  # by model: transformer, ConvNeXt, convolutional or other
    made_by: dict[str, str]  # by model: its identity and precision, the same for all of its results
    domains: list[str]
    predictors: list[Predictor]  # synthetic first
    checks: list[GeneratorCheck]  # on clear images, by generator
    robustness: dict[str, Comparison]  # mIoU, by domain
    calibration: dict[str, DomainCalibration]  # by domain
    ood_detection: dict[str, dict[str, dict[str, Comparison]]]  # by reference set, score and metric
    ood_means: dict[str, dict[str, OodMeans]]  # by set and score
    sample_size: dict[str, SampleSizeCurve]  # by domain
    severity: dict[str, SeverityCurve]  # by domain with sets of several strengths
    realism: dict[str, dict[str, ValueWithInterval]]  # CMMD to unlabelled images, by domain and generator's key
    published: Published
    missing: list[MissingPart]

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **super().to_json()}

    @property
    def baselines(self) -> list[Predictor]:
        """The predictors that synthetic is compared with."""
        return [predictor for predictor in self.predictors if predictor.key != SYNTHETIC]

    @property
    def label_free(self) -> list[Predictor]:
        """The estimates from unlabelled images without generation."""
        return [predictor for predictor in self.predictors if predictor.is_label_free]

    @property
    def rivals(self) -> list[Predictor]:
        """The baselines but the label-free estimates: other generators, clear weather and corruptions."""
        return [predictor for predictor in self.baselines if not predictor.is_label_free]

    @property
    def other_generators(self) -> list[Predictor]:
        """The generators after the first."""
        return [predictor for predictor in self.baselines if predictor.is_generator]


@dataclass(frozen=True)
class Report(Findings):
    """The content of `correlation.json`."""

    answers: Answers
    verdict: list[str]  # three answers in sentences

    @classmethod
    def of_findings(cls, findings: Findings, answers: Answers, verdict: list[str]) -> Self:
        """Add the verdict to the findings."""
        parts = {field.name: getattr(findings, field.name) for field in dataclasses.fields(findings)}
        return cls(**parts, answers=answers, verdict=verdict)


class _Compared(TypedDict):
    """The part of `correlation.json` that says which domains are compared."""

    robustness: dict[str, Any]


def require_no_loss(path: Path, report: Report) -> None:
    """Refuse to replace a `correlation.json` that compares a domain which was asked for and could not be compared now.

    Raises:
        GenValError: naming these domains, and the command of the first missing part.
    """
    try:
        compared = read_json(path, _Compared)["robustness"]
    except GenValError:  # absent, or damaged
        return
    lost = [domain for domain in report.domains if domain in compared and domain not in report.robustness]
    if lost:
        parts = "; ".join(f"{part.what}. Run: {part.command}" for part in report.missing[:3])
        raise GenValError(
            f"{path} compares {', '.join(lost)}, for which results are missing now. The file is kept. Missing: "
            f"{parts}. To compare without them, leave them out of --domains."
        )


def select_generators(report: Report, names: Sequence[str]) -> Report:
    """Return the report without the other generators that are not named; "all" names all of them.

    Raises:
        GenValError: a name is not one of a generator of the report.
    """
    if tuple(names) == ("all",):
        return report
    others = [predictor.key for predictor in report.other_generators]
    unknown = [name for name in names if name not in others and name != report.predictors[0].name]
    if unknown:
        known = ", ".join([report.predictors[0].name, *others])
        raise GenValError(
            f"--generators: correlation.json does not compare {', '.join(unknown)}, but {known}. "
            "Run report/correlate.py with these --generators."
        )
    kept = [one for one in report.predictors if one.key not in others or one.key in names]
    return dataclasses.replace(report, predictors=kept)


def read_report(path: Path, preset: str | None = None) -> Report:
    """Read `correlation.json`.

    Args:
        path: of the file.
        preset: for the command in the error.

    Raises:
        GenValError: the file is missing, has another format, or a key is missing or has another type.
    """
    command = "python report/correlate.py" + (f" --preset {preset}" if preset else "")
    if not path.exists():
        raise GenValError(f"No {path}. Run: {command}")
    values = read_json(path)
    found = values.get("format") if isinstance(values, dict) else None
    if found != FORMAT:
        raise GenValError(f"{path} is of format {found}, expected format {FORMAT}. Write it again: {command}")
    try:
        return Report.from_json(values)
    except ShapeError as error:
        raise GenValError(f"{path}, key {error}. Write it again: {command}") from error


def _split_model(value: Any, key: str) -> tuple[str, dict[str, Any]]:
    """The model's name and the other entries of an object that has one key per side or source."""
    if not isinstance(value, dict) or not isinstance(value.get("model"), str):
        raise ShapeError(join(key, "model"), "text", "no such key")
    return value["model"], {name: entry for name, entry in value.items() if name != "model"}
