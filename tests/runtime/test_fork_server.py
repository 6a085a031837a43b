"""Scripts started as forks behave as those started by the interpreter."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from script_runs import Script

from genval.runtime.fork_server import ForkedScript, ForkServer, can_fork

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the fork server needs Linux")


@pytest.fixture(scope="module")
def server():
    with ForkServer(os.environ, ["colorsys", "no_such_library"]) as server:
        yield server


@pytest.fixture
def start(server, tmp_path):
    """`start(code, *arguments)`: start a script with this code; its output is written to `out` and `err`."""

    def start(code, *arguments, environment=os.environ, **options):
        (tmp_path / "script.py").write_text(code)
        with open(tmp_path / "out", "wb") as out, open(tmp_path / "err", "wb") as err:
            streams = (0, out.fileno(), err.fileno())
            command = ["script.py", *arguments]
            return server.start(command, environment=environment, cwd=tmp_path, streams=streams, **options)

    return start


FACTS = """
import os, sys, __main__
print(__name__, __file__, __main__.__dict__ is globals(), sys.argv, os.getcwd())
print(sys.path[:3], os.environ.get("ONLY_HERE"), os.environ.get("PATH"), "colorsys" in sys.modules)
files, threads = sorted(map(int, os.listdir("/proc/self/fd"))), os.listdir("/proc/self/task")
print(os.getsid(0) == os.getpid(), files[:-1], len(threads))
"""


def test_what_a_script_sees(start, tmp_path):
    script = start(FACTS, "a", "--b", environment={"ONLY_HERE": "yes", "PYTHONPATH": "modules:/more"})
    assert script.wait(30) == 0
    assert (tmp_path / "out").read_text().splitlines() == [
        f"__main__ {tmp_path}/script.py True ['script.py', 'a', '--b'] {tmp_path}",
        f"['{tmp_path}', '{tmp_path}/modules', '/more'] yes None True",
        "True [0, 1, 2, 3] 1",  # the fourth file is the pipe that tells the end
    ]


def interpreter(tmp_path):
    return subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True)


@pytest.mark.parametrize(
    "code",
    [
        "",
        "import sys; sys.exit(3)",
        "import sys; sys.exit('error: no images')",
        "import sys; sys.exit(True)",
        "def fails():\n    return 1 / 0\nfails()",
        "if",
        "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
        "import os, signal\nos.kill(os.getpid(), signal.SIGINT)",
        "import atexit, threading, time\n"
        "atexit.register(print, 'at the end')\n"
        "threading.Thread(target=lambda: (time.sleep(0.1), print('thread'))).start()",
        "import multiprocessing\n"
        "def double(number):\n    return 2 * number\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n        print(pool.map(double, [1, 2]))",
    ],
    ids=["ends", "code", "message", "true", "exception", "syntax", "signal", "interrupted", "exit functions", "spawn"],
)
def test_a_script_ends_as_with_the_interpreter(start, tmp_path, code):
    script = start(code)
    assert script.wait(30) == script.poll() == script.returncode
    done = interpreter(tmp_path)
    assert script.returncode == done.returncode
    assert (tmp_path / "out").read_text() == done.stdout
    assert (tmp_path / "err").read_text() == done.stderr


def test_a_missing_script_is_the_interpreter_s_error(server, tmp_path):
    with open(tmp_path / "err", "wb") as err:
        script = server.start(["none.py"], environment=os.environ, cwd=tmp_path, streams=(0, 1, err.fileno()))
        assert script.wait(30) == 2
    done = subprocess.run([sys.executable, "none.py"], cwd=tmp_path, capture_output=True, text=True)
    assert (tmp_path / "err").read_text() == done.stderr


def test_a_script_is_killed_and_others_go_on(start, server, tmp_path):
    slow, registry = "import time; time.sleep(60)", tmp_path / "registry"
    with open(registry, "wb") as file:
        killed = start(slow, register=file.fileno())
    assert killed.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        killed.wait(0.05)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait(30) == -signal.SIGKILL
    assert registry.read_text() == f"+{killed.pid}\n"
    killed.send_signal(signal.SIGKILL)  # has no effect: the number may be another's
    assert start("").wait(30) == 0


def test_unseeded_numbers_differ(tmp_path):
    server = ForkServer(os.environ, ["numpy", "torch"])
    numbers = "numpy.random.random(), random.random(), torch.rand(1).item()"
    (tmp_path / "script.py").write_text(f"import numpy, random, torch; print({numbers})")
    shown = []
    for name in "ab":
        with open(tmp_path / name, "wb") as out:
            server.start(["script.py"], environment=os.environ, cwd=tmp_path, streams=(0, out.fileno(), 2)).wait(30)
        shown += (tmp_path / name).read_text().split()
    server.close()
    assert len(set(shown)) == 6


def test_variables_that_libraries_set_while_they_are_imported_stay(tmp_path, monkeypatch):
    (tmp_path / "sets_variables.py").write_text("import os; os.environ.update(NEW='yes', OLD='changed', OWN='changed')")
    monkeypatch.setenv("OLD", "as given")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    (tmp_path / "script.py").write_text("import os; print(*map(os.environ.get, ['NEW', 'OLD', 'OWN']))")
    with ForkServer(environment, ["sets_variables"]) as server, open(tmp_path / "out", "wb") as out:
        given = {**environment, "OWN": "own"}
        server.start(["script.py"], environment=given, cwd=tmp_path, streams=(0, out.fileno(), 2)).wait(30)
    assert (tmp_path / "out").read_text() == "yes changed own\n"


def test_a_server_that_imports_is_ended_at_once(tmp_path):
    (tmp_path / "slow_library.py").write_text("import time; time.sleep(60)")
    start = time.monotonic()
    with ForkServer({**os.environ, "PYTHONPATH": str(tmp_path)}, ["slow_library"]) as server:
        assert not server.is_ready()
    assert time.monotonic() - start < 30


def test_no_files_and_processes_are_left(start, server):
    own = len(os.listdir("/proc/self/fd"))
    for script in [start("") for _ in range(20)]:
        script.wait(30)
    assert len(os.listdir("/proc/self/fd")) == own
    children, end = Path(f"/proc/{server.pid}/task/{server.pid}/children"), time.monotonic() + 30
    # Three streams and the socket. The server closes a script's pipe just after it has told the script's end.
    while len(os.listdir(f"/proc/{server.pid}/fd")) > 4 or children.read_text():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_server_that_has_ended_starts_nothing(tmp_path):
    server = ForkServer(os.environ, [])
    end = time.monotonic() + 30
    while not server.is_ready():
        assert time.monotonic() < end
        time.sleep(0.01)
    (tmp_path / "script.py").write_text("import time; time.sleep(60)")
    command, options = ["script.py"], {"environment": os.environ, "cwd": tmp_path, "streams": (0, 1, 2)}
    script = server.start(command, **options)
    os.kill(server.pid, signal.SIGKILL)
    with pytest.raises(subprocess.TimeoutExpired):  # it goes on, so that nothing else may write its files
        script.wait(0.5)
    os.kill(script.pid, signal.SIGKILL)
    assert script.wait(30) == 1
    with pytest.raises(OSError):
        server.start(command, **options)
    server.close()


@pytest.mark.skipif(not can_fork(), reason="scripts are started as forks only where there is no GPU")
def test_tests_start_forks_whatever_a_library_sets_in_their_process(monkeypatch):
    monkeypatch.setenv("KMP_INIT_AT_FORK", "set by a library that this process has imported")
    script = Script("relis/eval.py", "--list_models")
    out, err = script.communicate()
    assert isinstance(script.process, ForkedScript) and script.returncode == 0 and out, err
