"""The segmenters of the study: their specifications, input sizes, short names and families."""

from __future__ import annotations

import re
from pathlib import Path

from genval.runtime.errors import GenValError
from genval.runtime.paths import resolve

OWN = "own"
"""The family of the segmenters of mini/recipe; those of published networks are the first parts of their names."""
_OWN_WIDTH = 512


def find_models(published: str, own: str, chosen: tuple[str, ...] | None = None) -> dict[str, tuple[int, int]]:
    """Return specifications of segmenters, each with its input size (height, width).

    Args:
        published: folder of export_segmenters.py; the width is the last part of a file's name.
        own: folder of train_segmenters.py.
        chosen: short names; None is all.

    Raises:
        GenValError: there is none.
    """
    widths = {f"torchscript:{published}/{file.name}": file.stem.rpartition("-")[2] for file in _exported(published)}
    listed = resolve(own) / "list.txt"
    if listed.is_file():
        # Commas also separate the config and the weights of an `mmseg:` specification.
        own_models = re.split(r",(?=mmseg:|hf:)", listed.read_text(encoding="utf-8").strip())
        widths |= dict.fromkeys(own_models, str(_OWN_WIDTH))
    models = {model: (int(width) // 2, int(width)) for model, width in widths.items()}
    if chosen is not None:
        models = {model: size for model, size in models.items() if short_name(model) in chosen}
    if not models:
        raise GenValError(
            f"No segmenters in {published} and {own}. Run benchmarks/streets/export_segmenters.py and "
            "train_segmenters.py."
        )
    return models


def short_name(model: str) -> str:
    """Return the last part of a specification, without its extension.

    >>> short_name("torchscript:checkpoints/espnetv2-2.0-512.pt"), short_name("mmseg:a/fcn.py,b/fcn-strong.pth")
    ('espnetv2-2.0-512', 'fcn-strong')
    """
    return re.sub(r"\.(pt|pth)$", "", Path(model.rpartition(":")[2].rpartition(",")[2]).name)


def family_of(model: str) -> str:
    """Return the family of a segmenter: `dicenet`, `espnetv2`, `espnet` or `own`."""
    return short_name(model).partition("-")[0] if model.startswith("torchscript:") else OWN


def _exported(published: str) -> list[Path]:
    return sorted(resolve(published).glob("*-*.pt"))
