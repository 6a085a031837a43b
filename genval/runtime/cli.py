"""The frame a script runs in: flags become settings, and a user's error becomes one line and exit code 2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import path_dicts
from genval.runtime.errors import GenValError
from genval.runtime.flags import parse_settings

Settings = TypeVar("Settings")


def run(
    main: Callable[[Any], None],
    settings: Any,
    description: str | None = None,
    shows: Mapping[str, tuple[Callable[[], str], str]] | None = None,
) -> None:
    """Run a script's `main` on the settings that its command line gives.

    Args:
        main: what the script does.
        settings: its settings dataclass, see `genval.runtime.flags`.
        description: its docstring, for `--help`.
        shows: flags that print a text and end the script, by name: what gives the text, and the help.
    """
    try:
        main(parse_settings(settings, None, description, shows) if isinstance(settings, type) else settings())
    except GenValError as error:
        _exit(f"error: {error}", 2)
    except KeyboardInterrupt:
        _exit("interrupted: run the same command again to resume.", 130)
    except ModuleNotFoundError as error:
        if (error.name or "genval").partition(".")[0] in ("genval", "mini"):
            raise
        _exit(f"error: the package {error.name} is not installed in the environment of {sys.executable}. "
              "Run: make install", 2)  # fmt: skip
    except Exception as error:
        # Compared by name: importing torch here would make --help slow.
        if type(error).__name__ not in ("OutOfMemoryError", "AcceleratorOutOfMemoryError"):
            raise
        _exit(
            "error: the device's memory is full. Give a smaller --batch_size or image size, or another --precision.", 2
        )


def _exit(message: str, code: int) -> None:
    print(message, file=sys.stderr)
    sys.exit(code)


# Legacy parsers, until every script has settings.


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """The docstring as it is written, and each flag's default where it has one worth reading."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as all errors of a script are, instead of its whole usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}. See: python {self.prog} --help\n")


def script_parser(description: str | None, script: str) -> argparse.ArgumentParser:
    """A parser for `script` (its path from the root without `.py`, e.g. `ControlNet/style_transfer`).

    It has `--preset` already; `parse` turns a preset into the defaults listed in `path_dicts.PRESETS`.
    """
    parser = _Parser(prog=f"{script}.py", description=description, formatter_class=_HelpFormatter)
    parser.set_defaults(script=script)
    parser.add_argument(
        "--preset",
        choices=sorted(path_dicts.PRESETS),
        help="a table of defaults from path_dicts.py: 'mini' is the embedded world's data and checkpoints",
    )
    return parser


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; the defaults of `--preset` lie under the flags a user gave."""
    preset_parser = _Parser(prog=parser.prog, add_help=False)
    preset_parser.add_argument("--preset")
    preset = preset_parser.parse_known_args(argv)[0].preset
    if preset in path_dicts.PRESETS:
        script = parser.get_default("script")
        defaults = path_dicts.PRESETS[preset].get(script, {})
        known = {action.dest for action in parser._actions}
        unknown = sorted(set(defaults) - known)
        if unknown:
            raise GenValError(f"path_dicts.PRESETS[{preset!r}][{script!r}] has unknown flags: {', '.join(unknown)}.")
        parser.set_defaults(**defaults)
        for action in parser._actions:
            if action.dest in defaults:
                action.required = False
    return parser.parse_args(argv)


def add_run_arguments(parser: argparse.ArgumentParser, seed: bool = True) -> None:
    """`--overwrite --limit --dry_run` and `--seed`: how much to do, and whether again."""
    group = parser.add_argument_group("run")
    if seed:
        group.add_argument(
            "--seed", type=seed_number, default=0, help="an item's own seed is a hash of this and the item"
        )
    group.add_argument("--overwrite", action="store_true", help="make existing outputs again instead of resuming")
    group.add_argument("--limit", type=positive_int, help="stop after this many items")
    group.add_argument("--dry_run", action="store_true", help="check the inputs, say what would be done, and stop")


def add_device_arguments(parser: argparse.ArgumentParser, precision: str = "32-true") -> None:
    """`--accelerator --devices --num_nodes --precision`, as Lightning names them.

    With "auto" as the default, a script calls `genval.runtime.devices.choose_precision`.
    """
    group = parser.add_argument_group("device")
    group.add_argument("--accelerator", default="auto", help="auto, cpu, gpu")
    group.add_argument("--devices", default="auto", help="number of devices a node, or auto")
    group.add_argument("--num_nodes", type=positive_int, default=1, help="number of machines")
    choices = ["32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true"]
    if precision == "auto":
        choices = ["auto", *choices]
    group.add_argument("--precision", default=precision, choices=choices)


def add_bad_input_arguments(parser: argparse.ArgumentParser) -> None:
    """`--skip_bad`: set bad items aside instead of stopping."""
    parser.add_argument(
        "--skip_bad",
        action="store_true",
        help="set a bad image or mask aside, count it and list it, instead of stopping at the first one",
    )


def positive_int(text: str) -> int:
    """An argparse type: a whole number above zero."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, found {text!r}")
    return value


def seed_number(text: str) -> int:
    """An argparse type: a whole number of up to 63 bits, which is what random generators take."""
    try:
        value = int(text)
    except ValueError:
        value = 2**63
    if not -(2**63) <= value < 2**63:
        raise argparse.ArgumentTypeError(f"expected a whole number of at most 63 bits, found {text!r}")
    return value


def comma_list(text: str) -> list[str]:
    """An argparse type: `a,b,c` to `["a", "b", "c"]`, empty entries refused."""
    values = [part.strip() for part in text.split(",")]
    if not all(values):
        raise argparse.ArgumentTypeError(f"expected names separated by commas, found {text!r}")
    return values


def dataset_list(text: str) -> list[str]:
    """An argparse type: `comma_list`, where the commas of `folder:IMAGES,MASKS,LABELS` belong to the data set.

    So does that of `pair:IMAGES,MASKS`.
    """
    commas = {"folder": 2, "pair": 1}
    values: list[str] = []
    for part in comma_list(text):
        if values and values[-1].count(",") < commas.get(values[-1].partition(":")[0], 0):
            values[-1] += f",{part}"
        else:
            values.append(part)
    return values


class Show(argparse.Action):
    """A flag that prints what its `show` returns and ends the script, as `--help` does."""

    def __init__(self, option_strings: Sequence[str], dest: str, show: Callable[[], str], help: str) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help=help)
        self.show = show

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        print(self.show())
        parser.exit()
