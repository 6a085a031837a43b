"""Marks of what a step reads: a step whose marks differ from those of its last run is due again.

Marks are compared for difference, not for age: a file that was copied with an older modification time, and a clock that
was set back, are noticed too.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from genval.reproduction.steps import Outputs, Step
from genval.runtime.paths import REPO_ROOT

# By file, data set or step: what `steps.json` holds.
Marks = dict[str, Any]


# Bytes of a file's end that are read for every plan.
_END = 4096
# Bytes up to which the output of a step is read whole.
_SMALL = 1 << 20


class Marker:
    """Marks what steps read. Data sets and outputs of other steps are looked at once."""

    def __init__(self) -> None:
        self._digests: dict[str, str] = {}

    def mark(self, step: Step, before: Mapping[str, Outputs], known: Mapping[str, Any]) -> Marks:
        """Return the marks of a step's weights, data sets and earlier steps.

        A file of weights has its size, modification time, a hash of its end and one of its content. A data set has one
        hash of its files' names, sizes and modification times. An earlier step has one of its outputs' names and
        content; of large files the size, modification time and end count. What does not exist has no mark.

        Args:
            step: the step.
            before: the outputs of the steps that it waits for, by name.
            known: earlier marks of the step.
        """
        marks: Marks = {_name(file): _mark_file(file, known.get(_name(file))) for file in _files(step.inputs)}
        for name, find in step.data.items():
            if name not in self._digests:
                self._digests[name] = _digest(find(), _mark_image)
            marks[name] = self._digests[name]
        for name in step.before:
            if name in before:
                key = f"step {name}"
                if key not in self._digests:
                    self._digests[key] = _digest(_files(before[name].files), _mark_output)
                marks[key] = self._digests[key]
        return {name: mark for name, mark in marks.items() if mark}


def differing(recorded: Marks, now: Marks) -> list[str]:
    """Return the names of what has changed, appeared or vanished between two marks of a step."""
    names = dict.fromkeys((*now, *recorded))
    return [name for name in names if not _is_same(recorded.get(name), now.get(name))]


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        if any(one.get(key) != other.get(key) for key in ("size", "end")):
            return False
        return any(one.get(key) == other.get(key) for key in ("mtime", "content"))
    return bool(one == other)


def _mark_file(path: Path, known: Any) -> dict[str, Any]:
    status = path.stat()
    quick = {"size": status.st_size, "mtime": status.st_mtime_ns, "end": _end(path)}
    if isinstance(known, Mapping) and quick.items() <= known.items():
        return dict(known)  # a file of gigabytes is not read for every plan
    with open(path, "rb") as stream:
        content = hashlib.file_digest(stream, functools.partial(hashlib.blake2b, digest_size=16)).hexdigest()
    return {**quick, "content": content}


def _end(path: Path, length: int = _END) -> str:
    """A hash of a file's end: cheap, and another checkpoint differs there, even with the same size and time."""
    with open(path, "rb") as stream:
        stream.seek(max(0, path.stat().st_size - length))
        return hashlib.blake2b(stream.read(), digest_size=8).hexdigest()


def _digest(files: Iterable[Path], mark: Callable[[Path], str]) -> str:
    """Return a hash of files' names and marks; "" without files."""
    lines = []
    for file in sorted(set(files)):
        try:
            lines.append(f"{_name(file)} {mark(file)}")
        except OSError:  # a broken link, or a file that has just vanished
            lines.append(f"{_name(file)} missing")
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=16).hexdigest() if lines else ""


def _mark_image(path: Path) -> str:
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def _mark_output(path: Path) -> str:
    # A stage that finds nothing to do writes its records again, with the same content.
    return _end(path, _SMALL) if path.stat().st_size <= _SMALL else f"{_mark_image(path)} {_end(path)}"


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield the files among paths and below folders; hidden ones, such as locks, do not count."""
    for path in paths:
        if path.is_dir():
            found = (Path(folder) / name for folder, _, names in os.walk(path, followlinks=True) for name in names)
            yield from (file for file in found if file.is_file() and not file.name.startswith("."))
        elif path.is_file():
            yield path


def _name(file: Path) -> str:
    return file.relative_to(REPO_ROOT).as_posix() if file.is_relative_to(REPO_ROOT) else file.as_posix()
