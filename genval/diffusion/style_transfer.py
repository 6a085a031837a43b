"""Style transfer with a ControlNet: images of a domain on labelled frames, each with its mask, resumable."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from genval.artifacts.fingerprint import current_mark
from genval.artifacts.manifest import Manifest, manifest_parts
from genval.datasets.captions import read_captions
from genval.datasets.items import BadFile, Item
from genval.datasets.labels import find_label_space
from genval.datasets.reading import read_mask
from genval.diffusion.models.controlnet import find_controlnet, load_controlnet
from genval.diffusion.models.hints import LabelSet, check_labels, read_encoding
from genval.diffusion.models.lora import find_lora, fuse_lora
from genval.diffusion.models.pipelines import (
    StableDiffusion,
    find_base,
    load_base,
    locked_dtype,
)
from genval.diffusion.pairs import FramedPair, Pair, load_framed
from genval.diffusion.prompts import Domain, check_template, fit_prompt, make_prompt
from genval.diffusion.sampling.compiling import choose_compiling, recorded_choice
from genval.diffusion.sampling.denoiser import Denoiser
from genval.diffusion.sampling.generation import Generated, GenerationBatch, check_size, make_denoiser, start_generation
from genval.diffusion.sampling.stage import GenerationStage, default_batch_size
from genval.diffusion.settings import SamplingConfig, StyleTransferSettings
from genval.runtime.devices import choose_precision
from genval.runtime.errors import GenValError
from genval.runtime.files import write_png
from genval.runtime.flags import flatten
from genval.runtime.seeds import item_seed
from path_dicts import DEFAULT_GENERATOR, DOMAINS

if TYPE_CHECKING:
    import torch
    from lightning_fabric import Fabric

_TOO_LARGE = "Give --precision bf16-true, a smaller size, or --large tiled with a smaller --tile."
CLEAR_TEXT = DOMAINS["clear"]
# What a run writes in its domain's folder.
_FOLDERS = ("leftImg8bit", "gtFine", "original")


@dataclasses.dataclass(frozen=True)
class Transfer:
    """One image to generate: item `{domain}_{n}_{name}` from a labelled frame, with its prompt, seed and crop."""

    id: str
    source: Item
    prompt: str
    seed: int
    place: float  # 0..1, where the crop lies along the frame's longer side
    clear_prompt: str | None = None  # at a domain strength below 1, the prompt that the domain's is weakened with


def caption_frames(
    items: Sequence[Item], source: Path | str, skipped: list[BadFile] | None = None
) -> tuple[list[Item], dict[str, str]]:
    """Return the frames to choose from, and their captions by image file name.

    Args:
        source: a file of captions (`genval.datasets.captions.read_captions`), or one caption for every frame.
        skipped: frames without a caption are added to this list; without it they stay among the frames, and choosing
            one is an error.
    """
    if isinstance(source, str):
        return list(items), {item.image.name: source for item in items}
    captions = read_captions(source)
    if skipped is None:
        return list(items), captions
    skipped += [
        BadFile(item.id, item.cond, item.scene, str(item.image), f"no caption in {source}")
        for item in items
        if item.image.name not in captions
    ]
    return [item for item in items if item.image.name in captions], captions


def frames_hash(items: Sequence[Item], captions: Mapping[str, str]) -> str:
    """Return 12 hexadecimal digits over the frames to choose from: their names in order, and their captions."""
    frames = [[item.scene, item.id, captions.get(item.image.name)] for item in items]
    return hashlib.sha256(json.dumps(frames).encode()).hexdigest()[:12]


def source_marks(frame: Item) -> list[str | None]:
    """Return the marks of a frame's image and mask."""
    return [current_mark(file) for file in frame.files]


def choose_transfers(
    items: Sequence[Item],
    captions: Mapping[str, str],
    domain: Domain,
    count: int,
    seed: int,
    template: str,
    replacement: bool = True,
) -> list[Transfer]:
    """Choose `count` frames at random.

    For one seed, the same frames are chosen for every domain, so domains can be compared image by image. A larger count
    adds images to those of a smaller one.

    Args:
        items: the labelled frames.
        captions: by image file name.
        template: of the prompt, with `{domain}` and usually `{caption}`.
        replacement: whether a frame may be chosen several times, as published; otherwise at most once.

    Raises:
        GenValError: there are too few frames, a chosen frame has no caption, or the template has another placeholder or
            does not contain the domain.
    """
    check_template(template)
    if not items:
        raise GenValError("--skip_bad skipped every frame: no frame is left to choose from. Check --data_dir.")
    if not replacement and count > len(items):
        raise GenValError(
            f"--without_replacement: {count} images need as many frames, found {len(items)}. Give --num_samples "
            f"{len(items)} or less, or --from_train, or choose with replacement."
        )
    rng = np.random.default_rng(item_seed(seed, "masks"))
    order = np.random.default_rng(item_seed(seed, "order")).permutation(len(items))
    transfers = []
    for n in range(count):
        chosen, place = int(rng.integers(len(items))), float(rng.random())
        item = items[chosen if replacement else int(order[n])]
        if item.image.name not in captions:
            raise GenValError(
                f"No caption for {item.image} in the file of --captions. Add it there, skip frames without a caption "
                "(--skip_bad), or give --caption TEXT or --no_captions."
            )
        item_id = f"{domain.name}_{n}_{item.id}"
        own_seed = item_seed(seed, item_id)
        prompt = make_prompt(template, captions[item.image.name], domain.text(own_seed))
        transfers.append(Transfer(item_id, item, prompt, own_seed, place))
    return transfers


def fit_prompts(
    transfers: Sequence[Transfer],
    captions: Mapping[str, str],
    domain: Domain,
    template: str,
    fits: Callable[[str], bool],
) -> list[Transfer]:
    """Return the transfers with captions truncated where `genval.diffusion.prompts.fit_prompt` has to."""
    return [
        transfer
        if fits(transfer.prompt)
        else dataclasses.replace(
            transfer,
            prompt=fit_prompt(template, captions[transfer.source.image.name], domain.text(transfer.seed), fits),
        )
        for transfer in transfers
    ]


def add_clear_prompts(
    transfers: Sequence[Transfer], captions: Mapping[str, str], template: str, fits: Callable[[str], bool]
) -> list[Transfer]:
    """Return the transfers with the prompts of clear weather, truncated as `fit_prompts` does."""
    return [
        dataclasses.replace(
            transfer, clear_prompt=fit_prompt(template, captions[transfer.source.image.name], CLEAR_TEXT, fits)
        )
        for transfer in transfers
    ]


def image_size(settings: StyleTransferSettings, item: Item) -> tuple[int, int]:
    """Return the height and width of the images in pixels; where they show whole frames, these follow from a frame."""
    if settings.frame == "crop":
        return settings.height, settings.width
    frame_height, frame_width = read_mask(item.mask, find_label_space(item.label_space).table).shape
    height = frame_height if settings.frame == "full" else settings.height
    return height, round(height * frame_width / frame_height)


class FrameStage(GenerationStage[Transfer, FramedPair, "tuple[np.ndarray, int, int]"]):
    """Writes the images of a domain, each with its mask and the real crop; a subclass computes them.

    `compute` returns an image (RGB uint8, (height, width, 3)), its seed and its number of retries per item.

    Args:
        folder: of the generated set.
        record: the settings that define the images, as JSON values.
        labels: the label set of the masks.
        height, width: of the images, in pixels.
        batch_size: images per batch.
        negative_prompt: of every image.
        settings: written to `settings.json`.
    """

    title = "Style transfer"

    def __init__(
        self,
        folder: Path,
        record: Mapping[str, Any],
        labels: LabelSet,
        *,
        height: int,
        width: int,
        batch_size: int,
        negative_prompt: str = "",
        settings: Any = None,
    ) -> None:
        super().__init__(
            folder,
            record,
            batch_size=batch_size,
            settings=settings,
            script="style_transfer.py",
            advice=_TOO_LARGE,
        )
        self.labels = labels
        self.height, self.width, self.batch_size = height, width, batch_size
        self.negative_prompt = negative_prompt

    def files(self, item: Transfer) -> dict[str, str]:
        """Return an item's three files: the generated `image`, its `mask` and the `original` crop."""
        # .../leftImg8bit/{split}/{city}/{name}_leftImg8bit.png
        split, city = item.source.image.parts[-3:-1]
        return {
            "image": f"leftImg8bit/{split}/{city}/{item.id}_leftImg8bit.png",
            "mask": f"gtFine/{split}/{city}/{item.id}_gtFine_labelIds.png",
            "original": f"original/{split}/{city}/{item.id}_leftImg8bit.png",
        }

    def clear(self) -> None:
        for name in _FOLDERS:
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for file in (*manifest_parts(self.folder), self.folder / "settings.json"):
            file.unlink(missing_ok=True)

    def holds_outputs(self) -> bool:
        return any((self.folder / name).exists() for name in _FOLDERS)

    def compared(self, items: Sequence[Transfer]) -> Iterable[tuple[str, Mapping[str, Any]]]:
        # Another seed gives other ids, so all images of the folder are compared, not only those of this run.
        return ((item_id, self.record) for item_id in Manifest(self.folder).records)

    def is_done(self, item: Transfer) -> bool:
        # Lines of earlier versions have no marks.
        marks = source_marks(item.source)
        return super().is_done(item) and self.manifest.records[item.id].get("source_marks", marks) == marks

    def load(self, item: Transfer) -> FramedPair:
        pair = Pair(item.source.image, item.source.mask, item.prompt)
        return load_framed(pair, self.height, self.width, item.place, self.labels)

    def write(self, item: Transfer, loaded: FramedPair, output: tuple[np.ndarray, int, int]) -> dict[str, Any]:
        image, seed, retries = output
        files = self.files(item)
        for kind, pixels in (("image", image), ("mask", loaded.mask), ("original", loaded.image)):
            write_png(self.folder / files[kind], pixels)
        return {
            "id": item.id,
            **files,
            "source": item.source.id,
            "source_marks": source_marks(item.source),
            "box": [loaded.box.top, loaded.box.left, loaded.box.height, loaded.box.width],
            "prompt": item.prompt,
            "negative_prompt": self.negative_prompt,
            "seed": seed,
            "retries": retries,
            **self.record,
        }


class TransferStage(FrameStage):
    """Generates the images of a domain with a ControlNet.

    Args:
        folder: of the generated set.
        record: the settings that define the images, as JSON values.
        base, controlnet: on one device and of one dtype.
        sampling: how to sample.
        height, width: of the images, in pixels.
        batch_size: images per batch.
        negative_prompt: of every image.
        compiled: compile the denoiser for the shape of the batches.
        settings: written to `settings.json`.
        denoising_strength: below 1, images start from the real crops under noise.
        domain_strength: below 1, images are between the items' clear prompts and their prompts.
    """

    asynchronous = True

    def __init__(
        self,
        folder: Path,
        record: Mapping[str, Any],
        base: StableDiffusion,
        controlnet: Any,
        sampling: SamplingConfig,
        *,
        height: int,
        width: int,
        batch_size: int,
        negative_prompt: str = "",
        compiled: bool = False,
        settings: Any = None,
        denoising_strength: float = 1.0,
        domain_strength: float = 1.0,
    ) -> None:
        super().__init__(
            folder,
            record,
            read_encoding(controlnet, "The ControlNet").labels,
            height=height,
            width=width,
            batch_size=batch_size,
            negative_prompt=negative_prompt,
            settings=settings,
        )
        check_size(base, sampling, height, width)
        self.base, self.controlnet, self.sampling = base, controlnet, sampling
        self.compiled = compiled
        self.denoising_strength, self.domain_strength = denoising_strength, domain_strength

    def compute(
        self, items: Sequence[Transfer], loaded: Sequence[FramedPair]
    ) -> Callable[[], list[tuple[np.ndarray, int, int]]]:
        clear_prompts = [item.clear_prompt for item in items if item.clear_prompt is not None]
        batch = GenerationBatch(
            np.stack([one.mask for one in loaded]),
            [item.prompt for item in items],
            [self.negative_prompt] * len(items),
            [item.seed for item in items],
            np.stack([one.image for one in loaded]) if self.denoising_strength < 1 else None,
            self.denoising_strength,
            clear_prompts or None,
            self.domain_strength,
        )

        def start(denoiser: Denoiser, part: slice, rows: int) -> Callable[[], Generated]:
            return start_generation(denoiser, batch.rows(range(*part.indices(len(batch)))), self.sampling, rows)

        def denoiser() -> Denoiser:
            return make_denoiser(self.base, self.controlnet, self.sampling, self.compiled, graphed=True)

        return self.start_batch(len(items), denoiser, start)


@dataclasses.dataclass(frozen=True)
class TransferPlan:
    """What a run of the stage generates, known before a model is loaded.

    Attributes:
        settings: of the run, with this domain alone.
        domain: the domain.
        frames: the labelled frames to choose from, and `captions` by image file name.
        transfers: the images to generate.
        folder: of the generated set.
        weights: files of the models, by the names of their hashes; None for a model that is not used.
        skipped: bad files that `skip_bad` skipped.
        strength: of the domain, 0 to 1.
    """

    settings: StyleTransferSettings
    domain: Domain
    frames: list[Item]
    captions: Mapping[str, str]
    transfers: list[Transfer]
    folder: Path
    weights: Mapping[str, WeightFiles | None]
    skipped: tuple[BadFile, ...]
    strength: float = 1.0


@dataclasses.dataclass(frozen=True)
class TransferModels:
    """The models of style transfer: `base` and `controlnet` on one device and of one dtype, and their `precision`."""

    base: StableDiffusion
    controlnet: Any
    precision: str


class WeightFiles(NamedTuple):
    """A file or folder of weights; of a folder, the `parts` whose files count, or all (see `checkpoint_hash`)."""

    path: Path
    parts: tuple[str, ...] = ()


def find_weights(settings: StyleTransferSettings) -> dict[str, WeightFiles | None]:
    """Return the files of base, ControlNet and LoRA by the names of their hashes.

    Raises:
        GenValError: a model is missing.
    """
    needs_lora = settings.lora or settings.sampling.sampler == "lcm"
    return {
        "base_hash": WeightFiles(find_base(settings.base_model)),
        "controlnet_hash": WeightFiles(find_controlnet(settings.controlnet)),
        "lora_hash": WeightFiles(find_lora(settings.lora)) if needs_lora else None,
    }


def load_models(settings: StyleTransferSettings, fabric: Fabric) -> TransferModels:
    """Load base, ControlNet and LoRA onto the process's device.

    Raises:
        GenValError: a model cannot be loaded.
    """
    precision = choose_precision(settings.device.precision, fabric.device)
    dtype = locked_dtype(precision)
    base = load_base(settings.base_model, fabric.device, dtype)
    controlnet = load_controlnet(settings.controlnet, base, fabric.device, dtype).eval()
    if settings.lora:
        fuse_lora(base.unet, settings.lora)
    return TransferModels(base, controlnet, precision)


def prepare_transfers(
    plan: TransferPlan, models: TransferModels, hashes: Mapping[str, str | None], device: torch.device
) -> tuple[FrameStage, list[Transfer]]:
    """Return the stage of a domain and its images, whose captions are truncated to the text encoder's limit.

    Args:
        plan: of the domain.
        models: of `load_models`.
        hashes: of their files, by the names in `plan.weights`.
        device: of the models.

    Raises:
        GenValError: a model does not suit the masks or the size.
    """
    settings, base, controlnet = plan.settings, models.base, models.controlnet
    check_labels(read_encoding(controlnet, settings.controlnet), plan.frames[0].label_space, settings.controlnet)
    transfers = fit_prompts(plan.transfers, plan.captions, plan.domain, settings.prompt_template, base.reads_whole)
    if plan.strength < 1:
        transfers = add_clear_prompts(transfers, plan.captions, settings.prompt_template, base.reads_whole)
    record = transfer_record(plan, hashes, models.precision)
    height, width = record["height"], record["width"]
    compiled = choose_compiling(settings.compile, device, recorded_choice(plan.folder, settings.run.overwrite))
    stage = TransferStage(
        plan.folder,
        record,
        base,
        controlnet,
        settings.sampling,
        height=height,
        width=width,
        batch_size=settings.batch_size or default_batch_size(device, height, width),
        negative_prompt=settings.negative_prompt,
        compiled=compiled,
        settings={**flatten(settings), **record, "compiled": compiled},
        denoising_strength=settings.strength,
        domain_strength=plan.strength,
    )
    return stage, transfers


def frame_record(plan: TransferPlan, hashes: Mapping[str, str | None], precision: str) -> dict[str, Any]:
    """Return the settings that define the images of every generator, among them the images' `height` and `width`."""
    settings = plan.settings
    height, width = image_size(settings, plan.frames[0])
    return {
        **hashes,
        "frames_hash": frames_hash(plan.frames, plan.captions),
        "run_seed": settings.seed,
        "from_train": settings.from_train,
        "without_replacement": settings.without_replacement,
        "height": height,
        "width": width,
        "precision": precision,
    }


def transfer_record(plan: TransferPlan, hashes: Mapping[str, str | None], precision: str) -> dict[str, Any]:
    """Return the settings that define the images, which every line of the manifest holds.

    Resuming with different ones is refused. The keys are those of the first release; an image's own seed is its line's
    `seed`.
    """
    settings, sampling = plan.settings, plan.settings.sampling
    start = {"generator": settings.generator, "denoising_strength": settings.strength}
    weakened = {"domain_strength": plan.strength, "clear_text": CLEAR_TEXT}
    return {
        **frame_record(plan, hashes, precision),
        "domain_text": " | ".join(plan.domain.texts),
        "large": sampling.large,
        "tile": sampling.tile,
        "upscale_strength": sampling.upscale_denoising_strength,
        "sampler": sampling.sampler,
        "ddim_steps": sampling.steps,
        "guidance_scale": sampling.guidance_scale,
        "strength": sampling.control_scale,
        "prompt_template": settings.prompt_template,
        "negative_prompt": settings.negative_prompt,
        **(start if settings.generator != DEFAULT_GENERATOR else {}),
        **(weakened if plan.strength < 1 else {}),
    }
