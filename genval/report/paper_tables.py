"""The paper's tables, from `correlation.json`: as rows, and as CSV, Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genval.datasets.ood_sets import GENERATED
from genval.report.families import FAMILIES
from genval.report.ood_comparison import METRICS
from genval.report.schema import CLEAR, SYNTHETIC, TRUE, Report, SeverityCurve
from genval.report.summary import limit_text, realism_rows, realism_text, severity_rows
from genval.runtime.files import write_bytes, write_csv
from genval.runtime.tables import markdown_table, percent

SECONDARY = "*"
_NOTE = (
    f"{SECONDARY} Reported for the published system with 40 segmenters; from a secondary source, not from the paper's "
    "own table."
)
_SIDE_NAMES = {TRUE: "reference"}
_LATEX = {
    "&": r"\&",
    "%": r"\%",
    "_": r"\_",
    "#": r"\#",
    "$": r"\$",
    "~": r"\textasciitilde{}",
    "\\": r"\textbackslash{}",
}


@dataclass(frozen=True)
class Table:
    """A table for a paper."""

    name: str  # of its files
    title: str
    header: list[str]
    rows: list[list[Any]]  # text, numbers, intervals (low, high), None where there is nothing
    digits: int = 2
    note: str = ""

    def is_interval(self, column: int) -> bool:
        """Whether a column holds intervals."""
        return any(isinstance(row[column], tuple) for row in self.rows)

    def texts(self) -> list[list[Any]]:
        """The rows with intervals as text, "0.16 to 0.89"."""
        return [[self._text(cell) for cell in row] for row in self.rows]

    def _text(self, cell: Any) -> Any:
        if not isinstance(cell, tuple):
            return cell
        return None if None in cell else " to ".join(f"{end:.{self.digits}f}" for end in cell)


def paper_tables(report: Report) -> list[Table]:
    """Return the tables that have a row."""
    tables = [
        _robustness(report),
        _label_free(report),
        _classes(report),
        _calibration(report),
        _ood_means(report),
        _ood_correlation(report),
        _published_detectors(report),
        _models(report),
        _families(report),
        _realism(report),
        *(_severity(domain, curve, report) for domain, curve in report.severity.items()),
    ]
    return [table for table in tables if table.rows]


def write_table(folder: Path, table: Table) -> None:
    """Write {name}.csv, {name}.md and {name}.tex; the CSV has all digits, and an interval's ends in two columns."""
    wide = [table.is_interval(column) for column in range(len(table.header))]
    header = [
        part
        for name, two in zip(table.header, wide, strict=True)
        for part in ([f"{name} low", f"{name} high"] if two else [name])
    ]
    rows = [
        [part for cell, two in zip(row, wide, strict=True) for part in (cell or (None, None) if two else (cell,))]
        for row in table.rows
    ]
    write_csv(folder / f"{table.name}.csv", header, rows)
    write_bytes(folder / f"{table.name}.md", (markdown(table) + "\n").encode())
    write_bytes(folder / f"{table.name}.tex", (latex(table) + "\n").encode())


def markdown(table: Table) -> str:
    """Title, table and note."""
    note = f"\n\n{table.note}" if table.note else ""
    return f"**{table.title}**\n\n{markdown_table(table.header, table.texts(), table.digits)}{note}"


def latex(table: Table) -> str:
    r"""A table environment; needs `\usepackage{booktabs}`."""
    rows = table.texts()
    number = [all(not isinstance(row[index], str) for row in rows) for index in range(len(table.header))]
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{escape(table.title)}.}}", rf"\label{{tab:{table.name}}}"]
    lines += [rf"\begin{{tabular}}{{{''.join('r' if right else 'l' for right in number)}}}", r"\toprule"]
    lines += [_row(table.header, table.digits), r"\midrule", *(_row(row, table.digits) for row in rows)]
    lines += [r"\bottomrule", r"\end{tabular}"]
    if table.note:
        lines += [rf"\par\smallskip\footnotesize {escape(table.note)}"]
    return "\n".join([*lines, r"\end{table}"])


def escape(text: str) -> str:
    r"""Text as LaTeX prints it.

    >>> print(escape("a_b & 5 %"))
    a\_b \& 5 \%
    """
    return "".join(_LATEX.get(character, character) for character in text)


def _row(cells: Sequence[Any], digits: int) -> str:
    texts = ["--" if cell is None else f"{cell:.{digits}f}" if isinstance(cell, float) else str(cell) for cell in cells]
    return " & ".join(map(escape, texts)) + r" \\"


def _robustness(report: Report) -> Table:
    published = report.published.pearson
    header = ["domain", "models", "images", "classes", "observed r", "corrected r", "95 %", "Spearman", "Kendall"]
    baselines = [baseline.key for baseline in report.rivals]
    for baseline in baselines:
        header += [f"corrected r of {baseline}", f"r difference: {SYNTHETIC} - {baseline}, 95 %"]
    header += [f"published {name}{SECONDARY}" for name in published]
    rows = []
    for domain, comparison in report.robustness.items():
        own, generated = comparison.correlation[SYNTHETIC], comparison.sets[SYNTHETIC]
        assert own is not None and generated is not None
        row = [domain, own.models, generated.images, len(comparison.classes or ())]
        row += [own.pearson.value, own.pearson.corrected, own.pearson.ends, own.spearman.value, own.kendall.value]
        for baseline in baselines:
            theirs, difference = comparison.against(baseline)
            row += [theirs and theirs.pearson.corrected, difference and difference.pearson.ends]
        rows.append([*row, *(by_domain.get(domain) for by_domain in published.values())])
    title = "Correlation of synthetic and reference mIoU across segmenters, by domain, with 95 % intervals"
    return Table("correlation_by_domain", title, header, rows, note=_NOTE)


def _label_free(report: Report) -> Table:
    header = ["domain", "estimate", "models", "observed r", "corrected r", "95 %", "r difference: synthetic - estimate"]
    rows: list[list[Any]] = []
    for domain, comparison in report.robustness.items():
        for estimate in report.label_free:
            theirs, less = comparison.against(estimate.key)
            if theirs and less:
                r = theirs.pearson
                rows.append([domain, estimate.name, theirs.models, r.value, r.corrected, r.ends, less.pearson.ends])
    title = "Label-free estimates from unlabelled images of the condition: correlation with reference mIoU"
    return Table("label_free", title, header, rows)


def _classes(report: Report) -> Table:
    by_domain = {domain: comparison.per_class or {} for domain, comparison in report.robustness.items()}
    names = dict.fromkeys(name for by_class in by_domain.values() for name in by_class)
    header = ["class", *(cell for domain in by_domain for cell in (f"r ({domain})", f"95 % ({domain})"))]
    rows: list[list[Any]] = []
    for name in names:
        row: list[Any] = [name]
        for by_class in by_domain.values():
            synthetic = by_class[name].synthetic if name in by_class else None
            row += [synthetic and synthetic.pearson.corrected, synthetic and synthetic.pearson.ends]
        rows.append(row)
    title = "Correlation of synthetic and reference IoU across segmenters, by class, with 95 % intervals"
    return Table("correlation_by_class", title, header, rows)


def _calibration(report: Report) -> Table:
    header = ["domain", "temperatures of", "segmenters", "improved %", "95 %", "mean ECE % before", "after"]
    header += ["after, difference: synthetic - clear, 95 %", "r of ECE after", "its 95 %", f"published %{SECONDARY}"]
    rows: list[list[Any]] = []
    for domain, calibration in report.calibration.items():
        scaling = calibration.scaling
        for source, improved in scaling.improved.items() if scaling else ():
            assert scaling is not None
            mean = scaling.mean[source]
            if not improved.models or mean is None or improved.low is None or improved.high is None:
                continue
            row: list[Any] = [domain, source, improved.models, percent(improved.share)]
            row += [(100 * improved.low, 100 * improved.high), improved.before, mean.value]
            if source == SYNTHETIC:
                less, after = scaling.less_than_clear, scaling.after
                row += [less and less.ends, after and after.pearson.value, after and after.pearson.ends]
                row += [report.published.ece_improved_percent.get(domain)]
            else:
                row += [None, None, None, None]
            rows.append(row)
    title = "Segmenters whose ECE on the reference set drops with temperature scaling, by domain and source"
    return Table("calibration_improvement", title, header, rows, note=_NOTE)


def _ood_means(report: Report) -> Table:
    header = ["set", "score", "segmenters", *(f"{metric} %" for metric in METRICS)]
    rows = [
        [name, score, means.models, *(getattr(means, metric) for metric in METRICS)]
        for name, by_score in report.ood_means.items()
        for score, means in by_score.items()
    ]
    title = "OOD detection by score, mean over segmenters; AUPR with the object or the background as the positive class"
    return Table("ood_by_score", title, header, rows, digits=1)


def _ood_correlation(report: Report) -> Table:
    header = ["reference set", "score", "metric", "models", "observed r", "corrected r", "95 %", "Spearman", "Kendall"]
    others = _other_object_sets(report)
    header += ["corrected r of clear mIoU", *(f"corrected r of {name}" for name in others)]
    header += [f"published r{SECONDARY}"]
    rows = []
    for name, by_score in report.ood_detection.items():
        for score, by_metric in by_score.items():
            for metric, comparison in by_metric.items():
                own, clear = comparison.correlation[SYNTHETIC], comparison.correlation[CLEAR]
                assert own is not None
                row = [name, score, metric, own.models, own.pearson.value, own.pearson.corrected, own.pearson.ends]
                row += [own.spearman.value, own.kendall.value, clear and clear.pearson.corrected]
                for other in others:
                    theirs = comparison.correlation.get(other)
                    row.append(theirs and theirs.pearson.corrected)
                rows.append([*row, report.published.ood_pearson])
    title = (
        f"Correlation of OOD metrics on the {GENERATED} and the reference set across segmenters, with 95 % intervals"
    )
    return Table("ood_correlation", title, header, rows, note=_NOTE)


def _other_object_sets(report: Report) -> list[str]:
    """The generated sets of objects beside the first: of all objects, or in other conditions."""
    comparisons = [
        comparison
        for by_score in report.ood_detection.values()
        for by_metric in by_score.values()
        for comparison in by_metric.values()
    ]
    names = dict.fromkeys(name for comparison in comparisons for name in comparison.correlation)
    return [name for name in names if name.startswith(f"{GENERATED}-")]


def _published_detectors(report: Report) -> Table:
    """The published gain of fine-tuning a detector on generated objects; only where OOD detection is compared."""
    header = ["detector", "fine-tuned on objects", f"AUROC %{SECONDARY}", f"AUPR %{SECONDARY}", f"FPR95 %{SECONDARY}"]
    rows: list[list[Any]] = []
    if report.ood_means:
        rows = [[one.name, one.objects, one.auroc, one.aupr, one.fpr95] for one in report.published.detectors]
    title = "Published: OOD detection on RoadAnomaly21 after fine-tuning on objects"
    return Table("published_detectors", title, header, rows, digits=1, note=f"{SECONDARY} {report.published.source}")


def _families(report: Report) -> Table:
    """The mean scores of each family; only where there are several."""
    header = ["domain", "family", "models", "generated", "reference", "difference"]
    rows: list[list[Any]] = []
    for domain, comparison in report.robustness.items() if len(set(report.families.values())) > 1 else ():
        for family in FAMILIES:
            members = [entry.scores for entry in comparison.models if report.families[entry.model] == family]
            pairs = [(scores[SYNTHETIC], scores[TRUE]) for scores in members]
            values = [(one.value, other.value) for one, other in pairs if one and other]
            known = np.array([pair for pair in values if None not in pair], np.float64)
            if len(known):
                generated, reference = known.mean(0).tolist()
                rows.append([domain, family, len(known), generated, reference, generated - reference])
    return Table("miou_by_family", "mIoU in percent by family, mean over segmenters", header, rows, digits=1)


def _realism(report: Report) -> Table:
    header, rows = realism_rows(report)
    return Table("realism", "Distance to unlabelled images of the condition", header, rows, note=realism_text(report))


def _severity(domain: str, curve: SeverityCurve, report: Report) -> Table:
    title = f"mIoU in percent on generated images by strength of the condition: {domain}"
    header, rows = severity_rows(curve, report.short_names)
    return Table(f"severity_{domain}", title, header, rows, note=f"The limit is {limit_text(curve)}.")


def _models(report: Report) -> Table:
    header = ["family", "segmenter"]
    by_family = sorted(report.models, key=lambda model: FAMILIES.index(report.families[model]))
    by_model: dict[str, list[Any]] = {model: [report.families[model], report.short_names[model]] for model in by_family}
    for domain, comparison in report.robustness.items():
        for side in (*(predictor.key for predictor in (*report.rivals, report.predictors[0])), TRUE):
            if comparison.sets.get(side) is None:
                continue
            header.append(f"{_SIDE_NAMES.get(side, side)} ({domain})")
            found = {entry.model: entry.scores[side] for entry in comparison.models}
            for model, row in by_model.items():
                score = found.get(model)
                row.append(score and score.value)
    title = "mIoU in percent. All columns of a domain, including clear, are over the classes of this domain"
    rows = [row for row in by_model.values() if any(cell is not None for cell in row[2:])]
    return Table("miou_by_model", title, header, rows, digits=1)
