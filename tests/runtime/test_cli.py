"""Shared flags, presets, and what a user sees when something is wrong."""

import pytest

import path_dicts
from genval.runtime import cli, paths, seeds
from genval.runtime.errors import GenValError


@pytest.fixture
def preset(monkeypatch):
    monkeypatch.setitem(path_dicts.PRESETS, "mini", {"stage/script": {"steps": 10, "name": "small"}})

    def parser():
        parser = cli.script_parser("Do a thing.", "stage/script")
        parser.add_argument("--steps", type=int, default=25)
        parser.add_argument("--name", required=True)
        return parser

    return parser


def test_a_preset_lies_under_the_flags(preset):
    assert cli.parse(preset(), ["--name", "large"]).steps == 25
    args = cli.parse(preset(), ["--preset", "mini"])
    assert (args.steps, args.name) == (10, "small")
    assert cli.parse(preset(), ["--steps", "3", "--preset", "mini"]).steps == 3


def test_a_preset_with_a_misspelt_flag_is_refused(preset, monkeypatch):
    monkeypatch.setitem(path_dicts.PRESETS, "mini", {"stage/script": {"stepps": 10}})
    with pytest.raises(GenValError, match="stepps"):
        cli.parse(preset(), ["--preset", "mini", "--name", "x"])


def test_a_users_error_is_one_line_and_exit_code_2(capsys):
    def main(_):
        raise GenValError("No masks in here. Run: there.")

    with pytest.raises(SystemExit) as stop:
        cli.run(main, lambda: None)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: No masks in here. Run: there.\n"


def test_a_link_one_folder_deeper_is_found(tmp_path):
    (tmp_path / "elsewhere" / "cityscapes").mkdir(parents=True)
    (tmp_path / "datasets").mkdir()
    assert paths.find_below(tmp_path / "datasets", "cityscapes") is None
    (tmp_path / "datasets" / "my_data").symlink_to(tmp_path / "elsewhere")
    assert paths.find_below(tmp_path / "datasets", "cityscapes") == tmp_path / "datasets" / "my_data" / "cityscapes"


def test_item_seeds_are_fixed_and_differ():
    assert seeds.item_seed(0, "fog_0") == seeds.item_seed(0, "fog_0")
    drawn = {seeds.item_seed(run, f"fog_{n}") for run in range(4) for n in range(100)}
    assert len(drawn) == 400
    assert max(drawn) < 2**63


@pytest.mark.parametrize("text", ["a,,b", "", ","])
def test_empty_list_entries_are_refused(text):
    import argparse

    with pytest.raises(argparse.ArgumentTypeError):
        cli.comma_list(text)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--limit", "many"], "above 0, found 'many'"),
        (["--limit", "0"], "above 0, found '0'"),
        (["--seed", "1.5"], "whole number"),
        (["--seed", "9" * 20], "63 bits"),
        (["--preset", "maxi"], "invalid choice"),
        (["--preset"], "expected one argument"),
        (["--limits", "1"], "unrecognized arguments"),
    ],
)
def test_a_wrong_flag_is_one_line_and_exit_code_2(flags, said, capsys):
    parser = cli.script_parser("Do a thing.", "stage/script")
    cli.add_run_arguments(parser)
    with pytest.raises(SystemExit) as stop:
        cli.parse(parser, flags)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert error.startswith("error: ") and said in error and "stage/script.py --help" in error


def test_a_full_device_is_one_line(capsys):
    class OutOfMemoryError(RuntimeError):
        """As torch's, which is not imported for this."""

    def main(_):
        raise OutOfMemoryError("CUDA out of memory. Tried to allocate")

    with pytest.raises(SystemExit) as stop:
        cli.run(main, lambda: None)
    assert stop.value.code == 2 and "--batch_size" in capsys.readouterr().err
