"""One engine for resumable work: items in fixed batches, loaded ahead, computed, and written in the background.

A `Stage` says what one item is; `run_stage` does the rest: it finds what is missing, shares the work among processes,
reads the next items while a batch is computed, writes the last batch meanwhile, and shows progress.

Batches are a fixed partition of the items. A batch in which an item is missing is computed as a whole, and only the
missing items are written: an interrupted and resumed run writes the same bytes as an uninterrupted one.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import functools
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from tqdm import tqdm

from genval.artifacts.manifest import Manifest
from genval.artifacts.settings import write_settings
from genval.runtime.background import one_ahead, one_behind
from genval.runtime.devices import same_outcome
from genval.runtime.errors import GenValError, without_skip_bad
from genval.runtime.files import remove_leftovers
from genval.runtime.locks import lock_folders
from genval.runtime.progress import progress_bar, seconds_since_start

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")
Output = TypeVar("Output")

Line = dict[str, Any]


class Stage(abc.ABC, Generic[Item, Loaded, Output]):
    """How the items of a stage are recognised as done, loaded, computed and written.

    `run_stage` locks `folders` and calls `begin` in the first process, `open` in every process, `is_done` for every
    item, and `prepare` in the first process. For each batch, it calls `load` in reading threads, `split` and `collate`
    in a thread that is one part of a batch ahead, `compute` in the main thread, and `write` in writing threads. When a
    unit is written, it calls `commit` in one thread, in the order of the units. At the end, it calls `finish` in the
    first process.

    Attributes:
        title: what the progress bar calls the work.
        asynchronous: whether `compute` only starts the work on a device and returns a function that waits for it.
        max_waiting: how many items may wait to be written before the computation waits for the disk.
    """

    title: str = "items"
    asynchronous: bool = False
    max_waiting: int = 16

    def key(self, item: Item) -> str:
        """Return the item's identity, unique among the items of a run."""
        return str(getattr(item, "id"))  # noqa: B009

    @abc.abstractmethod
    def folders(self) -> Iterable[Path]:
        """Return the folders that the stage writes: no other run may write them at the same time."""

    def begin(self, items: Sequence[Item], overwrite: bool) -> None:
        """Check and clean up the output folder, before any process reads it. Runs in the first process."""

    def open(self, rank: int) -> None:
        """Read what is already there. Runs in every process."""

    @abc.abstractmethod
    def is_done(self, item: Item) -> bool:
        """Whether the item's output is there and was made from the same inputs, models and settings."""

    def prepare(self, missing: Sequence[Item]) -> None:
        """Write what describes the run and remove outdated summaries, before any output is written. First process."""

    def partition(self, items: Sequence[Item], batch_size: int) -> list[list[Sequence[Item]]]:
        """Cut the items into units of batches.

        A unit is computed by one process and committed as a whole. By default each batch is a unit of its own.
        """
        return [[items[start : start + batch_size]] for start in range(0, len(items), batch_size)]

    def compute_context(self) -> AbstractContextManager[object]:
        """The context in which the batches are computed."""
        return contextlib.nullcontext()

    @abc.abstractmethod
    def load(self, item: Item) -> Loaded:
        """Read an item's inputs.

        Raises:
            GenValError: an input is missing or damaged; with `skip_bad` the item is skipped.
        """

    def split(self, batch: list[tuple[Item, Loaded]]) -> Iterable[list[tuple[Item, Loaded]]]:
        """Cut a loaded batch into parts that can be computed together, e.g. of one image size."""
        return [batch]

    def collate(self, items: Sequence[Item], loaded: Sequence[Loaded]) -> Any:
        """Make the argument `batch` of `compute` for a part of a batch. The default is the list of its loaded inputs.

        Runs in a thread, outside of `compute_context`, while the main thread computes the part before. The batch may
        hold more entries than there are items, e.g. to have a fixed size.
        """
        return loaded

    @abc.abstractmethod
    def compute(self, items: Sequence[Item], batch: Any) -> Any:
        """Compute the outputs of a part of a batch.

        Args:
            items: the items of the part.
            batch: what `collate` returned for these items.

        Returns:
            One output per item. If `asynchronous` is set, a function without arguments that returns them.
        """

    @abc.abstractmethod
    def write(self, item: Item, loaded: Loaded, output: Output) -> Line | None:
        """Write an item's files, and return its line of the manifest, or what else `commit` takes."""

    def commit(self, lines: Sequence[Line]) -> None:
        """Record a unit whose files are written."""

    def finish(self, items: Sequence[Item], report: StageReport[Item]) -> None:
        """Complete the stage when all processes are done. Runs in the first process."""


class ManifestStage(Stage[Item, Loaded, Output]):
    """A stage that writes files into one folder, and one line per item into the folder's manifest.

    An item is done where its line has the same record and its files exist.

    Args:
        folder: the output folder.
        record: everything that decides about every output, as JSON values; each line of the manifest holds it.
        settings: a settings dataclass or a mapping, written to `settings.json`.
        script: the script that writes the folder, for errors, e.g. `ControlNet/style_transfer.py`.

    Attributes:
        refuses: whether lines of another record are an error; otherwise their items are computed again.
    """

    refuses: bool = False

    def __init__(self, folder: Path, record: Mapping[str, Any], settings: Any = None, script: str = "") -> None:
        self.folder = folder
        self.record = dict(record)
        self.settings = settings
        self.script = script
        self.manifest = Manifest(folder)

    @abc.abstractmethod
    def files(self, item: Item) -> Mapping[str, str]:
        """Return an item's files by their names in the manifest, relative to the folder."""

    def item_record(self, item: Item) -> Mapping[str, Any]:
        """Return what decides about one item's output: the stage's record, and what belongs to this item alone."""
        return self.record

    def clear(self) -> None:
        """Remove all outputs of an earlier run, for `overwrite`; by default they are overwritten one by one."""

    def holds_outputs(self) -> bool:
        """Whether the folder holds files such as this stage writes."""
        return False

    def compared(self, items: Sequence[Item]) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield the ids of manifest lines that a run over `items` must agree with, each with the expected record."""
        return ((self.key(item), self.item_record(item)) for item in items)

    def folders(self) -> Iterable[Path]:
        return [self.folder]

    def begin(self, items: Sequence[Item], overwrite: bool) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise GenValError(
                f"{self.folder} is a file: expected a folder. Move it elsewhere, or give another --output_dir."
            )
        if overwrite:
            self.clear()
        elif self.settings is not None and self.holds_outputs() and not (self.folder / "settings.json").exists():
            raise GenValError(
                f"{self.folder} holds images but no settings.json: it was not written by {self.script}. Give another "
                "--output_dir, or --overwrite to replace them."
            )
        elif self.refuses:
            self._refuse(items)
        remove_leftovers(self.folder)
        Manifest(self.folder).merge()

    def open(self, rank: int) -> None:
        self.manifest = Manifest(self.folder, rank)

    def is_done(self, item: Item) -> bool:
        line = self.manifest.records.get(self.key(item))
        return (
            line is not None
            and all(line.get(name) == value for name, value in self.item_record(item).items())
            and all((self.folder / file).exists() for file in self.files(item).values())
        )

    def prepare(self, missing: Sequence[Item]) -> None:
        if not missing:
            return  # settings.json stays that of the run that wrote the files
        # A file is replaced before its line: if this run is killed in between, no line may accept the file.
        self.manifest.remove({self.key(item) for item in missing if self.files(item) and not self.is_done(item)})
        if self.settings is not None:
            write_settings(self.folder, self.settings)

    def commit(self, lines: Sequence[Line]) -> None:
        self.manifest.append(lines)

    def finish(self, items: Sequence[Item], report: StageReport[Item]) -> None:
        Manifest(self.folder).finish([self.key(item) for item in items])
        self.manifest = Manifest(self.folder)

    def _refuse(self, items: Sequence[Item]) -> None:
        lines = Manifest(self.folder).records
        for item_id, expected in self.compared(items):
            line = lines.get(item_id, expected)
            differing = [
                f"{key} {line.get(key)} (now {value})" for key, value in expected.items() if line.get(key) != value
            ]
            if differing:
                raise GenValError(
                    f"{self.folder} holds {item_id}, which was made with {', '.join(differing)}. Give --overwrite to "
                    "compute it again, or another --output_dir."
                )


@dataclasses.dataclass(frozen=True)
class Skipped(Generic[Item]):
    """An item whose inputs are bad, and why."""

    item: Item
    reason: str


@dataclasses.dataclass(frozen=True)
class StageReport(Generic[Item]):
    """What a run of a stage did.

    Attributes:
        total: number of items.
        written: number of items that were computed and written by all processes.
        skipped: items that `skip_bad` skipped, of all processes.
    """

    total: int
    written: int
    skipped: tuple[Skipped[Item], ...] = ()


def run_stage(
    stage: Stage[Item, Any, Any],
    items: Sequence[Item],
    *,
    fabric: Fabric | None = None,
    batch_size: int = 1,
    num_workers: int = 4,
    overwrite: bool = False,
    skip_bad: bool = False,
) -> StageReport[Item]:
    """Compute and write every item of a stage that is missing.

    Args:
        stage: the stage.
        items: in the order of the run; the same in every process.
        fabric: the processes that share the work; None for this process alone.
        batch_size: items per batch.
        num_workers: threads that read, and as many that write.
        overwrite: compute every item again.
        skip_bad: skip items whose inputs cannot be read instead of stopping at the first one.

    Raises:
        GenValError: an input is bad, an output cannot be written, the output folder belongs to another run, or another
            run is writing it now. What was computed before is written and recorded.
    """
    rank, world_size = (fabric.global_rank, fabric.world_size) if fabric else (0, 1)
    with _begun(stage, items, fabric, overwrite):
        with same_outcome(fabric):  # no process writes before all have looked
            stage.open(rank)
            done = set() if overwrite else {stage.key(item) for item in items if stage.is_done(item)}
            units = stage.partition(items, batch_size)
            unfinished = [unit for unit in units if not all(stage.key(item) in done for item in _items(unit))]
        with same_outcome(fabric):
            if rank == 0:
                stage.prepare([item for unit in unfinished for item in _items(unit)])
        mine = unfinished[rank::world_size]
        own, left, total = (sum(len(_items(unit)) for unit in part) for part in (mine, unfinished, units))
        before = (total - left) // world_size
        skipped: list[Skipped[Item]] | None = [] if skip_bad else None
        bar = progress_bar(before + own, stage.title, initial=before, rank=rank)
        writer = _Writer(stage, done, num_workers)
        reading = _reading(stage, mine, num_workers, skipped)
        with same_outcome(fabric), stage.compute_context(), bar, writer, reading as parts:
            started = _compute(stage, parts, rank)
            for unit, part, outputs in one_behind(started) if stage.asynchronous else started:
                if part:
                    writer.submit(part, outputs() if stage.asynchronous else outputs)
                if unit is not None:
                    writer.commit()
                bar.update(len(part))
        with same_outcome(fabric):
            report = StageReport(len(items), *_gather(fabric, writer.written, tuple(skipped or ())))
            if rank == 0:
                stage.finish(items, report)
        return report


@contextlib.contextmanager
def _begun(
    stage: Stage[Item, Any, Any], items: Sequence[Item], fabric: Fabric | None, overwrite: bool
) -> Iterator[None]:
    """Begin a stage in the first process, which holds the locks of its folders until the end of the run."""
    with contextlib.ExitStack() as locks:
        with same_outcome(fabric):
            if fabric is None or fabric.global_rank == 0:
                locks.enter_context(lock_folders(stage.folders()))
                stage.begin(items, overwrite)
        yield


def _items(unit: Sequence[Sequence[Item]]) -> list[Item]:
    return [item for batch in unit for item in batch]


# A part of a batch: pairs of an item and its loaded input.
_Part = list[tuple[Any, Any]]
# The unit that ends with a part. None if further parts of the unit follow.
_End = Sequence[Sequence[Any]] | None
# The unit that ends with the part, the part, and what `collate` returned for it.
_Ready = tuple[_End, _Part, Any]


@contextlib.contextmanager
def _reading(
    stage: Stage[Item, Any, Any],
    units: Sequence[Sequence[Sequence[Item]]],
    num_workers: int,
    skipped: list[Skipped[Item]] | None,
) -> Iterator[Iterator[_Ready]]:
    """Give the parts of all batches in order. Threads load them, and another thread collates them, ahead of their use.

    After an error or Ctrl-C, no further file is read.
    """
    readers = ThreadPoolExecutor(num_workers, thread_name_prefix="load")
    stop = functools.partial(readers.shutdown, wait=False, cancel_futures=True)
    with readers, contextlib.closing(one_ahead(_batches(stage, units, readers, num_workers, skipped), stop)) as parts:
        yield parts


def _batches(
    stage: Stage[Item, Loaded, Any],
    units: Sequence[Sequence[Sequence[Item]]],
    readers: ThreadPoolExecutor,
    num_workers: int,
    skipped: list[Skipped[Item]] | None,
) -> Iterator[_Ready]:
    """Yield the parts of all batches in order, loaded and collated. Inputs are loaded ahead of their use."""
    batches = [(unit if batch is unit[-1] else None, batch) for unit in units for batch in unit]
    upcoming = deque(item for _, batch in batches for item in batch)
    waiting: deque[tuple[Item, Future[Loaded]]] = deque()
    for end, batch in batches:
        ahead = len(batch) + max(len(batch), 2 * num_workers)
        while upcoming and len(waiting) < ahead:
            item = upcoming.popleft()
            waiting.append((item, readers.submit(stage.load, item)))
        loaded: list[tuple[Item, Loaded]] = []
        for _ in batch:
            item, future = waiting.popleft()
            try:
                loaded.append((item, future.result()))
            except GenValError as error:
                if skipped is None:
                    raise
                skipped.append(Skipped(item, without_skip_bad(str(error))))
        parts = list(stage.split(loaded)) if loaded else [[]]
        for part in parts:
            collated = stage.collate(*map(list, zip(*part, strict=True))) if part else None
            yield end if part is parts[-1] else None, part, collated


def _compute(stage: Stage[Any, Any, Any], parts: Iterable[_Ready], rank: int) -> Iterator[tuple[_End, _Part, Any]]:
    first = rank == 0
    for end, part, batch in parts:
        if part and first:
            tqdm.write(f"{stage.title}: first batch {seconds_since_start():.1f} s after the start", file=sys.stderr)
            first = False
        yield end, part, stage.compute([item for item, _ in part], batch) if part else list


class _Writer:
    """Writes items in several threads and commits units in one, in order; on leaving, everything is written.

    An exception of a thread is raised by a later call, or at the end.
    """

    def __init__(self, stage: Stage[Any, Any, Any], done: set[str], threads: int) -> None:
        self.written = 0
        self._stage, self._done = stage, done
        self._writers = ThreadPoolExecutor(threads, thread_name_prefix="write")
        self._committer = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._unit: list[Future[Line | None]] = []
        self._waiting: deque[Future[Any]] = deque()
        self._commits: deque[Future[None]] = deque()

    def submit(self, part: _Part, outputs: Sequence[Any]) -> None:
        """Write the items of a part that are not done."""
        for (item, loaded), output in zip(part, outputs, strict=True):
            if self._stage.key(item) in self._done:
                continue
            while len(self._waiting) >= max(self._stage.max_waiting, 2 * len(part)):
                self._waiting.popleft().result()
            future = self._writers.submit(self._stage.write, item, loaded, output)
            self._unit.append(future)
            self._waiting.append(future)
            self.written += 1

    def commit(self) -> None:
        """Record the unit whose last part was submitted, when its files are written."""
        unit, self._unit = self._unit, []
        while self._commits and (self._commits[0].done() or len(self._commits) > 2):
            self._commits.popleft().result()
        self._commits.append(self._committer.submit(self._commit, unit))

    def _commit(self, unit: Sequence[Future[Line | None]]) -> None:
        lines = [line for future in unit if (line := future.result()) is not None]
        if lines:
            self._stage.commit(lines)

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._writers.shutdown(wait=True)
        self._committer.shutdown(wait=True)
        if error is None:  # a thread's own failure must not hide the exception that ended the block
            for future in (*self._waiting, *self._commits):
                future.result()


def _gather(
    fabric: Fabric | None, written: int, skipped: tuple[Skipped[Item], ...]
) -> tuple[int, tuple[Skipped[Item], ...]]:
    if fabric is None or fabric.world_size == 1:
        return written, skipped
    parts = [fabric.broadcast((written, skipped), rank) for rank in range(fabric.world_size)]
    return sum(part[0] for part in parts), tuple(one for part in parts for one in part[1])
