"""The paper's tables, from `correlation.json`: as rows, and as CSV, Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genval.report.comparison import CLEAR, CORRUPTED, SYNTHETIC, TRUE
from genval.report.ood_comparison import GENERATED, METRICS
from genval.runtime.files import write_bytes, write_csv
from genval.runtime.tables import markdown_table, percent

SECONDARY = "*"
_NOTE = f"{SECONDARY} Reported for the published system with 40 models; a secondary source, not the paper's own table."
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


def paper_tables(values: Mapping[str, Any]) -> list[Table]:
    """Those tables that have a row.

    Args:
        values: as `genval.report` describes them.
    """
    tables = [
        _robustness(values),
        _classes(values),
        _calibration(values),
        _ood_figures(values),
        _ood_correlation(values),
        _models(values),
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


def _ends(estimate: Mapping[str, Any] | None) -> tuple[float, float] | None:
    """Over both, or over models; none where models were not drawn."""
    ends = estimate and (estimate["over_both"] or estimate["over_models"])
    return (ends[0], ends[1]) if ends else None


def _pair(estimate: Mapping[str, Any] | None) -> tuple[float, float] | None:
    return None if estimate is None or estimate["low"] is None else (estimate["low"], estimate["high"])


def _robustness(values: Mapping[str, Any]) -> Table:
    published = values["published"]["pearson"]
    header = ["domain", "models", "images", "classes", "r", "95 %", "Spearman", "Kendall"]
    header += ["r of clear", "r less that of clear, 95 %", "r of corrupted", "r less that of corrupted, 95 %"]
    header += [f"published {name}{SECONDARY}" for name in published]
    rows = []
    for domain, comparison in values["robustness"].items():
        own = comparison["correlation"][SYNTHETIC]
        row = [domain, own["models"], comparison["sets"][SYNTHETIC]["images"], len(comparison["classes"])]
        row += [own["pearson"]["value"], _ends(own["pearson"]), own["spearman"]["value"], own["kendall"]["value"]]
        for baseline in (CLEAR, CORRUPTED):
            theirs, less = comparison["correlation"][baseline], comparison["difference"][baseline]
            row += [theirs and theirs["pearson"]["value"], _ends(less and less["pearson"])]
        rows.append([*row, *(of_generator.get(domain) for of_generator in published.values())])
    title = "Correlation of synthetic and reference mIoU across models, by domain, with 95 % intervals"
    return Table("correlation_by_domain", title, header, rows, note=_NOTE)


def _classes(values: Mapping[str, Any]) -> Table:
    of_domains = {domain: comparison["per_class"] for domain, comparison in values["robustness"].items()}
    names = dict.fromkeys(name for of_domain in of_domains.values() for name in of_domain)
    header = ["class", *(cell for domain in of_domains for cell in (f"r ({domain})", f"95 % ({domain})"))]
    rows: list[list[Any]] = []
    for name in names:
        row: list[Any] = [name]
        for of_domain in of_domains.values():
            pearson = of_domain[name][SYNTHETIC]["pearson"] if name in of_domain else None
            row += [pearson and pearson["value"], _pair(pearson)]
        rows.append(row)
    title = "Correlation of synthetic and reference IoU across models, by class, with 95 % intervals"
    return Table("correlation_by_class", title, header, rows)


def _calibration(values: Mapping[str, Any]) -> Table:
    header = ["domain", "temperatures of", "models", "improved %", "95 %", "mean ECE % before", "after"]
    header += ["after less that with clear temperatures, 95 %", "r of ECE after", "its 95 %", f"published %{SECONDARY}"]
    rows: list[list[Any]] = []
    for domain, of_domain in values["calibration"].items():
        scaling = of_domain["scaling"]
        for source, improved in scaling["improved"].items() if scaling else ():
            after = scaling["mean"][source]
            if improved["models"] and after:
                shares = [percent(improved["share"]), (100 * improved["low"], 100 * improved["high"])]
                published = values["published"]["ece_improved_percent"].get(domain) if source == SYNTHETIC else None
                means = [improved["before"], after["value"]]
                own = scaling["after"] if source == SYNTHETIC else None
                less = scaling["less_than_clear"] if source == SYNTHETIC else None
                row = [domain, source, improved["models"], *shares, *means, _pair(less)]
                rows.append([*row, own and own["pearson"]["value"], _ends(own and own["pearson"]), published])
    title = "Models whose ECE on the reference set drops with temperature scaling, by domain and source"
    return Table("calibration_improvement", title, header, rows, note=_NOTE)


def _ood_figures(values: Mapping[str, Any]) -> Table:
    header = ["set", "score", "models", *(f"{metric} %" for metric in METRICS)]
    rows = [
        [name, score, figures["models"], *(figures[metric] for metric in METRICS)]
        for name, of_set in values["ood_figures"].items()
        for score, figures in of_set.items()
    ]
    title = "OOD detection by score, mean over models; AUPR with the object or the background as the positive class"
    return Table("ood_by_score", title, header, rows, digits=1)


def _ood_correlation(values: Mapping[str, Any]) -> Table:
    header = ["reference set", "score", "metric", "models", "r", "95 %", "Spearman", "Kendall", "r of clear mIoU"]
    header += [f"published r{SECONDARY}"]
    rows = []
    for name, of_set in values["ood_detection"].items():
        for score, of_score in of_set.items():
            for metric, comparison in of_score.items():
                own, clear = (comparison["correlation"][side] for side in (SYNTHETIC, CLEAR))
                row = [name, score, metric, own["models"], own["pearson"]["value"], _ends(own["pearson"])]
                row += [own["spearman"]["value"], own["kendall"]["value"], clear and clear["pearson"]["value"]]
                rows.append([*row, values["published"]["ood_pearson"]])
    title = f"Correlation of OOD metrics on the {GENERATED} and the reference set across models, with 95 % intervals"
    return Table("ood_correlation", title, header, rows, note=_NOTE)


def _models(values: Mapping[str, Any]) -> Table:
    header, by_model = ["model"], {model: [short] for model, short in values["short_names"].items()}
    for domain, comparison in values["robustness"].items():
        for side in (CLEAR, CORRUPTED, SYNTHETIC, TRUE):
            if comparison["sets"][side] is None:
                continue
            header.append(f"{side} ({domain})")
            found = {entry["model"]: entry[side] for entry in comparison["models"]}
            for model, row in by_model.items():
                row.append(found.get(model) and found[model]["value"])
    title = "mIoU in percent; the columns of a domain, the clear one too, are over that domain's classes"
    rows = [row for row in by_model.values() if any(cell is not None for cell in row[1:])]
    return Table("miou_by_model", title, header, rows, digits=1)
