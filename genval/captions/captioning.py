"""Captions of many pictures: made in fixed batches, kept one by one, and put together in files at the end."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from genval.artifacts.manifest import Manifest
from genval.captions.filter import CaptionFilter
from genval.captions.interrogator import Interrogator, Prepared
from genval.captions.sources import Source
from genval.datasets.captions import read_captions_by_path
from genval.runtime.background import BackgroundWriter
from genval.runtime.errors import GenValError
from genval.runtime.files import read_image, read_json, read_jsonl, write_json, write_jsonl
from genval.runtime.progress import progress_bar


class CaptionRun:
    """Describes pictures and appends each one's line to `{folder}/manifest.jsonl`.

    Batches are a fixed partition of the sources. A batch of which anything is missing is computed as a whole and only
    what is missing is kept: a stopped and resumed run gives the same captions as one that was not stopped.

    Args:
        folder: of the lines, one set's.
        interrogator: on its device.
        record: what every line says beside its own caption; lines that say otherwise are made again.
        set_aside: pictures that cannot be decoded are added to it (key, reason) instead of being an error.
    """

    def __init__(
        self,
        folder: Path,
        interrogator: Interrogator,
        record: Mapping[str, Any],
        set_aside: dict[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.record = dict(record)
        self.set_aside = set_aside
        self._interrogator = interrogator

    def make(
        self,
        sources: Sequence[Source],
        batch_size: int,
        workers: int = 4,
        rank: int = 0,
        world_size: int = 1,
        overwrite: bool = False,
    ) -> int:
        """Describe what is missing; process `rank` takes every `world_size`-th batch.

        Returns:
            The number of pictures described by this process.

        Raises:
            GenValError: a picture is damaged, or a file cannot be written.
        """
        manifest = Manifest(self.folder, rank)
        done = {
            key: not overwrite and all(line.get(name) == value for name, value in self.record.items())
            for key, line in manifest.records.items()
        }
        batches = [sources[i : i + batch_size] for i in range(0, len(sources), batch_size)][rank::world_size]
        todo = [batch for batch in batches if not all(done.get(source.key, False) for source in batch)]
        total = sum(map(len, batches))
        bar = progress_bar(total, "captions", initial=total - sum(map(len, todo)), rank=rank)
        made = 0
        # One writing thread: the lines of a process go to one file.
        with bar, ThreadPoolExecutor(workers) as pool, BackgroundWriter(threads=1) as writer:
            ahead = deque([pool.submit(self._load, source) for source in batch] for batch in todo[:2])
            for i, batch in enumerate(todo):
                loaded = self._readable(batch, ahead.popleft())
                ahead += [[pool.submit(self._load, source) for source in later] for later in todo[i + 2 : i + 3]]
                descriptions = self._interrogator.describe([one for _, one in loaded]) if loaded else []
                lines = [
                    {
                        "id": source.key,
                        "caption": description.caption,
                        "text": description.text,
                        "similarity": description.similarity,
                        **self.record,
                    }
                    for (source, _), description in zip(loaded, descriptions, strict=True)
                    if not done.get(source.key, False)
                ]
                if lines:
                    writer.submit(manifest.append, lines)
                made += len(lines)
                bar.update(len(batch))
        return made

    def _load(self, source: Source) -> Prepared:
        return self._interrogator.prepare(read_image(source.image))

    def _readable(self, batch: Sequence[Source], jobs: Sequence[Future[Prepared]]) -> list[tuple[Source, Prepared]]:
        loaded = []
        for source, job in zip(batch, jobs, strict=True):
            try:
                loaded.append((source, job.result()))
            except GenValError as error:
                if self.set_aside is None:
                    raise
                self.set_aside[source.key] = str(error)
        return loaded


def gather(
    folder: Path, sources: Sequence[Source], record: Mapping[str, Any], caption_filter: CaptionFilter
) -> tuple[dict[str, str], dict[str, Any]]:
    """Merge the lines of all processes and filter their texts.

    Returns:
        The captions by key in the order of the sources, those set aside left out; and what the settings say of the
        filter, see `filter_report`.
    """
    manifest = Manifest(folder)
    manifest.finish([source.key for source in sources])
    texts = {
        source.key: str(manifest.records[source.key]["text"])
        for source in sources
        if source.key in manifest
        and all(manifest.records[source.key].get(name) == value for name, value in record.items())
    }
    captions = {key: caption_filter(text) for key, text in texts.items()}
    return captions, filter_report(texts, captions, caption_filter)


def filter_report(before: Mapping[str, str], after: Mapping[str, str], caption_filter: CaptionFilter) -> dict[str, Any]:
    """How many captions the filter changed, which it left empty, and how often it dropped each phrase."""
    return {
        "changed": sum(before[key] != text for key, text in after.items()),
        "emptied": [key for key, text in after.items() if before[key] and not text],
        "dropped": dict(caption_filter.dropped.most_common()),
    }


def write_training_list(path: Path, sources: Sequence[Source], captions: Mapping[str, str]) -> None:
    """Write `{"image", "conditioning_image", "text"}` lines; without the mask where a source has none."""
    write_jsonl(
        path,
        (
            {
                "image": source.key,
                **({"conditioning_image": source.mask} if source.mask else {}),
                "text": captions[source.key],
            }
            for source in sources
            if source.key in captions
        ),
    )


def refilter(path: Path, caption_filter: CaptionFilter, output: Path) -> dict[str, Any]:
    """Filter a file of captions of either form into another of the same form.

    Returns:
        As `filter_report`.

    Raises:
        GenValError: `path` is missing, damaged or no file of captions, or `output` cannot be written.
    """
    before = read_captions_by_path(path)
    after = {key: caption_filter(text) for key, text in before.items()}
    if path.suffix == ".jsonl":
        write_jsonl(output, ({**line, "text": after[line["image"]]} for line in read_jsonl(path)))
    else:
        content = read_json(path)
        write_json(output, {name: {key: after[key] for key in images} for name, images in content.items()})
    return filter_report(before, after, caption_filter)
