"""The images to caption: those of a data set, or those that match a pattern."""

from __future__ import annotations

import fnmatch
import glob
import itertools
from dataclasses import dataclass
from pathlib import Path

import path_dicts
from genval.datasets.items import ALL, IMAGE_EXTENSIONS, BadFile, find_items
from genval.datasets.layouts import find_root, suggestion
from genval.runtime.errors import GenValError
from genval.runtime.paths import REPO_ROOT, paths_below, resolve, why_unopened


@dataclass(frozen=True)
class Source:
    """An image to caption.

    Attributes:
        key: its path in the files of captions.
        image: path of the file.
        mask: path of its mask in the training lists, or None.
    """

    key: str
    image: Path
    mask: str | None = None


def find_sources(
    name: str, split: str | None, datasets_dir: str | Path | None = None, skipped: list[BadFile] | None = None
) -> list[Source]:
    """Return the images of a set of `path_dicts.CAPTION_SETS`, by condition, scene and id.

    Keys are relative to the data set's folder, or to `datasets_dir` if the set consists of several data sets.

    Args:
        name: of the set.
        split: a split's folder; None is every split with public labels.
        datasets_dir: the folder of the data sets; None is the set's own in path_dicts.py, or `datasets`.
        skipped: images without a mask are added to this list instead of being an error.

    Raises:
        GenValError: an unknown name, or the images are missing.
    """
    if name not in path_dicts.CAPTION_SETS:
        raise GenValError(
            f"Unknown data set {name!r}.{suggestion(name, path_dicts.CAPTION_SETS)} Known: "
            f"{', '.join(path_dicts.CAPTION_SETS)}. Add one to path_dicts.py, or give --images PATTERN."
        )
    entry = path_dicts.CAPTION_SETS[name]
    folder = resolve(datasets_dir or entry.get("datasets_dir", "datasets"))
    sources = []
    for dataset, cond in entry["parts"]:
        root = find_root(dataset, datasets_dir=_as_given(folder), flag="--datasets_dir")
        start = folder if len(entry["parts"]) > 1 else root
        items = find_items(dataset, cond, split=split or ALL, root=root, skipped=skipped)
        sources += [Source(_below(item.image, start), item.image, _below(item.mask, start)) for item in items]
    return sources


def match_sources(pattern: str, skipped: list[BadFile] | None = None) -> list[Source]:
    """Return the images that match a pattern with `*`, `?` and `**`, sorted; keys are relative to the repository.

    Args:
        pattern: of paths; hidden files do not match.
        skipped: files that cannot be opened are added to this list instead of being an error.

    Raises:
        GenValError: no image matches, or a file cannot be opened.
    """
    found = _match(resolve(pattern))
    images = sorted(path for path in found if path.suffix.lower() in IMAGE_EXTENSIONS)
    for path in list(images):
        if reason := why_unopened(path):
            if skipped is None:
                raise GenValError(f"{path} {reason}. Fetch or make the file again, or use --skip_bad.")
            skipped.append(BadFile(path.stem, "", "", str(path), reason))
            images.remove(path)
    if not images:
        root = _root(resolve(pattern))
        missing = next((path for path in (*reversed(root.parents), root) if not path.exists()), None)
        reason = f"it matches {len(found)} files. Put the pattern in quotes"
        if missing is not None:
            reason = f"{missing} does not exist. Make it, or give another pattern"
        raise GenValError(
            f"--images {pattern} matches no image ({', '.join(IMAGE_EXTENSIONS)}): {reason}; relative ones start at "
            "the repository's root."
        )
    return [Source(_below(image, REPO_ROOT), image) for image in images]


def _match(pattern: Path) -> list[Path]:
    parts = pattern.parts
    if "**" not in parts:
        return [Path(path) for path in glob.glob(str(pattern))]
    root = _root(pattern)
    return [path for path in paths_below(root) if _fits(path.relative_to(root).parts, parts[len(root.parts) :])]


def _root(pattern: Path) -> Path:
    """The part of a pattern before the first one with a wildcard."""
    return Path(*itertools.takewhile(lambda part: not glob.has_magic(part), pattern.parts))


def _fits(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Whether the parts of a path match those of a pattern, where `**` is any number of parts."""
    if not pattern or (not parts and pattern[0] != "**"):
        return not pattern and not parts
    if pattern[0] == "**":
        return _fits(parts, pattern[1:]) or bool(parts and _fits(parts[1:], pattern))
    return fnmatch.fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])


def _as_given(folder: Path) -> Path:
    """Return the folder as `find_root` expects it: it uses DATASET_ROOTS only with its own default."""
    return Path("datasets") if folder == REPO_ROOT / "datasets" else folder


def _below(path: Path, start: Path) -> str:
    return path.relative_to(start).as_posix() if path.is_relative_to(start) else path.as_posix()
