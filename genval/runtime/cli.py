"""The frame a script runs in: flags become settings, and a user's error becomes one line and exit code 2."""

from __future__ import annotations

import atexit
import errno
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import path_dicts
from genval.runtime.devices import is_first_process, let_another_report, start_others, wait_for_first
from genval.runtime.errors import GenValError, interrupted_code, without_skip_bad
from genval.runtime.flags import parse_settings, settings_parser
from genval.runtime.paths import REPO_ROOT
from genval.runtime.settings import DeviceSettings

Settings = TypeVar("Settings")

# The exit code of a program whose output nobody reads any more, such as after `| head`: that of SIGPIPE in a shell.
_SIGPIPE = 141


def run(
    main: Callable[[Settings], None],
    settings: type[Settings],
    description: str | None = None,
    shows: Mapping[str, tuple[Callable[[], str], str]] | None = None,
) -> None:
    """Run a script's `main` on the settings that its command line gives.

    Args:
        main: what the script does.
        settings: its settings dataclass, with the script's name as `SCRIPT`; see `genval.runtime.flags`.
        description: its docstring, for `--help`.
        shows: flags that print a text and end the script, by name: what gives the text, and the help.
    """
    given: Settings | None = None
    try:
        _check_copy(getattr(main, "__globals__", {}).get("__file__", __file__))
        given = parse_settings(settings, None, description, shows)
        # Settings with a group of this name are those of stages that call `launch_fabric`.
        if isinstance(device := getattr(given, "device", None), DeviceSettings):
            wait_for_first()
            start_others(device)
        main(given)
        atexit.register(_end, main)
    except BrokenPipeError:
        if not _drop_unread_output("\n"):  # the pipe to another process is broken
            raise
        sys.exit(_SIGPIPE)
    except GenValError as error:
        _exit(f"error: {_followable(str(error), settings, given)}", 2)
    except KeyboardInterrupt as error:  # of a training, with the number of the signal
        _exit("interrupted: run the same command again to resume.", interrupted_code(error))
    except ModuleNotFoundError as error:
        if (error.name or "genval").partition(".")[0] in ("genval", "mini"):
            raise
        _exit(f"error: the package {error.name} is not installed in the environment of {sys.executable}. "
              "Run: make install", 2)  # fmt: skip
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        file = error.filename2 or error.filename or "a file"
        _exit(f"error: Cannot write {file}: {error.strerror}. Free disk space, or choose a folder you may write to.", 2)
    except Exception as error:
        # Compared by name: importing torch here would make --help slow.
        if type(error).__name__ not in ("OutOfMemoryError", "AcceleratorOutOfMemoryError"):
            if not let_another_report(is_for_user=False):
                sys.exit(1)
            raise
        _exit(
            "error: the device's memory is full. Give a smaller --batch_size or image size, or another --precision.", 2
        )
    finally:
        _drop_unread_output()


def _check_copy(script: str) -> None:
    """Check that a script is of the same copy of the project as this package.

    An environment holds one copy. The scripts of another one would run its code, and write into its folders.

    Raises:
        GenValError: it is of another copy.
    """
    copies = (folder for folder in Path(script).resolve().parents if (folder / "genval/__init__.py").is_file())
    copy = next(copies, REPO_ROOT)
    if copy != REPO_ROOT:
        raise GenValError(
            f"This script is in {copy}, but the environment of {sys.executable} holds the copy of GenVal in "
            f"{REPO_ROOT}. Run make install in {copy} and use its .venv, or set PYTHONPATH={copy}."
        )


def _end(main: Callable[..., None]) -> None:
    """End the process of a script that has succeeded.

    Called when the interpreter ends, after a profiler of the script has written its results. A program that has run the
    script as a part of it ends by itself.
    """
    from genval.runtime.fork_server import end_process

    if getattr(main, "__globals__", None) is vars(sys.modules["__main__"]):
        atexit.unregister(_end)  # end_process calls the other functions
        end_process(0)


def _drop_unread_output(more: str = "") -> bool:
    """Write the output that is still buffered, and `more`; discard it if the program that reads it has ended.

    Returns:
        Whether it was discarded.
    """
    try:
        print(end=more, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _exit(message: str, code: int) -> None:
    if let_another_report(is_for_user=True):
        # The progress bar of the first process may be on the line.
        print("" if is_first_process() else "\n", message, sep="", file=sys.stderr)
    sys.exit(code)


def _followable(message: str, settings: type[Any], given: Any) -> str:
    """Fit the remedies of an error to a script and the settings it was given: all scripts share the code below them.

    The remedy --skip_bad is left out if the script has no such flag, or was given it. Commands get the script's preset.
    """
    if "--skip_bad" in message and (
        getattr(given, "skip_bad", False) or "--skip_bad" not in settings_parser(settings).format_usage()
    ):
        message = without_skip_bad(message)
    preset = getattr(given, "preset", None)
    if preset is None or "--preset" in message:
        return message
    scripts = "|".join(map(re.escape, path_dicts.PRESETS[preset]))
    return re.sub(rf"(\bpython (?:{scripts})\.py)\b", rf"\1 --preset {preset}", message)
