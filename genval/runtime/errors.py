"""The one exception a user is meant to read."""

import re
import signal


class GenValError(Exception):
    """Bad input or a bad setting: the message says what was expected, what was found and what to do.

    Scripts turn it into one line on standard error and exit code 2 (`genval.runtime.cli.run`).
    """


def without_skip_bad(message: str) -> str:
    """Return an error's message without the remedy --skip_bad, for a run without this flag or one that has given it."""
    return re.sub(r",? or (use|give) --skip_bad( to skip it)?|, skip [\w ]+ \(--skip_bad\)", "", message)


def interrupted_code(interrupt: KeyboardInterrupt) -> int:
    """Return the exit code after an interruption: 128 and the number of the signal, which a training gives."""
    number = interrupt.args[0] if interrupt.args else None
    return 128 + (number if isinstance(number, int) else signal.SIGINT)
