"""`manifest.jsonl`: one line for every file a stage wrote, with all that is needed to make it again."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from genval.runtime.errors import GenValError
from genval.runtime.files import check_shape, jsonl_bytes, parse_json, split_jsonl, write_bytes, write_jsonl


class _Record(TypedDict):
    id: str


class Manifest:
    """An append-only record of finished items, keyed by each record's `"id"`.

    A process appends to its own part (`manifest.jsonl` on rank 0, `manifest.rank{r}.jsonl` elsewhere) as items finish,
    flushing to disk, so that a killed run loses no finished item; `finish` merges the parts and sorts the lines of a
    run. Before a run, `merge` takes in what a killed one left. Records hold no times or host names: the same
    settings give the same bytes.

    Args:
        folder: the output folder the manifest describes.
        rank: this process's number.
        name: of the file, for records of another kind than `manifest`.

    Raises:
        GenValError: a line in the middle of a part is not JSON (a torn last line is what a kill leaves: it is dropped),
            or a line is not an object with an id.
    """

    def __init__(self, folder: str | Path, rank: int = 0, name: str = "manifest") -> None:
        self.folder = Path(folder)
        self.name = name
        self.path = self.folder / (f"{name}.jsonl" if rank == 0 else f"{name}.rank{rank}.jsonl")
        self.records: dict[str, dict[str, Any]] = {}
        for part in manifest_parts(self.folder, self.name):
            self.records.update((record["id"], record) for record in _read_part(part))

    def __contains__(self, item_id: str) -> bool:
        return item_id in self.records

    def append(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Add finished items; on return they are on the disk."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a+b") as stream:
                # A torn last line has no newline: without this the first new record would be glued to it and lost.
                stream.seek(0, os.SEEK_END)
                if stream.tell() > 0:
                    stream.seek(-1, os.SEEK_END)
                    if stream.read(1) != b"\n":
                        stream.write(b"\n")
                for record in records:
                    stream.write((json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n").encode())
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise GenValError(
                f"Cannot write {self.path}: {error.strerror or error}. Free disk space, or choose another folder."
            ) from error
        self.records.update((record["id"], dict(record)) for record in records)

    def merge(self) -> None:
        """Take in the parts that a killed run left: they would be read after, and so overrule, lines to come.

        For the first process, before any process makes its own `Manifest` of the folder.
        """
        if any(part != self.path for part in manifest_parts(self.folder, self.name)):
            self.finish([])

    def remove(self, item_ids: Collection[str]) -> None:
        """Remove the records of items whose files are about to be replaced.

        For the first process, after `merge`.
        """
        if self.records.keys() & item_ids:
            self.records = {item_id: record for item_id, record in self.records.items() if item_id not in item_ids}
            write_jsonl(self.path, self.records.values())

    def finish(self, order: Sequence[str]) -> None:
        """Merge every process's part into one file, in which the lines of `order`'s ids are in that order.

        Other lines keep their places, so that a run over a part of the items leaves the file of a finished run as it
        is.
        """
        merged = type(self)(self.folder, name=self.name)
        found = merged.records
        ordered = iter([item_id for item_id in dict.fromkeys(order) if item_id in found])
        named = set(order)
        lines = jsonl_bytes(found[next(ordered) if item_id in named else item_id] for item_id in found)
        if not merged.path.exists() or merged.path.read_bytes() != lines:
            write_bytes(merged.path, lines)
        for part in manifest_parts(self.folder, self.name):
            if part != merged.path:
                part.unlink()


def manifest_parts(folder: Path, name: str = "manifest") -> list[Path]:
    """Return the files that the processes of a run wrote, sorted; others, such as a user's copy, do not count."""
    part = re.compile(rf"{re.escape(name)}(\.rank\d+)?\.jsonl")
    return sorted(path for path in folder.glob(f"{name}*.jsonl") if part.fullmatch(path.name))


def _read_part(path: Path) -> list[dict[str, Any]]:
    records = []
    lines = split_jsonl(path.read_bytes(), path)
    for number, line in enumerate(lines, 1):
        source, remedy = f"{path}, line {number}", "Remove the line; its item is then made again."
        try:
            value = parse_json(line, source, remedy=remedy) if line.strip() else None
        except GenValError:
            # The beginning of an object, or zeros, which some file systems leave after a loss of power.
            is_begun = line.lstrip().startswith(b"{") or not line.strip(b"\0\r")
            torn = is_begun and (number == len(lines) or not line.strip().endswith(b"}"))
            if not torn:
                raise
            continue
        if line.strip():
            records.append(check_shape(value, _Record, source, remedy))
    return records
