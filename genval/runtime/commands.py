"""Commands as values: what a user can run, printed in errors, plans and pages."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Command:
    """A script with its flags.

    Flags that are None, False or empty are omitted, True stands for a flag without a value, and the items of a sequence
    are joined by commas.

    >>> print(Command("relis/eval", {"segmenters": "a", "cond": ["fog", "night"], "gate": True, "seed": None}))
    python relis/eval.py --segmenters a --cond fog,night --gate
    """

    script: str
    flags: Mapping[str, Any] = field(default_factory=dict)

    def with_flags(self, **flags: Any) -> Command:
        """Return the command with more or other flags."""
        return replace(self, flags={**self.flags, **flags})

    def with_script(self, script: str, *without: str) -> Command:
        """Return a command of another script with the same flags, except some."""
        return Command(script, {name: value for name, value in self.flags.items() if name not in without})

    @property
    def argv(self) -> tuple[str, ...]:
        """The script's file and its flags, without the interpreter."""
        words = [f"{self.script}.py"]
        for name, value in self.flags.items():
            if value is True:
                words.append(f"--{name}")
            elif value is not None and value is not False and value not in ("", (), []):
                words += [f"--{name}", flag_text(value)]
        return tuple(words)

    def __str__(self) -> str:
        return f"python {shlex.join(self.argv)}"


def flag_text(value: Any) -> str:
    """Return a flag's value as its text on the command line."""
    return ",".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)


@dataclass(frozen=True)
class Missing:
    """What is missing, and how to get it.

    Attributes:
        what: e.g. "data set ACDC in datasets/acdc".
        remedy: a command, or a sentence.
    """

    what: str
    remedy: str
