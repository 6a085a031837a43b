"""The generators of ControlNet/style_transfer.py by name, and the run that they have in common."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genval.artifacts.stage import run_stage
from genval.datasets.items import BadFile, find_items
from genval.datasets.layouts import at_strength, find_root, generator_folder
from genval.datasets.reading import check_ids, readable
from genval.diffusion.models.pipelines import checkpoint_hash
from genval.diffusion.prompts import find_captions, find_domain, instructions, split_domains
from genval.diffusion.published.loading import published_controlnet
from genval.diffusion.published.stage import (
    find_controlnet_weights,
    find_editor_weights,
    load_controlnet_models,
    load_editor,
    prepare_controlnet,
    prepare_editor,
)
from genval.diffusion.sampling.compiling import recorded_choice
from genval.diffusion.settings import StyleTransferSettings
from genval.diffusion.style_transfer import (
    FrameStage,
    Transfer,
    TransferPlan,
    WeightFiles,
    caption_frames,
    choose_transfers,
    find_weights,
    load_models,
    prepare_transfers,
)
from genval.diffusion.translation.stage import find_translator_weights, load_translation, prepare_translation
from genval.runtime.devices import computed_ahead, launch_fabric
from genval.runtime.errors import GenValError
from genval.runtime.paths import resolve
from genval.runtime.settings import DeviceSettings

if TYPE_CHECKING:
    import torch
    from lightning_fabric import Fabric


@dataclasses.dataclass(frozen=True)
class Generator:
    """How a generator makes its images.

    Attributes:
        weights: finds the files of its models, by the names of their hashes, before a model is loaded.
        load: loads its models.
        prepare: returns the stage of a domain and its images, see `prepare_transfers`.
        prompted: whether its prompts have captions; frames need captions only then.
        instructed: whether its prompts are instructions (`path_dicts.INSTRUCTIONS`).
        repeats: whether a frame that is chosen again gives another image; otherwise a frame is chosen at most once.
    """

    weights: Callable[[StyleTransferSettings], Mapping[str, WeightFiles | None]]
    load: Callable[[StyleTransferSettings, Fabric], Any]
    prepare: Callable[[TransferPlan, Any, Mapping[str, str | None], torch.device], tuple[FrameStage, list[Transfer]]]
    prompted: bool = True
    instructed: bool = False
    repeats: bool = True


GENERATORS: dict[str, Generator] = {
    "controlnet": Generator(find_controlnet_weights, load_controlnet_models, prepare_controlnet),
    "img2img": Generator(find_weights, load_models, prepare_transfers),
    "translate": Generator(
        find_translator_weights, load_translation, prepare_translation, prompted=False, repeats=False
    ),
    "edit": Generator(find_editor_weights, load_editor, prepare_editor, prompted=False, instructed=True),
}


# The order of sets by `recorded_choice`.
_BEGUN = {False: 0, None: 1, True: 2}


@dataclasses.dataclass(frozen=True)
class GeneratedSet:
    """What a run did for one domain.

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


def plan_domains(settings: StyleTransferSettings) -> list[TransferPlan]:
    """Find the frames, captions and models, and choose the frames of each domain and strength of it.

    Every domain and strength has the same frames and crops, and the strengths of a domain have the same seeds.

    Raises:
        GenValError: a data set, a caption or a model is missing, or a setting does not fit.
    """
    generator = GENERATORS[settings.generator]
    names = [None] if settings.domain is None else split_domains(settings.domain)
    if len(names) > 1 and settings.prompt_file is not None:
        raise GenValError("--prompt_file describes one domain. Give one --domain with it.")
    prompt_file = None if generator.instructed else settings.prompt_file
    domains = [find_domain(name, settings.prompt, prompt_file) for name in names]
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
    weights = generator.weights(settings)
    # A translated frame is the same every time, and a set with the same image twice would count it twice.
    num_samples = settings.num_samples if generator.repeats else min(settings.num_samples, len(frames))
    plans = []
    for name, domain in zip(names, domains, strict=True):
        transfers = choose_transfers(
            frames,
            captions,
            instructions(domain, settings.prompt_file) if generator.instructed else domain,
            num_samples,
            settings.seed,
            settings.prompt_template,
            replacement=generator.repeats and not settings.without_replacement,
        )
        for strength in settings.domain_strength:
            generated = generator_folder(settings.generator)
            plans.append(
                TransferPlan(
                    dataclasses.replace(settings, domain=name, domain_strength=(strength,)),
                    domain,
                    frames,
                    captions,
                    transfers[: settings.run.limit],
                    resolve(settings.output_dir) / generated / at_strength(domain.name, strength),
                    weights,
                    tuple(bad or ()),
                    strength,
                )
            )
    return plans


def generate_domains(
    plans: Sequence[TransferPlan], launch: Callable[[DeviceSettings], Fabric] = launch_fabric
) -> Iterator[GeneratedSet]:
    """Generate the images of domains on labelled frames; resume where an earlier run stopped.

    The models are loaded once, and compiled at most once.

    Args:
        plans: of `plan_domains`.
        launch: starts the processes.

    Yields:
        A summary of each domain when it is done, on the first process; nothing on the others. The order is that of the
        plans, but for sets that were begun with and without compiling.

    Raises:
        GenValError: an input is missing or bad, or a folder holds images of other settings.
    """
    settings = plans[0].settings
    generator = GENERATORS[settings.generator]
    # Compiling changes the decoder of all later images, so sets that were begun without it are resumed first.
    ordered = sorted(plans, key=lambda plan: _BEGUN[recorded_choice(plan.folder, settings.run.overwrite)])
    # Hashing takes seconds, in which this process imports libraries and loads the models.
    with computed_ahead(functools.partial(_hash_weights, plans[0].weights)) as hashes_of_all:
        fabric = launch(settings.device)
        models = generator.load(settings, fabric)
        hashes = hashes_of_all(fabric)
    previous: FrameStage | None = None
    for plan in ordered:
        stage, transfers = generator.prepare(plan, models, hashes, fabric.device)
        if previous is not None:
            stage.share_denoiser(previous)
        previous = stage
        report = run_stage(
            stage,
            transfers,
            fabric=fabric,
            batch_size=stage.batch_size,
            num_workers=settings.num_workers,
            overwrite=settings.run.overwrite,
        )
        if fabric.is_global_zero:
            truncated = sum(one.prompt != other.prompt for one, other in zip(plan.transfers, transfers, strict=True))
            retried = stage.retried(transfers)
            yield GeneratedSet(plan.folder, len(transfers), report.written, retried, truncated, plan.skipped)


def generate_domain(settings: StyleTransferSettings) -> GeneratedSet | None:
    """Generate the images of one domain, see `generate_domains`.

    Returns:
        A summary on the first process; None on the others.

    Raises:
        GenValError: as `plan_domains` and `generate_domains`, or there are several domains.
    """
    plans = plan_domains(settings)
    if len(plans) > 1:
        raise GenValError(
            f"Expected one domain and strength, found {settings.domain}, {settings.domain_strength}. "
            "Generate one after the other."
        )
    return next(generate_domains(plans), None)


def uses_published(settings: StyleTransferSettings) -> bool:
    """Return whether the generator runs a pipeline of `genval.diffusion.published`."""
    if settings.generator == "controlnet":
        return published_controlnet(settings) is not None
    return settings.generator == "edit"


def _hash_weights(weights: Mapping[str, WeightFiles | None]) -> dict[str, str | None]:
    files = list(dict.fromkeys(one for one in weights.values() if one is not None))
    with ThreadPoolExecutor(max(1, len(files))) as pool:  # a generator may have no weights
        hashes = dict(zip(files, pool.map(lambda one: checkpoint_hash(*one), files), strict=True))
    return {name: None if one is None else hashes[one] for name, one in weights.items()}
