"""Stable Diffusion as parts: loaded strictly from a diffusers folder or a Hugging Face name, and locked."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genval.runtime.errors import GenValError
from genval.runtime.paths import find_below, resolve

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
# What locked weights are kept in under each of Lightning's precisions: they need no float32 master copy.
_DTYPES = {
    "32-true": torch.float32,
    "16-mixed": torch.float16,
    "16-true": torch.float16,
    "bf16-mixed": torch.bfloat16,
    "bf16-true": torch.bfloat16,
}


@dataclasses.dataclass
class StableDiffusion:
    """The locked parts of a latent diffusion model; none of them is ever trained here.

    Attributes:
        folder: where it was loaded from.
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
        for part in (self.vae, self.text_encoder, self.unet):
            part.requires_grad_(False).eval()

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
        for part in (self.vae, self.text_encoder, self.unet):
            move(part, device, dtype)
        return self

    def check_size(self, height: int, width: int) -> None:
        """Refuse a picture size the UNet cannot halve and double without a remainder.

        Raises:
            GenValError: a side is not a multiple of the VAE's factor times the UNet's.
        """
        step = self.downscale * 2 ** (len(self.unet.config.block_out_channels) - 1)
        if height % step or width % step:
            raise GenValError(f"Expected a height and width that are multiples of {step}, found {height}x{width}.")

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> torch.Tensor:
        """Prompts to the UNet's text states, (B, tokens, channels) in the model's dtype; longer prompts are cut.

        Ids are padded to the tokenizer's length and no attention mask is given, as Stable Diffusion was trained.
        """
        tokens = self.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        return self.text_encoder(tokens.input_ids.to(self.device))[0]

    @torch.no_grad()
    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) uint8 RGB to scaled latents, (B, C, h, w) in the model's dtype.

        The posterior's mean is taken, not a sample: its deviation is small against the latents', and a mean can be
        computed once and kept.
        """
        pixels = images.to(self.device).to(self.dtype) / 127.5 - 1
        return self.vae.encode(pixels).latent_dist.mode() * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Scaled latents (B, C, h, w) to raw pixels, (B, 3, H, W) float32, about -1..1, not clipped."""
        scaled = latents / self.vae.config.scaling_factor
        return self.vae.decode(scaled.to(self.dtype), return_dict=False)[0].float()


def load_base(
    name: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> StableDiffusion:
    """Load a Stable Diffusion model in diffusers' folder layout.

    Args:
        name: a folder (relative ones start at the repository's root) or a Hugging Face name, `owner/model`, which is
            downloaded on first use.
        device, dtype: where to put it; without a dtype it is float32.

    Raises:
        GenValError: a file is missing or damaged, or keys or shapes of the weights do not fit the config.
    """
    from diffusers import AutoencoderKL, SchedulerMixin, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    folder = find_base(name)
    base = StableDiffusion(
        folder=folder,
        vae=load_strictly(AutoencoderKL, folder / "vae", "diffusion_pytorch_model.safetensors"),
        text_encoder=load_strictly(CLIPTextModel, folder / "text_encoder", "model.safetensors"),
        tokenizer=CLIPTokenizer.from_pretrained(str(folder / "tokenizer")),
        unet=load_strictly(UNet2DConditionModel, folder / "unet", "diffusion_pytorch_model.safetensors"),
        scheduler_config=_scheduler_config(SchedulerMixin, folder),
    )
    return base.to(device, dtype or torch.float32)


def find_base(name: str | Path) -> Path:
    """The folder of a Stable Diffusion model with all its files; GenValError where there is none."""
    return find_model(name, _FILES)


def locked_dtype(precision: str) -> torch.dtype:
    """The dtype of weights that are only used, not trained, for a `--precision`."""
    return _DTYPES[precision]


def find_model(name: str | Path, files: Sequence[str]) -> Path:
    """The folder of a model: local (also one level below `checkpoints/`), or downloaded from Hugging Face.

    Args:
        name: a folder or a Hugging Face name.
        files: what must be in it, relative paths.

    Raises:
        GenValError: there is no such folder or name, or a file is missing from it.
    """
    folder: Path | None = resolve(name)
    parts = Path(name).parts
    if folder is not None and not folder.exists() and parts[:1] == ("checkpoints",):
        folder = find_below(parts[0], Path(*parts[1:]))
    if folder is None or not folder.exists():
        folder = _download(str(name), files)
    if not folder.is_dir():
        raise GenValError(f"{folder} is a file: expected a folder in diffusers' layout ({', '.join(files)}).")
    missing = [file for file in files if not (folder / file).exists()]
    if missing:
        raise GenValError(
            f"{folder} lacks {', '.join(missing)}: expected a folder in diffusers' layout with safetensors weights. "
            "Fetch or make it again."
        )
    return folder


def _download(name: str, files: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    if Path(name).suffix in (".ckpt", ".pth", ".safetensors"):
        raise GenValError(
            f"No model at {resolve(name)}, and files of the original format are not read: expected a folder in "
            "diffusers' layout or a Hugging Face name, such as stable-diffusion-v1-5/stable-diffusion-v1-5."
        )
    hub_like = len(Path(name).parts) == 2 and not name.startswith((".", "/", "~", "checkpoints/"))
    reason = "it is not a Hugging Face name either"
    if hub_like:
        try:
            # The tokenizer's own files go by several names; all of them are small.
            return Path(snapshot_download(name, allow_patterns=[*files, "tokenizer/*"]))
        except (OSError, ValueError, HFValidationError) as error:
            reason = f"it could not be fetched from huggingface.co ({str(error).splitlines()[0]})"
    advice = (
        f"With a connection: hf download {name} --local-dir checkpoints/{Path(name).name}, then give that folder."
        if hub_like
        else "Train or fetch it first: the stages in README.md and docs/mini.md say what makes it."
    )
    raise GenValError(f"No model at {resolve(name)}, and {reason}. {advice}")


def load_strictly(model_class: Any, folder: Path, weights: str) -> Any:
    """Load a diffusers or transformers model; every key must be there, none left over, and every shape must fit.

    The keys are compared here because both libraries only warn about missing ones and leave them random.

    Raises:
        GenValError: with the keys that are missing or unexpected, or the reason the file cannot be read.
    """
    try:
        with _quiet():
            model, info = model_class.from_pretrained(str(folder), output_loading_info=True, use_safetensors=True)
    except Exception as error:  # OSError, ValueError, RuntimeError, SafetensorError: one message for the user
        raise GenValError(
            f"{folder / weights} cannot be loaded ({_first_lines(error)}). Fetch or make it again."
        ) from error
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    # Files written with transformers < 4.31 hold this table of 0, 1, 2, ...; it is not a weight.
    unexpected = [key for key in unexpected if not key.endswith("position_ids")]
    if missing or unexpected or info.get("mismatched_keys"):
        raise GenValError(
            f"{folder / weights} does not fit {folder / 'config.json'}: missing keys: {_listed(missing)}; "
            f"unexpected keys: {_listed(unexpected)}; other shapes: {_listed(info.get('mismatched_keys', ()))}. "
            "Fetch or make the file again."
        )
    return model


def move(model: Any, device: torch.device | str, dtype: torch.dtype | None = None) -> Any:
    """Move a model to a device and, where given, a dtype; returns it.

    diffusers' own `to` warns at every change of dtype, also where no part needs float32.
    """
    return torch.nn.Module.to(model, device=device, dtype=dtype)


def checkpoint_hash(folder: str | Path) -> str:
    """Twelve hexadecimal digits that name the weights in a folder: SHA-256 of its safetensors files, by path."""
    digest = hashlib.sha256()
    folder = Path(folder)
    files = sorted(folder.rglob("*.safetensors"))
    # Of a full Stable Diffusion folder only what is loaded counts, not a safety checker or a second variant.
    wanted = [file for file in files if file.relative_to(folder).as_posix() in _FILES] or files
    for file in wanted:
        digest.update(file.relative_to(folder).as_posix().encode())
        with open(file, "rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()[:12]


def to_uint8(pixels: torch.Tensor) -> np.ndarray:
    """Raw pixels (B, 3, H, W), -1..1, to RGB uint8 (B, H, W, 3), clipped and rounded."""
    scaled = (pixels * 127.5 + 127.5).clamp(0, 255).round().to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def _scheduler_config(mixin: Any, folder: Path) -> dict[str, Any]:
    from genval.runtime.files import read_json

    config = read_json(folder / "scheduler" / mixin.config_name)
    return {key: value for key, value in config.items() if not key.startswith("_")}


def _listed(keys: Sequence[Any], limit: int = 8) -> str:
    if not keys:
        return "none"
    more = f" and {len(keys) - limit} more" if len(keys) > limit else ""
    return ", ".join(str(key) for key in list(keys)[:limit]) + more


def _first_lines(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the libraries' own words about keys, which the caller turns into an error, and their progress bars."""
    import diffusers
    import transformers

    loggers = [logging.getLogger(library.__name__) for library in (diffusers, transformers)]
    levels = [logger.level for logger in loggers]
    bar = transformers.utils.logging.is_progress_bar_enabled()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bar:
            transformers.utils.logging.enable_progress_bar()
