"""The engine: what is computed, written and recorded, in every order of failures and resumes."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from genval.artifacts import stage as stage_module
from genval.artifacts.manifest import Manifest
from genval.artifacts.stage import ManifestStage, StageReport, run_stage
from genval.runtime.errors import GenValError


@dataclasses.dataclass(frozen=True)
class Number:
    id: str
    value: int


NUMBERS = [Number(f"n{i}", i) for i in range(10)]


class Squares(ManifestStage[Number, int, int]):
    """Writes each number's square; a batch's outputs depend on the batch, as on a GPU."""

    title = "squares"
    refuses = True

    def __init__(self, folder: Path, power: int = 2, fails_at: int | None = None) -> None:
        super().__init__(folder, {"power": power}, {"power": power}, "squares.py")
        self.power, self.fails_at = power, fails_at
        self.batches: list[list[str]] = []

    def files(self, item: Number) -> dict[str, str]:
        return {"file": f"{item.id}.txt"}

    def load(self, item: Number) -> int:
        if item.value < 0:
            raise GenValError(f"{item.id} is negative")
        return item.value

    def compute(self, items: Sequence[Number], loaded: Sequence[int]) -> Any:
        if any(value == self.fails_at for value in loaded):
            raise GenValError("the device failed")
        self.batches.append([item.id for item in items])
        return [value**self.power + 1000 * len(loaded) for value in loaded]

    def write(self, item: Number, loaded: int, output: int) -> dict[str, Any]:
        (self.folder / f"{item.id}.txt").write_text(str(output))
        return {"id": item.id, **self.files(item), **self.record}


class Pending(Squares):
    asynchronous = True

    def compute(self, items: Sequence[Number], loaded: Sequence[int]) -> Callable[[], list[int]]:
        outputs = super().compute(items, loaded)
        return lambda: outputs


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.glob("*.*") if path.name != "settings.json"}


@pytest.fixture(params=[Squares, Pending])
def stage_class(request: pytest.FixtureRequest) -> type[Squares]:
    return request.param


def test_everything_is_written_once_and_recorded_in_order(tmp_path: Path, stage_class: type[Squares]) -> None:
    stage = stage_class(tmp_path)
    report = run_stage(stage, NUMBERS, batch_size=4)
    assert stage.batches == [["n0", "n1", "n2", "n3"], ["n4", "n5", "n6", "n7"], ["n8", "n9"]]
    assert (report.total, report.written, report.skipped) == (10, 10, ())
    assert list(Manifest(tmp_path).records) == [number.id for number in NUMBERS]
    assert (tmp_path / "n9.txt").read_text() == "2081"
    again = stage_class(tmp_path)
    assert run_stage(again, NUMBERS, batch_size=4).written == 0
    assert again.batches == []


@pytest.mark.parametrize("fails_at", [0, 3, 4, 9])
def test_a_resumed_run_leaves_the_same_files(tmp_path: Path, stage_class: type[Squares], fails_at: int) -> None:
    run_stage(stage_class(tmp_path / "whole"), NUMBERS, batch_size=3)
    with pytest.raises(GenValError, match="the device failed"):
        run_stage(stage_class(tmp_path / "resumed", fails_at=fails_at), NUMBERS, batch_size=3)
    # What was computed before the failure is written and recorded.
    assert len(Manifest(tmp_path / "resumed").records) == fails_at // 3 * 3
    resumed = stage_class(tmp_path / "resumed")
    run_stage(resumed, NUMBERS, batch_size=3)
    assert contents(tmp_path / "resumed") == contents(tmp_path / "whole")
    assert sum(map(len, resumed.batches)) == 10 - fails_at // 3 * 3


def test_a_batch_is_computed_whole_and_only_what_is_missing_is_written(tmp_path: Path) -> None:
    run_stage(Squares(tmp_path), NUMBERS, batch_size=4)
    kept = (tmp_path / "n4.txt").stat().st_mtime_ns
    (tmp_path / "n5.txt").unlink()
    stage = Squares(tmp_path)
    assert run_stage(stage, NUMBERS, batch_size=4).written == 1
    assert stage.batches == [["n4", "n5", "n6", "n7"]]
    assert (tmp_path / "n5.txt").read_text() == "4025"
    assert (tmp_path / "n4.txt").stat().st_mtime_ns == kept


def test_another_record_is_refused_or_computed_again(tmp_path: Path) -> None:
    run_stage(Squares(tmp_path), NUMBERS)
    with pytest.raises(GenValError, match=r"n0, which was made with power 2 \(now 3\).*--overwrite"):
        run_stage(Squares(tmp_path, power=3), NUMBERS)
    stage = Squares(tmp_path, power=3)
    stage.refuses = False
    assert run_stage(stage, NUMBERS).written == 10
    assert Manifest(tmp_path).records["n1"]["power"] == 3


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_of_an_ended_run_with_other_settings_is_not_accepted(tmp_path: Path, overwrite: bool) -> None:
    class Ended(Squares):
        refuses = overwrite

        def commit(self, lines: Any) -> None:
            raise GenValError("killed between the file and its line")

    run_stage(Squares(tmp_path), NUMBERS, batch_size=4)
    before = contents(tmp_path)
    with pytest.raises(GenValError, match="killed"):
        run_stage(Ended(tmp_path, power=3), NUMBERS, batch_size=4, overwrite=overwrite)
    assert contents(tmp_path) != before
    assert run_stage(Squares(tmp_path), NUMBERS, batch_size=4).written == 10
    assert contents(tmp_path) == before


def test_a_run_over_a_part_of_a_finished_set_changes_no_file(tmp_path: Path) -> None:
    numbers = [Number(f"n{i}", i) for i in range(12)]  # sorted by id, n10 would follow n1
    run_stage(Squares(tmp_path), numbers, batch_size=4)
    before, settings = contents(tmp_path), (tmp_path / "settings.json").read_bytes()
    for part in (numbers[:2], numbers[6:8], numbers):
        stage = Squares(tmp_path)
        stage.settings = {"power": 2, "num_samples": len(part)}
        assert run_stage(stage, part, batch_size=4).written == 0
        assert contents(tmp_path) == before and (tmp_path / "settings.json").read_bytes() == settings


def test_overwrite_computes_everything_again(tmp_path: Path) -> None:
    run_stage(Squares(tmp_path), NUMBERS)
    assert run_stage(Squares(tmp_path, power=3), NUMBERS, overwrite=True).written == 10
    assert (tmp_path / "n2.txt").read_text() == "1008"


def test_bad_items_stop_the_run_or_are_skipped(tmp_path: Path, stage_class: type[Squares]) -> None:
    numbers = [*NUMBERS[:3], Number("bad", -1), *NUMBERS[3:]]
    with pytest.raises(GenValError, match="bad is negative"):
        run_stage(stage_class(tmp_path), numbers, batch_size=2)
    report = run_stage(stage_class(tmp_path), numbers, batch_size=2, skip_bad=True)
    assert [(one.item.id, one.reason) for one in report.skipped] == [("bad", "bad is negative")]
    assert len(Manifest(tmp_path).records) == 10


def test_a_failed_write_is_raised_and_its_unit_is_not_recorded(tmp_path: Path, stage_class: type[Squares]) -> None:
    class Full(stage_class):  # type: ignore[misc, valid-type]
        def write(self, item: Number, loaded: int, output: int) -> dict[str, Any]:
            if item.value == 5:
                raise GenValError("the disk is full")
            return super().write(item, loaded, output)

    with pytest.raises(GenValError, match="the disk is full"):
        run_stage(Full(tmp_path), NUMBERS, batch_size=2)
    records = Manifest(tmp_path).records
    assert "n3" in records and "n5" not in records


def test_a_failed_write_does_not_hide_the_error_that_ended_the_run(tmp_path: Path) -> None:
    class Full(Squares):
        def write(self, item: Number, loaded: int, output: int) -> dict[str, Any]:
            raise GenValError("the disk is full")

    with pytest.raises(GenValError, match="the device failed"):
        run_stage(Full(tmp_path, fails_at=1), NUMBERS)


def test_the_number_of_items_that_wait_to_be_written_is_bounded(tmp_path: Path) -> None:
    gate = threading.Event()

    class Slow(Squares):
        max_waiting = 2

        def write(self, item: Number, loaded: int, output: int) -> dict[str, Any]:
            gate.wait()
            return super().write(item, loaded, output)

    stage = Slow(tmp_path)
    runner = threading.Thread(target=run_stage, args=(stage, NUMBERS), kwargs={"num_workers": 1})
    runner.start()
    time.sleep(0.3)
    waiting = len(stage.batches)
    gate.set()
    runner.join()
    assert 1 <= waiting <= 4 and len(stage.batches) == len(NUMBERS)


def test_units_are_committed_whole_and_in_order(tmp_path: Path) -> None:
    commits: list[list[str]] = []

    class Blocks(Squares):
        def partition(self, items: Sequence[Number], batch_size: int) -> list[list[Sequence[Number]]]:
            blocks = [list(group) for _, group in itertools.groupby(items, key=lambda item: item.value // 5)]
            return [[block[i : i + batch_size] for i in range(0, len(block), batch_size)] for block in blocks]

        def commit(self, lines: Sequence[dict[str, Any]]) -> None:
            commits.append([line["id"] for line in lines])
            super().commit(lines)

    with pytest.raises(GenValError, match="the device failed"):
        run_stage(Blocks(tmp_path, fails_at=8), NUMBERS, batch_size=2)
    assert commits == [["n0", "n1", "n2", "n3", "n4"]]
    stage = Blocks(tmp_path)
    run_stage(stage, NUMBERS, batch_size=2)
    assert commits[1:] == [["n5", "n6", "n7", "n8", "n9"]]
    assert stage.batches == [["n5", "n6"], ["n7", "n8"], ["n9"]]


def test_parts_of_a_batch_are_computed_apart(tmp_path: Path) -> None:
    class Parity(Squares):
        def split(self, batch: list[tuple[Number, int]]) -> list[list[tuple[Number, int]]]:
            return [list(group) for _, group in itertools.groupby(batch, key=lambda pair: pair[1] > 5)]

    stage = Parity(tmp_path)
    run_stage(stage, NUMBERS, batch_size=4)
    assert stage.batches == [["n0", "n1", "n2", "n3"], ["n4", "n5"], ["n6", "n7"], ["n8", "n9"]]
    assert len(Manifest(tmp_path).records) == 10


def test_a_folder_of_another_origin_is_refused(tmp_path: Path) -> None:
    class Owned(Squares):
        def holds_outputs(self) -> bool:
            return any(self.folder.glob("*.txt"))

    (tmp_path / "n0.txt").write_text("by hand")
    with pytest.raises(GenValError, match=r"was not written by squares\.py"):
        run_stage(Owned(tmp_path), NUMBERS)
    (tmp_path / "file").touch()
    with pytest.raises(GenValError, match="is a file: expected a folder"):
        run_stage(Owned(tmp_path / "file"), NUMBERS)


def test_loading_runs_ahead_of_the_computation(tmp_path: Path) -> None:
    loaded_second = threading.Event()

    class Ahead(Squares):
        def load(self, item: Number) -> int:
            if item.id == "n2":
                loaded_second.set()
            return super().load(item)

        def compute(self, items: Sequence[Number], loaded: Sequence[int]) -> Any:
            assert loaded_second.wait(timeout=10), "the next batch is loaded while this one is computed"
            return super().compute(items, loaded)

    assert run_stage(Ahead(tmp_path), NUMBERS, batch_size=2).written == 10


def test_batches_are_made_in_a_thread(tmp_path: Path) -> None:
    class Sums(Squares):
        def collate(self, items: Sequence[Number], loaded: Sequence[int]) -> int:
            self.thread = threading.current_thread()
            return sum(loaded)

        def compute(self, items: Sequence[Number], batch: int) -> list[int]:
            return [batch] * len(items)

    stage = Sums(tmp_path)
    run_stage(stage, NUMBERS[1:5], batch_size=3)
    found = contents(tmp_path)
    assert [found[f"n{number}.txt"] for number in range(1, 5)] == ["6", "6", "6", "4"]
    assert stage.thread is not threading.current_thread()


# Ctrl-C while four threads read sixteen files; a second one follows while the first waits for these threads.
INTERRUPTED = """
import os, signal, sys, threading, time
from pathlib import Path
from genval.artifacts.stage import Stage, run_stage

class Slow(Stage):
    loads = []
    def folders(self): return [Path(sys.argv[1])]
    def key(self, item): return str(item)
    def is_done(self, item): return False
    def compute(self, items, loaded): return loaded
    def write(self, item, loaded, output): return None
    def load(self, item):
        self.loads.append(item)
        if item == 20:
            threading.Thread(target=interrupt).start()
        time.sleep(0.5)

def interrupt():
    for _ in range(int(sys.argv[2])):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)

# A shell may start the tests with SIGINT ignored, as it does in the background.
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    run_stage(Slow(), range(1000), batch_size=16, num_workers=4)
except KeyboardInterrupt:
    for thread in threading.enumerate():
        if thread.name.startswith(("load", "ahead")):
            thread.join()
    print(len(Slow.loads))
"""


@pytest.mark.parametrize("times", [1, 2])
def test_an_interruption_waits_only_for_the_files_that_are_being_read(tmp_path: Path, times: int) -> None:
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path), str(times)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Traceback" not in ended.stderr
    assert ended.stdout and int(ended.stdout) < 28


def test_a_second_run_on_a_folder_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    class Watched(Squares):
        def compute(self, items: Sequence[Number], loaded: Sequence[int]) -> Any:
            before = contents(tmp_path)
            with pytest.raises(GenValError, match=rf"{tmp_path} is in use by another run \(process \d+ on"):
                run_stage(Squares(tmp_path), NUMBERS, overwrite=True)
            assert contents(tmp_path) == before
            assert run_stage(Squares(tmp_path / "other"), NUMBERS[:1]).total == 1
            return super().compute(items, loaded)

    assert run_stage(Watched(tmp_path), NUMBERS, batch_size=10).written == 10
    assert run_stage(Squares(tmp_path), NUMBERS).written == 0


def test_processes_share_the_units(tmp_path: Path) -> None:
    class Process:
        world_size = 1

        def __init__(self, rank: int) -> None:
            self.global_rank, self.is_global_zero = rank, rank == 0

    class Two(Process):
        # Each process of two, without communication: the first does all that one process does alone.
        world_size = 2

        def broadcast(self, value: Any, source: int) -> Any:
            return value if source == self.global_rank else (None if not isinstance(value, tuple) else (0, ()))

    first, second = Squares(tmp_path), Squares(tmp_path)
    run_stage(first, NUMBERS, fabric=Two(0), batch_size=2)  # type: ignore[arg-type]
    assert first.batches == [["n0", "n1"], ["n4", "n5"], ["n8", "n9"]]
    run_stage(second, NUMBERS, fabric=Two(1), batch_size=2)  # type: ignore[arg-type]
    assert [batch[0] for batch in second.batches] == ["n6"]


class Blocks(Squares):
    """A unit of five numbers; a batch in which no item can be read has no part."""

    def partition(self, items: Sequence[Number], batch_size: int) -> list[list[Sequence[Number]]]:
        blocks = [items[start : start + 5] for start in range(0, len(items), 5)]
        return [[block[i : i + batch_size] for i in range(0, len(block), batch_size)] for block in blocks]

    def split(self, batch: list[tuple[Number, int]]) -> list[list[tuple[Number, int]]]:
        return [[pair] for pair in batch]


def test_a_unit_whose_last_batch_is_skipped_is_recorded(tmp_path: Path) -> None:
    numbers = [*NUMBERS[:3], Number("bad1", -1), Number("bad2", -2)]
    assert run_stage(Blocks(tmp_path), numbers, batch_size=3, skip_bad=True).written == 3
    assert set(Manifest(tmp_path).records) == {"n0", "n1", "n2"}


def test_what_was_computed_is_written_before_an_error_is_raised(tmp_path: Path) -> None:
    class Slow(Blocks):
        def write(self, item: Number, loaded: int, output: int) -> dict[str, Any]:
            time.sleep(0.3)
            return super().write(item, loaded, output)

    with pytest.raises(GenValError, match="the device failed"):
        run_stage(Slow(tmp_path, fails_at=1), NUMBERS)
    assert (tmp_path / "n0.txt").exists()


def test_one_worker_reads_and_one_writes(tmp_path: Path) -> None:
    threads: dict[str, set[int]] = {"load": set(), "write": set()}

    class Watched(Squares):
        def load(self, item: Number) -> int:
            threads["load"].add(threading.get_ident())
            time.sleep(0.02)
            return super().load(item)

        def write(self, item: Number, loaded: int, output: int) -> dict[str, Any]:
            threads["write"].add(threading.get_ident())
            time.sleep(0.02)
            return super().write(item, loaded, output)

    run_stage(Watched(tmp_path), NUMBERS, batch_size=5, num_workers=1)
    assert [len(found) for found in threads.values()] == [1, 1]


def test_a_missing_output_is_an_error(tmp_path: Path) -> None:
    class Short(Squares):
        def compute(self, items: Sequence[Number], loaded: Sequence[int]) -> Any:
            return super().compute(items, loaded)[1:]

    with pytest.raises(ValueError, match="argument 2 is shorter"):
        run_stage(Short(tmp_path), NUMBERS, batch_size=5)


def test_an_item_is_compared_with_its_own_record(tmp_path: Path) -> None:
    class Own(Squares):
        def item_record(self, item: Number) -> dict[str, Any]:
            return {**self.record, "value": item.value}

        def write(self, item: Number, loaded: int, output: int) -> dict[str, Any]:
            return super().write(item, loaded, output) | {"value": loaded}

    run_stage(Own(tmp_path), NUMBERS)
    assert run_stage(Own(tmp_path), NUMBERS).written == 0
    other = Own(tmp_path)
    other.refuses = False
    assert run_stage(other, [Number("n0", 0), Number("n1", 7)]).written == 1


@pytest.mark.parametrize("rank", [0, 1])
def test_progress_starts_at_a_share_of_what_is_done_and_the_first_process_finishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    run_stage(Squares(tmp_path), NUMBERS[:5])
    bars, prepared, finished = [], [], []
    original = stage_module.progress_bar
    monkeypatch.setattr(stage_module, "progress_bar", lambda *a, **k: bars.append((a, k)) or original(*a, **k))

    class Two:
        global_rank, is_global_zero, world_size = rank, rank == 0, 2

        def broadcast(self, value: Any, source: int) -> Any:
            return value if source == rank else (None if not isinstance(value, tuple) else (0, ()))

    class Watched(Squares):
        def prepare(self, missing: Sequence[Number]) -> None:
            prepared.append(missing)

        def finish(self, items: Sequence[Number], report: Any) -> None:
            finished.append((items, report))

    report = run_stage(Watched(tmp_path), NUMBERS, fabric=Two())  # type: ignore[arg-type]
    own = 3 - rank
    assert bars == [((2 + own, "squares"), {"initial": 2, "rank": rank})] and type(bars[0][1]["initial"]) is int
    assert report == StageReport(10, own) and finished == [(NUMBERS, report)] * (rank == 0)
    assert prepared == [NUMBERS[5:]] * (rank == 0)
