"""Whose Python code may run: that of the project, of installed packages, and of what a user vouches for.

A `.py` config and the module of `module:function` run as they are read. Files from elsewhere need `--trust_code`, or
a folder in `path_dicts.TRUSTED_FOLDERS`.
"""

from __future__ import annotations

import importlib.util
import site
import sysconfig
from pathlib import Path

import path_dicts
from genval.runtime.errors import GenValError
from genval.runtime.paths import REPO_ROOT, resolve


def is_trusted(path: str | Path) -> bool:
    """Whether a file lies in the project, in an installed package, or in a trusted folder; links are followed."""
    real = Path(path).resolve()
    return any(real.is_relative_to(folder) for folder in _trusted_folders())


def require_trust(path: str | Path, name: str, trust_code: bool) -> None:
    """Refuse a Python file that is not trusted.

    Args:
        path: the file.
        name: what asks for it, for the error.
        trust_code: `--trust_code`: the user vouches for it.

    Raises:
        GenValError: it is neither trusted nor vouched for.
    """
    if trust_code or is_trusted(path):
        return
    folder = Path(path).resolve().parent
    raise GenValError(
        f"{name}: {Path(path).resolve()} is Python code, which runs when it is read, and is neither in the project nor "
        f"in an installed package. If you trust it, add --trust_code (in Python: trust_code=True), or its folder to "
        f'path_dicts.py: TRUSTED_FOLDERS = ("{folder}",).'
    )


def require_trusted_module(module: str, name: str, trust_code: bool) -> None:
    """Refuse a module that is not trusted, before it or a package around it is imported.

    Args:
        module: its dotted name.
        name: what asks for it, for the error.
        trust_code: as for `require_trust`.

    Raises:
        ImportError: there is no such module.
        GenValError: it is neither trusted nor vouched for.
    """
    parts = module.split(".")
    for length in range(1, len(parts) + 1):
        part = ".".join(parts[:length])
        try:
            spec = importlib.util.find_spec(part)  # imports the packages around it, which were checked before
        except ValueError as error:
            raise ImportError(f"{part} is not a module of a file") from error
        if spec is None:
            raise ModuleNotFoundError(f"No module named {part!r}", name=part)
        # A module without a file is part of Python, or a folder without code.
        if spec.has_location and spec.origin is not None:
            require_trust(spec.origin, name, trust_code)


def _trusted_folders() -> list[Path]:
    places = sysconfig.get_paths()
    installed = [places[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    installed += [*site.getsitepackages(), site.getusersitepackages()]
    own = map(resolve, path_dicts.TRUSTED_FOLDERS)
    return [folder.resolve() for folder in (REPO_ROOT, *map(Path, installed), *own)]
