import numpy as np
import pytest
from safetensors.numpy import load_file

from genval.artifacts.tensors import PackedTensors, pack, packed_ids, read_about, write_part
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
