from pathlib import Path

import pytest

from genval.runtime.cache import cache_folder, keep_cached, read_cached


def test_what_is_kept_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENVAL_CACHE", str(tmp_path / "cache"))
    assert read_cached("hashes/one") is None
    keep_cached("hashes/one", b"a b")
    assert read_cached("hashes/one") == b"a b"


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("GENVAL_CACHE", str(tmp_path / "file"))
    keep_cached("one", b"text")
    assert read_cached("one") is None


def test_the_users_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GENVAL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/genval")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path("~/.cache/genval").expanduser()
