from pathlib import Path

import pytest

from genval.diffusion.prompts import check_template, find_captions, find_domain, fit_prompt, make_prompt, split_domains
from genval.runtime.errors import GenValError


def test_domains_by_name_and_by_words() -> None:
    assert find_domain("fog").texts == find_domain("Fog").texts == ("in fog",)
    smoke = find_domain("Thick  smoke!")
    assert (smoke.name, smoke.texts) == ("thick-smoke", ("in Thick  smoke!",))
    assert find_domain("dust").name == "dust"  # near dusk, but a word of its own
    assert find_domain(None, "fogg").texts == ("in fogg",)


def test_a_list_has_known_domains_only() -> None:
    assert split_domains("fog, Night,fog") == ["fog", "night"]
    assert split_domains("fog") == ["fog"]
    assert split_domains("thick smoke, no wind") == ["thick smoke, no wind"]
    with pytest.raises(GenValError, match=r"--domain fog,nigth: 'nigth' is not a known domain.*--prompt"):
        split_domains("fog,nigth")


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
        with pytest.raises(GenValError, match=f"{bad.name}"):
            find_domain("fog", prompt_file=str(bad))


def test_templates() -> None:
    check_template("{domain}: {caption}")
    assert make_prompt("{caption}, {domain}", "a road", "in fog") == "a road, in fog"
    assert make_prompt("{caption}, {domain}", "", "in fog") == "in fog"
    with pytest.raises(GenValError, match="every domain would get the same prompt"):
        check_template("{caption}, in fog")


def test_a_long_caption_leaves_room_for_the_domain() -> None:
    def fits(prompt: str) -> bool:
        return len(prompt.split()) <= 6

    template = "{caption}, {domain}"
    assert fit_prompt(template, "a road, in town", "in fog", fits) == "a road, in town, in fog"
    assert fit_prompt(template, "a road, in town with trees", "in fog", fits) == "a road, in town, in fog"
    assert fit_prompt(template, "a long wide road, seen at noon", "in fog", fits) == "a long wide road, in fog"
    assert fit_prompt(template, "a road", "in fog with far more of it", lambda _: True).endswith("more of it")
    with pytest.raises(GenValError, match="too long"):
        fit_prompt(template, "a road", "in fog with far more of it", fits)


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
    with pytest.raises(GenValError, match=r"expected /no/where\.json\. "):  # each place once
        find_captions("/no/where.json", "val", tmp_path)
