"""The generators of published pipelines.

Images are computed one at a time: an image then depends only on its own seed, prompt and inputs, and the pipelines that
take several references per prompt need no special case.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from genval.datasets.palettes import class_colours
from genval.diffusion.models.controlnet import find_controlnet
from genval.diffusion.models.hints import CITYSCAPES_IDS, check_labels
from genval.diffusion.models.pipelines import locked_dtype
from genval.diffusion.pairs import FramedPair
from genval.diffusion.prompts import instructions
from genval.diffusion.published.loading import (
    TOO_LARGE,
    find_published,
    load_pipeline,
    place,
    published_controlnet,
    run_pipeline,
)
from genval.diffusion.published.pipelines import EDITORS, Published, Request, pix2pix
from genval.diffusion.sampling.generation import Sampled, check_pixels, sample_with_retries
from genval.diffusion.sampling.micro_batches import MicroBatches
from genval.diffusion.settings import PipelineConfig, SamplingConfig, StyleTransferSettings
from genval.diffusion.style_transfer import (
    FrameStage,
    Transfer,
    TransferModels,
    TransferPlan,
    WeightFiles,
    find_weights,
    fit_prompts,
    frame_record,
    load_models,
    prepare_transfers,
)
from genval.runtime.devices import choose_precision
from genval.runtime.errors import GenValError
from genval.runtime.flags import flatten

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class PublishedStage(FrameStage):
    """Generates the images of a domain with a published pipeline, one at a time.

    Args:
        folder: of the generated set.
        record: the settings that define the images, as JSON values.
        pipeline: of `load_pipeline`, placed on its device.
        published: its entry in `EDITORS` or `CONTROLNETS`.
        steps: sampling steps.
        request: the settings of every image; its `image` is replaced.
        hint_colours: the colours of a ControlNet's hint; None for an editor, which reads the photo.
        height, width: of the images, in pixels.
        settings: written to `settings.json`.

    Raises:
        GenValError: a side is not a multiple of the pipeline's step.
    """

    def __init__(
        self,
        folder: Path,
        record: Mapping[str, Any],
        pipeline: Any,
        published: Published,
        *,
        steps: int,
        request: Request,
        hint_colours: str | None,
        height: int,
        width: int,
        settings: Any = None,
    ) -> None:
        super().__init__(
            folder,
            record,
            CITYSCAPES_IDS.labels,
            height=height,
            width=width,
            batch_size=1,
            negative_prompt=request.negative_prompt,
            settings=settings,
        )
        self.micro_batches = MicroBatches(1, TOO_LARGE)
        step = 2 * pipeline.vae_scale_factor
        if height % step or width % step:
            raise GenValError(f"Expected a height and width that are multiples of {step}, found {height}x{width}.")
        self.pipeline, self.published, self.steps, self.request = pipeline, published, steps, request
        self.colours = None if hint_colours is None else class_colours(hint_colours)[self.labels.train_ids]

    def compute(self, items: Sequence[Transfer], loaded: Sequence[FramedPair]) -> list[tuple[np.ndarray, int, int]]:
        def image(part: slice, rows: int) -> tuple[np.ndarray, int, int]:
            return self._image(items[part.start], loaded[part.start])

        return self.micro_batches.compute(len(items), image, lambda: None)

    def _image(self, item: Transfer, frame: FramedPair) -> tuple[np.ndarray, int, int]:
        from PIL import Image

        source = frame.image if self.colours is None else self.colours[frame.mask]
        request = dataclasses.replace(self.request, image=Image.fromarray(source))

        def sample(chosen: list[int], seeds: list[int]) -> Sampled:
            prompt = {"prompt": item.prompt}
            return check_pixels(run_pipeline(self.pipeline, self.published, request, prompt, self.steps, seeds[0]))

        generated = sample_with_retries(sample, [item.prompt], [item.seed])()
        return generated.images[0], generated.seeds[0], generated.retries[0]


@dataclasses.dataclass(frozen=True)
class PublishedModels:
    """A published pipeline on its device.

    Attributes:
        pipeline: of `load_pipeline`.
        published: its entry in `EDITORS` or `CONTROLNETS`.
        steps, guidance: of sampling.
        precision: of the weights.
    """

    pipeline: Any
    published: Published
    steps: int
    guidance: float
    precision: str


def find_editor_weights(settings: StyleTransferSettings) -> dict[str, WeightFiles | None]:
    """Return the files of the editor by the name of their hash.

    Raises:
        GenValError: there is no editor, or it is of a class that is not run.
    """
    folder, published = find_published(settings.pipeline.editor, EDITORS, "--editor")
    return {"editor_hash": WeightFiles(folder, tuple(published.networks))}


def find_controlnet_weights(settings: StyleTransferSettings) -> dict[str, WeightFiles | None]:
    """Return the files of ControlNet and base, of Stable Diffusion or of a published pipeline, by name of their hashes.

    Raises:
        GenValError: a model is missing, or is of a class that is not run.
    """
    published = published_controlnet(settings)
    if published is None:
        settings.check_unused(PipelineConfig, "a ControlNet of Stable Diffusion")
        return find_weights(settings)
    settings.check_unused(("domain_strength",), published.name)
    folder, _ = _base_of(settings, published)
    return {
        "base_hash": WeightFiles(folder, tuple(published.networks)),
        "controlnet_hash": WeightFiles(find_controlnet(settings.controlnet)),
    }


def _base_of(settings: StyleTransferSettings, published: Published) -> tuple[Path, Published]:
    return find_published(settings.base or published.base, {published.index: published}, "--base")


def load_controlnet_models(settings: StyleTransferSettings, fabric: Fabric) -> TransferModels | PublishedModels:
    """Load a ControlNet and its base, of Stable Diffusion or of a published pipeline.

    Raises:
        GenValError: a model cannot be loaded, or does not suit the flags.
    """
    published = published_controlnet(settings)
    if published is None:
        return load_models(settings, fabric)
    if settings.pipeline.hint_colours is None:
        raise GenValError(
            f"--controlnet {settings.controlnet} does not record the colours of its hints. Give --hint_colours ade20k, "
            "or cityscapes if it was trained with the colours of Cityscapes."
        )
    settings.check_unused(("editor", "image_guidance"), published.name)
    folder, _ = _base_of(settings, published)
    return _load(settings, fabric, folder, published)


def prepare_controlnet(
    plan: TransferPlan,
    models: TransferModels | PublishedModels,
    hashes: Mapping[str, str | None],
    device: torch.device,
) -> tuple[FrameStage, list[Transfer]]:
    """Return the stage of a domain and its images, as `genval.diffusion.style_transfer.prepare_transfers` does.

    Raises:
        GenValError: a model does not suit the masks or the size.
    """
    if isinstance(models, TransferModels):
        return prepare_transfers(plan, models, hashes, device)
    settings = plan.settings
    check_labels(CITYSCAPES_IDS, plan.frames[0].label_space, settings.controlnet)
    own = {"control_scale": settings.sampling.control_scale, "hint_colours": settings.pipeline.hint_colours}
    return _prepare(plan, models, hashes, own)


def load_editor(settings: StyleTransferSettings, fabric: Fabric) -> PublishedModels:
    """Load an instruction editor.

    Raises:
        GenValError: it cannot be loaded, or does not suit the flags.
    """
    folder, published = find_published(settings.pipeline.editor, EDITORS, "--editor")
    settings.check_unused(("base", "controlnet", "control_scale", "hint_colours"), published.name)
    if published.arguments is not pix2pix:
        settings.check_unused(("image_guidance",), published.name)
    return _load(settings, fabric, folder, published)


def prepare_editor(
    plan: TransferPlan, models: PublishedModels, hashes: Mapping[str, str | None], device: torch.device
) -> tuple[FrameStage, list[Transfer]]:
    """Return the stage of a domain and its images, as `genval.diffusion.style_transfer.prepare_transfers` does.

    Raises:
        GenValError: the editor does not suit the instruction or the size.
    """
    settings = plan.settings
    own: dict[str, Any] = {
        "generator": settings.generator,
        "instruction": " | ".join(instructions(plan.domain, settings.prompt_file).texts),
    }
    if models.published.arguments is pix2pix:
        own["image_guidance"] = settings.pipeline.image_guidance
    return _prepare(plan, models, hashes, own)


def _load(settings: StyleTransferSettings, fabric: Fabric, folder: Path, published: Published) -> PublishedModels:
    """Load a published pipeline onto the process's device."""
    config = settings.pipeline
    sampling = tuple(field.name for field in dataclasses.fields(SamplingConfig) if field.name != "control_scale")
    settings.check_unused((*sampling, "lora", "translator", "batch_size", "compile"), published.name)
    if not published.takes_negative:
        settings.check_unused(("negative_prompt",), published.name)
    precision = choose_precision(settings.device.precision, fabric.device)
    controlnet = settings.controlnet if published.controlnet else None
    pipeline, index = load_pipeline(folder, published, locked_dtype(precision), controlnet)
    distilled = published.distilled if index.get("is_distilled") else None
    if distilled:
        settings.check_unused(("pipeline_guidance",), f"the distilled {published.name}")
    default_steps, default_guidance = distilled or (published.steps, published.guidance)
    return PublishedModels(
        place(pipeline, fabric.device, config.offload, config.vae_tiling),
        published,
        steps=config.pipeline_steps or default_steps,
        guidance=default_guidance if config.pipeline_guidance is None else config.pipeline_guidance,
        precision=precision,
    )


def _prepare(
    plan: TransferPlan, models: PublishedModels, hashes: Mapping[str, str | None], own: Mapping[str, Any]
) -> tuple[FrameStage, list[Transfer]]:
    """Return the stage of a published pipeline and its images.

    Args:
        own: the entries of the record that only its kind has.
    """
    settings, published, config = plan.settings, models.published, plan.settings.pipeline
    transfers = _fitting(settings, plan, models.pipeline, published)
    record = {
        **frame_record(plan, hashes, models.precision),
        "pipeline": published.name,
        "domain_text": " | ".join(plan.domain.texts),
        "steps": models.steps,
        "guidance_scale": models.guidance,
        "prompt_template": settings.prompt_template,
        "negative_prompt": settings.negative_prompt,
        "vae_tiling": config.vae_tiling,
        **own,
    }
    stage = PublishedStage(
        plan.folder,
        record,
        models.pipeline,
        published,
        steps=models.steps,
        request=Request(
            None, settings.negative_prompt, models.guidance, config.image_guidance, settings.sampling.control_scale
        ),
        hint_colours=config.hint_colours if published.controlnet else None,
        height=record["height"],
        width=record["width"],
        settings={**flatten(settings), **record},
    )
    return stage, transfers


def _fitting(
    settings: StyleTransferSettings, plan: TransferPlan, pipeline: Any, published: Published
) -> list[Transfer]:
    """Return the transfers with captions that the text encoder reads whole.

    Raises:
        GenValError: an instruction, or a domain without a caption, is too long.
    """
    name, limit = published.reader
    tokenizer = getattr(pipeline, name)
    limit = min(limit, tokenizer.model_max_length)

    def fits(prompt: str) -> bool:
        return len(tokenizer(prompt, truncation=True, max_length=limit + 1).input_ids) <= limit

    if published.controlnet:
        return fit_prompts(plan.transfers, plan.captions, plan.domain, settings.prompt_template, fits)
    for instruction in sorted({transfer.prompt for transfer in plan.transfers}):
        if not fits(instruction):
            raise GenValError(
                f"{published.name} reads {limit} tokens, but this instruction has more: {instruction!r}. Give shorter "
                "ones in --prompt_file, or a shorter --prompt_template."
            )
    return plan.transfers
