"""Settings of sampling and of the stages that generate images. Importing this module does not import torch."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from genval.runtime.errors import GenValError
from genval.runtime.flags import flag, flatten, group, make_settings
from genval.runtime.settings import (
    Compile,
    DeviceSettings,
    RunSettings,
    comma_list,
    num_workers_flag,
    positive_int,
    seed_flag,
    seed_number,
    skip_bad_flag,
)

INPAINTING_MODEL = "stable-diffusion-v1-5/stable-diffusion-inpainting"
INPAINTING_MODEL_XL = "diffusers/stable-diffusion-xl-1.0-inpainting-0.1"


SAMPLERS = ("ddim", "dpm++", "unipc", "lcm")
INPAINTING_SAMPLERS = ("ddim", "dpm++", "unipc")
LARGE = ("direct", "tiled", "upscaled")
IMG2IMG_STRENGTH = 0.8


def _strengths(text: str) -> tuple[float, ...]:
    """Parse `0,0.25,1`. A repeated strength counts once: it would be the same set."""
    try:
        # Adding 0 makes 0.0 of -0.0.
        return tuple(dict.fromkeys(float(part) + 0.0 for part in comma_list(text)))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected numbers separated by commas, found {text!r}") from error


def _widths(text: str) -> list[int]:
    """Parse `16,32,96,256`."""
    return [positive_int(part) for part in comma_list(text)]


def check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise GenValError(f"--{name}: expected one of {', '.join(known)}, found {value}.")


def _check_finite(name: str, value: float) -> None:
    if not math.isfinite(value):
        raise GenValError(f"--{name}: expected a finite number, found {value}.")


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise GenValError(f"--steps: expected a number above 0, found {steps}.")


def _check_fraction(name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise GenValError(f"--{name}: expected a number above 0, up to 1, found {value}.")


def steps_taken(steps: int, denoising_strength: float) -> int:
    """Return the steps that are taken from an image under noise, as diffusers counts them: 32 for 50 steps and 0.65.

    Raises:
        GenValError: the strength is not above 0 and up to 1, or leaves no step.
    """
    _check_fraction("denoising_strength", denoising_strength)
    taken = int(steps * denoising_strength)
    if taken < 1:
        raise GenValError(
            f"--denoising_strength {denoising_strength} of --steps {steps} leaves no step. Increase one of them."
        )
    return taken


@dataclass(frozen=True)
class SamplingConfig:
    """How images are sampled with a ControlNet; the defaults are the published ones."""

    steps: int = flag(25, "sampling steps, of any sampler", type=positive_int)
    guidance_scale: float = flag(8.0, "classifier-free guidance scale (1 disables it)")
    control_scale: float = flag(1.0, "factor on all residuals of the ControlNet")
    # eta of DDIM is 0; dpm++ is DPM-Solver++ 2M
    sampler: str = flag(
        "ddim", "dpm++ and unipc need 10 to 15 steps, lcm 4 to 8 with a LoRA that was trained for it", choices=SAMPLERS
    )
    large: str = flag(
        "direct",
        "how images larger than those of the training are made. direct: the whole image at once; tiled: in overlapping "
        "windows; upscaled: a small image is generated, enlarged, and denoised again in windows",
        choices=LARGE,
    )
    tile: int = flag(512, "side of a window, or shorter side of the small image, in pixels", type=positive_int)
    upscale_denoising_strength: float = flag(0.4, "fraction of the noise that is added to the enlarged image, 0 to 1")

    def __post_init__(self) -> None:
        check_choice("sampler", self.sampler, SAMPLERS)
        check_choice("large", self.large, LARGE)
        _check_finite("guidance_scale", self.guidance_scale)
        _check_finite("control_scale", self.control_scale)
        _check_steps(self.steps)
        _check_fraction("upscale_denoising_strength", self.upscale_denoising_strength)


@dataclass(frozen=True)
class InpaintingConfig:
    """How a masked part is inpainted; the defaults are those of the published `sd_inpaint.py`."""

    steps: int = flag(
        50, "sampling steps from pure noise; the fraction --denoising_strength of them is taken", type=positive_int
    )
    guidance_scale: float = flag(15.0, "classifier-free guidance scale (1 disables it)")
    denoising_strength: float = flag(
        1.0, "fraction of the noise that is added to the image, above 0, up to 1; 1 starts from noise alone"
    )
    sampler: str = flag("ddim", "dpm++ and unipc need 10 to 15 steps", choices=INPAINTING_SAMPLERS)

    def __post_init__(self) -> None:
        check_choice("sampler", self.sampler, INPAINTING_SAMPLERS)
        _check_finite("guidance_scale", self.guidance_scale)
        _check_steps(self.steps)
        steps_taken(self.steps, self.denoising_strength)

    @property
    def taken(self) -> int:
        """The steps that are taken."""
        return steps_taken(self.steps, self.denoising_strength)


@dataclass(frozen=True)
class PipelineConfig:
    """How a published pipeline of diffusers is run: an instruction editor, or a segmentation ControlNet.

    None stands for what the pipeline was published with.
    """

    editor: str = flag(
        "timbrooks/instruct-pix2pix", "with edit: folder or hub name of an instruction editor in diffusers' layout"
    )
    hint_colours: Literal["ade20k", "cityscapes"] | None = flag(
        None, "with a ControlNet of SD 3.5, FLUX or Qwen-Image: the colours of classes that it was trained with"
    )
    pipeline_steps: int | None = flag(None, "sampling steps (default: the pipeline's own)", type=positive_int)
    pipeline_guidance: float | None = flag(None, "guidance scale (default: the pipeline's own)")
    image_guidance: float = flag(1.5, "with InstructPix2Pix: guidance scale of the photo")
    offload: Literal["none", "model", "sequential"] = flag(
        "none",
        "model: keep all networks but the one that computes in host memory; sequential: the same with single layers",
    )
    vae_tiling: bool = flag(
        False, "encode and decode images in tiles, which takes less memory and changes them a little"
    )

    def __post_init__(self) -> None:
        for name in ("pipeline_guidance", "image_guidance"):
            if (value := getattr(self, name)) is not None:
                _check_finite(name, value)


@dataclass(frozen=True, kw_only=True)
class StyleTransferSettings:
    """Settings of ControlNet/style_transfer.py."""

    SCRIPT: ClassVar[str] = "ControlNet/style_transfer"

    domain: str | None = flag(
        None,
        "fog, night, rain, snow, india (path_dicts.DOMAINS), a list such as fog,night, or a text such as 'thick smoke'",
        title="what to generate",
        exclusive="domain",
    )
    prompt: str | None = flag(None, "a text used verbatim, even if it resembles a known domain", exclusive="domain")
    prompt_file: str | None = flag(
        None,
        "a file with one phrasing of the domain per line, such as 'in dense fog' (with edit: one instruction); one is "
        "chosen for each image",
    )
    generator: Literal["controlnet", "img2img", "translate", "edit"] = flag(
        "controlnet",
        "controlnet: generate from the mask alone; img2img: from the mask and the photo with added noise; translate: "
        "change the photo with the network of train_translation.py; edit: change the photo by an instruction",
    )
    denoising_strength: float | None = flag(
        None,
        f"with img2img: fraction of the steps that are taken, above 0, up to 1 (default: {IMG2IMG_STRENGTH}); 1 starts "
        "from noise alone",
    )
    domain_strength: tuple[float, ...] = flag(
        (1.0,),
        "one set per strength, with the same frames and seeds: 0 is the prompt of clear weather, 1 that of the domain",
        type=_strengths,
    )
    num_samples: int = flag(512, "number of images", type=positive_int)
    without_replacement: bool = flag(False, "choose each frame at most once")
    data_dir: str | None = flag(None, "folder of Cityscapes (default: its place in path_dicts.py)")
    from_train: bool = flag(False, "choose frames of the training set")
    captions: str | None = flag(
        None, ".jsonl of pairs or .json of clip_int.py (default: the published places)", exclusive="captions"
    )
    caption: str | None = flag(None, "one caption for every frame", exclusive="captions")
    no_captions: bool = flag(False, "compose prompts of the domain alone, without captions", exclusive="captions")
    prompt_template: str = flag("{caption}, {domain}", "how a prompt is composed")
    negative_prompt: str = flag("", "the prompt that guidance leads away from")

    base: str | None = flag(
        None, "Stable Diffusion model (default: the one in the ControlNet's file, else 1.5)", title="models"
    )
    controlnet: str = flag(
        "checkpoints/controlnet_cs",
        "folder of train.py, .ckpt file, or a segmentation ControlNet of SD 3.5, FLUX or Qwen-Image",
    )
    lora: str | None = flag(
        None, "a LoRA of the base's UNet, file or folder; --sampler lcm needs one that was trained for it"
    )
    translator: str = flag("checkpoints/translation", "folder of train_translation.py, for --generator translate")

    sampling: SamplingConfig = group(SamplingConfig, "sampling")
    pipeline: PipelineConfig = group(PipelineConfig, "published pipelines")

    frame: Literal["crop", "whole", "full"] = flag(
        "crop",
        "crop: a crop of the frame; whole: the whole frame, resized to --height; full: the whole frame at its own size",
        title="size",
    )
    height: int = flag(512, "height of the images in pixels", type=positive_int)
    width: int = flag(512, "width of the images in pixels", type=positive_int)

    output_dir: str = flag(
        "images/style_transfer", "folder in which the domain's folder is made", title="input and output"
    )
    skip_bad: bool = skip_bad_flag()
    seed: int = seed_flag()
    num_workers: int = num_workers_flag()

    run: RunSettings = group(RunSettings, "run")
    device: DeviceSettings = group(DeviceSettings, "device")

    batch_size: int | None = flag(
        None, "images or windows per batch (default: 32 on a GPU, 4 on a CPU)", title="speed", type=positive_int
    )
    compile: Compile = flag(
        "auto",
        "compile the denoiser, which takes minutes; auto: only when a run is resumed that was compiled",
        bare="on",
    )
    preset: str | None = None

    def __post_init__(self) -> None:
        if (self.domain is None) == (self.prompt is None):
            raise GenValError("Expected one of --domain and --prompt. Give --domain fog, for example.")
        # Smaller numbers would be written with an exponent in the name of the set.
        if not self.domain_strength or not all(one == 0 or 1e-4 <= one <= 1 for one in self.domain_strength):
            raise GenValError(
                "--domain_strength: expected numbers from 0 to 1 in steps of 0.0001 or more, found "
                f"{', '.join(map(str, self.domain_strength))}."
            )
        if self.generator in ("translate", "edit") and self.domain_strength != (1.0,):
            raise GenValError(
                f"--domain_strength: --generator {self.generator} has no prompt of a scene to weaken. Leave it out."
            )
        if self.generator == "img2img":
            steps_taken(self.sampling.steps, self.strength)
            if self.sampling.large == "upscaled":
                raise GenValError(
                    "--large upscaled generates a small image first, but --generator img2img starts from a photo of "
                    "full size. Give --large tiled."
                )
        elif self.denoising_strength is not None:
            raise GenValError(
                f"--denoising_strength: --generator {self.generator} does not start from the photo. Give --generator "
                "img2img, or leave it out."
            )
        if self.generator in ("img2img", "translate"):
            self.check_unused(PipelineConfig, f"--generator {self.generator}")

    def check_unused(self, unused: type[Any] | tuple[str, ...], reader: str) -> None:
        """Check that flags which a generator does not read were not given.

        Args:
            unused: their names, or the settings dataclass that holds them.
            reader: what does not read them, for the error.

        Raises:
            GenValError: some differ from their defaults, of the preset if there is one; the message lists them.
        """
        names = unused if isinstance(unused, tuple) else tuple(field.name for field in fields(unused))
        defaults = flatten(make_settings(StyleTransferSettings, self.preset, domain="fog"))
        values = flatten(self)
        if given := [f"--{name}" for name in names if values[name] != defaults[name]]:
            raise GenValError(f"{', '.join(given)}: {reader} does not use this. Leave it out.")

    @property
    def strength(self) -> float:
        """The denoising strength: 1 starts from noise alone."""
        if self.generator != "img2img":
            return 1.0
        return IMG2IMG_STRENGTH if self.denoising_strength is None else self.denoising_strength

    @property
    def steps(self) -> int:
        """The sampling steps that are taken."""
        return self.sampling.steps if self.strength == 1 else steps_taken(self.sampling.steps, self.strength)

    @property
    def fixed_caption(self) -> str | None:
        """The caption of every frame, "" for none, or None where captions come from a file."""
        return "" if self.no_captions else self.caption

    @property
    def base_model(self) -> str:
        """The base model: as given, or the default of the ControlNet."""
        from genval.diffusion.models.controlnet import default_base

        return self.base or str(default_base(self.controlnet))


@dataclass(frozen=True, kw_only=True)
class InpaintingStageSettings:
    """What ood_objects/sd_inpaint.py and ood_objects/refine_gen_images.py have in common."""

    inpainting_model: str | None = flag(
        None, f"hub name, folder or original .ckpt (default: {INPAINTING_MODEL})", title="model"
    )
    sdxl: bool = flag(False, f"use {INPAINTING_MODEL_XL}, which inpaints 1024 pixels")
    size: int | None = flag(
        None,
        "side in pixels of the square that the model inpaints (default: 512; with --sdxl: 1024)",
        type=positive_int,
    )
    negative_prompt: str = flag("", "the prompt that guidance leads away from")
    sampling: InpaintingConfig = group(InpaintingConfig, "sampling")
    output_dir: str = flag("images/ood_objects/with_positions", "folder of the images", title="input and output")
    seed: int = seed_flag()
    num_workers: int = num_workers_flag()
    run: RunSettings = group(RunSettings, "run")
    device: DeviceSettings = group(DeviceSettings, "device")
    batch_size: int | None = flag(
        None, "images per batch (default: 32 on a GPU, 4 on a CPU)", title="speed", type=positive_int
    )
    compile: Compile = flag(
        "auto",
        "compile the denoiser, which takes minutes; auto: only when a run is resumed that was compiled",
        bare="on",
    )
    preset: str | None = None

    @property
    def inpainting_model_name(self) -> str:
        """The inpainting model: as given, or the default of its kind."""
        return self.inpainting_model or (INPAINTING_MODEL_XL if self.sdxl else INPAINTING_MODEL)

    @property
    def side(self) -> int:
        """The side of the square that the model inpaints, in pixels."""
        return self.size or (1024 if self.sdxl else 512)


@dataclass(frozen=True, kw_only=True)
class ObjectSettings(InpaintingStageSettings):
    """Settings of ood_objects/sd_inpaint.py. Sizes of boxes are for frames of 1024 rows, and scale with the frame."""

    SCRIPT: ClassVar[str] = "ood_objects/sd_inpaint"

    objects: tuple[str, ...] | None = flag(
        None, "names of objects, instead of the list", type=comma_list, title="objects"
    )
    objects_file: str = flag("ood_objects/objects.txt", "a list with one object per line")
    num_images: int = flag(512, "images per object", type=positive_int)
    prompt_template: str = flag("A photo of {article} {object}", "{article} is 'a' or 'an'")
    data_dir: str | None = flag(None, "folder of Cityscapes (default: its place in path_dicts.py)", title="frames")
    from_train: bool = flag(False, "inpaint into frames of the training set")
    placement: Literal["published", "road"] = flag(
        "published",
        "published: anywhere below the top quarter; road: standing on road or sidewalk, smaller with distance",
    )
    min_box: int | None = flag(None, "smallest side of a box in pixels (default: 256; road: 96)", type=positive_int)
    max_box: int = flag(512, "largest side of a box in pixels", type=positive_int)
    context: float = flag(1.5, "side of the crop that the model sees, as a multiple of the box's side")
    skip_bad: bool = skip_bad_flag()

    @property
    def smallest_box(self) -> int:
        """The smallest side of a box in pixels."""
        return self.min_box or (96 if self.placement == "road" else 256)


@dataclass(frozen=True, kw_only=True)
class RefinementSettings(InpaintingStageSettings):
    """Settings of ood_objects/refine_gen_images.py."""

    SCRIPT: ClassVar[str] = "ood_objects/refine_gen_images"

    sampling: InpaintingConfig = group(InpaintingConfig, "sampling", guidance_scale=7.5, denoising_strength=0.65)
    images_dir: str = flag("images/ood_objects/with_positions", "images and boxes to refine", title="images")
    objects: tuple[str, ...] | None = flag(
        None, "only these objects, by name or folder (default: all in the folder)", type=comma_list
    )
    prompt_template: str = flag("{object}", "may contain {article}, which is 'a' or 'an'")
    whole_frame: bool = flag(False, "inpaint the whole frame at its own size, as published")
    context: float = flag(1.5, "side of the crop that the model sees, as a multiple of the box's side")
    feather: float = flag(0.125, "width of the seam, as a fraction of the box's side")
    output_dir: str = flag("images/ood_objects/refined", "folder of the images")


@dataclass(frozen=True, kw_only=True)
class AddControlSettings:
    """Settings of ControlNet/tool_add_control.py."""

    SCRIPT: ClassVar[str] = "ControlNet/tool_add_control"

    input: str = flag(help="the Stable Diffusion model to copy from", positional=True)
    output: str = flag(help="folder, or .ckpt or .safetensors file, to write", positional=True)
    hint_encoding: Literal["label_id", "colour", "one_hot"] = flag(
        "label_id", "hint of the ControlNet: one channel of ids as published, three of colours, or one per class"
    )
    hint_labels: str = flag("cityscapes", "ids of the masks: cityscapes, idd, camvid, or a JSON file")
    hint_init: Literal["default", "hinges"] = flag(
        "default", "start of the hint embedding: random as published, or steps between the class ids"
    )
    hint_widths: tuple[int, ...] = flag(
        (), "channels of the hint embedding's levels (default: 16,32,96,256, as published)", type=_widths
    )
    seed: int = flag(0, "seed of the random initialisation", type=seed_number)
    controlnet: str | None = flag(None, "a trained ControlNet of INPUT, to write instead of a new one")
    export_original: bool = flag(
        False, "write one file in the original format: OUTPUT, or OUTPUT.ckpt if OUTPUT has no suffix of this format"
    )
    save_dtype: Literal["fp32", "fp16"] = flag("fp32", "dtype of the weights in OUTPUT")
    overwrite: bool = flag(False, "replace OUTPUT")
    preset: str | None = None
