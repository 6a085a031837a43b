"""Work at the same time: beside a computation on a device, or in several processes."""

from __future__ import annotations

import itertools
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from genval.runtime.devices import available_memory
from genval.runtime.errors import GenValError

T = TypeVar("T")
Result = TypeVar("Result")


def one_behind(begun: Iterable[T]) -> Iterator[T]:
    """Yield each item when the next item has been made.

    If making an item starts work on a device, and using it waits for this work, the device is never without work.

    If an item cannot be made, the items before it are yielded, and then the error is raised. After Ctrl-C, no further
    item is yielded.

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


def one_ahead(items: Iterable[T], stop: Callable[[], object] = lambda: None) -> Generator[T]:
    """Yield each item while a thread makes the next item.

    If an item cannot be made, the items before it are yielded, and then the error is raised. When this generator ends
    or is closed, the thread ends. If `items` is a generator, the thread closes it first.

    Args:
        items: an iterable that makes each item when it is asked for it, such as a generator.
        stop: a function that is called when no more items are wanted, e.g. after Ctrl-C. It may make the item fail that
            the thread is making, so that the thread ends soon.

    >>> list(one_ahead("abc"))
    ['a', 'b', 'c']
    """
    making = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as thread:
        try:
            coming = thread.submit(_next, making)
            while one := coming.result():
                coming = thread.submit(_next, making)
                yield one[0]
        finally:
            stop()
            if isinstance(making, Generator):
                thread.submit(making.close)  # not here, because the generator may run in the thread


def _next(items: Iterator[T]) -> tuple[T, ...]:
    """Return a tuple of the next item, or an empty tuple at the end."""
    return tuple(itertools.islice(items, 1))


def in_processes(
    function: Callable[[T], Result], values: Sequence[T], jobs: int | None, memory: int
) -> Iterator[Result]:
    """Give the function of each value in order, computed in several processes.

    On Linux the processes are forks of this one, which must not have used a GPU or computed anything in PyTorch.

    Args:
        function: of a module, so that another process can find it.
        values: its arguments.
        jobs: processes; None for one per core, as far as the memory suffices.
        memory: bytes that one process may need.

    Raises:
        GenValError: a process was killed; or what the function raises.
    """
    jobs = jobs or max(1, min(os.cpu_count() or 1, available_memory() // memory))
    if min(jobs, len(values)) <= 1:
        yield from map(function, values)
        return
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    try:
        with ProcessPoolExecutor(min(jobs, len(values)), context, _begin_worker) as pool:
            yield from pool.map(function, values)
    except BrokenProcessPool as error:
        raise GenValError("A process was killed, such as by full memory. Give fewer --jobs.") from error


def _begin_worker() -> None:
    import torch

    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback: the parent says what to do
    torch.set_num_threads(1)


def end_with_parent() -> None:
    """End this process of a pool when its parent ends, also when the parent is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
