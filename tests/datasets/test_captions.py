"""Files of captions: both forms read alike, damaged ones refused."""

import json

import pytest

from genval.datasets.captions import read_captions, read_captions_by_path, write_captions
from genval.runtime.errors import GenValError

CAPTIONS = {"leftImg8bit/val/lindau/a_leftImg8bit.png": "a street", "leftImg8bit/val/munster/b_leftImg8bit.png": "öde"}


def test_both_forms_read_alike(tmp_path):
    write_captions(tmp_path / "captions.json", "cityscapes", CAPTIONS)
    assert json.loads((tmp_path / "captions.json").read_text()) == {"cityscapes": CAPTIONS}
    lines = [json.dumps({"image": key, "conditioning_image": "m", "text": text}) for key, text in CAPTIONS.items()]
    (tmp_path / "captions.jsonl").write_text("\n".join(lines) + "\n")
    for name in ("captions.json", "captions.jsonl"):
        assert read_captions_by_path(tmp_path / name) == CAPTIONS
        assert read_captions(tmp_path / name) == {"a_leftImg8bit.png": "a street", "b_leftImg8bit.png": "öde"}


def test_published_paths_of_several_sets(tmp_path):
    content = {"acdc_fog": {"/data/ACDC/rgb_anon/x.png": "cars"}, "acdc_rain": {"/data/ACDC/rgb_anon/y.png": ""}}
    (tmp_path / "captions.json").write_text(json.dumps(content))
    assert read_captions(tmp_path / "captions.json") == {"x.png": "cars", "y.png": ""}


def test_one_name_with_two_captions_is_refused(tmp_path):
    write_captions(tmp_path / "idd.json", "idd", {"0/frame.png": "cars", "1/frame.png": "trees"})
    assert len(read_captions_by_path(tmp_path / "idd.json")) == 2
    with pytest.raises(GenValError, match=r"two captions for images named frame\.png"):
        read_captions(tmp_path / "idd.json")
    write_captions(tmp_path / "same.json", "idd", {"0/frame.png": "cars", "1/frame.png": "cars"})
    assert read_captions(tmp_path / "same.json") == {"frame.png": "cars"}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", "[]", "expected"),
        ("a.json", "{}", "no captions"),
        ("a.json", '{"cityscapes": {"a.png": 3}}', "cityscapes\\.a\\.png: expected text, found an integer"),
        ("a.json", '{"a.png": "a street"}', "expected"),
        ("a.json", '{"cityscapes": {"a.png":', "not valid JSON"),
        ("a.jsonl", '{"image": "a.png"}\n', "line 1: text: expected a value"),
        ("a.jsonl", '"a.png"\n', "expected"),
        ("a.jsonl", "", "no captions"),
        ("a.jsonl", '{"image": "a", "text": "x"}\n{"image": "a", "text": "y"}\n', "two captions for a"),
    ],
)
def test_other_files_are_refused(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(GenValError, match=words):
        read_captions_by_path(tmp_path / name)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(GenValError, match="Cannot read"):
        read_captions(tmp_path / "none.json")
