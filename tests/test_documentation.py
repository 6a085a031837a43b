"""What README and docs say is run or checked: Python lines, commands, links, the table of flags."""

import argparse
import ast
import importlib
import re
import shlex
import shutil
import typing
from pathlib import Path

import pytest
from script_runs import run_script

from genval.runtime.flags import ALIASES, settings_parser
from genval.runtime.paths import REPO_ROOT

PAGES = [
    REPO_ROOT / "README.md",
    REPO_ROOT / "CONTRIBUTING.md",
    *sorted((REPO_ROOT / "docs").rglob("*.md")),
    *(REPO_ROOT / folder / "README.md" for folder in ("checkpoints", "datasets", "images", "results", "tests/golden")),
]
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_CODE = re.compile(r"`([^`\n]+)`")


def parser_of(script: str) -> argparse.ArgumentParser:
    module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
    return settings_parser(typing.get_type_hints(module.main)["settings"])


# fuzz_parsers.py reads its flags without settings.
_SCRIPT = r"(?:(?:ControlNet|relis|ood_\w+|report|mini|benchmarks(?:/streets)?)/(?!fuzz_parsers)\w+|reproduce)\.py\b"


def commands(page: Path) -> list[str]:
    """The commands of a page: indented lines and inline code that start a script, continued lines joined.

    A script may follow a launcher or the head of a shell loop. A command "of commit ..." is that of an earlier version.
    """
    text = re.sub(r"\\\n\s*", " ", page.read_text())
    text = re.sub(r"`[^`\n]+` of commit", "", text)
    found = [part for line in text.splitlines() if line.startswith("    ") for part in line.split(";")]
    found += _CODE.findall(re.sub(r"\n", " ", text))
    found = [re.sub(r"\s#.*", "", command).replace("$B/", "benchmarks/streets/") for command in found]
    started = [
        re.search(rf"(?:^\s*|^OMP_NUM_THREADS=\d+ |(?:python|srun|torchrun|do)\b.* )({_SCRIPT}.*)", command)
        for command in found
    ]
    return [one[1] for one in started if one]


SCRIPTS = sorted(
    path.relative_to(REPO_ROOT).as_posix()
    for folder in ("ControlNet", "ood_objects", "relis", "ood_detection", "report", "mini", ".")
    for path in REPO_ROOT.glob(f"{folder}/*.py")
    if path.name not in ("__init__.py", "presets.py", "path_dicts.py")
)


def without_variables(words: list[str]) -> list[str]:
    """A command without the shell variables of a longer recipe."""
    return [word for word in words if not word.startswith("$")]


COMMANDS = sorted({(page.relative_to(REPO_ROOT).as_posix(), command) for page in PAGES for command in commands(page)})


def test_commands_are_found():
    assert len(COMMANDS) > 60


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=lambda value: value[:70])
def test_every_flag_of_a_command_is_the_scripts_own(page, command, monkeypatch):
    """Each flag exists under this name, not as an alias."""
    script, *words = shlex.split(command)
    assert (REPO_ROOT / script).is_file(), f"{page}: {command}"
    monkeypatch.syspath_prepend((REPO_ROOT / script).parent)  # a benchmark imports its neighbours
    parser = parser_of(script)
    own = {name for action in parser._actions if action.help != argparse.SUPPRESS for name in action.option_strings}
    own.add("--list_models")
    flags = {word.partition("=")[0] for word in without_variables(words) if word.startswith("--")}
    assert flags <= own, f"{page}: {command}: {sorted(flags - own)}"


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPO_ROOT).as_posix())
def test_links_lead_somewhere(page):
    for link in _LINK.findall(page.read_text()):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


def test_the_table_of_flags_is_that_of_the_library():
    """The aliases of docs/flags.md are those of `ALIASES`, and each flag is one of some script."""
    rows = [line.split("|")[1:] for line in (REPO_ROOT / "docs/flags.md").read_text().splitlines() if "| `--" in line]
    table = {_CODE.findall(row[1])[0].removeprefix("--"): _CODE.findall(row[2]) for row in rows}
    documented = {name: tuple(alias.removeprefix("--") for alias in aliases) for name, aliases in table.items()}
    assert {name: aliases for name, aliases in documented.items() if aliases} == ALIASES
    known = {action.dest for script in SCRIPTS for action in parser_of(script)._actions}
    assert set(documented) <= known


def test_every_flag_of_every_script_is_documented():
    """In the table of docs/flags.md, or among the further flags of its script."""
    table, _, further = (REPO_ROOT / "docs/flags.md").read_text().partition("## Further flags")
    shared = {_CODE.findall(line.split("|")[2])[0] for line in table.splitlines() if "| `--" in line}
    lists = {found[0]: set(found[1:]) for found in map(_CODE.findall, further.split("\n- ")[1:])}
    for script in SCRIPTS:
        actions = [action for action in parser_of(script)._actions if action.help != argparse.SUPPRESS]
        flags = {action.option_strings[0] for action in actions if action.option_strings} - {"-h"}
        assert lists.pop(script, set()) == flags - shared, script
    assert not lists


def test_every_script_is_in_the_table_of_stages():
    text = (REPO_ROOT / "docs/stages.md").read_text()
    folders = ("ControlNet", "ood_objects", "relis", "ood_detection", "report")
    scripts = [path for folder in folders for path in (REPO_ROOT / folder).glob("*.py") if path.name != "__init__.py"]
    assert not [path.name for path in scripts if path.name not in text]


@pytest.mark.slow
def test_the_python_lines_of_the_readme_run(tmp_path):
    """On rendered streets, in a copy of the project, after an evaluation of three segmenters."""
    lines = re.findall(r"```python\n(.*?)```", (REPO_ROOT / "README.md").read_text(), re.DOTALL)
    assert len(lines) == 1 and len(lines[0].splitlines()) <= 9
    copy = tmp_path / "project"
    copy.mkdir()
    for name in ("genval", "mini", "relis", "reproduce.py", "path_dicts.py", "ControlNet"):
        source = REPO_ROOT / name
        shutil.copytree(source, copy / name) if source.is_dir() else shutil.copy(source, copy)
    (copy / "checkpoints").symlink_to(REPO_ROOT / "checkpoints")

    def run(*command: str) -> str:
        done = run_script(*command, cwd=copy, environment={"PYTHONPATH": str(copy)})
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("mini/render.py", "--num_train", "0", "--num_val", "4", "--domains", "clear,fog")
    few = lines[0].replace("num_samples=16", "num_samples=4")
    (copy / "first_lines.py").write_text(few.partition("comparison")[0])
    run("first_lines.py")
    segmenters = "mini-segformer-hf,mini-fast-scnn,mini-pspnet-r18"
    for dataset, cond in (("Cityscapes", "all"), ("Cityscapes_fog", "all"), ("ACDC", "fog")):
        run("relis/eval.py", "--preset", "mini", "--segmenters", segmenters, "--trg_dataset", dataset, "--cond", cond)
    printed = run("-c", few)  # all lines, in a new interpreter
    assert "Can the synthetic verdict be trusted?" in printed and "fog (observed r " in printed


def test_no_error_names_an_alias():
    """Errors name a flag as `--help` does."""
    actions = [action for script in SCRIPTS for action in parser_of(script)._actions]
    own = {name for action in actions if action.help != argparse.SUPPRESS for name in action.option_strings}
    aliases = {f"--{alias}" for names in ALIASES.values() for alias in names} - own
    assert "--ddim_steps" in aliases
    for path in sorted((REPO_ROOT / "genval").rglob("*.py")):
        for raised in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Raise)):
            words = [one.value for one in ast.walk(raised) if isinstance(one, ast.Constant)]
            text = " ".join(word for word in words if isinstance(word, str))
            named = set(re.findall(r"--\w+", text))
            assert not named & aliases, f"{path}:{raised.lineno}: {named & aliases}"


_AVOIDED = re.compile(r"\b(pictures?|figures?|true[- ]size|mend(s|ed|ing)?|utili[sz]e[sd]?)\b", re.IGNORECASE)


def prose(text: str) -> str:
    """A page without indented blocks and inline code."""
    lines = [line for line in text.splitlines() if not line.startswith("    ")]
    return _CODE.sub("", "\n".join(lines))


def test_one_word_per_concept():
    """Pages, help and the report page say image, score or metric, full size, fix and use."""
    found = {str(page): _AVOIDED.findall(prose(page.read_text())) for page in PAGES}
    for script in SCRIPTS:
        actions = parser_of(script)._actions
        found[script] = _AVOIDED.findall(" ".join(action.help or "" for action in actions))
    template = (REPO_ROOT / "genval/report/page/templates/page.html.j2").read_text()
    found["page"] = _AVOIDED.findall(re.sub(r"<[^>]*>|\{[{%].*?[%}]\}", "", template))
    assert not {where: words for where, words in found.items() if words}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPO_ROOT).as_posix())
def test_rows_of_a_table_have_the_cells_of_its_header(page):
    table = ""
    for line in [*page.read_text().splitlines(), ""]:
        row = _CODE.sub("", line)
        if not row.startswith("|"):
            table = ""
            continue
        table = table or row
        assert row.count("|") == table.count("|"), f"{page.name}: {line}"
