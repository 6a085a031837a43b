"""Settings as flags: types, groups, presets, aliases, and one vocabulary over all scripts."""

import argparse
import importlib
import typing
from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest

import path_dicts
from genval.runtime.commands import Command
from genval.runtime.errors import GenValError
from genval.runtime.flags import (
    ALIASES,
    canonical,
    flag,
    flatten,
    group,
    make_settings,
    parse_settings,
    settings_parser,
)
from genval.runtime.paths import REPO_ROOT
from genval.runtime.settings import Compile, RunSettings, comma_list, dataset_list, positive_int, seed_flag


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Of a script with a flag of each kind."""

    SCRIPT: ClassVar[str] = "stage/script"

    segmenters: tuple[str, ...] = flag(help="names", type=comma_list)
    sampler: Literal["ddim", "lcm"] = flag("ddim", "sampler", title="sampling")
    steps: int = flag(25, "steps", type=positive_int)
    scale: float | None = flag(None, "scale")
    compile: Compile = flag("auto", "compile", bare="on")
    caption: str | None = flag(None, "caption", exclusive="captions")
    no_captions: bool = flag(False, "none", exclusive="captions")
    seed: int = seed_flag()
    run: RunSettings = group(RunSettings, "run", limit=7)
    preset: str | None = None

    def __post_init__(self):
        if self.scale is not None and self.scale < 0:
            raise GenValError(f"--scale: expected 0 or more, found {self.scale}.")


def parse(*flags):
    return parse_settings(Settings, flags)


def refused(capsys, *flags):
    """Parse flags that end the process; returns the one line."""
    with pytest.raises(SystemExit) as stop:
        parse(*flags)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and error.startswith("error: ")
    assert "stage/script.py --help" in error
    return error


def test_flags_become_typed_fields():
    settings = parse("--segmenters", "a,b", "--steps", "3", "--scale", "0.5", "--compile", "--overwrite")
    assert settings.segmenters == ("a", "b") and settings.steps == 3 and settings.scale == 0.5
    assert settings.compile == "on" and settings.run == RunSettings(overwrite=True, limit=7)
    assert parse("--segmenters", "a", "--compile", "off", "--limit", "2").run.limit == 2
    assert flatten(settings)["overwrite"] is True and flatten(settings)["script"] == "stage/script"


def test_aliases_are_accepted_and_hidden():
    assert parse("--model_arch", "a", "--ddim_steps", "4") == parse("--segmenters", "a", "--steps", "4")
    text = settings_parser(Settings).format_help()
    assert "--segmenters" in text and "--model_arch" not in text and "(required)" in text


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((), "required: --segmenters"),
        (("--segmenters", "a,,b"), "names separated by commas"),
        (("--segmenters", "a", "--steps", "0"), "above 0, found '0'"),
        (("--segmenters", "a", "--limit", "many"), "above 0, found 'many'"),
        (("--segmenters", "a", "--seed", "1.5"), "whole number"),
        (("--segmenters", "a", "--seed", "9" * 20), "63 bits"),
        (("--segmenters", "a", "--sampler", "x"), "invalid choice"),
        (("--segmenters", "a", "--compile", "maybe"), "invalid choice"),
        (("--segmenters", "a", "--preset", "maxi"), "invalid choice"),
        (("--segmenters", "a", "--caption", "x", "--no_captions"), "not allowed with"),
        (("--segmenters", "a", "--step", "1"), "unrecognized arguments: --step 1; did you mean --steps? See: "),
        (("--segmenters", "a", "b.png", "c.png"), "b.png c.png; put a value with * or spaces in quotes. See: "),
        (("--segmenters", *"abcdefgh"), "unrecognized arguments: b c d e f and 2 more; put a value"),
    ],
)  # fmt: skip
def test_a_wrong_flag_is_one_line_and_exit_code_2(flags, said, capsys):
    assert said in refused(capsys, *flags)


def test_a_value_that_the_settings_refuse_is_a_users_error():
    with pytest.raises(GenValError, match="--scale: expected 0 or more"):
        parse("--segmenters", "a", "--scale", "-1")


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_number_that_is_not_finite_is_refused(value):
    with pytest.raises(GenValError, match=f"--scale: expected a finite number, found {value}"):
        parse("--segmenters", "a", f"--scale={value}")


@pytest.fixture
def preset(monkeypatch):
    monkeypatch.setitem(path_dicts.PRESETS, "mini", {"stage/script": {"ddim_steps": 10, "segmenters": "small,large"}})


def test_a_preset_lies_under_the_flags(preset):
    assert parse("--preset", "mini").segmenters == ("small", "large")
    assert parse("--preset", "mini").steps == 10 and parse("--preset", "mini").preset == "mini"
    assert parse("--steps", "3", "--preset", "mini").steps == 3


def test_a_preset_with_a_misspelt_flag_is_refused(monkeypatch):
    monkeypatch.setitem(path_dicts.PRESETS, "mini", {"stage/script": {"stepps": 10}})
    with pytest.raises(GenValError, match="stepps"):
        parse("--preset", "mini")


def test_settings_from_keywords(preset):
    settings = make_settings(Settings, "mini", steps=5, model_arch="x,y", overwrite=True)
    assert settings == parse("--preset", "mini", "--steps", "5", "--segmenters", "x,y", "--overwrite")
    assert make_settings(Settings, segmenters=["a"]).segmenters == ("a",)
    with pytest.raises(TypeError, match="no flag 'stepps'"):
        make_settings(Settings, "mini", stepps=1)
    with pytest.raises(TypeError, match="needs segmenters"):
        make_settings(Settings)
    with pytest.raises(GenValError, match="Unknown preset 'maxi'"):
        make_settings(Settings, "maxi")


@pytest.mark.parametrize("text", ["a,,b", "", ","])
def test_empty_list_entries_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError):
        comma_list(text)


def test_commas_of_a_folder_pair_belong_to_the_data_set():
    assert dataset_list("ACDC,folder:a,b,idd,pair:c,d,IDD") == ["ACDC", "folder:a,b,idd", "pair:c,d", "IDD"]


def test_commands_are_values():
    command = Command("relis/eval", {"segmenters": ["a b", "c"], "cond": None, "gate": True, "seed": 0})
    assert str(command) == "python relis/eval.py --segmenters 'a b,c' --gate --seed 0"
    assert command.with_flags(gate=False, seed=None).argv == ("relis/eval.py", "--segmenters", "a b,c")
    assert str(command.with_script("relis/x", "gate")) == "python relis/x.py --segmenters 'a b,c' --seed 0"


SCRIPTS = sorted(
    path.relative_to(REPO_ROOT).with_suffix("")
    for folder in ("ControlNet", "mini", "ood_detection", "ood_objects", "relis", "report", "")
    for path in (REPO_ROOT / folder).glob("*.py")
    if path.name not in ("__init__.py", "path_dicts.py", "presets.py")
)
# Two flags of one kind that are no synonyms: --domain takes exactly one, --domains several.
BOTH = {"domain"}


def settings_of(script):
    """The settings class of a script."""
    module = importlib.import_module(".".join(script.parts))
    return typing.get_type_hints(module.main)["settings"]


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_a_flag_has_one_name_in_all_scripts(script):
    """Of two names of one concept, only the canonical one may be a script's own flag; the other is its alias."""
    cls = settings_of(script)
    assert script.as_posix() == cls.SCRIPT
    parser = settings_parser(cls)
    own = {action.dest for action in parser._actions if action.help != argparse.SUPPRESS}
    second = {alias for aliases in ALIASES.values() for alias in aliases} - BOTH
    assert not own & second, f"{script}: a second name for a concept"
    accepted = {name.lstrip("-") for action in parser._actions for name in action.option_strings}
    for name in own:
        missing = set(ALIASES.get(name, ())) - accepted
        assert not missing, f"{script}: --{name} does not accept {missing}"


def test_aliases_have_one_meaning_where_they_have_one_owner():
    assert canonical("root_exp_dir") == "eval_dir" and canonical("steps") == "steps"
    assert canonical("strength") == "strength" and canonical("domain") == "domain"
