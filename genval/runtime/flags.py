"""Settings as frozen dataclasses, and the command line as a view of them: one field is one flag.

    @dataclass(frozen=True, kw_only=True)
    class CorruptSettings:
        SCRIPT: ClassVar[str] = "relis/corrupt"
        domains: tuple[str, ...] = flag(("fog",), "domains to corrupt", type=comma_list)
        run: RunSettings = group(RunSettings, "run")

`parse_settings(CorruptSettings, argv, __doc__)` reads `--domains`, `--overwrite`, ... into it. A
field `preset: str | None = None` receives the name of the preset.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import path_dicts
from genval.runtime.errors import GenValError

# Other names of a flag, accepted in every script that has the flag: published names, and names of earlier versions.
# docs/flags.md describes each flag; a test fails where two names of one concept are both canonical.
ALIASES: dict[str, tuple[str, ...]] = {
    "segmenters": ("model_arch", "models", "model", "model_name"),
    "inpainting_model": ("model",),
    "domains": ("domain",),
    "num_workers": ("workers",),
    "output_dir": ("out", "results_dir"),  # the folder that a script writes
    "eval_dir": ("root_exp_dir",),  # results of relis/eval.py: written by it, read by the others
    "steps": ("ddim_steps",),
    "control_scale": ("strength",),
    "denoising_strength": ("strength",),
    "upscale_denoising_strength": ("upscale_strength",),
    "reference_dataset": ("true_dataset",),
    "class_set": ("classes",),
    "bootstrap_draws": ("draws",),
    "accelerator": ("device",),
    "image_width": ("picture_width",),
    "known": ("standardise",),
    "known_images": ("standardise_images",),
}

# A shell may replace an unquoted pattern by thousands of files.
_SHOWN = 5

Settings = TypeVar("Settings")


def canonical(name: str) -> str:
    """Return a flag's name for one of its aliases; aliases of several flags, and other names, are returned unchanged.

    >>> canonical("root_exp_dir"), canonical("strength"), canonical("seed")
    ('eval_dir', 'strength', 'seed')
    """
    owners = [flag_name for flag_name, aliases in ALIASES.items() if name in aliases]
    return owners[0] if len(owners) == 1 and name != "domain" else name  # --domain takes one, --domains several


def flag(
    default: Any = dataclasses.MISSING,
    help: str = "",
    *,
    type: Callable[[str], Any] | None = None,
    choices: Sequence[Any] | None = None,
    title: str | None = None,
    exclusive: str | None = None,
    positional: bool = False,
    bare: Any = None,
) -> Any:
    """A dataclass field that is also a command-line flag of the same name.

    Args:
        default: the value without the flag; without a default the flag is required.
        help: one line for `--help`.
        type: from the flag's text to its value; by default taken from the field's annotation (`int`, `float`, `str`,
            `bool`, `Literal[...]` and optional ones).
        choices: the accepted values; by default those of a `Literal` annotation.
        title: the group that `--help` lists the flag under; later fields without one stay in the same group. A subclass
            adds to a group of its base class by the same title.
        exclusive: flags with the same name here exclude each other.
        positional: whether the flag is a positional argument.
        bare: the value where the flag is given without one, e.g. `--compile`.
    """
    metadata = {
        "help": help,
        "type": type,
        "choices": choices,
        "title": title,
        "exclusive": exclusive,
        "positional": positional,
        "bare": bare,
    }
    return dataclasses.field(default=default, metadata={"flag": metadata})


def group(cls: type[Any], title: str, **defaults: Any) -> Any:
    """A dataclass field that holds another settings dataclass, whose fields become flags of one group.

    Args:
        cls: the dataclass.
        title: of the group in `--help`.
        defaults: values that differ from the dataclass's own defaults.
    """
    return dataclasses.field(default_factory=lambda: cls(**defaults), metadata={"group": title, "defaults": defaults})


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keep the docstring's lines, and show a flag's default where it is worth reading."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, (), "", argparse.SUPPRESS) or not action.help:
            return action.help
        if action.default is dataclasses.MISSING:
            return f"{action.help} (required)"
        if isinstance(action.default, (tuple, list)):
            return f"{action.help} (default: {','.join(map(str, action.default))})"
        return super()._get_help_string(action)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as all errors of a script are, instead of its whole usage."""

    def error(self, message: str) -> NoReturn:
        end = "" if message.endswith("?") else "."
        self.exit(2, f"error: {message}{end} See: python {self.prog} --help\n")


class Show(argparse.Action):
    """A flag that prints what its `show` returns and ends the script, as `--help` does."""

    def __init__(self, option_strings: Sequence[str], dest: str, show: Callable[[], str], help: str) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help=help)
        self.show = show

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        print(self.show())
        parser.exit()


def settings_parser(
    cls: type[Any],
    description: str | None = None,
    shows: Mapping[str, tuple[Callable[[], str], str]] | None = None,
) -> argparse.ArgumentParser:
    """Build the argument parser of a settings dataclass.

    Args:
        cls: the dataclass; its `SCRIPT` is the script's path from the repository's root without `.py`.
        description: the script's docstring.
        shows: flags that print a text and end the script, by name: what gives the text, and the help.
    """
    parser = _Parser(
        prog=f"{cls.SCRIPT}.py", description=description, formatter_class=_HelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--preset",
        choices=sorted(path_dicts.PRESETS),
        help="a table of defaults from path_dicts.py; 'mini' selects the mini world's data and checkpoints",
    )
    for name, (show, text) in (shows or {}).items():
        parser.add_argument(f"--{name}", action=Show, show=show, help=text)
    _add_fields(parser, cls, {})
    return parser


def parse_settings(
    cls: type[Settings],
    argv: Sequence[str] | None = None,
    description: str | None = None,
    shows: Mapping[str, tuple[Callable[[], str], str]] | None = None,
) -> Settings:
    """Read a script's flags into its settings dataclass.

    The defaults of `--preset` (`path_dicts.PRESETS[preset][SCRIPT]`) take the place of the dataclass's own.

    Raises:
        GenValError: the preset has an unknown flag, or the dataclass refuses a value, or a number is
            not finite.
    """
    parser = settings_parser(cls, description, shows)
    preset_parser = _Parser(prog=parser.prog, add_help=False, allow_abbrev=False)
    preset_parser.add_argument("--preset")
    _apply_preset(parser, cls, preset_parser.parse_known_args(argv)[0].preset)
    values, unrecognised = parser.parse_known_args(argv)
    if unrecognised:
        more = f" and {len(unrecognised) - _SHOWN} more" if len(unrecognised) > _SHOWN else ""
        shown = f"{' '.join(unrecognised[:_SHOWN])}{more}"
        parser.error(f"unrecognized arguments: {shown}{_suggestion(parser, unrecognised[0])}")
    missing = [f"--{name}" for name, value in vars(values).items() if value is dataclasses.MISSING]
    if missing:
        parser.error(f"the following arguments are required: {', '.join(missing)}")
    return _build(cls, vars(values))


def make_settings(cls: type[Settings], preset: str | None = None, **flags: Any) -> Settings:
    """Make a settings dataclass from flags given as keywords; their texts, as on the command line, are accepted too.

    Args:
        cls: the dataclass.
        preset: a name of `path_dicts.PRESETS`, whose defaults take the place of the dataclass's own.
        flags: by name or alias.

    Raises:
        GenValError: the preset is unknown or has an unknown flag, or the dataclass refuses a value, or a number is
            not finite.
        TypeError: a flag is unknown or a required one is missing.
    """
    if preset is not None and preset not in path_dicts.PRESETS:
        raise GenValError(f"Unknown preset {preset!r}: expected one of {', '.join(sorted(path_dicts.PRESETS))}.")
    parser = settings_parser(cls)
    _apply_preset(parser, cls, preset)
    values = {**vars(parser.parse_args([])), "preset": preset}
    actions = {name.lstrip("-"): action for action in parser._actions for name in action.option_strings}
    for name, value in flags.items():
        if name not in actions:
            raise TypeError(f"{cls.__name__} has no flag {name!r}")
        action = actions[name]
        text = isinstance(value, str) and action.type is not None
        values[action.dest] = action.type(value) if text else value  # type: ignore[operator, misc]
    missing = [name for name, value in values.items() if value is dataclasses.MISSING]
    if missing:
        raise TypeError(f"{cls.__name__} needs {', '.join(missing)}")
    return _build(cls, values)


def _apply_preset(parser: argparse.ArgumentParser, cls: type[Any], preset: str | None) -> None:
    if preset in path_dicts.PRESETS:
        script = cls.SCRIPT
        defaults = path_dicts.PRESETS[preset].get(script, {})
        parser.set_defaults(**_preset_defaults(parser, defaults, preset, script))


def flatten(settings: Any) -> dict[str, Any]:
    """Return the flags of a settings dataclass by name, those of nested groups included, and its script."""
    values: dict[str, Any] = {"script": settings.SCRIPT} if hasattr(settings, "SCRIPT") else {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if "group" in field.metadata:
            values |= flatten(value)
        else:
            values[field.name] = value
    return values


def _add_fields(parser: argparse.ArgumentParser, cls: type[Any], overrides: Mapping[str, Any]) -> None:
    hints = typing.get_type_hints(cls)
    target: Any = parser
    exclusive: dict[str, Any] = {}
    groups: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        if "group" in field.metadata:
            _add_fields_of_group(parser, hints[field.name], field)
            continue
        flag_of = field.metadata.get("flag")
        if flag_of is None:
            continue
        if title := flag_of["title"]:
            groups[title] = target = groups.get(title) or parser.add_argument_group(title)
        holder = target
        if name := flag_of["exclusive"]:
            if name not in exclusive:
                exclusive[name] = target.add_mutually_exclusive_group()
            holder = exclusive[name]
        _add_flag(holder, field, hints[field.name], overrides)


def _add_fields_of_group(parser: argparse.ArgumentParser, cls: type[Any], field: dataclasses.Field[Any]) -> None:
    target: Any = parser.add_argument_group(field.metadata["group"])
    _add_fields(target, cls, field.metadata["defaults"])


def _add_flag(holder: Any, field: dataclasses.Field[Any], hint: Any, overrides: Mapping[str, Any]) -> None:
    flag_of = field.metadata["flag"]
    default = overrides.get(field.name, field.default)
    options: dict[str, Any] = {"help": flag_of["help"], "default": default}
    kind, choices = _kind(hint)
    if kind is bool:
        options["action"] = "store_true"
    else:
        options["type"] = flag_of["type"] or (_plain(choices) if choices else kind)
        if flag_of["choices"] or choices:
            options["choices"] = list(flag_of["choices"] or choices)
        if flag_of["bare"] is not None:
            options |= {"nargs": "?", "const": flag_of["bare"]}
    if flag_of["positional"]:
        if default is dataclasses.MISSING:
            options.pop("default")
        holder.add_argument(field.name, **options)
        return
    holder.add_argument(f"--{field.name}", **options)
    aliases = [f"--{alias}" for alias in ALIASES.get(field.name, ())]
    taken = holder._option_string_actions
    aliases = [alias for alias in aliases if alias not in taken]
    if aliases:
        options |= {"help": argparse.SUPPRESS, "default": argparse.SUPPRESS}
        holder.add_argument(*aliases, dest=field.name, **options)


def _kind(hint: Any) -> tuple[Callable[[str], Any], tuple[Any, ...]]:
    """The type of a field's values, and the values of a `Literal`."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    if typing.get_origin(hint) is typing.Literal:
        return str, typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        return str, ()
    return hint, ()


def _plain(choices: Sequence[Any]) -> Callable[[str], Any]:
    return type(choices[0])


def _build(cls: type[Settings], values: Mapping[str, Any]) -> Settings:
    hints = typing.get_type_hints(cls)
    arguments: dict[str, Any] = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        if "group" in field.metadata:
            arguments[field.name] = _build(hints[field.name], values)
        elif field.name in values:
            value = values[field.name]
            arguments[field.name] = tuple(value) if isinstance(value, list) else value
            for number in value if isinstance(value, list | tuple) else (value,):
                if isinstance(number, float) and not math.isfinite(number):
                    raise GenValError(f"--{field.name}: expected a finite number, found {number}.")
    return cls(**arguments)


def _preset_defaults(
    parser: argparse.ArgumentParser, defaults: Mapping[str, Any], preset: str, script: str
) -> dict[str, Any]:
    names = {name.lstrip("-"): action.dest for action in parser._actions for name in action.option_strings}
    unknown = sorted(set(defaults) - set(names))
    if unknown:
        raise GenValError(f"path_dicts.PRESETS[{preset!r}][{script!r}] has unknown flags: {', '.join(unknown)}.")
    return {names[name]: value for name, value in defaults.items()}


def _suggestion(parser: argparse.ArgumentParser, text: str) -> str:
    if not text.startswith("-"):  # the shell has replaced a pattern by files, or divided a text
        return "; put a value with * or spaces in quotes"
    known = [name for action in parser._actions for name in action.option_strings]
    close = difflib.get_close_matches(text.partition("=")[0], known, n=1)
    return f"; did you mean {close[0]}?" if close else ""
