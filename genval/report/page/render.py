"""The page from its content: a Jinja2 template, with the style, the script and Plotly inside it."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from genval.datasets.labels import CLASSES, PALETTE
from genval.report.page.content import PageContent
from genval.report.page.reliability import bin_edges
from genval.runtime.errors import GenValError
from genval.runtime.files import write_bytes

MAX_BYTES = 20_000_000
SIDES = ("synthetic", "clear", "corrupted")
SIDE_NAMES = {"synthetic": "generated", "clear": "clear weather", "corrupted": "corruptions", "true": "reference"}
_OOD_METRICS = ("auroc", "fpr95", "aupr_object", "aupr_background")
_NAMES = {
    "auroc": "AUROC",
    "aupr_object": "AUPR of the object",
    "aupr_background": "AUPR of the background",
    "fpr95": "FPR at 95 % TPR",
    "msp": "maximum softmax probability",
}
_SCRIPTS = ("charts.js", "galleries.js", "page.js")


def write_page(path: Path, content: PageContent) -> Path:
    """Write the page, whole or not at all, and return its path.

    Raises:
        GenValError: it would be larger than 20 MB.
    """
    data = render_page(content).encode()
    if len(data) > MAX_BYTES:
        raise GenValError(
            f"{path} would be {len(data) / 1e6:.1f} MB, more than {MAX_BYTES / 1e6:.0f}. Give a smaller --max_gallery, "
            "--gallery_models or --picture_width."
        )
    write_bytes(path, data)
    return path


def render_page(content: PageContent) -> str:
    """The page's HTML."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs, get_plotlyjs_version

    environment = Environment(
        loader=PackageLoader("genval.report.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "num": _number,
        "span": _span,
        "place": _place,
        "ticks": _ticks,
        "short": lambda value: f"{value:g}",
        "pairs": lambda values: [(value, value) for value in values],
        "labelled": lambda models, labels: [(model, labels[model]) for model in models],
        "named": lambda names: [(name, _named(name)) for name in names],
        "label": _label,
    }
    return environment.get_template("page.html.j2").render(
        **_view(content),
        style=Markup(_read("style.css")),
        script=Markup("\n".join(map(_read, _SCRIPTS))),
        plotly=Markup(get_plotlyjs()),
        plotly_version=get_plotlyjs_version(),
        data=Markup(_embedded(_data(content))),
    )


def _view(content: PageContent) -> dict[str, Any]:
    """Variables of the page template."""
    correlation = content.correlation or {}
    robustness = {name: value for name, value in correlation.get("robustness", {}).items() if value}
    calibration = correlation.get("calibration", {})
    ood = {name: value for name, value in correlation.get("ood_detection", {}).items() if value}
    per_class = {name: value["per_class"] for name, value in robustness.items() if value.get("per_class")}
    sample_size = {name: value for name, value in correlation.get("sample_size", {}).items() if value}
    scaled = {name: value["scaling"] for name, value in calibration.items() if value and value.get("scaling")}
    parts = {
        "agreement": ("Agreement", robustness),
        "ranking": ("Ranking", robustness),
        "images": ("Sample size", sample_size),
        "calibration": ("Calibration", scaled or content.diagrams),
        "generated": ("Images", content.gallery),
        "objects": ("Objects", content.objects or ood or correlation.get("ood_figures")),
        "provenance": ("Provenance", True),
    }
    metrics_shown = [("miou", "mIoU")] if robustness else []
    if any(value and value.get("ece") for value in calibration.values()):
        metrics_shown.append(("ece", "ECE"))
    models = correlation.get("models", [])
    scores = list(dict.fromkeys(score for by_score in ood.values() for score in by_score))
    metrics = list(dict.fromkeys(name for by in ood.values() for by_metric in by.values() for name in by_metric))
    gallery, labels, rows = content.gallery, _labels(content), _model_rows(models, robustness)
    return {
        "verdict": [_verdict_line(line) for line in content.verdict],
        "facts": _facts(content, robustness),
        "sections": [(anchor, title) for anchor, (title, there) in parts.items() if there],
        "sides": SIDES,
        "side_names": SIDE_NAMES,
        "side_choices": [(side, SIDE_NAMES[side]) for side in SIDES],
        "robustness": robustness,
        "forest_low": _lowest(
            estimate
            for comparison in robustness.values()
            for side in comparison["correlation"].values()
            if side
            for estimate in [side["pearson"]["value"], *(side["pearson"]["over_both"] or [])]
        ),
        "scatter_metrics": metrics_shown,
        "labels": labels,
        "model_choices": [(model, labels[model]) for model in models],
        "model_rows": rows,
        "best_cells": [
            max((c for c in column if c is not None), default=None)
            for column in zip(*(cells for _, cells in rows), strict=True)
        ],
        "per_class": per_class,
        "class_low": _lowest(
            row[side]["pearson"][end]
            for classes in per_class.values()
            for row in classes.values()
            for side in ("synthetic", "clear")
            if row.get(side) and row[side].get("pearson")
            for end in ("value", "low")
        ),
        "published": correlation.get("published", {}).get("pearson", {}),
        "published_models": correlation.get("published", {}).get("models"),
        "sample_size": sample_size,
        "size_chart": any(len(curve["images"]) > 1 for curve in sample_size.values()),
        "scaled": scaled,
        "hardest_tried": any(
            source.startswith("synthetic, ") and of_source["models"]
            for value in scaled.values()
            for source, of_source in value["improved"].items()
        ),
        "diagrams": content.diagrams,
        "gallery": gallery,
        "palette": [(name, f"#{bytes(PALETTE[index]).hex()}") for index, name in enumerate(CLASSES)],
        "objects": content.objects,
        "ood_figures": ood,
        "ood_scores": [(score, _named(score)) for score in scores],
        "ood_metrics": [(metric, _named(metric)) for metric in metrics],
        "ood_mean_metrics": _OOD_METRICS,
        "ood_means": correlation.get("ood_figures", {}),
        "provenance": content.provenance,
        "missing": content.missing,
    }


def _data(content: PageContent) -> dict[str, Any]:
    """What the script draws."""
    correlation = content.correlation or {}
    calibration = correlation.get("calibration", {})
    return {
        "sideNames": SIDE_NAMES,
        "labels": _labels(content),
        "scatter": {
            "miou": correlation.get("robustness", {}),
            "ece": {name: value["ece"] for name, value in calibration.items() if value},
        },
        "ood": correlation.get("ood_detection", {}),
        "sampleSize": correlation.get("sample_size", {}),
        "scaling": {name: value["scaling"] for name, value in calibration.items() if value and value.get("scaling")},
        "diagrams": content.diagrams,
        "binEdges": bin_edges(),
        "gallery": content.gallery,
        "objects": content.objects,
    }


def _labels(content: PageContent) -> dict[str, str]:
    """A short name for every model that any part of the page names; those of the comparison go before."""
    correlation = content.correlation or {"models": []}
    names = [*correlation["models"], *(entry["model"] for entry in content.diagrams)]
    names += [name for part in (content.gallery, content.objects) if part for name in part["models"]]
    return model_labels(list(dict.fromkeys(names))) | correlation.get("short_names", {})


def model_labels(models: Sequence[str]) -> dict[str, str]:
    """A short name for each model: the last file's or folder's of a specification, where that tells all apart.

    >>> model_labels(["SegFormer-B0", "hf:some/folder/upernet", "mmseg:a/b.py,c/fpn.pth"])
    {'SegFormer-B0': 'SegFormer-B0', 'hf:some/folder/upernet': 'upernet', 'mmseg:a/b.py,c/fpn.pth': 'fpn'}
    """
    short = {model: Path(model).stem if ":" in model else model for model in models}
    counts = Counter(short.values())
    return {model: label if counts[label] == 1 else model for model, label in short.items()}


def _verdict_line(line: str) -> dict[str, Any]:
    """A line of the verdict in parts: the question, and the sentences that answer it.

    >>> _verdict_line("Can it be trusted? Yes for fog (r 0.90, clear -0.28). Only roughly for night.")["answers"]
    ['Yes for fog (r\xa00.90, clear −0.28).', 'Only roughly for night.']
    """
    question, mark, rest = line.partition("? ")
    if not mark:
        return {"question": line, "answers": []}
    # A minus sign instead of a hyphen, and no break after "(r".
    rest = re.sub(r"(?<=[\s(])-(?=\d)", "−", rest).replace("(r ", "(r\u00a0")
    return {"question": f"{question}?", "answers": re.split(r"(?<=\.) ", rest)}


def _label(text: str, labels: Mapping[str, str]) -> str:
    """A sentence with the models' short names in place of specifications."""
    for model in sorted(labels, key=len, reverse=True):
        text = text.replace(model, labels[model])
    return text


def _named(name: str) -> str:
    """How the field writes a score or metric.

    >>> _named("fpr95"), _named("max_logit")
    ('FPR at 95 % TPR', 'max logit')
    """
    return _NAMES.get(name, name.replace("_", " "))


def _embedded(value: Any) -> str:
    """JSON that a script element may hold: no text in it can end the element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _facts(content: PageContent, robustness: Mapping[str, Any]) -> list[tuple[int, str]]:
    models = (
        len(content.correlation["models"])
        if content.correlation
        else len((content.gallery or {"models": []})["models"])
    )
    domains = robustness or {entry["name"] for entry in (content.gallery or {"domains": []})["domains"]}
    images = sum(entry["images"] for entry in (content.gallery or {"domains": []})["domains"])
    objects = sum(entry["images"] for entry in (content.objects or {"objects": []})["objects"])
    counts = [
        (models, "model", "models"),
        (len(domains), "condition", "conditions"),
        (images, "generated image", "generated images"),
        (objects, "image of an unknown object", "images of unknown objects"),
    ]
    return [(number, one if number == 1 else many) for number, one, many in counts if number]


def _model_rows(models: Sequence[str], robustness: Mapping[str, Any]) -> list[tuple[str, list[float | None]]]:
    """Each model's generated and reference score per domain, the model with the best mean reference score first."""
    values = {domain: {row["model"]: row for row in comparison["models"]} for domain, comparison in robustness.items()}

    def cell(model: str, domain: str, side: str) -> float | None:
        entry = values[domain].get(model, {}).get(side)
        return None if entry is None else entry["value"]

    def mean(model: str) -> float:
        true = [value for domain in robustness if (value := cell(model, domain, "true")) is not None]
        return sum(true) / len(true) if true else -math.inf

    ranked = sorted(models, key=lambda model: (-mean(model), model))
    sides = ("synthetic", "true")
    return [(model, [cell(model, domain, side) for domain in robustness for side in sides]) for model in ranked]


def _lowest(values: Iterable[float | None]) -> float:
    """Where an axis of correlations starts: 0, or below it in steps of a half."""
    return max(-1.0, math.floor(2 * min((value for value in values if value is not None), default=0.0)) / 2)


def _place(value: float, low: float) -> str:
    """A correlation's place on an axis from `low` to 1.

    >>> _place(0.5, -1.0)
    '75.00%'
    """
    return f"{100 * (min(max(value, low), 1.0) - low) / (1.0 - low):.2f}%"


def _ticks(low: float) -> list[float]:
    return [low + 0.5 * step for step in range(round((1.0 - low) / 0.5) + 1)]


def _number(value: float | None, digits: int) -> str:
    """A number with a minus sign instead of a hyphen, or a dash."""
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def _span(ends: Sequence[float | None] | None, digits: int) -> str:
    if not ends or None in ends:
        return ""
    return f"[{_number(ends[0], digits)}, {_number(ends[1], digits)}]"


def _read(name: str) -> str:
    return (resources.files("genval.report.page") / "templates" / name).read_text(encoding="utf-8")
