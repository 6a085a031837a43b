"""The resumable stages that inpaint objects into frames and refine inpainted objects."""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from genval.artifacts.fingerprint import file_mark
from genval.artifacts.stage import run_stage
from genval.datasets.boxes import Box
from genval.datasets.items import BadFile, Item, find_items
from genval.datasets.labels import CITYSCAPES
from genval.datasets.layouts import find_root
from genval.datasets.ood_objects import (
    ObjectImage,
    find_object_images,
    object_folder,
    read_box,
    read_objects,
)
from genval.datasets.placement import PlacementConfig, crop_around, place
from genval.datasets.reading import check_ids, read_image, read_mask, readable
from genval.diffusion.framing import check_pair
from genval.diffusion.inpainting.frames import box_mask, cut, paste_box, paste_feathered
from genval.diffusion.inpainting.model import InpaintingBatch, load_inpainting, make_inpainter, start_inpainting
from genval.diffusion.inpainting.prompts import check_object_template, object_prompt
from genval.diffusion.models.pipelines import StableDiffusion, checkpoint_hash, find_base, locked_dtype
from genval.diffusion.sampling.compiling import choose_compiling, recorded_choice
from genval.diffusion.sampling.denoiser import Denoiser
from genval.diffusion.sampling.generation import Generated
from genval.diffusion.sampling.stage import GenerationStage, default_batch_size
from genval.diffusion.settings import InpaintingConfig, InpaintingStageSettings, ObjectSettings, RefinementSettings
from genval.diffusion.style_transfer import frames_hash, source_marks
from genval.runtime.devices import choose_precision, computed_ahead, launch_fabric
from genval.runtime.errors import GenValError
from genval.runtime.files import read_bytes, write_bytes, write_json, write_png
from genval.runtime.flags import flatten
from genval.runtime.paths import resolve
from genval.runtime.seeds import item_seed
from genval.runtime.settings import DeviceSettings

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclasses.dataclass(frozen=True)
class ObjectItem:
    """One image to inpaint: `{folder}/{number}`, with the object's name as given, its prompt and seed.

    Attributes:
        source: the image to refine; None for an object that is inpainted into a frame.
    """

    id: str
    object: str
    prompt: str
    seed: int
    source: ObjectImage | None = None


def plan_objects(objects: Sequence[str], num_images: int, template: str, seed: int) -> list[ObjectItem]:
    """Plan `num_images` images of each object, object by object.

    Other objects or more images change nothing about an item. An object's folder has a safe name
    (`genval.datasets.ood_objects.object_folder`), and no two names share a folder.
    """
    items = []
    for name in dict.fromkeys(objects):
        folder, prompt = object_folder(name), object_prompt(template, name)
        ids = [f"{folder}/{number}" for number in range(num_images)]
        items += [ObjectItem(item_id, name, prompt, item_seed(seed, item_id)) for item_id in ids]
    return items


def plan_refinements(images: Sequence[ObjectImage], template: str, seed: int) -> list[ObjectItem]:
    """Plan the refinement of each image; its noise differs from the noise it was inpainted with."""
    return [
        ObjectItem(
            image.id,
            image.object,
            object_prompt(template, image.object),
            item_seed(seed, f"refined/{image.id}"),
            image,
        )
        for image in images
    ]


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A frame ready for inpainting.

    Attributes:
        frame: RGB uint8 (H, W, 3).
        box: the place of the object.
        crop: the part of the frame that the model sees.
        image: the crop at the model's size, RGB uint8 (h, w, 3).
        mask: bool (h, w), the pixels to inpaint.
        line: entries of the manifest about this frame.
        label_file: the bytes of the frame's labelIds, if they are copied next to the image.
    """

    frame: np.ndarray
    box: Box
    crop: Box
    image: np.ndarray
    mask: np.ndarray
    line: dict[str, Any]
    label_file: bytes | None = None


class InpaintingStage(GenerationStage[ObjectItem, Loaded, "tuple[np.ndarray, int, int]"]):
    """Inpaints images `{object}/{i}.png`, with one line each in `{folder}/manifest.jsonl`.

    Args:
        folder: the output folder.
        record: the settings that define the images, as JSON values.
        model: of `load_inpainting`, on its device.
        config: how to sample.
        batch_size: images per batch.
        negative_prompt: of every image.
        compiled: compile the denoiser for the shape of the batches.
        settings: written to `settings.json`.
        script: the script that writes the folder, for errors.
    """

    asynchronous = True

    def __init__(
        self,
        folder: Path,
        record: Mapping[str, Any],
        model: StableDiffusion,
        config: InpaintingConfig,
        *,
        batch_size: int,
        negative_prompt: str = "",
        compiled: bool = False,
        settings: Any = None,
        script: str = "",
    ) -> None:
        super().__init__(folder, record, batch_size=batch_size, settings=settings, script=script)
        self.model, self.config = model, config
        self.negative_prompt = negative_prompt
        self.compiled = compiled

    def files(self, item: ObjectItem) -> dict[str, str]:
        return {"image": f"{item.id}.png"}

    def item_record(self, item: ObjectItem) -> Mapping[str, Any]:
        return {**self.record, "prompt": item.prompt}

    def holds_outputs(self) -> bool:
        return next(self.folder.glob("*/*.png"), None) is not None

    def compute(
        self, items: Sequence[ObjectItem], loaded: Sequence[Loaded]
    ) -> Callable[[], list[tuple[np.ndarray, int, int]]]:
        shapes = {one.image.shape for one in loaded}
        if len(shapes) > 1:
            raise GenValError(
                f"Frames of several sizes in one batch: {', '.join(f'{w}x{h}' for h, w, _ in sorted(shapes))}. Remove "
                "--whole_frame, or give --batch_size 1."
            )
        batch = InpaintingBatch(
            np.stack([one.image for one in loaded]),
            np.stack([one.mask for one in loaded]),
            [item.prompt for item in items],
            [self.negative_prompt] * len(items),
            [item.seed for item in items],
        )

        def start(denoiser: Denoiser, part: slice, rows: int) -> Callable[[], Generated]:
            return start_inpainting(denoiser, batch.rows(range(*part.indices(len(batch)))), self.config, rows)

        def denoiser() -> Denoiser:
            return make_inpainter(self.model, self.config, self.compiled, graphed=True)

        return self.start_batch(len(batch), denoiser, start)

    def write(self, item: ObjectItem, loaded: Loaded, output: tuple[np.ndarray, int, int]) -> dict[str, Any]:
        image, seed, retries = output
        self.write_files(item, loaded, image)
        box, crop = loaded.box, loaded.crop
        return {
            "id": item.id,
            "object": item.object,
            "image": f"{item.id}.png",
            **loaded.line,
            "frame": list(loaded.frame.shape[:2]),
            "box": {"top": box.top, "left": box.left, "side": box.side},
            "crop": {"top": crop.top, "left": crop.left, "height": crop.height, "width": crop.width},
            "prompt": item.prompt,
            "negative_prompt": self.negative_prompt,
            "seed": seed,
            "retries": retries,
            **self.record,
        }

    @abc.abstractmethod
    def write_files(self, item: ObjectItem, loaded: Loaded, image: np.ndarray) -> None:
        """Write an item's files, with the inpainted crop pasted into its frame."""


class ObjectStage(InpaintingStage):
    """Inpaints objects into street frames: `{i}.png`, `{i}_gt.png` (the frame's labelIds) and `{i}_pos.json`.

    An item's seed chooses its frame and its box. The box of the inpainted crop is pasted with hard edges, as published;
    all other pixels are the frame's own.

    Args:
        frames: labelled frames with Cityscapes' labelIds, chosen with replacement.
        placement: where boxes are, and how large.
        size: side of the square that the model inpaints, in pixels.
        options: as for `InpaintingStage`.
    """

    title = "objects"

    def __init__(
        self,
        folder: Path,
        record: Mapping[str, Any],
        model: StableDiffusion,
        config: InpaintingConfig,
        frames: Sequence[Item],
        placement: PlacementConfig,
        size: int,
        **options: Any,
    ) -> None:
        super().__init__(folder, record, model, config, script="sd_inpaint.py", **options)
        model.check_size(size, size)
        self.frames, self.placement, self.size = frames, placement, size

    def files(self, item: ObjectItem) -> dict[str, str]:
        return {"image": f"{item.id}.png", "gt": f"{item.id}_gt.png", "position": f"{item.id}_pos.json"}

    def is_done(self, item: ObjectItem) -> bool:
        # Lines of earlier versions have no marks.
        marks = source_marks(self._choose(item)[0])
        return super().is_done(item) and self.manifest.records[item.id].get("source_marks", marks) == marks

    def _choose(self, item: ObjectItem) -> tuple[Item, np.random.Generator]:
        """Return the item's frame, and the random numbers that place its box."""
        rng = np.random.default_rng(item_seed(item.seed, "place"))
        return self.frames[int(rng.integers(len(self.frames)))], rng

    def load(self, item: ObjectItem) -> Loaded:
        source, rng = self._choose(item)
        frame, label_ids = read_image(source.image), read_mask(source.mask, CITYSCAPES.table)
        check_pair(frame, label_ids, source.image, source.mask)
        placed = place(label_ids, self.placement, rng, source.image)
        crop = placed.crop
        files = self.files(item)
        return Loaded(
            frame,
            placed.box,
            crop,
            cut(frame, crop, self.size, self.size),
            box_mask(placed.box, crop, self.size, self.size, blurred=True),
            {
                "gt": files["gt"],
                "position": files["position"],
                "source": source.id,
                "source_marks": source_marks(source),
                "placement": placed.rule,
            },
            read_bytes(source.mask),
        )

    def write_files(self, item: ObjectItem, loaded: Loaded, image: np.ndarray) -> None:
        assert loaded.label_file is not None
        files, box, number = self.files(item), loaded.box, item.id.rpartition("/")[2]
        position = {f"{number}.png": {"pos_mask": [box.top, box.left], "size_mask": box.side}}
        write_json(self.folder / files["position"], position)
        write_bytes(self.folder / files["gt"], loaded.label_file)
        write_png(self.folder / files["image"], paste_box(loaded.frame, image, loaded.crop, box), noisy=True)


class RefinementStage(InpaintingStage):
    """Inpaints the box of each image again, starting from its content: `{object}/{i}.png`.

    A square around the box is inpainted and pasted with a feathered seam; the pixels outside it do not change. With
    `whole_frame` the model's whole output is the image, as published: the background then passes through the VAE too.

    Args:
        size: side of the square that the model inpaints, in pixels; whole frames keep their own size.
        context: side of the crop, as a multiple of the box's side.
        feather: width of the seam, as a fraction of the box's side.
        whole_frame: inpaint whole frames.
        options: as for `InpaintingStage`.
    """

    title = "refinement"

    def __init__(
        self,
        folder: Path,
        record: Mapping[str, Any],
        model: StableDiffusion,
        config: InpaintingConfig,
        size: int,
        *,
        context: float = 1.5,
        feather: float = 0.125,
        whole_frame: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(folder, record, model, config, script="refine_gen_images.py", **options)
        if not context >= 1:
            raise GenValError(f"--context: expected 1 or more, the crop's side over the box's side; found {context}.")
        if not feather >= 0:
            raise GenValError(f"--feather: expected 0 or more, a fraction of the box's side; found {feather}.")
        if not whole_frame:
            model.check_size(size, size)
        self.size, self.context, self.feather, self.whole_frame = size, context, feather, whole_frame

    def is_done(self, item: ObjectItem) -> bool:
        assert item.source is not None
        return super().is_done(item) and self.manifest.records[item.id]["source"] == file_mark(item.source.image)

    def load(self, item: ObjectItem) -> Loaded:
        assert item.source is not None
        mark = file_mark(item.source.image)
        frame = read_image(item.source.image)
        height, width = frame.shape[:2]
        box = read_box(item.source, height, width)
        crop, size = Box(0, 0, height, width), (height, width)
        if not self.whole_frame:
            crop, size = crop_around(box, self.context, height, width), (self.size, self.size)
        try:
            self.model.check_size(*size)
        except GenValError as error:
            raise GenValError(f"{item.source.image}: {error} Remove --whole_frame.") from error
        return Loaded(frame, box, crop, cut(frame, crop, *size), box_mask(box, crop, *size), {"source": mark})

    def write_files(self, item: ObjectItem, loaded: Loaded, image: np.ndarray) -> None:
        if not self.whole_frame:
            feather = round(self.feather * loaded.box.side)
            image = paste_feathered(loaded.frame, image, loaded.crop, loaded.box, feather)
        write_png(self.folder / f"{item.id}.png", image, noisy=True)


@dataclasses.dataclass(frozen=True)
class InpaintedSet:
    """What a run of a stage did.

    Attributes:
        folder: of the images.
        images: number of images.
        written: images that this run inpainted.
        retried: images that were inpainted again with another seed.
        skipped: bad files that `skip_bad` skipped.
    """

    folder: Path
    images: int
    written: int
    retried: int
    skipped: tuple[BadFile, ...] = ()


@dataclasses.dataclass(frozen=True)
class ObjectPlan:
    """What a run will inpaint: the items, the frames to choose from, and the bad files that were skipped."""

    items: list[ObjectItem]
    frames: list[Item]
    skipped: tuple[BadFile, ...] = ()


def plan_object_stage(settings: ObjectSettings) -> ObjectPlan:
    """Find the frames and plan the items.

    Raises:
        GenValError: a data set, the list of objects or the model is missing, or the template does not contain the
            object.
    """
    check_object_template(settings.prompt_template)
    bad: list[BadFile] | None = [] if settings.skip_bad else None
    data_dir = find_root("Cityscapes", settings.data_dir, flag="--data_dir")
    split = "train" if settings.from_train else "val"
    frames = find_items("Cityscapes", split=split, root=data_dir, skipped=bad)
    frames = frames if bad is None else readable(frames, bad)
    check_ids(frames)
    objects = settings.objects or read_objects(resolve(settings.objects_file))
    items = plan_objects(objects, settings.num_images, settings.prompt_template, settings.seed)
    find_base(settings.inpainting_model_name)
    return ObjectPlan(items[: settings.run.limit], frames, tuple(bad or ()))


def inpaint_objects(
    settings: ObjectSettings,
    plan: ObjectPlan | None = None,
    launch: Callable[[DeviceSettings], Fabric] = launch_fabric,
) -> InpaintedSet | None:
    """Inpaint objects into frames; resume where an earlier run stopped.

    Args:
        settings: of the stage.
        plan: of `plan_object_stage`, if it was already made.
        launch: starts the processes.

    Returns:
        A summary on the first process; None on the others.

    Raises:
        GenValError: an input is missing or bad, or the folder holds images of other settings.
    """
    plan = plan or plan_object_stage(settings)
    placement = PlacementConfig(settings.placement, settings.smallest_box, settings.max_box, settings.context)
    record = {
        "frames_hash": frames_hash(plan.frames, {}),
        "placement_rule": settings.placement,
        "min_box": settings.smallest_box,
        "max_box": settings.max_box,
        "context": settings.context,
        "size": settings.side,
    }

    def stage(folder: Path, whole: Mapping[str, Any], model: StableDiffusion, options: dict[str, Any]) -> ObjectStage:
        return ObjectStage(folder, whole, model, settings.sampling, plan.frames, placement, settings.side, **options)

    done = _run(settings, plan.items, record, (settings.side, settings.side), stage, launch)
    return done and dataclasses.replace(done, skipped=plan.skipped)


def plan_refinement_stage(settings: RefinementSettings) -> list[ObjectItem]:
    """Find the images to refine.

    Raises:
        GenValError: an image, its box or the model is missing, or the template does not contain the object.
    """
    check_object_template(settings.prompt_template)
    folder = resolve(settings.images_dir)
    images = find_object_images(folder, folder, settings.objects, maker="ood_objects/sd_inpaint.py")
    find_base(settings.inpainting_model_name)
    return plan_refinements(images, settings.prompt_template, settings.seed)[: settings.run.limit]


def refine_objects(
    settings: RefinementSettings,
    items: Sequence[ObjectItem] | None = None,
    launch: Callable[[DeviceSettings], Fabric] = launch_fabric,
) -> InpaintedSet | None:
    """Refine inpainted objects; resume where an earlier run stopped.

    Args:
        settings: of the stage.
        items: of `plan_refinement_stage`, if they were already planned.
        launch: starts the processes.

    Returns:
        A summary on the first process; None on the others.

    Raises:
        GenValError: an input is missing or bad, or the folder holds images of other settings.
    """
    items = plan_refinement_stage(settings) if items is None else items
    record = {
        "whole_frame": settings.whole_frame,
        "context": settings.context,
        "feather": settings.feather,
        "size": settings.side,
    }
    size = (settings.side, settings.side)
    if settings.whole_frame and items[0].source is not None:
        height, width = read_image(items[0].source.image).shape[:2]
        size = (height, width)

    def stage(
        folder: Path, whole: Mapping[str, Any], model: StableDiffusion, options: dict[str, Any]
    ) -> RefinementStage:
        return RefinementStage(
            folder,
            whole,
            model,
            settings.sampling,
            settings.side,
            context=settings.context,
            feather=settings.feather,
            whole_frame=settings.whole_frame,
            **options,
        )

    return _run(settings, items, record, size, stage, launch)


def _run(
    settings: InpaintingStageSettings,
    items: Sequence[ObjectItem],
    own_record: Mapping[str, Any],
    size: tuple[int, int],
    make_stage: Callable[[Path, Mapping[str, Any], StableDiffusion, dict[str, Any]], InpaintingStage],
    launch: Callable[[DeviceSettings], Fabric],
) -> InpaintedSet | None:
    """Load the model, make the stage, and run it.

    Args:
        own_record: the settings that define the images of this stage, in addition to those of all stages.
        size: height and width that the model inpaints.
        make_stage: makes the stage from its folder, the whole record, the model and the options of `InpaintingStage`.
        launch: starts the processes.
    """
    path = find_base(settings.inpainting_model_name)
    # Hashing takes seconds, in which this process imports libraries and loads the model.
    with computed_ahead(functools.partial(checkpoint_hash, path)) as hash_of_all:
        fabric = launch(settings.device)
        precision = choose_precision(settings.device.precision, fabric.device)
        model = load_inpainting(path, fabric.device, locked_dtype(precision))
        model_hash = hash_of_all(fabric)
    batch_size = settings.batch_size or default_batch_size(fabric.device, *size)
    config = settings.sampling
    # Every line of the manifest holds these, and resuming with different ones is refused. The keys are those of the
    # first release.
    record = {
        "run_seed": settings.seed,
        "model_hash": model_hash,
        **own_record,
        "precision": precision,
        "sampler": config.sampler,
        "steps": config.steps,
        "guidance_scale": config.guidance_scale,
        "strength": config.denoising_strength,
        "negative_prompt": settings.negative_prompt,
    }
    folder = resolve(settings.output_dir)
    compiled = choose_compiling(settings.compile, fabric.device, recorded_choice(folder, settings.run.overwrite))
    options = {
        "batch_size": batch_size,
        "negative_prompt": settings.negative_prompt,
        "compiled": compiled,
        "settings": {**flatten(settings), **record, "compiled": compiled},
    }
    stage = make_stage(folder, record, model, options)
    report = run_stage(
        stage,
        items,
        fabric=fabric,
        batch_size=batch_size,
        num_workers=settings.num_workers,
        overwrite=settings.run.overwrite,
    )
    if not fabric.is_global_zero:
        return None
    return InpaintedSet(stage.folder, len(items), report.written, stage.retried(items))
