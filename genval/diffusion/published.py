"""Published pipelines of diffusers as generators: instruction editors, and ControlNets of SD 3.5, FLUX and Qwen-Image.

They are used as published, for inference only. A model is loaded only as the class that its `model_index.json` or
`config.json` names, with all weights present; other classes are refused by name. A new pipeline is one entry in
`EDITORS` or `CONTROLNETS`.

Images are computed one at a time: an image then depends only on its own seed, prompt and inputs, and the pipelines that
take several references per prompt need no special case.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from genval.datasets.palettes import class_colours
from genval.diffusion.models.controlnet import find_controlnet
from genval.diffusion.models.hints import CITYSCAPES_IDS, check_labels
from genval.diffusion.models.messages import first_words, silence_loading
from genval.diffusion.models.pipelines import find_model, load_strictly, locked_dtype
from genval.diffusion.pairs import FramedPair
from genval.diffusion.prompts import instructions
from genval.diffusion.sampling.generation import check_pixels, sample_with_retries
from genval.diffusion.sampling.micro_batches import MicroBatches
from genval.diffusion.settings import PipelineConfig, SamplingConfig, StyleTransferSettings
from genval.diffusion.style_transfer import (
    FrameStage,
    PreparedTransfers,
    Transfer,
    TransferModels,
    TransferPlan,
    WeightFiles,
    find_weights,
    fit_prompts,
    frames_hash,
    image_size,
    load_models,
    prepare_transfers,
)
from genval.runtime.devices import choose_precision
from genval.runtime.errors import GenValError
from genval.runtime.files import read_json
from genval.runtime.flags import flatten

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# Files of a part of a pipeline that are fetched from the hub.
_FETCHED = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
_TOO_LARGE = "Give --offload model (or sequential), --vae_tiling, or a smaller size."
# Entries in which the configs of a ControlNet and of its base must agree, where both have them.
_SHARED = (
    "in_channels",
    "patch_size",
    "num_attention_heads",
    "attention_head_dim",
    "joint_attention_dim",
    "pooled_projection_dim",
)


@dataclasses.dataclass(frozen=True)
class Request:
    """What one image is made from.

    Attributes:
        image: PIL image, RGB, of the size of the result: the photo of an editor, or the hint of a ControlNet.
        negative_prompt: the prompt that guidance leads away from.
        guidance: guidance scale.
        image_guidance: guidance scale of the photo, for InstructPix2Pix.
        control_scale: factor on the residuals of a ControlNet.
    """

    image: Any
    negative_prompt: str
    guidance: float
    image_guidance: float = 1.5
    control_scale: float = 1.0

    @property
    def size(self) -> dict[str, int]:
        """Height and width in pixels, as the pipelines take them."""
        return {"height": self.image.height, "width": self.image.width}


@dataclasses.dataclass(frozen=True)
class Published:
    """A pipeline of diffusers, and how it is loaded and called.

    Attributes:
        name: its class, in diffusers.
        index: the class that `model_index.json` names; for a ControlNet, that of its base.
        networks: the classes of its networks, in diffusers or transformers, by their names in `model_index.json`.
        tokenizers: the classes of its tokenizers and processors, in transformers.
        reader: the tokenizer that must read the whole prompt, and the number of its tokens. An editor's T5 reads all
            that its CLIP does not; a ControlNet's captions are truncated to CLIP, so that both read the domain.
        steps, guidance: those of its model card.
        arguments: the arguments of a call besides prompt, steps and seed.
        controlnet: the class of its ControlNet, in diffusers; "" for an editor.
        base: hub name of the base that is used if none is given; "" for an editor.
        distilled: steps and guidance scale where the index says `is_distilled`.
        takes_negative: whether it takes a negative prompt.
        options: more arguments of its constructor.
    """

    name: str
    index: str
    networks: Mapping[str, str]
    tokenizers: Mapping[str, str]
    reader: tuple[str, int]
    steps: int
    guidance: float
    arguments: Callable[[Request], dict[str, Any]]
    controlnet: str = ""
    base: str = ""
    distilled: tuple[int, float] | None = None
    takes_negative: bool = True
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def _pix2pix(request: Request) -> dict[str, Any]:
    return {
        "image": request.image,
        "guidance_scale": request.guidance,
        "image_guidance_scale": request.image_guidance,
        "negative_prompt": request.negative_prompt,
    }


def _kontext(request: Request) -> dict[str, Any]:
    # Without these two, the photo and the result are resized to one of the sizes that the model was trained at.
    area = {"max_area": request.image.height * request.image.width, "_auto_resize": False}
    return {"image": request.image, **request.size, **area, "guidance_scale": request.guidance}


def _klein(request: Request) -> dict[str, Any]:
    return {"image": request.image, **request.size, "guidance_scale": request.guidance}


def _qwen_guidance(request: Request) -> dict[str, Any]:
    # This pipeline guides only where it is given a negative prompt; a space stands for an empty one.
    negative = {"negative_prompt": request.negative_prompt or " "} if request.guidance > 1 else {}
    return {**request.size, "true_cfg_scale": request.guidance, **negative}


def _qwen_edit(request: Request) -> dict[str, Any]:
    return {"image": [request.image], **_qwen_guidance(request)}


def _control(request: Request) -> dict[str, Any]:
    return {"control_image": request.image, "controlnet_conditioning_scale": request.control_scale}


def _sd3_control(request: Request) -> dict[str, Any]:
    guidance = {"guidance_scale": request.guidance, "negative_prompt": request.negative_prompt}
    return {**_control(request), **request.size, **guidance}


def _flux_control(request: Request) -> dict[str, Any]:
    return {**_control(request), **request.size, "guidance_scale": request.guidance}


def _qwen_control(request: Request) -> dict[str, Any]:
    return {**_control(request), **_qwen_guidance(request)}


_FLUX = {
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
    "text_encoder_2": "T5EncoderModel",
    "transformer": "FluxTransformer2DModel",
}
_FLUX_TOKENIZERS = {"tokenizer": "CLIPTokenizer", "tokenizer_2": "T5Tokenizer"}
_QWEN = {
    "vae": "AutoencoderKLQwenImage",
    "text_encoder": "Qwen2_5_VLForConditionalGeneration",
    "transformer": "QwenImageTransformer2DModel",
}

EDITORS: dict[str, Published] = {
    one.index: one
    for one in (
        Published(
            name="StableDiffusionInstructPix2PixPipeline",
            index="StableDiffusionInstructPix2PixPipeline",
            networks={"vae": "AutoencoderKL", "text_encoder": "CLIPTextModel", "unet": "UNet2DConditionModel"},
            tokenizers={"tokenizer": "CLIPTokenizer"},
            reader=("tokenizer", 77),
            steps=100,
            guidance=7.5,
            arguments=_pix2pix,
            options={"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
        ),
        Published(
            name="FluxKontextPipeline",
            index="FluxKontextPipeline",
            networks=_FLUX,
            tokenizers=_FLUX_TOKENIZERS,
            reader=("tokenizer_2", 512),
            steps=28,
            guidance=2.5,
            arguments=_kontext,
            takes_negative=False,
        ),
        Published(
            name="Flux2KleinPipeline",
            index="Flux2KleinPipeline",
            networks={
                "vae": "AutoencoderKLFlux2",
                "text_encoder": "Qwen3ForCausalLM",
                "transformer": "Flux2Transformer2DModel",
            },
            tokenizers={"tokenizer": "Qwen2Tokenizer"},
            reader=("tokenizer", 480),  # of 512, some of which the chat template takes
            steps=50,
            guidance=4.0,
            arguments=_klein,
            distilled=(4, 1.0),
            takes_negative=False,
        ),
        Published(
            name="QwenImageEditPlusPipeline",
            index="QwenImageEditPlusPipeline",
            networks=_QWEN,
            tokenizers={"tokenizer": "Qwen2Tokenizer", "processor": "Qwen2VLProcessor"},
            reader=("tokenizer", 512),
            steps=40,
            guidance=4.0,
            arguments=_qwen_edit,
        ),
    )
}
"""The instruction editors that are run, by the class in `model_index.json`."""

CONTROLNETS: dict[str, Published] = {
    one.controlnet: one
    for one in (
        Published(
            name="StableDiffusion3ControlNetPipeline",
            index="StableDiffusion3Pipeline",
            networks={
                "vae": "AutoencoderKL",
                "text_encoder": "CLIPTextModelWithProjection",
                "text_encoder_2": "CLIPTextModelWithProjection",
                "text_encoder_3": "T5EncoderModel",
                "transformer": "SD3Transformer2DModel",
            },
            tokenizers={"tokenizer": "CLIPTokenizer", "tokenizer_2": "CLIPTokenizer", "tokenizer_3": "T5Tokenizer"},
            reader=("tokenizer", 77),
            steps=28,
            guidance=3.5,
            arguments=_sd3_control,
            controlnet="SD3ControlNetModel",
            base="stabilityai/stable-diffusion-3.5-large",
        ),
        Published(
            name="FluxControlNetPipeline",
            index="FluxPipeline",
            networks=_FLUX,
            tokenizers=_FLUX_TOKENIZERS,
            reader=("tokenizer", 77),
            steps=28,
            guidance=3.5,
            arguments=_flux_control,
            controlnet="FluxControlNetModel",
            base="black-forest-labs/FLUX.1-dev",
            takes_negative=False,
        ),
        Published(
            name="QwenImageControlNetPipeline",
            index="QwenImagePipeline",
            networks=_QWEN,
            tokenizers={"tokenizer": "Qwen2Tokenizer"},
            reader=("tokenizer", 512),
            steps=30,
            guidance=4.0,
            arguments=_qwen_control,
            controlnet="QwenImageControlNetModel",
            base="Qwen/Qwen-Image",
        ),
    )
}
"""The ControlNets that are run besides those of Stable Diffusion 1 and XL, by the class in `config.json`."""


def find_published(name: str | Path, known: Mapping[str, Published], flag: str) -> tuple[Path, Published]:
    """Find a pipeline's folder, downloaded from Hugging Face if needed, and check that it is one of `known`.

    Args:
        name: a folder in diffusers' layout or a hub name.
        known: the accepted pipelines, by the class in `model_index.json`.
        flag: where the name comes from, for errors.

    Raises:
        GenValError: the folder or a file is missing, or the pipeline or one of its parts is of another class.
    """
    folder = find_model(name, ["model_index.json"])
    index = read_json(folder / "model_index.json", dict[str, Any])
    published = known.get(str(index.get("_class_name")))
    if published is None:
        raise GenValError(
            f"{flag} {name} is a {index.get('_class_name')}: expected {' or '.join(known)}. Give another model."
        )
    for part, expected in {**published.networks, **published.tokenizers}.items():
        found = index.get(part)
        class_name = str(found[1]) if isinstance(found, list) and len(found) == 2 else "missing"
        if class_name.removesuffix("Fast") != expected:
            raise GenValError(
                f"{flag} {name}: the {part} of a {published.index} is a {expected}, but its model_index.json says "
                f"{class_name}. Fetch the model again, or give another one."
            )
    configs = [f"{part}/config.json" for part in published.networks]
    parts = (*published.networks, *published.tokenizers, "scheduler")
    fetched = [f"{part}/{pattern}" for part in parts for pattern in _FETCHED]
    return find_model(name, ["model_index.json", *configs], fetched), published


def published_controlnet(settings: StyleTransferSettings) -> Published | None:
    """Return the pipeline of `--controlnet`; None for a ControlNet of Stable Diffusion 1 or XL.

    Raises:
        GenValError: there is no such ControlNet, or it is of a class that is not run.
    """
    path = find_controlnet(settings.controlnet)
    config = {} if path.is_file() else read_json(path / "config.json", dict[str, Any])
    class_name = str(config.get("_class_name", "ControlNetModel"))
    if class_name == "ControlNetModel":
        return None
    if class_name not in CONTROLNETS:
        raise GenValError(
            f"--controlnet {settings.controlnet} is a {class_name}: expected ControlNetModel or "
            f"{' or '.join(CONTROLNETS)}. Give another ControlNet."
        )
    if config.get("num_mode"):
        raise GenValError(
            f"--controlnet {settings.controlnet} is a union of {config['num_mode']} kinds of hints, none of which is "
            "known to be a segmentation. Give a ControlNet that was trained on segmentations alone."
        )
    return CONTROLNETS[class_name]


def load_pipeline(
    folder: Path, published: Published, dtype: torch.dtype, controlnet: str | Path | None = None
) -> tuple[Any, dict[str, Any]]:
    """Load a pipeline on the CPU, and return it with the entries of its `model_index.json`.

    Args:
        folder: of `find_published`.
        published: its entry in `EDITORS` or `CONTROLNETS`.
        dtype: of the weights.
        controlnet: folder of the ControlNet.

    Raises:
        GenValError: a part is damaged or incomplete, or the ControlNet does not fit the base.
    """
    import diffusers
    import transformers

    index = read_json(folder / "model_index.json", dict[str, Any])
    parts: dict[str, Any] = {}
    for part, class_name in published.networks.items():
        in_diffusers = hasattr(diffusers, class_name)
        model_class = getattr(diffusers if in_diffusers else transformers, class_name)
        weights = "diffusion_pytorch_model.safetensors" if in_diffusers else "model.safetensors"
        parts[part] = load_strictly(model_class, folder / part, weights, dtype=dtype)
    scheduler = getattr(diffusers, str(index.get("scheduler", [None, None])[1]), None)
    try:
        for part, class_name in published.tokenizers.items():
            parts[part] = getattr(transformers, class_name).from_pretrained(str(folder / part), trust_remote_code=False)
        if not (isinstance(scheduler, type) and issubclass(scheduler, diffusers.SchedulerMixin)):
            raise ValueError(f"its scheduler is {index.get('scheduler')}")
        parts["scheduler"] = scheduler.from_pretrained(str(folder / "scheduler"))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise GenValError(f"{folder} cannot be loaded ({first_words(error)}). Fetch it again.") from error
    if controlnet is not None:
        model_class = getattr(diffusers, published.controlnet)
        folder_of_controlnet = find_controlnet(controlnet)
        parts["controlnet"] = load_strictly(
            model_class, folder_of_controlnet, "diffusion_pytorch_model.safetensors", dtype=dtype
        )
        _check_fits(parts["controlnet"], parts["transformer"], folder_of_controlnet, folder)
    if "unet" in parts and parts["unet"].config.in_channels != 2 * parts["vae"].config.latent_channels:
        raise GenValError(
            f"{folder}: its UNet reads {parts['unet'].config.in_channels} channels, but one that edits photos reads "
            f"{2 * parts['vae'].config.latent_channels}. Give another model."
        )
    distilled = {"is_distilled": bool(index.get("is_distilled"))} if published.distilled else {}
    with silence_loading():
        pipeline = getattr(diffusers, published.name)(**parts, **published.options, **distilled)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, index


def _check_fits(controlnet: Any, transformer: Any, source: Path, base: Path) -> None:
    pairs = {key: (controlnet.config.get(key), transformer.config.get(key)) for key in _SHARED}
    differing = [f"{key} {ours} instead of {theirs}" for key, (ours, theirs) in pairs.items() if ours != theirs]
    # A ControlNet that reads no text, or has no pooled text, has no such entry.
    differing = [one for one in differing if " None" not in one]
    if differing:
        raise GenValError(
            f"The ControlNet {source} does not fit the base {base}: {'; '.join(differing)}. "
            "Give the base it was trained with."
        )


def place(pipeline: Any, device: torch.device, offload: str = "none", vae_tiling: bool = False) -> Any:
    """Move a pipeline to a device, or have its networks moved there when they compute; return it.

    Args:
        offload: "none", "model" or "sequential".
        vae_tiling: encode and decode images in tiles.

    Raises:
        GenValError: offloading without a GPU, or the networks do not fit into the device's memory.
    """
    if vae_tiling:
        pipeline.vae.enable_tiling()
    if offload == "none":
        try:
            return pipeline.to(device)
        except torch.OutOfMemoryError as error:
            raise GenValError(f"The networks do not fit into the device's memory. {_TOO_LARGE}") from error
    if device.type == "cpu":
        raise GenValError("--offload is for GPUs: on a CPU all networks are in host memory. Leave it out.")
    if offload == "model":
        pipeline.enable_model_cpu_offload(device=device)
    else:
        pipeline.enable_sequential_cpu_offload(device=device)
    return pipeline


def run_pipeline(
    pipeline: Any, published: Published, request: Request, prompt: Mapping[str, Any], steps: int, seed: int
) -> torch.Tensor:
    """Run a pipeline for one image.

    Args:
        prompt: `{"prompt": text}`, or the embeddings in its place; they replace `published.arguments`.
        steps: sampling steps.
        seed: of all noise.

    Returns:
        Pixels (1, 3, H, W), -1..1, of the size of `request.image`.

    Raises:
        GenValError: the pipeline refuses its arguments, such as a size.
    """
    device = pipeline._execution_device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        # Where a pipeline samples without the generator, as the encoding of SD 3's hint does, this seed decides.
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        arguments = {**published.arguments(request), **prompt, "num_inference_steps": steps}
        try:
            images = pipeline(**arguments, generator=generator, output_type="pt").images
        except ValueError as error:
            raise GenValError(f"{published.name} refuses the image or its settings: {first_words(error)}") from error
    pixels: torch.Tensor = images.float() * 2 - 1
    if pixels.shape[-2:] != (request.image.height, request.image.width):
        raise GenValError(
            f"{published.name} made an image of {pixels.shape[-2]}x{pixels.shape[-1]} pixels in place of "
            f"{request.image.height}x{request.image.width}. Give a --height and --width that it can make."
        )
    return pixels


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
        self.micro_batches = MicroBatches(1, _TOO_LARGE)
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

        def sample(chosen: list[int], seeds: list[int]) -> tuple[np.ndarray, np.ndarray]:
            prompt = {"prompt": item.prompt}
            return check_pixels(run_pipeline(self.pipeline, self.published, request, prompt, self.steps, seeds[0]))

        generated = sample_with_retries(sample, [item.prompt], [item.seed])
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
    count: int,
) -> PreparedTransfers:
    """Make the stage of a domain; arguments as for `genval.diffusion.style_transfer.prepare_transfers`.

    Raises:
        GenValError: a model does not suit the masks or the size.
    """
    if isinstance(models, TransferModels):
        return prepare_transfers(plan, models, hashes, device, count)
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
    if published.arguments is not _pix2pix:
        settings.check_unused(("image_guidance",), published.name)
    return _load(settings, fabric, folder, published)


def prepare_editor(
    plan: TransferPlan, models: PublishedModels, hashes: Mapping[str, str | None], device: torch.device, count: int
) -> PreparedTransfers:
    """Make the stage of a domain; arguments as for `genval.diffusion.style_transfer.prepare_transfers`.

    Raises:
        GenValError: the editor does not suit the instruction or the size.
    """
    settings = plan.settings
    own: dict[str, Any] = {
        "generator": settings.generator,
        "instruction": " | ".join(instructions(plan.domain, settings.prompt_file).texts),
    }
    if models.published.arguments is _pix2pix:
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
) -> PreparedTransfers:
    """Make the stage of a published pipeline; `own` are the entries of the record that only its kind has."""
    settings, published, config = plan.settings, models.published, plan.settings.pipeline
    transfers = _fitting(settings, plan, models.pipeline, published)
    height, width = image_size(settings, plan.frames[0])
    record = {
        **hashes,
        "pipeline": published.name,
        "frames_hash": frames_hash(plan.frames, plan.captions),
        "domain_text": " | ".join(plan.domain.texts),
        "run_seed": settings.seed,
        "from_train": settings.from_train,
        "without_replacement": settings.without_replacement,
        "height": height,
        "width": width,
        "precision": models.precision,
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
        height=height,
        width=width,
        settings={**flatten(settings), **record},
    )
    return PreparedTransfers(stage, transfers, batch_size=1)


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
