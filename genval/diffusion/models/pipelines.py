"""Stable Diffusion 1.x and XL as parts: loaded strictly from a folder, a hub name or an original file, and locked."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch

from genval.diffusion.models.messages import first_words, listed, quiet
from genval.diffusion.original.reading import SUFFIXES, OriginalFile, is_original
from genval.runtime.errors import GenValError
from genval.runtime.files import read_json
from genval.runtime.hub import pretrained, split_revision
from genval.runtime.paths import REPO_ROOT, find_below, resolve
from genval.runtime.precision import compute_dtype

# What is read of a Stable Diffusion folder: the safety checker and other variants of the weights are not.
_FILES = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/tokenizer_config.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
)
# What Stable Diffusion XL has besides.
_XL_FILES = ("text_encoder_2/config.json", "text_encoder_2/model.safetensors", "tokenizer_2/tokenizer_config.json")
# An entry of our own in model_index.json: the folder, relative to the model's, of every part that is not in its own.
SHARED_PARTS = "shared_parts"


@dataclasses.dataclass(frozen=True)
class TextStates:
    """What the text encoders make of a batch of prompts.

    Attributes:
        states: (B, tokens, C), what the denoiser attends to.
        pooled: (B, P), one vector a prompt, which Stable Diffusion XL takes besides; None without one.
    """

    states: torch.Tensor
    pooled: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, rows: Any) -> TextStates:
        """The prompts chosen by a slice or an index tensor."""
        return TextStates(self.states[rows], None if self.pooled is None else self.pooled[rows])

    def to(self, *target: Any) -> TextStates:
        """On another device or of another dtype, as `torch.Tensor.to`."""
        return TextStates(self.states.to(*target), None if self.pooled is None else self.pooled.to(*target))

    @staticmethod
    def cat(parts: Sequence[TextStates]) -> TextStates:
        """Batches one after another."""
        pooled = [part.pooled for part in parts if part.pooled is not None]
        return TextStates(torch.cat([part.states for part in parts]), torch.cat(pooled) if pooled else None)


@dataclasses.dataclass
class StableDiffusion:
    """The locked parts of a latent diffusion model; none of them is ever trained here.

    Attributes:
        folder: where it was loaded from: a folder, or a file of the original format.
        vae, text_encoder, unet: diffusers' AutoencoderKL, transformers' CLIPTextModel, diffusers' UNet2DConditionModel.
        tokenizer: transformers' CLIPTokenizer; its `model_max_length` is the number of tokens a prompt is padded to.
        scheduler_config: noise schedule, prediction type and spacing, as diffusers writes them.
    """

    folder: Path
    vae: Any
    text_encoder: Any
    tokenizer: Any
    unet: Any
    scheduler_config: dict[str, Any]

    def __post_init__(self) -> None:
        for model in self.models:
            model.requires_grad_(False).eval()

    @property
    def models(self) -> list[Any]:
        """Everything that has weights."""
        return [self.vae, self.text_encoder, self.unet]

    @property
    def downscale(self) -> int:
        """Pixels a side of one latent cell."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> StableDiffusion:
        """Move every part to a device and, where given, a dtype; returns itself."""
        for model in self.models:
            move(model, device, dtype)
        return self

    def check_size(self, height: int, width: int) -> None:
        """Refuse an image size the UNet cannot halve and double without a remainder.

        Raises:
            GenValError: a side is not a multiple of the VAE's factor times the UNet's.
        """
        step = self.downscale * 2 ** (len(self.unet.config.block_out_channels) - 1)
        if height % step or width % step:
            raise GenValError(f"Expected a height and width that are multiples of {step}, found {height}x{width}.")

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> TextStates:
        """Prompts to the UNet's text states, in the model's dtype; longer prompts are cut.

        Ids are padded to the tokenizer's length and no attention mask is given, as Stable Diffusion was trained.
        """
        return TextStates(self.text_encoder(self._ids(self.tokenizer, prompts))[0])

    def reads_whole(self, prompt: str) -> bool:
        """Whether a prompt is short enough for the text encoder to read its end."""
        limit = self.tokenizer.model_max_length
        return len(self.tokenizer(prompt, truncation=True, max_length=limit + 1).input_ids) <= limit

    def _ids(self, tokenizer: Any, prompts: Sequence[str]) -> torch.Tensor:
        tokens = tokenizer(
            list(prompts),
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        return tokens.input_ids.to(self.device)

    def added_conditions(self, text: TextStates, height: int, width: int) -> dict[str, torch.Tensor] | None:
        """What UNet and ControlNet take as `added_cond_kwargs` for an image of that size; None for Stable Diffusion 1.

        Args:
            text: of `encode_text`, a row an image.
        """
        return None

    @torch.no_grad()
    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) uint8 RGB to scaled latents, (B, C, h, w) in the model's dtype.

        The posterior's mean is taken, not a sample: its deviation is small against the latents', and a mean can be
        computed once and kept.
        """
        return self.encode_pixels(images.to(self.device).to(self.vae.dtype) / 127.5 - 1)

    @torch.no_grad()
    def encode_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """`encode_images` of (B, 3, H, W) floats, -1..1."""
        pixels = pixels.to(self.device, self.vae.dtype)
        return (self.vae.encode(pixels).latent_dist.mode() * self.vae.config.scaling_factor).to(self.dtype)

    @torch.no_grad()
    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Scaled latents (B, C, h, w) to raw pixels, (B, 3, H, W) float32, about -1..1, not clipped."""
        scaled = latents / self.vae.config.scaling_factor
        return self.vae.decode(scaled.to(self.vae.dtype), return_dict=False)[0].float()


@dataclasses.dataclass
class StableDiffusionXL(StableDiffusion):
    """Stable Diffusion XL (Podell et al. 2023): two text encoders, and the image's size as a condition.

    Attributes:
        text_encoder_2, tokenizer_2: transformers' CLIPTextModelWithProjection, and its CLIPTokenizer.
        zero_empty_prompts: an empty prompt's states are zeros, which is what the base was trained on for guidance.
    """

    text_encoder_2: Any
    tokenizer_2: Any
    zero_empty_prompts: bool = True

    @property
    def models(self) -> list[Any]:
        return [*super().models, self.text_encoder_2]

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> StableDiffusionXL:
        for model in self.models:
            # Activations of the published VAE leave float16's range: it would give NaN.
            upcast = model is self.vae and dtype == torch.float16 and model.config.force_upcast
            move(model, device, torch.float32 if upcast else dtype)
        return self

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> TextStates:
        """The last layer but one of both encoders, side by side, and the second one's projected vector."""
        first = self.text_encoder(self._ids(self.tokenizer, prompts), output_hidden_states=True)
        second = self.text_encoder_2(self._ids(self.tokenizer_2, prompts), output_hidden_states=True)
        states = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        pooled = second.text_embeds
        if self.zero_empty_prompts:
            given = torch.tensor([prompt != "" for prompt in prompts], device=self.device)
            states, pooled = states * given[:, None, None], pooled * given[:, None]
        return TextStates(states, pooled)

    def added_conditions(self, text: TextStates, height: int, width: int) -> dict[str, torch.Tensor]:
        """The pooled text, and the image's size as original size, crop (none) and target size."""
        if text.pooled is None:
            raise ValueError("Stable Diffusion XL needs pooled text states")
        # In float32, whatever the model's dtype: bfloat16 does not hold every size.
        sizes = torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32, device=text.states.device)
        return {"text_embeds": text.pooled, "time_ids": sizes.repeat(len(text), 1)}


def load_base(
    name: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> StableDiffusion:
    """Load a Stable Diffusion 1.x or XL model.

    Args:
        name: a folder in diffusers' layout, a file of the original format (`.ckpt` or `.safetensors` with every part)
            or a Hugging Face name, `owner/model`, which is downloaded on first use. Relative paths start at the
            repository's root.
        device, dtype: where to put it; without a dtype it is float32.

    Raises:
        GenValError: a file is missing or damaged, or keys or shapes of the weights do not fit the config.
    """
    path = find_base(name)
    dtype = dtype or torch.float32
    parts = OriginalFile(path).load_base(device, dtype) if path.is_file() else _load_folder(path)
    kind = StableDiffusionXL if "text_encoder_2" in parts else StableDiffusion
    return kind(folder=path, **parts).to(device, dtype)


def find_base(name: str | Path) -> Path:
    """The folder of a Stable Diffusion model with all its files, or its file; GenValError where there is none."""
    if file := find_file(name):
        return file
    folder = find_model(name, _FILES, _XL_FILES)
    return find_model(folder, [*_FILES, *_XL_FILES]) if _is_xl(folder) else folder


def find_file(name: str | Path) -> Path | None:
    """The file of the original format that a name means: by its suffix, or `NAME.ckpt` where there is no folder NAME.

    Raises:
        GenValError: the name has such a suffix, but there is no file.
    """
    if not is_original(Path(name)):
        files = [] if _find_local(name) else [_find_local(f"{name}{suffix}") for suffix in SUFFIXES]
        return next(filter(None, files), None)
    path = _find_local(name)
    if path is None or not path.is_file():
        raise GenValError(
            f"No checkpoint at {resolve(name)}. Put or link the file there, or give a folder in diffusers' layout or a "
            "Hugging Face name, such as stable-diffusion-v1-5/stable-diffusion-v1-5."
        )
    return path


def _find_local(name: str | Path) -> Path | None:
    """A path from the repository's root, one folder deeper below `checkpoints/`, or, as published, from ControlNet/."""
    path, parts = resolve(name), Path(name).parts
    if path.exists():
        return path
    if parts[:1] == ("checkpoints",):
        return find_below(parts[0], Path(*parts[1:]))
    published = REPO_ROOT / "ControlNet" / name
    return published if published.exists() else None


class _Index(TypedDict):
    """`model_index.json`, as far as it is read."""

    shared_parts: NotRequired[str]


def _is_xl(folder: Path) -> bool:
    return str(read_json(folder / "model_index.json", dict[str, Any]).get("_class_name")).startswith(
        "StableDiffusionXL"
    )


def _load_folder(folder: Path) -> dict[str, Any]:
    """The parts of a folder in diffusers' layout, by the names of a base's attributes."""
    from diffusers import AutoencoderKL, SchedulerMixin, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    parts = {
        "vae": load_strictly(AutoencoderKL, _part_file(folder, "vae"), "diffusion_pytorch_model.safetensors"),
        "text_encoder": load_strictly(CLIPTextModel, _part_file(folder, "text_encoder"), "model.safetensors"),
        "tokenizer": CLIPTokenizer.from_pretrained(str(_part_file(folder, "tokenizer")), trust_remote_code=False),
        "unet": load_strictly(UNet2DConditionModel, folder / "unet", "diffusion_pytorch_model.safetensors"),
        "scheduler_config": _scheduler_config(SchedulerMixin, folder),
    }
    if not _is_xl(folder):
        return parts
    index = read_json(folder / "model_index.json", dict[str, Any])
    return {
        **parts,
        "text_encoder_2": load_strictly(CLIPTextModelWithProjection, folder / "text_encoder_2", "model.safetensors"),
        "tokenizer_2": CLIPTokenizer.from_pretrained(str(folder / "tokenizer_2"), trust_remote_code=False),
        "zero_empty_prompts": index.get("force_zeros_for_empty_prompt", True),
    }


def locked_dtype(precision: str) -> torch.dtype:
    """The dtype of weights that are only used, not trained, for a `--precision`."""
    return compute_dtype(precision)


def find_model(name: str | Path, files: Sequence[str], optional: Sequence[str] = ()) -> Path:
    """The folder of a model: local (also one level below `checkpoints/`), or downloaded from Hugging Face.

    Args:
        name: a folder or a Hugging Face name, which pins a revision as `OWNER/NAME@REVISION`.
        files: what must be in it, relative paths; `weights.fp16.safetensors` does for `weights.safetensors`.
        optional: what is downloaded besides where there is such a file.

    Raises:
        GenValError: there is no such folder or name, or a file is missing from it.
    """
    folder = _find_local(name)
    if folder is None:
        wanted = [*files, *optional]
        folder = _download(str(name), wanted)
        halves = [_half(Path(file)).as_posix() for file in files if not (folder / file).exists()]
        folder = _download(str(name), [*wanted, *halves]) if halves else folder
    if not folder.is_dir():
        raise GenValError(
            f"{folder} is a file: expected a folder in diffusers' layout ({', '.join(files)}), or a file ending in "
            f"{' or '.join(SUFFIXES)}."
        )
    missing = [file for file in files if not _variant(_part_file(folder, file)).exists()]
    if missing:
        raise GenValError(
            f"{folder} has no {', '.join(missing)}: expected a folder in diffusers' layout with safetensors weights. "
            "Fetch or make it again."
        )
    return folder


def _part_file(folder: Path, file: str) -> Path:
    """A file or folder of a model: in its own folder, or where its model_index.json says that other parts are."""
    part, index = file.partition("/")[0], folder / "model_index.json"
    if (folder / part).exists() or not index.is_file():
        return folder / file
    shared = read_json(index, _Index).get(SHARED_PARTS)
    return folder / file if shared is None else folder / shared / file


def _variant(file: Path) -> Path:
    """The file itself, or its half-precision variant where only that is there."""
    return _half(file) if not file.exists() and _half(file).exists() else file


def _half(file: Path) -> Path:
    return file.with_suffix(".fp16.safetensors") if file.suffix == ".safetensors" else file


def _download(name: str, files: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    hub_like = len(Path(name).parts) == 2 and not name.startswith((".", "/", "~", "checkpoints/"))
    reason = "it is not a Hugging Face name either"
    if hub_like:
        try:
            # The tokenizer's own files go by several names; all of them are small.
            repository, revision = split_revision(name)
            wanted = [*files, "tokenizer/*", "tokenizer_2/*"]
            return Path(snapshot_download(repository, revision=revision, allow_patterns=wanted))
        except (OSError, ValueError, HFValidationError) as error:
            reason = f"it could not be fetched from huggingface.co ({str(error).splitlines()[0]})"
    advice = (
        f"With a connection: hf download {_download_flags(name)}, then give that folder."
        if hub_like
        else "Train or fetch it first: the stages in README.md and docs/mini.md say what makes it."
    )
    raise GenValError(f"No model at {resolve(name)}, and {reason}. {advice}")


def _download_flags(name: str) -> str:
    repository, revision = split_revision(name)
    pinned = f" --revision {revision}" if revision else ""
    return f"{repository}{pinned} --local-dir checkpoints/{Path(repository).name}"


def load_strictly(model_class: Any, folder: Path, weights: str) -> Any:
    """Load a diffusers or transformers model; every key must be there, none left over, and every shape must fit.

    The keys are compared here because both libraries only warn about missing ones and leave them random.

    Raises:
        GenValError: with the keys that are missing or unexpected, or the reason the file cannot be read.
    """
    file = _variant(folder / weights)
    variant = None if file.name == weights else "fp16"
    # Models of diffusers have no such option: their classes are known here, and never a repository's own.
    options = pretrained(str(folder))[1] if model_class.__module__.startswith("transformers.") else {}
    try:
        with quiet():
            model, info = model_class.from_pretrained(
                str(folder), output_loading_info=True, use_safetensors=True, variant=variant, **options
            )
    except Exception as error:  # OSError, ValueError, RuntimeError, SafetensorError: one message for the user
        raise GenValError(f"{file} cannot be loaded ({first_words(error)}). Fetch or make it again.") from error
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    # Files written with transformers < 4.31 hold this table of 0, 1, 2, ...; it is not a weight.
    unexpected = [key for key in unexpected if not key.endswith("position_ids")]
    if missing or unexpected or info.get("mismatched_keys"):
        raise GenValError(
            f"{file} does not fit {folder / 'config.json'}: missing keys: {listed(missing)}; "
            f"unexpected keys: {listed(unexpected)}; other shapes: {listed(list(info.get('mismatched_keys', ())))}. "
            "Fetch or make the file again."
        )
    return model


def move(model: Any, device: torch.device | str, dtype: torch.dtype | None = None) -> Any:
    """Move a model to a device and, where given, a dtype; returns it.

    diffusers' own `to` warns at every change of dtype, also where no part needs float32.
    """
    return torch.nn.Module.to(model, device=device, dtype=dtype)


def checkpoint_hash(path: str | Path) -> str:
    """Twelve hexadecimal digits that name weights: SHA-256 of a file, or of a folder's safetensors files by path."""
    path = Path(path)
    if path.is_file():
        return _file_hash(path, path.stat().st_mtime_ns)[:12]
    digest = hashlib.sha256()
    # Of a full Stable Diffusion folder only what is loaded counts, not a safety checker or a second variant.
    names = [file for file in sorted((*_FILES, *_XL_FILES)) if file.endswith(".safetensors")]
    loaded = [(name, _variant(_part_file(path, name))) for name in names]
    whole = [(file.relative_to(path).as_posix(), file) for file in sorted(path.rglob("*.safetensors"))]
    for name, file in [(name, file) for name, file in loaded if file.exists()] or whole:
        digest.update((Path(name).parent / file.name).as_posix().encode())
        _feed(digest, file)
    return digest.hexdigest()[:12]


@functools.cache
def _file_hash(path: Path, changed: int) -> str:
    """Kept while the file is not changed: a base and its ControlNet may be one file of gigabytes."""
    digest = hashlib.sha256()
    _feed(digest, path)
    return digest.hexdigest()


def _feed(digest: Any, file: Path) -> None:
    with open(file, "rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)


def to_uint8(pixels: torch.Tensor) -> np.ndarray:
    """Raw pixels (B, 3, H, W), -1..1, to RGB uint8 (B, H, W, 3), clipped and rounded."""
    scaled = (pixels * 127.5 + 127.5).clamp(0, 255).round().to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def _scheduler_config(mixin: Any, folder: Path) -> dict[str, Any]:
    config = read_json(_part_file(folder, "scheduler") / mixin.config_name, dict[str, Any])
    return {key: value for key, value in config.items() if not key.startswith("_")}
