"""The page from its content: a Jinja2 template that contains the style, the script and Plotly."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from genval.report.page.content import PageContent
from genval.report.page.variables import chart_data, display_name, page_variables
from genval.runtime.errors import GenValError
from genval.runtime.files import write_bytes

MAX_BYTES = 20_000_000
_SCRIPTS = ("charts.js", "galleries.js", "page.js")


def write_page(path: Path, content: PageContent) -> Path:
    """Write the page atomically, and return its path.

    Raises:
        GenValError: the page would be larger than 20 MB.
    """
    data = render_page(content).encode()
    if len(data) > MAX_BYTES:
        raise GenValError(
            f"{path} would be {len(data) / 1e6:.1f} MB, more than {MAX_BYTES / 1e6:.0f}. Give a smaller --max_gallery, "
            "--gallery_models or --image_width."
        )
    write_bytes(path, data)
    return path


def render_page(content: PageContent) -> str:
    """Return the HTML of the page."""
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
        "named": lambda names: [(name, display_name(name)) for name in names],
        "label": _label,
    }
    return environment.get_template("page.html.j2").render(
        **page_variables(content),
        style=Markup(_read("style.css")),
        script=Markup("\n".join(map(_read, _SCRIPTS))),
        plotly=Markup(get_plotlyjs()),
        plotly_version=get_plotlyjs_version(),
        data=Markup(_embedded(chart_data(content))),
    )


def _label(text: str, labels: Mapping[str, str]) -> str:
    """Replace the specifications of models in a sentence by their short names."""
    for model in sorted(labels, key=len, reverse=True):
        text = text.replace(model, labels[model])
    return text


def _embedded(value: Any) -> str:
    """Return JSON for a script element: no text in it can end the element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _place(value: float, low: float) -> str:
    """Return the position of a correlation on an axis from `low` to 1.

    >>> _place(0.5, -1.0)
    '75.00%'
    """
    return f"{100 * (min(max(value, low), 1.0) - low) / (1.0 - low):.2f}%"


def _ticks(low: float) -> list[float]:
    return [low + 0.5 * step for step in range(round((1.0 - low) / 0.5) + 1)]


def _number(value: float | None, digits: int) -> str:
    """Format a number with a minus sign instead of a hyphen; None is a dash."""
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def _span(ends: Sequence[float | None] | None, digits: int) -> str:
    if not ends or None in ends:
        return ""
    return f"[{_number(ends[0], digits)}, {_number(ends[1], digits)}]"


def _read(name: str) -> str:
    return (resources.files("genval.report.page") / "templates" / name).read_text(encoding="utf-8")
