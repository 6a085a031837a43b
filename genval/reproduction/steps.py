"""What a plan is made of."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from genval.runtime.commands import Missing

# Flags that say where and how a command runs, not what it makes.
_MANNER = re.compile(r" --(?:(?:accelerator|devices|batch_size) \S+|overwrite\b)")


@dataclass(frozen=True)
class Outputs:
    """What of a step's files is there.

    Attributes:
        made: how many of its items.
        files: files and folders that tell a change of the outputs.
    """

    made: int
    files: tuple[Path, ...] = ()


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
        inputs: files or folders that it reads, such as weights; they need not exist.
        data: data sets that it reads, by name: what lists their files.
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
    data: Mapping[str, Callable[[], Iterable[Path]]] = field(default_factory=dict)
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
