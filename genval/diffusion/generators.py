"""The generators of ControlNet/style_transfer.py by name, and the run that they have in common."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from genval.artifacts.stage import run_stage
from genval.datasets.items import BadFile, find_items
from genval.datasets.layouts import at_strength, find_root, generator_folder
from genval.datasets.reading import check_ids, readable
from genval.diffusion.prompts import find_captions, find_domain, instructions
from genval.diffusion.published import controlnet_hashes, editor_hashes, prepare_controlnet, prepare_editor
from genval.diffusion.settings import StyleTransferSettings
from genval.diffusion.style_transfer import (
    PreparedTransfers,
    TransferPlan,
    caption_frames,
    choose_transfers,
    model_hashes,
    prepare_transfers,
)
from genval.diffusion.translation.stage import prepare_translation, translator_hashes
from genval.runtime.devices import launch_fabric
from genval.runtime.paths import resolve

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclasses.dataclass(frozen=True)
class Generator:
    """How a generator makes its images.

    Attributes:
        hashes: returns the hashes of its models' files, before a model is loaded.
        prepare: loads its models, and returns the stage that generates the images.
        prompted: whether its prompts have captions; frames need captions only then.
        instructed: whether its prompts are instructions (`path_dicts.INSTRUCTIONS`).
        repeats: whether a frame that is chosen again gives another image; otherwise a frame is chosen at most once.
    """

    hashes: Callable[[StyleTransferSettings], Mapping[str, str | None]]
    prepare: Callable[[StyleTransferSettings, TransferPlan, Fabric], PreparedTransfers]
    prompted: bool = True
    instructed: bool = False
    repeats: bool = True


GENERATORS: dict[str, Generator] = {
    "controlnet": Generator(controlnet_hashes, prepare_controlnet),
    "img2img": Generator(model_hashes, prepare_transfers),
    "translate": Generator(translator_hashes, prepare_translation, prompted=False, repeats=False),
    "edit": Generator(editor_hashes, prepare_editor, prompted=False, instructed=True),
}


@dataclasses.dataclass(frozen=True)
class GeneratedSet:
    """What a run of `generate_domain` did.

    Attributes:
        folder: of the generated set.
        images: number of its images.
        written: images that this run generated.
        retried: images that were generated again with another seed.
        truncated: captions that were truncated to the text encoder's limit.
        skipped: bad files that `skip_bad` skipped.
    """

    folder: Path
    images: int
    written: int
    retried: int
    truncated: int
    skipped: tuple[BadFile, ...]


def plan_domain(settings: StyleTransferSettings, strength: float = 1.0) -> TransferPlan:
    """Find the frames and captions, choose the frames, and identify the models.

    Args:
        settings: of the stage.
        strength: of the domain, 0 to 1; every strength has the same frames, crops and seeds.

    Raises:
        GenValError: a data set, a caption or a model is missing, or a setting does not fit.
    """
    generator = GENERATORS[settings.generator]
    domain = find_domain(settings.domain, settings.prompt, None if generator.instructed else settings.prompt_file)
    split = "train" if settings.from_train else "val"
    data_dir = find_root("Cityscapes", settings.data_dir, flag="--data_dir")
    source = settings.fixed_caption if generator.prompted else ""
    # The mini world's captions are next to its Cityscapes folder; the published ones are in it or in ControlNet/.
    captions_from = find_captions(settings.captions, split, data_dir, data_dir.parent) if source is None else source
    bad: list[BadFile] | None = [] if settings.skip_bad else None
    frames = find_items("Cityscapes", split=split, root=data_dir, skipped=bad)
    frames = frames if bad is None else readable(frames, bad)
    check_ids(frames)
    frames, captions = caption_frames(frames, captions_from, bad)
    # A translated frame is the same every time, and a set with the same image twice would count it twice.
    num_samples = settings.num_samples if generator.repeats else min(settings.num_samples, len(frames))
    transfers = choose_transfers(
        frames,
        captions,
        instructions(domain, settings.prompt_file) if generator.instructed else domain,
        num_samples,
        settings.seed,
        settings.prompt_template,
        replacement=generator.repeats and not settings.without_replacement,
    )
    folder = resolve(settings.output_dir) / generator_folder(settings.generator) / at_strength(domain.name, strength)
    hashes = generator.hashes(settings)
    chosen = transfers[: settings.run.limit]
    return TransferPlan(domain, frames, captions, chosen, folder, hashes, tuple(bad or ()), strength)


def generate_domain(settings: StyleTransferSettings, plan: TransferPlan | None = None) -> GeneratedSet | None:
    """Generate the images of a domain on labelled frames; resume where an earlier run stopped.

    Args:
        settings: of the stage.
        plan: of `plan_domain`, if it was already made.

    Returns:
        A summary on the first process; None on the others.

    Raises:
        GenValError: an input is missing or bad, or the folder holds images of other settings.
    """
    plan = plan or plan_domain(settings)
    fabric = launch_fabric(settings.device)
    prepared = GENERATORS[settings.generator].prepare(settings, plan, fabric)
    report = run_stage(
        prepared.stage,
        prepared.transfers,
        fabric=fabric,
        batch_size=prepared.batch_size,
        num_workers=settings.num_workers,
        overwrite=settings.run.overwrite,
    )
    if not fabric.is_global_zero:
        return None
    truncated = sum(one.prompt != other.prompt for one, other in zip(plan.transfers, prepared.transfers, strict=True))
    retried = prepared.stage.retried(prepared.transfers)
    return GeneratedSet(plan.folder, len(prepared.transfers), report.written, retried, truncated, plan.skipped)
