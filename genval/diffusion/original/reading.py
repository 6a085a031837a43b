"""Read checkpoints of the original Stable Diffusion and ControlNet code: all parts in one file, without a network.

A file is a `torch.save` of `{"state_dict": ..., ...}` (`.ckpt`, `.pth`) or a safetensors file of the same keys. It has
no configs and no tokenizer. Sizes are read from the tensor shapes. All other entries are those of the published models
(8 heads, CLIP's vocabulary, the noise schedule). They can be overridden by a folder next to the file, with the file's
name without its suffix, that contains diffusers' `unet/config.json`, `vae/config.json`, `text_encoder/config.json`,
`controlnet/config.json`, `scheduler/scheduler_config.json` or `tokenizer/`. Files of `writing.py` contain their configs
and tokenizers.
"""

from __future__ import annotations

import functools
import gzip
import importlib.util
import pickle
import re
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch

from genval.diffusion.models.weights import assign_weights, build_empty
from genval.diffusion.original import keys
from genval.diffusion.original.keys import Shapes, Source
from genval.runtime.errors import GenValError
from genval.runtime.files import check_shape, parse_json, read_json
from genval.runtime.messages import first_words, listed

SUFFIXES = (".ckpt", ".pth", ".safetensors")
# The entry of files written here that holds configs and tokenizers.
CARRIED = "genval"
_CONFIGS = {
    "unet": "unet/config.json",
    "vae": "vae/config.json",
    "text_encoder": "text_encoder/config.json",
    "text_encoder_2": "text_encoder_2/config.json",
    "controlnet": "controlnet/config.json",
    "scheduler": "scheduler/scheduler_config.json",
}
# The noise schedule of Stable Diffusion 1 and XL, and the spacing of the published sampler.
_SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
_CLIP_VOCABULARY = 49408
# Old files have Lightning's callback class as a key. It is replaced by an empty class, so that no code is run.
_MODEL_CHECKPOINT = "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"
# Other kinds of files, by a part of one of their keys.
_OTHERS = (
    ("lora", "a LoRA, which is an addition to a base"),
    ("cond_stage_model.model.", "Stable Diffusion 2: give a folder in diffusers' layout"),
    ("conditioner.embedders.0.model.", "the refiner of Stable Diffusion XL: give the base"),
    ("double_blocks.", "Flux"),
    ("joint_blocks.", "Stable Diffusion 3"),
    ("down_blocks.", "one part in diffusers' names: give the folder that model_index.json or config.json lies in"),
    ("decode_head.", "a segmenter"),
    ("encoder.down.", "a VAE alone"),
)


class OriginalFile:
    """A file of the original format. Names and shapes are read at once, the weights of a part when it is loaded.

    Attributes:
        path: the file.
        shapes: shape of every tensor by key.

    Raises:
        GenValError: the file is damaged, or does not contain tensors.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        tensors, self._carried = _read(self.path)
        self._tensors: dict[str, torch.Tensor] | None = tensors
        self.shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
        self._schedule = tensors["alphas_cumprod"].float().clone() if "alphas_cumprod" in tensors else None

    @property
    def is_xl(self) -> bool:
        return self.has(keys.TEXT_XL_2)

    @property
    def has_base(self) -> bool:
        return self.has(keys.UNET) and (self.has(keys.TEXT) or self.is_xl)

    def has(self, prefix: str) -> bool:
        """Return whether the file contains a part, by its prefix in `keys`."""
        return any(key.startswith(prefix) for key in self.shapes)

    def load_base(self, device: torch.device | str, dtype: torch.dtype) -> dict[str, Any]:
        """Load a base: its models, tokenizers and scheduler config, by the names of `StableDiffusion`'s attributes.

        Raises:
            GenValError: keys are missing, unexpected or of another shape, or there is no tokenizer.
        """
        if not self.has_base:
            raise self._not_a("base", f"{keys.UNET}*, {keys.VAE}* and {keys.TEXT}* (or {keys.TEXT_XL_2}*)")
        names = ["unet", "vae", "text_encoder", *(["text_encoder_2"] if self.is_xl else [])]
        parts = {name: self._prepare(name) for name in names}
        self._check(parts)
        scheduler = self._scheduler()
        encoders = [name for name in names if name.startswith("text_encoder")]
        tokenizers = {
            name.replace("text_encoder", "tokenizer"): self._tokenizer(name, parts[name][0].config) for name in encoders
        }
        # StableDiffusionXL.to decides about the dtype of its VAE, which is loaded in float32.
        dtypes = {name: torch.float32 if self.is_xl and name == "vae" else dtype for name in parts}
        tensors = self._take_tensors()
        loaded = {name: _fill(*part, tensors, device, dtypes[name]) for name, part in parts.items()}
        zeros = {"zero_empty_prompts": self._carried.get("zero_empty_prompts", True)} if self.is_xl else {}
        return {**loaded, **tokenizers, **zeros, "scheduler_config": scheduler}

    def load_controlnet(self, device: torch.device | str, dtype: torch.dtype) -> Any:
        """Load the file's ControlNet.

        Raises:
            GenValError: there is none, or keys are missing, unexpected or of another shape.
        """
        if not self.has(keys.CONTROL):
            raise self._not_a("ControlNet", f"{keys.CONTROL}*")
        part = self._prepare("controlnet")
        self._check({"controlnet": part})
        return _fill(*part, self._take_tensors(), device, dtype)

    def _configs(self, name: str) -> list[dict[str, Any]]:
        """Return the config of a part in the file, then the one in the folder next to it; empty where missing."""
        path = self.path.with_suffix("") / _CONFIGS[name]
        given = [
            self._carried.get("configs", {}).get(name, {}),
            read_json(path, dict[str, Any]) if path.is_file() else {},
        ]
        return [{key: value for key, value in config.items() if not key.startswith("_")} for config in given]

    def _prepare(self, name: str) -> tuple[Any, dict[str, Source]]:
        """Return a part without weights, and the source of each weight in the file."""
        from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

        text = keys.TEXT_XL if self.is_xl else keys.TEXT
        prefix, read_config = {
            "unet": (keys.UNET, keys.unet_config),
            "vae": (keys.VAE, lambda shapes: keys.vae_config(shapes, self.is_xl)),
            "text_encoder": (text, keys.text_config),
            "text_encoder_2": (keys.TEXT_XL_2, keys.open_clip_config),
            "controlnet": (keys.CONTROL, keys.controlnet_config),
        }[name]
        make: Callable[[dict[str, Any]], Any] = {
            "unet": UNet2DConditionModel.from_config,
            "vae": AutoencoderKL.from_config,
            "text_encoder": lambda config: CLIPTextModel(CLIPTextConfig(**config)),
            "text_encoder_2": lambda config: CLIPTextModelWithProjection(CLIPTextConfig(**config)),
            "controlnet": ControlNetModel.from_config,
        }[name]
        config = read_config(Shapes(self.shapes, prefix, self.path))
        for given in self._configs(name):
            config |= given
        try:
            model = build_empty(lambda: make(config))
        except (TypeError, ValueError) as error:
            raise GenValError(
                f"{self.path}: no {name} can be built of {config} ({error}). Check the file, or the configs in the "
                f"folder {self.path.with_suffix('')}."
            ) from error
        return model, part_sources(name, model, text)

    def _check(self, parts: Mapping[str, tuple[Any, dict[str, Source]]]) -> None:
        """Check, before any weight is read, that no key is missing, unexpected or of another shape."""
        wanted: dict[str, str] = {}
        missing, shapes = [], []
        for model, sources in parts.values():
            for name, tensor in model.state_dict().items():
                source = sources[name]
                wanted[source.key] = name
                if source.key not in self.shapes:
                    missing.append(source.key)
                elif not source.fits(self.shapes[source.key], tuple(tensor.shape)):
                    shapes.append(f"{source.key} {self.shapes[source.key]}")
        prefixes = (keys.UNET, keys.VAE, keys.TEXT, keys.TEXT_XL, keys.TEXT_XL_2, keys.CONTROL)
        # Keys of other parts are checked when these parts are loaded.
        elsewhere = tuple(prefix for prefix in prefixes if not any(key.startswith(prefix) for key in wanted))
        unexpected = [
            key
            for key in self.shapes
            if key not in wanted and not keys.EXTRA.fullmatch(key) and not key.startswith(elsewhere)
        ]
        if missing or unexpected or shapes:
            raise GenValError(
                f"{self.path} does not hold a whole {' and '.join(parts)} of the original format: missing keys: "
                f"{listed(sorted(set(missing)))}; unexpected keys: {listed(sorted(unexpected))}; other shapes: "
                f"{listed(shapes)}. Fetch or make it again; settings that do not follow from the shapes can be "
                f"given in configs in the folder {self.path.with_suffix('')}."
            )

    def _take_tensors(self) -> dict[str, torch.Tensor]:
        """Return the mapped tensors and forget them: pages of a mapped file stay in memory until it is closed."""
        tensors, self._tensors = self._tensors, None
        return _read(self.path)[0] if tensors is None else tensors

    def _scheduler(self) -> dict[str, Any]:
        from diffusers import DDIMScheduler

        # Scheduler configs are not merged, because a missing entry means diffusers' default.
        config = next(filter(None, reversed(self._configs("scheduler"))), _SCHEDULER)
        if self._schedule is not None:
            expected = DDIMScheduler.from_config(config).alphas_cumprod
            if len(self._schedule) != len(expected) or (self._schedule - expected).abs().max() > 1e-3:
                raise GenValError(
                    f"{self.path}: its noise schedule is not Stable Diffusion's (scaled linear, 0.00085 to 0.012). Put "
                    f"the right one into {self.path.with_suffix('') / _CONFIGS['scheduler']}."
                )
        return dict(config)

    def _tokenizer(self, encoder: str, config: Any) -> Any:
        """Return the tokenizer of an encoder: from the folder next to the file, from the file, or CLIP's."""
        from transformers import CLIPTokenizer

        name = encoder.replace("text_encoder", "tokenizer")
        place = self.path.with_suffix("") / name
        if place.is_dir():
            return CLIPTokenizer.from_pretrained(str(place), trust_remote_code=False)
        files = self._carried.get("tokenizers", {}).get(name)
        if files:
            with tempfile.TemporaryDirectory() as folder:
                for file, text in files.items():
                    (Path(folder) / Path(file).name).write_text(text, encoding="utf-8")
                return CLIPTokenizer.from_pretrained(folder, trust_remote_code=False)
        if config.vocab_size != _CLIP_VOCABULARY:
            raise GenValError(
                f"{self.path} has no tokenizer, and its {config.vocab_size} tokens are not CLIP's {_CLIP_VOCABULARY}. "
                f"Put the tokenizer's files into {place}."
            )
        # Stable Diffusion XL pads the prompts of the second encoder with "!", token 0.
        return clip_tokenizer("!" if encoder == "text_encoder_2" else "<|endoftext|>", place)

    def _not_a(self, kind: str, expected: str) -> GenValError:
        if kind == "base" and self.has(keys.CONTROL):
            seems = "a ControlNet alone: give it as --controlnet, and its base as --base"
        elif kind == "ControlNet" and self.has(keys.UNET):
            seems = "a base without a ControlNet: make one with ControlNet/tool_add_control.py"
        elif any(key.startswith("controlnet.") for key in self.shapes):
            seems = (
                "a checkpoint of ControlNet/train.py: give the folder of its --output, or resume that run with --resume"
            )
        else:
            others = (text for part, text in _OTHERS if any(part in key for key in self.shapes))
            seems = next(others, "something else")
        return GenValError(
            f"{self.path} is not a {kind} of the original format: expected keys {expected}, found "
            f"{listed(list(self.shapes), 3)}. It seems to be {seems}."
        )


def open_original(path: Path) -> OriginalFile:
    """Return an `OriginalFile`; one whose file did not change since is returned again."""
    state = path.stat()
    return _open_state(path, state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _open_state(path: Path, size: int, modified: int) -> OriginalFile:
    return OriginalFile(path)


def part_sources(name: str, model: Any, text_prefix: str = keys.TEXT) -> dict[str, Source]:
    """Return the source of each tensor of a diffusers model; `name` is its folder in diffusers' layout."""
    names = list(model.state_dict())
    if name == "text_encoder":
        return keys.text_sources(names, text_prefix)
    if name == "text_encoder_2":
        return keys.open_clip_sources(names)
    makers = {"unet": keys.unet_sources, "vae": keys.vae_sources, "controlnet": keys.controlnet_sources}
    return makers[name](names, model.config)


def is_original(path: Path) -> bool:
    """Return whether a path has the suffix of a file in the original format."""
    return path.suffix in SUFFIXES


def clip_tokenizer(pad_token: str = "<|endoftext|>", place: Path | None = None) -> Any:
    """Return CLIP's tokenizer, made from the vocabulary in the package open_clip, without a download.

    Args:
        pad_token: the token that prompts are padded with.
        place: folder in which a user can put a tokenizer instead, for the error's advice.

    Raises:
        GenValError: open_clip is not installed.
    """
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    package = importlib.util.find_spec("open_clip")
    folders = list(package.submodule_search_locations or []) if package else []
    files = [path for folder in folders for path in Path(folder).glob("bpe_simple_vocab_16e6.txt.gz")]
    if not files:
        raise GenValError(
            "Files of the original format do not contain CLIP's vocabulary, and open_clip, which contains it, is not "
            f"installed. pip install open_clip_torch, or put a CLIP tokenizer's files into {place or 'a folder'}."
        )
    lines = gzip.decompress(files[0].read_bytes()).decode("utf-8").split("\n")
    # The file is a version line and more merges than CLIP uses. CLIP's vocabulary is each letter, alone and at the end
    # of a word, then the merges, then the tokens for begin and end.
    letters = list(bytes_to_unicode().values())
    count = _CLIP_VOCABULARY - 2 - 2 * len(letters)
    merges: Any = [tuple(line.split()) for line in lines[1 : count + 1]]
    tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=pad_token, model_max_length=77)


class _ModelCheckpoint:
    """Replaces Lightning's class of this name in old files, where it is only a key of a dictionary."""


class _Carried(TypedDict):
    """What a file written here holds beside its tensors."""

    configs: NotRequired[dict[str, dict[str, Any]]]


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the memory-mapped tensors of a file, and the configs and tokenizers of a file written here."""
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open
            from safetensors.torch import load_file

            with safe_open(path, "pt") as file:
                carried = parse_json((file.metadata() or {}).get(CARRIED, "{}"), path)
            return load_file(path), check_shape(carried, _Carried, path)
        with torch.serialization.safe_globals([(_ModelCheckpoint, _MODEL_CHECKPOINT)]):
            # Files of torch before 1.6 are not zip archives and cannot be memory-mapped.
            content = torch.load(path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=True)
    except Exception as error:  # UnpicklingError, SafetensorError, RuntimeError, EOFError, OSError: one message
        refused = re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if refused is None:
            raise GenValError(
                f"{path} cannot be read ({first_words(error)}): it is {_head(path)}. Fetch or make it again."
            ) from error
        raise GenValError(
            f"{path} cannot be read safely: it contains tensors and a Python object, {refused[1]}, and to load such "
            "things can run code. Give a .safetensors file, or save the state_dict alone where you trust the file."
        ) from error
    content = content if isinstance(content, dict) else {}
    state = content.get("state_dict", content)
    carried = content.get(CARRIED, {})
    tensors = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
    return tensors, check_shape(carried if isinstance(carried, dict) else {}, _Carried, path)


def _fill(
    model: Any,
    sources: Mapping[str, Source],
    tensors: Mapping[str, torch.Tensor],
    device: torch.device | str,
    dtype: torch.dtype,
) -> Any:
    read = {name: functools.partial(source.read, tensors[source.key]) for name, source in sources.items()}
    return assign_weights(model, read, device, dtype)


def _head(path: Path) -> str:
    """Describe an unreadable file by its first bytes."""
    try:
        with open(path, "rb") as stream:
            head = stream.read(64).lstrip()
    except OSError as error:
        return str(error.strerror)
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself"
    if head.startswith((b"<!", b"<h")):
        return "a web page, not a checkpoint"
    return "damaged, or only a part was fetched"
