"""Files appear whole or not at all, and damaged text is refused by name."""

import os

import pytest
import torch
from safetensors.torch import save_file

from genval.runtime import files
from genval.runtime.errors import GenValError
from genval.runtime.files import replace_file


def test_a_failed_write_leaves_the_old_file_and_no_debris(tmp_path):
    path = tmp_path / "kept.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(ZeroDivisionError), files.replace_file(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert files.read_json(path) == {"a": 1}
    assert os.listdir(tmp_path) == ["kept.json"]


def test_weights_can_be_read_by_others_as_any_file_can(tmp_path):
    plain, weights = tmp_path / "plain.txt", tmp_path / "weights.safetensors"
    plain.touch()
    with replace_file(weights) as temporary:
        save_file({"a": torch.zeros(1)}, temporary)
    assert weights.stat().st_mode == plain.stat().st_mode


def test_a_file_in_the_way_of_a_folder_is_named(tmp_path):
    (tmp_path / "results").write_text("")
    with pytest.raises(GenValError, match=r"Cannot write .*results/out\.json"):
        files.write_json(tmp_path / "results" / "out.json", {})


def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(GenValError, match="No space left on device"):
        files.write_bytes(tmp_path / "out", b"data")
    assert os.listdir(tmp_path) == []


def test_nan_is_refused_in_json(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "out.json", {"miou": float("nan")})
    assert os.listdir(tmp_path) == []


def test_jsonl_errors_give_the_line(tmp_path):
    (tmp_path / "list.jsonl").write_text('{"a": 1}\n\n{"a": \n')
    with pytest.raises(GenValError, match=r"list\.jsonl, line 3"):
        files.read_jsonl(tmp_path / "list.jsonl")


def test_a_binary_file_is_not_a_list(tmp_path):
    (tmp_path / "list.jsonl").write_bytes(bytes(range(256)))
    with pytest.raises(GenValError, match=r"list\.jsonl is not a text file"):
        files.read_jsonl(tmp_path / "list.jsonl")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path, encoding):
    (tmp_path / "list.txt").write_text("Löwe\n\n book \n", encoding=encoding)
    assert files.read_lines(tmp_path / "list.txt") == ["Löwe", "book"]
    (tmp_path / "list.jsonl").write_text('{"a": "ö"}\n', encoding=encoding)
    assert files.read_jsonl(tmp_path / "list.jsonl") == [{"a": "ö"}]
    (tmp_path / "map.json").write_text('{"a": "ö"}', encoding=encoding)
    assert files.read_json(tmp_path / "map.json") == {"a": "ö"}


@pytest.mark.parametrize("line", ["[]", "null", '"a"', '[{"a": 1}]', "3"])
def test_a_line_that_is_no_object_is_named(tmp_path, line):
    (tmp_path / "list.jsonl").write_text(f'{{"a": 1}}\n{line}\n')
    with pytest.raises(GenValError, match=r"list\.jsonl, line 2: expected one JSON object"):
        files.read_jsonl(tmp_path / "list.jsonl")


def test_deeply_nested_json_is_named(tmp_path):
    (tmp_path / "deep.json").write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(GenValError, match=r"deep\.json is not valid JSON"):
        files.read_json(tmp_path / "deep.json")
