"""gate.json: read back as it was written, and refused where it does not speak of the files that are there."""

import json

import pytest

from genval.datasets import Item
from genval.datasets.gate import GATE, apply_gate, write_gate
from genval.runtime.errors import GenValError


@pytest.fixture
def items(tmp_path):
    found = []
    for name in ("a", "b", "c"):
        image = tmp_path / f"{name}.png"
        image.write_bytes(name.encode())
        found.append(Item(name, image, image, "fog", "munster"))
    return found


def test_what_is_kept_and_why_the_rest_is_not(items, tmp_path):
    reasons = {"a": [], "b": ["too dark", "a copy"], "c": []}
    assert write_gate(tmp_path, items, reasons, {"thresholds": {"min_bits": 3}}) == (2, 1)
    gate = json.loads((tmp_path / GATE).read_text())
    assert gate["thresholds"] == {"min_bits": 3} and [entry["id"] for entry in gate["kept"]] == ["a", "c"]
    kept, dropped = apply_gate(items, tmp_path)
    assert [item.id for item in kept] == ["a", "c"]
    assert [(bad.id, bad.cond, bad.scene) for bad in dropped] == [("b", "fog", "munster")]
    assert dropped[0].reason == "gate: too dark; a copy"
    # A part of a set may be asked for.
    assert apply_gate(items[2:], tmp_path) == (items[2:], [])


def test_a_gate_of_other_files_is_refused(items, tmp_path):
    with pytest.raises(GenValError, match=r"no .*gate.json. Run: python ControlNet/check_generated.py --folder"):
        apply_gate(items, tmp_path)
    write_gate(tmp_path, items[:2], {"a": [], "b": ["bad"]}, {})
    with pytest.raises(GenValError, match="1 are not in it, 0 have changed"):
        apply_gate(items, tmp_path)
    items[0].image.write_bytes(b"drawn again")
    with pytest.raises(GenValError, match=r"0 are not in it, 1 have changed since .*a\.png"):
        apply_gate(items[:2], tmp_path)
    (tmp_path / GATE).write_text('{"kept": ["a"]}')
    with pytest.raises(GenValError, match=r"kept\[0\]: expected an object, found text"):
        apply_gate(items, tmp_path)
