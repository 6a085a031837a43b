"""Where things are: the repository's root, and data sets or checkpoints that a user has linked into it."""

from __future__ import annotations

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
    if not root.is_dir():
        return None
    for folder in sorted(entry for entry in root.iterdir() if entry.is_dir()):
        if (folder / relative).exists():
            return folder / relative
    return None
