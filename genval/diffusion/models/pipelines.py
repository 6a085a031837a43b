"""Stable Diffusion 1.x and XL: frozen models, loaded strictly from a folder, a hub name or an original file."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch

from genval.diffusion.models.weights import load_exactly
from genval.diffusion.original.reading import SUFFIXES, is_original, open_original
from genval.runtime.cache import keep_cached, read_cached
from genval.runtime.devices import to_device
from genval.runtime.errors import GenValError
from genval.runtime.files import read_json
from genval.runtime.hub import pretrained, split_revision
from genval.runtime.messages import first_words, listed, silence_loading
from genval.runtime.paths import REPO_ROOT, find_below, resolve
from genval.runtime.precision import compute_dtype

# The files that are read from a Stable Diffusion folder; the safety checker and other variants are not.
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
# The additional files of Stable Diffusion XL.
_XL_FILES = ("text_encoder_2/config.json", "text_encoder_2/model.safetensors", "tokenizer_2/tokenizer_config.json")
# Our own entry in model_index.json: the folder of the parts that are missing in the model's folder, as a relative path.
SHARED_PARTS = "shared_parts"
# Bytes of a file that are read and hashed at once. Other threads can import libraries meanwhile, and each new block
# waits until they let this thread run.
_BLOCK = 1 << 26
# Seconds without a change after which a file's times tell every further change.
_SETTLED = 2.0


@dataclasses.dataclass(frozen=True)
class TextStates:
    """The encoded prompts of a batch.

    Attributes:
        states: (B, tokens, C), the hidden states that the cross-attentions attend to.
        pooled: (B, P), one vector per prompt for Stable Diffusion XL; None for other models.
    """

    states: torch.Tensor
    pooled: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, rows: Any) -> TextStates:
        """Select prompts by a slice, a list or an index tensor."""
        return TextStates(self.states[rows], None if self.pooled is None else self.pooled[rows])

    def to(self, *target: Any) -> TextStates:
        """Convert to another device or dtype, as `torch.Tensor.to`."""
        return TextStates(self.states.to(*target), None if self.pooled is None else self.pooled.to(*target))

    def lerp(self, end: TextStates, weight: float) -> TextStates:
        """Interpolate linearly: this batch at the weight 0, `end` at 1."""
        pooled = None if self.pooled is None or end.pooled is None else torch.lerp(self.pooled, end.pooled, weight)
        return TextStates(torch.lerp(self.states, end.states, weight), pooled)

    @staticmethod
    def cat(parts: Sequence[TextStates]) -> TextStates:
        """Concatenate batches."""
        pooled = [part.pooled for part in parts if part.pooled is not None]
        return TextStates(torch.cat([part.states for part in parts]), torch.cat(pooled) if pooled else None)


@dataclasses.dataclass
class StableDiffusion:
    """The frozen parts of a latent diffusion model.

    Attributes:
        folder: the folder or the file of the original format that it was loaded from.
        vae: diffusers' AutoencoderKL or AutoencoderTiny.
        text_encoder, unet: transformers' CLIPTextModel, diffusers' UNet2DConditionModel.
        tokenizer: transformers' CLIPTokenizer; prompts are padded to its `model_max_length`.
        scheduler_config: noise schedule, prediction type and timestep spacing, in diffusers' format.
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
        """All models with weights."""
        return [self.vae, self.text_encoder, self.unet]

    @property
    def downscale(self) -> int:
        """The downscaling factor of the VAE, in pixels per latent cell."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> StableDiffusion:
        """Move all models to a device and, if given, a dtype; return itself."""
        for model in self.models:
            move(model, device, dtype)
        return self

    def check_size(self, height: int, width: int) -> None:
        """Check that the VAE and the UNet can downscale an image size without a remainder.

        Raises:
            GenValError: a side is not a multiple of the VAE's factor times the UNet's.
        """
        step = self.downscale * 2 ** (len(self.unet.config.block_out_channels) - 1)
        if height % step or width % step:
            raise GenValError(f"Expected a height and width that are multiples of {step}, found {height}x{width}.")

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> TextStates:
        """Encode prompts as text states in the model's dtype; long prompts are truncated.

        Ids are padded to the tokenizer's length, and there is no attention mask, because Stable Diffusion was trained
        in this way.
        """
        return TextStates(self.text_encoder(self._ids(self.tokenizer, prompts))[0])

    def reads_whole(self, prompt: str) -> bool:
        """Return whether a prompt is encoded without truncation."""
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
        return to_device(tokens.input_ids, self.device)

    def added_conditions(self, text: TextStates, height: int, width: int) -> dict[str, torch.Tensor] | None:
        """Return `added_cond_kwargs` of UNet and ControlNet for an image size; None for Stable Diffusion 1.

        Args:
            text: of `encode_text`, one row per image.
            height, width: of the images in pixels.
        """
        return None

    @torch.no_grad()
    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """Encode (B, 3, H, W) uint8 RGB images as scaled latents, (B, C, h, w) in the model's dtype.

        The result is the posterior's mean, not a sample: its standard deviation is small, and a mean can be cached.
        """
        return self.encode_pixels(images.to(self.device).to(self.vae.dtype) / 127.5 - 1)

    @torch.no_grad()
    def encode_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode (B, 3, H, W) floats, -1..1, as `encode_images` does."""
        pixels = pixels.to(self.device, self.vae.dtype)
        return (encode_latents(self.vae, pixels) * self.vae.config.scaling_factor).to(self.dtype)

    @torch.no_grad()
    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode scaled latents (B, C, h, w) to raw pixels, (B, 3, H, W) float32, about -1..1, not clipped."""
        scaled = latents / self.vae.config.scaling_factor
        return self.vae.decode(scaled.to(self.vae.dtype), return_dict=False)[0].float()


@dataclasses.dataclass
class StableDiffusionXL(StableDiffusion):
    """Stable Diffusion XL (Podell et al. 2023), which has two text encoders and is conditioned on the image size.

    Attributes:
        text_encoder_2, tokenizer_2: transformers' CLIPTextModelWithProjection, and its CLIPTokenizer.
        zero_empty_prompts: whether the states of an empty prompt are zeros, as in the training of the base.
    """

    text_encoder_2: Any
    tokenizer_2: Any
    zero_empty_prompts: bool = True

    @property
    def models(self) -> list[Any]:
        return [*super().models, self.text_encoder_2]

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> StableDiffusionXL:
        for model in self.models:
            # Activations of the published VAE overflow in float16, which gives NaN.
            upcast = model is self.vae and dtype == torch.float16 and model.config.force_upcast
            move(model, device, torch.float32 if upcast else dtype)
        return self

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> TextStates:
        """Concatenate the second-to-last hidden states of both encoders; `pooled` is the projection of the second."""
        first = self.text_encoder(self._ids(self.tokenizer, prompts), output_hidden_states=True)
        second = self.text_encoder_2(self._ids(self.tokenizer_2, prompts), output_hidden_states=True)
        states = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        pooled = second.text_embeds
        if self.zero_empty_prompts:
            given = torch.tensor([prompt != "" for prompt in prompts], device=self.device)
            states, pooled = states * given[:, None, None], pooled * given[:, None]
        return TextStates(states, pooled)

    def added_conditions(self, text: TextStates, height: int, width: int) -> dict[str, torch.Tensor]:
        """Return the pooled text and the image size (original size, crop offset 0, target size)."""
        if text.pooled is None:
            raise ValueError("Stable Diffusion XL needs pooled text states")
        # Always float32, because bfloat16 cannot represent every size.
        sizes = torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32, device=text.states.device)
        return {"text_embeds": text.pooled, "time_ids": sizes.repeat(len(text), 1)}


def encode_latents(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Encode (B, 3, H, W) floats, -1..1, as latents (B, C, h, w), not scaled.

    The result is the posterior's mean for AutoencoderKL; AutoencoderTiny has no posterior and returns its latents.
    """
    encoded = vae.encode(pixels)
    latents: torch.Tensor = encoded.latent_dist.mode() if "latent_dist" in encoded else encoded.latents
    return latents


def load_autoencoder(folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """Load a folder of diffusers' AutoencoderKL or AutoencoderTiny, as its config.json says.

    Raises:
        GenValError: a file is missing or damaged, or keys or shapes of the weights do not fit the config.
    """
    from diffusers import AutoencoderKL, AutoencoderTiny

    config = read_json(folder / "config.json", dict[str, Any])
    kind = AutoencoderTiny if config.get("_class_name") == "AutoencoderTiny" else AutoencoderKL
    return load_strictly(kind, folder, "diffusion_pytorch_model.safetensors", device, dtype)


def load_base(
    name: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> StableDiffusion:
    """Load a Stable Diffusion 1.x or XL model.

    Args:
        name: a folder in diffusers' layout, a file of the original format (`.ckpt` or `.safetensors` with all parts) or
            a Hugging Face name, `owner/model`, which is downloaded at first use. Relative paths start at the
            repository's root.
        device, dtype: of the model; by default CPU and float32.

    Raises:
        GenValError: a file is missing or damaged, or keys or shapes of the weights do not fit the config.
    """
    path = find_base(name)
    dtype = dtype or torch.float32
    parts = open_original(path).load_base(device, dtype) if path.is_file() else _load_folder(path, device, dtype)
    kind = StableDiffusionXL if "text_encoder_2" in parts else StableDiffusion
    return kind(folder=path, **parts).to(device, dtype)


def find_base(name: str | Path) -> Path:
    """Return the folder of a Stable Diffusion model with all files, or its file; GenValError if there is none."""
    if file := find_file(name):
        return file
    folder = find_model(name, _FILES, _XL_FILES)
    return find_model(folder, [*_FILES, *_XL_FILES]) if _is_xl(folder) else folder


def find_file(name: str | Path) -> Path | None:
    """Return the file of the original format: `name` with such a suffix, or `NAME.ckpt` if there is no folder NAME.

    Returns:
        The file; None if `name` is a folder or a hub name.

    Raises:
        GenValError: the name has such a suffix, but the file does not exist.
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
    """Find a path from the repository's root, one folder deeper below `checkpoints/`, or from ControlNet/."""
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


def _load_folder(folder: Path, device: torch.device | str, dtype: torch.dtype) -> dict[str, Any]:
    """Load the parts of a folder in diffusers' layout, by the names of `StableDiffusion`'s attributes."""
    from diffusers import SchedulerMixin, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    is_xl = _is_xl(folder)
    # StableDiffusionXL.to decides about the dtype of its VAE, which is loaded in float32.
    vae_dtype = torch.float32 if is_xl else dtype
    place: dict[str, Any] = {"device": device, "dtype": dtype}
    parts = {
        "vae": load_autoencoder(_part_file(folder, "vae"), device, vae_dtype),
        "text_encoder": load_strictly(CLIPTextModel, _part_file(folder, "text_encoder"), "model.safetensors", **place),
        "tokenizer": CLIPTokenizer.from_pretrained(str(_part_file(folder, "tokenizer")), trust_remote_code=False),
        "unet": load_strictly(UNet2DConditionModel, folder / "unet", "diffusion_pytorch_model.safetensors", **place),
        "scheduler_config": _scheduler_config(SchedulerMixin, folder),
    }
    if not is_xl:
        return parts
    second = folder / "text_encoder_2"
    index = read_json(folder / "model_index.json", dict[str, Any])
    return {
        **parts,
        "text_encoder_2": load_strictly(CLIPTextModelWithProjection, second, "model.safetensors", **place),
        "tokenizer_2": CLIPTokenizer.from_pretrained(str(folder / "tokenizer_2"), trust_remote_code=False),
        "zero_empty_prompts": index.get("force_zeros_for_empty_prompt", True),
    }


def locked_dtype(precision: str) -> torch.dtype:
    """Return the dtype of frozen weights for a `--precision`."""
    return compute_dtype(precision)


def find_model(name: str | Path, files: Sequence[str], optional: Sequence[str] = ()) -> Path:
    """Return the folder of a model: local (also one level below `checkpoints/`), or downloaded from Hugging Face.

    Args:
        name: a folder or a Hugging Face name, which pins a revision as `OWNER/NAME@REVISION`.
        files: the required files, relative paths; `weights.fp16.safetensors` may replace `weights.safetensors`.
        optional: files that are downloaded too if they exist.

    Raises:
        GenValError: there is no such folder or name, or a file is missing.
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
    """Return the path of a model's file or part: in its own folder, or in the folder of `SHARED_PARTS`."""
    part, index = file.partition("/")[0], folder / "model_index.json"
    if (folder / part).exists() or not index.is_file():
        return folder / file
    shared = read_json(index, _Index).get(SHARED_PARTS)
    return folder / file if shared is None else folder / shared / file


def _variant(file: Path) -> Path:
    """Return the file, or its half-precision variant if only that exists."""
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
            # The tokenizer's files have several possible names; all are small.
            repository, revision = split_revision(name)
            wanted = [*files, "tokenizer/*", "tokenizer_2/*"]
            return Path(snapshot_download(repository, revision=revision, allow_patterns=wanted))
        except (OSError, ValueError, HFValidationError) as error:
            reason = f"it could not be fetched from huggingface.co ({str(error).splitlines()[0]})"
    advice = (
        f"With a connection: hf download {_download_flags(name)}, then give that folder."
        if hub_like
        else "Link it, or make it: ControlNet/tool_add_control.py makes an untrained ControlNet, ControlNet/train.py a "
        "trained one, and ControlNet/train_base.py a base."
    )
    raise GenValError(f"No model at {resolve(name)}, and {reason}. {advice}")


def _download_flags(name: str) -> str:
    repository, revision = split_revision(name)
    pinned = f" --revision {revision}" if revision else ""
    return f"{repository}{pinned} --local-dir checkpoints/{Path(repository).name}"


def load_strictly(
    model_class: Any,
    folder: Path,
    weights: str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Any:
    """Load a diffusers or transformers model without missing keys, unexpected keys or other shapes.

    Args:
        model_class: the class.
        folder: that of config.json and the weights.
        weights: name of the file; its half-precision variant may replace it, and it may be in parts, with an index.
        device, dtype: of the weights.

    The keys are checked here, because both libraries only warn about missing ones and initialise them at random.

    Raises:
        GenValError: with the keys that are missing or unexpected, or the reason the file cannot be read; the config
            names another class of diffusers.
    """
    file = _variant(folder / weights)
    config = read_json(folder / "config.json", dict[str, Any]) if (folder / "config.json").exists() else {}
    class_name = config.get("_class_name", model_class.__name__)
    if class_name != model_class.__name__:
        raise GenValError(f"{folder} is a {class_name}: expected a {model_class.__name__}. Give another model.")
    model = load_exactly(model_class, folder, file, device, dtype)
    if model is not None:
        return model
    variant = None if file.name == weights else "fp16"
    # Models of diffusers have no such option: their classes are known here, and never a repository's own.
    in_transformers = model_class.__module__.startswith("transformers.")
    options = pretrained(str(folder))[1] if in_transformers else {}
    options["dtype" if in_transformers else "torch_dtype"] = dtype
    try:
        with silence_loading():
            model, info = model_class.from_pretrained(
                str(folder), output_loading_info=True, use_safetensors=True, variant=variant, **options
            )
    except Exception as error:  # OSError, ValueError, RuntimeError, SafetensorError: one message for the user
        raise GenValError(f"{file} cannot be loaded ({first_words(error)}). Fetch or make it again.") from error
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    # Files of transformers before 4.31 contain this table of 0, 1, 2, ..., which is not a weight.
    unexpected = [key for key in unexpected if not key.endswith("position_ids")]
    if missing or unexpected or info.get("mismatched_keys"):
        raise GenValError(
            f"{file} does not fit {folder / 'config.json'}: missing keys: {listed(missing)}; "
            f"unexpected keys: {listed(unexpected)}; other shapes: {listed(list(info.get('mismatched_keys', ())))}. "
            "Fetch or make the file again."
        )
    return move(model, device, dtype)


def move(model: Any, device: torch.device | str, dtype: torch.dtype | None = None) -> Any:
    """Move a model to a device and, if given, a dtype; return it.

    diffusers' own `to` warns at every change of dtype, also if no part needs float32.
    """
    return torch.nn.Module.to(model, device=device, dtype=dtype)


def checkpoint_hash(path: str | Path, parts: Sequence[str] = ()) -> str:
    """Return 12 hexadecimal digits that identify weights: the SHA-256 of a file, or of a folder's safetensors files.

    Hashes are kept in the user's cache folder, for files that were not changed since: every change of a file sets the
    time of its last change of status, which nobody can set otherwise.

    Args:
        path: the file or folder.
        parts: the subfolders whose files count; by default those of a Stable Diffusion model, or all files.
    """
    files = _weight_files(Path(path).resolve(), parts)
    return _hash_of_states(tuple((name, file, _state(file)) for name, file in files))


def _weight_files(path: Path, parts: Sequence[str]) -> list[tuple[str, Path]]:
    """Return the files that a hash covers, each with the name that it covers too."""
    if path.is_file():
        return [("", path)]
    # In a Stable Diffusion folder only the loaded files count, not a safety checker or a second variant.
    names = [file for file in sorted((*_FILES, *_XL_FILES)) if file.endswith(".safetensors")]
    loaded = [(name, _variant(_part_file(path, name))) for name in names]
    whole = [(file.relative_to(path).as_posix(), file) for file in sorted(path.rglob("*.safetensors"))]
    if parts:
        loaded = [(name, file) for name, file in whole if name.partition("/")[0] in parts]
    files = [(name, file) for name, file in loaded if file.exists()] or whole
    return [((Path(name).parent / file.name).as_posix(), file) for name, file in files]


@functools.lru_cache(maxsize=64)
def _hash_of_states(files: tuple[tuple[str, Path, tuple[int, ...]], ...]) -> str:
    key = f"hashes/{hashlib.sha256(repr(files).encode()).hexdigest()}"
    kept = read_cached(key)
    if kept is not None and re.fullmatch(b"[0-9a-f]{12}", kept):
        return kept.decode()
    digest = hashlib.sha256()
    for name, file, _ in files:
        digest.update(name.encode())
        with open(file, "rb", buffering=0) as stream:
            block = memoryview(bytearray(_BLOCK))
            while size := stream.readinto(block):
                digest.update(block[:size])
    text = digest.hexdigest()[:12]
    # A file that was changed just now may change again within the resolution of its times.
    settled = all(time.time() - file.stat().st_ctime > _SETTLED and _state(file) == state for _, file, state in files)
    if settled:
        keep_cached(key, text.encode())
    return text


def _state(path: Path) -> tuple[int, ...]:
    state = path.stat()
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns


def to_uint8(pixels: torch.Tensor) -> torch.Tensor:
    """Convert raw pixels (B, 3, H, W), -1..1, to RGB uint8 (B, H, W, 3), clipped and rounded."""
    scaled = (pixels * 127.5 + 127.5).clamp(0, 255).round().to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).contiguous()


def _scheduler_config(mixin: Any, folder: Path) -> dict[str, Any]:
    config = read_json(_part_file(folder, "scheduler") / mixin.config_name, dict[str, Any])
    return {key: value for key, value in config.items() if not key.startswith("_")}
