"""Ends the steps of a plan when the plan's own process has ended, even by SIGKILL.

The guard is a process of its own, in a session of its own, that knows the process groups of the running steps and waits
for the plan's end of a pipe to close. It is run as a file, without importing anything of this project.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time

# How long an interrupted step may take to end by itself, seconds.
PATIENCE = 10.0


class Guard:
    """The plan's side: a context in which the steps that run are known to the guard.

    Args:
        patience: how long an interrupted step may take to end by itself, seconds.
    """

    def __init__(self, patience: float = PATIENCE) -> None:
        self._patience = patience

    def __enter__(self) -> Guard:
        # -I -S: neither the environment nor the installed packages matter.
        command = [sys.executable, "-I", "-S", os.path.abspath(__file__), str(self._patience)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        assert self._process.stdin is not None
        self._pipe = self._process.stdin
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.wait()

    @property
    def descriptor(self) -> int:
        """The file to which a step's process writes `+PID`, as `add_this_process` does."""
        return self._pipe.fileno()

    def add_this_process(self) -> None:
        """Add the group that this process leads. To be called by a step's process, before its program starts."""
        self._send(f"+{os.getpid()}\n")

    def remove(self, group: int) -> None:
        """Remove a group that has ended; its number may be another's from now on."""
        self._send(f"-{group}\n")

    def _send(self, line: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # somebody ended the guard: the plan goes on without it
            os.write(self._pipe.fileno(), line.encode())


def signal_group(group: int, number: int) -> bool:
    """Send a signal to a process group, and return whether the group exists."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # macOS gives the latter for a group of ended processes
        return False
    return True


def main() -> None:
    """The guard's side: read which groups run until the pipe closes, then end those that are left."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    running: set[int] = set()
    for line in sys.stdin:
        if line.startswith("+"):
            running.add(int(line[1:]))
        else:
            running.discard(int(line[1:]))
    running = {group for group in running if signal_group(group, signal.SIGTERM)}
    end = time.monotonic() + float(sys.argv[1])
    while running and time.monotonic() < end:
        time.sleep(0.05)
        running = {group for group in running if signal_group(group, 0)}
    for group in running:
        signal_group(group, signal.SIGKILL)


if __name__ == "__main__":
    main()
