"""Parts of messages, and the messages of libraries that are silenced while weights are loaded."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from genval.runtime.devices import is_first_process


def listed(items: Sequence[Any], limit: int = 8) -> str:
    """Return the first items of a list as text, such as "a, b and 5 more", or "none"."""
    if not items:
        return "none"
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(str(item) for item in list(items)[:limit]) + more


def first_words(error: BaseException, limit: int = 300) -> str:
    """Return the beginning of an error's message on one line, or its type if it has no message."""
    return " ".join(str(error).split())[:limit] or type(error).__name__


@functools.cache
def print_once(text: str) -> None:
    """Print a line, once per run: models may be loaded twice, and all processes load models and find images."""
    if is_first_process():
        print(text)


@contextmanager
def silence_loading() -> Iterator[None]:
    """Silence the libraries' warnings about keys, which the caller raises as an error, and their progress bars."""
    import transformers

    loggers = [logging.getLogger(library) for library in ("diffusers", "transformers")]
    levels = [logger.level for logger in loggers]
    bar = transformers.utils.logging.is_progress_bar_enabled()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bar:
            transformers.utils.logging.enable_progress_bar()
