"""The pipelines of diffusers that are run, and their arguments."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any


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


def pix2pix(request: Request) -> dict[str, Any]:
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
            arguments=pix2pix,
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
