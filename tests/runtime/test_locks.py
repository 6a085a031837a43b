"""One run at a time writes a folder; a lock ends with its process."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from genval.runtime.errors import GenValError
from genval.runtime.locks import LOCK_FILE, lock_folders

HOLD = """
import os, sys, time
from pathlib import Path
from genval.runtime.locks import lock_folders
with lock_folders([Path(sys.argv[1])]):
    if os.fork() == 0:  # a worker, such as of a DataLoader
        print(flush=True)  # by the worker: before it runs, it has the lock's file open
    time.sleep(60)
"""


def hold(*folders):
    with lock_folders(folders):
        pass


def test_a_second_run_is_refused_by_name_and_other_folders_are_free(tmp_path):
    with lock_folders([tmp_path / "a", tmp_path / "b"]):
        with pytest.raises(GenValError, match=rf"{tmp_path}/b is in use by another run \(process {os.getpid()} on"):
            hold(tmp_path / "b", tmp_path / "c")
        hold(tmp_path / "c")
        (tmp_path / "a" / "result.txt").touch()
    hold(tmp_path / "a", tmp_path / "b")
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "result.txt"], "no lock and no empty folder stays"


def test_the_lock_of_a_folder_to_come_lies_beside_it(tmp_path):
    later = tmp_path / "made" / "trained"
    with lock_folders([], later=[later]):
        assert not later.exists()
        with pytest.raises(GenValError, match=f"{later} is in use"), lock_folders([], later=[later]):
            pass
    assert not list(tmp_path.iterdir())


def test_a_link_to_a_folder_is_the_same_folder(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    with lock_folders([tmp_path / "folder"]), pytest.raises(GenValError, match="in use"):
        hold(tmp_path / "link")


def test_a_killed_process_holds_nothing(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        process.stdout.readline()
        with pytest.raises(GenValError, match=f"process {process.pid} "):
            hold(tmp_path)
        process.kill()  # not its child
        process.wait()
        hold(tmp_path)
        assert not (tmp_path / LOCK_FILE).exists()
    finally:
        os.killpg(process.pid, signal.SIGKILL)


def test_without_locks_there_is_a_warning(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with lock_folders([tmp_path / "a"]):
        assert not list((tmp_path / "a").iterdir())
    assert f"{tmp_path}/a knows no locks" in capsys.readouterr().err


def test_what_is_no_folder_is_left_to_the_run(tmp_path):
    (tmp_path / "file").write_text("kept")
    hold(tmp_path / "file", tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("error", [FileNotFoundError, FileExistsError])
def test_a_folder_that_another_run_removes_meanwhile_is_locked_all_the_same(tmp_path, monkeypatch, error):
    make, calls = Path.mkdir, []

    def mkdir(path, *args, **kwargs):
        calls.append(path)
        if len(calls) == 1:
            raise error(path)
        make(path, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with lock_folders([tmp_path / "folder"]):
        assert (tmp_path / "folder" / LOCK_FILE).exists()


def test_only_one_of_many_runs_is_inside_at_a_time(tmp_path):
    """Each appends a line when it enters and one when it leaves: lines of two runs must not mix."""
    script = f"""
import sys, time
from pathlib import Path
from genval.runtime.locks import lock_folders
from genval.runtime.errors import GenValError
entered = 0
while entered < 20:
    try:
        with lock_folders([Path({str(tmp_path / "folder")!r})]), open({str(tmp_path / "log")!r}, "a") as log:
            print("in", sys.argv[1], file=log, flush=True)
            time.sleep(0.001)
            print("out", sys.argv[1], file=log, flush=True)
            entered += 1
    except GenValError:
        time.sleep(0.0005)
"""
    processes = [subprocess.Popen([sys.executable, "-c", script, str(number)]) for number in range(3)]
    end = time.monotonic() + 60
    assert [process.wait(end - time.monotonic()) for process in processes] == [0, 0, 0]
    lines = (tmp_path / "log").read_text().split("\n")[:-1]
    assert len(lines) == 120
    for entry, leaving in zip(lines[::2], lines[1::2], strict=True):
        assert entry.startswith("in ") and leaving == entry.replace("in", "out")
