"""The one exception a user is meant to read."""


class GenValError(Exception):
    """Bad input or a bad setting: the message says what was expected, what was found and what to do.

    Scripts turn it into one line on standard error and exit code 2 (`genval.runtime.cli.run`).
    """
