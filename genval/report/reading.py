"""`correlation.json`, read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from genval.report import FORMAT
from genval.runtime.errors import GenValError
from genval.runtime.files import read_json


def read_correlation(folder: Path, preset: str | None = None) -> dict[str, Any]:
    """What report/correlate.py wrote into a folder.

    Raises:
        GenValError: it is not there, or of another format.
    """
    path = folder / "correlation.json"
    command = "python report/correlate.py" + (f" --preset {preset}" if preset else "")
    if not path.exists():
        raise GenValError(f"No {path}. Run: {command}")
    values = read_json(path)
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise GenValError(f"{path} is not of format {FORMAT}. Make it again: {command}")
    return values
