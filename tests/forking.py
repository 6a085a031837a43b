"""Run a script whose own starts of scripts are forks of it: new interpreters would import the libraries again.

    python tests/forking.py SCRIPT FLAG...

The script is started once per device, and benchmarks start scripts with `subprocess.run`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import types
from typing import IO, Any

from lightning_fabric.strategies.launchers import subprocess_script

from genval.runtime import devices
from genval.runtime.fork_server import run_command

_run = subprocess.run


class Fork:
    """A script as a fork of this process, with the part of the interface of `subprocess.Popen` that is needed here."""

    def __init__(
        self,
        command: list[str],
        env: dict[str, str],
        cwd: str | os.PathLike[str] | None = None,
        stdout: IO[bytes] | None = None,
        stderr: IO[bytes] | int | None = None,
        stdin: int | None = None,
    ) -> None:
        self.returncode: int | None = None
        ours = os.pipe() if stdin == subprocess.PIPE else None
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            for other in devices._others:  # a new interpreter would not have their pipes
                assert other.stdin is not None
                other.stdin.close()
            devices._others.clear()
            if ours is not None:
                os.dup2(ours[0], 0)
                os.close(ours[1])
            if stdout is not None:
                os.dup2(stdout.fileno(), 1)
            if stderr is not None:
                os.dup2(1 if isinstance(stderr, int) else stderr.fileno(), 2)
            os.chdir(cwd or ".")
            os.environ.clear()
            os.environ.update(env)
            run_command(command[1:])
        if ours is not None:
            os.close(ours[0])
            self.stdin = os.fdopen(ours[1], "wb")

    def poll(self, how: int = os.WNOHANG) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, how)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def run(command: list[str], check: bool = False, **options: Any) -> subprocess.CompletedProcess[Any]:
    """`subprocess.run`, except that a script is a fork."""
    if command[0] != sys.executable:
        return _run(command, check=check, **options)
    code = Fork(command, **({"env": dict(os.environ)} | options)).poll(0)
    assert code is not None
    done: subprocess.CompletedProcess[Any] = subprocess.CompletedProcess(command, code)
    if check:
        done.check_returncode()
    return done


if __name__ == "__main__":
    subprocess.run = run  # type: ignore[assignment]
    for module in (subprocess_script, devices):
        module.subprocess = types.SimpleNamespace(Popen=Fork, PIPE=subprocess.PIPE)  # type: ignore[attr-defined]
    sys.path.pop(0)  # this file's folder
    run_command(sys.argv[1:])
