"""`settings.json`: the flags a stage ran with and the versions it ran on."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from genval.runtime.files import write_json
from genval.runtime.flags import flatten

_PACKAGES = ("torch", "diffusers", "transformers", "pytorch-lightning", "mmsegmentation", "numpy")


def write_settings(folder: str | Path, settings: Any) -> Path:
    """Write `settings.json` into `folder`: the settings (a dataclass or a mapping) and the versions.

    Returns the path written.
    """
    values: Mapping[str, Any] = settings if isinstance(settings, Mapping) else flatten(settings)
    path = Path(folder) / "settings.json"
    write_json(path, {"settings": {key: _plain(value) for key, value in values.items()}, "versions": _versions()})
    return path


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return value.as_posix()
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
