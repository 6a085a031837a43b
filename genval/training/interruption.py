"""Ctrl-C and SIGTERM during a training, which ends after its step, with a checkpoint."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

_NOTICE = b"\nThe training ends after this step, with a checkpoint. Ctrl-C again ends it at once, without one.\n"


class Interruption:
    """Notes Ctrl-C and SIGTERM from `listen` on; inside of a `with` block as well.

    A second signal raises KeyboardInterrupt, with its number, at once. Signals that this process ignores stay ignored,
    such as Ctrl-C in a background job of a shell.

    Args:
        speaks: whether this process says what will happen.

    Attributes:
        number: the signal that was noted, or 0.
    """

    def __init__(self, speaks: bool = True) -> None:
        self.number = 0
        self._speaks = speaks
        self._before: dict[int, Any] = {}

    def listen(self) -> None:
        """Note the signals from now on, in place of their handlers so far. Only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._note)

    def __enter__(self) -> Interruption:
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.number:
            raise KeyboardInterrupt(number)
        self.number = number
        if self._speaks:
            os.write(2, _NOTICE)  # print might be interrupted in the middle of another print
