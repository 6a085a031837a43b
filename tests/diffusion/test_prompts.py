import json
from pathlib import Path

import pytest

from genval.diffusion.prompts import check_template, find_captions, find_domain, make_prompt, read_captions
from genval.runtime.errors import GenValError


def test_domains_by_name_and_by_words() -> None:
    assert find_domain("fog").texts == find_domain("Fog").texts == ("in fog",)
    smoke = find_domain("Thick  smoke!")
    assert (smoke.name, smoke.texts) == ("thick-smoke", ("in Thick  smoke!",))
    assert find_domain("dust").name == "dust"  # near dusk, but a word of its own
    assert find_domain(None, "fogg").texts == ("in fogg",)


@pytest.mark.parametrize("slip", ["fogg", "nigth", "indai"])
def test_a_slip_in_a_known_name_is_refused(slip: str) -> None:
    with pytest.raises(GenValError, match=f"Unknown domain '{slip}'. Did you mean .*--prompt {slip}"):
        find_domain(slip)


@pytest.mark.parametrize("text", ["../..", "", "!"])
def test_words_need_a_letter(text: str) -> None:
    with pytest.raises(GenValError, match="--domain"):
        find_domain(None, text)


def test_long_words_make_a_short_folder() -> None:
    name = find_domain("very " * 40).name
    assert len(name) <= 60 and not name.endswith("-")


def test_prompt_files(tmp_path: Path) -> None:
    file = tmp_path / "p.txt"
    file.write_text("in haze\n\n  in mist \n")
    domain = find_domain("fog", prompt_file=str(file))
    assert (domain.name, domain.texts) == ("fog", ("in haze", "in mist"))
    assert {domain.text(seed) for seed in range(20)} == {"in haze", "in mist"}
    file.write_text("\n")
    for bad in (file, tmp_path / "none.txt"):
        with pytest.raises(GenValError, match=f"--prompt_file: .*{bad.name}"):
            find_domain("fog", prompt_file=str(bad))


def test_templates() -> None:
    check_template("{domain}: {caption}")
    assert make_prompt("{caption}, {domain}", "a road", "in fog") == "a road, in fog"
    assert make_prompt("{caption}, {domain}", "", "in fog") == "in fog"
    with pytest.raises(GenValError, match="every domain would be drawn alike"):
        check_template("{caption}, in fog")


def test_both_formats_of_captions(tmp_path: Path) -> None:
    lines, table = tmp_path / "c.jsonl", tmp_path / "c.json"
    lines.write_text(json.dumps({"image": "x/a.png", "text": "a road"}) + "\n")
    table.write_text(json.dumps({"cityscapes": {"y/a.png": "a road"}, "mini": {"b.png": "trees"}}))
    assert read_captions(lines) == {"a.png": "a road"}
    assert read_captions(table) == {"a.png": "a road", "b.png": "trees"}


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("c.jsonl", '{"image": "a/b.png"}\n', "entry 1"),
        ("c.json", '{"a.png": "a road"}', "expected"),
        ("c.json", "[1]", "expected"),
        ("c.json", '{"x": {"a.png": 1}}', "expected"),
        ("c.json", '{"x": {"a.png": "1", "b/a.png": "2"}}', "two captions for a.png"),
    ],
)
def test_damaged_captions(tmp_path: Path, name: str, text: str, words: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(GenValError, match=words):
        read_captions(tmp_path / name)


def test_where_captions_are_looked_for(tmp_path: Path) -> None:
    with pytest.raises(GenValError, match=r"No captions: expected .*training/val.jsonl.*clip_int.py.*--no_captions"):
        find_captions(None, "val", tmp_path)
    (tmp_path / "captions").mkdir()
    table = tmp_path / "captions/captions_cityscapes.json"
    table.write_text("{}")
    assert find_captions(None, "val", tmp_path) == table
    (tmp_path / "training").mkdir()
    lines = tmp_path / "training/val.jsonl"
    lines.write_text("")
    assert find_captions(None, "val", tmp_path) == lines
    assert find_captions("captions/captions_cityscapes.json", "val", tmp_path) == table
    assert find_captions(str(lines), "val") == lines
    with pytest.raises(GenValError, match=r"none\.json"):
        find_captions("none.json", "val", tmp_path)
