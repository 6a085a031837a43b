"""Files appear whole or not at all, and damaged text is refused by name."""

import os
import resource
from typing import Literal, NotRequired, TypedDict

import numpy as np
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


@pytest.mark.parametrize("library", ["torch", "safetensors"])
def test_libraries_that_cannot_write_all_bytes_name_the_file(tmp_path, library):
    import torch
    from safetensors.torch import save_file

    save = torch.save if library == "torch" else save_file
    tensors = {"a": torch.zeros(100_000)}
    with files.replace_file(tmp_path / "good") as temporary:
        save(tensors, temporary)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # as a disk that is full after 1,000 bytes
    try:
        with (
            pytest.raises(GenValError, match=r"Cannot write .*/out: .*\. Free disk space"),
            files.replace_file(tmp_path / "out") as temporary,
        ):
            save(tensors, temporary)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == ["good"]


def test_other_errors_of_torch_stay_as_they_are(tmp_path):
    with pytest.raises(RuntimeError, match="shape"), files.replace_file(tmp_path / "out"):
        raise RuntimeError("shape")
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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b" \n", "it is empty"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' * 100_000, "nested too deeply"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": -Infinity}', "-Infinity is not a JSON number"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": 1, "a": 2}', "the key 'a' twice"),
        (b'{"a": "\\ud800"}', "surrogates not allowed"),
        ('{"a": "ö"}'.encode("latin-1"), "not a text file in UTF-8"),
        (b'{"a": 1', "not valid JSON"),
    ],
)
def test_json_is_read_strictly(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(GenValError, match=rf"a\.json.*{message}"):
        files.read_json(tmp_path / "a.json")
    (tmp_path / "a.jsonl").write_bytes(b'{"b": 1}\n' + content)
    if content.strip() and not content.startswith(b"\xff\xfe"):
        with pytest.raises(GenValError, match=r"a\.jsonl"):
            files.read_jsonl(tmp_path / "a.jsonl")


def test_a_byte_order_mark_is_ignored(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert files.read_json(path) == {"a": 1} and files.read_jsonl(path) == [{"a": 1}]
    path.write_bytes(b"\xef\xbb\xbflion\n")
    assert files.read_text(path) == "lion\n"


class Shape(TypedDict):
    id: str
    box: NotRequired[tuple[int, int]]
    scores: NotRequired[dict[str, float | None]]
    kind: NotRequired[Literal["a", "b"]]
    counts: NotRequired[list[list[int]]]
    shares: NotRequired[list[float]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("null", "expected an object, found null"),
        ("[]", "expected an object, found a list"),
        ("{}", "id: expected a value, found no such key"),
        ('{"id": null}', "id: expected text, found null"),
        ('{"id": "x", "box": [1]}', "box: expected 2 values, found 1"),
        ('{"id": "x", "box": [1, 2.5]}', r"box\[1\]: expected an integer, found a number"),
        ('{"id": "x", "box": [1, true]}', r"box\[1\]: expected an integer, found true or false"),
        ('{"id": "x", "box": [1, 99999999999999999999]}', r"box\[1\]: expected a number of 64 bits"),
        ('{"id": "x", "scores": {"f": "1"}}', r"scores\.f: expected a number, found text"),
        ('{"id": "x", "counts": [[1, 2], [3, 4.0]]}', r"counts\[1\]\[1\]: expected an integer, found a number"),
        ('{"id": "x", "counts": [[1, false]]}', r"counts\[0\]\[1\]: expected an integer, found true or false"),
        ('{"id": "x", "counts": [[9223372036854775808]]}', r"counts\[0\]\[0\]: expected a number of 64 bits"),
        ('{"id": "x", "shares": [0.5, true]}', r"shares\[1\]: expected a number, found true or false"),
        ('{"id": "x", "shares": [0.5, -99999999999999999999]}', r"shares\[1\]: expected a number of 64 bits"),
        ('{"id": "x", "kind": "c"}', "kind: expected 'a' or 'b', found 'c'"),
    ],
)
def test_another_shape_is_refused_by_its_key(tmp_path, content, message):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(GenValError, match=rf"a\.json: {message}"):
        files.read_json(tmp_path / "a.json", Shape)


def test_a_shape_keeps_other_keys(tmp_path):
    value = {"id": "x", "box": [1, 2], "scores": {"f": None}, "kind": "a", "other": [1]}
    value |= {"counts": [[1, -(2**63)], []], "shares": [1, 0.5, 1e30]}
    files.write_json(tmp_path / "a.json", value)
    assert files.read_json(tmp_path / "a.json", Shape) == {**value, "box": (1, 2)}


def test_lines_that_are_one_list_are_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('[{"a": 1},\n{"a": 2}]\n')
    with pytest.raises(GenValError, match="expected one JSON object a line"):
        files.read_jsonl(tmp_path / "a.jsonl")


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
    with pytest.raises(GenValError, match=r"list\.jsonl, line 2: expected an object"):
        files.read_jsonl(tmp_path / "list.jsonl")


def test_bytes_that_the_system_writes_in_parts_are_whole(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:3]))
    numbers = np.arange(10, dtype=np.int32)
    files.write_bytes(tmp_path / "numbers", numbers.data)
    assert (tmp_path / "numbers").read_bytes() == numbers.tobytes()


def test_ctrl_c_leaves_no_part_of_a_file(tmp_path, monkeypatch):
    def interrupt(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.write_bytes(tmp_path / "out", b"data")
    assert list(tmp_path.iterdir()) == []
