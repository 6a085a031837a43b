"""`correlation.json` as a table with one row per estimate, and as Markdown."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from genval.report.realism import nearer_predicts_better
from genval.report.schema import (
    SYNTHETIC,
    TRUE,
    Coefficients,
    Comparison,
    PearsonEstimate,
    Predictor,
    Report,
    SampleSizeCurve,
    Scaling,
    SeverityCurve,
)
from genval.report.severity import KEPT_SHARE
from genval.runtime.tables import markdown_table, percent

_HEADER = ["part", "domain", "score", "metric", "quantity", "models", "coefficient", "value"]
EXPLANATIONS = (
    "observed r: Pearson's r of the scores as they were measured. With few images, noise makes it smaller.",
    "corrected r: Pearson's r without this noise, as infinitely many images would give it. The 95 % interval is that "
    "of the corrected r.",
)
_WAYS = ("over_models", "over_images", "over_both")


@dataclass(frozen=True)
class Entry:
    """One comparison and its place in the report."""

    part: str  # robustness, calibration or ood_detection
    domain: str  # or the reference set, in ood_detection
    score: str  # OOD score, empty in other parts
    comparison: Comparison

    @property
    def title(self) -> str:
        """The entry in one table cell."""
        return f"{self.domain}, {self.score}, {self.comparison.metric}" if self.score else self.domain


def entries(report: Report) -> Iterator[Entry]:
    """Yield every comparison."""
    for domain, comparison in report.robustness.items():
        yield Entry("robustness", domain, "", comparison)
    for domain, calibration in report.calibration.items():
        if calibration.ece:
            yield Entry("calibration", domain, "", calibration.ece)
    for name, by_score in report.ood_detection.items():
        for score, by_metric in by_score.items():
            for comparison in by_metric.values():
                yield Entry("ood_detection", name, score, comparison)


def csv_table(report: Report) -> tuple[list[str], list[list[Any]]]:
    """Return header and rows: every correlation and difference (less: minus) with its intervals."""
    header = [*_HEADER, "corrected", "low", "high", *(f"{way}_{end}" for way in _WAYS for end in ("low", "high"))]
    rows: list[list[Any]] = []
    for entry in entries(report):
        comparison = entry.comparison
        quantities: dict[str, Coefficients | None] = {}
        quantities |= {f"{side} with true": of_side for side, of_side in comparison.correlation.items()}
        quantities |= {f"{SYNTHETIC} less {side}": less for side, less in comparison.difference.items()}
        for quantity, coefficients in quantities.items():
            rows += _rows([entry.part, entry.domain, entry.score, comparison.metric, quantity], coefficients)
    for domain, calibration in report.calibration.items():
        after = calibration.scaling.after if calibration.scaling else None
        rows += _rows(["calibration", domain, "", "ece after scaling", f"{SYNTHETIC} with true"], after)
    return header, rows


def _rows(head: Sequence[str], coefficients: Coefficients | None) -> list[list[Any]]:
    """One row per coefficient."""
    if coefficients is None:
        return []
    pearson = coefficients.pearson
    empty = [None] * 2 * len(_WAYS)
    corrected = [pearson.corrected, pearson.low, pearson.high]
    rows: list[list[Any]] = [[*head, coefficients.models, "pearson", pearson.value, *corrected, *empty]]
    for name, estimate in (("spearman", coefficients.spearman), ("kendall", coefficients.kendall)):
        ends = [end for way in _WAYS for end in getattr(estimate, way) or (None, None)]
        rows.append([*head, coefficients.models, name, estimate.value, None, *(estimate.ends or (None, None)), *ends])
    return rows


def markdown_summary(report: Report) -> str:
    """Return the main results: correlations, rankings, calibration, sample size, and what is missing."""
    parts = ["# Do synthetic scores predict reference scores?", "\n".join(f"- {line}" for line in report.verdict)]
    if any(entries(report)):
        parts.append("\n".join(f"- {line}" for line in EXPLANATIONS))
    for title, part in (("mIoU", "robustness"), ("ECE", "calibration"), ("OOD detection", "ood_detection")):
        found = [entry for entry in entries(report) if entry.part == part]
        if found:
            parts += [
                f"## {title}: Pearson's r with the reference score across segmenters",
                _correlations(found, report.rivals),
            ]
            if part == "robustness" and report.label_free:
                parts += ["### Label-free estimates, from unlabelled images of the condition", _label_free(report)]
            if part == "robustness" and any(entry.comparison.few_labels for entry in found):
                parts += ["### mIoU from the labelled reference images and the generated ones", _few_labels(report)]
            # A table of every score and metric would be pages long; the JSON file has them.
            main = [entry for entry in found if entry.comparison.metric in ("miou", "ece", "auroc")]
            parts += [f"### {title}: choosing a segmenter", _rankings(main, report)]
    scaling = {domain: of.scaling for domain, of in report.calibration.items() if of.scaling}
    if scaling:
        parts += ["## Temperature scaling on the reference set", _scaling(scaling)]
    if report.sample_size:
        parts += ["## Number of generated images", _curves(report.sample_size)]
    if report.severity:
        tables = [_severity(domain, curve, report.short_names) for domain, curve in report.severity.items()]
        parts += ["## Strength of the condition: mIoU on generated images", *tables]
    if report.realism:
        parts += ["## Distance to unlabelled images (CMMD), and r", _realism(report)]
    if report.missing:
        parts += ["## Missing", "\n".join(f"- {part.what}: `{part.command}`" for part in report.missing)]
    return "\n\n".join(parts)


def _ends(estimate: PearsonEstimate | None) -> str | None:
    """The interval as text; without one, why."""
    if estimate is None:
        return None
    return f"{estimate.low:.2f} to {estimate.high:.2f}" if estimate.ends else estimate.refused


def _correlations(found: Sequence[Entry], predictors: Sequence[Predictor]) -> str:
    header = ["domain", "segmenters", "observed r", "corrected r", "95 %", "Spearman", "Kendall"]
    baselines = [baseline.key for baseline in predictors]
    for baseline in baselines:
        header += [f"corrected r of {baseline}", f"difference: {SYNTHETIC} - {baseline}", f"beats {baseline}"]
    rows = []
    for entry in found:
        own = entry.comparison.correlation[SYNTHETIC]
        assert own is not None
        row = [entry.title, own.models, own.pearson.value, own.pearson.corrected, _ends(own.pearson)]
        row += [own.spearman.value, own.kendall.value]
        for baseline in baselines:
            theirs, difference = entry.comparison.against(baseline)
            row += [theirs and theirs.pearson.corrected, _ends(difference.pearson if difference else None)]
            row += [entry.comparison.beats.get(baseline)]
        rows.append(row)
    return markdown_table(header, rows, digits=2)


def _label_free(report: Report) -> str:
    header = ["domain", "estimate", "observed r", "corrected r", "95 %", "difference: synthetic - estimate", "beats"]
    rows = []
    for domain, comparison in report.robustness.items():
        for estimate in report.label_free:
            theirs, less = comparison.against(estimate.key)
            if theirs and less:
                values = [theirs.pearson.value, theirs.pearson.corrected, _ends(theirs.pearson)]
                rows.append([domain, estimate.name, *values, _ends(less.pearson), comparison.beats.get(estimate.key)])
    return markdown_table(header, rows, digits=2)


def _few_labels(report: Report) -> str:
    header = ["domain", "labelled images", "generated set is worth", "segmenter", "labelled alone", "combined", "95 %"]
    rows: list[list[Any]] = []
    for domain, comparison in report.robustness.items():
        few = comparison.few_labels
        for one in comparison.models if few else ():
            alone, both = one.scores[TRUE], few.models[one.model] if few else None
            if few and both:
                worth = "unlimited" if few.worth is None else f"{few.worth:.0f}"
                values = [alone.value if alone else None, both.value, f"{both.low:.1f} to {both.high:.1f}"]
                rows.append([domain, few.images, worth, report.short_names[one.model], *values])
    return markdown_table(header, rows, digits=1)


def _rankings(found: Sequence[Entry], report: Report) -> str:
    short = report.short_names
    header = ["domain", "chosen by", "segmenter", "is the best", "top 5 in common %", "regret", "from", "to"]
    rows: list[list[Any]] = []
    for entry in found:
        for predictor in report.predictors:
            ranking = entry.comparison.ranking.get(predictor.key)
            if ranking:
                row = [entry.title, predictor.key, short[ranking.chosen], "yes" if ranking.top_1 else "no"]
                rows.append([*row, percent(ranking.top_5), *dataclasses.astuple(ranking.regret)])
    return markdown_table(header, rows)


def _scaling(by_domain: Mapping[str, Scaling]) -> str:
    header = ["domain", "temperatures of", "segmenters", "better %", "from", "to", "mean ECE % before", "after"]
    rows: list[list[Any]] = []
    for domain, scaling in by_domain.items():
        for source, improved in scaling.improved.items():
            after = scaling.mean[source]
            if improved.models and after:
                shares = [percent(value) for value in (improved.share, improved.low, improved.high)]
                rows.append([domain, source, improved.models, *shares, improved.before, after.value])
    return markdown_table(header, rows)


def realism_rows(report: Report) -> tuple[list[str], list[list[Any]]]:
    """Return header and rows: the distance of each generated set to unlabelled images, and its r."""
    names = {predictor.key: predictor.name for predictor in report.predictors}
    rows: list[list[Any]] = []
    for domain, distances in report.realism.items():
        correlation = report.robustness[domain].correlation if domain in report.robustness else {}
        for key, distance in distances.items():
            of = correlation.get(key)
            if key in names:
                rows.append([domain, names[key], distance.value, distance.ends, of.pearson.shown if of else None])
    return ["domain", "generator", "CMMD", "95 %", "corrected r"], rows


def realism_text(report: Report) -> str:
    """Say in how many pairs of generators the nearer one predicts better."""
    agreeing, total = nearer_predicts_better(report.realism, report.robustness)
    if not total:
        return "Smaller is nearer. Whether nearer sets predict better needs two generators of one domain."
    pairs = f"{agreeing} of {total} pairs of generators of one domain"
    return f"Smaller is nearer. In {pairs}, the nearer one has the higher r."


def _realism(report: Report) -> str:
    header, rows = realism_rows(report)
    shown = [[*row[:3], "{:.2f} to {:.2f}".format(*row[3]) if row[3] else "", row[4]] for row in rows]
    return f"{markdown_table(header, shown, digits=2)}\n\n{realism_text(report)}"


def severity_rows(curve: SeverityCurve, short: Mapping[str, str]) -> tuple[list[str], list[list[Any]]]:
    """Return header and rows: mIoU of each model by strength, and the strength where it falls below the limit."""
    header = ["segmenter", *(f"at {strength:g}" for strength in curve.strengths), "falls below the limit at", "95 %"]
    rows = []
    for model, values in curve.miou.items():
        falls = curve.falls_at[model]
        ends = "" if falls.low is None else f"{falls.low:.2f} to {_strength(falls.high)}"
        rows.append([short[model], *(value.value for value in values), falls.value, ends])
    return header, rows


def limit_text(curve: SeverityCurve) -> str:
    """Return the limit in words."""
    if curve.min_miou is not None:
        return f"{curve.min_miou:g} % mIoU"
    return f"{100 * KEPT_SHARE:.0f} % of the segmenter's mIoU at strength {curve.strengths[0]:g}"


def _strength(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"


def _severity(domain: str, curve: SeverityCurve, short: Mapping[str, str]) -> str:
    title = f"{domain}, {curve.images} images per strength. The limit is {limit_text(curve)}."
    return f"{title}\n\n{markdown_table(*severity_rows(curve, short), digits=2)}"


def _curves(curves: Mapping[str, SampleSizeCurve]) -> str:
    header = ["domain", "images", "r", "from", "to", "width", "tau", "5 % quantile", "choice off by", "95 % quantile"]
    rows = []
    for domain, curve in curves.items():
        for images, *points in zip(curve.images, curve.pearson, curve.tau, curve.regret, strict=True):
            rows.append([domain, images, *(value for point in points for value in dataclasses.astuple(point))])
    return markdown_table(header, rows, digits=2)
