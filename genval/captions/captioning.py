"""The resumable stage that captions images, and the files of filtered captions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genval.artifacts.fingerprint import current_mark
from genval.artifacts.manifest import Manifest
from genval.artifacts.settings import write_settings
from genval.artifacts.stage import ManifestStage, run_stage
from genval.captions.blip import find_blip
from genval.captions.captioners import find_captioner
from genval.captions.clip import find_clip
from genval.captions.filter import DEFAULT_FILTER, CaptionFilter, read_phrases
from genval.captions.interrogator import Description, Interrogator, Prepared, load_interrogator
from genval.captions.settings import CaptionSettings
from genval.captions.sources import Source, find_sources, match_sources
from genval.datasets.captions import read_captions_by_path, write_captions
from genval.datasets.items import BadFile
from genval.datasets.reading import read_image
from genval.runtime.devices import launch_fabric
from genval.runtime.errors import GenValError
from genval.runtime.files import read_json, read_jsonl, write_json, write_jsonl
from genval.runtime.flags import flatten
from genval.runtime.paths import inside, resolve
from genval.runtime.settings import DeviceSettings

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class CaptionStage(ManifestStage[Source, Prepared, Description]):
    """Describes images, with one line each in `{folder}/manifest.jsonl`; lines of another record or image are
    made again.

    Args:
        folder: of the lines of one set.
        interrogator: on its device.
        record: the settings that define the captions, as JSON values.
    """

    title = "captions"

    def __init__(self, folder: Path, interrogator: Interrogator, record: Mapping[str, Any]) -> None:
        super().__init__(folder, record, script="ControlNet/clip_int.py")
        self._interrogator = interrogator

    def key(self, item: Source) -> str:
        return item.key

    def files(self, item: Source) -> dict[str, str]:
        return {}

    def is_done(self, item: Source) -> bool:
        # Lines of earlier versions have no mark.
        mark = current_mark(item.image)
        return super().is_done(item) and self.manifest.records[item.key].get("image_mark", mark) == mark

    def load(self, item: Source) -> Prepared:
        return self._interrogator.prepare(read_image(item.image))

    def compute(self, items: Sequence[Source], loaded: Sequence[Prepared]) -> list[Description]:
        return self._interrogator.describe(loaded)

    def write(self, item: Source, loaded: Prepared, output: Description) -> dict[str, Any]:
        return {
            "id": item.key,
            "caption": output.caption,
            "text": output.text,
            "similarity": output.similarity,
            "image_mark": current_mark(item.image),
            **self.record,
        }


@dataclass(frozen=True)
class Captioned:
    """What a run of `caption_images` or `filter_captions` wrote.

    Attributes:
        output: the file of captions.
        captions: number of captions.
        written: captions that this run made.
        filter_report: of `filter_report`.
        skipped: bad files and the reasons.
    """

    output: Path
    captions: int
    written: int
    filter_report: dict[str, Any]
    skipped: dict[str, str]


def find_images(settings: CaptionSettings, skipped: list[BadFile] | None = None) -> list[Source]:
    """Find the images to caption.

    Args:
        skipped: files without a partner are added to this list instead of being an error.

    Raises:
        GenValError: the data set or the images are missing.
    """
    if settings.images:
        return match_sources(settings.images, skipped)[: settings.run.limit]
    assert settings.dataset is not None
    return find_sources(settings.dataset, settings.split, settings.datasets_dir, skipped)[: settings.run.limit]


def check_models(settings: CaptionSettings) -> None:
    """Check that the models exist, without loading them.

    Raises:
        GenValError: one is missing.
    """
    find_captioner(settings.captioner or find_blip(settings.blip))
    if settings.interrogator.mode != "caption":
        find_clip(settings.clip)


def caption_images(
    settings: CaptionSettings, start: Callable[[DeviceSettings], Fabric] = launch_fabric
) -> Captioned | None:
    """Caption the images of a set, filter the captions and write them.

    Args:
        settings: of the stage.
        start: starts the processes once the inputs are checked.

    Returns:
        A summary on the first process; None on the others.

    Raises:
        GenValError: an input is missing or bad, or no caption is left.
    """
    bad: list[BadFile] | None = [] if settings.skip_bad else None
    sources = find_images(settings, bad)
    caption_filter = make_filter(settings)
    fabric = start(settings.device)
    interrogator = load_interrogator(
        settings.interrogator,
        settings.blip,
        settings.clip,
        settings.flavors,
        settings.device.precision,
        fabric.device,
        settings.captioner,
        settings.prompt_file,
    )
    folder, record = inside(resolve(settings.output_dir), settings.set_name, "--name"), interrogator.record
    report = run_stage(
        CaptionStage(folder, interrogator, record),
        sources,
        fabric=fabric,
        batch_size=settings.batch_size,
        num_workers=settings.num_workers,
        overwrite=settings.run.overwrite,
        skip_bad=settings.skip_bad,
    )
    if not fabric.is_global_zero:
        return None
    captions, removed = gather(folder, sources, record, caption_filter)
    if not captions:
        raise GenValError("--skip_bad skipped every image: no caption is left to write.")
    output = folder.parent / f"captions_{settings.set_name}.json"
    write_captions(output, settings.set_name, captions)
    skipped = {file.file: file.reason for file in bad or []}
    skipped |= {one.item.key: one.reason for one in report.skipped}
    write_settings(folder, {**flatten(settings), **record, "filter_report": removed, "skipped": skipped})
    if settings.jsonl is not None:
        write_training_list(resolve(settings.jsonl or output.with_suffix(".jsonl")), sources, captions)
    return Captioned(output, len(captions), report.written, removed, skipped)


def filter_captions(settings: CaptionSettings) -> Captioned:
    """Filter an existing file of captions into the output folder.

    Raises:
        GenValError: the file is missing or bad, or the output exists.
    """
    source = resolve(settings.from_captions or "")
    name = f"{settings.name}{source.suffix}" if settings.name else source.name
    output = inside(resolve(settings.output_dir), name, "--name")
    if output.exists() and not settings.run.overwrite:
        raise GenValError(f"{output} exists. Give --overwrite to replace it, or another --output_dir or --name.")
    captions, removed = refilter(source, make_filter(settings), output)
    write_settings(output.parent / output.stem, {**flatten(settings), "filter_report": removed})
    return Captioned(output, captions, 0, removed, {})


def make_filter(settings: CaptionSettings) -> CaptionFilter:
    """Return the filter that the settings name."""
    return CaptionFilter([] if settings.no_filter else read_phrases(resolve(settings.filter or DEFAULT_FILTER)))


def gather(
    folder: Path, sources: Sequence[Source], record: Mapping[str, Any], caption_filter: CaptionFilter
) -> tuple[dict[str, str], dict[str, Any]]:
    """Filter the texts of a finished stage.

    Returns:
        The captions by key in the order of the sources, without those of skipped images; and the filter's report, see
        `filter_report`.
    """
    manifest = Manifest(folder)
    texts = {
        source.key: str(manifest.records[source.key]["text"])
        for source in sources
        if source.key in manifest
        and all(manifest.records[source.key].get(name) == value for name, value in record.items())
    }
    captions = {key: caption_filter(text) for key, text in texts.items()}
    return captions, filter_report(texts, captions, caption_filter)


def filter_report(before: Mapping[str, str], after: Mapping[str, str], caption_filter: CaptionFilter) -> dict[str, Any]:
    """Count the captions that the filter changed, list the emptied ones, and count how often it removed each phrase."""
    return {
        "changed": sum(before[key] != text for key, text in after.items()),
        "emptied": [key for key, text in after.items() if before[key] and not text],
        "dropped": dict(caption_filter.dropped.most_common()),
    }


def write_training_list(path: Path, sources: Sequence[Source], captions: Mapping[str, str]) -> None:
    """Write `{"image", "conditioning_image", "text"}` lines; a source without a mask has no `conditioning_image`."""
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


def refilter(path: Path, caption_filter: CaptionFilter, output: Path) -> tuple[int, dict[str, Any]]:
    """Filter a file of captions of either form into another of the same form.

    Returns:
        The number of captions, and the report of `filter_report`.

    Raises:
        GenValError: `path` is missing, damaged or not a file of captions, or `output` cannot be written.
    """
    before = read_captions_by_path(path)
    after = {key: caption_filter(text) for key, text in before.items()}
    if path.suffix == ".jsonl":
        write_jsonl(output, ({**line, "text": after[line["image"]]} for line in read_jsonl(path)))
    else:
        content = read_json(path)
        write_json(output, {name: {key: after[key] for key in images} for name, images in content.items()})
    return len(after), filter_report(before, after, caption_filter)
