"""What a plan is made of."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from genval.runtime.commands import Missing

# Flags that say where and how a command runs, not what it makes.
_MANNER = re.compile(r" --(?:(?:accelerator|devices|batch_size) \S+|overwrite\b)")


@dataclass(frozen=True)
class Outputs:
    """What of a step's files is there.

    Attributes:
        made: how many of its items.
        time: when the newest was written, in seconds since the epoch; 0 where there is none.
        oldest: when the oldest was; None where there is none, or where items have no files of their own.
    """

    made: int
    time: float = 0.0
    oldest: float | None = None


@dataclass(frozen=True)
class Step:
    """One or more commands that make some files from others.

    Attributes:
        name: for a reader, and for other steps to name it.
        stage: the group it belongs to, which `--stages` chooses and rates are measured by.
        commands: scripts with their flags, run one after the other.
        size: how many items it makes in all; None where that is not known before its inputs are there.
        outputs: looks at the disk.
        needs: steps whose files it reads.
        any_of: steps of which it needs at least one, and takes all.
        after: steps whose files it takes where there are some.
        inputs: files or folders of weights that it reads.
        missing: data and weights that it cannot do without.
        work: images that all of it takes, where an item of it is a file made from many.
    """

    name: str
    stage: str
    commands: tuple[tuple[str, ...], ...]
    size: int | None
    outputs: Callable[[], Outputs]
    needs: tuple[str, ...] = ()
    any_of: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    inputs: tuple[Path, ...] = ()
    missing: tuple[Missing, ...] = ()
    work: int | None = None

    def images(self, items: int) -> float:
        """What the time of so many items is proportional to."""
        return items * self.work / self.size if self.work and self.size else items

    @property
    def run_name(self) -> str:
        """Its commands, by which runs are recorded: of fewer domains or models, a step's name may be the same."""
        return " && ".join(_MANNER.sub("", shlex.join(command)) for command in self.commands)

    @property
    def before(self) -> tuple[str, ...]:
        """All steps that it waits for."""
        return self.needs + self.any_of + self.after


def newest(*paths: Path) -> float:
    """When the newest of files, or of the files below folders, was written; 0 where there is none."""
    files = [file for path in paths for file in (path.rglob("*") if path.is_dir() else [path])]
    return max((file.stat().st_mtime for file in files if file.is_file()), default=0.0)
