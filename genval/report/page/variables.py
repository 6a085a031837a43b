"""Variables of the page's template and the data of its charts, from the content of the page."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from genval.datasets.labels import CLASSES, PALETTE
from genval.report.families import FAMILIES
from genval.report.page.content import PageContent
from genval.report.page.reliability import bin_edges
from genval.report.schema import (
    SYNTHETIC,
    TRUE,
    ClassComparison,
    Comparison,
    PearsonEstimate,
    Report,
    Scaling,
)
from genval.report.summary import limit_text, severity_rows

_OOD_METRICS = ("auroc", "fpr95", "aupr_object", "aupr_background")
# The answers of the verdict in few words, and the look of each.
_TRUST: dict[str | None, tuple[str, str]] = {
    "better": ("predicts the reference, better than clear weather", "yes"),
    "yes": ("predicts the reference, but clear weather may predict it as well", "yes"),
    "worse": ("predicts the reference, worse than clear weather", "no"),
    "alone": ("predicts the reference", "yes"),
    "weak": ("predicts the reference only roughly", ""),
    "no": ("not shown", "no"),
    "few": ("no answer", ""),
    None: ("not compared: results are missing", ""),
}
# Plotly's symbols of the families, in their order.
_SYMBOLS = ("circle", "diamond", "square", "cross")
_NAMES = {
    "auroc": "AUROC",
    "aupr_object": "AUPR of the object",
    "aupr_background": "AUPR of the background",
    "fpr95": "FPR at 95 % TPR",
    "msp": "maximum softmax probability",
}


def page_variables(content: PageContent) -> dict[str, Any]:
    """Return the variables of page.html.j2."""
    report, labels = content.report, model_labels(content)
    return {
        "verdict": [_verdict_line(line) for line in content.verdict],
        "summary": _summary(report),
        "warnings": content.warnings,
        "stand_ins": content.preset == "mini",
        "facts": _facts(content),
        "sections": _sections(content),
        "predictors": report.predictors if report else [],
        "label_free": [predictor.key for predictor in (report.label_free if report else [])],
        "baselines": report.baselines if report else [],
        "side_names": side_names(report),
        "side_choices": [(predictor.key, predictor.name) for predictor in (report.predictors if report else [])],
        "labels": labels,
        "model_choices": [(model, labels[model]) for model in (report.models if report else [])],
        "families": families(report),
        **_agreement(report),
        **_ranking(report),
        **_sample_size(report),
        "severity": _severity(report, labels),
        "realism": report.realism if report else {},
        **_calibration(report),
        "diagrams": content.diagrams,
        "gallery": content.gallery,
        "palette": [(name, f"#{bytes(PALETTE[index]).hex()}") for index, name in enumerate(CLASSES)],
        "objects": content.objects,
        "finetuned": content.finetuned,
        **_ood(report),
        "provenance": content.provenance,
        "missing": content.missing,
    }


def chart_data(content: PageContent) -> dict[str, Any]:
    """Return what the scripts read, as JSON."""
    values = content.report.to_json() if content.report else {}
    calibration = values.get("calibration", {})
    return {
        "sideNames": side_names(content.report),
        "labelFree": [predictor.key for predictor in (content.report.label_free if content.report else [])],
        "labels": model_labels(content),
        "families": content.report.families if content.report else {},
        "symbols": dict(families(content.report)),
        "scatter": {
            "miou": values.get("robustness", {}),
            "ece": {domain: by_part["ece"] for domain, by_part in calibration.items()},
        },
        "ood": values.get("ood_detection", {}),
        "sampleSize": values.get("sample_size", {}),
        "severity": values.get("severity", {}),
        "scaling": {domain: by_part["scaling"] for domain, by_part in calibration.items() if by_part["scaling"]},
        "diagrams": content.diagrams,
        "binEdges": bin_edges(),
        "gallery": content.gallery,
        "objects": content.objects,
    }


def families(report: Report | None) -> list[tuple[str, str]]:
    """Return the families of the models, each with its symbol in charts; empty where there is only one."""
    found = set(report.families.values()) if report else set()
    symbols = dict(zip(FAMILIES, _SYMBOLS, strict=True))
    return [(family, symbols[family]) for family in FAMILIES if family in found] if len(found) > 1 else []


def side_names(report: Report | None) -> dict[str, str]:
    """Return the name of each side for the reader."""
    return {predictor.key: predictor.name for predictor in (report.predictors if report else [])} | {TRUE: "reference"}


def model_labels(content: PageContent) -> dict[str, str]:
    """Return a short name of every model on the page; the names in the report have priority."""
    names = list(content.report.models) if content.report else []
    names += [entry["model"] for entry in content.diagrams]
    names += [name for part in (content.gallery, content.objects) if part for name in part["models"]]
    return short_labels(list(dict.fromkeys(names))) | (content.report.short_names if content.report else {})


def short_labels(models: Sequence[str]) -> dict[str, str]:
    """Return a short name of each model: the last file or folder of its specification, if these names are unique.

    >>> short_labels(["SegFormer-B0", "hf:some/folder/upernet", "mmseg:a/b.py,c/fpn.pth"])
    {'SegFormer-B0': 'SegFormer-B0', 'hf:some/folder/upernet': 'upernet', 'mmseg:a/b.py,c/fpn.pth': 'fpn'}
    """
    short = {model: Path(model).stem if ":" in model else model for model in models}
    counts = Counter(short.values())
    return {model: label if counts[label] == 1 else model for model, label in short.items()}


def display_name(name: str) -> str:
    """Return the usual name of a score or metric.

    >>> display_name("fpr95"), display_name("max_logit")
    ('FPR at 95 % TPR', 'max logit')
    """
    return _NAMES.get(name, name.replace("_", " "))


def _verdict_line(line: str) -> dict[str, Any]:
    """Split a line of the verdict into the question and the sentences that answer it.

    >>> _verdict_line("Can it be trusted? Yes for fog (r 0.90, clear -0.28). Only roughly for night.")["answers"]
    ['Yes for fog (r\xa00.90, clear −0.28).', 'Only roughly for night.']
    """
    question, mark, rest = line.partition("? ")
    if not mark:
        return {"question": line, "answers": []}
    # A minus sign instead of a hyphen, and no line break after "(r".
    rest = re.sub(r"(?<=[\s(])-(?=\d)", "−", rest).replace("(r ", "(r\u00a0")
    return {"question": f"{question}?", "answers": re.split(r"(?<=\.) ", rest)}


def _summary(report: Report | None) -> list[dict[str, Any]]:
    """One line per domain that was asked for: the answer in few words, r, and the chosen model."""
    lines: list[dict[str, Any]] = []
    if report is None or not report.robustness:
        return lines
    for domain in report.domains:
        choice = report.answers.model.get(domain)
        words, tone = _TRUST[report.answers.trust.get(domain)]
        line = {"domain": domain, "trust": words, "tone": tone, "r": "", "model": choice and choice.chosen}
        own = report.robustness[domain].correlation[SYNTHETIC] if domain in report.robustness else None
        if own is not None and own.pearson.shown is not None:
            line["r"] = _with_interval(own.pearson)
        lines.append(line)
    return lines


def _with_interval(pearson: PearsonEstimate) -> str:
    """Return r and its interval as text; without an interval, why."""
    text = f"r {pearson.shown:.2f}"
    if pearson.ends is not None:
        text += " ({:.2f} to {:.2f})".format(*pearson.ends)
    elif pearson.refused:
        text += f" ({pearson.refused})"
    return re.sub(r"(?<=[\s(])-(?=\d)", "−", text)


def _facts(content: PageContent) -> list[tuple[int, str]]:
    """The counts in the header of the page."""
    gallery = content.gallery or {"models": [], "domains": []}
    objects = content.objects or {"objects": []}
    models = content.report.models if content.report else gallery["models"]
    compared = content.report.robustness if content.report else {}
    counts = [
        (len(models), "segmenter", "segmenters"),
        (len(compared or gallery["domains"]), "condition", "conditions"),
        (sum(entry["images"] for entry in gallery["domains"]), "generated image", "generated images"),
        (
            sum(entry["images"] for entry in objects["objects"]),
            "image of an unknown object",
            "images of unknown objects",
        ),
    ]
    return [(number, one if number == 1 else many) for number, one, many in counts if number]


def _total(entries: Iterable[Mapping[str, Any]]) -> int:
    return sum(entry["images"] for entry in entries)


def _sections(content: PageContent) -> list[tuple[str, str]]:
    """The anchors and titles of the sections that have content."""
    report = content.report
    compared = bool(report and report.robustness)
    sections = [
        ("agreement", "Agreement", compared),
        ("ranking", "Ranking", compared),
        ("images", "Sample size", report and report.sample_size),
        ("severity", "Strength", report and report.severity),
        ("calibration", "Calibration", _scaled(report) or content.diagrams),
        ("generated", "Images", content.gallery),
        (
            "objects",
            "Objects",
            content.objects or content.finetuned or (report and (report.ood_detection or report.ood_means)),
        ),
        ("provenance", "Provenance", True),
    ]
    return [(anchor, title) for anchor, title, has_content in sections if has_content]


def _agreement(report: Report | None) -> dict[str, Any]:
    robustness = report.robustness if report else {}
    per_class = {domain: comparison.per_class for domain, comparison in robustness.items() if comparison.per_class}
    metrics = [("miou", "mIoU")] if robustness else []
    if report and any(calibration.ece for calibration in report.calibration.values()):
        metrics.append(("ece", "ECE"))
    return {
        "robustness": robustness,
        "forest_low": _axis_start(_coefficients(robustness)),
        "scatter_metrics": metrics,
        "per_class": per_class,
        "class_low": _axis_start(_class_coefficients(per_class)),
        "published": report.published.pearson if report else {},
        "published_models": report.published.models if report else None,
    }


def _coefficients(robustness: Mapping[str, Comparison]) -> Iterable[float | None]:
    """Pearson's r of every predictor and the ends of its interval."""
    for comparison in robustness.values():
        for coefficients in comparison.correlation.values():
            if coefficients:
                yield from (coefficients.pearson.shown, coefficients.pearson.low)


def _class_coefficients(per_class: Mapping[str, Mapping[str, ClassComparison]]) -> Iterable[float | None]:
    """Pearson's r of every class and the lower end of its interval."""
    for by_class in per_class.values():
        for comparison in by_class.values():
            for coefficients in (comparison.synthetic, comparison.clear):
                if coefficients:
                    yield from (coefficients.pearson.shown, coefficients.pearson.low)


def _ranking(report: Report | None) -> dict[str, Any]:
    rows = _model_rows(report) if report else []
    columns = zip(*(cells for _, cells in rows), strict=True)
    best = [max((cell for cell in column if cell is not None), default=None) for column in columns]
    not_shown = [domain for domain in report.robustness if domain not in report.answers.model] if report else []
    return {"model_rows": rows, "best_cells": best, "not_shown": not_shown}


def _model_rows(report: Report) -> list[tuple[str, list[float | None]]]:
    """Each model's generated and reference score per domain; the model with the best mean reference score is first."""
    by_domain = {
        domain: {entry.model: entry.scores for entry in comparison.models}
        for domain, comparison in report.robustness.items()
    }

    def cell(model: str, domain: str, side: str) -> float | None:
        score = by_domain[domain].get(model, {}).get(side)
        return None if score is None else score.value

    def mean(model: str) -> float:
        scores = [score for domain in by_domain if (score := cell(model, domain, TRUE)) is not None]
        return sum(scores) / len(scores) if scores else -math.inf

    ranked = sorted(report.models, key=lambda model: (-mean(model), model))
    return [
        (model, [cell(model, domain, side) for domain in by_domain for side in (SYNTHETIC, TRUE)]) for model in ranked
    ]


def _sample_size(report: Report | None) -> dict[str, Any]:
    curves = report.sample_size if report else {}
    return {"sample_size": curves, "size_chart": any(len(curve.images) > 1 for curve in curves.values())}


def _severity(report: Report | None, labels: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Each domain's table, its limit in words, and the models that fall below it, the first one first."""
    found = {}
    for domain, curve in (report.severity if report else {}).items():
        header, rows = severity_rows(curve, labels)
        failing = [(falls.value, model) for model, falls in curve.falls_at.items() if falls.value is not None]
        found[domain] = {
            "header": header,
            "rows": rows,
            "limit": limit_text(curve),
            "models": len(curve.miou),
            "failing": sorted(failing),
        }
    return found


def _calibration(report: Report | None) -> dict[str, Any]:
    scaled = _scaled(report)
    hardest_tried = any(
        source.startswith(f"{SYNTHETIC}, ") and improvement.models
        for scaling in scaled.values()
        for source, improvement in scaling.improved.items()
    )
    return {"scaled": scaled, "hardest_tried": hardest_tried}


def _scaled(report: Report | None) -> dict[str, Scaling]:
    calibration = report.calibration if report else {}
    return {domain: by_part.scaling for domain, by_part in calibration.items() if by_part.scaling}


def _ood(report: Report | None) -> dict[str, Any]:
    compared = report.ood_detection if report else {}
    scores = dict.fromkeys(score for by_score in compared.values() for score in by_score)
    metrics = dict.fromkeys(
        metric for by_score in compared.values() for by_metric in by_score.values() for metric in by_metric
    )
    return {
        "ood_compared": compared,
        "ood_scores": [(score, display_name(score)) for score in scores],
        "ood_metrics": [(metric, display_name(metric)) for metric in metrics],
        "ood_mean_metrics": _OOD_METRICS,
        "ood_means": report.ood_means if report else {},
    }


def _axis_start(values: Iterable[float | None]) -> float:
    """The start of an axis of correlations: 0, or below it in steps of 0.5."""
    return max(-1.0, math.floor(2 * min((value for value in values if value is not None), default=0.0)) / 2)
