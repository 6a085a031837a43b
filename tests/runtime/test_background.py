import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from genval.runtime.background import in_processes, one_ahead, one_behind
from genval.runtime.errors import GenValError
from genval.runtime.files import remove_leftovers, replace_file


def test_each_item_is_given_when_the_next_has_been_made():
    made = []

    def make(number):
        made.append(number)
        return number

    assert [(item, len(made)) for item in one_behind(map(make, range(3)))] == [(0, 2), (1, 3), (2, 3)]
    assert list(one_behind([])) == []


@pytest.mark.parametrize("given_in_order", [one_ahead, one_behind])
def test_what_was_made_before_a_failure_is_given(given_in_order):
    given = []
    with pytest.raises(ZeroDivisionError):
        for item in given_in_order(1 / (2 - number) for number in range(4)):
            given.append(item)
    assert given == [0.5, 1.0]


def test_a_thread_makes_the_next_item():
    made, next_is_made = [], threading.Event()

    def make(number):
        made.append(threading.current_thread())
        if number == 1:
            next_is_made.set()
        return number

    items = one_ahead(map(make, range(3)))
    assert next(items) == 0
    assert next_is_made.wait(10)
    assert list(items) == [1, 2]
    assert set(made).isdisjoint([threading.current_thread()])
    assert list(one_ahead([])) == []
    assert list(one_ahead([None, 0])) == [None, 0]


def test_items_that_are_not_wanted_are_not_made():
    made, is_closed = [], []

    def make():
        try:
            for number in range(100):
                made.append(number)
                yield number
        finally:
            is_closed.append(True)

    before = threading.active_count()
    items = one_ahead(make())
    assert next(items) == 0
    items.close()
    assert is_closed and len(made) <= 2
    assert threading.active_count() == before


def test_making_an_item_can_be_stopped():
    stopped, is_closed = threading.Event(), []

    def make():
        try:
            yield 0
            assert stopped.wait(60)
            raise GenValError("stopped")
        finally:
            is_closed.append(True)

    items = one_ahead(make(), stopped.set)
    assert next(items) == 0
    items.close()
    assert stopped.is_set() and is_closed


def test_leftovers_are_removed_and_nothing_else(tmp_path):
    (tmp_path / "deep").mkdir()
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    running = f".c.png.{os.getppid()}.part"  # another run in the same folder must keep what it is writing
    for name in (f".a.png.{killed.pid}.part", f"deep/.b.json.{os.getpid()}.part", "a.png", "deep/.hidden", running):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted([".hidden", "a.png", "deep", running])


@pytest.mark.parametrize(
    "write",
    [
        "with files.replace_file(folder + '/a.png'): print(flush=True); time.sleep(60)",
        "with files.temporary_folder(folder) as made: (made / 'a').touch(); print(flush=True); time.sleep(60)",
    ],
)
def test_leftovers_of_a_killed_process_that_its_parent_has_not_waited_for_are_removed(tmp_path, write):
    if not os.path.exists("/proc/self/stat"):
        pytest.skip("this system does not tell the state of a process")
    code = f"import sys, time; from genval.runtime import files; folder = sys.argv[1]\n{write}"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline()
    remove_leftovers(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended; its number is still in use
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []
    process.communicate()


def test_leftovers_of_an_earlier_process_with_the_same_number_are_removed(tmp_path):
    if not os.path.exists("/proc/self/stat"):
        pytest.skip("this system does not tell when a process started")
    with replace_file(tmp_path / "own.png") as own:
        (tmp_path / f".own.png.{os.getppid()}-1.part").touch()  # the start time is not the parent's
        remove_leftovers(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [own.name]
    assert [path.name for path in tmp_path.iterdir()] == ["own.png"]


def _square(number: int) -> tuple[int, int]:
    if number < 0:
        raise GenValError(f"{number} is negative")
    if number == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    return number**2, os.getpid()


@pytest.mark.parametrize("jobs", [1, 2])
def test_results_of_processes_come_in_order(jobs: int) -> None:
    results = list(in_processes(_square, [3, 1, 2], jobs, memory=1))
    assert [square for square, _ in results] == [9, 1, 4]
    assert (os.getpid() in {process for _, process in results}) == (jobs == 1)
    with pytest.raises(GenValError, match="-1 is negative"):
        list(in_processes(_square, [1, -1], jobs, memory=1))


def test_a_killed_process_is_an_error() -> None:
    with pytest.raises(GenValError, match="Give fewer --jobs"):
        list(in_processes(_square, [1, 13], 2, memory=1))


def test_a_process_with_too_little_memory_for_two_computes_alone() -> None:
    assert {process for _, process in in_processes(_square, [1, 2], None, memory=1 << 60)} == {os.getpid()}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_their_parent_and_print_nothing(number: int, tmp_path: Path) -> None:
    """Ctrl-C reaches the whole group, a kill the parent alone."""
    (tmp_path / "waiting.py").write_text(
        "import os, signal, sys, time\n"
        "def wait(number):\n"
        "    print(os.getpid(), flush=True)\n"
        "    time.sleep(60)\n"
        "if __name__ == '__main__':\n"
        # Programs that a shell runs in the background ignore Ctrl-C, and so do the programs that they start.
        "    signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "    from genval.runtime.background import in_processes\n"
        "    try:\n"
        "        list(in_processes(wait, [1, 2], 2, memory=1))\n"
        "    except KeyboardInterrupt:\n"
        "        sys.exit(130)\n"
    )
    process = subprocess.Popen(
        [sys.executable, tmp_path / "waiting.py"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    for _ in range(2):
        process.stdout.readline()
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.kill()
    said = process.communicate(timeout=30)[1]  # waits for the workers too, which hold the pipes for a minute
    assert (process.returncode, said) == (130 if number == signal.SIGINT else -number, "")
