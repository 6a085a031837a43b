"""Start scripts as forks of a process that has imported the large libraries, which takes several seconds per process.

`ForkServer` is used by the process that starts scripts. It runs this file as the server, which imports nothing of this
project. A forked script behaves like one that was started by `python SCRIPT`: it has its own session, environment,
working folder, streams and exit code.

The server imports libraries and computes nothing. It therefore has no thread, which a fork would lose. See `can_fork`.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import io
import json
import multiprocessing.context
import multiprocessing.process
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, Self

# What the scripts import. Some packages import their submodules only when these are used: the submodules are named.
LIBRARIES = (
    *("torch", "torch._dynamo", "torchvision", "pytorch_lightning", "torchmetrics"),
    *("mmseg.models", "mmengine.optim"),
    *(
        "diffusers.models.unets",
        "diffusers.models.autoencoders",
        "diffusers.models.controlnets",
        "diffusers.schedulers",
    ),
    *("transformers.models.clip.modeling_clip", "transformers.models.auto.modeling_auto"),
    *("cv2", "scipy.stats", "sklearn.metrics", "sklearn.mixture", "matplotlib.figure", "plotly.offline"),
)
# How often the server looks for ended scripts, seconds.
_LOOK = 0.02
# Bytes of a request, and of a number in an answer.
_MAX_REQUEST, _NUMBER = 2**18, 8


def can_fork() -> bool:
    """Whether scripts can be started as forks: on Linux without a GPU.

    Some libraries look for GPUs while they are imported. A fork could not use CUDA after that.
    """
    gpus = [path for pattern in ("nvidia[0-9]*", "kfd", "dxg") for path in Path("/dev").glob(pattern)]
    return sys.platform == "linux" and not gpus


def process_context() -> multiprocessing.context.BaseContext:
    """How a process that has computed nothing starts others: as forks of itself, or new ones, which can use a GPU."""
    return multiprocessing.get_context("fork" if can_fork() else "spawn")


class ForkServer:
    """Starts scripts as forks of one process. `close`, or the end of a `with` block, ends the server but no script.

    Args:
        environment: variables of the server. Libraries read some of them while they are imported, such as
            OMP_NUM_THREADS: scripts must have the same values.
        libraries: modules to import. Missing ones are left out.
    """

    def __init__(self, environment: Mapping[str, str], libraries: Sequence[str] = LIBRARIES) -> None:
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            # Not a child of the terminal's session: Ctrl-C is for the process that uses the server.
            self._process = subprocess.Popen(
                [sys.executable, os.path.abspath(__file__), str(theirs.fileno()), *libraries],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Number of the server's process."""
        return self._process.pid

    def is_ready(self) -> bool:
        """Whether the libraries are imported, so that `start` does not wait."""
        return bool(select.select([self._requests], [], [], 0)[0])

    def start(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        cwd: str | os.PathLike[str],
        streams: tuple[int, int, int],
        register: int | None = None,
    ) -> ForkedScript:
        """Start a script in a session of its own.

        The first call waits until the server has imported the libraries.

        Args:
            command: the script and its arguments.
            environment: variables of the script.
            cwd: its working folder.
            streams: file descriptors of its standard input, output and errors.
            register: file descriptor that the new process writes `+PID` and a line feed to before the script runs.

        Raises:
            OSError: the server has ended.
        """
        request = {"command": list(command), "environment": dict(environment), "cwd": os.path.abspath(cwd)}
        status, theirs = os.pipe()
        try:
            descriptors = [theirs, *streams, *([] if register is None else [register])]
            socket.send_fds(self._requests, [json.dumps(request).encode()], descriptors)
        except OSError:
            os.close(status)
            raise
        finally:
            os.close(theirs)
        return ForkedScript(command, status)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the server, also while it imports the libraries."""
        self._requests.close()
        self._process.terminate()
        self._process.wait()


class ForkedScript:
    """A running script, with the part of the interface of `subprocess.Popen` that its users need.

    Attributes:
        args: the script and its arguments.
        pid: number of the process, which is also that of its group.
        returncode: exit code, or minus the number of the signal that ended it; None while it runs. It is 1 if the
            server was killed before the script ended.
    """

    def __init__(self, args: Sequence[str], status: int) -> None:
        self.args = list(args)
        self.returncode: int | None = None
        self._status = status
        try:
            self.pid = self._read_number()
        except ChildProcessError:
            os.close(status)
            raise

    def poll(self) -> int | None:
        """The exit code, or None while the script runs."""
        return self._wait(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end, at most `timeout` seconds, and return the exit code.

        Raises:
            subprocess.TimeoutExpired: the script still runs.
        """
        code = self._wait(timeout)
        if code is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(self.args, timeout)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal to the script's process, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def _wait(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._status], [], [], timeout)[0]:
            try:
                self.returncode = self._read_number()
            except ChildProcessError:  # the server was killed, and nobody knows how the script ended
                self.returncode = 1
            os.close(self._status)
        return self.returncode

    def _read_number(self) -> int:
        number = os.read(self._status, _NUMBER)
        if not number:
            raise ChildProcessError("The process that starts scripts has ended.")
        return int.from_bytes(number, "little", signed=True)


def _main() -> None:
    """The server, and in each new process the script."""
    requests = socket.socket(fileno=int(sys.argv[1]))
    sys.path.pop(0)  # this file's folder
    variables = dict(os.environ)
    gc.disable()  # its searches during imports take nearly a third of the time and find little
    for name in sys.argv[2:]:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.enable()
    requests.send(b"ready")
    gc.freeze()  # the collector of a fork leaves these objects, and so their memory stays shared
    request, descriptors = _serve(requests)  # returns in new processes only
    _enter(request, descriptors, variables)
    run_command(request["command"])


def _serve(requests: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Start what is asked for until the other side closes; return the request and its files in each new process."""
    running: dict[int, int] = {}  # by the number of a process, the pipe for its exit code
    while True:
        if select.select([requests], [], [], _LOOK if running else None)[0]:
            message, descriptors, _, _ = socket.recv_fds(requests, _MAX_REQUEST, 5)
            if not message:
                os._exit(0)
            request = json.loads(message)
            status, *others = descriptors
            pid = os.fork()
            if pid == 0:
                requests.close()
                for descriptor in running.values():
                    os.close(descriptor)
                # Stays open: should the server be killed, the other side sees the pipe close when the script ends.
                os.set_inheritable(status, False)
                return request, others
            for descriptor in others:
                os.close(descriptor)
            running[pid] = status
            _tell(status, pid)
        for pid in list(running):
            ended, code = os.waitpid(pid, os.WNOHANG)
            if ended:
                _tell(running[pid], os.waitstatus_to_exitcode(code))
                os.close(running.pop(pid))


def _tell(descriptor: int, number: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody waits for this script any more
        os.write(descriptor, number.to_bytes(_NUMBER, "little", signed=True))


def _enter(request: dict[str, Any], descriptors: list[int], before: Mapping[str, str]) -> None:
    """Give this new process its session, streams, folder and environment.

    Args:
        request: of `ForkServer.start`.
        descriptors: streams and register.
        before: variables of the server before it imported the libraries.
    """
    os.setsid()
    for descriptor in descriptors[3:]:
        with contextlib.suppress(BrokenPipeError):
            os.write(descriptor, f"+{os.getpid()}\n".encode())
    for number, descriptor in enumerate(descriptors[:3]):
        os.dup2(descriptor, number)
    for descriptor in descriptors:
        os.close(descriptor)
    # The stream objects stay: libraries hold them.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=os.isatty(1))
    os.chdir(request["cwd"])
    multiprocessing.process.ORIGINAL_DIR = request["cwd"]  # type: ignore[attr-defined]
    inherited, given = _python_path(), request["environment"]
    # What libraries set while they were imported stays, as in a script that imports them.
    changed = {name: value for name, value in os.environ.items() if value != before.get(name)}
    os.environ.clear()
    os.environ.update(given)
    os.environ.update({name: value for name, value in changed.items() if given.get(name) == before.get(name)})
    sys.path[:] = [*_python_path(), *(folder for folder in sys.path if folder not in inherited)]
    # Random numbers that nobody seeds differ between processes. The module `random` does this itself.
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()
    if torch := sys.modules.get("torch"):
        torch.default_generator.seed()


def _python_path() -> list[str]:
    return [os.path.abspath(folder) for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]


def run_command(command: list[str]) -> NoReturn:
    """Run a script as the main program of this process, and end the process as the interpreter does."""
    code: object = None
    interrupted = False
    try:
        _execute(command)
    except SystemExit as end:
        code = end.code
    except BaseException as error:
        code, interrupted = 1, isinstance(error, KeyboardInterrupt)
        # Without the frames of this file.
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
            trace = trace.tb_next
        sys.excepthook(type(error), error.with_traceback(trace), trace)
    if not isinstance(code, int | None):
        print(code, file=sys.stderr)
        code = 1
    end_process(code or 0, interrupted)


def end_process(code: int, interrupted: bool = False) -> NoReturn:
    """End this process as the interpreter does, but do not free all objects of the libraries, which takes a second.

    Args:
        code: the exit code.
        interrupted: whether Ctrl-C ended the script, so that the signal ends the process.
    """
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as multiprocessing does
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except BrokenPipeError:
        code = code or 120  # the interpreter's own code for this
    if interrupted:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code)


def _execute(command: list[str]) -> None:
    path = os.path.join(os.getcwd(), command[0])
    sys.argv[:] = command
    sys.path.insert(0, os.path.dirname(os.path.realpath(path)))
    try:
        source = Path(path).read_bytes()
    except OSError as error:
        reason = f"[Errno {error.errno}] {error.strerror}"
        print(f"{sys.executable}: can't open file {path!r}: {reason}", file=sys.stderr)
        sys.exit(2)
    module = types.ModuleType("__main__")
    module.__file__ = path
    sys.modules["__main__"] = module
    exec(compile(source, path, "exec"), module.__dict__)


if __name__ == "__main__":
    _main()
