import struct
import zipfile

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from genval.artifacts.tensors import PackedTensors, pack, packed_ids, read_about, read_arrays, write_part
from genval.runtime.errors import GenValError


def make_part(folder, item_id, value):
    path = folder / "parts" / f"{item_id}.safetensors"
    write_part(path, {"logits": np.full((3, 2), value, np.float16), "labels": np.arange(3, dtype=np.uint8)}, {"n": 3})
    return path


def test_parts_are_packed_read_and_added_to(tmp_path):
    packed, names = tmp_path / "logits.safetensors", ["b", "a/c"]
    parts = {name: make_part(tmp_path, name, value) for value, name in enumerate(names)}
    pack(packed, parts, {"n": 3})
    assert packed_ids(packed) == names and read_about(packed) == {"n": 3}
    assert not any(path.exists() for path in parts.values())
    assert load_file(packed)["a/c/logits"].tolist() == [[1, 1]] * 3  # the library reads it as well
    tensors = PackedTensors(packed)
    logits, labels = tensors.read("b", "logits", "labels")
    assert logits.dtype == np.float16 and logits.max() == 0 and labels.tolist() == [0, 1, 2]

    whole = packed.read_bytes()
    pack(packed, parts, {"n": 3})
    assert packed.read_bytes() == whole
    parts["d"] = make_part(tmp_path, "d", 7)
    make_part(tmp_path, "b", 9)
    pack(packed, parts, {"n": 3})
    assert [PackedTensors(packed).read(name, "logits")[0][0, 0] for name in parts] == [9, 1, 7]
    pack(packed, {"d": parts["d"]}, {"n": 3})
    assert packed_ids(packed) == ["d"]


def test_the_order_of_making_does_not_change_a_byte(tmp_path):
    for folder, order in (("one", "ab"), ("two", "ba")):
        for name in order:
            make_part(tmp_path / folder, name, ord(name))
        parts = {name: tmp_path / folder / "parts" / f"{name}.safetensors" for name in "ab"}
        pack(tmp_path / folder / "packed", parts, {})
    assert (tmp_path / "one/packed").read_bytes() == (tmp_path / "two/packed").read_bytes()


def test_missing_and_damaged_files_are_refused(tmp_path):
    packed = tmp_path / "logits.safetensors"
    assert packed_ids(packed) == [] and read_about(packed) is None
    with pytest.raises(GenValError, match="does not exist or is empty"):
        PackedTensors(packed)
    with pytest.raises(GenValError, match="has no a"):
        pack(packed, {"a": tmp_path / "nothing"}, {})
    parts = {"a": make_part(tmp_path, "a", 1)}
    pack(packed, parts, {})
    with pytest.raises(GenValError, match="has no colours of a"):
        PackedTensors(packed).read("a", "colours")
    whole = packed.read_bytes()
    for damage in (b"", b"12345678", whole[:-1], b"\xff" * 40):
        packed.write_bytes(damage)
        with pytest.raises(GenValError, match="not a whole safetensors file"):
            packed_ids(packed)


def test_metadata_are_plain_json_whose_order_does_not_matter(tmp_path):
    about = {"b": "straße", "a": 1}
    for name, values in (("one", about), ("two", dict(reversed(about.items())))):
        write_part(tmp_path / name, {"x": np.zeros(2)}, values)
        assert read_about(tmp_path / name) == about
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert "straße".encode() in (tmp_path / "one").read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_part(tmp_path / "three", {"x": np.zeros(2)}, {"a": float("nan")})
    save_file({"a/x": np.zeros(2)}, tmp_path / "four")
    assert read_about(tmp_path / "four") == {}


def test_new_metadata_replace_the_old_ones_and_the_same_leave_the_file(tmp_path):
    packed, parts = tmp_path / "packed", {"a": make_part(tmp_path, "a", 4)}
    pack(packed, parts, {"n": 3})
    before = packed.stat()
    pack(packed, parts, {"n": 3})
    assert packed.stat().st_mtime_ns == before.st_mtime_ns and packed.stat().st_ino == before.st_ino
    pack(packed, parts, {"n": 4})
    assert read_about(packed) == {"n": 4} and PackedTensors(packed).read("a", "logits")[0].max() == 4


def test_the_errors_of_damaged_files_name_cause_and_remedy(tmp_path):
    packed = tmp_path / "packed"
    pack(packed, {"a": make_part(tmp_path, "a", 1)}, {})
    packed.write_bytes(packed.read_bytes()[:-1])
    message = r"\(its length is not what its header says\)\. Delete it and run again\.$"
    with pytest.raises(GenValError, match=message):
        packed_ids(packed)
    packed.write_bytes(struct.pack("<Q", 8) + b'{"a": 1 ')
    with pytest.raises(GenValError, match=r"packed is not valid JSON \(.*\)\. Delete it and run again\.$"):
        packed_ids(packed)


def test_arrays_of_finite_numbers_are_read_and_others_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    arrays = {"x": np.arange(3), "y": np.ones((2, 2), np.float16), "u": np.zeros(1, np.uint8)}
    np.savez(path, **arrays, text=np.array(["a"]), bad=np.array([1, np.inf]), flags=np.ones(2, bool))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("raw", b"bytes")
    found = read_arrays(path, arrays, "Remedy.")
    assert [*found] == [*arrays]
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype and (found[name] == array).all()
    for name in ("text", "bad", "flags", "raw"):
        with pytest.raises(GenValError, match=rf"a\.npz: {name} does not hold finite numbers\. Remedy\.$"):
            read_arrays(path, [name], "Remedy.")
    with pytest.raises(GenValError, match=r"is missing or damaged \(KeyError\)\. Remedy\.$"):
        read_arrays(path, ["z"], "Remedy.")
    with pytest.raises(GenValError, match=r"b\.npz is missing or damaged \(FileNotFoundError\)\. Remedy\.$"):
        read_arrays(tmp_path / "b.npz", ["x"], "Remedy.")
