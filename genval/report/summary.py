"""`correlation.json` as a table of one row an estimate, and as a page of Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from genval.metrics.correlation import CORRELATIONS
from genval.report.comparison import BASELINES, PREDICTORS, SYNTHETIC
from genval.runtime.tables import markdown_table, percent

_HEADER = ["part", "domain", "score", "figure", "quantity", "models", "coefficient", "value"]
_WAYS = ("over_models", "over_images", "over_both")


def comparisons(values: Mapping[str, Any]) -> Iterator[tuple[str, str, str, Mapping[str, Any]]]:
    """Every comparison: its part, its domain (or set), its score where it has one, and itself."""
    for domain, comparison in values["robustness"].items():
        yield "robustness", domain, "", comparison
    for domain, of_domain in values["calibration"].items():
        if of_domain["ece"]:
            yield "calibration", domain, "", of_domain["ece"]
    for name, of_set in values["ood_detection"].items():
        for score, of_score in of_set.items():
            for comparison in of_score.values():
                yield "ood_detection", name, score, comparison


def csv_table(values: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Header and rows: every correlation and difference with its intervals."""
    header = [*_HEADER, *(f"{way}_{end}" for way in _WAYS for end in ("low", "high"))]
    rows: list[list[Any]] = []
    for part, domain, score, comparison in comparisons(values):
        quantities = {f"{predictor} with true": comparison["correlation"][predictor] for predictor in PREDICTORS}
        quantities |= {f"synthetic less {baseline}": comparison["difference"][baseline] for baseline in BASELINES}
        for quantity, estimates in quantities.items():
            rows += _rows([part, domain, score, comparison["figure"], quantity], estimates)
    for domain, of_domain in values["calibration"].items():
        after = of_domain["scaling"] and of_domain["scaling"]["after"]
        rows += _rows(["calibration", domain, "", "ece after scaling", f"{SYNTHETIC} with true"], after)
    return header, rows


def _rows(head: Sequence[str], estimates: Mapping[str, Any] | None) -> list[list[Any]]:
    """A row for each coefficient."""
    if not estimates:
        return []
    ends = {name: [end for way in _WAYS for end in estimates[name][way] or (None, None)] for name in CORRELATIONS}
    return [[*head, estimates["models"], name, estimates[name]["value"], *ends[name]] for name in CORRELATIONS]


def markdown_summary(values: Mapping[str, Any]) -> str:
    """The main results: Pearson's r and its baselines, ranking, calibration, sample size, what is missing."""
    parts = ["# Do synthetic scores predict reference scores?", "\n".join(f"- {line}" for line in values["verdict"])]
    for title, part in (
        ("mIoU", "robustness"),
        ("ECE", "calibration"),
        ("OOD detection", "ood_detection"),
    ):
        found = [entry for entry in comparisons(values) if entry[0] == part]
        if found:
            parts += [f"## {title}: Pearson's r with the reference score across models", _correlations(found)]
            # A table of every score and metric would be pages long: the file has them.
            main = [entry for entry in found if entry[3]["figure"] in ("miou", "ece", "auroc")]
            parts += [f"### {title}: choosing a model", _rankings(main, values["short_names"])]
    scaling = {domain: of["scaling"] for domain, of in values["calibration"].items() if of["scaling"]}
    if scaling:
        parts += ["## Temperature scaling on the reference set", _scaling(scaling)]
    if values["sample_size"]:
        parts += ["## Number of generated images", _curves(values["sample_size"])]
    if values["missing"]:
        lines = [f"- {lack['what']}: `{lack['command']}`" for lack in values["missing"]]
        parts += ["## Missing", "\n".join(lines)]
    return "\n\n".join(parts)


def _name(domain: str, score: str, comparison: Mapping[str, Any]) -> str:
    return f"{domain}, {score}, {comparison['figure']}" if score else domain


def _widest(estimate: Mapping[str, Any]) -> str | None:
    # Over images alone it would look surer than it is: it says nothing of other models.
    ends = estimate["over_both"] or estimate["over_models"]
    return f"{ends[0]:.2f} to {ends[1]:.2f}" if ends else None


def _correlations(found: Sequence[tuple[str, str, str, Mapping[str, Any]]]) -> str:
    header = ["domain", "models", "r", "95 %", "Spearman", "Kendall", "r of clear", "difference", "beats clear"]
    header += ["r of corrupted", "difference", "beats corrupted"]
    rows = []
    for _, domain, score, comparison in found:
        own = comparison["correlation"][SYNTHETIC]
        row = [_name(domain, score, comparison), own["models"], own["pearson"]["value"], _widest(own["pearson"])]
        row += [own["spearman"]["value"], own["kendall"]["value"]]
        for baseline in BASELINES:
            theirs, less = comparison["correlation"][baseline], comparison["difference"][baseline]
            row += [theirs and theirs["pearson"]["value"], less and _widest(less["pearson"])]
            row += [comparison["beats"][baseline]]
        rows.append(row)
    return markdown_table(header, rows, digits=2)


def _rankings(found: Sequence[tuple[str, str, str, Mapping[str, Any]]], short: Mapping[str, str]) -> str:
    header = ["domain", "chosen by", "model", "is the best", "top 5 in common %", "regret", "from", "to"]
    rows = []
    for _, domain, score, comparison in found:
        for predictor in PREDICTORS:
            ranking = comparison["ranking"][predictor]
            if ranking:
                row: list[Any] = [_name(domain, score, comparison), predictor, short[ranking["chosen"]]]
                row += ["yes" if ranking["top_1"] else "no", percent(ranking["top_5"]), *ranking["regret"].values()]
                rows.append(row)
    return markdown_table(header, rows)


def _scaling(scaling: Mapping[str, Any]) -> str:
    header = ["domain", "temperatures of", "models", "better %", "from", "to", "mean ECE % before", "after"]
    rows = []
    for domain, of_domain in scaling.items():
        for source, improved in of_domain["improved"].items():
            if improved["models"]:
                shares = [100 * improved[key] for key in ("share", "low", "high")]
                means = [improved["before"], of_domain["mean"][source]["value"]]
                rows.append([domain, source, improved["models"], *shares, *means])
    return markdown_table(header, rows)


def _curves(curves: Mapping[str, Any]) -> str:
    header = ["domain", "images", "r", "from", "to", "width", "tau", "5 % quantile", "choice off by", "95 % quantile"]
    rows = []
    for domain, curve in curves.items():
        for index, images in enumerate(curve["images"]):
            cells = [value for key in ("pearson", "tau", "regret") for value in curve[key][index].values()]
            rows.append([domain, images, *cells])
    return markdown_table(header, rows, digits=2)
