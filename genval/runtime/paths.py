"""Where things are: the repository's root, and data sets or checkpoints that a user has linked into it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from genval.runtime.errors import GenValError

REPO_ROOT = Path(__file__).resolve().parents[2]


def resolve(path: str | Path) -> Path:
    """An absolute path: `path` itself if it is absolute, else taken from the repository's root.

    Scripts may be started from any folder; relative flags and the entries of `path_dicts.py` always mean the root.
    """
    path = Path(path).expanduser()
    return path if path.is_absolute() else REPO_ROOT / path


def is_inside(name: str) -> bool:
    """Whether a name, taken as a path in a folder, stays below the folder.

    >>> is_inside("frankfurt/frankfurt_000000"), is_inside("../../etc"), is_inside("/etc"), is_inside("")
    (True, False, False, False)
    """
    parts = name.split("/")
    return bool(name) and "\0" not in name and all(part not in ("", ".", "..") for part in parts)


def expected_inside(name: str) -> str | None:
    """What was expected of a name that leaves its folder (see `is_inside`); None for others."""
    return None if is_inside(name) else "a name without '..' that does not start with '/'"


def inside(folder: str | Path, name: str, what: str) -> Path:
    """The path `folder/name`.

    Args:
        folder: where the path must lie.
        name: as a user or a file gives it.
        what: the flag or key that gives the name, for the error.

    Raises:
        GenValError: the path would leave the folder.
    """
    if not is_inside(name):
        raise GenValError(f"{what}: expected a name of something in {folder}, found {name!r}. Give it without '..'.")
    return Path(folder) / name


def find_below(root: str | Path, relative: str | Path) -> Path | None:
    """`root/relative`, or the same one folder deeper (`root/*/relative`), or None.

    `ln -s <path> datasets` puts the link INSIDE `datasets/` when that folder exists, under whatever name the user's
    own folder has, so a data set or a checkpoint is looked for at the expected place first and then one level down.
    Where several folders match, the alphabetically first is taken, so that a run does not depend on directory order.
    """
    root = resolve(root)
    if (root / relative).exists():
        return root / relative
    for folder in subfolders(root):
        if (folder / relative).exists():
            return folder / relative
    return None


def subfolders(place: Path) -> list[Path]:
    """The folders in a folder, sorted, without hidden ones; none where it is missing or may not be read."""
    try:
        return sorted(entry for entry in place.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return []


def paths_below(root: Path) -> Iterator[Path]:
    """The files and folders below a folder, without hidden ones.

    Linked folders are searched, but not a folder within itself: below a link to a folder above it there is nothing.
    """
    return _paths_below(root, frozenset())


def _paths_below(folder: Path, above: frozenset[str]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        path = folder / entry.name
        yield path
        if path.is_dir() if entry.is_symlink() else entry.is_dir():  # `entry.is_dir` fails where a link leads to itself
            yield from _paths_below(path, above | {real})


def why_unopened(path: Path) -> str | None:
    """Why a file cannot be opened, as what follows its name in a sentence; None where it can."""
    try:
        str(path).encode()
    except UnicodeEncodeError:  # results could not name it
        return "has a name that is not UTF-8 (rename it)"
    if path.is_file():
        return None if os.access(path, os.R_OK) else "may not be read"
    if path.is_dir():
        return "is a folder, not a file"
    if path.is_symlink():
        return "is a link to a file that does not exist, or to itself"
    return "is no ordinary file" if path.exists() else "does not exist"
