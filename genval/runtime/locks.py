"""Locks on output folders: two runs that write one folder would replace each other's files.

Reading needs no lock. The operating system releases a lock when its process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import platform
import shlex
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from genval.runtime.errors import GenValError

LOCK_FILE = ".lock"
_UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF)

# How often a folder is made that other runs remove at the same time.
_ATTEMPTS = 1000

_open_locks: set[int] = set()


def _close_in_child() -> None:
    # A lock belongs to all processes that have its file open: a worker that survives its parent must not hold it.
    for descriptor in _open_locks:
        os.close(descriptor)
    _open_locks.clear()


os.register_at_fork(after_in_child=_close_in_child)


@contextlib.contextmanager
def lock_folders(folders: Iterable[Path], later: Iterable[Path] = ()) -> Iterator[None]:
    """Hold the locks of output folders; missing folders are made, and those that stay empty are removed again.

    In a run of several processes, only the first one locks. A folder that cannot be locked, because its file system
    knows no locks or because it cannot be written, is used without a lock; the former prints a warning.

    Args:
        folders: the folders that the run writes.
        later: folders that exist only when the run has ended well: their locks lie beside them.

    Raises:
        GenValError: another run holds the lock of a folder.
    """
    with contextlib.ExitStack() as held:
        for folder in sorted(set(folders)):
            held.enter_context(_lock(folder, folder / LOCK_FILE))
        for folder in sorted(set(later)):
            held.enter_context(_lock(folder, folder.with_name(f".{folder.name}{LOCK_FILE}")))
        yield


@contextlib.contextmanager
def _lock(folder: Path, path: Path) -> Iterator[None]:
    made: list[Path] = []
    descriptor = None
    for _ in range(_ATTEMPTS):
        made += [parent for parent in path.parents if not parent.exists() and parent not in made]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = _acquire(folder, path)
        except (FileNotFoundError, FileExistsError):
            # Another run that has just ended removed the empty folder. pathlib's mkdir raises FileExistsError if the
            # folder is removed between its attempt to make it and its look at what is there.
            continue
        except OSError:  # the folder cannot be written: what the run writes into it gives the error
            pass
        break
    try:
        yield
    finally:
        if descriptor is not None:
            path.unlink(missing_ok=True)
            _open_locks.discard(descriptor)
            os.close(descriptor)
        for empty in sorted(made, reverse=True):  # a folder comes after what is in it
            with contextlib.suppress(OSError):
                empty.rmdir()


def _acquire(folder: Path, path: Path) -> int | None:
    """Return the descriptor that holds the lock, or None where the file system knows no locks."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(descriptor, 1000, 0).decode(errors="replace").strip() or "another process"
            os.close(descriptor)
            if error.errno not in _UNSUPPORTED:
                raise GenValError(
                    f"{folder} is in use by another run ({holder}). Wait until it has ended, or stop it; or give "
                    "another output folder."
                ) from error
            path.unlink(missing_ok=True)
            print(
                f"warning: the file system of {folder} knows no locks: do not start a second run on this folder.",
                file=sys.stderr,
            )
            return None
        # The file of a run that has just ended is no longer the one that others would lock.
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(path), os.fstat(descriptor)):
                break
        os.close(descriptor)
    _open_locks.add(descriptor)
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    with contextlib.suppress(OSError):  # the text is for errors only
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {platform.node()}: {command[:500]}\n".encode(), 0)
    return descriptor
