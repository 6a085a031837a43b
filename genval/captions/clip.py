"""CLIP, joint embeddings of images and texts, through open_clip (Radford et al., 2021)."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from genval.artifacts.fingerprint import Hashed
from genval.runtime.cache import keep_cached, read_cached
from genval.runtime.errors import GenValError
from genval.runtime.hub import forbid_remote_code, split_revision
from genval.runtime.paths import find_below, resolve
from genval.runtime.precision import autocast, weights_dtype

_CONFIG = "open_clip_config.json"
_HUB = "hf-hub:"
_LOCAL = "local-dir:"


class Clip(Hashed):
    """A CLIP model with its preprocessing and tokenizer.

    Args:
        name: as the user gave it.
        model: an open_clip model.
        transform: converts a PIL image to the model's input, float32 (3, h, w).
        tokenizer: converts a list of texts to token ids, int64 (N, tokens); long texts are truncated.
        precision: one of Lightning's.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        transform: Callable[[Any], Tensor],
        tokenizer: Callable[[list[str]], Tensor],
        precision: str = "32-true",
    ) -> None:
        self.name = name
        super().__init__(model)
        self.precision = precision
        self.device = torch.device("cpu")
        self._model: Any = model.eval().requires_grad_(False).to(weights_dtype(precision))
        self._transform = transform
        self._tokenizer = tokenizer

    @property
    def logit_scale(self) -> float:
        """The learned factor that turns cosines into logits."""
        return float(self._model.logit_scale.exp())

    def to(self, device: torch.device | str) -> Clip:
        """Move the model to a device; return itself."""
        self.device = torch.device(device)
        self._model.to(self.device)
        return self

    def prepare(self, image: np.ndarray) -> Tensor:
        """Convert an RGB uint8 (H, W, 3) image of any size to the model's input, float32 (3, h, w)."""
        from PIL import Image

        return self._transform(Image.fromarray(image))

    def encode_images(self, images: Sequence[np.ndarray], batch_size: int = 64) -> Tensor:
        """Return the embeddings of RGB uint8 (H, W, 3) images: float32 (N, D), normalised, on the CPU."""
        return self.encode_prepared([self.prepare(image) for image in images], batch_size)

    @torch.no_grad()
    def encode_prepared(self, inputs: Sequence[Tensor], batch_size: int = 64) -> Tensor:
        """Return the embeddings of the outputs of `prepare`, as `encode_images` does."""
        dtype = weights_dtype(self.precision)
        vectors = []
        for start in range(0, len(inputs), batch_size):
            pixels = torch.stack(list(inputs[start : start + batch_size])).to(self.device, dtype)
            with autocast(self.device, self.precision):
                vectors.append(self._model.encode_image(pixels))
        return self._normalised(vectors)

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Return the embeddings of texts: float32 (N, D), normalised, on the CPU."""
        vectors = []
        for start in range(0, len(texts), batch_size):
            tokens = self._tokenizer(list(texts[start : start + batch_size])).to(self.device)
            with autocast(self.device, self.precision):
                vectors.append(self._model.encode_text(tokens))
        return self._normalised(vectors)

    def encode_list(self, texts: Sequence[str]) -> Tensor:
        """Return the embeddings of a long list of texts, as `encode_texts` does, and keep them in the user's cache."""
        decides = [self.hash, self.precision, self.device.type, torch.__version__, *texts]
        key = f"texts/{hashlib.sha256(json.dumps(decides).encode()).hexdigest()}.npy"
        if (kept := read_cached(key)) is not None:
            with contextlib.suppress(Exception):  # of many kinds, if the file is damaged
                return torch.from_numpy(np.load(io.BytesIO(kept)))
        vectors = self.encode_texts(texts)
        data = io.BytesIO()
        np.save(data, vectors.numpy())
        keep_cached(key, data.getvalue())
        return vectors

    def fits(self, text: str) -> bool:
        """Return whether the model reads the whole text: another word after it changes the tokens."""
        alone, longer = self._tokenizer([text, f"{text}, a"])
        return not torch.equal(alone, longer)

    def _normalised(self, vectors: Sequence[Tensor]) -> Tensor:
        """Concatenate embeddings and normalise them.

        Raises:
            GenValError: a value is not finite.
        """
        if not vectors:
            return torch.empty(0, self._model.text_projection.shape[-1])
        joined = torch.cat([vector.float().cpu() for vector in vectors])
        if not joined.isfinite().all():
            raise GenValError(f"{self.name} gives values that are not finite. Use --precision 32-true or bf16-mixed.")
        return nn.functional.normalize(joined, dim=-1)


def load_clip(name: str, precision: str = "32-true") -> Clip:
    """Load a CLIP model.

    Args:
        name: `{architecture}/{weights}` of open_clip, e.g. `ViT-L-14/openai`; `hf-hub:{owner}/{repository}`, with or
            without `@{revision}`; or a
            folder with open_clip_config.json and weights (relative: from the repository's root, or below
            `checkpoints/`), with or without `local-dir:` before it.
        precision: one of Lightning's.

    Raises:
        GenValError: no such model, or its files are missing, damaged or do not fit each other.
    """
    import open_clip

    forbid_remote_code()
    weights_dtype(precision)
    try:
        source, weights, options = find_clip(name)
        model, transform = open_clip.create_model_from_pretrained(source, weights, **options)
        tokenizer = open_clip.get_tokenizer(source)
    except GenValError:
        raise
    except Exception as error:  # open_clip and the hub's client have no common class of errors
        raise GenValError(
            f"Cannot load the CLIP model {name}: {' '.join(str(error).split())[:500]} Expected the name of a model "
            f"that can be downloaded, or a folder with {_CONFIG}, weights and, if the config names one, a tokenizer."
        ) from error
    return Clip(name, model, transform, tokenizer, precision)


def find_clip(name: str) -> tuple[str, str | None, dict[str, Any]]:
    """Return open_clip's name of the model, the tag of its weights, and further options.

    Raises:
        GenValError: there is no such folder or name.
    """
    from open_clip import list_models, list_pretrained_tags_by_model
    from open_clip.pretrained import get_pretrained_cfg

    if name.startswith(_HUB):
        repository, revision = split_revision(name.removeprefix(_HUB))
        if revision is None:
            return name, None, {}
        from huggingface_hub import snapshot_download

        files = ["*.json", "*.txt", "*.safetensors", "*.model"]
        return f"{_LOCAL}{snapshot_download(repository, revision=revision, allow_patterns=files)}", None, {}
    folder = _folder(name.removeprefix(_LOCAL))
    if folder is not None:
        return f"{_LOCAL}{folder}", None, {}
    architecture, _, tag = name.partition("/")
    if name.startswith(_LOCAL) or architecture not in list_models():
        raise GenValError(
            f"No CLIP model {name}: expected a folder with {_CONFIG}, hf-hub:OWNER/REPOSITORY, or a name of open_clip "
            "such as ViT-L-14/openai. (The mini world's is made by python mini/train.py --stages captioner.)"
        )
    if tag not in list_pretrained_tags_by_model(architecture):
        raise GenValError(
            f"open_clip has no weights {tag!r} for {architecture}. Give {architecture}/ and one of: "
            f"{', '.join(list_pretrained_tags_by_model(architecture))}."
        )
    # The activation depends on the weights; open_clip only warns if it is the wrong one.
    return architecture, tag, {"force_quick_gelu": bool(get_pretrained_cfg(architecture, tag).get("quick_gelu"))}


def _folder(place: str) -> Path | None:
    if (resolve(place) / _CONFIG).is_file():
        return resolve(place)
    found = find_below("checkpoints", f"{place}/{_CONFIG}")
    return found.parent if found else None
