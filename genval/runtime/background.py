"""Reading and writing while a batch is computed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")


def one_behind(begun: Iterable[T]) -> Iterator[T]:
    """Give each item when the next has been made.

    Where making one starts work on a device, and using one waits for it, the device is never without work. Where making
    one fails (but not where Ctrl-C ends it), the one before it is given first.

    >>> list(one_behind("abc"))
    ['a', 'b', 'c']
    """
    items = iter(begun)
    last: list[T] = []
    try:
        for item in items:
            yield from last
            last = [item]
    except Exception:
        yield from last
        raise
    yield from last


class BackgroundWriter:
    """Runs jobs in a few threads, as a context manager: on leaving it every job has ended well.

    Encoding and flushing release Python's lock, so a job costs the caller next to nothing. The queue is bounded: where
    the disk is slower than the device, `submit` waits instead of filling the memory. A job's exception is raised by a
    later `submit` or at the end.

    Args:
        threads: number of threads.
        waiting: jobs that may wait at a time.
    """

    def __init__(self, threads: int = 2, waiting: int = 16) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="write")
        self._jobs: deque[Future[Any]] = deque()
        self._waiting = waiting

    def submit(self, job: Callable[..., Any], *args: Any) -> None:
        """Run `job(*args)` soon."""
        while len(self._jobs) >= self._waiting:
            self._jobs.popleft().result()
        self._jobs.append(self._pool.submit(job, *args))

    def __enter__(self) -> BackgroundWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True)
        if error is None:  # a job's own failure must not hide the exception that ended the block
            for job in self._jobs:
                job.result()
