"""Models on the Hugging Face hub, `OWNER/NAME` or pinned as `OWNER/NAME@REVISION`; their own code never runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def split_revision(name: str) -> tuple[str, str | None]:
    """A hub name and its revision: a commit, a branch or a tag. A folder has none, whatever its name is.

    >>> split_revision("nvidia/segformer-b0@1c9cc33"), split_revision("nvidia/segformer-b0")
    (('nvidia/segformer-b0', '1c9cc33'), ('nvidia/segformer-b0', None))
    """
    repository, _, revision = name.partition("@")
    if Path(name).expanduser().is_dir() or not (repository and revision):
        return name, None
    return repository, revision


def pretrained(place: str) -> tuple[str, dict[str, Any]]:
    """What every `from_pretrained` of transformers is called with: the folder or hub name, and the options.

    Code that a model's repository brings is refused, without a question on the terminal.

    Args:
        place: a folder, or a hub name with or without a revision.
    """
    forbid_remote_code()
    name, revision = split_revision(place)
    return name, {"trust_remote_code": False, **({"revision": revision} if revision else {})}


def forbid_remote_code() -> None:
    """Have transformers refuse a repository's code where a library calls it without `trust_remote_code=False`.

    It would ask on the terminal, and run the code for a "y" on standard input.
    """
    from transformers import dynamic_module_utils

    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
