"""Summaries of scenes that are computed in a thread while a GPU still computes the images."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from genval.metrics.statistics import PixelStatistics
from genval.results.scenes import SceneResults, Summary

# Images whose statistics may wait in memory for the thread, of about 1 MB each.
_MAX_WAITING = 32


class EarlySummaries:
    """Summarises scenes in their order in a thread, which starts at once and must be ended by `take` or `cancel`.

    Without the thread, the GPU is idle while the summary of many images is computed. The thread takes an image's
    statistics from `add`, or reads them once this process or another one has written them. The results equal those of a
    summary that is computed after the last image, because images are added in the same order.

    Args:
        scenes: the records of the images of each scene.
        missing: the results and ids of images whose statistics this run writes. Those of other images exist already.
        summarise: makes a summary from the id and the statistics of each image, and the number of images.
    """

    def __init__(
        self,
        scenes: Mapping[SceneResults, Sequence[Mapping[str, Any]]],
        missing: Sequence[tuple[SceneResults, str]],
        summarise: Callable[[Iterator[tuple[str, PixelStatistics]], int], Summary],
    ) -> None:
        self._scenes, self._summarise = scenes, summarise
        self._outdated = {path: _mark(path) for path in (results.statistics(item_id) for results, item_id in missing)}
        self._added: dict[Path, PixelStatistics] = {}
        self._found: dict[SceneResults, Summary] = {}
        self._ended, self._cancelled = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="summaries", daemon=True)
        self._thread.start()

    def add(self, results: SceneResults, item_id: str, statistics: PixelStatistics) -> None:
        """Pass the statistics of an image before they are written, so that the thread need not read them.

        They are ignored if this run does not write them, or if the thread is far behind.
        """
        path = results.statistics(item_id)
        if path in self._outdated and len(self._added) < _MAX_WAITING:
            self._added[path] = statistics

    def take(self) -> dict[SceneResults, Summary]:
        """Wait for the thread when all images are written; return the summaries of whole scenes."""
        self._ended.set()
        self._thread.join()
        return self._found

    def cancel(self) -> None:
        """End the thread, if it still waits for images."""
        self._cancelled = True
        self.take()

    def _run(self) -> None:
        # A summary that fails here is computed again where it is needed, and fails there with its message.
        with contextlib.suppress(Exception):
            for results, records in self._scenes.items():
                self._found[results] = self._summarise(self._images(results, records), len(records))

    def _images(
        self, results: SceneResults, records: Sequence[Mapping[str, Any]]
    ) -> Iterator[tuple[str, PixelStatistics]]:
        for record in records:
            path = results.statistics(record["id"])
            while not (self._ended.is_set() or path in self._added or self._is_written(path)):
                self._ended.wait(0.05)
            if self._cancelled:
                raise InterruptedError
            added = self._added.pop(path, None)
            yield record["id"], results.read_image(record) if added is None else added

    def _is_written(self, path: Path) -> bool:
        return path not in self._outdated or _mark(path) not in (None, self._outdated[path])


def _mark(path: Path) -> tuple[int, int] | None:
    """Return inode and time (ns) of a file, which change when the file is replaced; None if there is no file."""
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_ino, state.st_mtime_ns
