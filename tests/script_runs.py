"""Scripts that tests run as a user does, in a process of their own.

The processes are forks of one that has imported the libraries (`genval.runtime.fork_server`), which each test process
starts when it runs its first script. `tests/scripts/test_every_script.py` and other tests start new interpreters.
"""

from __future__ import annotations

import atexit
import functools
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from genval.reproduction.guard import signal_group
from genval.runtime.fork_server import LIBRARIES, ForkedScript, ForkServer, can_fork
from genval.runtime.paths import REPO_ROOT

# Without what libraries set in this process when they are imported.
_ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
# Beginnings of the names of variables that no library reads while it is imported.
_READ_LATER = ("DELAY", "MASTER_", "PYTHONPATH", "SLURM_")


class Script:
    """A running script, whose output goes to temporary files.

    Args:
        arguments: the script and its arguments.
        cwd: working folder.
        environment: variables besides those with which the tests were started.
    """

    def __init__(self, *arguments: object, cwd: Path = REPO_ROOT, environment: Mapping[str, str] | None = None) -> None:
        command = [str(argument) for argument in arguments]
        variables = {**_ENVIRONMENT, **(environment or {})}
        self._files = [tempfile.TemporaryFile("w+") for _ in range(2)]  # noqa: SIM115
        out, err = self._files
        self.process: ForkedScript | subprocess.Popen[bytes]
        is_file = command[0].endswith(".py")  # not -c or -m
        if can_fork() and is_file and all(name.startswith(_READ_LATER) for name in environment or {}):
            with open(os.devnull) as nothing:
                streams = (nothing.fileno(), out.fileno(), err.fileno())
                self.process = fork_server().start(command, environment=variables, cwd=cwd, streams=streams)
        else:
            command = [sys.executable, *command]
            self.process = subprocess.Popen(
                command, cwd=cwd, env=variables, stdout=out, stderr=err, start_new_session=True
            )
        self.pid, self.poll, self.send_signal = self.process.pid, self.process.poll, self.process.send_signal

    @property
    def returncode(self) -> int | None:
        return self.process.returncode

    def wait(self, timeout: float = 300) -> int:
        """Wait for the end, at most so many seconds, and return the exit code."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            signal_group(self.pid, signal.SIGKILL)
            raise

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """Wait for the end, also of processes that it started, and return the output and the errors."""
        self.wait(timeout)
        end = time.monotonic() + 10
        while signal_group(self.pid, 0) and time.monotonic() < end:
            time.sleep(0.01)
        texts = []
        for file in self._files:
            file.seek(0)
            texts.append(file.read())
            file.close()
        return texts[0], texts[1]


def run_script(
    *arguments: object, cwd: Path = REPO_ROOT, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a script to its end, with one thread."""
    script = Script(*arguments, cwd=cwd, environment=environment)
    out, err = script.communicate()
    assert script.returncode is not None
    return subprocess.CompletedProcess(list(map(str, arguments)), script.returncode, out, err)


@functools.cache
def fork_server() -> ForkServer:
    """Return the process whose forks the scripts are."""
    server = ForkServer(_ENVIRONMENT, LIBRARIES)
    atexit.register(server.close)
    return server
