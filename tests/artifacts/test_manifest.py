"""A manifest loses nothing that was finished, whatever a kill leaves behind."""

import json
from pathlib import Path

import pytest

from genval.artifacts.manifest import Manifest
from genval.artifacts.settings import write_settings
from genval.runtime.errors import GenValError


def record(number):
    return {"id": f"fog_{number}", "seed": number}


def test_finish_orders_and_merges_every_process(tmp_path):
    Manifest(tmp_path, rank=1).append([record(3), record(1)])
    Manifest(tmp_path, rank=0).append([record(2), record(0)])
    Manifest(tmp_path).finish([f"fog_{n}" for n in range(4)])
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.jsonl"]
    lines = (tmp_path / "manifest.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [record(n) for n in range(4)]


def test_a_torn_last_line_is_dropped_and_does_not_swallow_the_next(tmp_path):
    Manifest(tmp_path).append([record(0)])
    with open(tmp_path / "manifest.jsonl", "a") as stream:
        stream.write('{"id": "fog_1", "se')
    resumed = Manifest(tmp_path)
    assert "fog_0" in resumed
    assert "fog_1" not in resumed
    resumed.append([record(1)])
    assert set(Manifest(tmp_path).records) == {"fog_0", "fog_1"}


def test_a_damaged_line_is_named(tmp_path):
    (tmp_path / "manifest.jsonl").write_text('{"id": "a"}\n{"id": nonsense}\n{"id": "b"}\n')
    with pytest.raises(GenValError, match="line 2"):
        Manifest(tmp_path)


def test_a_rewritten_item_replaces_its_line(tmp_path):
    manifest = Manifest(tmp_path)
    manifest.append([record(0)])
    manifest.append([{"id": "fog_0", "seed": 99}])
    manifest.finish(["fog_0"])
    assert Manifest(tmp_path).records == {"fog_0": {"id": "fog_0", "seed": 99}}


def test_parts_that_a_killed_run_left_do_not_overrule_later_lines(tmp_path):
    Manifest(tmp_path, rank=1).append([record(0), record(1)])
    Manifest(tmp_path).merge()
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.jsonl"]
    Manifest(tmp_path).append([{"id": "fog_0", "seed": 99}])
    Manifest(tmp_path).finish(["fog_0", "fog_1"])
    assert Manifest(tmp_path).records == {"fog_0": {"id": "fog_0", "seed": 99}, "fog_1": record(1)}


def test_a_manifest_without_parts_keeps_its_bytes_and_none_is_made(tmp_path):
    Manifest(tmp_path / "none").merge()
    assert not (tmp_path / "none").exists()
    Manifest(tmp_path).append([record(1), record(0)])
    before = (tmp_path / "manifest.jsonl").read_bytes()
    Manifest(tmp_path).merge()
    assert (tmp_path / "manifest.jsonl").read_bytes() == before


def test_finishing_a_part_of_the_items_leaves_the_file_of_all_untouched(tmp_path):
    order = [f"fog_{n}" for n in range(12)]
    Manifest(tmp_path).append([record(n) for n in range(12)])
    Manifest(tmp_path).finish(order)
    path = tmp_path / "manifest.jsonl"
    before = path.read_bytes(), path.stat().st_mtime_ns
    for part in (order[:2], order[5:7], [], order):
        Manifest(tmp_path).finish(part)
        assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_an_id_that_is_named_twice_displaces_no_other(tmp_path):
    Manifest(tmp_path).append([record(n) for n in range(3)])
    Manifest(tmp_path).finish(["fog_0", "fog_0", "fog_2", "fog_1"])
    assert list(Manifest(tmp_path).records) == ["fog_0", "fog_2", "fog_1"]


def test_removed_items_are_gone_from_the_file(tmp_path):
    Manifest(tmp_path).append([record(n) for n in range(3)])
    manifest = Manifest(tmp_path)
    manifest.remove({"fog_1", "fog_9"})
    assert list(manifest.records) == list(Manifest(tmp_path).records) == ["fog_0", "fog_2"]


def test_a_copy_that_a_user_made_is_neither_read_nor_removed(tmp_path):
    names = ["manifest_backup.jsonl", "manifest.rank1_old.jsonl", "manifest.old.jsonl", "manifest2.jsonl"]
    for name in names:
        (tmp_path / name).write_text('{"id": "fog_9", "seed": 9}\nnot JSON\n{"id": "fog_8"}\n')
    Manifest(tmp_path, rank=1).append([record(0)])
    Manifest(tmp_path).merge()
    Manifest(tmp_path).finish(["fog_0"])
    assert Manifest(tmp_path).records == {"fog_0": record(0)}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names, "manifest.jsonl"])


@pytest.mark.parametrize("line", ["null", "[]", "3", '{"seed": 1}', '{"id": null}', '{"id": ["a"]}'])
def test_a_line_without_an_id_is_named(tmp_path, line):
    (tmp_path / "manifest.jsonl").write_text(f'{{"id": "a"}}\n{line}\n')
    with pytest.raises(GenValError, match=r"manifest\.jsonl, line 2: (id: )?expected .*, found"):
        Manifest(tmp_path)


def test_settings_are_plain_json(tmp_path):
    path = write_settings(tmp_path, {"out": Path("a/b"), "domains": ["fog"], "seed": 3})
    written = json.loads(path.read_text())
    assert written["settings"] == {"out": "a/b", "domains": ["fog"], "seed": 3}
    assert "torch" in written["versions"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("null", "expected an object, found null"),
        ("[1, 2]", "holds a JSON list"),
        ('{"a": 1}', "id: expected a value"),
        ('{"id": 3}', "id: expected text"),
        ('{"id": "x", "a": NaN}', "NaN is not a JSON number"),
    ],
)
def test_a_line_of_another_shape_is_refused(tmp_path, line, message):
    (tmp_path / "manifest.jsonl").write_text(f'{line}\n{{"id": "b"}}\n')
    with pytest.raises(GenValError, match=rf"manifest\.jsonl.*{message}"):
        Manifest(tmp_path)


def test_a_manifest_of_another_name_is_resumed_merged_and_finished_apart(tmp_path):
    Manifest(tmp_path).append([record(9)])
    Manifest(tmp_path, rank=1, name="ledger").append([record(1), record(3)])
    before = (tmp_path / "manifest.jsonl").read_bytes()
    assert set(Manifest(tmp_path, name="ledger").records) == {"fog_1", "fog_3"}
    Manifest(tmp_path, name="ledger").merge()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ledger.jsonl", "manifest.jsonl"]
    Manifest(tmp_path, name="ledger").append([record(2)])
    Manifest(tmp_path, name="ledger").finish(["fog_2"])
    Manifest(tmp_path, name="ledger").merge()
    # Records outside of the order keep their places.
    assert list(Manifest(tmp_path, name="ledger").records) == ["fog_1", "fog_3", "fog_2"]
    assert (tmp_path / "manifest.jsonl").read_bytes() == before and set(Manifest(tmp_path).records) == {"fog_9"}


def test_appended_lines_are_plain_text_without_gaps(tmp_path):
    for name in ("a", "straße"):
        Manifest(tmp_path).append([{"id": name}])
    assert (tmp_path / "manifest.jsonl").read_text(encoding="utf-8") == '{"id": "a"}\n{"id": "straße"}\n'


@pytest.mark.parametrize("line", ['{"id": nonsense}', '{"seed": 1}', "null"])
def test_a_damaged_line_has_a_remedy(tmp_path, line):
    (tmp_path / "manifest.jsonl").write_text(f'{{"id": "a"}}\n{line}\n{{"id": "b"}}\n')
    with pytest.raises(GenValError, match=r"line 2.* Remove the line; its item is then made again\.$"):
        Manifest(tmp_path)


def test_zeros_of_a_lost_write_are_dropped_and_other_text_is_not(tmp_path):
    (tmp_path / "manifest.jsonl").write_bytes(b'{"id": "a"}\n' + bytes(9))
    assert set(Manifest(tmp_path).records) == {"a"}
    (tmp_path / "manifest.jsonl").write_bytes(b'{"id": "a"}\nX')
    with pytest.raises(GenValError, match="line 2"):
        Manifest(tmp_path)
